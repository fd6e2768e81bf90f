"""The algorithm's own part of a checkpoint, as JSON; its presence says that the checkpoint is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serl.durable_files import FileDigest, bytes_digest, json_bytes, write_json

ALGORITHM_STATE = "algorithm.json"

# What SERL 0.1 called counters of the buffer.
_FORMER_COUNTERS = {
    "groups_discarded_no_spread": "groups_discarded_zero_variance",
    "groups_kept_without_spread": "zero_variance_groups_kept",
}


class CheckpointError(ValueError):
    """The folder is not a complete checkpoint of SERL."""


def write_algorithm_state(directory: Path, state: dict[str, Any]) -> None:
    """To be written last."""
    write_json(directory / ALGORITHM_STATE, state)


def algorithm_state_digest(state: dict[str, Any]) -> FileDigest:
    """Of the file that `write_algorithm_state` makes of ``state``."""
    return bytes_digest(json_bytes(state))


def read_algorithm_state(directory: Path) -> dict[str, Any]:
    """Under the present names, also of a checkpoint that SERL 0.1 wrote.

    Raises CheckpointError if ``directory`` is no complete checkpoint.
    """
    try:
        state: dict[str, Any] = json.loads((directory / ALGORITHM_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{directory} is not a complete checkpoint: {ALGORITHM_STATE}: {error}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{directory} is not a complete checkpoint: {ALGORITHM_STATE} holds no object")
    if type(state.get("weights_seq_no")) is not int:
        raise CheckpointError(
            f"{directory} is not a complete checkpoint: {ALGORITHM_STATE} has no weights_seq_no"
        )
    buffer = state.get("buffer", {})
    if not isinstance(buffer, dict) or not isinstance(buffer.get("counters", {}), dict):
        raise CheckpointError(f"{directory} is not a complete checkpoint: {ALGORITHM_STATE}: buffer")
    if "counters" in buffer:
        buffer["counters"] = {_FORMER_COUNTERS.get(name, name): n for name, n in buffer["counters"].items()}
    return state


def require_same_tasks(checkpoint: Path, state: dict[str, Any], content_hash: str) -> None:
    """Raises CheckpointError unless the tasks with ``content_hash`` are those of ``state``."""
    if state["train_tasks_hash"] != content_hash:
        raise CheckpointError(
            f"{checkpoint} was trained on other tasks: content hash {state['train_tasks_hash'][:12]}…, the "
            f"configured tasks have {content_hash[:12]}…"
        )
