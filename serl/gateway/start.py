"""Starting the gateway of a policy deployment; it ends with this one."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray import serve

from serl.config import ExperimentConfig
from serl.gateway.app import ROOT
from serl.gateway.deployment import GatewayReplica
from serl.private.ray_serve import CODE_ON_REPLICAS_OWN_LOOP, http_proxy_address
from serl.serving.names import ServingNames
from serl.serving.start import OPTIONS, ServingStartError, deploy, health_checks, wait_until_running

DEPLOYMENT = "gateway"
_EVERY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class GatewayNames:
    """Where a gateway answers: as an application of Ray Serve, and over HTTP."""

    application: str
    base_url: str


def start_gateway(
    experiment: ExperimentConfig, model_dir: str, run_dir: str, names: ServingNames
) -> GatewayNames | None:
    """Deploys the gateway of the policy deployment ``names`` and returns without waiting for it.

    None without ``serving.gateway``. Raises ServingStartError if Ray Serve has no HTTP proxy.
    """
    if not experiment.serving.gateway:
        return None
    application = f"{names.application}-{DEPLOYMENT}"  # which ends with that of the policy
    gateway = GatewayNames(application, f"{_proxy_url()}/{application}{ROOT}")
    deployment = serve.deployment(GatewayReplica).options(
        name=DEPLOYMENT,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": CODE_ON_REPLICAS_OWN_LOOP}},
        **health_checks(experiment.cluster.heartbeat_timeout_s),
        **OPTIONS,
    )
    bound = deployment.bind(model_dir, experiment.serving.tool_parser, gateway.base_url, run_dir, names)
    deploy(bound, application, experiment.serving.start_timeout_s, route_prefix=f"/{application}")
    return gateway


def wait_until_gateway_ready(gateway: GatewayNames | None, timeout_s: float) -> None:
    """Raises ServingStartError if it cannot start, TimeoutError after ``timeout_s`` seconds."""
    if gateway is not None:
        wait_until_running(gateway.application, "the gateway", timeout_s)


def _proxy_url() -> str:
    found = http_proxy_address()
    if found is None:
        raise ServingStartError(
            "serving.gateway = true, but Ray Serve runs in this cluster already, without its HTTP proxy: "
            "restart it, or run the cluster's other experiments with a gateway, too"
        )
    host, port = found
    if host in _EVERY_ADDRESS:
        host = next(
            node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["Alive"] and "node:__internal_head__" in node["Resources"]
        )
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
