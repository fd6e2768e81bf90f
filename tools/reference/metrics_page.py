"""The page of all metrics, from `serl.run.metrics_reference` and `serl.run.prometheus`."""

from __future__ import annotations

from serl.run.metrics_reference import GROUPS, MetricGroup
from serl.run.prometheus import ONLY_EXPORTED, exported, prometheus_name
from tools.reference.markdown import page, table

_INTRODUCTION = (
    "What a run writes to `metrics.jsonl`, one line for each iteration and one for each evaluation, and to "
    "TensorBoard under the same names. A part in angle brackets stands for a name that depends on the run. "
    "A mean over nothing is left out of its line.\n\n"
    "Prometheus finds the same where Ray exports metrics "
    "([`tools/monitoring`](../../tools/monitoring/README.md)), under the name in the second column, with the "
    "label `run` and those in braces. A gauge keeps its last value; what ends in `_total` is a counter."
)
_ONLY_EXPORTED = (
    "Each has the label `run`, too. vLLM's own metrics begin with `ray_vllm_`; their label `model_name` is "
    "the run, and `ReplicaId` the replica."
)


def metrics_page() -> str:
    """One table for each first part of the names, in the order of the groups."""
    groups = (_part(first, group) for first, group in GROUPS.items())
    return page("Metrics", [_INTRODUCTION], *groups, _only_exported())


def _part(first: str, group: MetricGroup) -> list[str]:
    names = [f"{first}/{name}" if name else first for name in group.meanings]
    rows = [
        (f"`{name}`", _in_prometheus(name), meaning)
        for name, meaning in zip(names, group.meanings.values(), strict=True)
    ]
    return [f"## {first}: {group.title}", "", *table(("metric", "in Prometheus", "meaning"), rows)]


def _in_prometheus(name: str) -> str:
    export = exported(name)
    return "" if export is None else _with_labels(export.in_prometheus, export.labels)


def _only_exported() -> list[str]:
    rows = [
        (_with_labels(prometheus_name(name), labels), meaning)
        for name, (meaning, labels) in ONLY_EXPORTED.items()
    ]
    return ["## Only in Prometheus", "", _ONLY_EXPORTED, "", *table(("in Prometheus", "meaning"), rows)]


def _with_labels(name: str, labels: tuple[str, ...]) -> str:
    return f"`{name}{{{', '.join(labels)}}}`" if labels else f"`{name}`"
