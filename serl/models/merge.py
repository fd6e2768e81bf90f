"""Adapters merged into their base: a Hugging Face folder that needs neither PEFT nor the base any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from serl.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from serl.models.resolve import ModelPathError, resolve_model
from serl.models.sizes import file_shapes
from serl.models.weights import load_model


def holds_adapters(folder: Path) -> bool:
    """Whether ``folder`` has adapters as PEFT writes them."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(adapters: Path) -> Path:
    """The local folder of the model that the adapters in the folder ``adapters`` were trained on.

    Raises ModelPathError if there are none, or that model is not where it was.
    """
    try:
        settings = json.loads((adapters / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return resolve_model(settings["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelPathError):
            raise
        raise ModelPathError(f"{adapters}: no {ADAPTER_CONFIG} that names a base: {error}") from error


def write_merged(base: Path, adapters: Path, target: Path) -> None:
    """Makes ``target``, which must not be there: ``base`` with ``adapters`` in it, in the base's own dtype.

    All of them are folders. Raises ModelPathError if the adapters are not of this base, and OSError if the
    folder cannot be written.
    """
    from peft import PeftModel, get_peft_model_state_dict

    if not (adapters / ADAPTER_WEIGHTS).is_file():
        raise ModelPathError(f"{adapters}: no {ADAPTER_WEIGHTS}: it holds no adapters")
    saved = file_shapes(adapters / ADAPTER_WEIGHTS)
    model = load_model(str(base), attention="eager", dtype="auto")
    try:
        adapted = PeftModel.from_pretrained(model, str(adapters))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelPathError(f"{adapters} holds no adapters of the model in {base}: {error}") from error
    if missing := get_peft_model_state_dict(adapted).keys() - saved.keys():  # PEFT would only warn of it
        lacking = f"{len(missing)} weights of the adapters, such as {min(missing)}"
        raise ModelPathError(f"{adapters}: {ADAPTER_WEIGHTS} lacks {lacking}")
    merged = adapted.merge_and_unload()
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        merged.save_pretrained(partial)
        for file in base.iterdir():
            is_weight = file.suffix in {".safetensors", ".bin", ".gguf"} or file.name.endswith(".index.json")
            if file.is_file() and not is_weight and not (partial / file.name).exists():
                shutil.copyfile(file, partial / file.name)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
