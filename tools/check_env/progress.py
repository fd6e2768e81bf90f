"""Checks what a provider says of progress against what `MeasuringProvider` promises."""

from __future__ import annotations

import math
from collections.abc import Callable

from envs.base import MeasuringProvider, TextEnv
from tools.check_env.episodes import Record


def progress_problem(provider: MeasuringProvider, record: Record, seed: int) -> str | None:
    """Plays the episode again and asks ``provider`` after every call; what is wrong, None if nothing is."""
    env = provider.make_env()
    try:
        return _first_problem(env, lambda: provider.progress(env), record, seed)
    finally:
        env.close()


def _first_problem(env: TextEnv, ask: Callable[[], float], record: Record, seed: int) -> str | None:
    highest = -math.inf
    for answer in record.answers:
        if answer.error is not None:
            return None
        if answer.action is None:
            values = env.reset(seed=seed, options={"task_id": record.task_id})
        else:
            values = env.step(answer.action)
        if values != answer.values:
            return f"the episode goes another way once asked: {values!r:.60} instead of {answer.values!r:.60}"
        try:
            progress = ask()
        except Exception as error:  # foreign code may raise anything; the report names it
            return f"it raised {error!r:.100}"
        if isinstance(progress, bool) or not isinstance(progress, int | float) or math.isnan(progress):
            return f"{progress!r:.60} is not a number"
        highest = max(highest, progress)
        if answer.info.get("success") and progress < highest:
            return f"{progress:g} after a success, but {highest:g} before it"
    return None
