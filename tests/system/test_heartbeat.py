"""Real actors that hang, die or take their time, and who is asked to do something about it."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from serving_helpers import make_policy

from serl.heartbeat import HeartbeatMonitor
from serl.private.ray_core import ends_within
from serl.serving.custodian import appoint_custodian
from serl.serving.engine import LoadReport
from serl.serving.names import ServingNames
from serl.serving.transfer.sender import Weights
from serl.serving.weight_store import (
    MODEL_WEIGHTS,
    Loaded,
    create_weight_store,
    find_weight_store,
    live_actors,
)
from serl.serving.weights import WeightLoadError, WeightPublisher
from serl.serving.weights_folder import release_folder, weights_folder

DEADLINE_S = 120.0

pytestmark = pytest.mark.usefixtures("ray_cluster")


def answering_class() -> type:
    """Made in a function, so that it travels to its actor by value."""

    class Answering:
        def __init__(self, start_s: float = 0.0) -> None:
            time.sleep(start_s)

        def ping(self) -> int:
            return os.getpid()

    return Answering


@pytest.fixture
def monitor() -> Iterator[HeartbeatMonitor]:
    monitor = HeartbeatMonitor(timeout_s=2.0, start_timeout_s=600.0)
    yield monitor
    monitor.close()


def start(start_s: float = 0.0, max_restarts: int = 0) -> Any:
    actor_class: Any = ray.remote(answering_class())
    return actor_class.options(num_cpus=0, max_restarts=max_restarts).remote(start_s)


def wait_for(calls: list[str], wanted: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while wanted not in calls:
        assert time.monotonic() < deadline, calls
        time.sleep(0.1)


def test_only_the_silent_actor_is_ended_and_the_dead_one_is_told(monitor: HeartbeatMonitor) -> None:
    calls: list[str] = []
    actors = {name: start() for name in ("healthy", "stopped", "killed")}
    pids: dict[str, Any] = {
        name: ray.get(actor.ping.remote(), timeout=DEADLINE_S) for name, actor in actors.items()
    }
    actors["starting"] = start(start_s=8.0)
    for name, actor in actors.items():
        monitor.watch(
            kind="actors",
            name=name,
            ping=actor.ping.remote,
            end=lambda name=name: calls.append(f"end {name}"),
            on_death=lambda name=name: calls.append(f"{name} is dead"),
        )
    # All have answered once, but for the one that is still being made.
    time.sleep(3.0)
    os.kill(pids["stopped"], signal.SIGSTOP)
    os.kill(pids["killed"], signal.SIGKILL)
    try:
        wait_for(calls, "end stopped")
        wait_for(calls, "killed is dead")
        assert set(calls) == {"end stopped", "killed is dead"}
        assert monitor.num_hung["actors"] == 1
        ray.get(actors["starting"].ping.remote(), timeout=DEADLINE_S)
    finally:
        os.kill(pids["stopped"], signal.SIGCONT)
    assert "end starting" not in calls and "end healthy" not in calls


def test_ray_ends_a_stopped_process_and_starts_the_actor_again() -> None:
    """What the monitor relies on: SIGSTOP does not keep a process from being killed."""
    actor = start(max_restarts=1)
    pid: Any = ray.get(actor.ping.remote(), timeout=DEADLINE_S)
    os.kill(pid, signal.SIGSTOP)
    ray.kill(actor, no_restart=False)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            assert ray.get(actor.ping.remote(), timeout=DEADLINE_S) != pid
            return
        except RayActorError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_wait_without_a_deadline_for_an_actor_that_hangs_as_it_starts_ends() -> None:
    before = signal.getsignal(signal.SIGALRM)
    actor = start(start_s=3600.0)
    with pytest.raises(TimeoutError, match="nobody came"), ends_within(1.0, "nobody came"):
        ray.get(actor.ping.remote())
    assert signal.getsignal(signal.SIGALRM) is before
    with pytest.raises(KeyError), ends_within(0.5, "not late"):
        raise KeyError("its own")
    time.sleep(1.0)
    ray.kill(actor)


def driver_class() -> type:
    class Driver:
        def deploy(self, application: str) -> None:
            appoint_custodian(application, "serl-test")

    return Driver


def test_when_a_driver_is_killed_its_custodian_frees_what_is_left_and_ends() -> None:
    application = f"serl-left-{uuid.uuid4().hex[:8]}"
    driver: Any = ray.remote(driver_class()).options(num_cpus=0).remote()
    ray.get(driver.deploy.remote(application), timeout=DEADLINE_S)
    # Of processes that were killed with all who would have freed it.
    left = weights_folder(application)
    left.mkdir()
    (left / "lock").touch()
    assert f"custodian-{application}" in live_actors()
    ray.kill(driver)
    deadline = time.monotonic() + DEADLINE_S
    while f"custodian-{application}" in live_actors():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not left.exists()


def test_a_replica_that_does_not_load_in_time_is_named() -> None:
    names = ServingNames("serl-silent", "policy", "serl-weights-silent", "serl")
    store = create_weight_store(names)
    # The name of an actor that lives and never loads anything: the store itself.
    ray.get(store.register.remote(names.weight_store, 1, Loaded(MODEL_WEIGHTS, LoadReport(0, 0.0, 0.0))))
    publisher = WeightPublisher(names, "auto", timeout_s=1.0)
    try:
        with pytest.raises(
            TimeoutError, match="weights 1 were not loaded within 1 s by 1 of 1 replicas: serl"
        ):
            publisher.publish(Weights.of(make_policy(0).named_parameters()), 1)
    finally:
        release_folder(names.application)
    assert find_weight_store(names, 1.0) is not None


def test_a_broadcast_ends_when_a_replica_says_that_it_could_not_load_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ServingNames("serl-failing", "policy", "serl-weights-failing", "serl")
    store = create_weight_store(names)
    publisher = WeightPublisher(names, "auto", timeout_s=20.0)

    def wait_in_vain(timeout_s: float, check: Callable[[], None]) -> None:
        check()
        ray.get(store.report_failure.remote("a replica", "UpdateError: other bytes"))
        check()
        raise TimeoutError("the broadcast did not end")

    monkeypatch.setattr(publisher._sender, "transmit", wait_in_vain)
    try:
        with pytest.raises(WeightLoadError, match="not all replicas .* weights 1: a replica: UpdateError"):
            publisher.publish(Weights.of(make_policy(0).named_parameters()), 1)
    finally:
        release_folder(names.application)
