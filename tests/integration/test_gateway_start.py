"""How the gateway is deployed, as far as that needs no cluster; `tests/system` has the others."""

from __future__ import annotations

from typing import Any

import pytest

from serl.config import ExperimentConfig, ModelSection, ServingSection
from serl.config.run import ClusterSection
from serl.gateway import start as gateway_start
from serl.serving.names import ServingNames


def test_a_gateway_is_as_soon_missed_as_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed: list[Any] = []
    monkeypatch.setattr(gateway_start, "http_proxy_address", lambda: ("127.0.0.1", 8000))
    monkeypatch.setattr(
        gateway_start, "deploy", lambda application, *name, **route: deployed.append(application)
    )
    experiment = ExperimentConfig(
        name="agents",
        model=ModelSection(path="p"),
        serving=ServingSection(gateway=True),
        cluster=ClusterSection(heartbeat_timeout_s=30.0),
    )
    gateway_start.start_gateway(experiment, "model", "run", ServingNames("serl-a", "policy", "store", "serl"))
    (application,) = deployed
    config = application._bound_deployment._deployment_config
    # Three checks in a row, of 8 s each and 2 s apart.
    assert (config.health_check_period_s, config.health_check_timeout_s) == (2.0, 8.0)
