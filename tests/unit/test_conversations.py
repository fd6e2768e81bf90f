"""Prompts that are whole conversations: continued by ids, cut where they grow too long, taught, recorded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gateway_helpers import CHAT, END, THINKING_LEFT_OUT, chat_tokenizer
from rollout_helpers import (
    FORWARD,
    SETTINGS,
    WINDOWS,
    CorridorProvider,
    ScriptedClient,
    episode,
    rollout_request,
)

from envs.alfworld.provider import make_provider as make_alfworld
from envs.base import PromptParts, turn_messages
from envs.registry import make_provider as make_registered
from envs.webshop.provider import make_provider as make_webshop
from serl.batch.group import add_evidence, finish
from serl.batch.prefix_tree import num_shared
from serl.config import ExperimentConfig, HindsightSection
from serl.config.sampling import ModelSection
from serl.learner.token_tree import TokenTree
from serl.rollout.episode_prompts import ConversationPrompts
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import PromptEncoder
from serl.run.records import TRAJECTORIES, TrajectoryRecord, trajectory_record
from serl.types import Trajectory, TrajectoryGroup
from tools.credit.recorded import read_groups
from tools.inspect.reading import Problems

WHOLE = replace(WINDOWS, form="conversation")


def encoder_of(template: str = CHAT) -> PromptEncoder:
    """One id per byte, but one for "ab", which policies here sample as two."""
    encoder = PromptEncoder(chat_tokenizer(template))
    encoder.tokenizer.add_tokens(["ab"])
    return encoder


def sampled(encoder: PromptEncoder, text: str = FORWARD) -> list[int]:
    """A response that its own text would not be tokenised to."""
    return [*encoder.ids("a"), *encoder.ids("b"), *encoder.ids(text + END)]


def play(
    encoder: PromptEncoder, response: str = FORWARD, task_id: str = "corridor 3", max_prompt_length: int = 400
) -> tuple[Trajectory, Counter[str]]:
    counters: Counter[str] = Counter()
    client = ScriptedClient(encoder, lambda session_id, index: sampled(encoder, response))
    prompts = replace(WHOLE, max_prompt_length=max_prompt_length)
    with ThreadPoolExecutor(1) as executor:
        request = rollout_request(task_id)
        settings = replace(SETTINGS, prompts=prompts)
        return asyncio.run(episode(client, request, settings, counters, executor)), counters


def test_each_prompt_is_the_one_before_the_sampled_ids_and_what_is_new():
    encoder = encoder_of()
    trajectory, counters = play(encoder)
    first, second, third = trajectory.steps
    opening = f"<|system|>walk to the end{END}\n<|user|>0: You stand at 0.{END}\n<|assistant|>"
    assert first.prompt_ids == encoder.ids(opening)
    for before, after, position in ((first, second, 1), (second, third, 2)):
        new = f"\n<|user|>You stand at {position}.{END}\n<|assistant|>"
        assert after.prompt_ids == before.prompt_ids + sampled(encoder) + encoder.ids(new)
    assert [step.continues for step in trajectory.steps] == [None, 0, 1]
    assert [message["role"] for message in second.messages] == ["system", "user", "assistant", "user"]
    assert counters["cut_prompts"] == counters["rewritten_prompts"] == 0


def test_a_template_that_leaves_thinking_out_of_history_is_counted_and_nothing_is_continued():
    encoder = encoder_of(THINKING_LEFT_OUT)
    trajectory, counters = play(encoder, f"<think>so</think>{FORWARD}", "corridor 2")
    assert [step.continues for step in trajectory.steps] == [None, None]
    assert "think" not in encoder.decode(trajectory.steps[1].prompt_ids)
    assert counters["rewritten_prompts"] == 1


def test_a_conversation_that_grows_too_long_loses_its_oldest_observations_and_then_turns():
    """Bytes: the opening 125, each further turn 130, of which 25 are the answer and 100 what is seen.

    The fourth prompt has 515 of 400. Its task, first and newest observation are 218, the aim is half of the
    rest on top, 309: two observations are cut from 100 to 8 + 3, 337 are left; two turns hold the other 28.
    """
    encoder, answer = encoder_of(), [*range(97, 121), 256]
    info = {"task_description": "walk to the end", "admissible_actions": [], "success": False}
    state = EpisodeState("o" * 100, info)
    prompts = ConversationPrompts(CorridorProvider(), encoder, WHOLE, "a test")
    made = []
    for _ in range(5):
        prompt = prompts.next(state)
        assert prompt is not None
        made.append(prompt)
        prompts.answered(answer)
        state.advance("", ("o" * 100, 0.0, False, False, info))
    lengths = [(len(prompt.token_ids), prompt.origin) for prompt in made]
    continued = [(125 + 130 * number, "continuation") for number in (1, 2)]
    assert lengths == [(125, "rendered"), *continued, (295, "cut"), (254, "cut")]
    assert [(prompt.num_shortened_observations, prompt.num_dropped_turns) for prompt in made[3:]] == [
        (2, 2),
        (1, 2),
    ]
    told = "0: " + "o" * 100 + "\n\n(Left out here: {} turns.)\n\n"
    assert made[3].messages[1]["content"] == told.format(2) + "o" * 8 + "…"
    assert made[4].messages[1]["content"] == told.format(4) + "o" * 100
    assert encoder.tokenizer.decode(answer) in encoder.tokenizer.decode(made[3].token_ids)


def test_the_responses_in_a_prompt_that_was_cut_are_still_the_sampled_ids():
    encoder = encoder_of()
    trajectory, counters = play(encoder, "<action>fly</action>", max_prompt_length=180)
    assert counters["cut_prompts"] > 0
    for step in trajectory.steps[1:]:
        text = encoder.decode(step.prompt_ids)
        ids, num_found = step.prompt_ids, text.count("ab<action>fly</action>")
        answer = sampled(encoder, "<action>fly</action>")
        starts = range(len(ids) - len(answer))
        assert sum(ids[start : start + len(answer)] == answer for start in starts) == num_found > 0


@pytest.mark.parametrize("old_observation_length", [0, 8])
def test_an_episode_ends_where_first_and_newest_observation_alone_are_too_long(old_observation_length: int):
    encoder = encoder_of()
    settings = replace(WHOLE, old_observation_length=old_observation_length, max_prompt_length=150)
    info = {"task_description": "walk", "admissible_actions": [], "success": False}
    state = EpisodeState("o" * 60, info)
    prompts = ConversationPrompts(CorridorProvider(), encoder, settings, "a test")
    assert prompts.next(state) is not None
    prompts.answered(sampled(encoder))
    state.advance("", ("o" * 60, 0.0, False, False, info))
    assert prompts.next(state) is None


@pytest.fixture(scope="module")
def group() -> TrajectoryGroup:
    encoder = encoder_of()
    won, lost = (play(encoder, FORWARD, task_id)[0] for task_id in ("corridor 3", "corridor 9"))
    lost = replace(lost, trajectory_id="g-1", rollout_index=1, group_id="g")
    return TrajectoryGroup("g", won.task, [replace(won, trajectory_id="g-0", group_id="g"), lost])


def test_rows_of_a_conversation_are_one_path_and_the_teachers_part_from_it_at_the_evidence(
    group: TrajectoryGroup,
):
    encoder = encoder_of()
    hindsight = HindsightSection.model_validate({"mode": "immediate_feedback"})
    experiment = ExperimentConfig(name="e", model=ModelSection(path="p"), hindsight=hindsight)
    finished = add_evidence(finish(group, experiment), experiment, encoder, {})
    rows = finished.rows
    assert rows.teacher_prompt_ids is not None and len(rows) == 3 + 5
    for row in range(len(rows)):
        own, told = rows.prompt_ids[row], rows.teacher_prompt_ids[row]
        assert num_shared(own, told) == len(own) - len(encoder.ids(f"{END}\n<|assistant|>"))
        assert f"did forward{END}\n<|assistant|>" in encoder.tokenizer.decode(told)
    paths = [np.concatenate((rows.prompt_ids[row], rows.response_ids[row])) for row in range(3)]
    assert len(TokenTree.of(paths).ids) == len(paths[-1])


def test_a_record_says_what_a_step_adds_and_the_whole_prompt_can_be_read_from_it(
    group: TrajectoryGroup, tmp_path: Path
):
    encoder, trajectory = encoder_of(), group.trajectories[0]
    records = [trajectory_record(1, own, {}, encoder.tokenizer) for own in group.trajectories]
    record = records[0]
    assert [step.continues for step in record.steps] == [None, 0, 1]
    assert [len(step.messages) for step in record.steps] == [2, 1, 1]
    assert record.messages_of(2) == list(trajectory.steps[2].messages)
    (tmp_path / TRAJECTORIES).write_text("\n".join(own.model_dump_json() for own in records))
    experiment = ExperimentConfig.model_validate(
        {"name": "e", "model": {"path": "p"}, "training": {"group_size": 2}}
    )
    (again,) = read_groups(tmp_path, experiment, encoder, Problems()).groups
    assert [step.prompt_ids for step in again.steps] == [step.prompt_ids for step in group.steps]
    with pytest.raises(ValueError, match="step 0 continues 0"):
        step = record.steps[0].model_copy(update={"continues": 0})
        TrajectoryRecord.model_validate(record.model_dump() | {"steps": [step.model_dump()]})


def test_without_words_of_its_own_an_environment_says_its_observations_alone():
    provider = CorridorProvider()
    first = PromptParts("walk", (), 0, "You stand at 0.", ("forward",))
    assert turn_messages(provider, first) == provider.messages(first)
    later = replace(first, num_past_turns=3, observation="You stand at 3.")
    assert turn_messages(provider, later) == ({"role": "user", "content": "You stand at 3."},)


def test_actions_that_an_environment_of_gymnasium_changes_are_named_again():
    args = {"id": "counting_env:Counting-v0", "description": "Count.", "actions": ["up", "down"]}
    provider = make_registered("gymnasium", args)
    first = PromptParts("Count.", (), 0, "0 of 2", ("up", "down"))
    assert turn_messages(provider, first) == provider.messages(first)
    said = [
        turn_messages(provider, replace(first, num_past_turns=1, admissible_actions=actions))[0]["content"]
        for actions in (("up", "down"), (), ("down",))
    ]
    assert said == ["0 of 2", "0 of 2", "0 of 2\nOne of: down."]


@pytest.mark.parametrize("make_provider", [make_alfworld, make_webshop])
def test_built_in_environments_say_their_task_once_and_then_what_is_seen_and_may_be_done(
    make_provider: Callable,
):
    provider = make_provider({})
    first = PromptParts("Find a mug", (), 0, "You see a shelf 1.", ("look", "go to shelf 1"))
    system, user = turn_messages(provider, first)
    assert (
        "latest turns" in provider.messages(first)[0]["content"] and "latest turns" not in system["content"]
    )
    seen = "You see: You see a shelf 1.\nAdmissible actions: look, go to shelf 1"
    assert user == {"role": "user", "content": f"Task: Find a mug\n{seen}"}
    assert turn_messages(provider, replace(first, num_past_turns=1)) == ({"role": "user", "content": seen},)
