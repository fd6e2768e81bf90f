"""The faults of a drill: what each does to a run, and whether the run may end of it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serl.run.checkpoint import list_checkpoints
from tools.drill.run import DrilledRun

_PROCESS_TIMEOUT_S = 120.0
_SECOND_SIGNAL_AFTER_S = 1.0

CHAIN = "chain"
CHAIN_LENGTH = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """``strike`` does it, to a random process of ``kind`` where there are several, and says to what.

    ``exit_codes`` of `serl-run` may follow; none: the run goes on by itself. ``moment`` is the phase of the
    run that it needs, if it needs one. ``damages_checkpoint``: the newest one is damaged.
    """

    name: str
    kind: str
    strike: Callable[[DrilledRun, random.Random], str]
    exit_codes: tuple[int, ...] = ()
    phase: str | None = None
    damages_checkpoint: bool = False

    @property
    def ends_run(self) -> bool:
        return bool(self.exit_codes)


def _signal(kind: str, number: signal.Signals) -> Callable[[DrilledRun, random.Random], str]:
    def strike(run: DrilledRun, generator: random.Random) -> str:
        pid = generator.choice(run.wait_for_processes(kind, _PROCESS_TIMEOUT_S))
        os.kill(pid, number)
        return f"{number.name} to {kind} {pid}"

    return strike


def _terminate_all(run: DrilledRun, generator: random.Random) -> str:
    pids = run.processes()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
    return f"SIGTERM to all {len(pids)} processes"


def _interrupt_twice(run: DrilledRun, generator: random.Random) -> str:
    os.kill(run.pid, signal.SIGINT)
    time.sleep(_SECOND_SIGNAL_AFTER_S)
    if not run.ended:
        os.kill(run.pid, signal.SIGINT)
    return "SIGINT twice to the driver"


def _damage_checkpoint(run: DrilledRun, generator: random.Random) -> str:
    """Once the driver is dead, for a living one could replace the checkpoint meanwhile."""
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    newest = list_checkpoints(run.run_dir / "checkpoints")[-1]
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    file = generator.choice(files)
    how = generator.choice(sorted(_DAMAGES))
    _DAMAGES[how](file, generator)
    return f"SIGKILL to the driver, {newest.name}/{file.relative_to(newest)} {how}"


def _flip_a_bit(file: Path, generator: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def _cut(file: Path, generator: random.Random) -> None:
    os.truncate(file, generator.randrange(file.stat().st_size))


def _remove(file: Path, generator: random.Random) -> None:
    file.unlink()


_DAMAGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "has another bit": _flip_a_bit,
    "is cut": _cut,
    "is gone": _remove,
}


def _all_faults() -> dict[str, Fault]:
    found: dict[str, Fault] = {}
    for kind in ("env_runner", "replica", "learner", "weight_store", "controller"):
        for what, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
            name = f"{kind}_{what}"
            found[name] = Fault(name, kind, _signal(kind, number))
    ending = (
        Fault("driver_killed", "driver", _signal("driver", signal.SIGKILL), (-signal.SIGKILL,)),
        Fault("gcs_killed", "gcs", _signal("gcs", signal.SIGKILL), (1,)),
        Fault("raylet_killed", "raylet", _signal("raylet", signal.SIGKILL), (1,)),
        Fault("sigterm", "driver", _signal("driver", signal.SIGTERM), (0,)),
        Fault("sigterm_all", "driver", _terminate_all, (0,)),
        Fault("sigint_twice", "driver", _interrupt_twice, (128 + signal.SIGINT, 0)),
        Fault(
            "checkpoint_damaged",
            "driver",
            _damage_checkpoint,
            (-signal.SIGKILL,),
            phase="two checkpoints",
            damages_checkpoint=True,
        ),
    )
    return found | {fault.name: fault for fault in ending}


FAULTS: Mapping[str, Fault] = _all_faults()


def faults_of(name: str, generator: random.Random) -> list[Fault]:
    """One fault, several joined by ``+``, one ``*N`` times, or for `CHAIN` some at random.

    Raises KeyError with the name that is none, ValueError if ``N`` is no number.
    """
    if name == CHAIN:
        return [FAULTS[each] for each in generator.choices(sorted(FAULTS), k=CHAIN_LENGTH)]
    parts = [part.partition("*") for part in name.split("+")]
    return [FAULTS[each] for each, star, times in parts for _ in range(int(times) if star else 1)]
