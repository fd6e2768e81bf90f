"""The config.json of the model that ``model.path`` names: from its folder, the hub's cache, or the hub."""

from __future__ import annotations

import json
import queue
import threading
from pathlib import Path
from typing import Any

from serl.models.resolve import ModelPathError, is_hub_id, ready_folder

# What somebody who only asks for advice can be made to wait.
HUB_SECONDS = 5.0


def model_config(path: str, hub_seconds: float) -> dict[str, Any] | None:
    """Its contents; None if the model is yet to be converted, or the hub does not send it in time.

    Raises ModelPathError if there is no such model, or its config.json is not one.
    """
    folder = ready_folder(path)
    if folder is not None:
        return read_config(folder / "config.json")
    file = _from_hub(path, hub_seconds) if is_hub_id(path) else None
    return None if file is None else read_config(file)


def read_config(file: Path) -> dict[str, Any]:
    """Raises ModelPathError if ``file`` is not a model's config.json."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelPathError(f"{file} is not a model's configuration: {error}") from error
    if not isinstance(config, dict):
        raise ModelPathError(f"{file} is not a model's configuration: it is no object")
    return config


def _from_hub(hub_id: str, seconds: float) -> Path | None:
    """From the local cache, else downloaded into it, in a thread: the hub's client has longer patience."""
    from huggingface_hub import hf_hub_download

    found: queue.SimpleQueue[Path | None] = queue.SimpleQueue()

    def download() -> None:
        try:
            found.put(Path(hf_hub_download(hub_id, "config.json", etag_timeout=seconds)))
        except Exception:  # whatever its client raises: it is only asked for advice
            found.put(None)

    threading.Thread(target=download, name="hub", daemon=True).start()
    try:
        return found.get(timeout=seconds)
    except queue.Empty:
        return None
