"""Asking the policy deployment for responses, from the asyncio loop of an env runner."""

from __future__ import annotations

import asyncio
import logging
import zlib
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serl.private.ray_serve import route_on_callers_loop
from serl.serving.lane import Lane, ReplicaLost
from serl.serving.messages import Answer, completion
from serl.serving.names import ServingNames
from serl.types import Completion, RequestRefused, Sampling

_RETRY_INTERVAL_S = 0.2
_STATISTICS_TIMEOUT_S = 30.0


class PolicyClient:
    """Uses the deployment ``names`` from one asyncio loop, that of the first call.

    ``retries`` counts the requests that were sent again because their replica had ended.
    """

    def __init__(self, names: ServingNames) -> None:
        self._names = names
        self._handle: DeploymentHandle[Any] | None = None
        self._lanes: list[Lane] = []
        self.retries = 0

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, session_id: str, deadline_s: float
    ) -> Completion:
        """One response to ``prompt_ids``; requests of one ``session_id`` go to one replica while it lives.

        Raises TimeoutError if there is no answer within ``deadline_s`` seconds, however many replicas died
        meanwhile, and RequestRefused.
        """
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self._ask_until_answered(prompt_ids, sampling, session_id)
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
        ``refused_requests``, ``aborted_requests``, ``engine_steps`` since each replica's start;
        ``running_requests`` and ``waiting_requests`` now. ``weights_seq_no`` is the smallest. Raises
        TimeoutError.
        """
        response = self._get_handle().broadcast("statistics")
        replicas = await response.results_async(timeout_s=_STATISTICS_TIMEOUT_S)
        total = {key: sum(replica[key] for replica in replicas) for replica in replicas for key in replica}
        total["weights_seq_no"] = min((replica["weights_seq_no"] for replica in replicas), default=0)
        return total | {"num_replicas": len(replicas)}

    async def _ask_until_answered(self, prompt_ids: list[int], sampling: Sampling, session_id: str) -> Answer:
        self._get_handle()
        lane = self._lanes[zlib.crc32(session_id.encode()) % len(self._lanes)]
        while True:
            try:
                return await lane.ask(prompt_ids, sampling)
            except ReplicaLost:
                self.retries += 1
                await asyncio.sleep(_RETRY_INTERVAL_S)

    def _get_handle(self) -> DeploymentHandle[Any]:
        if self._handle is None:
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            handle = serve.get_deployment_handle(self._names.deployment, self._names.application)
            route_on_callers_loop(handle)
            self._lanes = [Lane(handle, str(lane)) for lane in range(self._names.num_session_lanes)]
            self._handle = handle
        return self._handle
