"""The page of all metrics, from `serl.run.metrics_reference`."""

from __future__ import annotations

from serl.run.metrics_reference import GROUPS, MetricGroup
from tools.reference.markdown import page, table

_INTRODUCTION = (
    "What a run writes to `metrics.jsonl`, one line for each iteration and one for each evaluation, and to "
    "TensorBoard under the same names. A part in angle brackets stands for a name that depends on the run. "
    "A mean over nothing is left out of its line."
)


def metrics_page() -> str:
    """One table for each first part of the names, in the order of the groups."""
    return page("Metrics", [_INTRODUCTION], *(_part(first, group) for first, group in GROUPS.items()))


def _part(first: str, group: MetricGroup) -> list[str]:
    names = [f"{first}/{name}" if name else first for name in group.meanings]
    rows = [(f"`{name}`", meaning) for name, meaning in zip(names, group.meanings.values(), strict=True)]
    return [f"## {first}: {group.title}", "", *table(("metric", "meaning"), rows)]
