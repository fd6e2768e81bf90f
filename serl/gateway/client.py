"""An env runner's end of the gateway, through Ray Serve."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serl.gateway.start import DEPLOYMENT, GatewayNames
from serl.private.ray_serve import route_on_callers_loop
from serl.rollout.gateway import EpisodeAccess, EpisodeRecord, EpisodeTerms, GatewayUnavailable

_ANSWER_TIMEOUT_S = 60.0


class GatewayClient:
    """The gateway ``names`` from one asyncio loop; see `serl.rollout.gateway.Gateway`."""

    def __init__(self, names: GatewayNames) -> None:
        self._names = names
        self._handle: DeploymentHandle[Any] | None = None

    async def open_episode(self, terms: EpisodeTerms) -> EpisodeAccess:
        return await self._ask("open_episode", terms)

    async def close_episode(self, api_key: str) -> EpisodeRecord:
        record = await self._ask("close_episode", api_key)
        if record is None:
            raise GatewayUnavailable("the gateway was restarted, and the episode's requests with it are lost")
        return record

    async def _ask(self, method: str, argument: Any) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                return await getattr(self._get_handle(), method).remote(argument)
        except TimeoutError as error:
            raise GatewayUnavailable(
                f"the gateway did not answer {method} within {_ANSWER_TIMEOUT_S:g} s"
            ) from error
        except (RayError, RayServeException) as error:
            raise GatewayUnavailable(f"the gateway: {error}") from error

    def _get_handle(self) -> DeploymentHandle[Any]:
        if self._handle is None:
            handle = serve.get_deployment_handle(DEPLOYMENT, self._names.application)
            route_on_callers_loop(handle)
            self._handle = handle
        return self._handle
