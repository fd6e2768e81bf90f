"""Which checks there are: their processes, what they need, and for how long they may run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution


@dataclass(frozen=True, slots=True)
class Check:
    """One process, which reports its ``parts`` by their names.

    It is the function ``function`` of the module ``module`` beside this one. With fewer than ``num_gpus`` it
    runs as a stand-in on processors if ``has_stand_in``, and is not tried otherwise. With ``is_replica`` its
    process has the environment of one.
    """

    module: str
    function: str
    parts: tuple[str, ...]
    num_gpus: int = 1
    has_stand_in: bool = True
    package: str | None = None
    is_replica: bool = False
    deadline_s: float = 180.0

    def obstacle(self, num_gpus: int) -> str | None:
        """Why it cannot run on a machine with ``num_gpus``; None if it can, be it as a stand-in."""
        if num_gpus < self.num_gpus and not self.has_stand_in:
            return f"needs {self.num_gpus} GPU{'s' if self.num_gpus > 1 else ''}; there are {num_gpus}"
        try:
            if self.package is not None:
                distribution(self.package)
        except PackageNotFoundError:
            return f"{self.package} is not installed"
        return None


CHECKS = (
    Check("learning", "bfloat16", ("bfloat16",)),
    Check("learning", "flash_attention_2", ("flash attention 2",), has_stand_in=False, package="flash-attn"),
    Check(
        "learning", "flash_attention_4", ("flash attention 4",), has_stand_in=False, package="flash-attn-4"
    ),
    Check("learning", "fsdp2", ("FSDP2",), num_gpus=2),
    Check(
        "engine", "engine", ("CUDA graphs", "asynchronous scheduling", "in-flight update"), is_replica=True
    ),
    Check("deployment", "ipc", ("ipc", "sleep mode")),
    Check("deployment", "nccl", ("nccl",), num_gpus=2, has_stand_in=False),
    Check("runs", "quickstart", ("quickstart", "checkpoint and resume"), deadline_s=420.0),
)


def all_parts() -> Iterator[str]:
    for check in CHECKS:
        yield from check.parts
