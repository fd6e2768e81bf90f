"""The prompts of one episode, one after another: windows of its latest turns, or its whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, Self

from envs.base import EnvProvider, PromptParts, text_messages, turn_messages
from serl.config import ExperimentConfig
from serl.config.sampling import PromptForm
from serl.rollout.conversation import AnsweredPrompt, ChatMessage, RenderedPrompt
from serl.rollout.env_calls import foreign_code
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import Prompt, PromptEncoder, PromptOrigin, fit_prompt


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """``form`` is ``rollout.prompt``; lengths in tokens, all as in the sections ``env`` and ``rollout``."""

    form: PromptForm
    history_length: int
    max_prompt_length: int
    old_observation_length: int
    kept_history_share: float

    @classmethod
    def of(cls, experiment: ExperimentConfig) -> Self:
        rollout = experiment.rollout
        return cls(
            rollout.prompt,
            experiment.env.history_length,
            rollout.max_prompt_length,
            rollout.old_observation_length,
            rollout.kept_history_share,
        )


# What decoding writes for a character of which a part is missing.
_CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class EpisodePrompts(Protocol):
    """Asked for a prompt and told the response to it, in turns."""

    def next(self, state: EpisodeState) -> Prompt | None:
        """The prompt of the step that comes; None if it is too long whatever is left out.

        Raises EpisodeFailure for what environment, chat template or tokenizer raise.
        """
        ...

    def answered(self, response_ids: list[int]) -> None:
        """Takes in what was sampled after the last prompt."""
        ...

    def copy(self) -> Self:
        """Others that go their own way from here."""
        ...


def episode_prompts(
    provider: EnvProvider, encoder: PromptEncoder, settings: PromptSettings, about: str
) -> EpisodePrompts:
    """Those of a new episode of ``provider``; failures are said to be of ``about``."""
    kind = ConversationPrompts if settings.form == "conversation" else WindowPrompts
    return kind(provider, encoder, settings, about)


class WindowPrompts:
    """Each prompt is rendered by itself, with the latest turns in it."""

    def __init__(
        self, provider: EnvProvider, encoder: PromptEncoder, settings: PromptSettings, about: str
    ) -> None:
        self._provider = provider
        self._encoder = encoder
        self._settings = settings
        self._about = about

    def next(self, state: EpisodeState) -> Prompt | None:
        parts = _parts(state, self._settings.history_length, self._about)
        return fit_prompt(parts, self._render, self._encode, self._settings.max_prompt_length)

    def answered(self, response_ids: list[int]) -> None:
        """Nothing: the next prompt quotes the action, not the response."""

    def copy(self) -> Self:
        return self

    def _render(self, parts: PromptParts) -> tuple[ChatMessage, ...]:
        with _environments_messages(self._about):
            return text_messages(self._provider.messages(parts))

    def _encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        with _template_or_tokenizer(self._about):
            return self._encoder.encode(messages)


@dataclass(slots=True)
class _Turn:
    """What the environment said, and the response to it, empty until there is one."""

    messages: tuple[ChatMessage, ...]
    response_ids: list[int]
    is_shortened: bool = False


class ConversationPrompts:
    """Each prompt continues the ids of the one before and the response to it.

    One that is longer than ``max_prompt_length`` is cut until ``kept_history_share`` of the room for history
    is filled, so that the next ones can be continued again: its oldest observations, but the first, are
    shortened to ``old_observation_length`` (0: they are not), and then its oldest turns left out.
    """

    def __init__(
        self, provider: EnvProvider, encoder: PromptEncoder, settings: PromptSettings, about: str
    ) -> None:
        self._provider = provider
        self._encoder = encoder
        self._settings = settings
        self._about = about
        self._opening: tuple[ChatMessage, ...] = ()
        self._turns: list[_Turn] = []
        self._num_left_out = 0
        self._prompt: RenderedPrompt | None = None
        self._answered: AnsweredPrompt | None = None

    def next(self, state: EpisodeState) -> Prompt | None:
        parts = _parts(state, 0, self._about)
        with _environments_messages(self._about):
            new = text_messages(turn_messages(self._provider, parts))
        self._opening = self._opening or new
        self._turns.append(_Turn(new, []))
        with _template_or_tokenizer(self._about):
            prompt, origin = self._whole(new)
            num_shortened = num_dropped = 0
            if len(prompt.token_ids) > self._settings.max_prompt_length:
                origin = "cut"
                prompt, num_shortened, num_dropped = self._cut(prompt)
        if len(prompt.token_ids) > self._settings.max_prompt_length:
            return None
        self._prompt = prompt
        return Prompt(prompt.messages, prompt.token_ids, num_dropped, num_shortened, origin)

    def answered(self, response_ids: list[int]) -> None:
        assert self._prompt is not None, "a response comes after a prompt"
        self._turns[-1].response_ids = response_ids
        with _template_or_tokenizer(self._about):
            self._answered = AnsweredPrompt.of(self._prompt, response_ids, self._encoder)

    def copy(self) -> Self:
        other = copy(self)
        other._turns = [replace(turn) for turn in self._turns]
        return other

    def _whole(self, new: tuple[ChatMessage, ...]) -> tuple[RenderedPrompt, PromptOrigin]:
        if self._answered is None:
            return self._rendered(new), "rendered"
        continued = self._answered.continued(new, (), self._encoder)
        if continued is not None:
            return continued, "continuation"
        return self._rendered((*self._answered.messages, *new)), "rewritten"

    def _rendered(self, messages: tuple[ChatMessage, ...]) -> RenderedPrompt:
        text = self._encoder.render(messages)
        return RenderedPrompt(self._encoder.ids(text), text, messages)

    def _cut(self, whole: RenderedPrompt) -> tuple[RenderedPrompt, int, int]:
        """The prompt, how many observations were shortened for it, and how many turns left out."""
        if len(self._turns) == 1:
            return whole, 0, 0
        least = self._num_tokens(self._opening) + self._num_tokens(self._turns[-1].messages)
        room = max(self._settings.max_prompt_length - least, 0)
        aim = least + int(self._settings.kept_history_share * room)
        num_shortened = self._shorten_observations(len(whole.token_ids) - aim)
        prompt = self._as_sampled() if num_shortened else whole
        num_dropped = self._num_to_drop(len(prompt.token_ids) - aim)
        if num_dropped:
            self._drop(num_dropped)
            prompt = self._as_sampled()
        last = len(self._turns) - 1
        if last and len(prompt.token_ids) > self._settings.max_prompt_length:
            self._drop(last)
            return self._as_sampled(), num_shortened, num_dropped + last
        return prompt, num_shortened, num_dropped

    def _as_sampled(self) -> RenderedPrompt:
        """The prompt of all turns anew, each response by its own ids where the chat template lets it."""
        prompt = self._rendered(self._turns[0].messages)
        for before, turn in pairwise(self._turns):
            answered = AnsweredPrompt.of(prompt, before.response_ids, self._encoder)
            continued = answered.continued(turn.messages, (), self._encoder)
            prompt = continued or self._rendered((*answered.messages, *turn.messages))
        return prompt

    def _shorten_observations(self, excess: int) -> int:
        """Shortens the oldest until ``excess`` tokens are saved; returns how many it shortened."""
        length, num_shortened = self._settings.old_observation_length, 0
        for turn in self._turns[1:-1] if length else ():
            if excess <= 0:
                break
            if turn.is_shortened:
                continue
            before = self._num_tokens(turn.messages)
            turn.messages = tuple(self._shortened(message, length) for message in turn.messages)
            turn.is_shortened = True
            num_saved = before - self._num_tokens(turn.messages)
            excess -= num_saved
            num_shortened += num_saved > 0
        return num_shortened

    def _shortened(self, message: ChatMessage, length: int) -> ChatMessage:
        ids = self._encoder.ids(message["content"])
        if len(ids) <= length:
            return message
        kept = f"{self._encoder.decode(ids[:length]).rstrip(_CUT_CHARACTER)}…"
        return {**message, "content": kept} if self._encoder.num_tokens(kept) < len(ids) else message

    def _num_to_drop(self, excess: int) -> int:
        """How many turns at least hold ``excess`` tokens, the opening aside."""
        for index, turn in enumerate(self._turns):
            if excess <= 0 or index == len(self._turns) - 1:
                return index
            excess -= len(turn.response_ids) + (self._num_tokens(turn.messages) if index else 0)
        return 0

    def _drop(self, num_turns: int) -> None:
        """The oldest turns go; what was seen then comes behind the opening, which stays."""
        self._num_left_out += num_turns
        first = self._turns[num_turns]
        *others, last = self._opening
        seen = (message["content"] for message in first.messages)
        told = "\n\n".join((last["content"], f"(Left out here: {self._num_left_out} turns.)", *seen))
        first.messages = (*others, {**last, "content": told})
        del self._turns[:num_turns]

    def _num_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return sum(self._encoder.num_tokens(message["content"]) for message in messages)


def _parts(state: EpisodeState, history_length: int, about: str) -> PromptParts:
    with foreign_code("environment_error", f"{about}: what the environment said"):
        return state.prompt_parts(history_length)


def _environments_messages(about: str) -> AbstractContextManager[None]:
    return foreign_code("prompt_error", f"{about}: the environment's messages")


def _template_or_tokenizer(about: str) -> AbstractContextManager[None]:
    return foreign_code("prompt_error", f"{about}: the model's chat template or tokenizer")
