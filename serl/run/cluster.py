"""The algorithm on its Ray cluster: started, and brought to an end whatever hangs."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.job_config import JobConfig
from ray.util.placement_group import PlacementGroup

from serl.config import ExperimentConfig
from serl.iteration import Progress
from serl.private.ray_core import variables_of_submitted_job
from serl.run.checkpoint import how_to_go_on
from serl.run.closed_cluster import start_closed_cluster
from serl.run.cluster_watch import prepare_watch, watched_cluster, watched_start
from serl.run.console import Console
from serl.run.driver_log import log_to_file, output_to_file, prints_to_file
from serl.run.failures import FailureReport
from serl.run.nodes import living_nodes, require_nodes, require_whole_checkpoints
from serl.run.placement import nodes_of, wait_for_room
from serl.run.preflight.variables import forwarded_variables
from serl.run.run_dir import RunDir
from serl.run.stop import StopRequest
from serl.run.surroundings import reach_local_hosts_directly
from serl.serving.start import start_serving, stop_all_serving

if TYPE_CHECKING:
    from serl.algorithm import SERL

logger = logging.getLogger(__name__)

# Everything that is to be kept has been saved by then.
_SHUTDOWN_TIMEOUT_S = 30.0
_LEAVE_TIMEOUT_S = 10.0


@contextmanager
def running_algorithm(
    experiment: ExperimentConfig,
    model_dir: Path,
    run_dir: RunDir,
    console: Console,
    stop: StopRequest,
    address: str | None,
) -> Iterator[SERL]:
    """The algorithm with everything it needs running, on the Ray cluster at ``address`` or one of its own.

    At the end the algorithm is stopped, and so is a cluster of its own. If that hangs or fails, all its
    processes are killed, and ``stop.shutdown_hangs`` says that this one should end without Ray's goodbyes.
    Ends the process if the cluster is lost. Raises NodesLackError if nodes of a cluster that was joined lack
    what the run needs, and NoRoomError.
    """
    driver_log = run_dir.driver_log
    algorithm: SERL | None = None
    timeout_s = experiment.cluster.heartbeat_timeout_s

    def end(what: str) -> None:
        lost = "what came after the last checkpoint is lost"
        stop.end_at_once(1, f"{what}: {lost}. {how_to_go_on(run_dir.path)}")

    watch = ExitStack()
    try:
        with output_to_file(driver_log):
            prepare_watch(timeout_s)
            with watched_start(end):
                _start_ray(experiment, address, run_dir)
            watch.enter_context(watched_cluster(end, timeout_s))
            algorithm = built = _build(experiment, model_dir, run_dir, console, stop, address)
        report = FailureReport(run_dir.path, console.note, lambda: built.weights_seq_no)
        algorithm.failures.on_failure = report.take

        def show(progress: Progress) -> None:
            console.progress(progress)
            report.write_if_due()

        algorithm.should_stop = stop.is_set
        algorithm.evaluation_interval = 0  # the run plays them itself, after the checkpoint
        algorithm.on_progress = show
        try:
            with prints_to_file(driver_log):
                yield algorithm
        finally:
            report.write()
    finally:
        stop.expect_end()
        watch.close()
        _end(algorithm, stop, console, driver_log, own_cluster=address is None)


def _build(
    experiment: ExperimentConfig,
    model_dir: Path,
    run_dir: RunDir,
    console: Console,
    stop: StopRequest,
    address: str | None,
) -> SERL:
    serving = None
    if address is None:  # on a cluster that was joined there may be no room yet
        serving = start_serving(experiment, str(model_dir), str(run_dir.path))
    # This imports torch and RLlib; replicas, which take longest to start, do so meanwhile.
    from serl.algorithm import SERL, SERLConfig

    config = SERLConfig.from_experiment(experiment, str(model_dir), str(run_dir.path))
    config.serving_names = serving
    if address is not None:
        stop.before_ending.insert(0, _leave_cluster)
        config.learner_placement = _find_places(experiment, model_dir, run_dir, console)
    algorithm = config.build_algo()
    assert isinstance(algorithm, SERL)
    return algorithm


def _find_places(
    experiment: ExperimentConfig, model_dir: Path, run_dir: RunDir, console: Console
) -> PlacementGroup | None:
    """That of remote learners, on a cluster whose nodes have what actors need, and room for all of them."""
    first = living_nodes()
    unshared = require_nodes(experiment, model_dir, run_dir.path, first)
    placement = wait_for_room(experiment, console.note)
    came = [node for node in living_nodes() if node not in first]
    unshared |= require_nodes(experiment, model_dir, run_dir.path, came)
    if placement is not None:
        require_whole_checkpoints(nodes_of(placement), unshared, run_dir.path)
    if unshared:
        console.note(f"logs of actors on {', '.join(unshared.values())} stay there, in {run_dir.logs}")
    return placement


def _end(
    algorithm: SERL | None, stop: StopRequest, console: Console, driver_log: Path, own_cluster: bool
) -> None:
    with output_to_file(driver_log):
        trouble = _shut_down(algorithm, own_cluster)
        if trouble:
            stop.kill_descendants()
    if trouble:
        stop.shutdown_hangs = True
        console.note(f"{trouble}: what was left of the cluster is killed; see {driver_log}")


def _shut_down(algorithm: SERL | None, own_cluster: bool) -> str:
    """Why it did not come to an end within ``_SHUTDOWN_TIMEOUT_S``, if so."""
    failures: list[BaseException] = []

    def stop_everything() -> None:
        try:
            if algorithm is not None:
                algorithm.stop()
            if own_cluster and ray.is_initialized():
                serve.shutdown()
            ray.shutdown()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=stop_everything, name="shutdown", daemon=True)
    thread.start()
    thread.join(_SHUTDOWN_TIMEOUT_S)
    if thread.is_alive():
        logger.error("shutting down takes longer than %g s", _SHUTDOWN_TIMEOUT_S)
        return f"the shutdown took longer than {_SHUTDOWN_TIMEOUT_S:g} s"
    if failures:
        logger.error("shutting down", exc_info=failures[0])
        return f"the shutdown failed ({type(failures[0]).__name__})"
    return ""


def _leave_cluster() -> None:
    """Applications live on without their driver, if that is not stopped in order."""
    thread = threading.Thread(target=stop_all_serving, name="leaves the cluster", daemon=True)
    thread.start()
    thread.join(_LEAVE_TIMEOUT_S)


def _start_ray(experiment: ExperimentConfig, address: str | None, run_dir: RunDir) -> None:
    stop_handler = signal.getsignal(signal.SIGTERM)
    # What Ray's dashboard shows of the driver's job.
    job = JobConfig(metadata={"experiment": experiment.name, "run": str(run_dir.path)})
    if address is None:
        context = start_closed_cluster(include_dashboard=experiment.cluster.dashboard, job_config=job)
    else:
        # Those of the cluster's workers that start elsewhere do not inherit this process's environment.
        variables = forwarded_variables(experiment) | reach_local_hosts_directly(address)
        given = variables_of_submitted_job()
        new = {name: value for name, value in variables.items() if name not in given}
        runtime_env = {"env_vars": new} if new else None
        context = ray.init(address=address, log_to_driver=False, runtime_env=runtime_env, job_config=job)
    # Ray puts its own handler in the place of the one that saves a checkpoint.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop_handler)
    log_to_file(run_dir.driver_log)
    logger.info("Ray %s, dashboard %s", ray.__version__, context.dashboard_url or "off")
    if address is None:
        logger.info("the cluster's token is in %s", os.environ["RAY_AUTH_TOKEN_PATH"])
