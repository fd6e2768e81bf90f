"""The policy: whether it is there, complete, and long enough."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from serl.config import ExperimentConfig
from serl.models.resolve import (
    ModelPathError,
    check_cache_is_writable,
    check_hub_can_be_asked,
    ready_folder,
)
from serl.models.sizes import num_weights
from serl.run.preflight.finding import Finding


def model_folder(experiment: ExperimentConfig) -> Path | None:
    """The policy's folder; None if it is wrong, or must be converted or downloaded first."""
    try:
        return ready_folder(experiment.model.path)
    except ModelPathError:
        return None


def examine_model(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Where the policy is, or will be; converts and downloads nothing."""
    path = experiment.model.path
    try:
        folder = ready_folder(path)
        if folder is None:
            check_cache_is_writable() if path.startswith("wheel:") else check_hub_can_be_asked(path)
    except ModelPathError as error:
        yield Finding("wrong", "model", str(error))
        return
    if folder is None:
        first = "converts" if path.startswith("wheel:") else "downloads"
        yield Finding("ok", "model", f"{path}: the first start {first} it, and looks at its tokenizer then")
        return
    try:
        num_weights(path)
    except ModelPathError as error:
        yield Finding("wrong", "model", str(error))
        return
    yield Finding("ok", "model", str(folder))
    yield from _context_length(experiment, folder / "config.json")


def _context_length(experiment: ExperimentConfig, config: Path) -> Iterator[Finding]:
    try:
        longest = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError) as error:
        yield Finding("wrong", "model", f"{config} is not a model's configuration: {error}")
        return
    if longest is not None and experiment.model.max_model_len > longest:
        yield Finding(
            "wrong",
            "model",
            f"model.max_model_len = {experiment.model.max_model_len} contradicts model.path = "
            f"{experiment.model.path!r}, whose longest context is {longest}",
        )


def examine_engine_args(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Only vLLM knows its engine arguments, and importing it takes seconds."""
    if not experiment.serving.engine_args or importlib.util.find_spec("vllm") is None:
        return
    from serl.serving.engine_options import EngineArgumentError, check_engine_args

    try:
        check_engine_args(experiment.serving.engine_args)
    except EngineArgumentError as error:
        yield Finding("wrong", "config", str(error))
