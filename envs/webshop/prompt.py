"""The prompt of one WebShop step: what never changes, then the task, then what changes every step."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.base import PromptParts
from envs.webshop.pages import SEPARATOR

_INTRODUCTION = (
    "You shop in an online store that is described in text. Every turn shows {shown}the page you are on; you "
    "answer with one action. Search for products, open one, choose the options asked for, check that it "
    "fits, and buy it. What you have chosen on a product's page does not show there."
)
_WINDOW, _CONVERSATION = "what to buy, your latest turns and ", ""
_ACTION_FORMS = (
    "Actions: search[words] looks for products, from any page; click[name] presses a button, opens a product "
    "by its id or chooses an option, by the name on the page."
)
_ADMISSIBLE = "Choose one of the admissible actions; a search is with words of your own."
_ANSWER_FORMAT = (
    "Think briefly, then act, in exactly this form:\n"
    "<think>your reasoning</think><action>your action</action>"
)
_MAX_QUOTED_ACTION = 120
_HISTORY_SHARE = 4
_MORE = "…"
_TOKEN = re.compile(r"\w{1,6}|[^\w\s]")


def system_message(show_admissible_actions: bool, is_conversation: bool = False) -> str:
    """The static first message."""
    lines = [_INTRODUCTION.format(shown=_CONVERSATION if is_conversation else _WINDOW), _ACTION_FORMS]
    if show_admissible_actions:
        lines.append(_ADMISSIBLE)
    return "\n".join([*lines, _ANSWER_FORMAT])


def user_message(parts: PromptParts, show_admissible_actions: bool, max_observation_tokens: int) -> str:
    """Task, quoted turns, page and, if asked for, the admissible actions; one item a line.

    Pages longer than ``max_observation_tokens`` are trimmed, quoted ones to a quarter of that.
    """
    lines = [f"Task: {parts.task_description}"]
    if parts.num_past_turns:
        lines.append(f"Turns so far: {parts.num_past_turns}")
    for turn in parts.history:
        seen = trim_observation(turn.observation, max_observation_tokens // _HISTORY_SHARE)
        lines += [f"You saw: {seen}", f"You did: {shorten(turn.action)}"]
    return "\n".join([*lines, answer_message(parts, show_admissible_actions, max_observation_tokens)])


def answer_message(parts: PromptParts, show_admissible_actions: bool, max_observation_tokens: int) -> str:
    """What the shop answered to the last action."""
    lines = [f"You see: {trim_observation(parts.observation, max_observation_tokens)}"]
    if show_admissible_actions:
        listed = trim_actions(parts.admissible_actions, max_observation_tokens)
        lines.append(f"Admissible actions: {', '.join(listed)}")
    return "\n".join(lines)


def messages(
    parts: PromptParts, show_admissible_actions: bool, max_observation_tokens: int
) -> tuple[dict[str, str], ...]:
    """Chat messages; the system message is the same for every step of every task."""
    return (
        {"role": "system", "content": system_message(show_admissible_actions)},
        {"role": "user", "content": user_message(parts, show_admissible_actions, max_observation_tokens)},
    )


def turn_messages(
    parts: PromptParts, show_admissible_actions: bool, max_observation_tokens: int
) -> tuple[dict[str, str], ...]:
    """What a turn adds to a conversation: the first one the system message and what to buy, too."""
    if parts.num_past_turns:
        answer = answer_message(parts, show_admissible_actions, max_observation_tokens)
        return ({"role": "user", "content": answer},)
    return (
        {"role": "system", "content": system_message(show_admissible_actions, is_conversation=True)},
        {"role": "user", "content": user_message(parts, show_admissible_actions, max_observation_tokens)},
    )


def estimate_tokens(text: str) -> int:
    """About how many tokens a language model's tokenizer makes of ``text``: six letters or one sign each."""
    return sum(1 for _ in _TOKEN.finditer(text))


def trim_observation(observation: str, max_tokens: int) -> str:
    """An observation of about ``max_tokens`` tokens at most.

    The longest texts of the page are cut first, all to the same length, so that buttons, prices and titles
    stay; if even that leaves too much, texts in the middle of the page go, and their number is told.
    """
    if estimate_tokens(observation) <= max_tokens:
        return observation
    texts = observation.split(SEPARATOR)
    lengths = [estimate_tokens(text) + _SEPARATOR_TOKENS for text in texts]
    longest = _common_length(lengths, max_tokens)
    if longest > _SHORTEST_CUT:
        limit = longest - _SEPARATOR_TOKENS
        return SEPARATOR.join(_cut(text, limit) for text in texts)
    return _without_middle([_cut(text, _SHORTEST_CUT) for text in texts], max_tokens)


def _without_middle(texts: Sequence[str], max_tokens: int) -> str:
    """As many texts of both ends of a page as fit, and between them how many are left out."""
    lengths = [estimate_tokens(text) + _SEPARATOR_TOKENS for text in texts]
    head, tail = 1, len(texts) - 1
    left = (
        max_tokens
        - lengths[0]
        - lengths[-1]
        - _SEPARATOR_TOKENS
        - estimate_tokens(f"{_MORE} 99 more {_MORE}")
    )
    while head < tail:
        from_head = head <= len(texts) - tail
        left -= lengths[head if from_head else tail - 1]
        if left < 0:
            break
        head, tail = (head + 1, tail) if from_head else (head, tail - 1)
    if head >= tail:
        return SEPARATOR.join(texts)
    return SEPARATOR.join([*texts[:head], f"{_MORE} {tail - head} more {_MORE}", *texts[tail:]])


def trim_actions(actions: Sequence[str], max_tokens: int) -> tuple[str, ...]:
    """The first actions, of about ``max_tokens`` tokens at most; the number of those left out is told."""
    kept: list[str] = []
    for action in actions:
        max_tokens -= estimate_tokens(action) + 1
        if max_tokens < 0:
            return (*kept, f"{_MORE} and {len(actions) - len(kept)} more of the page")
        kept.append(action)
    return tuple(kept)


def shorten(action: str) -> str:
    """An action on one line and of bounded length: an answer without an action can be a whole essay."""
    folded = " ".join(action.split())
    return folded if len(folded) <= _MAX_QUOTED_ACTION else folded[: _MAX_QUOTED_ACTION - 1] + _MORE


_SEPARATOR_TOKENS = estimate_tokens(SEPARATOR)
_SHORTEST_CUT = 12


def _common_length(lengths: Sequence[int], total: int) -> int:
    """The largest length to which all longer ones can be cut so that the sum is at most ``total``, or 0."""
    ordered = sorted(lengths)
    shorter = 0
    for index, length in enumerate(ordered):
        share = (total - shorter) // (len(ordered) - index)
        if share < length:
            return max(share, 0)
        shorter += length
    return ordered[-1]


def _cut(text: str, max_tokens: int) -> str:
    for count, token in enumerate(_TOKEN.finditer(text)):
        if count == max_tokens:
            return text[: token.start()].rstrip() + _MORE
    return text
