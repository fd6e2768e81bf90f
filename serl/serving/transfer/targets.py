"""What an update is loaded into: the model of a replica, layer by layer, or the adapters beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch

from serl.config import LoRASection
from serl.models.lora import adapter_shapes
from serl.models.weights import weight_shapes
from serl.private import vllm as private_vllm


class Target(Protocol):
    """The calls come in this order, once for each update; after one that failed it begins anew."""

    shapes: dict[str, tuple[int, ...]]
    """Of all that an update must bring, by name."""

    def begin(self) -> None:
        """Whatever an update before this one left behind is put together."""
        ...

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        """Returns which of `parameters` they filled, if that is known."""
        ...

    @property
    def parameters(self) -> set[str]:
        """What an update must fill."""
        ...

    def finish(self) -> None:
        """The model answers with what was loaded."""
        ...


class WholeModel:
    """All weights of ``model``, in place."""

    def __init__(self, model: torch.nn.Module, model_config: Any, device: torch.device) -> None:
        self.shapes = weight_shapes(model_config.model)
        self._model = model
        self._model_config = model_config
        self._is_on_cpu = device.type == "cpu"
        self._reloading = False
        self._parameters: set[str] = set()

    @property
    def parameters(self) -> set[str]:
        return self._parameters

    def begin(self) -> None:
        if self._reloading:
            # Layers that the broken update had begun would mix its tensors with the new ones.
            private_vllm.finish_reload(self._model, self._model_config)
        self._reloading = True
        # Before they are set aside: a tied output layer has no parameter of its own yet.
        self._parameters = {name for name, _ in self._model.named_parameters()}
        private_vllm.begin_reload(self._model)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        return self._model.load_weights(named_tensors)  # type: ignore[operator]

    def finish(self) -> None:
        private_vllm.finish_reload(self._model, self._model_config)
        self._reloading = False
        if self._is_on_cpu:
            private_vllm.pack_tied_heads(self._model)


class Adapters:
    """The adapters ``lora`` of ``model``, which has none until `activate`."""

    def __init__(self, model: torch.nn.Module, model_config: Any, lora: LoRASection) -> None:
        self.shapes = adapter_shapes(model_config.model, lora)
        self._model = model
        self._lora = lora
        self._received: dict[str, torch.Tensor] = {}

    @property
    def parameters(self) -> set[str]:
        return set(self.shapes)

    def begin(self) -> None:
        self._received = {}

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        # The buffers that they arrived in are used again.
        received = {name: tensor.clone() for name, tensor in named_tensors}
        self._received |= received
        return set(received)

    def finish(self) -> None:
        """Nothing yet: at the end of an update vLLM forgets all adapters."""

    def activate(self) -> None:
        """The model answers with what was loaded, or, before the first update, as without adapters."""
        tensors = self._received or {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        private_vllm.put_adapter(self._model, tensors, self._lora.rank, self._lora.alpha)
