"""The gateway over HTTP: OpenAI's routes below ``/v1``."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serl.gateway.gateway import PolicyGateway
from serl.gateway.protocol import ApiError

MODEL = "policy"
ROOT = "/v1"


def make_app(gateway: PolicyGateway) -> Starlette:
    """The ASGI application of ``gateway``."""

    async def chat(request: Request) -> Response:
        episode = gateway.authorize(request.headers.get("authorization"))
        answer, asked = await gateway.chat(episode, await request.body())
        if asked.stream:
            return _events(answer.chat_stream(asked.stream_options.include_usage))
        return JSONResponse(answer.chat())

    async def complete(request: Request) -> Response:
        episode = gateway.authorize(request.headers.get("authorization"))
        answer, asked = await gateway.complete(episode, await request.body())
        if asked.stream:
            return _events(answer.text_stream(asked.stream_options.include_usage))
        return JSONResponse(answer.text())

    async def models(request: Request) -> Response:
        gateway.authorize(request.headers.get("authorization"))
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "serl"}
        return JSONResponse({"object": "list", "data": [model]})

    routes = [
        Route(f"{ROOT}/chat/completions", chat, methods=["POST"]),
        Route(f"{ROOT}/completions", complete, methods=["POST"]),
        Route(f"{ROOT}/models", models),
    ]
    return Starlette(routes=routes, exception_handlers={ApiError: _refuse})


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    # Clients repeat what they take for a passing overload; here every refusal is final.
    return JSONResponse(error.body(), error.status, headers={"x-should-retry": "false"})


def _events(events: Any) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
