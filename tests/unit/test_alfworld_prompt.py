from __future__ import annotations

from envs.alfworld.prompt import shorten
from envs.alfworld.provider import make_provider
from envs.base import PromptParts, Turn


def parts_of(observation: str = "You see a shelf 1.", num_past_turns: int = 3) -> PromptParts:
    return PromptParts(
        task_description="put a mug in desk",
        history=(Turn("You arrive at desk 1.", "open desk 1"), Turn("Nothing happens.", "look")),
        num_past_turns=num_past_turns,
        observation=observation,
        admissible_actions=("go to shelf 1", "help", "look"),
    )


def test_the_prompt_begins_with_what_never_changes() -> None:
    provider = make_provider({})
    first, second = provider.messages(parts_of()), provider.messages(parts_of("You see nothing.", 9))
    assert first[0] == second[0] and first[0]["role"] == "system"
    assert "<think>" in first[0]["content"] and "<action>" in first[0]["content"]
    assert first[1]["content"].startswith("Task: put a mug in desk\n")
    assert second[1]["content"].startswith("Task: put a mug in desk\n")


def test_the_prompt_shows_turns_observation_and_admissible_actions_in_order() -> None:
    content = make_provider({}).messages(parts_of())[-1]["content"]
    assert content.splitlines() == [
        "Task: put a mug in desk",
        "Turns so far: 3",
        "You saw: You arrive at desk 1.",
        "You did: open desk 1",
        "You saw: Nothing happens.",
        "You did: look",
        "You see: You see a shelf 1.",
        "Admissible actions: go to shelf 1, look",
    ]


def test_admissible_actions_can_be_left_out_and_are_then_described() -> None:
    system, user = make_provider({"show_admissible_actions": False}).messages(parts_of())
    assert "Admissible actions" not in user["content"]
    assert "take O from R" in system["content"]


def test_a_quoted_action_is_one_short_line() -> None:
    assert shorten("  go to\n shelf 1 ") == "go to shelf 1"
    assert len(shorten("word " * 200)) == 120
