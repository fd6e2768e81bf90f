"""Asking the policy deployment for responses, from the asyncio loop of an env runner.

Requests that arrive in the same turn of the loop travel in one Serve call, since a call costs as much
processor time as a small model's answer; each is answered when it is finished, not when its call is.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from typing import Any

import grpc
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serl.serving.names import ServingNames
from serl.serving.requests import Answer, Request, Sampling, completion
from serl.types import Completion

__all__ = ["PolicyClient", "RequestRefused", "Sampling"]

logger = logging.getLogger(__name__)

_RETRY_INTERVAL_S = 0.2
_STATISTICS_TIMEOUT_S = 30.0


class RequestRefused(ValueError):
    """The engine does not accept the request: a prompt that is too long, an impossible sampling setting."""


class _ReplicaLost(Exception):
    """The replica ended before it answered."""


class _Call:
    """One Serve call: the futures of the requests it carries."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[asyncio.Future[Answer]] = []
        self.task: asyncio.Task[None] | None = None

    def add(self, request: Request) -> asyncio.Future[Answer]:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.requests.append(request)
        self.answers.append(answer)
        return answer

    def fail(self, error: _ReplicaLost) -> None:
        for answer in self.answers:
            if not answer.done():
                answer.set_exception(error)

    def cancel_if_nobody_waits(self) -> None:
        if self.task is not None and all(answer.done() for answer in self.answers):
            self.task.cancel()


class PolicyClient:
    """Uses the deployment ``names`` from one asyncio loop, the one that first calls `generate`.

    ``retries`` counts the requests that were sent again because their replica had ended.
    """

    def __init__(self, names: ServingNames) -> None:
        self._names = names
        self._handle: DeploymentHandle[Any] | None = None
        self._next_calls: dict[int, _Call] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.retries = 0

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, session_id: str, deadline_s: float
    ) -> Completion:
        """One response to ``prompt_ids``; requests of one ``session_id`` go to one replica while it lives.

        Raises TimeoutError if there is no answer within ``deadline_s`` seconds, however many replicas died
        meanwhile, and RequestRefused.
        """
        request = Request(
            prompt_ids,
            sampling.temperature,
            sampling.top_p,
            sampling.max_tokens,
            sampling.stop,
            sampling.seed,
        )
        lane = zlib.crc32(session_id.encode()) % self._names.num_session_lanes
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self._ask_until_answered(request, lane)
        except TimeoutError as error:
            raise TimeoutError(
                f"the policy deployment {self._names.application!r} did not answer within {deadline_s:g} s"
            ) from error
        if answer.refusal is not None:
            raise RequestRefused(answer.refusal)
        return completion(answer)

    async def statistics(self) -> dict[str, int]:
        """The engines' counters, summed over the replicas that live now, and ``num_replicas``.

        ``prompt_tokens``, ``cached_tokens``, ``generated_tokens``, ``finished_requests``,
        ``refused_requests``, ``aborted_requests`` since each replica's start; ``running_requests`` and
        ``waiting_requests`` now. ``weights_seq_no`` is the smallest. Raises TimeoutError.
        """
        response = self._get_handle().broadcast("statistics")
        replicas = await response.results_async(timeout_s=_STATISTICS_TIMEOUT_S)
        total = {key: sum(replica[key] for replica in replicas) for replica in replicas for key in replica}
        total["weights_seq_no"] = min((replica["weights_seq_no"] for replica in replicas), default=0)
        return total | {"num_replicas": len(replicas)}

    async def _ask_until_answered(self, request: Request, lane: int) -> Answer:
        while True:
            call, waiting = self._enqueue(request, lane)
            try:
                return await waiting
            except _ReplicaLost:
                self.retries += 1
                await asyncio.sleep(_RETRY_INTERVAL_S)
            finally:
                if not waiting.done() or waiting.cancelled():
                    call.cancel_if_nobody_waits()

    def _enqueue(self, request: Request, lane: int) -> tuple[_Call, asyncio.Future[Answer]]:
        call = self._next_calls.get(lane)
        if call is None:
            call = self._next_calls[lane] = _Call()
            asyncio.get_running_loop().call_soon(self._send_next, lane)
        return call, call.add(request)

    def _send_next(self, lane: int) -> None:
        call = self._next_calls.pop(lane)
        call.task = asyncio.get_running_loop().create_task(self._send(call, lane))
        self._running.add(call.task)
        call.task.add_done_callback(self._running.discard)

    async def _send(self, call: _Call, lane: int) -> None:
        handle = self._get_handle().options(
            method_name="generate", stream=True, session_id=str(lane), _by_reference=False
        )
        stream = handle.remote(call.requests)
        try:
            async for answers in stream:
                for answer in answers:
                    waiting = call.answers[answer.index]
                    if not waiting.done():
                        waiting.set_result(answer)
            call.fail(_ReplicaLost("the stream of answers ended early"))
        except (RayActorError, grpc.aio.AioRpcError, RayServeException) as error:
            logger.warning("%s: a replica was lost: %s", self._names.application, error)
            call.fail(_ReplicaLost(str(error)))
        except asyncio.CancelledError:
            stream.cancel()
            raise

    def _get_handle(self) -> DeploymentHandle[Any]:
        if self._handle is None:
            self._handle = serve.get_deployment_handle(self._names.deployment, self._names.application)
            # On the caller's loop: a second thread for the router doubles the cost of a call.
            self._handle._init(_run_router_in_separate_loop=False)
        return self._handle
