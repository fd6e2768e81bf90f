"""Prompts that are whole conversations: how long they grow, and whether the chat template continues them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from serl.config import ExperimentConfig
from serl.rollout.conversation import AnsweredPrompt, ChatMessage, RenderedPrompt
from serl.rollout.prompt import PromptEncoder
from serl.run.preflight.finding import Finding

_THOUGHT, _ACTION = "<think>I should act.</think>", "<action>look</action>"


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a conversation of a task begins with, and what each of its next turns adds."""

    opening: tuple[ChatMessage, ...]
    turns: tuple[tuple[ChatMessage, ...], ...]


def examine_conversations(
    experiment: ExperimentConfig, beginnings: Sequence[Beginning], encoder: PromptEncoder, folder: Path
) -> list[Finding]:
    """``beginnings`` have a turn each at least. Raises whatever the chat template in ``folder`` does."""
    continued = {said: _added(beginnings[0], said, encoder) for said in (_ACTION, _THOUGHT + _ACTION)}
    findings: list[Finding] = []
    if None in continued.values():
        what = "responses" if continued[_ACTION] is None else "responses with a thought"
        text = (
            f"rollout.prompt = conversation: the chat template in {folder} writes {what} otherwise once they "
            "are history: prompts that follow share few tokens with those before, and are counted in "
            "runners/rewritten_prompts"
        )
        findings.append(Finding("ok", "conversations", text))
    # Where nothing can be continued, what the template writes around messages is left out.
    marks = (continued[_ACTION] or 0) - _num_tokens(beginnings[0].turns[0], encoder)
    first = max(len(encoder.encode(beginning.opening)) for beginning in beginnings)
    turns = [turn for beginning in beginnings for turn in beginning.turns]
    a_turn = mean(_num_tokens(turn, encoder) + max(marks, 0) for turn in turns)
    return [*findings, _judged(experiment, first, a_turn)]


def _added(beginning: Beginning, said: str, encoder: PromptEncoder) -> int | None:
    """Tokens that the first turn after the response ``said`` adds; None if it continues no tokens."""
    text = encoder.render(beginning.opening)
    opening = RenderedPrompt(encoder.ids(text), text, beginning.opening)
    answered = AnsweredPrompt.of(opening, encoder.ids(said), encoder)
    prompt = answered.continued(beginning.turns[0], (), encoder)
    return None if prompt is None else len(prompt.token_ids) - len(answered.token_ids)


def _num_tokens(messages: Sequence[ChatMessage], encoder: PromptEncoder) -> int:
    return sum(encoder.num_tokens(message["content"]) for message in messages)


def _judged(experiment: ExperimentConfig, first: int, a_turn: float) -> Finding:
    rollout, max_steps = experiment.rollout, experiment.env.max_steps
    a_step = a_turn + rollout.max_response_length
    longest = round(first + (max_steps - 1) * a_step)
    text = (
        f"a turn adds about {a_turn:.0f} tokens and a response of up to {rollout.max_response_length}: with "
        f"env.max_steps = {max_steps} prompts have up to about {longest}, of rollout.max_prompt_length = "
        f"{rollout.max_prompt_length}"
    )
    if longest > rollout.max_prompt_length:
        num_whole = 1 + int(max(rollout.max_prompt_length - first, 0) / a_step)
        text += f"; from step {num_whole + 1} on they may have to be cut"
    return Finding("ok", "conversations", text)
