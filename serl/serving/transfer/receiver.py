"""The replica's end of a weight update, inside vLLM's workers.

One vLLM weight-transfer engine takes updates of every kind, so that a replica which starts late can load
a snapshot from shared memory although its updates come through NCCL or CUDA IPC. `WorkerExtension` is
named in the engine's arguments; importing it registers the engine in each worker process.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from serl.config import LoRASection
from serl.private import vllm as private_vllm
from serl.serving.engine_options import ADAPTERS
from serl.serving.transfer.landing import Landing, UpdateError
from serl.serving.transfer.shared_memory import read_weights
from serl.serving.transfer.targets import Adapters, Target, WholeModel

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig

BACKEND = "serl"


def adapters_of(vllm_config: VllmConfig) -> LoRASection | None:
    """None where updates bring whole weights."""
    found = cast(dict[str, Any], vllm_config.additional_config).get(ADAPTERS)
    return None if found is None else LoRASection.model_validate(found)


class WorkerExtension:
    """What each worker has beside vLLM's methods; naming this class makes it import this module."""

    def activate_adapters(self) -> None:
        """To be called once the engine is built, and after each update: vLLM forgets adapters at its end."""
        cast(PolicyWeightReceiver, cast(Any, self).weight_transfer_engine).activate_adapters()


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
        self._landed = False
        lora = adapters_of(vllm_config)
        self._target: Target = (
            WholeModel(model, self.model_config, device)
            if lora is None
            else Adapters(model, self.model_config, lora)
        )
        self._engines: dict[str, WeightTransferEngine[Any, Any]] = {}

    def start_weight_update(self) -> None:
        self._landed = False
        self._target.begin()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        kind = update_info["kind"]
        landing = Landing(self._target, update_info, self._target.shapes, self.model_config.dtype)
        if kind == "shared_memory":
            landing.load_weights(read_weights(update_info["path"]))
        else:
            info = update_info["info"]
            if kind == "ipc":
                info = info | {"ipc_handles": pickle.loads(info["ipc_handles"])}
            self._receive(self._engine(kind), info, landing)
        landing.check_complete(self._target.parameters)
        self._landed = True

    def finish_weight_update(self) -> None:
        if not self._landed:
            raise UpdateError("no weights have landed since the update began")
        self._target.finish()

    def activate_adapters(self) -> None:
        """See `WorkerExtension`."""
        assert isinstance(self._target, Adapters)
        self._target.activate()

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
