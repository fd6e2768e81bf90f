"""Evidence as the text a teacher reads after the step's own prompt.

A context can be kept within a budget. The oldest quoted steps go first, and the text says how many are left
out; texts (feedback, observations, a judge's words), the table of candidate actions and the newest step of
each quotation always stay, and so does the prompt, which is not part of the context. What that leaves may
still exceed the budget: the statistics say so and the caller decides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Set
from dataclasses import dataclass

from serl.hindsight.evidence import Candidate, Evidence, FeedbackPair, QuotedStep, StepEvidence
from serl.hindsight.sources import source_traits

_OPENING = (
    "Hindsight: the following became known only after the action was taken. "
    "Use it to judge which action is right now; do not mention it."
)
_FEEDBACK_TITLE = "Actions tried in this situation and the environment's answers"
_CANDIDATES_TITLE = "Actions tried in this situation, and how the attempts that took them ended"


@dataclass(frozen=True, slots=True)
class ContextStats:
    """``num_tokens``: the context's length, None if nothing counted it. ``over_budget``: still too long."""

    num_tokens: int | None
    num_quoted_steps: int
    num_dropped_steps: int
    over_budget: bool


def render_context(
    evidence: StepEvidence,
    count_tokens: Callable[[str], int] | None = None,
    max_context_tokens: int | None = None,
) -> tuple[str | None, ContextStats]:
    """The context of one step, None if it has no evidence, and what became of its quotations.

    ``count_tokens`` measures a text (``len`` makes the budget one of characters). Without
    ``max_context_tokens`` nothing is dropped. Raises ValueError for a budget without ``count_tokens``.
    """
    if max_context_tokens is not None and count_tokens is None:
        raise ValueError("max_context_tokens needs count_tokens")
    if not evidence:
        return None, ContextStats(None, 0, 0, False)
    num_quoted = sum(len(section.quoted_steps) for section in _sections(evidence))
    text = _render(evidence, frozenset())
    if count_tokens is None:
        return text, ContextStats(None, num_quoted, 0, False)
    num_tokens = count_tokens(text)
    if max_context_tokens is None or num_tokens <= max_context_tokens:
        return text, ContextStats(num_tokens, num_quoted, 0, False)

    droppable = _droppable_steps(evidence)
    num_dropped = bisect_left(
        range(len(droppable)),
        True,
        key=lambda num: count_tokens(_render(evidence, frozenset(droppable[:num]))) <= max_context_tokens,
    )
    text = _render(evidence, frozenset(droppable[:num_dropped]))
    num_tokens = count_tokens(text)
    return text, ContextStats(
        num_tokens, num_quoted - num_dropped, num_dropped, over_budget=num_tokens > max_context_tokens
    )


def quote_text(step: QuotedStep) -> str:
    """One quoted step as lines of text."""
    heading = f"Step {step.step_index + 1}"
    if step.prompt is None:
        return f"{heading}: {step.response}"
    return f"{heading}\nPrompt: {step.prompt}\nResponse: {step.response}"


# A quotation's address: its section, counted over candidates then parts, and its place in the section.
_Address = tuple[int, int]


def _sections(evidence: StepEvidence) -> list[Evidence]:
    return [
        *(section for candidate in evidence.candidates for section in candidate.evidence),
        *evidence.parts,
    ]


def _droppable_steps(evidence: StepEvidence) -> list[_Address]:
    """Addresses of all quoted steps but the newest of each section, the oldest first."""
    addresses = [
        (step.step_index, section_index, position)
        for section_index, section in enumerate(_sections(evidence))
        for position, step in enumerate(section.quoted_steps[:-1])
    ]
    return [(section_index, position) for _, section_index, position in sorted(addresses)]


def _render(evidence: StepEvidence, dropped: Set[_Address]) -> str:
    blocks = [_OPENING]
    if evidence.feedback_pairs:
        blocks.append(_heading(_FEEDBACK_TITLE) + _pairs_text(evidence.feedback_pairs))
    section_index = 0
    if evidence.candidates:
        entries: list[str] = []
        for candidate in evidence.candidates:
            entries.append(_candidate_text(candidate, section_index, dropped))
            section_index += len(candidate.evidence)
        blocks.append(_heading(_CANDIDATES_TITLE) + "\n".join(entries))
    for part in evidence.parts:
        title = source_traits(part.source).title
        blocks.append(_heading(title) + _section_text(part, section_index, dropped))
        section_index += 1
    return "\n\n".join(blocks)


def _heading(title: str) -> str:
    return f"## {title}\n"


def _pairs_text(pairs: tuple[FeedbackPair, ...]) -> str:
    return "\n".join(f"- {pair.action}: {pair.feedback}" for pair in pairs)


def _candidate_text(candidate: Candidate, first_section: int, dropped: Set[_Address]) -> str:
    lines = [f"- {candidate.action}: {_outcome_text(candidate)}"]
    for offset, section in enumerate(candidate.evidence):
        title = f"{source_traits(section.source).title} ({section.about})"
        lines.append(f"  {title}:\n{_section_text(section, first_section + offset, dropped)}")
    return "\n".join(lines)


def _outcome_text(candidate: Candidate) -> str:
    if candidate.tried == 1:
        return f"tried once, {candidate.best}, return {candidate.best.reward:g}"
    return (
        f"tried {candidate.tried} times, {candidate.successes} successful, "
        f"mean return {candidate.mean_return:g}, best {candidate.best.reward:g} ({candidate.best}), "
        f"worst {candidate.worst.reward:g} ({candidate.worst})"
    )


def _section_text(section: Evidence, section_index: int, dropped: Set[_Address]) -> str:
    lines = [section.text] if section.text else []
    num_left_out = sum((section_index, position) in dropped for position in range(len(section.quoted_steps)))
    if num_left_out:
        lines.append(f"(Left out here: the {num_left_out} oldest of {len(section.quoted_steps)} steps.)")
    lines += [
        quote_text(step)
        for position, step in enumerate(section.quoted_steps)
        if (section_index, position) not in dropped
    ]
    return "\n".join(lines)
