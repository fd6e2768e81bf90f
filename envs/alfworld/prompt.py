"""The prompt of one ALFWorld step: what never changes, then the task, then what changes every step."""

from __future__ import annotations

from envs.base import PromptParts

_INTRODUCTION = (
    "You act in a household that is described in text. Every turn shows {shown}; you answer with one action. "
    "Receptacles must be gone to before anything in them can be used, and you carry one object at a time."
)
_WINDOW = "your task, your latest turns and what you see now"
_CONVERSATION = "what you see now"
_ACTION_FORMS = (
    "Actions: look; inventory; go to R; open R; close R; take O from R; move O to R; use O; heat O with R; "
    "cool O with R; clean O with R; slice O with O; examine O. R is a receptacle and O an object, both named "
    "with their number, as in: shelf 1."
)
_ADMISSIBLE = "Choose one of the admissible actions and copy it letter for letter."
_ANSWER_FORMAT = (
    "Think briefly, then act, in exactly this form:\n"
    "<think>your reasoning</think><action>your action</action>"
)
_NOT_OFFERED = frozenset({"help"})
_MAX_QUOTED_ACTION = 120


def system_message(show_admissible_actions: bool, is_conversation: bool = False) -> str:
    """The static first message."""
    introduction = _INTRODUCTION.format(shown=_CONVERSATION if is_conversation else _WINDOW)
    choice = _ADMISSIBLE if show_admissible_actions else _ACTION_FORMS
    return f"{introduction}\n{choice}\n{_ANSWER_FORMAT}"


def user_message(parts: PromptParts, show_admissible_actions: bool) -> str:
    """Task, quoted turns, observation and, if asked for, the admissible actions; one item a line."""
    lines = [f"Task: {parts.task_description}"]
    if parts.num_past_turns:
        lines.append(f"Turns so far: {parts.num_past_turns}")
    for turn in parts.history:
        lines += [f"You saw: {turn.observation}", f"You did: {shorten(turn.action)}"]
    return "\n".join([*lines, answer_message(parts, show_admissible_actions)])


def answer_message(parts: PromptParts, show_admissible_actions: bool) -> str:
    """What the environment answered to the last action."""
    lines = [f"You see: {parts.observation}"]
    if show_admissible_actions:
        offered = [action for action in parts.admissible_actions if action not in _NOT_OFFERED]
        lines.append(f"Admissible actions: {', '.join(offered)}")
    return "\n".join(lines)


def messages(parts: PromptParts, show_admissible_actions: bool) -> tuple[dict[str, str], ...]:
    """Chat messages; the system message is the same for every step of every task."""
    return (
        {"role": "system", "content": system_message(show_admissible_actions)},
        {"role": "user", "content": user_message(parts, show_admissible_actions)},
    )


def turn_messages(parts: PromptParts, show_admissible_actions: bool) -> tuple[dict[str, str], ...]:
    """What a turn adds to a conversation: the first one the system message and the task, too."""
    if parts.num_past_turns:
        return ({"role": "user", "content": answer_message(parts, show_admissible_actions)},)
    return (
        {"role": "system", "content": system_message(show_admissible_actions, is_conversation=True)},
        {"role": "user", "content": user_message(parts, show_admissible_actions)},
    )


def shorten(action: str) -> str:
    """An action on one line and of bounded length: an answer without an action can be a whole essay."""
    folded = " ".join(action.split())
    return folded if len(folded) <= _MAX_QUOTED_ACTION else folded[: _MAX_QUOTED_ACTION - 1] + "…"
