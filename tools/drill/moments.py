"""When a fault strikes: a phase of a run, and how far into it, drawn from a seed."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from serl.run.checkpoint import list_checkpoints
from tools.drill.faults import Fault
from tools.drill.ledger import evaluations_due
from tools.drill.processes import title_of
from tools.drill.run import DrilledRun

START = "start"
PHASES = (START, "rollout", "update", "broadcast", "evaluation", "checkpoint")
# How long a phase is if nothing is known of it yet; a small part of a second is what it often is.
_START_S, _DRIVER_START_S, _SHORT_S = 4.0, 20.0, 0.3
_QUICK_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Moment:
    """``fraction`` of the way through the first such phase after ``updates`` further updates."""

    phase: str
    updates: int
    fraction: float


def draw_moment(fault: Fault, is_first: bool, generator: random.Random) -> Moment:
    """Only the first fault may come while the run starts, for the others wait until it goes again."""
    phase = fault.phase or generator.choice(PHASES if is_first else PHASES[1:])
    # An evaluation and a checkpoint are due a few updates later only.
    most = 3 if is_first and phase in ("rollout", "update", "broadcast") else 2
    return Moment(phase, generator.randint(1, most), generator.random())


def wait_for(moment: Moment, fault: Fault, run: DrilledRun, timeout_s: float) -> str:
    """Returns at the moment, with what can be said of it. Raises TimeoutError, RunEndedError."""
    if moment.phase == START:
        spread_s = _DRIVER_START_S if fault.kind == "driver" else _START_S
        run.wait_for_processes(fault.kind, timeout_s)
    else:
        since = time.time()

        def further_updates() -> bool:
            return sum(row["time"] > since for row in run.updates()) >= moment.updates

        run.wait_until(further_updates, f"{moment.updates} further updates", timeout_s)
        spread_s = _wait_for_phase(moment.phase, run, timeout_s)
    time.sleep(moment.fraction * spread_s)
    updates = run.updates()
    return f"{moment.phase} after update {updates[-1]['iteration'] if updates else 0}"


def _wait_for_phase(phase: str, run: DrilledRun, timeout_s: float) -> float:
    """Returns as the phase begins, with how many seconds it lasts, about."""
    last = run.updates()[-1]
    if phase in ("update", "broadcast"):
        method = {"update": "update", "broadcast": "publish"}[phase]
        learners = run.processes("learner")
        if not learners:  # the one learner is in the driver, which does not say what it does
            return last["time/iteration_s"]
        run.wait_until(
            lambda: any(method in title_of(pid) for pid in learners), phase, timeout_s, _QUICK_POLL_S
        )
        return last["learner/seconds_update"] if phase == "update" else _SHORT_S
    if phase == "evaluation":
        run.wait_until(lambda: _is_evaluating(run), "an evaluation", timeout_s, _QUICK_POLL_S)
        return run.evaluations()[-1]["seconds"] if run.evaluations() else _SHORT_S
    checkpoints = run.run_dir / "checkpoints"
    if phase == "checkpoint":
        run.wait_until(
            lambda: any(checkpoints.glob("*.partial")),
            "a checkpoint that is written",
            timeout_s,
            _QUICK_POLL_S,
        )
        return _SHORT_S
    if phase == "two checkpoints":
        run.wait_until(lambda: len(list_checkpoints(checkpoints)) >= 2, "two checkpoints", timeout_s)
    return last["time/iteration_s"] / 2.0


def _is_evaluating(run: DrilledRun) -> bool:
    """After an update that is followed by an evaluation, which is not there yet."""
    updates = run.updates()
    reached = updates[-1]["iteration"] if updates else 0
    played = {row["iteration"] for row in run.evaluations()}
    return reached in evaluations_due(run.experiment) and reached not in played
