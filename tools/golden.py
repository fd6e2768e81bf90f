"""Holds SERL's public functions against recorded cases: ``python -m tools.golden FILE...``.

A file is JSON lines, one case a line, with ``id``, ``kind``, inputs and ``expect``. Failures are printed, the
first 20 with their difference; the last line is ``N passed, M failed``. Exit status: 0 all passed, 1 any
failed, 2 a file cannot be read as such cases. A case of an unknown kind or mode is a failure.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.base import Task
from serl.batch.advantages import StepRows, estimate_advantages
from serl.config import AdvantageSection, HindsightSection, JudgeSection, LossSection
from serl.config.hindsight_modes import MODES
from serl.hindsight.collect import collect_evidence
from serl.hindsight.context import render_context
from serl.hindsight.evidence import GroupView, Outcome, StepEvidence
from serl.hindsight.judge_request import judge_request
from serl.hindsight.schedules import effective_lambda
from serl.hindsight.teacher_weights import teacher_weights, weighted_advantages
from serl.learner.losses import Denominators, LossTokens, policy_loss
from serl.rollout.actions import action_spans
from serl.run.surroundings import write_any_character
from serl.types import Step, Trajectory

ATOL, RTOL = 2e-5, 1e-4
MAX_SHOWN = 20
TOKENS_PER_ROW = 3  # what a row of a group_advantage case stands for
MARKER = re.compile(r"\b(?:PR|RS|TH|FB|NX|JG)-\w+")

Case = dict[str, Any]


class UnreadableCasesError(ValueError):
    """A file that is missing, not text, or not JSON lines of objects."""


def action_span(case: Case) -> Any:
    return {"spans": [list(span) for span in action_spans(case["text"])]}


def lambda_schedule(case: Case) -> Any:
    return {"effective_lambda": _effective_lambda(case["config"])}


def group_advantage(case: Case) -> Any:
    config, steps = case["config"], case["steps"]
    args = {key: value for key, value in config.items() if key not in ("estimator", "mode")}
    if "mode" in config:
        args["normalize_std"] = {"mean_std_norm": True, "mean_norm": False}[config["mode"]]
    if "gamma" in config:
        args["gamma"] = 0.0  # the recorded returns are discounted already
    rows = StepRows(
        rewards=torch.tensor([step["reward"] for step in steps], dtype=torch.float64),
        step_rewards=torch.tensor([step["discounted_return"] for step in steps], dtype=torch.float64),
        groups=_numbered([step["group"] for step in steps]),
        trajectories=_numbered([step["trajectory"] for step in steps]),
        num_tokens=torch.full((len(steps),), TOKENS_PER_ROW),
        anchors=[step["anchor"] for step in steps],
    )
    section = AdvantageSection(estimator=config["estimator"], args=args)
    advantages, _ = estimate_advantages(rows, section)
    return {"advantages": advantages.tolist()}


def weigh(case: Case) -> Any:
    mixing = _effective_lambda(case["config"])
    context = torch.tensor(case["context_mask"]).bool().unsqueeze(1)
    selected = torch.tensor(case["response_mask"]).bool() & context & torch.tensor(case["action_mask"]).bool()
    advantages = torch.tensor(case["advantages"])
    weights, metrics = teacher_weights(
        advantages,
        torch.tensor(case["student_logprobs"]),
        torch.tensor(case["teacher_logprobs"]),
        selected,
        weight_clip=case["config"]["weight_clip"],
    )
    return {
        "token_advantages": weighted_advantages(advantages, weights, mixing).tolist(),
        "effective_lambda": mixing,
        "weight_mean": metrics["weight_mean"],
        "clipped_fraction": metrics["clipped_fraction"],
    }


def loss(case: Case) -> Any:
    config, mask = case["config"], torch.tensor(case["response_mask"]).bool()
    logprobs = torch.tensor(case["logprobs"], requires_grad=True)
    row_of_token = torch.arange(mask.shape[0]).unsqueeze(1).expand_as(mask)
    tokens = LossTokens(
        logprobs=logprobs[mask],
        old_logprobs=torch.tensor(case["old_logprobs"])[mask],
        advantages=torch.tensor(case["advantages"])[mask],
        row_ids=row_of_token[mask],
        denominators=Denominators(
            num_loss_tokens=float(mask.sum()),
            num_rows=float(mask.shape[0]),
            max_response_length=float(mask.shape[1]),
        ),
        aggregation=config["aggregation"],
    )
    args = {name: config[name] for name in ("clip_low", "clip_high")}
    if config["loss"] == "ppo_clip":  # the others are recorded with a dual clip that they do not have
        args["dual_clip"] = config["dual_clip"]
    section = LossSection(name=config["loss"], args=args, aggregation=config["aggregation"])
    value, metrics = policy_loss(tokens, section)
    (gradient,) = torch.autograd.grad(value, logprobs)
    clip_fraction = float(metrics["clip_fraction"])
    return {"loss": float(value.detach()), "grad": gradient.tolist(), "clip_fraction": clip_fraction}


def hindsight(case: Case) -> Any:
    settings = _hindsight_settings(case["config"])
    found: dict[tuple[str, int], Any] = {}
    for group in _groups(case, settings):
        evidence = collect_evidence(group, settings)
        for trajectory, per_step in zip(group.trajectories, evidence, strict=True):
            for step_index, known in enumerate(per_step):
                found[trajectory.trajectory_id, step_index] = _step_answer(known)
    return [
        {"trajectory": trajectory["id"], "step": step["step"], **found[trajectory["id"], step_index]}
        for trajectory in case["trajectories"]
        for step_index, step in enumerate(trajectory["steps"])
    ]


def judge(case: Case) -> Any:
    config = case["config"]
    found: dict[str, Any] = {}
    for group in _groups(case, _hindsight_settings(config)):
        for trajectory in group.trajectories:
            request = judge_request(
                trajectory, group, config["mode"], include_feedback=config["include_feedback"]
            )
            found[trajectory.trajectory_id] = MARKER.findall(request.text)
    return [{"trajectory": t["id"], "evidence": found[t["id"]]} for t in case["trajectories"]]


KINDS: dict[str, Callable[[Case], Any]] = {
    "action_span": action_span,
    "lambda_schedule": lambda_schedule,
    "group_advantage": group_advantage,
    "teacher_weights": weigh,
    "policy_loss": loss,
    "hindsight": hindsight,
    "judge": judge,
}


def _effective_lambda(config: dict[str, Any]) -> float:
    return effective_lambda(config["mixing_lambda"], config["lambda_decay_steps"], config["update_step"])


def _numbered(names: list[str]) -> Tensor:
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)


def _hindsight_settings(config: dict[str, Any]) -> HindsightSection:
    args = {
        "successful_sample": {
            "max_steps": config.get("max_trajectory_steps", 0),
            "exclude_own": config.get("exclude_own_success", True),
        },
        "future_trajectory": {"max_steps": config.get("max_future_steps", 0)},
    }
    return HindsightSection(
        mode=config["mode"],
        args={name: args[name] for name in MODES[config["mode"]].sources if name in args},
        trajectory_format=config["trajectory_format"],
        remove_thinking=config["remove_thinking"],
        anchor_similarity=config.get("anchor_similarity"),
        judge=JudgeSection(base_url="https://recorded/v1", model="recorded"),
    )


def _groups(case: Case, settings: HindsightSection) -> list[GroupView]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for trajectory in case["trajectories"]:
        groups.setdefault(trajectory["group"], []).append(trajectory)
    return [
        GroupView(
            [_trajectory(member, index) for index, member in enumerate(members)],
            settings,
            {member["id"]: member.get("judge_text") for member in members},
        )
        for members in groups.values()
    ]


def _trajectory(recorded: dict[str, Any], rollout_index: int) -> Trajectory:
    return Trajectory(
        trajectory_id=recorded["id"],
        group_id=recorded["group"],
        rollout_index=rollout_index,
        task=Task(recorded["group"]),
        steps=[_step(step) for step in recorded["steps"]],
        reward=recorded["reward"],
        success=recorded["success"],
        end_reason="recorded",
    )


def _step(recorded: dict[str, Any]) -> Step:
    return Step(
        prompt_ids=[],
        response_ids=[],
        old_logprobs=[],
        action_mask=[],
        version_spans=(),
        finish_reason="stop",
        messages=({"role": "user", "content": recorded["prompt"]},),
        response_text=recorded["response"],
        anchor=recorded["anchor"],
        action=None,
        action_valid=recorded["action_valid"],
        feedback=recorded["feedback"],
        next_observation=recorded["next_observation"],
    )


def _step_answer(evidence: StepEvidence) -> dict[str, Any]:
    context, _ = render_context(evidence)
    return {
        "has_context": context is not None,
        "evidence": MARKER.findall(context or ""),
        "candidates": [
            {
                "action": candidate.action,
                "tried": candidate.tried,
                "successes": candidate.successes,
                "mean_return": candidate.mean_return,
                "best": _outcome(candidate.best),
                "worst": _outcome(candidate.worst),
            }
            for candidate in evidence.candidates
        ],
        "pairs": [[pair.action, *MARKER.findall(pair.feedback)] for pair in evidence.feedback_pairs],
    }


def _outcome(outcome: Outcome) -> list[Any]:
    return [str(outcome), outcome.reward]


def difference(expected: Any, answer: Any, where: str = "") -> str | None:
    """The first place where ``answer`` departs from ``expected``; keys that nobody expects do not matter."""
    if isinstance(expected, dict) and isinstance(answer, dict):
        parts = [(f"{where}.{key}", value, answer.get(key, "nothing")) for key, value in expected.items()]
    elif isinstance(expected, list) and isinstance(answer, list) and len(expected) == len(answer):
        both = zip(expected, answer, strict=True)
        parts = [(f"{where}[{index}]", *pair) for index, pair in enumerate(both)]
    elif _same_value(expected, answer):
        return None
    else:
        return f"{where}: expected {expected!r}, got {answer!r}"
    found = (difference(expected_part, answer_part, place) for place, expected_part, answer_part in parts)
    return next((problem for problem in found if problem), None)


def _same_value(expected: Any, answer: Any) -> bool:
    if isinstance(expected, bool) or isinstance(answer, bool):
        return expected is answer
    if isinstance(expected, (int, float)) and isinstance(answer, (int, float)):
        return expected == answer or abs(answer - expected) <= ATOL + RTOL * abs(expected)
    return expected == answer


def check(case: Case) -> str | None:
    """None if the project answers ``case`` as recorded, else what is different."""
    kind = case.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"unknown kind {kind!r}"
    try:
        return difference(case["expect"], KINDS[kind](case))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def read_cases(path: Path) -> list[Case]:
    """The cases of one file; raises UnreadableCasesError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableCasesError(f"cannot read {path}: {error}") from error
    cases = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
        except json.JSONDecodeError as error:
            raise UnreadableCasesError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(case, dict):
            raise UnreadableCasesError(f"{path}, line {number} is not a JSON object")
        cases.append(case)
    return cases


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.golden", description=__doc__)
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+")
    files = parser.parse_args(arguments).files
    try:
        cases = [case for path in files for case in read_cases(path)]
    except UnreadableCasesError as error:
        print(error, file=sys.stderr)
        return 2
    failures = [(case.get("id", "?"), problem) for case in cases if (problem := check(case)) is not None]
    for name, problem in failures[:MAX_SHOWN]:
        print(f"FAILED {name}: {problem}")
    for name, _ in failures[MAX_SHOWN:]:
        print(f"FAILED {name}")
    print(f"{len(cases) - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
