"""The learners' actors: a process each, a process group over all of them, and a heartbeat beside the work.

RLlib starts learners through Ray Train, whose actors do one thing at a time: nobody could ask a learner in
the middle of an update whether it still lives.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import psutil
import ray
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

HEARTBEAT = "heartbeat"
SAVING = "saving"


class LearnerStartError(RuntimeError):
    """The learners' processes are not there in time."""


def start_learners(
    config: Any, module_spec: Any, placement_group: PlacementGroup | None, timeout_s: float
) -> list[ActorHandle]:
    """``config.num_learners`` built learners of ``config.learner_class``, in the order of their ranks.

    Raises LearnerStartError if they do not all get a place in the cluster within ``timeout_s``, and what
    building one raises.
    """
    actor_class: Any = ray.remote(concurrency_groups={HEARTBEAT: 1, SAVING: 1})(config.learner_class)  # pyright: ignore[reportCallIssue]
    options = {"num_cpus": config.num_cpus_per_learner, "num_gpus": config.num_gpus_per_learner}
    if placement_group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement_group)
    arguments = {"config": config, "module_spec": module_spec}
    learners = [
        cast(ActorHandle, actor_class.options(**options).remote(**arguments, started_as=number))
        for number in range(config.num_learners)
    ]
    try:
        ranked = _ranked(learners, timeout_s)
        for index, learner in enumerate(ranked):
            learner._set_learner_index_and_placement_group.remote(
                learner_index=index, placement_group=placement_group
            )
        if len(ranked) > 1:
            store = ray.get(ranked[0].open_store.remote(), timeout=timeout_s)
            joins = [learner.join.remote(rank, len(ranked), store) for rank, learner in enumerate(ranked)]
            ray.get(joins, timeout=timeout_s)
        ray.get([learner.build.remote() for learner in ranked], timeout=timeout_s)
    except BaseException:
        end_learners(learners)
        raise
    return ranked


def end_learners(learners: Sequence[ActorHandle]) -> None:
    """Ends the learners' processes, stopped or busy ones too."""
    for learner in learners:
        ray.kill(learner)


def _ranked(learners: Sequence[ActorHandle], timeout_s: float) -> list[ActorHandle]:
    answers: list[Any] = [each.node_id.remote() for each in learners]
    placed, missing = ray.wait(answers, num_returns=len(answers), timeout=timeout_s)
    if missing:
        raise LearnerStartError(
            f"{len(placed)} of {len(learners)} learners have a place in the cluster, waited {timeout_s:g} s: "
            "are learner.num_cpus_per_learner and learner.num_gpus_per_learner free beside env runners and "
            "replicas?"
        )
    nodes: list[str] = ray.get(answers, timeout=timeout_s)
    # Neighbours are on one node, and on a single one ranks are the numbers that the learners' reprs show.
    order = sorted(range(len(nodes)), key=lambda index: nodes.index(nodes[index]))
    return [learners[index] for index in order]


class LearnerProcess:
    """What a learner's actor answers beside its work: the base of a class of learners.

    With more than one learner, the first one opens a store on its node's address, at which all meet.
    ``saving_group``, of all of them and on CPUs, is for what they do beside an update.
    """

    saving_group: dist.ProcessGroup | None = None
    _store: TCPStore | None = None

    def __init__(self, *, started_as: int = 0, **arguments: Any) -> None:
        # Ray asks for the repr once, before the learners are ranked.
        self._started_as = started_as
        super().__init__(**arguments)

    def __repr__(self) -> str:
        """What Ray's dashboard calls this actor."""
        return f"serl learner {self._started_as}/{cast(Any, self).config.num_learners}"

    def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()

    @ray.method(concurrency_group=HEARTBEAT)
    def heartbeat(self) -> bool:
        """Answers at once, also in the middle of an update."""
        return True

    def open_store(self) -> tuple[str, int]:
        """Host and port of a new store for the process group."""
        host = ray.util.get_node_ip_address()
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self._store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        return host, port

    def join(self, rank: int, num_learners: int, store: tuple[str, int]) -> None:
        """Joins the process group of all learners; returns when all have."""
        config = cast(Any, self).config
        interface = _interface_of(ray.util.get_node_ip_address())
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        dist.init_process_group(
            backend="nccl" if config.num_gpus_per_learner > 0 else "gloo",
            store=self._store or TCPStore(*store, is_master=False),
            rank=rank,
            world_size=num_learners,
            timeout=timedelta(seconds=config.experiment.learner.update_timeout_s),
        )
        saving_timeout = timedelta(seconds=config.experiment.checkpoint.timeout_s)
        group: Any = dist.new_group(
            backend="gloo", timeout=saving_timeout
        )  # an int only where one is no member
        self.saving_group = group


def _interface_of(address: str) -> str | None:
    """The name of this machine's network interface with ``address``."""
    for name, found in psutil.net_if_addrs().items():
        if any(each.address == address for each in found):
            return name
    return None
