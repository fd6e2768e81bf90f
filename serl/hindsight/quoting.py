"""Steps as quotations."""

from __future__ import annotations

import re
from collections.abc import Sequence

from serl.config import HindsightSection
from serl.hindsight.evidence import QuotedStep
from serl.types import Step

# A chat template may open the thinking at the end of the prompt; then a response only closes it.
_THINKING = re.compile(r"\A(?:(?!<think>).)*?</think>\s*|<think>.*?</think>\s*", re.DOTALL | re.IGNORECASE)
_END_OF_THINKING = re.compile(r"</think>\s*", re.IGNORECASE)


def without_thinking(response: str) -> str:
    """``response`` without its ``<think>…</think>`` parts, one that the prompt opened included."""
    # Behind the last end nothing is thinking, and looking for an end from every beginning would take long.
    end = max((match.end() for match in _END_OF_THINKING.finditer(response)), default=0)
    return _THINKING.sub("", response[:end]) + response[end:]


def quote_steps(
    steps: Sequence[Step], start: int, max_steps: int, settings: HindsightSection
) -> tuple[QuotedStep, ...]:
    """``max_steps`` steps from ``start`` on, or all of them if ``max_steps`` is 0."""
    end = len(steps) if max_steps == 0 else min(len(steps), start + max_steps)
    return tuple(_quote(steps[index], index, settings) for index in range(start, end))


def _quote(step: Step, index: int, settings: HindsightSection) -> QuotedStep:
    response = without_thinking(step.response_text) if settings.remove_thinking else step.response_text
    prompt = step.prompt_text if settings.trajectory_format == "observation_action" else None
    return QuotedStep(index, prompt, response.strip())
