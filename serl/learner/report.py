"""What one learner reports of an update, and one set of metrics made of all their reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from serl.batch.packing import Minibatch
from serl.learner.loss import LossBatch
from serl.learner.token_scores import TokenScores
from serl.types import TeacherRecords


@dataclass(slots=True)
class LearnerReport:
    """``sums`` add up over learners (counts, and values already divided by global denominators).

    ``means`` are pairs of a total and what to divide it by, both added up first. ``minima`` and ``maxima``
    are the least and greatest over learners, ``shared`` is the same on all of them, ``seconds`` are those of
    the slowest. ``records`` are of single rows, for people.
    """

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    minima: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    records: TeacherRecords = field(default_factory=dict)

    def add_mean(self, name: str, total: float, weight: float) -> None:
        old_total, old_weight = self.means.get(name, (0.0, 0.0))
        self.means[name] = (old_total + total, old_weight + weight)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds that the block takes to ``seconds[name]``."""
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += perf_counter() - started

    def add_micro_batch(
        self,
        scores: TokenScores,
        batch: LossBatch,
        metrics: Mapping[str, Tensor],
        minibatch: Minibatch,
        num_minibatches: int,
    ) -> None:
        """Adds means over the trained tokens, averaged over minibatches; only the loss is over all rows.

        Metrics of distillation are means over the distilled tokens.
        """
        scale = minibatch.num_loss_tokens / minibatch.num_trained_tokens / num_minibatches
        weight = 1.0 / minibatch.num_trained_tokens / num_minibatches
        log_ratio = (batch.old_logprobs - scores.logprobs).detach()
        totals = {"approx_kl_k1": log_ratio.sum(), "entropy": scores.entropies.detach().sum()}
        for name, value in read_once(totals).items():
            self.sums[name] += value * weight
        for name, value in read_once(metrics).items():
            if name.startswith("distill_"):
                assert scores.divergences is not None
                self.add_mean(name, value, len(scores.divergences))
            else:
                self.sums[name] += value * (1.0 / num_minibatches if name == "loss" else scale)

    def add_teacher_metrics(self, metrics: dict[str, float]) -> None:
        """Takes in the metrics of `teacher_weights`, each named ``teacher_…``."""
        for name, value in metrics.items():
            sign = name.split("_")[0] if name.startswith(("positive_", "negative_")) else ""
            count = metrics[f"{sign}_num_selected_tokens" if sign else "num_selected_tokens"]
            if name.endswith("num_selected_tokens"):
                self.sums[f"teacher_{name}"] += value
            elif name.endswith("_min"):
                self.minima |= {f"teacher_{name}": value} if count else {}
            elif name.endswith("_max"):
                self.maxima |= {f"teacher_{name}": value} if count else {}
            else:
                self.add_mean(f"teacher_{name}", value * count, count)


def read_once(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers of tensors with one element each; the host waits for their device once, not for each."""
    if not values:
        return {}
    device = next(iter(values.values())).device
    stacked = torch.stack([value.detach().to(device, torch.float64).reshape(()) for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))


def combine_reports(reports: Sequence[LearnerReport]) -> dict[str, float]:
    """The metrics of one update. A mean without any weight is left out: there was nothing to average."""
    metrics: dict[str, float] = dict(reports[0].shared)
    for report in reports:
        for name, value in report.sums.items():
            metrics[name] = metrics.get(name, 0.0) + value
    for name in {name for report in reports for name in report.means}:
        totals, weights = zip(*(report.means.get(name, (0.0, 0.0)) for report in reports), strict=True)
        if sum(weights) > 0:
            metrics[name] = sum(totals) / sum(weights)
    for report in reports:
        for name, value in report.minima.items():
            metrics[name] = min(metrics.get(name, value), value)
        for name, value in report.maxima.items():
            metrics[name] = max(metrics.get(name, value), value)
        for name, value in report.seconds.items():
            metrics[f"seconds_{name}"] = max(metrics.get(f"seconds_{name}", 0.0), value)
    return metrics
