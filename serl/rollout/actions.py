"""Where a response states its action: as characters for the environment, as sampled tokens for the teacher.

Departure from SERL (arXiv 2605.19447): the published code tokenises the action's text again to find its
tokens. Here the ids the sampler produced are decoded one by one and keep their own character offsets, so a
token is part of the action exactly if it contributes to one of the action's characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serl.rollout.token_offsets import token_offsets

# What the environment, and later prompts, see of a response that states no action: its last characters.
UNTAGGED_RESPONSE_CHARACTERS = 100

# Only `<action …>` has attributes: elsewhere a later `>` may be an arrow or a comparison in the reasoning.
# The bare `action>` and `[action>` forgive a wrong first token: of a tag that is closed before anything else
# opens, or of the whole response.
_UP_TO_ANOTHER_TAG = r"((?:(?!</?action\b|\[action>|</?think>).)*)"
_TAGGED_ACTION = re.compile(
    r"<action(?:\s[^<>]*)?>(.*?)(?:</action>|\Z)"
    rf"|(?<![\w/<])action>{_UP_TO_ANOTHER_TAG}</action>"
    rf"|\A\s*\[?action>{_UP_TO_ANOTHER_TAG}\Z",
    re.IGNORECASE | re.DOTALL,
)
_CALL_ACTION = re.compile(r"\b(?:search|click)\[[^\]]*\]", re.IGNORECASE)


def tagged_action_spans(text: str) -> list[tuple[int, int]]:
    """Character spans ``[start, end)`` of the contents of all action tags, unstripped, in order.

    A content ends at the nearest ``</action>`` or with the text. Tags around nothing but white space state no
    action.
    """
    contents = [match.span(match.lastindex or 0) for match in _TAGGED_ACTION.finditer(text)]
    return [(start, end) for start, end in contents if text[start:end].strip()]


def action_spans(text: str) -> list[tuple[int, int]]:
    """Character spans ``[start, end)`` of the actions in one response, in order.

    Every tagged action counts, also inside ``<think>``. Only without any tag, every ``search[...]`` and
    ``click[...]`` is an action, name and brackets included.
    """
    return tagged_action_spans(text) or [match.span() for match in _CALL_ACTION.finditer(text)]


def parse_action(text: str) -> str | None:
    """The first action of a response, stripped; None if the response states none."""
    spans = action_spans(text)
    if not spans:
        return None
    start, end = spans[0]
    return text[start:end].strip()


@dataclass(frozen=True, slots=True)
class ResponseAction:
    """``stated``: the first action of a response (None: it states none); ``sent``: what the environment gets.

    Of a response that states no action the environment gets the end, so that it can answer it.
    """

    stated: str | None
    sent: str

    @classmethod
    def of(cls, response_text: str) -> ResponseAction:
        stated = parse_action(response_text)
        if stated is None:
            return cls(None, response_text.strip()[-UNTAGGED_RESPONSE_CHARACTERS:])
        return cls(stated, stated)

    def is_valid(self, info: dict[str, Any]) -> bool:
        """Whether an action was stated and, by the environment's answer with this ``info``, admissible."""
        return self.stated is not None and bool(info["action_valid"])


def action_token_mask(token_ids: Sequence[int], tokenizer: Any) -> list[bool]:
    """Which sampled tokens overlap the action's characters, one entry per id.

    A token that holds only some bytes of a character overlaps that character. Special tokens, which leave
    no text, are never part of an action. ``tokenizer`` is a Hugging Face tokenizer.
    """
    text, offsets = token_offsets(token_ids, tokenizer)
    spans = action_spans(text)
    return [
        start < end and any(start < action_end and action_start < end for action_start, action_end in spans)
        for start, end in offsets
    ]
