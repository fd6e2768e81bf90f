from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import learner_config, reference_logprobs, save_tiny_policy
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from serl.learner.rl_module import CausalLMModule
from serl.learner.token_batch import Layout, make_token_batch
from serl.learner.token_scores import score_tokens
from serl.learner.tree_attention import similar_branches


def build_module(model_dir: Path, attention: str = "sdpa", **learner: bool) -> CausalLMModule:
    model = {"path": str(model_dir), "attention": attention}
    spec = learner_config(model_dir, model=model, learner=learner).get_default_rl_module_spec()
    spec.inference_only = False
    module = spec.build()
    assert isinstance(module, CausalLMModule)
    return module


def sequences(shared: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(300) for _ in range(count)]

    beginning = ids(shared)
    return [beginning + ids(draw.randint(3, 30)) for _ in range(7)], [
        ids(draw.randint(1, 9)) for _ in range(7)
    ]


def branching(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Sequences that begin alike, one of them twice, and a dialogue whose prompts hold the answers before."""
    prompts, responses = sequences(shared=24, seed=seed)
    dialogue = sequences(shared=40, seed=seed + 1)[0][0]
    prompts += [prompts[0], dialogue[:9], dialogue[:20], dialogue[:20], dialogue[:31]]
    responses += [responses[0], dialogue[9:14], dialogue[20:26], [7, *dialogue[21:23]], dialogue[31:40]]
    return prompts, responses


def scored_by(module: CausalLMModule, layout: Layout) -> tuple[Tensor, Tensor]:
    """Log-probs, and the gradient of a weighted sum of them."""
    batch = make_token_batch(*branching(), None, layout=layout)
    logprobs = module(batch).logprobs
    (logprobs * torch.linspace(-1.0, 1.0, len(logprobs))).sum().backward()
    return logprobs.detach(), torch.cat([weight.grad.flatten() for weight in module.parameters()])


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_logprobs_equal_those_of_one_plain_forward_pass_per_sequence(model_dir: Path, layout: Layout) -> None:
    prompts, responses = branching()
    module = build_module(model_dir, "eager" if layout == "padded" else "sdpa")
    assert module.layout == layout
    scored = module(make_token_batch(prompts, responses, None, layout=layout))
    expected = [
        logprob
        for prompt, response in zip(prompts, responses, strict=True)
        for logprob in reference_logprobs(model_dir, prompt, response)
    ]
    torch.testing.assert_close(scored.logprobs.detach(), torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_tree_has_the_gradient_of_its_rows(model_dir: Path, checkpointing: bool) -> None:
    expected_logprobs, expected = scored_by(build_module(model_dir, "eager"), "padded")
    module = build_module(model_dir, gradient_checkpointing=checkpointing)
    logprobs, gradient = scored_by(module, "tree")
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=1e-5)
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_token_that_sequences_share_is_computed_once_at_its_depth() -> None:
    batch = make_token_batch([[5, 6], [5, 6, 7], [5, 6]], [[7, 8], [8, 9], [4]], None, layout="tree")
    assert batch.tree is not None
    # The longest comes first of those that begin alike: 5 6 7 8 9, and 4 grows from 6.
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert batch.tree.positions.tolist() == [0, 1, 2, 3, 4, 2]
    assert [branch.tolist() for branch in batch.tree.branches] == [[0, 1, 2, 3, 4], [0, 1, 5]]
    assert batch.targets.tolist() == [7, 8, 8, 9, 4]
    assert batch.predictor_positions.tolist() == [1, 2, 2, 3, 1]
    assert batch.predictors.tolist() == [1, 2, 3]


def test_branches_of_unlike_sizes_are_scored_apart() -> None:
    # Roots need no mask, one branch asks nothing. 4 × 9 beside 4 × 10 wastes a twentieth, with 1 × 20 more
    # than half.
    assert similar_branches([9, 4, 4, 1, 0, 9], [9, 10, 9, 20, 7, 9]) == [[0, 5], [2, 1], [3]]


def test_only_marked_tokens_are_scored(model_dir: Path) -> None:
    module = build_module(model_dir, "eager")
    prompts, responses = [[5, 6, 7], [8, 9]], [[10, 11, 12], [13, 14]]
    batch = make_token_batch(prompts, responses, [[False, True, True], [True, False]], layout="padded")
    assert batch.targets.tolist() == [11, 12, 13]
    assert batch.row_ids.tolist() == [0, 0, 1]
    # Rows are 6 long; a token is predicted where the one before it stands.
    assert batch.predictor_positions.tolist() == [3, 4, 6 + 1]
    first, second = (reference_logprobs(model_dir, p, r) for p, r in zip(prompts, responses, strict=True))
    expected = torch.tensor([first[1], first[2], second[0]])
    torch.testing.assert_close(module(batch).logprobs.detach(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_in_which_nothing_is_scored_gives_every_weight_a_gradient_of_zeros(
    model_dir: Path, checkpointing: bool
) -> None:
    """What a learner computes that has fewer micro-batches than the others: sharded gradients are summed."""
    module = build_module(model_dir, gradient_checkpointing=checkpointing)
    scores = module(make_token_batch([[5, 6]], [[7]], [[False]], layout="tree"))
    assert scores.logprobs.shape == (0,)
    scores.logprobs.sum().backward()
    gradients = {name: weight.grad for name, weight in module.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(not gradient.any() for gradient in gradients.values() if gradient is not None)


def test_after_its_keys_and_values_the_last_layer_is_computed_for_predictors_only(model_dir: Path) -> None:
    module = build_module(model_dir)
    shapes: dict[str, list[int]] = {}
    layers = module.model.get_decoder().layers
    last = layers[-1].self_attn
    parts = {"first": layers[0].mlp, "last": layers[-1].mlp, "head": module.model.get_output_embeddings()}
    parts |= {"queries": last.q_proj, "keys": last.k_proj, "attended": last.o_proj}
    for name, part in parts.items():
        part.register_forward_pre_hook(
            lambda _, arguments, name=name: shapes.update({name: list(arguments[0].shape)})
        )
    # 5 of the 8 tokens are prompts', and the last of each response predicts nothing.
    module(make_token_batch([[5, 6, 7], [8, 9]], [[1, 2], [3]], None, layout="tree"))
    assert shapes.pop("first") == shapes.pop("keys") == [1, 8, 32]
    assert all(shape == [3, 32] for shape in shapes.values()), shapes


def test_temperature_divides_the_logits_before_probabilities_and_entropy() -> None:
    scored = score_tokens(torch.tensor([[0.0, math.log(4.0)]]), torch.tensor([1]), temperature=2.0)
    # sqrt(4) = 2, so the probabilities are 1/3 and 2/3.
    assert scored.logprobs.tolist() == pytest.approx([math.log(2 / 3)])
    assert scored.entropies.tolist() == pytest.approx([-(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)])


def test_dropout_is_off_even_while_training(tmp_path: Path) -> None:
    save_tiny_policy(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"attention_dropout": 0.0', '"attention_dropout": 0.5')
    )
    module = build_module(tmp_path, "eager")
    assert module.model.config.attention_dropout == 0.5
    batch = make_token_batch([[1, 2, 3]], [[4, 5]], None, layout="padded")
    assert torch.equal(module(batch).logprobs, module(batch).logprobs)


def test_flash_attention_takes_branches_one_after_another(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a stand-in for its kernel, whose queries are the last of each sequence's keys."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        starts = zip(options["query_starts"].tolist(), options["key_starts"].tolist(), strict=True)
        found = []
        for (first_query, first_key), (last_query, last_key) in pairwise(starts):
            heads_first = (
                tensor[own].transpose(0, 1).repeat_interleave(len(query[0]) // tensor.shape[1], 0)
                for tensor, own in (
                    (query, slice(first_query, last_query)),
                    (key, slice(first_key, last_key)),
                    (value, slice(first_key, last_key)),
                )
            )
            mask = causal_lower_right(last_query - first_query, last_key - first_key)
            found.append(scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(0, 1))
        assert options["implementation"] == "flash_attention_2"
        return torch.cat(found)

    monkeypatch.setattr("serl.learner.tree_attention.variable_length_attention", kernel)
    expected_logprobs, expected = scored_by(build_module(model_dir, "eager"), "padded")
    module = build_module(model_dir)
    module._attention = "flash_attention_2"
    logprobs, gradient = scored_by(module, "tree")
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=1e-5)
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()
