"""RLlib's components without RLlib's checkpoints, which are pickles: to read one is to run it."""

from __future__ import annotations

from typing import Any, NoReturn


class NoPickles:
    """To stand before RLlib's own class among the bases. Both methods raise NotImplementedError."""

    @classmethod
    def from_checkpoint(cls, *arguments: Any, **options: Any) -> NoReturn:
        _refuse(f"{cls.__name__}.from_checkpoint")

    def restore_from_path(self, *arguments: Any, **options: Any) -> NoReturn:
        _refuse(f"{type(self).__name__}.restore_from_path")


def _refuse(method: str) -> NoReturn:
    raise NotImplementedError(
        f"{method} would read pickles, which may run anything: checkpoints of SERL's are read whole, by "
        "SERL.from_checkpoint and SERL.restore_from_path"
    )
