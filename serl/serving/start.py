"""Starting and stopping the policy deployment; called where the algorithm runs."""

from __future__ import annotations

import logging
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, ProxyLocation
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from serl.config import ExperimentConfig, ServingSection
from serl.private.ray_core import ends_within, started_its_cluster
from serl.private.ray_serve import SESSION_ROUTER
from serl.serving.autoscaling import replicas_for_open_requests
from serl.serving.custodian import appoint_custodian, delete_applications, dismiss_custodian
from serl.serving.deployment import PolicyReplica
from serl.serving.engine_options import replica_environment
from serl.serving.names import ServingNames
from serl.serving.weight_store import WeightVersion, create_weight_store
from serl.serving.weights_folder import claim_folder, release_folder

logger = logging.getLogger(__name__)

DEPLOYMENT = "policy"
NAMESPACE = "serl"
LANES_PER_REPLICA = 8
_MAX_RUN_NAME = 100

_POLL_INTERVAL_S = 0.1
_NAME_FREE_TIMEOUT_S = 30.0
_CONTROLLER_TIMEOUT_S = 60.0
# Beyond the deadline of a deployment, for the controller to say what it lacks.
_STATUS_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 30.0
# Serve replaces a replica at the third failed check in a row.
_NUM_HEALTH_CHECKS = 3
_HEALTH_CHECK_PERIOD_S = 2.0
# Of every deployment.
OPTIONS: dict[str, Any] = {
    # A call that waits in a replica costs nothing; the engine has its own queue.
    "max_ongoing_requests": 100_000,
    "logging_config": LoggingConfig(log_level="WARNING", enable_access_log=False),
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 5.0,
    # A replica that cannot start once will not start a second time either.
    "max_constructor_retry_count": 1,
}

# An actor without other handles ends with the last of these.
_weight_stores: dict[str, ActorHandle] = {}
# Applications by their names.
_deployed: dict[str, serve.RunTarget] = {}


class ServingStartError(RuntimeError):
    """The replicas cannot start; the message ends with what they said."""


def start_serving(
    experiment: ExperimentConfig, model_dir: str, run_dir: str, instance: str | None = None
) -> ServingNames:
    """Deploys the policy in ``model_dir`` (weights_seq_no 0) and returns without waiting for it.

    Ray must be initialised. The application is named after ``run_dir``; ``instance``, which is drawn if none
    is given, tells deployments of one cluster and host apart. The engines' logs go to ``run_dir/logs``.
    Raises FileExistsError if a deployment ``instance`` is running, and, in the main thread, TimeoutError if
    Serve's controller does not answer.
    """
    serving = experiment.serving
    instance = instance or uuid.uuid4().hex[:8]
    names = ServingNames(
        application=f"serl-{_plain(Path(run_dir).name)}-{instance}",
        deployment=DEPLOYMENT,
        weight_store=f"serl-weights-{instance}",
        namespace=NAMESPACE,
        num_session_lanes=_num_session_lanes(serving),
    )
    num_removed = claim_folder(names.application)
    if num_removed:
        logger.warning("removed the weights that %d killed runs left in shared memory", num_removed)
    if not started_its_cluster():
        appoint_custodian(names.application, names.namespace)
    _weight_stores[names.application] = create_weight_store(names)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = _serve_options(serving)
    if ray.util.get_current_placement_group() is not None:
        # That of a trial of Tune, into which Ray would put Serve's controller; it has no place for it.
        _start_serve_outside(options, serving.start_timeout_s)
    with _controller_answers(serving.start_timeout_s):
        _start_serve(options)
    application = _deployment(experiment).bind(experiment, model_dir, run_dir, names)
    deploy(application, names.application, serving.start_timeout_s)
    return names


def deploy(
    application: serve.Application, name: str, timeout_s: float, route_prefix: str | None = None
) -> None:
    """Returns without waiting for it; without ``route_prefix`` it is not reached over HTTP.

    Raises TimeoutError, in the main thread, if Serve's controller does not answer within ``timeout_s``.
    """
    _deployed[name] = serve.RunTarget(application, name=name, route_prefix=route_prefix)
    with _controller_answers(timeout_s):
        _run(_deployed[name])


def deploy_given_up(is_closing: Callable[[], bool]) -> Iterator[tuple[str, str]]:
    """Deploys anew what this process deployed and Serve gave up: names, and what Serve says of why.

    Nothing once ``is_closing``. In any thread; waits for Serve's controller without end.
    """
    for name, status in serve.status().applications.items():
        given_up = status.status == ApplicationStatus.DEPLOY_FAILED and name in _deployed
        if given_up and not is_closing():
            _run(_deployed[name])
            yield name, _what_replicas_said(status)


def _run(target: serve.RunTarget) -> None:
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _controller_answers(timeout_s: float) -> AbstractContextManager[None]:
    """Raises TimeoutError from the body, in the main thread: Serve itself asks its controller without end.

    After a minute at most: what a controller is asked it answers at once, however long replicas take.
    """
    timeout_s = min(timeout_s, _CONTROLLER_TIMEOUT_S)
    return ends_within(timeout_s, f"Ray Serve's controller did not answer within {timeout_s:g} s")


def _plain(name: str) -> str:
    """``name`` as a part of an actor's and a folder's name."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[:_MAX_RUN_NAME]


def _start_serve_outside(options: dict[str, Any], timeout_s: float) -> None:
    """`_start_serve` in a task that no placement group holds; raises TimeoutError."""
    started = ray.remote(_start_serve).options(num_cpus=0, scheduling_strategy="DEFAULT").remote(options)
    try:
        ray.get(started, timeout=timeout_s)
    except GetTimeoutError as error:
        raise TimeoutError(f"Ray Serve's controller was not started within {timeout_s:g} s") from error


def _start_serve(options: dict[str, Any]) -> None:
    """Starts Serve's controller unless the cluster has one."""
    try:
        serve.start(**options)
    except ActorAlreadyExistsError:  # another trial has started it at the same moment
        serve.start(**options)


def _serve_options(serving: ServingSection) -> dict[str, Any]:
    """How Serve starts: with an HTTP proxy on the head node, if there is a gateway behind it."""
    options: dict[str, Any] = {"logging_config": LoggingConfig(log_level="WARNING")}
    if not serving.gateway:
        return options | {"proxy_location": ProxyLocation.Disabled}
    http_options = {"host": serving.gateway_host, "port": serving.gateway_port or _free_port()}
    return options | {"proxy_location": ProxyLocation.HeadOnly, "http_options": http_options}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def wait_until_ready(names: ServingNames, timeout_s: float) -> None:
    """Returns once all replicas have answered their first requests at the newest weights.

    Raises ServingStartError if they cannot start and TimeoutError after ``timeout_s`` seconds.
    """
    wait_until_running(names.application, "the policy deployment", timeout_s)


def wait_until_running(application_name: str, what: str, timeout_s: float) -> None:
    """Returns once the application ``what`` runs; raises as `wait_until_ready`."""
    deadline = time.monotonic() + timeout_s
    while True:
        with _controller_answers(timeout_s + _STATUS_TIMEOUT_S):
            application = serve.status().applications.get(application_name)
        status = ApplicationStatus.NOT_STARTED if application is None else application.status
        if status == ApplicationStatus.RUNNING:
            return
        said = _what_replicas_said(application)
        if status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING):
            raise ServingStartError(f"{what} {application_name!r} cannot start: {said}")
        if time.monotonic() >= deadline:
            raise TimeoutError(
                f"{what} {application_name!r} was not ready within {timeout_s:g} s "
                f"(it is {status.value}): {said or 'its replicas have not failed; see logs/*.log'}"
            )
        time.sleep(_POLL_INTERVAL_S)


def stop_serving(names: ServingNames) -> None:
    """Ends the replicas and the weight store and removes the weights from shared memory.

    May be called twice. Ray Serve itself goes on: other applications may use it.
    """
    _stop(names.application)


def give_up_serving(names: ServingNames) -> None:
    """`stop_serving` after a start that failed; if the controller hangs, that is logged, not raised."""
    try:
        with _controller_answers(_STOP_TIMEOUT_S):
            stop_serving(names)
    except TimeoutError:
        logger.exception("stopping %s, which did not start", names.application)


def stop_all_serving() -> None:
    """Ends all deployments that this process started and did not stop."""
    for application in list(_weight_stores):
        _stop(application)


def _stop(application: str) -> None:
    for name in [each for each in _deployed if each == application or each.startswith(f"{application}-")]:
        del _deployed[name]
    try:
        delete_applications(application)
        dismiss_custodian(application)
    finally:
        store = _weight_stores.pop(application, None)
        if store is not None:
            ray.kill(store)
        release_folder(application)


def weight_store_of(names: ServingNames) -> ActorHandle:
    """The store that this process started for ``names``."""
    return _weight_stores[names.application]


def replace_weight_store(names: ServingNames, snapshot: WeightVersion | None) -> None:
    """Ends the store, if it still lives, and starts another one that offers ``snapshot``.

    Replicas and learners look for it under the same name. Raises TimeoutError.
    """
    ray.kill(_weight_stores[names.application])
    deadline = time.monotonic() + _NAME_FREE_TIMEOUT_S
    while True:
        try:
            _weight_stores[names.application] = create_weight_store(names, snapshot)
            return
        except ValueError as error:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the weight store {names.weight_store!r} does not end") from error
        time.sleep(_POLL_INTERVAL_S)


def _num_session_lanes(serving: ServingSection) -> int:
    return 1 if serving.most_replicas == 1 else LANES_PER_REPLICA * serving.most_replicas


def _what_replicas_said(application: ApplicationStatusOverview | None) -> str:
    if application is None:
        return ""
    messages = [deployment.message for deployment in application.deployments.values()]
    return "\n".join(message for message in [application.message, *messages] if message)


def _deployment(experiment: ExperimentConfig) -> serve.Deployment:
    serving = experiment.serving
    if serving.autoscaling is None:
        replicas: dict[str, object] = {"num_replicas": serving.num_replicas}
    else:
        replicas = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=serving.autoscaling.min_replicas,
                max_replicas=serving.autoscaling.max_replicas,
                target_ongoing_requests=serving.autoscaling.target_ongoing_requests,
                upscale_delay_s=serving.autoscaling.upscale_delay_s,
                downscale_delay_s=serving.autoscaling.downscale_delay_s,
                policy=AutoscalingPolicy(policy_function=replicas_for_open_requests),
            )
        }
    return serve.deployment(PolicyReplica).options(
        name=DEPLOYMENT,
        ray_actor_options={
            "num_cpus": serving.num_cpus_per_replica,
            "num_gpus": serving.num_gpus_per_replica,
            "runtime_env": _runtime_env(serving),
        },
        request_router_config={"request_router_class": SESSION_ROUTER},
        **health_checks(experiment.cluster.heartbeat_timeout_s),
        **OPTIONS,
        **replicas,
    )


def _runtime_env(serving: ServingSection) -> dict[str, Any]:
    """The job's, of which Serve would take the working directory alone, and what a replica needs."""
    of_job: dict[str, Any] = dict(ray.get_runtime_context().runtime_env)
    return of_job | {"env_vars": of_job.get("env_vars", {}) | replica_environment(serving)}


def health_checks(heartbeat_timeout_s: float) -> dict[str, float]:
    """Options of a deployment, of which a silent replica fails all checks within ``heartbeat_timeout_s``."""
    timeout_s = max(heartbeat_timeout_s / _NUM_HEALTH_CHECKS - _HEALTH_CHECK_PERIOD_S, 0.5)
    return {"health_check_period_s": _HEALTH_CHECK_PERIOD_S, "health_check_timeout_s": timeout_s}
