"""Teacher prompts: each row's prompt with the evidence of hindsight in it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from serl.batch.rows import Array, Ragged, TrainingRows
from serl.config import HindsightSection
from serl.hindsight.anchors import anchor_size_metrics
from serl.hindsight.collect import collect_evidence
from serl.hindsight.context import render_context
from serl.hindsight.evidence import GroupView, StepEvidence
from serl.rollout.prompt import PromptEncoder
from serl.rollout.told_prompt import told_prompt_encoder
from serl.types import TrajectoryGroup


@dataclass(slots=True)
class ContextCounts:
    """What became of rows with an advantage.

    ``num_rows_with`` counts those with evidence of a source, by its name, and with ``any``;
    ``num_rows_without_action`` have no action token, so a context would change nothing;
    ``num_contexts_shortened`` left ``num_context_steps_left_out`` quoted steps out, ``num_contexts_too_long``
    were too long even so, and left out as a whole. ``anchor_sizes``: of every step of the group, where
    evidence is gathered per anchor.
    """

    num_rows: int = 0
    num_rows_without_action: int = 0
    num_teacher_prompts: int = 0
    num_contexts_shortened: int = 0
    num_context_steps_left_out: int = 0
    num_contexts_too_long: int = 0
    num_rows_with: Counter[str] = field(default_factory=Counter[str])
    anchor_sizes: list[int] = field(default_factory=list[int])

    def add(self, other: ContextCounts) -> None:
        self.num_rows += other.num_rows
        self.num_rows_without_action += other.num_rows_without_action
        self.num_teacher_prompts += other.num_teacher_prompts
        self.num_contexts_shortened += other.num_contexts_shortened
        self.num_context_steps_left_out += other.num_context_steps_left_out
        self.num_contexts_too_long += other.num_contexts_too_long
        self.num_rows_with.update(other.num_rows_with)
        self.anchor_sizes += other.anchor_sizes

    def metrics(self, sources: Sequence[str]) -> dict[str, float]:
        """The counts, ``evidence_share/SOURCE`` and ``evidence_share/any`` (of rows), and anchor sizes.

        ``sources`` are named as in the config; metrics have their short names, without a module.
        """
        counts = {
            "num_rows_without_action": self.num_rows_without_action,
            "num_teacher_prompts": self.num_teacher_prompts,
            "num_contexts_shortened": self.num_contexts_shortened,
            "num_context_steps_left_out": self.num_context_steps_left_out,
            "num_contexts_too_long": self.num_contexts_too_long,
        }
        shares = {
            f"evidence_share/{source}": self.num_rows_with[source] / max(self.num_rows, 1)
            for source in ("any", *(name.rpartition(":")[2] for name in sources))
        }
        sizes = anchor_size_metrics(self.anchor_sizes, "evidence")
        return {name: float(count) for name, count in counts.items()} | shares | sizes


def add_teacher_prompts(
    rows: TrainingRows,
    group: TrajectoryGroup,
    chosen: Array,
    settings: HindsightSection,
    encoder: PromptEncoder,
    judge_texts: Mapping[str, str | None],
    lent: Sequence[StepEvidence] | None = None,
) -> tuple[TrainingRows, ContextCounts]:
    """``rows`` of ``group``, one a step, with teacher prompts for those that are ``chosen``, bool [rows].

    A chosen row gets one if it has evidence and an action. That of a step which continues another one begins
    with the same ids as the step's own prompt. ``judge_texts``: what was said, by trajectory id.
    ``lent`` is read in place of the rows' own evidence, for the control ``other_group``.
    """
    counts = ContextCounts()
    if not chosen.any():
        return rows, counts
    evidence = evidence_of_steps(group, settings, judge_texts)
    if lent is not None:
        evidence = lend(evidence, lent)
    counts.anchor_sizes += [known.anchor_size for known in evidence if known.anchor_size]
    prompts: list[list[int]] = [[] for _ in evidence]
    contexts: dict[int, str] = {}
    sources: list[tuple[str, ...]] = [() for _ in evidence]
    befores = [own.continued_step(step) for own in group.trajectories for step in own.steps]
    for index, (step, before, known) in enumerate(zip(group.steps, befores, evidence, strict=True)):
        if not chosen[index]:
            continue
        counts.num_rows += 1
        counts.num_rows_with.update(known.sources, any=int(bool(known)))
        if not any(step.action_mask):
            counts.num_rows_without_action += 1
            continue
        encode = told_prompt_encoder(step.messages, step.tools, before, encoder)
        prompt = _prompt_with_evidence(known, encode, encoder, settings.max_context_length, counts)
        if prompt is not None:
            is_bare = settings.control == "no_evidence"
            prompts[index], contexts[index] = (list(step.prompt_ids), "") if is_bare else prompt
            sources[index] = known.sources
    teacher_prompt_ids = Ragged.of(prompts, np.int32)
    return replace(
        rows, teacher_prompt_ids=teacher_prompt_ids, contexts=contexts, evidence_sources=sources
    ), counts


def evidence_of_steps(
    group: TrajectoryGroup, settings: HindsightSection, judge_texts: Mapping[str, str | None]
) -> list[StepEvidence]:
    """What is known of each step of ``group``, trajectory by trajectory."""
    view = GroupView(group.trajectories, settings, judge_texts)
    return [known for of_trajectory in collect_evidence(view, settings) for known in of_trajectory]


def lend(evidence: Sequence[StepEvidence], lent: Sequence[StepEvidence]) -> list[StepEvidence]:
    """Each of ``evidence`` that says something becomes the next of ``lent`` that does, again and again."""
    known = itertools.cycle(other for other in lent if other)
    return [next(known, StepEvidence()) if own else own for own in evidence]


def _prompt_with_evidence(
    evidence: StepEvidence,
    encode: Callable[[str], list[int]],
    encoder: PromptEncoder,
    limit: int,
    counts: ContextCounts,
) -> tuple[list[int], str] | None:
    """Prompt ids, at most ``limit``, and the context in them; None without evidence or if it cannot fit."""
    text, stats = render_context(evidence)
    if text is None:
        return None
    ids = encode(text)
    if len(ids) > limit:
        budget = max(limit - (len(ids) - encoder.num_tokens(text)), 0)
        text, stats = render_context(evidence, encoder.num_tokens, budget)
        assert text is not None
        ids = encode(text)
        if len(ids) > limit:
            counts.num_contexts_too_long += 1
            return None
    counts.num_contexts_shortened += stats.num_dropped_steps > 0
    counts.num_context_steps_left_out += stats.num_dropped_steps
    counts.num_teacher_prompts += 1
    return ids, text
