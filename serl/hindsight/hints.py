"""A hint: evidence of a group's attempts for one that has not begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serl.config import HindsightSection
from serl.hindsight.collect import step_evidence
from serl.hindsight.context import render_context
from serl.hindsight.evidence import Attempt, GroupView
from serl.hindsight.sources import evidence_source
from serl.types import Trajectory


def hint_of(
    attempts: Sequence[Trajectory],
    settings: HindsightSection,
    count_tokens: Callable[[str], int],
    max_tokens: int,
) -> str | None:
    """The context of the first of ``hindsight.repair.sources`` that knows something of ``attempts``.

    At least one attempt; None if no source does, or if it cannot be said in ``max_tokens``.
    """
    group = GroupView(attempts, settings)
    to_come = Trajectory("", attempts[0].group_id, len(attempts), attempts[0].task, [], 0.0, False, "")
    sources = [evidence_source(name, settings.args.get(name, {})) for name in settings.repair.sources]
    known = step_evidence(Attempt(to_come, len(attempts), 0), group, sources, needs_all=False)
    text, stats = render_context(known, count_tokens, max_tokens)
    return None if stats.over_budget else text
