from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.alfworld.provider import make_provider
from serl.rollout.prompt import PromptEncoder
from tools.teacher_reading import Situation, action_logprobs, find_situations, main, measure

POLICY = Path(__file__).resolve().parents[1] / "serl" / "policies" / "tiny_alfworld"


@pytest.fixture(scope="module")
def situations() -> list[Situation]:
    provider = make_provider({"data": "embedded", "max_receptacles": 6})
    return find_situations(provider, provider.task_set("valid_seen").tasks[:24], 10, 2, seed=0)


def test_a_situation_has_an_action_that_works_one_that_does_not_and_a_solution(situations: list[Situation]):
    assert len(situations) >= 8
    for situation in situations:
        last = {name: trial.steps[-1] for name, trial in situation.trials.items()}
        assert len({step.action for step in last.values()}) == 3
        assert all(step.messages == last["better"].messages for step in last.values())
        assert {name: step.action_valid for name, step in last.items()} == {
            "better": True,
            "worse": True,
            "inadmissible": False,
        }
        assert situation.solution.success and not situation.trials["worse"].success


def test_log_probs_in_batches_are_those_of_single_sequences():
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()
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


class _Copies(torch.nn.Module):
    """A model that makes a token the likelier, the more often it has been read."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        counts = torch.nn.functional.one_hot(ids, 2000).cumsum(1).float()
        return type("Output", (), {"logits": counts})()  # type: ignore[return-value]


def test_evidence_that_names_an_action_moves_a_model_that_copies(situations: list[Situation]):
    found = measure(_Copies(), PromptEncoder.load(str(POLICY)), situations)
    readings = {(reading.evidence, reading.action): reading for reading in found}
    refused = readings["feedback on the inadmissible action", "inadmissible"]
    assert refused.difference == pytest.approx(refused.with_evidence - refused.without)
    assert refused.difference > 0 and refused.positive > 0.9
    assert refused.count == len(situations)


def test_the_shipped_policy_raises_a_better_action_when_it_reads_that_it_worked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "readings.json"
    assert main(["embedded:tiny_alfworld", "--states", "64", "--json", str(file)]) == 0
    assert "feedback on the better action" in capsys.readouterr().out
    first = json.loads(file.read_text())[0]
    assert (first["evidence"], first["action"]) == ("feedback on the better action", "better")
    assert first["difference"] - first["half_width"] > 0


def test_a_model_that_does_not_exist_is_bad_input(capsys: pytest.CaptureFixture[str]):
    assert main(["embedded:nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
