"""A line for each drill, and a table of all."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tools.drill.drill import SURVIVED, DrillResult

_HEADER = ("fault", "survived", "hangs", "recovery median", "recovery max", "ledger failures")


def line(result: DrillResult) -> str:
    """``fault seed moment outcome recovery ledger``, and below it each violation."""
    recovery = ", ".join("-" if seconds is None else f"{seconds:.1f} s" for seconds in result.recovery_s)
    ledger = f"{len(result.violations)} violations" if result.violations else "ledger clean"
    told = [
        f"{result.fault} seed {result.seed}",
        "; ".join(result.moments) or "not struck",
        result.outcome,
        f"recovery {recovery or '-'}",
        ledger if result.outcome == SURVIVED else f"kept in {result.folder}",
        f"{result.seconds:.0f} s",
    ]
    return "\n".join([" | ".join(told), *(f"    {violation}" for violation in result.violations)])


def table(results: Sequence[DrillResult]) -> str:
    """Markdown: a row for each fault, in the order of ``results``, and one for all."""
    by_fault: dict[str, list[DrillResult]] = {}
    for result in results:
        by_fault.setdefault(result.fault, []).append(result)
    rows = [_HEADER, ("---",) * len(_HEADER), *(_row(fault, own) for fault, own in by_fault.items())]
    if len(by_fault) > 1:
        rows.append(_row("all", results))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, results: Sequence[DrillResult]) -> tuple[str, ...]:
    survived = sum(result.outcome == SURVIVED for result in results)
    seconds = [found for result in results for found in result.recovery_s if found is not None]
    return (
        name,
        f"{survived} of {len(results)}",
        str(sum(result.hung for result in results)),
        f"{median(seconds):.1f} s" if seconds else "-",
        f"{max(seconds):.1f} s" if seconds else "-",
        str(sum(bool(result.violations) for result in results)),
    )
