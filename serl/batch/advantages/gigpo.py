"""GiGPO: episode-relative plus step-relative advantages (arXiv 2505.10978)."""

# pyright: reportUnknownMemberType=false
# torch does not say what `unique` and `tolist` return.

from __future__ import annotations

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor

from serl.batch.advantages import StepRows, register_estimator
from serl.batch.step_rows import (
    Across,
    cluster_statistics,
    discounted_returns,
    group_statistics,
    relative,
)
from serl.hindsight.anchors import anchor_clusters, anchor_size_metrics


@register_estimator("gigpo")
def gigpo(
    rows: StepRows,
    *,
    across: Across = "steps",
    normalize_std: bool = True,
    gamma: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95,
    step_advantage_weight: Annotated[float, Field(ge=0.0)] = 1.0,
    anchor_similarity: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """A = A_episode + step_advantage_weight · A_step, [rows].

    A_episode compares the trajectory's return within the group, as GRPO does. A_step compares the return of
    the step, discounted with ``gamma``, with that of the other steps of the group taken from the same anchor
    observation: an equal one, or a similar one where ``anchor_similarity`` is a difflib ratio. A step alone
    at its anchor has A_step 0. ``normalize_std`` divides both by their std + 1e-6 ("mean_std_norm"; false
    is "mean_norm"). ``across``: returns of trajectories are compared over all ``steps``, or one a trajectory.
    Metrics: those of `anchor_size_metrics`.
    """
    episode = relative(rows.rewards, group_statistics(rows, across), normalize_std)
    clusters = _anchor_clusters_of_groups(rows, anchor_similarity)
    returns = discounted_returns(rows, gamma)
    statistics = cluster_statistics(returns, clusters)
    step = relative(returns, statistics, normalize_std)
    advantages = episode + step_advantage_weight * torch.where(statistics.count > 1.0, step, 0.0)
    anchor_sizes = cast("list[int]", statistics.count.long().tolist())
    return advantages, anchor_size_metrics(anchor_sizes, "gigpo")


def _anchor_clusters_of_groups(rows: StepRows, anchor_similarity: float | None) -> Tensor:
    clusters = torch.empty_like(rows.groups)
    num_clusters = 0
    for group in cast("list[int]", rows.groups.unique().tolist()):
        members = (rows.groups == group).nonzero().squeeze(1)
        found = anchor_clusters([rows.anchors[int(row)] for row in members], anchor_similarity)
        clusters[members] = torch.tensor(found) + num_clusters
        num_clusters += max(found) + 1
    return clusters
