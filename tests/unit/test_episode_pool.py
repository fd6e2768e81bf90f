from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from rollout_helpers import SETTINGS, Corridor, ScriptedClient, episode, rollout_request

from serl.rollout.episode_pool import EpisodePool, TooManyRequestsError
from serl.rollout.prompt import PromptEncoder
from serl.rollout.report import RolloutReport
from serl.types import RolloutRequest, Trajectory


def pool_of(
    client: ScriptedClient, env_threads: ThreadPoolExecutor, max_concurrent_episodes: int
) -> EpisodePool:
    return EpisodePool(
        lambda request, counters: episode(client, request, SETTINGS, counters, env_threads),
        max_concurrent_episodes,
    )


async def until_finished(pool: EpisodePool, num_trajectories: int, deadline_s: float = 60.0) -> RolloutReport:
    """Exchanges until so many trajectories are back; everything reported meanwhile, added up."""
    total = RolloutReport()
    started = time.monotonic()
    while len(total.trajectories) < num_trajectories:
        assert time.monotonic() - started < deadline_s, (
            f"only {len(total.trajectories)} trajectories came back"
        )
        report = await pool.exchange([], wait_s=0.5)
        total.trajectories += report.trajectories
        total.failures += report.failures
        total.counters.update(report.counters)
        total.num_unfinished = report.num_unfinished
    return total


def test_a_hundred_episodes_do_not_wait_for_each_other_or_for_a_slow_one(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    delays = random.Random(0)
    client = ScriptedClient(
        encoder, delay=lambda session_id: 3600.0 if session_id.endswith("-13") else delays.uniform(0, 0.05)
    )
    client_deadline = replace(SETTINGS, request_timeout_s=7200.0)

    async def run() -> tuple[RolloutReport, RolloutReport, int]:
        pool = EpisodePool(
            lambda request, counters: episode(client, request, client_deadline, counters, env_threads),
            100,
        )
        await pool.exchange(
            [rollout_request(f"corridor {1 + m % 5}", rollout_index=m) for m in range(100)], wait_s=0.0
        )
        return await until_finished(pool, 99), await pool.abort(), pool.num_unfinished

    report, aborted, num_unfinished = asyncio.run(run())
    assert sorted(t.rollout_index for t in report.trajectories) == [m for m in range(100) if m != 13]
    assert all(t.success and len(t.steps) == 1 + t.rollout_index % 5 for t in report.trajectories)
    assert report.num_unfinished == 1
    assert report.counters["episodes_started"] == 100
    assert report.counters["episodes_finished"] == 99
    assert report.counters["env_steps"] == sum(len(t.steps) for t in report.trajectories)
    assert [(f.request.rollout_index, f.reason) for f in aborted.failures] == [(13, "aborted")]
    assert (aborted.trajectories, num_unfinished) == ([], 0)


def test_a_blocking_environment_does_not_hold_up_the_others(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    async def run() -> tuple[RolloutReport, RolloutReport]:
        pool = pool_of(ScriptedClient(encoder), env_threads, 8)
        tasks = ["blocking 2", "blocking 2", *["corridor 3"] * 6]
        await pool.exchange(
            [rollout_request(task, rollout_index=m) for m, task in enumerate(tasks)], wait_s=0.0
        )
        quick = await until_finished(pool, 6)
        Corridor.gate.set()
        return quick, await until_finished(pool, 2)

    try:
        first, last = asyncio.run(run())
    finally:
        Corridor.gate.clear()
    assert sorted(t.rollout_index for t in first.trajectories) == [2, 3, 4, 5, 6, 7]
    assert sorted(t.rollout_index for t in last.trajectories) == [0, 1]
    assert all(t.success and t.environment_seconds > 0.0 for t in last.trajectories)


def test_a_report_comes_with_the_first_finished_episode_or_when_the_wait_is_over(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    client = ScriptedClient(encoder, delay=lambda session_id: 0.3 if session_id.endswith("-0") else 3600.0)

    async def run() -> None:
        pool = pool_of(client, env_threads, 2)
        report = await pool.exchange(
            [rollout_request("corridor 1", rollout_index=0), rollout_request(rollout_index=1)], wait_s=3600.0
        )
        assert [t.rollout_index for t in report.trajectories] == [0]
        clock = time.monotonic()
        report = await pool.exchange([], wait_s=0.2)
        assert (report.trajectories, report.num_unfinished) == ([], 1)
        assert time.monotonic() - clock >= 0.2
        await pool.abort()

    asyncio.run(run())


def test_no_more_episodes_run_at_once_than_allowed_and_as_many_again_may_wait(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    client = ScriptedClient(encoder, delay=lambda session_id: 0.05)
    at_once: list[int] = []
    running = 0

    async def counted(request: RolloutRequest, counters: Counter[str]) -> Trajectory:
        nonlocal running
        running += 1
        at_once.append(running)
        try:
            return await episode(client, request, SETTINGS, counters, env_threads)
        finally:
            running -= 1

    async def run() -> None:
        pool = EpisodePool(counted, max_concurrent_episodes=4)
        with pytest.raises(TooManyRequestsError, match="9 requests sent while 0 are unfinished; at most 8"):
            await pool.exchange([rollout_request(rollout_index=m) for m in range(9)], wait_s=0.0)
        assert pool.num_unfinished == 0
        report = await pool.exchange([rollout_request(rollout_index=m) for m in range(8)], wait_s=0.0)
        assert report.num_unfinished == 8
        finished = await until_finished(pool, 8)
        assert sorted(t.rollout_index for t in finished.trajectories) == list(range(8))

    asyncio.run(run())
    assert max(at_once) == 4


def test_one_failing_task_is_reported_and_the_others_go_on(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    async def run() -> RolloutReport:
        pool = pool_of(ScriptedClient(encoder), env_threads, 8)
        await pool.exchange(
            [
                rollout_request("broken 1", rollout_index=0),
                *(rollout_request(rollout_index=m) for m in range(1, 5)),
            ],
            wait_s=0.0,
        )
        return await until_finished(pool, 4)

    report = asyncio.run(run())
    assert [(f.request.rollout_index, f.reason) for f in report.failures] == [(0, "environment_error")]
    sentence, *origin = report.failures[0].message.splitlines()
    assert sentence == "task 'broken 1': step raised OSError('the floor gave way')"
    assert 'raise OSError("the floor gave way")' in "\n".join(origin)
    assert report.counters["episodes_started"] - report.counters["episodes_finished"] == 1


def test_an_error_nobody_can_name_is_raised_and_not_swallowed(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    def respond(session_id: str, index: int) -> str:
        raise ZeroDivisionError("a bug")

    async def run() -> None:
        await pool_of(ScriptedClient(encoder, respond), env_threads, 1).exchange(
            [rollout_request()], wait_s=5.0
        )

    with pytest.raises(ZeroDivisionError, match="a bug"):
        asyncio.run(run())
