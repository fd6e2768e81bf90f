from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.base import Turn
from serl.rollout.actions import ResponseAction
from serl.rollout.episode_state import EpisodeState


def info(**changes: Any) -> dict[str, Any]:
    usual = {"task_description": "walk", "admissible_actions": ["left", "right"], "success": False}
    return usual | changes


def walked(num_turns: int) -> EpisodeState:
    state = EpisodeState("at 0", info())
    for turn in range(num_turns):
        state.advance(f"step {turn}", (f"at {turn + 1}", 0.5, False, False, info()))
    return state


def test_an_answer_makes_a_turn_of_what_was_seen_and_done():
    state = EpisodeState("at 0", info())
    reward = state.advance("right", ("at 1", 2.0, False, True, info(admissible_actions=["left"])))
    assert (reward, state.reward, state.observation) == (2.0, 2.0, "at 1")
    assert state.turns == [Turn("at 0", "right")]
    assert (state.ended, state.terminated, state.truncated, state.success) == (True, False, True, False)
    state.advance("left", ("at 0", -0.5, True, False, info(success=True)))
    assert (state.reward, state.terminated, state.truncated, state.success) == (1.5, True, False, True)


@pytest.mark.parametrize(
    ("history_length", "quoted"),
    [(0, []), (2, ["step 1", "step 2"]), (9, ["step 0", "step 1", "step 2"])],
)
def test_a_prompt_quotes_the_last_turns_and_counts_all(history_length: int, quoted: list[str]):
    parts = walked(3).prompt_parts(history_length)
    assert [turn.action for turn in parts.history] == quoted
    assert (parts.task_description, parts.num_past_turns, parts.observation) == ("walk", 3, "at 3")
    assert parts.admissible_actions == ("left", "right")


def test_half_a_surrogate_pair_from_an_environment_is_no_part_of_a_prompt():
    state = EpisodeState("a cut title \ud83d", info(task_description="whole \U0001f642"))
    told = info(admissible_actions=["click[\udc00]"], feedback="\ud800", categories=("\ud800", 3))
    state.advance("look", ("cut \ud83d, whole \ud83d\ude42", 0.0, False, False, told))
    parts = state.prompt_parts(1)
    assert parts.history[0].observation == "a cut title \ufffd"
    assert parts.observation == "cut \ufffd, whole \U0001f642"
    assert parts.admissible_actions == ("click[\ufffd]",)
    assert state.info["feedback"] == "\ufffd" and state.info["categories"] == ("\ufffd", 3)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (1.0, info(metrics={"score": None})),
            "info['metrics'] is {'score': None}, expected numbers by name",
        ),
        ((1.0, info(metrics={5: 1.0})), "info['metrics'] is {5: 1.0}, expected numbers by name"),
        ((1.0, info(metrics=None)), "info['metrics'] is None, expected numbers by name"),
        ((1.0, info(metrics={"score": 10**400})), "int too large to convert to float"),
        ((1.0, info(feedback=5)), "info['feedback'] is 5, expected str or None"),
        ((1.0, {"task_description": "walk"}), "'success'"),
        ((float("nan"), info()), "the reward is nan"),
    ],
)
def test_an_answer_that_would_harm_others_later_is_refused(answer: tuple[float, dict[str, Any]], words: str):
    reward, told = answer
    with pytest.raises((TypeError, KeyError, ValueError, OverflowError)) as refused:
        walked(1).advance("right", ("at 2", reward, False, False, told))
    assert str(refused.value) == words


def test_metrics_are_numbers_under_names_that_can_be_written():
    measured = info(metrics={"score\ud800": np.float32(0.5), "won": np.bool_(True)})
    assert EpisodeState("at 0", measured).info["metrics"] == {"score\ufffd": 0.5, "won": 1.0}
    assert EpisodeState("at 0", info()).info["metrics"] == {}


def test_a_copy_goes_its_own_way():
    state = walked(1)
    other = state.copy()
    other.advance("right", ("elsewhere", 1.0, True, False, info()))
    assert (state.observation, len(state.turns), state.reward, state.ended) == ("at 1", 1, 0.5, False)
    assert (other.observation, len(other.turns), other.reward, other.ended) == ("elsewhere", 2, 1.5, True)


@pytest.mark.parametrize(
    ("response", "stated", "sent"),
    [
        ("<think>so</think><action> go left </action>", "go left", "go left"),
        ("I would go left \n", None, "I would go left"),
        ("a" * 50 + "b" * 100, None, "b" * 100),
    ],
)
def test_a_response_is_sent_as_its_action_or_as_its_end(response: str, stated: str | None, sent: str):
    action = ResponseAction.of(response)
    assert action == ResponseAction(stated, sent)
    assert action.is_valid({"action_valid": True}) == (stated is not None)
    assert not action.is_valid({"action_valid": False})
