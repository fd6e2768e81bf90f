"""Who is compared with whom, in which order, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tools.bench.figures import Figures
from tools.bench.peers.iterations import Iteration, env_steps_per_s, late_success, processor_ms_per_step

_EQUAL_WORK, _GRPO, _SERL = "SERL's GRPO, equal work", "SERL's GRPO as shipped", "SERL as shipped"
_TRL, _TRIMMED, _VLLM = "TRL as shipped", "TRL trimmed", "TRL trimmed, with vLLM"
_GOALS = {_TRL: 10.0, _TRIMMED: 5.0, _VLLM: 5.0}


@dataclass(frozen=True, slots=True)
class Arm:
    """A side: the program of this package that plays it, its options, its changes to the experiment."""

    name: str
    program: Literal["serl_program", "trl_program"]
    options: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


def arms(with_vllm: bool, trimmed_rows: int | None) -> list[Arm]:
    """All sides. At equal work as many rows are trained as are played, none of them again for hindsight.

    ``trimmed_rows``: of a micro-batch of TRL's, where it is trimmed; None: as many as by itself.
    """
    rows = () if trimmed_rows is None else (f"--rows-at-once={trimmed_rows}",)
    trimmed = ("--trimmed", *rows)
    grpo = ("hindsight.enabled=false",)
    sides = [
        Arm(_EQUAL_WORK, "serl_program", overrides=(*grpo, "training.filter_groups=false")),
        Arm(_TRL, "trl_program"),
        Arm(_GRPO, "serl_program", overrides=grpo),
        Arm(_TRIMMED, "trl_program", trimmed),
        Arm(_SERL, "serl_program"),
    ]
    return [*sides, Arm(_VLLM, "trl_program", (*trimmed, "--vllm"))] if with_vllm else sides


def in_turn(sides: Sequence[Arm], repetition: int) -> list[Arm]:
    """Who is first in one repetition is last in the next."""
    return list(sides if repetition % 2 == 0 else reversed(sides))


def described(course: Sequence[Iteration]) -> str:
    return (
        f"{env_steps_per_s(course):.3g} env steps/s, {len(course)} updates in {course[-1].seconds:.0f} s, "
        f"success {', '.join(f'{one.success:.2f}' for one in course)}"
    )


def report(courses: dict[str, list[list[Iteration]]], figures: Figures) -> None:
    """``courses``: of every side, what each of its turns came to."""
    for name, own in courses.items():
        figures.add(f"{name}, env steps", map(env_steps_per_s, own), "steps/s")
        figures.add(f"{name}, processor time", map(processor_ms_per_step, own), "ms/step")
        figures.add(f"{name}, updates", (float(len(course)) for course in own), "")
        figures.add(f"{name}, late success", map(late_success, own), "of all")
    peers = [name for name in courses if name in _GOALS]
    for own in (_EQUAL_WORK, _GRPO, _SERL):
        for peer in peers:
            goal = {"at_least": _GOALS[peer]} if own == _GRPO else {}
            figures.add_ratio(f"{own}, env steps", f"{peer}, env steps", **goal)
    for peer in peers:
        figures.add_ratio(f"{peer}, processor time", f"{_EQUAL_WORK}, processor time")
