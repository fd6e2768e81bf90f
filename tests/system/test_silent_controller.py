"""Serve's controller hangs while a deployment starts, or is restarted while a replica hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray import serve
from ray.serve.config import ProxyLocation
from serving_helpers import START_TIMEOUT_S, make_policy, replica_actors, save_tokenizer, wait_until
from serving_helpers import experiment as serving_experiment

from serl.config import ExperimentConfig, ModelSection, ServingSection
from serl.config.run import ClusterSection
from serl.private.ray_serve import serve_controller, serve_replica
from serl.serving.names import ServingNames
from serl.serving.start import (
    give_up_serving,
    start_serving,
    stop_serving,
    wait_until_ready,
    wait_until_running,
)
from serl.serving.weights_folder import claim_folder, release_folder, weights_folder
from serl.watched_actors import WatchedActors


@pytest.fixture
def silent_controller(ray_cluster: None) -> Iterator[None]:
    serve.start(proxy_location=ProxyLocation.Disabled)
    below = psutil.Process().children(recursive=True)
    (controller,) = [process for process in below if "ray::ServeController" in " ".join(process.cmdline())]
    controller.suspend()
    yield
    controller.resume()
    ray.get(serve_controller().check_alive.remote(), timeout=60.0)
    serve.shutdown()


def test_a_start_ends_in_time_when_the_controller_does_not_answer(
    silent_controller: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    experiment = ExperimentConfig(
        name="silent", model=ModelSection(path="p"), serving=ServingSection(start_timeout_s=2.0)
    )
    with pytest.raises(TimeoutError, match="Ray Serve's controller did not answer within 2 s"):
        start_serving(experiment, "nowhere", str(tmp_path / "run"), instance="silent")
    release_folder("serl-run-silent")
    with pytest.raises(TimeoutError, match="Ray Serve's controller did not answer within 11 s"):
        wait_until_running("serl-run-silent", "the policy deployment", timeout_s=1.0)

    monkeypatch.setattr("serl.serving.start._STOP_TIMEOUT_S", 1.0)
    names = ServingNames("serl-given-up", "policy", "serl-weights-given-up", "serl")
    claim_folder(names.application)
    give_up_serving(names)
    assert "stopping serl-given-up, which did not start" in caplog.text
    assert not weights_folder(names.application).exists()
    assert time.monotonic() - began < 60.0


def test_a_replica_that_hangs_while_the_controller_is_restarted_is_replaced(
    ray_cluster: None, tmp_path: Path
) -> None:
    make_policy(0).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    small = serving_experiment().model_copy(update={"cluster": ClusterSection(heartbeat_timeout_s=10.0)})
    names = start_serving(small, str(tmp_path), str(tmp_path / "run"))
    actors = None
    try:
        wait_until_ready(names, START_TIMEOUT_S)
        actors = WatchedActors(small, names)
        (stopped,) = replica_actors(names)
        pid = ray.get(serve_replica(stopped).is_allocated.remote(), timeout=60.0)[0]
        os.kill(pid, signal.SIGSTOP)
        ray.kill(serve_controller(), no_restart=False)
        new_one = "another replica"
        wait_until(lambda: bool({*replica_actors(names)} - {stopped}), START_TIMEOUT_S, new_one)
        wait_until_ready(names, START_TIMEOUT_S)
        assert stopped not in replica_actors(names)
        counts = actors.take_counts()
        # Serve gives up what it cannot reach; what it waits for without end is killed.
        assert counts["redeployments"] == 1 and counts["hung_replicas"] <= 1
    finally:
        if actors is not None:
            actors.close()
        stop_serving(names)
