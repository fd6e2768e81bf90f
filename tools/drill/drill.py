"""One drill: a run, a fault or several of them one after another, what became of it, and its ledger."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.registry import make_provider
from serl.algorithm_state import read_algorithm_state
from serl.buffer.task_sampler import TaskSampler
from serl.config import ExperimentConfig
from serl.run.checkpoint import list_checkpoints
from tools.drill.books import read_books
from tools.drill.faults import Fault, faults_of
from tools.drill.ledger import violations
from tools.drill.moments import draw_moment, wait_for
from tools.drill.run import DrilledRun, RunEndedError

SURVIVED = "survived"
# Whatever hangs, a run ends in that time once it has decided to.
END_LIMIT_S = 60.0
_LEFTOVERS_TIMEOUT_S = 30.0
# What a run does not end of while Ray starts: it is started once more, if it has not come far.
_STARTED_ONCE_MORE = ("gcs", "raylet")
_MAX_STARTS_MORE = 3
_UPDATES, _UPDATES_PER_FURTHER_FAULT = 6, 4


@dataclass(slots=True)
class DrillResult:
    """What came of a drill. ``outcome`` is `SURVIVED` or says what went wrong; ``hung``: a wait never ended.

    Per fault: ``moments``, what was struck and when; ``recovery_s``, seconds from it to the next finished
    update, None where none followed; ``end_s``, seconds from it to the end of the process, where that ended.
    """

    fault: str
    seed: int
    faults: list[str] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)
    outcome: str = SURVIVED
    hung: bool = False
    recovery_s: list[float | None] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    counters: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    folder: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome == SURVIVED and not self.violations


class DrillFailedError(RuntimeError):
    """The run did not do what it should."""


def play(name: str, seed: int, folder: Path, overrides: Sequence[str], deadline_s: float) -> DrillResult:
    """Plays the drill ``name`` (see `faults_of`) with everything that is random drawn from ``seed``.

    Each wait is bounded by ``deadline_s``; whatever comes of it, no process is left.
    """
    generator = random.Random(f"{name}:{seed}")
    faults = faults_of(name, generator)
    result = DrillResult(name, seed, [fault.name for fault in faults], folder=str(folder))
    run = DrilledRun(folder, [*_settings(faults, generator), *overrides])
    began = time.monotonic()
    try:
        _strike_all(run, faults, generator, result, deadline_s)
        _finish(run, result, deadline_s)
    except TimeoutError as error:
        result.outcome, result.hung = str(error), True
    except RunEndedError as error:
        result.outcome = f"{error}, with {run.wait()}: {_last_words(run)}"
    except DrillFailedError as error:
        result.outcome = str(error)
    finally:
        run.end_everything()
    books = read_books(run.run_dir)
    if books.updates:
        last = books.updates[-1]
        result.counters = {name: value for name, value in last.items() if name.startswith("total/") and value}
    if result.outcome == SURVIVED:
        num_damaged = sum(fault.damages_checkpoint for fault in faults)
        passes = tasks_in_a_pass(run.experiment, _num_passes(run.run_dir))
        result.violations += violations(books, run.experiment, passes, num_damaged)
    result.seconds = time.monotonic() - began
    return result


def tasks_in_a_pass(experiment: ExperimentConfig, num_passes: int) -> list[list[str]]:
    """The ids of the training tasks in the order in which each of the first passes deals them."""
    task_set = make_provider(experiment.env.name, experiment.env.args).task_set(experiment.env.train_split)
    sampler = TaskSampler(task_set, 1, experiment.seed)
    return [[sampler.next_group()[0].task.task_id for _ in task_set.tasks] for _ in range(num_passes)]


def _num_passes(run_dir: Path) -> int:
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    return 1 + max((read_algorithm_state(path)["sampler"]["pass"] for path in checkpoints), default=0)


def _settings(faults: Sequence[Fault], generator: random.Random) -> list[str]:
    """Two learners where one is struck; for the others now and then the one in the driver."""
    several = len(faults) > 1 or any(fault.kind == "learner" for fault in faults)
    num_updates = _UPDATES + _UPDATES_PER_FURTHER_FAULT * (len(faults) - 1)
    return [
        f"learner.num_learners={2 if several else generator.choice((0, 1, 2))}",
        f"training.num_iterations={num_updates}",
        f"training.max_restarts={max(3, len(faults))}",
    ]


def _strike_all(
    run: DrilledRun, faults: Sequence[Fault], generator: random.Random, result: DrillResult, deadline_s: float
) -> None:
    run.start()
    for number, fault in enumerate(faults):
        moment = draw_moment(fault, number == 0, generator)
        when = wait_for(moment, fault, run, deadline_s)
        had_started = bool(run.evaluations())
        struck_at, clock = time.time(), time.monotonic()
        result.moments.append(f"{when}: {fault.strike(run, generator)}")
        ends_run = fault.ends_run and (had_started or fault.kind not in _STARTED_ONCE_MORE)
        if ends_run:
            _expect_end(run, fault, result, had_started, deadline_s)
            result.end_s.append(time.monotonic() - clock)
            run.start()
        # What fails while a run starts may end it, in order.
        may_end = not (had_started or ends_run)
        since = time.time() if ends_run else struck_at
        updated_at = _next_update(run, since, may_end, result, deadline_s)
        result.recovery_s.append(None if updated_at is None else updated_at - struck_at)


def _expect_end(
    run: DrilledRun, fault: Fault, result: DrillResult, had_started: bool, deadline_s: float
) -> None:
    """The process ends in time, with the exit code of the fault, and leaves nothing."""
    began = time.monotonic()
    code = run.wait(deadline_s)
    seconds = time.monotonic() - began
    result.exit_codes.append(code)
    # Before there was anything to save, a signal ends everything at once.
    expected = fault.exit_codes if had_started else (*fault.exit_codes, 143, 130, 1)
    if code not in expected:
        raise DrillFailedError(
            f"exit code {code} after {fault.name}, not {fault.exit_codes[0]}: {_last_words(run)}"
        )
    if seconds > END_LIMIT_S:
        raise DrillFailedError(f"ended {seconds:.0f} s after {fault.name}, not within {END_LIMIT_S:.0f} s")
    _expect_nothing_left(run)
    if code == 0 and not run.is_complete():
        reached = run.updates()[-1]["iteration"] if run.updates() else 0
        checkpoints = list_checkpoints(run.run_dir / "checkpoints")
        saved = read_algorithm_state(checkpoints[-1])["weights_seq_no"] if checkpoints else None
        if saved != reached:
            raise DrillFailedError(f"stopped with exit code 0 after update {reached}, saved is {saved}")


def _next_update(
    run: DrilledRun, since: float, may_end: bool, result: DrillResult, deadline_s: float
) -> float | None:
    """When the next update after ``since`` was finished; None if the run came to its end without one.

    ``may_end``: a run that fails is started again.
    """

    times: list[float] = []

    def has_come() -> bool:
        times.extend(row["time"] for row in run.updates() if row["time"] > since)
        return bool(times)

    starts_left = _MAX_STARTS_MORE
    while not times:
        try:
            run.wait_until(has_come, "the next update", deadline_s)
        except RunEndedError:
            code = run.wait()
            if has_come() or (code == 0 and run.is_complete()):
                break
            if not (may_end and starts_left):
                raise DrillFailedError(f"the run ended with {code}: {_last_words(run)}") from None
            starts_left -= 1
            result.exit_codes.append(code)
            _expect_nothing_left(run)
            run.start()
    return times[0] if times else None


def _finish(run: DrilledRun, result: DrillResult, deadline_s: float) -> None:
    code = run.wait(deadline_s)
    result.exit_codes.append(code)
    _expect_nothing_left(run)
    if code != 0:
        raise DrillFailedError(f"the run ended with {code}: {_last_words(run)}")
    if not run.is_complete():
        raise DrillFailedError(f"exit code 0, but the run is not complete: {_last_words(run)}")


def _expect_nothing_left(run: DrilledRun) -> None:
    if left := run.leftovers(_LEFTOVERS_TIMEOUT_S):
        raise DrillFailedError(f"left behind: {'; '.join(left)}")


def _last_words(run: DrilledRun) -> str:
    lines = run.console.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "not a word")[:300]
