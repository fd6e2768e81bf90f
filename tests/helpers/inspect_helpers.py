"""Run directories made by hand, for the page: realistic in shape and size, the same for the same seed."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path

import yaml

from serl.evaluation import wilson_interval
from serl.hindsight.context import render_context
from serl.hindsight.evidence import Evidence, QuotedStep, StepEvidence
from serl.run.records import TRAJECTORIES, StepRecord, TrajectoryRecord
from serl.types import TeacherRecord

TASK_TYPES = ("pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep")
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'><!-- <b>"
_THOUGHTS = "I should look for the mug first because the task asks me to put a clean mug on the shelf".split()
_PLACES = ("shelf 1", "cabinet 4", "sinkbasin 1", "countertop 2", "fridge 1", "drawer 3")


def response_tokens(rng: random.Random, num_thoughts: int) -> tuple[list[str], list[int], str]:
    """Texts of a response's tokens, its action mask, and the action."""
    action = f"go to {rng.choice(_PLACES)}"
    thought = [f" {word}" for word in rng.choices(_THOUGHTS, k=num_thoughts)]
    inside = ["go", " to", *(f" {word}" for word in action.split()[2:])]
    tokens = ["<think>", *thought, "\n", "</think>", "<action>", *inside, "</action>", ""]
    first = len(thought) + 4
    return tokens, [int(first <= i < first + len(inside)) for i in range(len(tokens))], action


def teacher_record(
    rng: random.Random, mask: list[int], advantage: float, context: str | None, clip: float = 0.2
) -> TeacherRecord:
    """Weights of the action tokens as `teacher_weights` would give them for made-up log-ratios."""
    scored = context is not None
    effects = [round(rng.gauss(0.0, 0.25), 4) if scored and on else None for on in mask]
    without_context = [round(rng.gauss(-0.05, 0.08), 4) if scored and on else None for on in mask]
    log_ratios = [
        None if effect is None or rest is None else round(effect + rest, 4)
        for effect, rest in zip(effects, without_context, strict=True)
    ]
    sign = 1.0 if advantage > 0 else -1.0
    weights = [
        None if ratio is None else round(min(max(math.exp(sign * ratio), 1 - clip), 1 + clip), 4)
        for ratio in log_ratios
    ]
    return TeacherRecord(
        advantage=advantage,
        token_advantages=[round(advantage * (0.5 + 0.5 * (1.0 if w is None else w)), 4) for w in weights],
        context=context,
        weights=weights,
        log_ratios=log_ratios,
        context_effects=effects,
        log_ratios_without_context=without_context,
    )


def context_of(rng: random.Random) -> str | None:
    """The context of a step as training renders it, of a source that differs from step to step."""
    answer = Evidence("immediate_feedback", text="You arrive at shelf 1. On the shelf 1, you see a mug 2.")
    sample = Evidence(
        "successful_sample",
        quoted_steps=tuple(
            QuotedStep(index, None, f"<action>go to {place}</action>") for index, place in enumerate(_PLACES)
        ),
    )
    kinds: list[tuple[Evidence, ...]] = [(answer,), (sample,), (sample, answer), ()]
    parts = rng.choices(kinds, weights=(4, 3, 2, 1))[0]
    return render_context(StepEvidence(parts=parts))[0]


def step_record(rng: random.Random, iteration: int, index: int, advantage: float) -> StepRecord:
    tokens, mask, action = response_tokens(rng, rng.randint(20, 60))
    valid = rng.random() > 0.15
    turn = rng.randint(1, len(tokens) - 1)
    several = rng.random() < 0.2
    spans = (
        [(0, turn, iteration - 1), (turn, len(tokens), iteration)]
        if several
        else [(0, len(tokens), iteration)]
    )
    user = (
        "You are an expert agent in the ALFRED embodied environment. Your task is to put a clean mug on a "
        f"shelf. You have taken {index} steps. " + "You see a shelf 1, a cabinet 4 and a fridge 1. " * 12
    )
    return StepRecord(
        messages=[{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": user}],
        response="".join(tokens),
        tokens=tokens,
        token_ids=[rng.randint(3, 49_000) for _ in tokens[:-1]] + [2],
        special_tokens={len(tokens) - 1: "<|im_end|>"},
        old_logprobs=[round(-rng.expovariate(2.0), 4) for _ in tokens],
        action_mask=[1 if on else 0 for on in mask],
        version_spans=spans,
        action=action,
        action_valid=valid,
        feedback=None if valid else "Nothing happens: that action is not admissible here.",
        next_observation="You arrive at shelf 1. On the shelf 1, you see a mug 2, and a plate 1.",
        reward=0.0 if valid else -0.1,
        finish_reason="stop",
        num_prompt_tokens=312 + index,
        num_cached_tokens=256,
        teacher=teacher_record(rng, mask, advantage, context_of(rng) if advantage else None),
    )


def trajectory_records(
    num_iterations: int, groups_per_iteration: int, group_size: int, num_steps: int, seed: int = 0
) -> list[TrajectoryRecord]:
    rng = random.Random(seed)
    records = []
    for iteration in range(1, num_iterations + 1):
        for group in range(groups_per_iteration):
            group_id = f"{iteration:06d}-{group}"
            for rollout_index in range(group_size):
                success = rng.random() < 0.3 + 0.4 * iteration / num_iterations
                advantage = round((0.9 if success else -0.7) + rng.gauss(0, 0.05), 4)
                records.append(
                    TrajectoryRecord(
                        iteration=iteration,
                        trajectory_id=f"{group_id}-{rollout_index}",
                        group_id=group_id,
                        rollout_index=rollout_index,
                        task_id=f"trial_T2019_{iteration:04d}_{group}",
                        task_type=TASK_TYPES[(iteration + group) % len(TASK_TYPES)],
                        reward=10.0 if success else 0.0,
                        success=success,
                        end_reason="success" if success else "max_steps",
                        weights_seq_no=iteration - 1,
                        seconds=round(rng.uniform(2, 20), 2),
                        steps=[step_record(rng, iteration, index, advantage) for index in range(num_steps)],
                    )
                )
    return records


def write_run(folder: Path, records: list[TrajectoryRecord], *extra_lines: str) -> Path:
    """A run directory of these records, with the metrics and evaluations that a real run has beside them."""
    folder.mkdir(parents=True)
    config = {
        "name": "by_hand",
        "model": {"path": "embedded:tiny_alfworld"},
        "env": {"name": "alfworld"},
        "hindsight": {"sources": ["successful_sample", "immediate_feedback"], "weight_clip": 0.2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [record.model_dump_json() for record in records]
    (folder / TRAJECTORIES).write_text("".join(f"{line}\n" for line in [*lines, *extra_lines]))
    rng = random.Random(1)
    last = max((record.iteration for record in records), default=0)
    metrics = [
        {
            "iteration": iteration,
            "rollout/success": min(1.0, 0.3 + 0.4 * iteration / last + rng.gauss(0, 0.05)),
            "learner/effective_lambda": max(0.0, 0.5 - iteration / 100),
        }
        for iteration in range(1, last + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    evaluations = [
        {"iteration": iteration, "overall": asdict(wilson_interval(successes, 192))}
        for iteration, successes in ((0, 48), (last, 120))
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    return folder
