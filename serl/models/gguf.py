"""A quantised GGUF model to a Hugging Face folder of float32 safetensors, once."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from serl.private.transformers import forget_quantization


def convert_gguf(gguf: Path, target: Path) -> None:
    """Writes model and tokenizer of ``gguf`` to the folder ``target``, which appears complete or not at all.

    Weights are dequantised to float32. Whoever finishes first wins if several processes convert at once.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        folder, name = str(gguf.parent), gguf.name
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        forget_quantization(model)
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(unfinished)
        _put_in_place(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(unfinished: Path, target: Path) -> None:
    # mkdtemp makes the folder private and transformers its weights; a cache is for everyone.
    unfinished.chmod(0o755)
    for file in unfinished.iterdir():
        file.chmod(0o644)
    try:
        os.replace(unfinished, target)
    except OSError:
        if not (target / "config.json").is_file():
            raise
