"""A line for each drill, and a table of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Markdown: a row for each fault, struck alone or one after another, and one for all.

    What ended a drill is put down to the fault that it had come to, a violation to each of them.
    """
    by_fault: dict[str, list[_Strike]] = {}
    for result in results:
        for index, fault in enumerate(result.faults[: _num_reached(result)]):
            by_fault.setdefault(fault, []).append(_Strike(result, index))
    rows = [_HEADER, ("---",) * len(_HEADER), *(_row(name, by_fault[name]) for name in sorted(by_fault))]
    if len(by_fault) > 1:
        rows.append(_row("all", [strike for strikes in by_fault.values() for strike in strikes]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@dataclass(frozen=True, slots=True)
class _Strike:
    """Fault ``index`` of a drill."""

    drill: DrillResult
    index: int

    @property
    def survived(self) -> bool:
        return self.index < _num_reached(self.drill) - 1 or self.drill.outcome == SURVIVED

    @property
    def recovery_s(self) -> float | None:
        return self.drill.recovery_s[self.index] if self.index < len(self.drill.recovery_s) else None


def _num_reached(drill: DrillResult) -> int:
    """How many of its faults it came to: all, or up to the one that it did not recover from or never met."""
    return min(len(drill.recovery_s) + 1, len(drill.faults))


def _row(name: str, strikes: Sequence[_Strike]) -> tuple[str, ...]:
    seconds = [strike.recovery_s for strike in strikes if strike.recovery_s is not None]
    return (
        name,
        f"{sum(strike.survived for strike in strikes)} of {len(strikes)}",
        str(sum(strike.drill.hung and not strike.survived for strike in strikes)),
        f"{median(seconds):.1f} s" if seconds else "-",
        f"{max(seconds):.1f} s" if seconds else "-",
        str(sum(bool(strike.drill.violations) for strike in strikes)),
    )
