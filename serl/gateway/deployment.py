"""The gateway on Ray Serve: one process behind Serve's own HTTP proxy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve

from serl.gateway.app import make_app
from serl.gateway.gateway import PolicyGateway
from serl.gateway.tool_calls import ToolCallParser
from serl.private.ray_serve import listen_on_the_nodes_address
from serl.rollout.gateway import EpisodeAccess, EpisodeRecord, EpisodeTerms
from serl.rollout.prompt import PromptEncoder
from serl.serving.client import PolicyClient
from serl.serving.deployment import send_output_to
from serl.serving.names import ServingNames

if TYPE_CHECKING:
    from starlette.applications import Starlette


@serve.ingress()
class GatewayReplica:
    """Asks the policy deployment ``names``. What it knows of episodes ends with it, and they fail."""

    def __init__(
        self, model_dir: str, tool_parser: str | None, base_url: str, run_dir: str, names: ServingNames
    ) -> None:
        listen_on_the_nodes_address()
        send_output_to(Path(run_dir) / "logs" / "gateway.log")
        encoder = PromptEncoder.load(model_dir)
        parser = None if tool_parser is None else ToolCallParser(tool_parser, encoder.tokenizer)
        self._gateway = PolicyGateway(PolicyClient(names), encoder, parser)
        self._base_url = base_url

    def __serve_build_asgi_app__(self) -> Starlette:
        return make_app(self._gateway)

    async def open_episode(self, terms: EpisodeTerms) -> EpisodeAccess:
        """See `serl.rollout.gateway.Gateway`."""
        return EpisodeAccess(self._base_url, self._gateway.open_episode(terms))

    async def close_episode(self, api_key: str) -> EpisodeRecord | None:
        """As `Gateway.close_episode`; None for a key that is not open, as after a restart."""
        try:
            return self._gateway.close_episode(api_key)
        except KeyError:
            return None
