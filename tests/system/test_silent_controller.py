"""Serve's controller hangs while a deployment starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray import serve
from ray.serve.config import ProxyLocation

from serl.config import ExperimentConfig, ModelSection, ServingSection
from serl.private.ray_serve import serve_controller
from serl.serving.names import ServingNames
from serl.serving.start import give_up_serving, start_serving, wait_until_running
from serl.serving.weights_folder import claim_folder, release_folder, weights_folder


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
