"""An agent behind the gateway against the built-in episodes, on one deployment by turns."""

from __future__ import annotations

import argparse
from pathlib import Path

from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from tools.bench.figures import Figures
from tools.bench.play import (
    CLUSTER,
    DRIVER,
    ENV_RUNNER,
    GATEWAY,
    PROXY,
    REPLICA,
    Played,
    local_cluster,
    players_on_deployment,
    with_settings,
)

_BUILT_IN, _AGENT = "built-in", "agent"
# Episodes for every one that runs at the same time: as many ramp up unmeasured.
_MEASURED_ROUNDS = 2


def gateway(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    """What ``options.agent`` says of its environment, the agent; all else is of ``experiment``."""
    env = load_experiment(options.agent, []).env
    built_in = with_settings(experiment, serving={"gateway": True})
    arms = {_BUILT_IN: built_in, _AGENT: built_in.model_copy(update={"env": env})}
    played: dict[str, list[Played]] = {name: [] for name in arms}
    with (
        local_cluster() as run_dir,
        players_on_deployment(list(arms.values()), model_dir, run_dir) as (players, _),
    ):
        capacity = players[0].capacity
        figures.note(
            f"{experiment.model.path}: {capacity} episodes at a time, {options.repetitions} repetitions of "
            f"{_MEASURED_ROUNDS * capacity} measured episodes each"
        )
        for repetition in range(options.repetitions):
            # Who is first in one pair is second in the next.
            pairs = list(zip(arms, players, strict=True))
            for name, player in pairs if repetition % 2 == 0 else reversed(pairs):
                player.play_steadily(capacity)
                played[name].append(player.play_steadily(_MEASURED_ROUNDS * capacity))
                player.finish()
    for name, of_arm in played.items():
        figures.add(f"{name}, env steps", (one.per_s("env_steps") for one in of_arm), "steps/s")
        steps = (one.counters["env_steps"] / one.counters["episodes_finished"] for one in of_arm)
        figures.add(f"{name}, steps of an episode", steps, "")
        for kind in (REPLICA, ENV_RUNNER, GATEWAY, PROXY, DRIVER, CLUSTER):
            times = (one.processor_ms_per_step(kind) for one in of_arm)
            figures.add(f"{name}, processor time, {kind}", times, "ms/step")
    figures.add_ratio(f"{_AGENT}, env steps", f"{_BUILT_IN}, env steps", at_least=0.8)
