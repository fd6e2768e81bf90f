"""How many env runners there are to be: decisions worked out by hand."""

from __future__ import annotations

import pytest

from serl.config.sampling import RunnerAutoscalingSection
from serl.rollout.scaling import EnvRunnerScaling, LoopState

# One to six runners of 10 episodes each, 40 episodes in flight for a replica.
SETTINGS = RunnerAutoscalingSection(
    min_env_runners=1,
    max_env_runners=6,
    max_episodes_per_replica=40,
    upscale_delay_s=30.0,
    downscale_delay_s=100.0,
)


def short(num_episodes: int, num_env_runners: int = 1, num_replicas: int = 1) -> LoopState:
    return LoopState(True, False, num_episodes, num_env_runners, num_replicas)


def idle(num_episodes: int, num_env_runners: int = 3) -> LoopState:
    return LoopState(False, True, num_episodes, num_env_runners, num_replicas=1)


@pytest.fixture
def scaling() -> EnvRunnerScaling:
    return EnvRunnerScaling(SETTINGS, episodes_per_runner=10)


def test_learners_that_wait_get_places_for_all_episodes_after_the_delay(scaling: EnvRunnerScaling) -> None:
    assert scaling.decide(short(32), seconds=29.0) == 1
    assert scaling.decide(short(32), seconds=1.0) == 4  # 32 episodes need 4 times 10 places
    # The next ones have waited since then only.
    assert scaling.decide(short(41, num_env_runners=4, num_replicas=2), seconds=29.0) == 4
    assert scaling.decide(short(41, num_env_runners=4, num_replicas=2), seconds=1.0) == 5


def test_no_more_start_than_the_most_or_than_the_episodes_of_the_replicas_need(
    scaling: EnvRunnerScaling,
) -> None:
    assert scaling.decide(short(500, num_replicas=1), seconds=30.0) == 4  # 40 episodes for one replica
    assert scaling.decide(short(500, num_replicas=2), seconds=30.0) == 6
    assert scaling.decide(short(500, num_env_runners=4), seconds=30.0) == 4
    assert scaling.decide(short(500, num_replicas=0), seconds=30.0) == 1
    assert (scaling.max_episodes(2), scaling.max_episodes(0)) == (80, 0)


def test_a_batch_that_waits_for_learners_ends_one_after_the_other_down_to_the_fewest(
    scaling: EnvRunnerScaling,
) -> None:
    assert scaling.decide(idle(15), seconds=99.0) == 3
    assert scaling.decide(idle(15), seconds=1.0) == 2
    assert scaling.decide(idle(15, num_env_runners=2), seconds=100.0) == 2  # 15 episodes need both
    assert scaling.decide(idle(0, num_env_runners=2), seconds=100.0) == 1
    assert scaling.decide(idle(0, num_env_runners=1), seconds=1000.0) == 1


def test_time_in_which_nothing_lacks_counts_for_nothing_and_the_opposite_begins_anew(
    scaling: EnvRunnerScaling,
) -> None:
    updating = LoopState(False, False, 32, 1, 1)
    last_episodes = LoopState(True, False, 3, 1, 1)
    assert scaling.decide(short(32), seconds=20.0) == 1
    assert scaling.decide(updating, seconds=500.0) == 1
    assert scaling.decide(last_episodes, seconds=500.0) == 1
    assert scaling.decide(short(32), seconds=10.0) == 4

    assert scaling.decide(idle(0), seconds=99.0) == 3
    assert scaling.decide(short(32, num_env_runners=3), seconds=1.0) == 3
    assert scaling.decide(idle(0), seconds=99.0) == 3
    assert scaling.decide(short(32, num_env_runners=3), seconds=29.9) == 3
    assert scaling.decide(idle(0), seconds=99.0) == 3
