"""The replica's end of a weight update, inside vLLM's workers.

One vLLM weight-transfer engine takes updates of every kind, so that a replica which starts late can load
a snapshot from shared memory although its updates come through NCCL or CUDA IPC. `WorkerExtension` is
named in the engine's arguments; importing it registers the engine in each worker process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from serl.models.weights import weight_shapes
from serl.private import vllm as private_vllm
from serl.serving.transfer.landing import Landing, UpdateError
from serl.serving.transfer.shared_memory import read_weights

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig

BACKEND = "serl"


class WorkerExtension:
    """Nothing to call: naming this class makes each worker import this module."""


class PolicyWeightReceiver(WeightTransferEngine[WeightTransferInitInfo, WeightTransferUpdateInfo]):
    """Loads what a `serl.serving.transfer` sender sent; ``update["kind"]`` says how it travels.

    Raises UpdateError for an update that is empty, partial, damaged or of another model. Half an update
    leaves the model unusable, so callers may only go on after `finish_weight_update`; starting again after an
    error is allowed.
    """

    init_info_cls = WeightTransferInitInfo
    update_info_cls = WeightTransferUpdateInfo

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: VllmConfig,
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._reloading = False
        self._landed = False
        self._model_shapes = weight_shapes(self.model_config.model)
        self._parameter_names: set[str] = set()
        self._engines: dict[str, WeightTransferEngine[Any, Any]] = {}

    def start_weight_update(self) -> None:
        if self._reloading:
            # Layers that the broken update had begun would mix its tensors with the new ones.
            private_vllm.finish_reload(self.model, self.model_config)
        self._reloading, self._landed = True, False
        # Before they are set aside: a tied output layer has no parameter of its own yet.
        self._parameter_names = {name for name, _ in self.model.named_parameters()}
        private_vllm.begin_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        kind = update_info["kind"]
        landing = Landing(self.model, update_info, self._model_shapes, self.model_config.dtype)
        if kind == "shared_memory":
            landing.load_weights(read_weights(update_info["path"]))
        else:
            self._receive(self._engine(kind), update_info["info"], landing)
        landing.check_complete(self._parameter_names)
        self._landed = True

    def finish_weight_update(self) -> None:
        if not self._landed:
            raise UpdateError("no weights have landed since the update began")
        private_vllm.finish_reload(self.model, self.model_config)
        self._reloading = False
        if self.device.type == "cpu":
            private_vllm.pack_tied_heads(self.model)

    def parse_init_info(self, init_dict: dict[str, Any]) -> Any:
        return init_dict

    def init_transfer_engine(self, init_info: Any) -> None:
        info = dict(init_info)
        kind = info.pop("kind")
        engine: Any = self._engine(kind)
        engine.shutdown()
        engine.init_transfer_engine(engine.parse_init_info(info))
        if kind == "nccl":
            private_vllm.check_nccl_group(engine.model_update_group)

    def receive_weights(self, update_info: WeightTransferUpdateInfo) -> None:
        raise TypeError("updates arrive through update_weights")

    def shutdown(self) -> None:
        for engine in self._engines.values():
            engine.shutdown()

    def _engine(self, kind: str) -> WeightTransferEngine[Any, Any]:
        if kind not in self._engines:
            if kind == "nccl":
                from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine as engine
            elif kind == "ipc":
                from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine as engine
            else:
                raise ValueError(f"no weight transfer of the kind {kind!r}")
            self._engines[kind] = engine(self.config, self.vllm_config, self.device, self.model)
        return self._engines[kind]

    def _receive(self, engine: Any, info: dict[str, Any], landing: Landing) -> None:
        engine.set_weight_update_target(landing, self.model_config)
        try:
            engine.receive_weights(engine.parse_update_info(info))
        finally:
            engine.reset_weight_update_target()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


WeightTransferEngineFactory.register_engine(BACKEND, PolicyWeightReceiver)
