"""`python -m tools.widen_policy`: a policy of any size that plays exactly like a small one.

    python -m tools.widen_policy embedded:tiny_alfworld --out policies/wide --hidden-size 1536 --layers 28 \\
        --heads 12 --head-dim 128 --intermediate-size 8960

For measurements at a real model's size without its download: benchmarks and whole runs with it have a policy
that acts, ends its answers and learns, which random weights do not. The sizes above are those of a model of
1.5 B parameters, but for the vocabulary and the number of key and value heads, which stay the small one's.

What is added computes, but none of it reaches the output: new residual dimensions are always 0, new heads,
neurons and layers have random weights before an output projection of zeros.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from serl.models.resolve import ModelPathError, resolve_model
from serl.run.surroundings import write_any_character
from tools.arguments import output_folder, positive

_DEVIATION = 0.02
# Those whose output goes through another projection before it is added.
_INNER = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def widened_config(
    small: LlamaConfig, hidden_size: int, layers: int, heads: int, head_dim: int, intermediate_size: int
) -> LlamaConfig:
    """``small`` at other sizes.

    Raises ValueError if one is below the small one's, heads do not divide, or ``small`` is no plain Llama.
    """
    sizes = {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate_size,
    }
    own = small.to_dict()
    rope = own["rope_parameters"]
    if rope["rope_type"] != "default" or own["attention_bias"] or own["mlp_bias"]:
        raise ValueError("a policy with biases or scaled rotary positions cannot be widened")
    if head_dim % own["head_dim"]:
        raise ValueError(
            f"head_dim = {head_dim}: must be a multiple of that of the small policy, {own['head_dim']}"
        )
    for name, size in sizes.items():
        if size < own[name]:
            raise ValueError(f"{name} = {size}: must be at least that of the small policy, {own[name]}")
    if own["num_attention_heads"] != own["num_key_value_heads"] or heads % own["num_key_value_heads"]:
        raise ValueError(
            f"heads = {heads} cannot share {own['num_key_value_heads']} key and value heads evenly"
        )
    # Frequency i of n is theta^(-i / n): as many times more of them need theta to that power.
    theta = rope["rope_theta"] ** (head_dim // own["head_dim"])
    # The mean of squares is over zeros too, so that it is smaller by this factor; the norms' weights undo it.
    eps = own["rms_norm_eps"] * own["hidden_size"] / hidden_size
    return LlamaConfig(
        **{**own, **sizes, "rope_parameters": {**rope, "rope_theta": theta}, "rms_norm_eps": eps}
    )


def widen(small: LlamaForCausalLM, config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A policy of ``config`` whose logits are those of ``small``, rounding aside."""
    torch.manual_seed(seed)
    wide = LlamaForCausalLM(config)
    narrow: dict[str, torch.Tensor] = small.state_dict()
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            _fill(name, weight, narrow.get(name), small.config, config)
    return wide.eval()


def _fill(name: str, weight: torch.Tensor, narrow: torch.Tensor | None, small: Any, wide: Any) -> None:
    """``weight`` from the small policy's, which is None in added layers."""
    kind = name.split(".")[-2]
    if kind.endswith("norm"):
        weight.zero_()
        if narrow is not None:
            weight[: len(narrow)] = narrow * math.sqrt(small.hidden_size / wide.hidden_size)
        return
    if kind in _INNER:
        weight.normal_(0.0, _DEVIATION)
    else:
        weight.zero_()
    if narrow is None:
        return
    rows, columns = torch.arange(narrow.shape[0]), torch.arange(narrow.shape[1])
    if kind in ("q_proj", "k_proj", "v_proj"):
        own = _own_heads(small, wide, shares_keys=kind == "q_proj")
        weight[own.flatten()] = 0.0
        rows = _rotated_as_before(own, small)
    if kind == "q_proj":
        # Attention divides by the root of the head's size.
        narrow = narrow * math.sqrt(wide.head_dim / small.head_dim)
    if kind == "o_proj":
        columns = _rotated_as_before(_own_heads(small, wide, shares_keys=True), small)
    weight[rows[:, None], columns[None, :]] = narrow


def _own_heads(small: Any, wide: Any, shares_keys: bool) -> torch.Tensor:
    """Dimensions of the heads that stand for the small policy's: (heads, head_dim).

    ``shares_keys``: of the heads that share keys and values, the first one does.
    """
    shared = wide.num_attention_heads // wide.num_key_value_heads if shares_keys else 1
    firsts = torch.arange(small.num_attention_heads) * shared * wide.head_dim
    return firsts[:, None] + torch.arange(wide.head_dim)


def _rotated_as_before(heads: torch.Tensor, small: Any) -> torch.Tensor:
    """Of ``heads``, the dimensions that the small policy's take: the first ones of each half."""
    half = small.head_dim // 2
    return torch.cat([side[:, :half] for side in heads.chunk(2, dim=1)], dim=1).flatten()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.widen_policy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a Llama, as model.path names it")
    parser.add_argument("--out", type=output_folder, required=True, help="the folder to write")
    for option in ("--hidden-size", "--layers", "--heads", "--head-dim", "--intermediate-size"):
        parser.add_argument(option, type=positive, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the added weights (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a policy or sizes that do not work."""
    options = _parse(arguments)
    try:
        folder = resolve_model(options.model)
        config = LlamaConfig.from_pretrained(folder)
        if config.model_type != "llama":
            raise ValueError(f"{options.model} is of type {config.model_type}; only a Llama can be widened")
        sizes = (options.hidden_size, options.layers, options.heads, options.head_dim)
        wide_config = widened_config(config, *sizes, options.intermediate_size)
    except (ModelPathError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        small = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        wide: Any = widen(small, wide_config, options.seed)
    ignored = shutil.ignore_patterns("*.safetensors", "warm_start.json")
    shutil.copytree(folder, options.out, ignore=ignored, dirs_exist_ok=True)
    wide.to(dtype=getattr(torch, options.dtype)).save_pretrained(options.out)
    millions = sum(weight.numel() for weight in wide.parameters()) / 1e6
    print(f"{options.out}: {millions:.0f} million parameters")
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
