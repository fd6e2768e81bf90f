"""RLlib's own checkpoints are pickles: reading one runs whatever its writer put there. So there are none."""

from __future__ import annotations

from typing import Any, NoReturn


class NoPickledCheckpoints:
    """Before RLlib's `Algorithm` among a class's bases, it refuses RLlib's ways to save and to restore."""

    def save_to_path(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError("nothing is pickled: save_checkpoint(folder) writes JSON and safetensors")

    def restore_from_path(self, path: Any, *arguments: Any, **options: Any) -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError(
            f"{path} is not read, it may hold pickles: resume by load_checkpoint(folder)"
        )

    @classmethod
    def from_checkpoint(cls, path: Any, *arguments: Any, **options: Any) -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError(
            f"{path} is not read, it may hold pickles: build the algorithm of an experiment, then "
            "load_checkpoint(folder)"
        )
