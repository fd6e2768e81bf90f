from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from rollout_helpers import (
    FORWARD,
    SETTINGS,
    WINDOWS,
    Corridor,
    CorridorProvider,
    ScriptedClient,
    byte_tokenizer,
    episode,
    rollout_request,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.base import Task
from serl.rollout.env_calls import EnvCalls, EnvThreads, EpisodeFailure
from serl.rollout.episode import EpisodeSettings, run_episode, sampling_seed
from serl.rollout.prompt import PromptEncoder
from serl.types import RequestRefused, Trajectory, VersionSpan


@pytest.fixture
def play(encoder: PromptEncoder, env_threads: ThreadPoolExecutor):
    """Plays one episode with a scripted client; returns its trajectory and counters."""

    def play_one(
        client: ScriptedClient, task_id: str = "corridor 2", settings: EpisodeSettings = SETTINGS
    ) -> tuple[Trajectory, Counter[str]]:
        counters: Counter[str] = Counter()
        played = episode(client, rollout_request(task_id), settings, counters, env_threads)
        return asyncio.run(played), counters

    return play_one


def test_a_solved_episode_records_what_was_seen_said_and_answered(play: Callable, encoder: PromptEncoder):
    trajectory, counters = play(ScriptedClient(encoder))
    assert (trajectory.end_reason, trajectory.success, trajectory.reward) == ("success", True, 10.0)
    assert (trajectory.trajectory_id, trajectory.group_id, trajectory.rollout_index) == (
        "g000000-0",
        "g000000",
        0,
    )
    first, last = trajectory.steps
    assert (first.anchor, first.next_observation) == ("You stand at 0.", "You stand at 1.")
    assert (first.action, first.action_valid, first.feedback) == ("forward", True, "did forward")
    assert (first.reward, last.reward) == (0.0, 10.0)
    assert first.prompt_ids == encoder.encode(first.messages)
    assert first.prompt_text == "0: You stand at 0."
    assert last.prompt_text == "You stand at 0. > forward\n1: You stand at 1."
    assert trajectory.weights_seq_no == 7
    response_tokens = len(encoder.tokenizer.encode(FORWARD))
    assert counters["env_steps"] == counters["episodes_started"] + counters["episodes_finished"] == 2
    assert counters["response_tokens"] == 2 * response_tokens
    assert counters["prompt_tokens"] == len(first.prompt_ids) + len(last.prompt_ids)
    assert counters["cached_prompt_tokens"] == 6
    assert counters["invalid_actions"] == 0


def test_sampled_ids_pass_through_exactly_even_where_encoding_their_text_gives_others(play: Callable):
    vocabulary = {char: rank for rank, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("f", "o"), ("fo", "r")]
    byte_level = Tokenizer(models.BPE(vocab=vocabulary | {"fo": 256, "for": 257}, merges=merges))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    merging = PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="<eos>")
    merging.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    head, tail = (merging.encode(text) for text in ("<action>", "ward</action>"))
    sampled = [*head, *(vocabulary[char] for char in "for"), *tail, merging.eos_token_id]
    assert merging.encode(FORWARD) == [*head, 257, *tail]

    client = ScriptedClient(PromptEncoder(merging), respond=lambda session_id, index: list(sampled))
    trajectory, _ = play(client, "corridor 1")
    step = trajectory.steps[0]
    assert step.response_ids == sampled
    assert step.old_logprobs == [-0.25 * (position + 1) for position in range(len(sampled))]
    assert step.version_spans == (VersionSpan(0, len(sampled), 7),)
    assert step.response_text == FORWARD
    masked = [token_id for token_id, inside in zip(sampled, step.action_mask, strict=True) if inside]
    assert masked == [vocabulary[char] for char in "forward"]


@pytest.mark.parametrize(
    ("response", "action", "quoted"),
    [
        ("<action>fly</action>", "fly", "fly"),
        ("forward, I say", None, "forward, I say"),
        ("a" * 50 + "b" * 100, None, "b" * 100),
    ],
)
def test_an_invalid_action_is_marked_and_gets_the_environments_own_answer(
    play: Callable, encoder: PromptEncoder, response: str, action: str | None, quoted: str
):
    client = ScriptedClient(encoder, respond=lambda session_id, index: response if index == 0 else FORWARD)
    trajectory, counters = play(client, "corridor 1")
    invalid, valid = trajectory.steps
    assert (invalid.action, invalid.action_valid) == (action, False)
    assert invalid.reward == 0.0
    assert invalid.next_observation == valid.anchor == "Nothing happens."
    assert invalid.feedback == f"did {quoted}"
    assert f"> {quoted}\n" in valid.prompt_text
    assert (valid.action_valid, valid.reward) == (True, 10.0)
    assert trajectory.reward == 10.0
    assert counters["invalid_actions"] == 1


def test_an_admissible_word_without_action_tag_is_still_an_invalid_action(
    play: Callable, encoder: PromptEncoder
):
    client = ScriptedClient(encoder, respond=lambda session_id, index: "forward")
    trajectory, _ = play(client, "corridor 1")
    assert [step.action_valid for step in trajectory.steps] == [False]
    assert (trajectory.success, trajectory.reward) == (True, 10.0)
    assert trajectory.steps[0].reward == 10.0


@pytest.mark.parametrize(
    ("action", "end_reason", "num_steps"),
    [("jump", "failure", 1), ("leave", "truncated", 1), ("fly", "max_steps", 5)],
)
def test_an_episode_says_why_it_ended(
    play: Callable, encoder: PromptEncoder, action: str, end_reason: str, num_steps: int
):
    client = ScriptedClient(encoder, respond=lambda session_id, index: f"<action>{action}</action>")
    trajectory, _ = play(client)
    assert (trajectory.end_reason, len(trajectory.steps)) == (end_reason, num_steps)
    assert (trajectory.success, trajectory.reward) == (False, 0.0)


def test_a_prompt_over_the_limit_first_loses_history_and_then_ends_the_episode(
    play: Callable, encoder: PromptEncoder
):
    client = ScriptedClient(encoder, respond=lambda session_id, index: f"<action>{'fly' * 80}</action>")
    trajectory, counters = play(client, settings=replace(SETTINGS, max_steps=4))
    assert [len(step.prompt_ids) <= 400 for step in trajectory.steps] == [True] * 4
    assert counters["dropped_history_turns"] == trajectory.metrics["dropped_history_turns"] == 2
    assert trajectory.steps[-1].prompt_text.startswith("Nothing happens. > fly")

    client = ScriptedClient(encoder, respond=lambda session_id, index: "<action>long</action>")
    trajectory, _ = play(client)
    assert (trajectory.end_reason, len(trajectory.steps)) == ("prompt_too_long", 1)
    trajectory, _ = play(client, settings=replace(SETTINGS, prompts=replace(WINDOWS, max_prompt_length=10)))
    assert (trajectory.end_reason, trajectory.steps, trajectory.reward) == ("prompt_too_long", [], 0.0)


def test_requests_carry_a_seed_only_if_asked_for_and_then_one_per_step(
    play: Callable, encoder: PromptEncoder
):
    client = ScriptedClient(encoder)
    play(client)
    assert [sampling.seed for _, sampling in client.requests] == [None, None]
    client = ScriptedClient(encoder)
    play(client, settings=replace(SETTINGS, seeded_requests=True))
    assert [sampling.seed for _, sampling in client.requests] == [sampling_seed(11, 0), sampling_seed(11, 1)]
    assert sampling_seed(11, 0) != sampling_seed(11, 1)
    assert 0 <= sampling_seed(11, 0) < 2**31


def test_the_rollouts_of_a_group_meet_the_same_world(encoder: PromptEncoder, env_threads: ThreadPoolExecutor):
    worlds = [Corridor(), Corridor(), Corridor()]
    requests = [
        rollout_request(rollout_index=0),
        rollout_request(rollout_index=1),
        rollout_request("corridor 3"),
    ]

    async def play_all() -> None:
        for world, request in zip(worlds, requests, strict=True):
            env = EnvCalls(world, request.task, env_threads, timeout_s=60.0, counters=Counter())
            client = ScriptedClient(encoder)
            await run_episode(request, env, CorridorProvider(), encoder, client, SETTINGS, Counter())

    asyncio.run(play_all())
    assert worlds[0].seed == worlds[1].seed != worlds[2].seed


@pytest.mark.parametrize(
    ("task_id", "message"),
    [
        ("broken 1", "task 'broken 1': step raised OSError('the floor gave way')"),
        ("unknown 1", "task 'unknown 1': reset raised KeyError('unknown 1')"),
        ("exiting 1", "task 'exiting 1': step raised SystemExit(3)"),
        ("blocking exhausted", "task 'blocking exhausted': step raised StopIteration()"),
        ("mute 1", "task 'mute 1': what step returned raised KeyError('feedback')"),
    ],
)
def test_an_error_of_the_environment_names_the_task(
    play: Callable, encoder: PromptEncoder, task_id: str, message: str
):
    with pytest.raises(EpisodeFailure) as failure:
        play(ScriptedClient(encoder), task_id)
    assert str(failure.value) == message
    assert failure.value.reason == "environment_error"


def test_a_prompt_that_cannot_be_made_fails_the_episode_and_says_who_raised(
    play: Callable, encoder: PromptEncoder
):
    with pytest.raises(EpisodeFailure) as failure:
        play(ScriptedClient(encoder), "speechless 1")
    assert failure.value.reason == "prompt_error"
    assert str(failure.value) == (
        "task 'speechless 1': the environment's messages raised LookupError('no words for the speechless')"
    )
    with pytest.raises(EpisodeFailure) as failure:
        play(ScriptedClient(encoder), "numeric 1")
    assert failure.value.reason == "prompt_error"
    assert "{'role': 'user', 'content': 5} is no message with role and content as texts" in str(failure.value)
    refusing = byte_tokenizer()
    refusing.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        EpisodeFailure, match="chat template or tokenizer raised .*System role not"
    ) as failure:
        play(ScriptedClient(PromptEncoder(refusing)))
    assert failure.value.reason == "prompt_error"


def test_a_policy_that_does_not_answer_in_time_fails_the_episode(play: Callable, encoder: PromptEncoder):
    client = ScriptedClient(encoder, delay=lambda session_id: 60.0)
    with pytest.raises(EpisodeFailure, match="no answer of the policy within 0.05 s") as failure:
        play(client, settings=replace(SETTINGS, request_timeout_s=0.05))
    assert failure.value.reason == "policy_unavailable"


def test_closing_a_blocking_environment_waits_for_nobody_and_logs_what_goes_wrong(
    env_threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
):
    counters: Counter[str] = Counter()

    async def reset_and_close(task_id: str, executor: ThreadPoolExecutor) -> Corridor:
        world = Corridor()
        env = EnvCalls(world, Task(task_id), executor, timeout_s=60.0, counters=counters)
        await env.reset(0)
        env.close()
        return world

    with ThreadPoolExecutor(1, thread_name_prefix="environments") as executor:
        blocking = asyncio.run(reset_and_close("blocking 1", executor))
    assert blocking.closed_in.startswith("environments")
    assert "task 'blocking 1': close raised OSError('the door is stuck')" in caplog.text
    assert counters["environment_close_errors"] == 1
    assert asyncio.run(reset_and_close("corridor 1", env_threads)).closed_in == "MainThread"
    asyncio.run(reset_and_close("stuck 1", env_threads))
    assert "task 'stuck 1': close raised OSError('the door is stuck')" in caplog.text
    assert counters["environment_close_errors"] == 2


def test_a_refused_request_fails_the_episode_with_the_engines_words(play: Callable, encoder: PromptEncoder):
    def refuse(session_id: str, index: int) -> str:
        raise RequestRefused("the prompt has 9000 tokens, max_model_len is 4096")

    with pytest.raises(EpisodeFailure, match="'corridor 2': .* has 9000 tokens") as failure:
        play(ScriptedClient(encoder, refuse))
    assert failure.value.reason == "request_refused"


def test_a_blocking_environment_that_hangs_fails_its_episode(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    async def hang() -> None:
        env = EnvCalls(Corridor(), Task("blocking 1"), env_threads, timeout_s=0.5, counters=Counter())
        await env.reset(0)
        await env.step("forward")

    try:
        with pytest.raises(EpisodeFailure, match="task 'blocking 1': step took longer than 0.5 s") as failure:
            asyncio.run(hang())
    finally:
        Corridor.gate.set()
        Corridor.gate.clear()
    assert failure.value.reason == "environment_timeout"


def test_calls_that_hang_are_counted_until_they_end_and_leave_a_thread_for_each_episode():
    async def play(threads: EnvThreads) -> None:
        for _ in range(2):
            env = EnvCalls(Corridor(), Task("blocking 1"), threads, timeout_s=0.2, counters=Counter())
            await env.reset(0)
            with pytest.raises(EpisodeFailure, match="step took longer than 0.2 s"):
                await env.step("forward")
        assert threads.num_hung == 2
        sound = [
            EnvCalls(Corridor(), Task("blocking 1"), threads, timeout_s=5.0, counters=Counter())
            for _ in range(2)
        ]
        for _ in range(2):  # only from the second reset on do they know that they block
            answers = await asyncio.gather(*(env.reset(0) for env in sound))
        assert [observation for observation, _ in answers] == ["You stand at 0."] * 2

    # A call that hangs keeps its thread, and leaving the context waits for it.
    with EnvThreads(2, timeout_s=0.1) as threads:
        try:
            asyncio.run(play(threads))
        finally:
            Corridor.gate.set()
    Corridor.gate.clear()
    assert threads.num_hung == 0
