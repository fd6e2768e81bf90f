from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.alfworld.provider import make_provider
from serl.rollout.actions import action_token_mask
from serl.rollout.prompt import PromptEncoder
from tools.teacher_reading import Situation, action_logprobs, find_situations, likeliest_trials, main, measure

POLICY = Path(__file__).resolve().parents[2] / "serl" / "policies" / "tiny_alfworld"


@pytest.fixture(scope="module")
def situations() -> list[Situation]:
    provider = make_provider({"data": "embedded", "max_receptacles": 6})
    return find_situations(provider, provider.task_set("valid_seen").tasks[:24], 10, 2, seed=0)


def test_a_situation_has_an_action_that_works_one_that_does_not_and_a_solution(situations: list[Situation]):
    assert len(situations) >= 8
    for situation in situations:
        last = {name: [trial.steps[-1] for trial in trials] for name, trials in situation.trials.items()}
        (better,) = last["better"]
        actions = [step.action for steps in last.values() for step in steps]
        assert len(set(actions)) == len(actions) >= 3
        assert all(step.messages == better.messages for steps in last.values() for step in steps)
        assert better.action_valid and all(step.action_valid for step in last["worse"])
        assert last["inadmissible"] and not any(step.action_valid for step in last["inadmissible"])
        assert situation.solution.success
        assert not any(trial.success for trial in situation.trials["worse"])


def test_of_the_worse_actions_the_likeliest_is_read(situations: list[Situation]):
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).requires_grad_(False)
    encoder = PromptEncoder.load(str(POLICY))
    (chosen,) = likeliest_trials(model, encoder, situations[:1])
    steps = [trial.steps[-1] for trial in situations[0].trials["worse"]]
    logprobs = action_logprobs(
        model, encoder, [step.messages for step in steps], [step.response_text for step in steps]
    )
    best = max(range(len(steps)), key=logprobs.__getitem__)
    assert len(steps) > 1 and chosen["worse"].steps[-1] is steps[best]


def test_log_probs_in_batches_are_those_of_single_sequences():
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).requires_grad_(False)
    encoder = PromptEncoder.load(str(POLICY))
    prompts = [[{"role": "user", "content": text}] for text in ("You see a shelf 1.", "You see")]
    responses = ["<think>find mug</think><action>go to shelf 1</action>", "<action>look</action>"]
    found = action_logprobs(model, encoder, prompts, responses)
    for prompt, response, sum_of_actions in zip(prompts, responses, found, strict=True):
        prompt_ids = encoder.encode(prompt)
        ids = encoder.tokenizer.encode(response, add_special_tokens=False)
        logprobs = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        inside = response[response.index("<action>") + 8 : -9]
        texts = [encoder.decode([token]) for token in ids]
        first = texts.index("<action>") + 1
        assert "".join(texts[first:-1]) == inside
        expected = sum(float(logprobs[at, ids[at]]) for at in range(first, len(ids) - 1))
        assert sum_of_actions == pytest.approx(expected, abs=1e-4)


class _ReadsHindsight(torch.nn.Module):
    """Gives the next token of a text the logit 1 if the text has hindsight in it, all else the logit 0."""

    def __init__(self, encoder: PromptEncoder):
        super().__init__()
        self.encoder, self.size = encoder, len(encoder.tokenizer)

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        told = torch.tensor(["Hindsight:" in self.encoder.decode(row) for row in ids.tolist()])
        following = torch.nn.functional.one_hot(ids.roll(-1, dims=1), self.size).float()
        return SimpleNamespace(logits=following * told[:, None, None])


def test_the_difference_is_that_of_the_log_probs_with_and_without_evidence(situations: list[Situation]):
    encoder = PromptEncoder.load(str(POLICY))
    model = _ReadsHindsight(encoder)
    readings = {
        (reading.evidence, reading.action): reading for reading in measure(model, encoder, situations)
    }
    assert len(readings) == 7
    # A token's log-prob is −log V without and 1 − log(V − 1 + e) with evidence.
    without = -math.log(model.size)
    gain = 1.0 - math.log(model.size - 1 + math.e) - without
    for name in ("better", "inadmissible"):
        lengths = [
            sum(action_token_mask(encoder.tokenizer.encode(step.response_text), encoder.tokenizer))
            for step in (trials[name].steps[-1] for trials in likeliest_trials(model, encoder, situations))
        ]
        mean_length = sum(lengths) / len(lengths)
        reading = readings[f"feedback on the {name} action", name]
        assert reading.without == pytest.approx(without * mean_length, rel=1e-5)
        assert reading.difference == pytest.approx(gain * mean_length, rel=1e-4)
        assert (reading.positive, reading.count) == (1.0, len(situations))
    assert readings["successful sample", "worse"].positive == 1.0


def test_the_shipped_policy_raises_a_better_action_when_it_reads_that_it_worked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "readings.json"
    assert main(["embedded:tiny_alfworld", "--states", "24", "--json", str(file)]) == 0
    assert "feedback on the better action" in capsys.readouterr().out
    first = json.loads(file.read_text())[0]
    assert (first["evidence"], first["action"]) == ("feedback on the better action", "better")
    assert first["difference"] - first["half_width"] > 0


def test_a_model_that_does_not_exist_is_bad_input(capsys: pytest.CaptureFixture[str]):
    assert main(["embedded:nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
