"""What the program of either side is told, what it writes of its iterations, and what is made of that."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean


@dataclass(frozen=True, slots=True)
class Iteration:
    """A batch played and trained. It ended ``seconds`` after training began.

    ``processor_seconds``: of all its processes, since some moment before. ``success``: the share of the
    batch's episodes that solved their task.
    """

    seconds: float
    processor_seconds: float
    env_steps: int
    success: float


def program_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of a side's program."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, required=True, help="to measure, after a first iteration")
    parser.add_argument("--output", type=Path, required=True, help="gets a line an iteration")
    parser.add_argument("experiment", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    return parser


def append_iteration(path: Path, iteration: Iteration) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(iteration)) + "\n")


def read_iterations(path: Path) -> list[Iteration]:
    """Raises FileNotFoundError, and TypeError or ValueError if a line is not an iteration."""
    return [Iteration(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def is_measured(ended_s: Sequence[float], measured_s: float) -> bool:
    """Whether iterations that ended at ``ended_s`` are enough: the first one warms up, others follow for
    ``measured_s`` seconds, and at least one."""
    return len(ended_s) > 1 and ended_s[-1] - ended_s[0] >= measured_s


def env_steps_per_s(iterations: Sequence[Iteration]) -> float:
    """Of all iterations after the first, which warms up. Raises ValueError without any."""
    first, *measured = iterations
    if not measured:
        raise ValueError("one iteration alone was played, which is not measured")
    return sum(one.env_steps for one in measured) / (measured[-1].seconds - first.seconds)


def processor_ms_per_step(iterations: Sequence[Iteration]) -> float:
    """Of the same iterations, in milliseconds an env step; waiting for a core does not count."""
    first, *measured = iterations
    spent = measured[-1].processor_seconds - first.processor_seconds
    return 1000.0 * spent / sum(one.env_steps for one in measured)


def late_success(iterations: Sequence[Iteration]) -> float:
    """The mean success of the batches that were done in the last half of the time."""
    end = iterations[-1].seconds
    return mean(one.success for one in iterations if one.seconds > end / 2)
