"""`tools.credit`: a policy in this process, recorded runs without Ray, and hints that can be followed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from serl.batch.group import finish
from serl.buffer.task_sampler import evaluation_requests
from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.hindsight.credit import IDLE
from serl.run.records import TrajectoryWriter
from serl.run.run_dir import CONFIG, config_yaml
from serl.types import TeacherRecord, TeacherRecords, TrajectoryGroup
from tools.credit.__main__ import main
from tools.credit.hinted import measure_hints
from tools.credit.measuring import judge_groups, measure_sources, measure_student
from tools.credit.policy import Policy
from tools.credit.subject import Subject, open_subject

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "serl" / "policies" / "tiny_alfworld"
OVERRIDES = ["training.group_size=4", "env.max_steps=8", "training.filter_groups=false"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return open_subject("embedded:tiny_alfworld", OVERRIDES, None, num_groups=4, names=(), seed=0)


def test_an_action_is_as_likely_scored_as_it_was_sampled(subject: Subject) -> None:
    assert subject.policy is not None
    steps = [step for group in subject.groups for step in group.steps]
    scored = subject.policy.action_logprobs(
        [step.prompt_ids for step in steps],
        [step.response_ids for step in steps],
        [step.action_mask for step in steps],
    )
    for step, logprobs in zip(steps, scored, strict=True):
        sampled = torch.tensor(step.old_logprobs)[torch.tensor(step.action_mask)]
        assert logprobs.tolist() == pytest.approx(sampled.tolist(), abs=1e-3)


def test_scores_in_batches_are_those_of_single_sequences_at_the_temperature_of_sampling() -> None:
    config = load_experiment(ROOT / "experiments/quickstart.yaml", ["rollout.temperature=0.5"])
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).requires_grad_(False)
    prompts, responses = [[20, 21, 22, 23, 24], [30]], [[40, 41, 42], [50, 51]]
    found = Policy.load(POLICY, config, 0).action_logprobs(
        prompts, responses, [[False, True, True], [True, False]]
    )
    first = (model(torch.tensor([[20, 21, 22, 23, 24, 40, 41]])).logits[0] / 0.5).log_softmax(-1)
    second = (model(torch.tensor([[30]])).logits[0] / 0.5).log_softmax(-1)
    assert found[0].tolist() == pytest.approx([float(first[5, 41]), float(first[6, 42])], abs=1e-4)
    assert found[1].tolist() == pytest.approx([float(second[0, 50])], abs=1e-4)


def test_a_response_ends_with_what_ends_it_and_at_its_longest(subject: Subject) -> None:
    assert subject.policy is not None
    for step in (step for group in subject.groups for step in group.steps):
        assert len(step.response_ids) <= subject.config.rollout.max_response_length
        if len(step.response_ids) < subject.config.rollout.max_response_length:
            assert step.response_text.endswith("</action>") or step.response_ids[-1] == 1
        assert "</action>" not in subject.policy.encoder.decode(step.response_ids[:-1])


def test_a_policy_is_measured_with_its_name_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "credit.json", tmp_path / "credit.svg"
    arguments = [*OVERRIDES, "--groups", "4", "--games", "3", "--hints", "successful_sample"]
    arguments += ["--sources", "immediate_feedback", "anchor_next_observation"]
    assert main(["embedded:tiny_alfworld", *arguments, "--json", str(file), "--figure", str(picture)]) == 0
    found = json.loads(file.read_text())
    assert found.keys() == {"sources", "student", "hinted"}
    assert found["sources"].keys() == {"immediate_feedback", "anchor_next_observation"}
    for credit in (*found["sources"].values(), found["student"]):
        assert credit.keys() == {"auc_idle", "auc_idle_positive", "auc_rest", "share"}
        assert 0.0 <= credit["auc_idle"] <= 1.0
    assert found["student"]["share"] == found["sources"]["immediate_feedback"]["share"] == 1.0
    assert found["hinted"]["successful_sample"]["games"] == 3
    assert "immediate_feedback" in capsys.readouterr().out and "<svg" in picture.read_text()


def record_run(subject: Subject, run_dir: Path) -> None:
    """A run that recorded the subject's groups, with a teacher that knows progress from the rest."""
    assert subject.policy is not None
    (run_dir / CONFIG).write_text(config_yaml(subject.config), encoding="utf-8")
    judged, _ = judge_groups(subject.provider, subject.groups, subject.config)
    kinds = {group.finished.group_id: group.kinds for group in judged}
    writer = TrajectoryWriter(run_dir, subject.policy.encoder.tokenizer, 2**30)
    for iteration, group in enumerate(subject.groups, start=1):
        own = kinds.get(group.group_id, ["idle"] * len(group.steps))
        writer.write(iteration, group.trajectories, _records(group, own, subject.config))


def _records(group: TrajectoryGroup, kinds: Sequence[str], config: ExperimentConfig) -> TeacherRecords:
    rows = finish(group, config).rows
    records: TeacherRecords = {}
    for row, (step, kind) in enumerate(zip(group.steps, kinds, strict=True)):
        nothing: list[float | None] = [None] * len(step.response_ids)
        ratio = 0.5 if kind == "progress" else -0.5
        ratios = [ratio if in_action else None for in_action in step.action_mask]
        records[rows.trajectory_ids[row], rows.step_indices[row]] = TeacherRecord(
            float(rows.advantages[row]), nothing, "told", nothing, ratios, None, None
        )
    return records


def test_a_run_is_measured_without_ray_and_as_the_policy_that_it_began_with(
    subject: Subject, tmp_path: Path
) -> None:
    record_run(subject, tmp_path)
    file = tmp_path / "credit.json"
    arguments = [str(tmp_path), "--games", "0", "--sources", "immediate_feedback", "--json", str(file)]
    code = f"import sys; from tools.credit.__main__ import main; assert main({arguments!r}) == 0; "
    code += "assert 'ray' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads(file.read_text())
    judged, _ = judge_groups(subject.provider, subject.groups, subject.config)
    assert judged
    # Its teacher gave more tokens of a long action the same log-ratio; the sign alone orders the two kinds.
    assert found["sources"]["(recorded)"] == {
        "auc_idle": 1.0,
        "auc_idle_positive": 1.0,
        "auc_rest": 1.0,
        "share": 1.0,
    }
    # Log-probs are recorded with four decimals, which may make or break a tie.
    assert found["student"]["auc_idle"] == pytest.approx(measure_student(judged).idle.value, abs=1e-3)
    assert found["sources"]["immediate_feedback"]["share"] == 1.0
    assert found["hinted"] == {}


def test_groups_that_were_recorded_in_part_are_left_out(
    subject: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_run(subject, tmp_path)
    assert main([str(tmp_path), "--games", "0", "--groups", "0"]) == 2
    assert "would be trained on; raise --groups" in capsys.readouterr().err
    file = tmp_path / "trajectories.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    assert main([str(tmp_path), "--games", "0", "--sources", "immediate_feedback"]) == 0
    assert "3 trajectories left out: their groups were recorded in part" in capsys.readouterr().out


def test_the_teacher_reads_no_more_tokens_than_it_may(subject: Subject) -> None:
    assert subject.policy is not None
    judged, _ = judge_groups(subject.provider, subject.groups, subject.config)
    num_steps = sum(len(group.rows) for group in judged)
    found = {
        limit: dict(measure_sources(subject.policy, judged, subject.config, ["immediate_feedback"], limit))
        for limit in (10**9, 2000, 0)
    }
    scored = [own["immediate_feedback"].rest for own in found.values()]
    counts = [auc.num_progress + auc.num_others for auc in scored]
    # A prompt has some hundred tokens.
    assert counts[0] == num_steps and 0 < counts[1] < min(40, num_steps) and counts[2] == 0
    assert [own["immediate_feedback"].share for own in found.values()] == [1.0, 1.0, 1.0]


class _Follower(Policy):
    """Does what the quoted attempt did at the same step; without one, it looks around."""

    def respond(self, prompts, temperature):
        return [self._response(self.encoder.decode(list(prompt))) for prompt in prompts]

    def _response(self, prompt: str) -> tuple[list[int], list[float]]:
        _, _, quoted = prompt.partition("An attempt at this task that succeeded")
        steps = [line.partition(": ")[2] for line in quoted.splitlines() if line.startswith("Step ")]
        text = steps[self.num_hinted] if steps else "<action>look</action>"
        self.num_hinted += bool(steps)
        ids = self.encoder.tokenizer.encode(text, add_special_tokens=False)
        return ids, [0.0] * len(ids)

    num_hinted = 0


def test_a_policy_that_follows_a_hint_wins_with_it_and_not_without(subject: Subject) -> None:
    config = subject.config.model_copy(
        update={"env": subject.config.env.model_copy(update={"max_steps": 20})}
    )
    task_set = subject.provider.task_set("valid_seen")
    for request in evaluation_requests(task_set, 3, 0):
        policy = _Follower.load(POLICY, config, 0)
        provider = subject.provider
        hints = measure_hints(provider, policy, config, [request.task], ["successful_sample"])  # type: ignore[arg-type]
        ((name, gap),) = list(hints)
        assert (name, gap.plain, gap.hinted, gap.gains) == ("successful_sample", [False], [True], [1.0])


def test_the_environments_answer_is_of_a_first_response_that_is_taken_back(subject: Subject) -> None:
    policy = _Curious.load(POLICY, subject.config, 0)
    provider = subject.provider
    task = evaluation_requests(provider.task_set("valid_seen"), 1, 0)[0].task
    ((_, gap),) = measure_hints(provider, policy, subject.config, [task], ["immediate_feedback"])  # type: ignore[arg-type]
    assert gap.plain == gap.hinted == [False]
    told = [prompt for prompt in policy.seen if "Hindsight" in prompt]
    assert len(told) == subject.config.env.max_steps
    assert all("'fly' is not an admissible action here" in prompt for prompt in told)
    # What was taken back is no turn of the episode.
    assert not any("You did: fly" in prompt.partition("Hindsight")[0] for prompt in told)


class _Curious(Policy):
    """Tries to fly, and looks around once it has read that this does not work."""

    def respond(self, prompts, temperature):
        texts = [self.encoder.decode(list(prompt)) for prompt in prompts]
        self.seen += texts
        ids = [
            self.encoder.tokenizer.encode(
                f"<action>{'look' if 'Hindsight' in text else 'fly'}</action>", add_special_tokens=False
            )
            for text in texts
        ]
        return [(own, [0.0] * len(own)) for own in ids]

    @property
    def seen(self) -> list[str]:
        return self.__dict__.setdefault("_seen", [])

    @seen.setter
    def seen(self, texts: list[str]) -> None:
        self.__dict__["_seen"] = texts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embedded:nothing"], "nothing"),
        (["embedded:tiny_alfworld", "--sources", "imediate_feedback"], "did you mean 'immediate_feedback'?"),
        (["embedded:tiny_alfworld", "--hints", "judge_current_traj"], "is no source or mode"),
        (["embedded:tiny_alfworld", "--groups", "0"], "raise --groups"),
        (["embedded:tiny_alfworld", "env.name=envs.example:make_provider", "env.args={}"], "`progress`"),
    ],
)
def test_what_cannot_be_measured_is_told(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [] if "--groups" in arguments else ["--groups", "1"]
    assert main([*arguments, *few, *OVERRIDES]) == 2
    assert words in capsys.readouterr().err


def test_a_figure_without_matplotlib_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["embedded:nothing", "--figure", "x.svg"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_a_student_that_prefers_progress_is_told_from_one_that_does_not(subject: Subject) -> None:
    judged, num_not_judged = judge_groups(subject.provider, subject.groups, subject.config)
    assert num_not_judged == 0
    credit = measure_student(judged)
    assert credit.idle.num_progress > 0 and credit.share == 1.0
    assert credit.rest.num_others >= credit.idle.num_others
    assert {kind for group in judged for kind in group.kinds} >= {"progress", *IDLE}
