"""The judge beside the training loop: who is asked, when, and what a batch gets."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from judge_helpers import (
    KEY,
    KEY_VARIABLE,
    completion,
    group_to_judge,
    helpful,
    judged_experiment,
    pool_of,
    running,
)
from learner_helpers import byte_tokenizer

from serl.batch.assemble import build_rows
from serl.hindsight.judge.endpoint import JudgeError
from serl.rollout.prompt import PromptEncoder
from serl.run.run_dir import RunDir


def asked_about(bodies: Sequence[dict[str, Any]]) -> list[str]:
    """Group and rollout index of the trajectories, sorted."""
    requests = [body["messages"][1]["content"] for body in bodies]
    return sorted(re.findall(r"go to drawer (\w+ \d+) 0<", request)[0] for request in requests)


async def hang(body: dict[str, Any], number: int) -> web.Response:
    await asyncio.sleep(3600)
    return completion("late")


async def nothing(body: dict[str, Any], number: int) -> web.Response:
    return completion("None")


def test_every_trajectory_of_a_group_is_judged_and_counted(tmp_path: Path):
    group = group_to_judge("g", [10.0, 0.0, 0.0])
    with running() as endpoint, pool_of(judged_experiment(endpoint.base_url), tmp_path) as pool:
        texts = pool.texts_of([group])
        assert pool.pool.num_done == 3 and pool.pool.num_pending == 0
        metrics = pool.pool.metrics()
    assert set(texts) == {"g-0", "g-1", "g-2"}
    assert all(text.startswith("Look in the drawer first") for text in texts.values())
    assert asked_about(endpoint.bodies) == ["g 0", "g 1", "g 2"]
    assert "Last feedback: Nothing happens." in endpoint.bodies[0]["messages"][1]["content"]
    assert (metrics["judge/requests"], metrics["judge/answers"], metrics["judge/cached"]) == (3, 3, 0)
    assert 0 < metrics["judge/latency_mean_s"] <= metrics["judge/latency_max_s"]
    assert metrics["judge/retries"] == metrics["judge/fallback_answers"] == metrics["judge/pending"] == 0
    assert 0 <= metrics["judge/waited_s"] < 20


def test_what_the_judge_said_is_in_the_teachers_prompt_of_its_trajectory_only(tmp_path: Path):
    async def respond(body: dict[str, Any], number: int) -> web.Response:
        name = "winner" if "Outcome: success" in body["messages"][1]["content"] else "loser"
        return completion("None" if name == "winner" else "The loser should open the drawer.")

    group = group_to_judge("g", [10.0, 0.0])
    encoder = PromptEncoder(byte_tokenizer())
    with running(respond) as endpoint:
        experiment = judged_experiment(endpoint.base_url)
        with pool_of(experiment, tmp_path) as pool:
            texts = pool.texts_of([group])
            metrics = pool.pool.metrics()
    rows, _ = build_rows([group], experiment, encoder, 0, texts)
    assert rows.has_teacher_prompt.tolist() == [False, False, True, True]
    assert "The loser should open the drawer." in encoder.decode(rows.teacher_prompt_ids[2].tolist())
    assert (metrics["judge/answers"], metrics["judge/failed_nonsense"]) == (1, 1)


def test_a_judged_source_may_stand_beside_others_and_feedback_can_be_kept_from_the_judge(tmp_path: Path):
    sources = ("judge_current_traj_on_successful_sample", "immediate_feedback")
    group = group_to_judge("g", [10.0, 0.0])
    encoder = PromptEncoder(byte_tokenizer())
    with running() as endpoint:
        experiment = judged_experiment(endpoint.base_url, sources, include_feedback=False)
        with pool_of(experiment, tmp_path) as pool:
            texts = pool.texts_of([group])
    asked = [body["messages"][1]["content"] for body in endpoint.bodies]
    assert all("A successful attempt to compare with" in text for text in asked)
    assert not any("Nothing happens." in text for text in asked)
    rows, _ = build_rows([group], experiment, encoder, 0, texts)
    weighted = encoder.decode(rows.teacher_prompt_ids[0].tolist())
    assert "Look in the drawer first" in weighted and "Nothing happens." in weighted


def test_nobody_is_asked_about_what_trains_nothing(tmp_path: Path):
    groups = [group_to_judge("same", [10.0, 10.0]), group_to_judge("empty", [10.0, 0.0], num_steps=0)]
    with running() as endpoint, pool_of(judged_experiment(endpoint.base_url), tmp_path) as pool:
        assert pool.texts_of(groups) == {}
        assert pool.pool.metrics()["judge/requests"] == 0
    assert endpoint.bodies == []


def test_only_trajectories_with_an_advantage_are_asked_about(tmp_path: Path):
    with running() as endpoint:
        experiment = judged_experiment(endpoint.base_url)
        best_only = experiment.model_copy(
            update={"advantage": experiment.advantage.model_copy(update={"estimator": "grpo_passk"})}
        )
        with pool_of(best_only, tmp_path) as pool:
            texts = pool.texts_of([group_to_judge("g", [0.0, 10.0, 5.0])])
    assert list(texts) == ["g-1"] and asked_about(endpoint.bodies) == ["g 1"]


def test_an_invalid_action_alone_gives_an_advantage_and_so_a_judgement(tmp_path: Path):
    group = group_to_judge("g", [10.0, 10.0])
    group.trajectories[0].steps[0].action_valid = False
    with running() as endpoint, pool_of(judged_experiment(endpoint.base_url), tmp_path) as pool:
        assert set(pool.texts_of([group])) == {"g-0", "g-1"}


def test_no_request_is_made_for_an_update_in_which_lambda_is_zero(tmp_path: Path):
    groups = [group_to_judge(name, [10.0, 0.0]) for name in "abcd"]
    with running() as endpoint:
        experiment = judged_experiment(endpoint.base_url, hindsight={"lambda_decay_steps": 2})
        with pool_of(experiment, tmp_path) as pool:
            for group, earliest in zip(groups, (0, 1, 2, 3), strict=True):
                pool.submit(group, earliest)
            pool.wait_for(groups)
            assert set(pool.take(groups[:1], 0, "bcd")) == {"a-0", "a-1"}
            assert set(pool.take(groups[1:], 1)) == {"b-0", "b-1"}
    assert asked_about(endpoint.bodies) == ["a 0", "a 1", "b 0", "b 1"]


def test_pending_requests_are_given_up_when_lambda_will_be_zero(tmp_path: Path):
    first, second = group_to_judge("a", [10.0, 0.0]), group_to_judge("b", [10.0, 0.0])

    async def respond(body: dict[str, Any], number: int) -> web.Response:
        return await (helpful if asked_about([body])[0][0] == "a" else hang)(body, number)

    with running(respond) as endpoint:
        experiment = judged_experiment(
            endpoint.base_url, timeout_s=3600.0, hindsight={"lambda_decay_steps": 1}
        )
        with pool_of(experiment, tmp_path) as pool:
            pool.submit(first)
            pool.submit(second)
            pool.wait_for([first])
            assert len(pool.take([first], 0, held="b")) == 2
            assert pool.pool.num_pending == 0
            assert pool.take([second], 1) == {}
            metrics = pool.pool.metrics()
    assert metrics["judge/given_up"] == 2 and "judge/failed_late" not in metrics


@pytest.mark.parametrize(
    "hindsight", [{"enabled": False}, {"mixing_lambda": 0.0}, {"sources": ["immediate_feedback"]}]
)
def test_without_a_teacher_or_a_judged_source_nothing_is_asked_or_started(
    hindsight: dict[str, Any], tmp_path: Path
):
    with running() as endpoint:
        experiment = judged_experiment(endpoint.base_url, hindsight=hindsight)
        with pool_of(experiment, tmp_path) as pool:
            assert pool.texts_of([group_to_judge("g", [10.0, 0.0])]) == {}
            assert "judge" not in [thread.name for thread in threading.enumerate()]
    assert endpoint.bodies == [] and not (tmp_path / "judge").exists()


def test_a_batch_waits_no_longer_than_it_may_and_then_goes_without(tmp_path: Path):
    group = group_to_judge("g", [10.0, 0.0])

    async def respond(body: dict[str, Any], number: int) -> web.Response:
        return await (helpful if number == 0 else hang)(body, number)

    with running(respond) as endpoint:
        experiment = judged_experiment(endpoint.base_url, timeout_s=3600.0, max_wait_s=0.5)
        with pool_of(experiment, tmp_path) as pool:
            pool.submit(group)
            deadline = time.monotonic() + 60.0
            while pool.pool.num_done == 0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            pool.wait_for([group])
            texts = pool.take([group])
            metrics = pool.pool.metrics()
    assert len(texts) == 1
    assert metrics["judge/failed_late"] == 1 and metrics["judge/answers"] == 1
    assert metrics["judge/waited_s"] >= 0.5 and metrics["judge/pending"] == 0


def test_requests_about_discarded_groups_are_given_up(tmp_path: Path):
    stale, recent, taken = (group_to_judge(name, [10.0, 0.0]) for name in ("stale", "recent", "taken"))
    with running(hang) as endpoint:
        experiment = judged_experiment(endpoint.base_url, timeout_s=3600.0, max_wait_s=0.1)
        with pool_of(experiment, tmp_path) as pool:
            for group in (stale, recent, taken):
                pool.submit(group)
            pool.wait_for([taken])
            pool.take([taken], 0, held=["recent"])
            assert pool.pool.num_pending == 2
            assert pool.pool.metrics()["judge/given_up"] == 2


def test_a_second_pool_finds_the_answers_of_the_first_in_the_run_directory(tmp_path: Path):
    groups = [group_to_judge("g", [10.0, 0.0])]
    with running() as endpoint:
        run_dir = RunDir.create(
            judged_experiment(endpoint.base_url, hindsight={}).model_copy(
                update={"output_dir": str(tmp_path)}
            )
        )
        experiment = judged_experiment(endpoint.base_url)
        with pool_of(experiment, run_dir.path) as pool:
            first = pool.texts_of(groups)
        file = run_dir.path / "judge" / "answers.jsonl"
        with file.open("a") as log:
            log.write('{"key": "unfini')
        # What a resumed run does to its folder.
        run_dir.metrics.start(0)
        run_dir.metrics.close()
        with pool_of(experiment, run_dir.path) as pool:
            assert pool.texts_of(groups) == first
            metrics = pool.pool.metrics()
            assert len(endpoint.bodies) == 2
            pool.texts_of([group_to_judge("h", [10.0, 0.0])])
        with pool_of(experiment, run_dir.path) as pool:
            pool.texts_of([group_to_judge("h", [10.0, 0.0])])
        assert len(endpoint.bodies) == 4
        other = judged_experiment(endpoint.base_url, temperature=0.5)
        with pool_of(other, run_dir.path) as pool:
            pool.texts_of(groups)
        assert len(endpoint.bodies) == 6
    assert (metrics["judge/requests"], metrics["judge/cached"], metrics["judge/answers"]) == (2, 2, 2)
    assert "judge/latency_mean_s" not in metrics
    lines = file.read_text().splitlines()
    assert sum(line.startswith('{"key": "unfini') for line in lines) == 1
    assert {json.loads(line)["text"] for line in lines[:2]} == set(first.values())


def test_failures_are_not_cached(tmp_path: Path):
    groups = [group_to_judge("g", [10.0, 0.0])]
    with running(nothing) as endpoint:
        for _ in range(2):
            with pool_of(judged_experiment(endpoint.base_url), tmp_path) as pool:
                assert pool.texts_of(groups) == {}
        assert len(endpoint.bodies) == 4


def test_a_request_that_is_sent_again_and_one_that_is_given_up_are_told(tmp_path: Path):
    async def respond(body: dict[str, Any], number: int) -> web.Response:
        return web.Response(status=503, text="overloaded")

    told: list[tuple[str, str, str, int]] = []
    with running(respond) as endpoint:
        experiment = judged_experiment(endpoint.base_url, max_retries=1)
        with pool_of(experiment, tmp_path) as pool:
            pool.pool.on_failure = lambda *failure: told.append(failure)
            pool.texts_of([group_to_judge("g", [10.0, 0.0])])
    assert sorted({(kind, reason, count) for kind, reason, _, count in told}) == [
        ("judge", "server_error", 1),
        ("judge_request", "server_error", 1),
    ]
    assert len(told) == 4 and all("HTTP status 503" in text for _, _, text, _ in told)
    assert told[0][0] == "judge_request" and told[0][2].endswith("; it is sent again")


def test_strict_fails_with_trajectory_and_reason(tmp_path: Path):
    groups = [group_to_judge("g", [10.0, 0.0])]
    with running(nothing) as endpoint:
        experiment = judged_experiment(endpoint.base_url, strict=True)
        with pool_of(experiment, tmp_path) as pool:
            with pytest.raises(JudgeError, match=r"strict = true: .* trajectory g-\d: nonsense: 'None'"):
                pool.texts_of(groups)
    with running(hang) as endpoint:
        experiment = judged_experiment(endpoint.base_url, strict=True, timeout_s=3600.0, max_wait_s=0.1)
        with pool_of(experiment, tmp_path) as pool:
            with pytest.raises(JudgeError, match=r"trajectory g-0: late: not there after 0.1 s"):
                pool.texts_of(groups)


def test_a_missing_key_stops_the_run_and_a_key_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    group = group_to_judge("g", [10.0, 0.0])
    with running() as endpoint:
        experiment = judged_experiment(endpoint.base_url, api_key_env=KEY_VARIABLE).model_copy(
            update={"output_dir": str(tmp_path)}
        )
        run_dir = RunDir.create(experiment)
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        with pool_of(experiment, run_dir.path) as pool:
            with pytest.raises(JudgeError, match=KEY_VARIABLE):
                pool.submit(group)
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        with pool_of(experiment, run_dir.path) as pool:
            assert len(pool.texts_of([group])) == 2
    assert set(endpoint.authorizations) == {f"Bearer {KEY}"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "answers.jsonl"} <= {path.name for path in written}
    assert not any(KEY in path.read_text(errors="replace") for path in written)


def test_closing_gives_up_what_is_pending_and_waits_for_no_answer(tmp_path: Path):
    with running(hang) as endpoint:
        experiment = judged_experiment(endpoint.base_url, timeout_s=3600.0)
        with pool_of(experiment, tmp_path) as pool:
            pool.submit(group_to_judge("g", [10.0, 0.0]))
            deadline = time.monotonic() + 60.0
            while endpoint.in_flight < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
