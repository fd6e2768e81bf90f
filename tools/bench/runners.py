"""Env runners whose policy answers at once: what they and the driver cost, however many there are."""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path

from serl.config import ExperimentConfig
from serl.rollout.prompt import PromptEncoder
from serl.types import Completion, Sampling, VersionSpan
from tools.bench.figures import Figures
from tools.bench.play import CLUSTER, DRIVER, ENV_RUNNER, Played, Player, local_cluster, with_settings

# An action of ALFWorld, admissible everywhere; in other environments it may not be, and costs a step too.
_RESPONSE = "<action>look</action>"
_EPISODES, _RUNNERS = (64, 256, 1024), (1, 2, 4)
# Episodes for every one that runs at the same time: as many ramp up unmeasured.
_MEASURED_ROUNDS = 2


def runners(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    make_policy = functools.partial(AnsweringPolicy, str(model_dir))
    figures.note(f"{experiment.model.path}: {options.repetitions} repetitions, a policy that answers at once")
    model = figures.prefix
    sizes = itertools.product(options.runners or _RUNNERS, options.episodes or _EPISODES)
    with local_cluster() as run_dir:
        for num_runners, num_episodes in sizes:
            rollout = {
                "num_env_runners": num_runners,
                "max_concurrent_episodes": -(-num_episodes // num_runners),
                "num_cpus_per_env_runner": 0.0,
            }
            player = Player(with_settings(experiment, rollout=rollout), model_dir, run_dir, make_policy)
            try:
                played = [_played(player) for _ in range(options.repetitions)]
            finally:
                player.stop()
            figures.prefix = f"{model}{num_runners} runners, {num_episodes} episodes: "
            figures.add("env steps", (one.per_s("env_steps") for one in played), "steps/s")
            for kind in (ENV_RUNNER, DRIVER, CLUSTER):
                times = (one.processor_ms_per_step(kind) for one in played)
                figures.add(f"processor time, {kind}", times, "ms/step")
            per_episode = (
                1000.0 * one.processor_seconds[DRIVER] / one.counters["episodes_finished"] for one in played
            )
            figures.add("the driver, a trajectory", per_episode, "ms", at_most=1.0)


def _played(player: Player) -> Played:
    player.play_steadily(player.capacity)
    steady = player.play_steadily(_MEASURED_ROUNDS * player.capacity)
    player.finish()
    return steady


class AnsweringPolicy:
    """Answers at once, always the same."""

    retries = 0

    def __init__(self, model_dir: str) -> None:
        self._ids = PromptEncoder.load(model_dir).ids(_RESPONSE)

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, session_id: str, deadline_s: float
    ) -> Completion:
        number = len(self._ids)
        return Completion(self._ids, [-1.0] * number, "stop", (VersionSpan(0, number, 0),))
