"""What a cluster has no room for, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from serl.config.load import load_experiment
from serl.private.ray_core import Autoscaler
from serl.run import placement
from serl.run.placement import NoRoomError, in_words, missing_room, wait_for_room
from serl.run.preflight.machine import Role, roles

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.yaml"
LEARNERS = Role("learners", 2, {"CPU": 1.0, "GPU": 1.0})
REPLICAS = Role("replicas", 3, {"GPU": 2.0})
RUNNERS = Role("env runners", 4, {"CPU": 0.5})


def test_a_run_needs_its_learners_its_fewest_replicas_and_its_fewest_env_runners() -> None:
    experiment = load_experiment(
        QUICKSTART,
        [
            "learner.num_learners=2",
            "learner.num_cpus_per_learner=1.5",
            "serving.autoscaling={min_replicas: 3, max_replicas: 9}",
            "serving.num_cpus_per_replica=0",
            "rollout.autoscaling={min_env_runners: 4, max_env_runners: 9}",
            "rollout.num_cpus_per_env_runner=0.5",
        ],
    )
    # Replicas that need nothing which is counted find room anywhere.
    assert roles(experiment) == [Role("learners", 2, {"CPU": 1.5}), Role("env runners", 4, {"CPU": 0.5})]


def test_what_finds_no_room_is_named_with_how_many_do() -> None:
    wanted = [LEARNERS, REPLICAS, RUNNERS]
    # The replicas take all of the first node and two GPUs of the second; one learner finds the fifth GPU.
    assert missing_room(wanted, [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 3.0}]) == (
        "room for 1 of 2 learners of {CPU: 1, GPU: 1}"
    )
    assert missing_room(wanted, [{"CPU": 1.5, "GPU": 2.0}]) == (
        "room for 0 of 2 learners of {CPU: 1, GPU: 1} and 1 of 3 replicas of {GPU: 2} and "
        "3 of 4 env runners of {CPU: 0.5}"
    )


def test_gpus_of_one_replica_are_not_taken_from_two_nodes() -> None:
    assert missing_room([Role("replicas", 1, {"GPU": 2.0})], [{"GPU": 1.0}, {"GPU": 1.0}]) == (
        "room for 0 of 1 replicas of {GPU: 2}"
    )


def test_what_fits_and_is_not_placed_yet_waits_for_ray() -> None:
    assert missing_room([RUNNERS], [{"CPU": 2.0}]) == "Ray has not placed what would find room"


def test_what_the_autoscaler_does_is_told() -> None:
    assert in_words(None) == "no autoscaler adds nodes"
    assert in_words(Autoscaler(0, has_no_such_nodes=False)) == "the autoscaler is adding no node"
    assert in_words(Autoscaler(0, has_no_such_nodes=True)) == "the autoscaler has no such nodes to add"
    assert in_words(Autoscaler(1, has_no_such_nodes=False)) == "the autoscaler is adding 1 node"
    assert in_words(Autoscaler(2, has_no_such_nodes=True)) == "the autoscaler is adding 2 nodes"


def test_whoever_waits_for_room_is_told_now_and_then_and_in_the_end_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, told, removed = [0.0], list[str](), list[object]()

    class Group:
        def wait(self, seconds: float) -> bool:
            clock[0] += seconds
            return False

    monkeypatch.setattr(placement.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(placement, "placement_group", lambda bundles, strategy: Group())
    monkeypatch.setattr(placement, "remove_placement_group", removed.append)
    monkeypatch.setattr(placement, "free_resources_of_nodes", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr(placement, "find_autoscaler", lambda: None)
    experiment = load_experiment(QUICKSTART, ["learner.num_learners=2", "cluster.placement_timeout_s=70"])
    missing = "room for 0 of 1 replicas of {CPU: 0.5} and 0 of 1 env runners of {CPU: 0.5}"
    with pytest.raises(NoRoomError, match="no autoscaler adds nodes, waited 70 s of 70$"):
        wait_for_room(experiment, told.append)
    assert len(told) == 3 and len(removed) == 1
    assert told[1] == f"waiting for room: {missing}; no autoscaler adds nodes, waited 35 s of 70"
