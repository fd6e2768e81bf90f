from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from learner_helpers import learner_config, reference_logprobs, save_tiny_policy

from serl.learner.rl_module import CausalLMModule
from serl.learner.token_batch import Layout, make_token_batch, shared_prefix
from serl.learner.token_scores import score_tokens


def build_module(model_dir: Path, **learner: bool) -> CausalLMModule:
    spec = learner_config(model_dir, learner=learner).get_default_rl_module_spec()
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


@pytest.mark.parametrize(("layout", "share_prefix"), [("padded", False), ("padded", True), ("packed", False)])
def test_logprobs_equal_those_of_one_plain_forward_pass_per_sequence(
    model_dir: Path, layout: Layout, share_prefix: bool
) -> None:
    prompts, responses = sequences(shared=24)
    module = build_module(model_dir)
    batch = make_token_batch(prompts, responses, None, layout=layout, share_prefix=share_prefix)
    assert (batch.prefix_ids is not None) == share_prefix
    scored = module(batch)
    expected = [
        logprob
        for prompt, response in zip(prompts, responses, strict=True)
        for logprob in reference_logprobs(model_dir, prompt, response)
    ]
    torch.testing.assert_close(scored.logprobs.detach(), torch.tensor(expected), atol=2e-5, rtol=1e-5)


def test_only_marked_tokens_are_scored(model_dir: Path) -> None:
    module = build_module(model_dir)
    prompts, responses = [[5, 6, 7], [8, 9]], [[10, 11, 12], [13, 14]]
    batch = make_token_batch(
        prompts, responses, [[False, True, True], [True, False]], layout="padded", share_prefix=True
    )
    assert batch.targets.tolist() == [11, 12, 13]
    assert batch.row_ids.tolist() == [0, 0, 1]
    # Rows are 6 long; a token is predicted where the one before it stands.
    assert batch.predictor_positions.tolist() == [3, 4, 6 + 1]
    first, second = (reference_logprobs(model_dir, p, r) for p, r in zip(prompts, responses, strict=True))
    expected = torch.tensor([first[1], first[2], second[0]])
    torch.testing.assert_close(module(batch).logprobs.detach(), expected, atol=2e-5, rtol=1e-5)


def test_what_follows_the_last_attention_is_computed_for_predictors_only(model_dir: Path) -> None:
    module = build_module(model_dir)
    shapes: dict[str, list[int]] = {}
    layers, head = module.model.get_decoder().layers, module.model.get_output_embeddings()
    for name, part in (("first", layers[0].mlp), ("last", layers[-1].mlp), ("head", head)):
        part.register_forward_pre_hook(
            lambda _, arguments, name=name: shapes.update({name: list(arguments[0].shape)})
        )
    batch = make_token_batch([[5, 6, 7], [8, 9]], [[1, 2], [3]], None, layout="padded", share_prefix=False)
    module(batch)
    assert shapes == {"first": [2, 5, 32], "last": [3, 32], "head": [3, 32]}


def test_gradients_flow_through_the_shared_prefix(model_dir: Path) -> None:
    prompts, responses = sequences(shared=24, seed=3)
    gradients = []
    for share_prefix in (False, True):
        module = build_module(model_dir)
        batch = make_token_batch(prompts, responses, None, layout="padded", share_prefix=share_prefix)
        module(batch).logprobs.sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in module.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-4)
    assert gradients[0].abs().max() > 10.0


def test_gradient_checkpointing_changes_no_gradient(model_dir: Path) -> None:
    prompts, responses = sequences(shared=0)
    gradients = []
    for checkpointing in (False, True):
        module = build_module(model_dir, gradient_checkpointing=checkpointing)
        assert module.shares_prefix != checkpointing
        batch = make_token_batch(prompts, responses, None, layout="padded", share_prefix=False)
        module(batch).logprobs.sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in module.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


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
    module = build_module(tmp_path)
    assert module.model.config.attention_dropout == 0.5
    batch = make_token_batch([[1, 2, 3]], [[4, 5]], None, layout="padded", share_prefix=False)
    assert torch.equal(module(batch).logprobs, module(batch).logprobs)


def test_prompts_share_what_all_of_them_begin_with() -> None:
    common = list(range(20))
    assert shared_prefix([[*common, 1, 2], [*common, 1, 3, 4], [*common, 1, 2, 5]]) == 21
    assert shared_prefix([[*common, 1], [*common, 1, 3]]) == 20  # the shorter one's last id predicts
    assert shared_prefix([[1, 2, 3], [1, 2, 4]]) == 0
    assert shared_prefix([[*common, 1]]) == 0
