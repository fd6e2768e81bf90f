"""The gateway over HTTP: OpenAI's routes below ``/v1``."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serl.gateway.gateway import PolicyGateway
from serl.gateway.protocol import ApiError

MODEL = "policy"
ROOT = "/v1"


def make_app(gateway: PolicyGateway) -> FastAPI:
    """The ASGI application of ``gateway``; it has no pages of documentation."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> JSONResponse:
        # Clients repeat what they take for a passing overload; here every refusal is final.
        return JSONResponse(error.body(), error.status, headers={"x-should-retry": "false"})

    @app.post(f"{ROOT}/chat/completions")
    async def chat(request: Request) -> Response:
        episode = gateway.authorize(request.headers.get("authorization"))
        answer, asked = await gateway.chat(episode, await request.body())
        if asked.stream:
            return _events(answer.chat_stream(asked.stream_options.include_usage))
        return JSONResponse(answer.chat())

    @app.post(f"{ROOT}/completions")
    async def complete(request: Request) -> Response:
        episode = gateway.authorize(request.headers.get("authorization"))
        answer, asked = await gateway.complete(episode, await request.body())
        if asked.stream:
            return _events(answer.text_stream(asked.stream_options.include_usage))
        return JSONResponse(answer.text())

    @app.get(f"{ROOT}/models")
    async def models(request: Request) -> dict[str, Any]:
        gateway.authorize(request.headers.get("authorization"))
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "serl"}
        return {"object": "list", "data": [model]}

    return app


def _events(events: Any) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
