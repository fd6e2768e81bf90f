"""What a judge's completion is worth: its text, or the reason why there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import BaseModel, Field, ValidationError

from serl.hindsight.judge_request import REQUEST_TITLES
from serl.hindsight.sources.judge_current_traj import TITLE

_NO_WORDS = frozenset(
    {"", "none", "null", "n a", "na", "nil", "nothing", "not applicable", "no comment", "no answer"}
)


class UnusableAnswer(Exception):
    """Nothing that a teacher could read. ``reason`` is counted; ``detail`` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of one request to the judge.

    ``text`` is None where no usable answer came; ``reason`` and ``detail`` say why. ``seconds``: from the
    first request sent to the last answer, 0 if ``cached``. ``retries``: requests beyond the first.
    """

    text: str | None
    reason: str = ""
    detail: str = ""
    cached: bool = False
    by_fallback: bool = False
    seconds: float = 0.0
    retries: int = 0


class _Message(BaseModel):
    """``reasoning`` has two names among servers."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _ChatCompletion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


def usable_text(body: bytes) -> str:
    """The answer in a chat completion's JSON, without thinking.

    Raises UnusableAnswer: ``malformed`` (no chat completion), ``only_reasoning`` (the tokens ran out before
    the answer began), ``empty``, ``nonsense`` (``None``, ``N/A``, a title given back, no word at all).
    """
    try:
        choice = _ChatCompletion.model_validate_json(body).choices[0]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UnusableAnswer("malformed", f"no chat completion: {first['msg']}") from None
    message = choice.message
    content = message.content or ""
    text = _after_thinking(content)
    if not text:
        thought = bool(content.strip() or message.reasoning_content or message.reasoning)
        if thought or choice.finish_reason == "length":
            raise UnusableAnswer("only_reasoning", "max_tokens ran out before an answer began")
        raise UnusableAnswer("empty", f"no text, finish_reason {choice.finish_reason}")
    if _says_nothing(text):
        raise UnusableAnswer("nonsense", repr(text[:80]))
    return text


def _after_thinking(content: str) -> str:
    """A chat template may have opened the thinking, and tokens may run out before it closes."""
    answer = content.rpartition("</think>")[2]
    return answer.partition("<think>")[0].strip()


def _says_nothing(text: str) -> bool:
    words = _words(text)
    for title in map(_words, (*REQUEST_TITLES, TITLE)):
        if words.startswith(title):
            words = words.removeprefix(title).strip()
    return words in _NO_WORDS


def _words(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text.lower()).split())
