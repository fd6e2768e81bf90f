"""Hinted repair: where the first rollouts of a group fail, the last ones are told what became of them.

After PSD's repair of groups in which every attempt fails: an attempt that reads evidence of its siblings and
succeeds is trained without the evidence. With prompt s and hint c, for its sampled tokens a,

    weight = min(π_old(a | s) / π_sampler(a | s, c), loss.truncated_importance_sampling_cap)

on the policy loss, whose ratio is to π_old(a | s) (`serl.learner.loss`); the share of tokens at the cap is
``learner/importance_capped_fraction``. Its advantage is that of the group's estimator, 0 where it failed all
the same. A hint takes no rollout more: ``group_size`` episodes are played, with or without.
Not in the paper of SERL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from serl.config import ExperimentConfig
from serl.hindsight.hints import hint_of
from serl.rollout.prompt import PromptEncoder
from serl.types import RolloutRequest, Trajectory


@dataclass(slots=True)
class _Held:
    """The last ``requests`` of a group, and those of its first rollouts that have ended, by their index."""

    requests: list[RolloutRequest]
    ended: dict[int, Trajectory] = field(default_factory=dict[int, Trajectory])


class HintedRepair:
    """Holds the last rollouts of each group back until the first ones have ended.

    Where ``hindsight.repair`` asks for none, nothing is held.
    """

    def __init__(self, experiment: ExperimentConfig, encoder: PromptEncoder) -> None:
        self._settings = experiment.hindsight
        self._num_first = experiment.training.group_size - experiment.hindsight.num_repaired
        self._max_hint_tokens = self._settings.max_context_length - experiment.rollout.max_prompt_length
        self._encoder = encoder
        self._held: dict[str, _Held] = {}
        self._released: list[RolloutRequest] = []

    def hold_back(self, requests: Sequence[RolloutRequest]) -> list[RolloutRequest]:
        """Those of a group's ``requests`` that are played at once."""
        first, last = list(requests[: self._num_first]), list(requests[self._num_first :])
        if last:
            self._held[last[0].group_id] = _Held(last)
        return first

    def add(self, trajectory: Trajectory) -> None:
        """Takes note of an episode that has ended, whichever it is."""
        held = self._held.get(trajectory.group_id)
        if held is None:
            return
        held.ended[trajectory.rollout_index] = trajectory
        if len(held.ended) == self._num_first:
            del self._held[trajectory.group_id]
            hint = self._hint([held.ended[index] for index in range(self._num_first)])
            self._released += [replace(request, hint=hint) for request in held.requests]

    def take_released(self, is_wanted: Callable[[str], bool]) -> list[RolloutRequest]:
        """The requests that waited and may be played now, of groups that are still ``is_wanted``."""
        for group_id in [group_id for group_id in self._held if not is_wanted(group_id)]:
            del self._held[group_id]
        released, self._released = self._released, []
        return [request for request in released if is_wanted(request.group_id)]

    def forget(self) -> None:
        """Gives up everything that is held."""
        self._held.clear()
        self._released.clear()

    def _hint(self, first: Sequence[Trajectory]) -> str | None:
        share = sum(trajectory.success for trajectory in first) / len(first)
        if share > self._settings.repair.max_success:
            return None
        return hint_of(first, self._settings, self._encoder.num_tokens, self._max_hint_tokens)
