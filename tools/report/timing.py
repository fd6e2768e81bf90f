"""Where an iteration's time goes, from ``metrics.jsonl``.

The driver's wall-clock is split without overlap: it waits for a batch, the learners train on it, the weights
go to the replicas. Rollouts go on meanwhile, many episodes at a time, so their time is not a part of it: of
each second that an episode lives, a share is spent waiting for the policy's answer and a share in the
environment.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.report.reading import Run

PARTS = {
    "waiting for a batch": ("time/wait_for_batch_s",),
    "planning": ("learner/seconds_plan",),
    "teacher": ("learner/seconds_teacher",),
    "learner": (
        "learner/seconds_proximal",
        "learner/seconds_reference",
        "learner/seconds_forward_backward",
        "learner/seconds_optimizer",
    ),
    "broadcast": ("broadcast/seconds_transport", "broadcast/seconds_fetch", "broadcast/seconds_load"),
}
OTHER = "other"
PART_NAMES = (*PARTS, OTHER)


def seconds_per_iteration(runs: Sequence[Run]) -> list[float]:
    """Mean seconds of an iteration in each of `PART_NAMES`, over all iterations of ``runs``."""
    num_iterations = sum(len(run.values("time/iteration_s")) for run in runs)
    if num_iterations == 0:
        return [0.0] * len(PART_NAMES)
    totals = [sum(run.total(name) for run in runs for name in names) for names in PARTS.values()]
    whole = sum(run.total("time/iteration_s") for run in runs)
    return [total / num_iterations for total in (*totals, max(whole - sum(totals), 0.0))]


def episode_shares(runs: Sequence[Run]) -> tuple[float, float]:
    """Shares of the episodes' time: waiting for the policy, in the environment. They sum to 1."""
    generation = sum(run.total("runners/generation_seconds") for run in runs)
    environment = sum(run.total("runners/environment_seconds") for run in runs)
    whole = generation + environment
    return (generation / whole, environment / whole) if whole else (0.0, 0.0)


def num_concurrent_generations(runs: Sequence[Run]) -> float:
    """How many episodes waited for the policy at a time, on average."""
    wall = sum(run.total("time/iteration_s") for run in runs)
    return sum(run.total("runners/generation_seconds") for run in runs) / wall if wall else 0.0
