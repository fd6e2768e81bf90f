"""A widened policy costs what its sizes say, and answers as the small one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from serl.models.resolve import resolve_model
from tools.widen_policy import main, widened_config

SMALL = "embedded:tiny_alfworld"
SIZES = {"hidden-size": 256, "layers": 5, "heads": 8, "head-dim": 64, "intermediate-size": 512}


def options(folder: Path, **changed: int) -> list[str]:
    sizes = SIZES | {name.replace("_", "-"): size for name, size in changed.items()}
    return [
        SMALL,
        f"--out={folder}",
        "--dtype=float32",
        *(f"--{name}={size}" for name, size in sizes.items()),
    ]


def test_every_token_of_a_wide_policy_is_as_likely_as_to_the_small_one(tmp_path: Path):
    assert main(options(tmp_path / "wide")) == 0
    wide, small = (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (tmp_path / "wide", resolve_model(SMALL))
    )
    config = wide.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (256, 5, 8)
    assert (config.head_dim, config.intermediate_size, config.num_key_value_heads) == (64, 512, 4)
    ids = torch.randint(small.config.vocab_size, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        of_wide, of_small = (policy(ids).logits.log_softmax(-1) for policy in (wide, small))
    assert (of_wide - of_small).abs().max() < 1e-3
    encoded = [
        AutoTokenizer.from_pretrained(folder).encode("go to fridge 1")
        for folder in (tmp_path / "wide", resolve_model(SMALL))
    ]
    assert encoded[0] == encoded[1]


def test_every_added_weight_is_used_and_none_reaches_the_output(tmp_path: Path):
    assert main(options(tmp_path / "wide")) == 0
    wide = LlamaForCausalLM.from_pretrained(tmp_path / "wide", dtype=torch.float32)
    added = {name: weight for name, weight in wide.state_dict().items() if "layers.4." in name}
    for inner in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        assert added[f"model.layers.4.{inner}.weight"].std() == pytest.approx(0.02, rel=0.1)
    for output in ("self_attn.o_proj", "mlp.down_proj"):
        assert not added[f"model.layers.4.{output}.weight"].any()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hidden_size": 64}, "hidden_size = 64: must be at least that of the small policy, 128"),
        ({"layers": 2}, "num_hidden_layers = 2: must be at least that of the small policy, 3"),
        ({"head_dim": 48}, "head_dim = 48: must be a multiple of that of the small policy, 32"),
        ({"heads": 6}, "heads = 6 cannot share 4 key and value heads evenly"),
    ],
)
def test_sizes_that_cannot_hold_the_small_policy_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, int], says: str
):
    assert main(options(tmp_path / "wide", **changed)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_key_value_heads": 2}, "heads = 4 cannot share 2 key and value heads evenly"),
        ({"attention_bias": True}, "biases or scaled rotary positions"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "scaled rotary"),
    ],
)
def test_a_small_policy_of_another_build_is_refused(config: dict[str, Any], says: str):
    sizes = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}
    with pytest.raises(ValueError, match=says):
        widened_config(LlamaConfig(**{**sizes, "head_dim": 16, **config}), 64, 1, 4, 16, 64)
