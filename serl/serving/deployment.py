"""The Ray Serve deployment: one vLLM engine a replica, prompt ids in, sampled ids and log-probs out."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
import zlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from serl.config import ExperimentConfig
from serl.private.ray_serve import listen_on_the_nodes_address
from serl.serving.autoscaling import OPEN_REQUESTS
from serl.serving.engine import EngineThread, LoadReport
from serl.serving.engine_options import build_engine
from serl.serving.fetch import WeightsGoneError, on_this_host
from serl.serving.kept_gauges import KeptGauges
from serl.serving.messages import Answer, Answers, Request, make_request
from serl.serving.names import (
    REPLICA_LABEL,
    REPLICA_WEIGHTS_GAUGE,
    REPLICA_WEIGHTS_MEANING,
    RUN_LABEL,
    ServingNames,
    ascii_text,
)
from serl.serving.streams import ClientStreams
from serl.serving.weight_store import MODEL_WEIGHTS, SLEEP, Loaded, WeightVersion, find_weight_store
from serl.serving.weights_folder import join_folder
from serl.types import Sampling

logger = logging.getLogger(__name__)

EXIT_STATUS_OF_BROKEN_ENGINE = 70
# How long one question to the weight store may stay open; shorter only means asking more often.
_WEIGHT_POLL_S = 10.0
_STORE_ANSWER_TIMEOUT_S = 60.0
_LAST_WORDS_TIMEOUT_S = 5.0
_WARM_UP_TIMEOUT_S = 120.0
_SNAPSHOT_INTERVAL_S = 1.0


class PolicyReplica:
    """Serves the newest weights that the deployment's weight store knows, and takes newer ones in flight.

    The constructor returns when the replica can answer at full speed. A replica whose engine breaks, or
    that cannot load announced weights, ends its process: Serve replaces it and clients ask another one.
    """

    def __init__(
        self, experiment: ExperimentConfig, model_dir: str, run_dir: str, names: ServingNames
    ) -> None:
        listen_on_the_nodes_address()
        replica_id = serve.get_replica_context().replica_id.unique_id
        send_output_to(Path(run_dir) / "logs" / f"serving-{replica_id}.log")
        run = ascii_text(Path(run_dir).name)
        self._gauges = KeptGauges()
        self._labels = {RUN_LABEL: run, REPLICA_LABEL: replica_id}
        self._name: str = ray.get_runtime_context().get_actor_name() or replica_id
        self._names = names
        # The newest weights stay on this host if the learner that wrote them dies.
        join_folder(names.application)
        self._heartbeat_timeout_s = experiment.cluster.heartbeat_timeout_s
        self._store = self._find_store()
        seed = (experiment.seed + zlib.crc32(replica_id.encode())) % 2**31
        # Importing vLLM makes millions of objects that stay; looking for garbage among them takes a fifth of
        # a replica's start.
        gc.disable()
        try:
            self._engine = EngineThread(
                lambda: build_engine(experiment, model_dir, seed, exported_as=run), self._end
            )
            self._engine.wait_until_built(experiment.serving.start_timeout_s)
        finally:
            gc.enable()
        self._update_timeout_s = experiment.serving.update_timeout_s
        self._nccl_group: dict[str, Any] | None = None
        self._loaded = self._load_newest()
        self._export_version()
        _warm_up(self._engine, experiment)
        self._streams = ClientStreams(self._engine, replica_id)
        self._num_workers = experiment.serving.tensor_parallel_size
        self._register()
        self._follower = threading.Thread(target=self._follow_weights, name="weights", daemon=True)
        self._follower.start()
        logger.info(
            "serving weights %d; the start took %.1f processor seconds",
            self._loaded.report.weights_seq_no,
            time.process_time(),
        )

    async def generate(
        self, client_id: str, requests: list[Request], abandoned: list[int]
    ) -> AsyncGenerator[Answers, None]:
        """See `ClientStreams.converse`."""
        async for answers in self._streams.converse(client_id, requests, abandoned):
            yield answers

    def statistics(self) -> dict[str, int]:
        """See `EngineThread.statistics`."""
        return self._engine.statistics()

    def record_autoscaling_stats(self) -> dict[str, int]:
        """What `replicas_for_open_requests` goes by."""
        statistics = self._engine.statistics()
        return {OPEN_REQUESTS: statistics["running_requests"] + statistics["waiting_requests"]}

    def check_health(self) -> None:
        """Raises RuntimeError if the replica no longer learns of new weights, or its engine hangs."""
        if not self._follower.is_alive():
            raise RuntimeError("the thread that follows the weight store has ended")
        seconds = self._engine.seconds_in_step
        if seconds > self._heartbeat_timeout_s:
            raise RuntimeError(f"the engine has been in one step for {seconds:.0f} s")

    def _follow_weights(self) -> None:
        try:
            while True:
                try:
                    self._follow_store()
                except (RayActorError, GetTimeoutError) as error:
                    logger.warning("the weight store is gone, looking for the next: %s", error)
                    self._store = self._find_store()
                    self._register()
        except Exception as error:
            # Whatever went wrong, from here on this replica would serve ever older weights.
            self._end(error)

    def _follow_store(self) -> None:
        while True:
            wanted = self._store.wait_for_other.remote(self._name, self._loaded.broadcast, _WEIGHT_POLL_S)
            version: Any = ray.get(wanted, timeout=_WEIGHT_POLL_S + _STORE_ANSWER_TIMEOUT_S)
            if version is not None:
                self._loaded = self._load(version)
                self._export_version()
                self._store.acknowledge.remote(self._name, self._loaded)

    def _export_version(self) -> None:
        version = self._loaded.report.weights_seq_no
        self._gauges.set(REPLICA_WEIGHTS_GAUGE, REPLICA_WEIGHTS_MEANING, self._labels, version)

    def _find_store(self) -> ActorHandle:
        return find_weight_store(self._names, self._heartbeat_timeout_s + _STORE_ANSWER_TIMEOUT_S)

    def _register(self) -> None:
        registered = self._store.register.remote(self._name, self._num_workers, self._loaded)
        ray.get(registered, timeout=_STORE_ANSWER_TIMEOUT_S)

    def _end(self, error: BaseException) -> None:
        try:
            said = f"{type(error).__name__}: {error}"
            ray.get(self._store.report_failure.remote(self._name, said), timeout=_LAST_WORDS_TIMEOUT_S)
        except (RayError, TimeoutError):
            logger.exception("nobody to tell that this replica ends")
        _exit_process(error)

    def _load_newest(self) -> Loaded:
        """Newer ones than it began to fetch, if those go meanwhile; learners that died are replaced."""
        deadline = time.monotonic() + self._update_timeout_s
        while True:
            snapshot: Any = ray.get(self._store.snapshot.remote(), timeout=_STORE_ANSWER_TIMEOUT_S)
            if snapshot is None:
                return Loaded(MODEL_WEIGHTS, LoadReport(0, 0.0, 0.0))
            try:
                return self._load(snapshot)
            except WeightsGoneError as error:
                if time.monotonic() >= deadline:
                    raise
                logger.warning("%s; asking for newer ones", error)
            time.sleep(_SNAPSHOT_INTERVAL_S)

    def _load(self, version: WeightVersion) -> Loaded:
        update, timeout_s = version.update, self._update_timeout_s
        if update["kind"] == SLEEP:
            return Loaded(version.broadcast, self._engine.sleep().result(timeout_s))
        if update["kind"] == "nccl" and update["group"] != self._nccl_group:
            from serl.serving.transfer.nccl import worker_init_info

            joined = self._engine.join_transfer_group(worker_init_info(update["group"], self._name))
            joined.result(timeout_s)
            self._nccl_group = update["group"]
        started = time.monotonic()
        with on_this_host(update, version.broadcast, self._names.application, timeout_s) as found:
            seconds_fetch = time.monotonic() - started
            report = self._engine.load_weights(found, version.weights_seq_no).result(timeout_s)
        return Loaded(version.broadcast, report, seconds_fetch)


def _warm_up(engine: EngineThread, experiment: ExperimentConfig) -> None:
    """Answers a batch of requests: the first steps of an engine are slow."""
    rollout = experiment.rollout
    sampling = Sampling(rollout.temperature, 4, rollout.stop, None)
    requests = [make_request(number, [0] * 8, sampling) for number in range(8)]
    done = threading.Event()
    answers: list[Answer] = []

    def deliver(finished: list[Answer]) -> None:
        answers.extend(finished)
        if len(answers) == len(requests):
            done.set()

    engine.submit(requests, deliver)
    if not done.wait(_WARM_UP_TIMEOUT_S):
        raise TimeoutError(f"the engine did not answer its first requests within {_WARM_UP_TIMEOUT_S:g} s")
    for answer in answers:
        if answer.refusal is not None:
            raise ValueError(f"the engine refused its first request: {answer.refusal}")


def send_output_to(log_file: Path) -> None:
    """Everything this process prints goes to ``log_file``: vLLM and its libraries write walls of text."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log_file, "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _exit_process(error: BaseException) -> None:
    """A dead engine in a live process would swallow requests."""
    logger.critical("this replica ends: %s: %s", type(error).__name__, error, exc_info=error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_STATUS_OF_BROKEN_ENGINE)
