"""Room for a run's actors on a cluster that was joined, before any of them starts.

One placement group asks for all of it at once: an autoscaler sees the whole demand, and of two runs that
start together none holds a half that the other waits for. Once it is there it is given back, for Ray Serve
and RLlib place their actors themselves; learners get a group of their own before, and keep it, so that those
which take the place of dead ones find theirs free.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from serl.config import ExperimentConfig
from serl.private.ray_core import Autoscaler, find_autoscaler, free_resources_of_nodes
from serl.run.preflight.machine import Bundle, Role, roles

_POLL_S = 1  # Ray takes whole seconds
_TELL_INTERVAL_S = 30.0
# Less than this is not worth a line.
_SILENT_S = 5.0


class NoRoomError(RuntimeError):
    """The cluster has no room for the run, and got none in time; the text says for what."""


def wait_for_room(experiment: ExperimentConfig, tell: Callable[[str], object]) -> PlacementGroup | None:
    """The placement group of remote learners, once there is room for all; None without remote learners.

    ``tell`` gets a sentence about what is missing every half a minute. Raises NoRoomError after
    ``cluster.placement_timeout_s``.
    """
    wanted = roles(experiment)
    wait = _Wait(experiment.cluster.placement_timeout_s, tell)
    if wanted:
        remove_placement_group(wait.placed(wanted))
    learners = [role for role in wanted if role.name == "learners"]
    return wait.placed(learners) if learners else None


def nodes_of(group: PlacementGroup) -> set[str]:
    """The ids of the nodes that ``group`` is on."""
    return set(placement_group_table(group)["bundles_to_node_id"].values())


class _Wait:
    def __init__(self, timeout_s: float, tell: Callable[[str], object]) -> None:
        self._timeout_s = timeout_s
        self._tell = tell
        self._started = time.monotonic()

    def placed(self, wanted: Sequence[Role]) -> PlacementGroup:
        bundles = [dict(role.bundle) for role in wanted for _ in range(role.number)]
        group = placement_group(bundles, strategy="PACK")
        tell_at = self._waited_s + _SILENT_S
        while not group.wait(_POLL_S):
            if self._waited_s >= self._timeout_s:
                remove_placement_group(group)
                raise NoRoomError(f"the cluster has no room for the run: {self._situation(wanted)}")
            if self._waited_s >= tell_at:
                self._tell(f"waiting for room: {self._situation(wanted)}")
                tell_at = self._waited_s + _TELL_INTERVAL_S
        return group

    def _situation(self, wanted: Sequence[Role]) -> str:
        waited = f"waited {self._waited_s:.0f} s of {self._timeout_s:g}"
        return f"{missing_room(wanted, free_resources_of_nodes())}; {in_words(find_autoscaler())}, {waited}"

    @property
    def _waited_s(self) -> float:
        return time.monotonic() - self._started


def missing_room(wanted: Iterable[Role], free_of_nodes: Iterable[Bundle]) -> str:
    """How many of each role's bundles find a place in what is free, for those that do not all.

    The greatest first, each where the least is left, as one may place them by hand.
    """
    free = [Counter(node) for node in free_of_nodes]
    short: dict[str, str] = {}
    wanted = list(wanted)
    for role in sorted(wanted, key=lambda role: (-role.bundle.get("GPU", 0.0), -role.bundle.get("CPU", 0.0))):
        num_placed = sum(_take(role.bundle, free) for _ in range(role.number))
        if num_placed < role.number:
            short[role.name] = f"{num_placed} of {role.number} {role}"
    told = [short[role.name] for role in wanted if role.name in short]
    return f"room for {' and '.join(told)}" if told else "Ray has not placed what would find room"


def _take(bundle: Bundle, free: Sequence[Counter[str]]) -> bool:
    items = bundle.items()
    fitting = [node for node in free if all(round(node[what] - much, 6) >= 0 for what, much in items)]
    if not fitting:
        return False
    least = min(fitting, key=lambda node: (node["GPU"], node["CPU"]))
    for what, much in items:
        least[what] -= much  # type: ignore[assignment]
    return True


def in_words(autoscaler: Autoscaler | None) -> str:
    """What it does about it."""
    if autoscaler is None:
        return "no autoscaler adds nodes"
    number = autoscaler.num_nodes_coming
    if number == 0:
        lacks = autoscaler.has_no_such_nodes
        return "the autoscaler has no such nodes to add" if lacks else "the autoscaler is adding no node"
    return f"the autoscaler is adding {number} node{'s' if number > 1 else ''}"
