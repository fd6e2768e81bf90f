"""An OpenAI-compatible endpoint that answers as a test wants, and groups to be judged."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from trajectories import make_step, make_trajectory

from serl.batch.group import finish
from serl.config import ExperimentConfig
from serl.hindsight.judge.pool import JudgePool
from serl.types import Step, TrajectoryGroup

WAIT_S = 300.0
KEY_VARIABLE = "SERL_TEST_JUDGE_KEY"
KEY = "sk-test-3f9c51d2e8"
Respond = Callable[[dict[str, Any], int], Awaitable[web.Response]]


def completion(content: str | None, finish_reason: str = "stop", **message: Any) -> web.Response:
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content},
    }
    choice["message"] |= message
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    return web.json_response(body)


async def helpful(body: dict[str, Any], number: int) -> web.Response:
    return completion(f"Look in the drawer first ({number}).")


class Endpoint:
    """``respond(body, number)`` answers the chat request ``number`` (from 0); what came in is kept."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.in_flight = self.max_in_flight = 0
        self.base_url = ""

    @property
    def models(self) -> list[str]:
        return [body["model"] for body in self.bodies]

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.authorizations.append(request.headers.get("Authorization", ""))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await self.respond(body, number)
        finally:
            self.in_flight -= 1

    async def list_models(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") == "Bearer wrong":
            return web.json_response({"error": {"message": "no such key: wrong"}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": "judge", "object": "model"}]})


@contextmanager
def running(respond: Respond = helpful) -> Iterator[Endpoint]:
    """The endpoint on localhost, its event loop in a thread of its own."""
    endpoint, loop = Endpoint(respond), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", endpoint.chat)
        app.router.add_get("/v1/models", endpoint.list_models)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)

    async def stop() -> None:
        await runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    endpoint.base_url = f"http://127.0.0.1:{port}/v1"
    try:
        yield endpoint
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class Judging:
    """A pool, driven as the training loop does it."""

    def __init__(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        self.pool = JudgePool(experiment, run_dir)
        self._experiment = experiment
        self._texts: dict[str, dict[str, str]] = {}

    def submit(self, group: TrajectoryGroup, earliest: int = 0) -> None:
        if self.pool.is_asked:
            trajectories = finish(group, self._experiment).taught_trajectories
            self.pool.submit(group, trajectories, earliest)

    def wait_for(self, groups: Sequence[TrajectoryGroup]) -> None:
        deadline = time.monotonic() + WAIT_S
        while waiting := self._waiting_for(groups):
            assert time.monotonic() < deadline, f"{self.pool.num_pending} answers are pending"
            self.pool.wait_for(waiting)
            time.sleep(0.01)

    def take(
        self, groups: Sequence[TrajectoryGroup], weights_seq_no: int = 0, held: Sequence[str] = ()
    ) -> dict[str, str]:
        """A batch of ``groups`` is taken; the groups ``held`` stay."""
        self._waiting_for(groups)
        self.pool.end_wait(weights_seq_no, lambda group_id: group_id in held)
        texts: dict[str, str] = {}
        for group in groups:
            texts |= self._texts.get(group.group_id, {})
        return texts

    def texts_of(self, groups: Sequence[TrajectoryGroup]) -> dict[str, str]:
        for group in groups:
            self.submit(group)
        self.wait_for(groups)
        return self.take(groups)

    def _waiting_for(self, groups: Sequence[TrajectoryGroup]) -> list[str]:
        self._texts |= self.pool.take_answered()
        return [g.group_id for g in groups if self.pool.is_asked and g.group_id not in self._texts]


@contextmanager
def pool_of(experiment: ExperimentConfig, run_dir: Path) -> Iterator[Judging]:
    judging = Judging(experiment, run_dir)
    try:
        yield judging
    finally:
        judging.pool.close()
        assert "judge" not in [thread.name for thread in threading.enumerate()]


def judge_settings(base_url: str, **changes: Any) -> dict[str, Any]:
    """Quick ones: no retry unless a test asks for it."""
    quick = {"timeout_s": 5.0, "max_retries": 0, "max_wait_s": 10.0}
    return {"base_url": base_url, "model": "judge"} | quick | changes


def judged_experiment(
    base_url: str, sources: Sequence[str] = ("judge_current_traj",), **changes: Any
) -> ExperimentConfig:
    hindsight = {"sources": list(sources), "lambda_decay_steps": 2} | changes.pop("hindsight", {})
    return ExperimentConfig.model_validate(
        {
            "name": "test",
            "model": {"path": "unused"},
            "training": {"groups_per_batch": 1},
            "hindsight": hindsight | {"judge": judge_settings(base_url, **changes)},
        }
    )


def group_to_judge(group_id: str, rewards: Sequence[float], num_steps: int = 2) -> TrajectoryGroup:
    """One trajectory per reward; every response is different."""
    trajectories = []
    for rollout_index, reward in enumerate(rewards):
        steps = [_step(f"{group_id} {rollout_index} {index}") for index in range(num_steps)]
        trajectories.append(make_trajectory(steps, reward, group_id, rollout_index))
    return TrajectoryGroup(group_id, trajectories[0].task, trajectories)


def _step(name: str) -> Step:
    return make_step(
        messages=({"role": "user", "content": "You are in a kitchen. Find the mug."},),
        response_text=f"<action>go to drawer {name}</action>",
        anchor="a kitchen",
        action=f"go to drawer {name}",
        feedback="Nothing happens.",
        next_observation="The drawer is empty.",
    )
