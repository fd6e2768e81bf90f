"""The learners' actors: a process each, a process group over all of them, and a heartbeat beside the work.

RLlib starts learners through Ray Train, whose actors do one thing at a time: nobody could ask a learner in
the middle of an update whether it still lives.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

import psutil
import ray
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from serl.learner.errors import LearnerError, LearnerRaisedError

logger = logging.getLogger(__name__)

HEARTBEAT = "heartbeat"
SAVING = "saving"

_POLL_S = 1.0
_NO_PLACE = ": are their CPUs and GPUs (learner.num_…_per_learner) free beside env runners and replicas?"
# What has been answered is small and has only to arrive.
_ANSWER_TIMEOUT_S = 30.0


def start_learners(
    config: Any,
    module_spec: Any,
    placement_group: PlacementGroup | None,
    timeout_s: float,
    should_stop: Callable[[], bool],
) -> list[ActorHandle]:
    """``config.num_learners`` built learners of ``config.learner_class``, in the order of their ranks.

    Raises LearnerError if they do not all have a place in the cluster and the model within ``timeout_s``,
    when the first of them fails, and soon after ``should_stop`` says so.
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
    answered = _Answers(timeout_s, should_stop).of
    try:
        nodes = answered([each.node_id.remote() for each in learners], "start", _NO_PLACE)
        # Neighbours are on one node, and on a single one ranks are the numbers that the learners' reprs show.
        order = sorted(range(len(nodes)), key=lambda index: nodes.index(nodes[index]))
        ranked = [learners[index] for index in order]
        for index, learner in enumerate(ranked):
            learner._set_learner_index_and_placement_group.remote(
                learner_index=index, placement_group=placement_group
            )
        if len(ranked) > 1:
            (store,) = answered([ranked[0].open_store.remote()], "open_store")
            joins = [learner.join.remote(rank, len(ranked), store) for rank, learner in enumerate(ranked)]
            answered(joins, "join")
        answered([learner.build.remote() for learner in ranked], "build")
    except BaseException:
        end_learners(learners)
        raise
    return ranked


def end_learners(learners: Sequence[ActorHandle]) -> None:
    """Ends the learners' processes, stopped or busy ones too."""
    for learner in learners:
        ray.kill(learner)


def gathered(answers: Sequence[Any], timeout_s: float, what: str) -> list[Any] | None:
    """The results of ``answers``, one of each learner; None if they are not all there within ``timeout_s``.

    Raises LearnerError at the first failure: a learner that waits in a collective for a failed one never
    answers.
    """
    results: dict[Any, Any] = {}
    deadline = time.monotonic() + timeout_s
    pending = list(answers)
    while pending:
        wait_s = max(deadline - time.monotonic(), 0.0)
        ready, pending = ray.wait(pending, num_returns=1, timeout=wait_s, fetch_local=False)
        for answer in ready:
            results[answer] = _result(answer, answers.index(answer), what)
        if not ready:
            return None
    return [results[answer] for answer in answers]


def _result(answer: Any, learner_index: int, what: str) -> Any:
    try:
        return ray.get(answer, timeout=_ANSWER_TIMEOUT_S)
    except RayTaskError as error:
        cause = error.cause
        raise LearnerRaisedError(
            f"learner {learner_index} failed in {what}: {type(cause).__name__}: {cause}"
        ) from error
    except GetTimeoutError as error:
        raise LearnerError(
            f"the answer of learner {learner_index} to {what} did not arrive within {_ANSWER_TIMEOUT_S:g} s"
        ) from error
    except RayError as error:  # not only RayActorError: Ray has others for too little memory, a lost node, …
        logger.error("learner %d: %s", learner_index, error)
        why = "" if isinstance(error, RayActorError) else f": {type(error).__name__}"
        raise LearnerError(f"learner {learner_index} died in {what}{why}") from error


class _Answers:
    """Waits for learners that start, for all of it together until ``timeout_s`` have passed."""

    def __init__(self, timeout_s: float, should_stop: Callable[[], bool]) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._should_stop = should_stop

    def of(self, calls: Sequence[Any], what: str, hint: str = "") -> list[Any]:
        """The results of ``calls``; raises LearnerError, whose text ends with ``hint`` if they are late."""
        while (results := gathered(calls, _POLL_S, what)) is None:
            if self._should_stop():
                raise LearnerError(f"a stop was asked for before the learners had finished {what}")
            if time.monotonic() > self._deadline:
                ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0.0, fetch_local=False)
                raise LearnerError(
                    f"{len(ready)} of {len(calls)} learners finished {what} within "
                    f"learner.start_timeout_s = {self._timeout_s:g} s{hint}"
                )
        return results


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
