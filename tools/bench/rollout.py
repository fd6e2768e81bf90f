"""Response tokens a second of env runners on Ray Serve, against the bare engine on the same prompts."""

from __future__ import annotations

import argparse
from typing import Any

import ray

from tools.bench.arguments import experiment_of, model_folder
from tools.bench.bare_engine import Replayed, recorded_sessions, start_bare_engine
from tools.bench.cluster import local_cluster
from tools.bench.figures import Figures
from tools.bench.play import PLAY_TIMEOUT_S, Played, Player, player_on_deployment
from tools.bench.processes import CLUSTER, DRIVER, ENV_RUNNER, REPLICA

GOAL = 0.95
FLOOR = 0.85

# Episodes for every one that runs at the same time: as many ramp up unmeasured.
_MEASURED_ROUNDS = 3


def run(options: argparse.Namespace, figures: Figures) -> None:
    experiment = experiment_of(options, options.model)
    model_dir = model_folder(experiment)
    played: list[Played] = []
    with_text: list[Replayed] = []
    ids_only: list[Replayed] = []
    with local_cluster() as run_dir:
        bare = start_bare_engine(experiment, model_dir)
        with player_on_deployment(experiment, model_dir, run_dir) as (player, _):
            figures.note(
                f"{experiment.model.path}: {player.capacity} episodes at a time, {options.repetitions} "
                f"repetitions of {_MEASURED_ROUNDS * player.capacity} measured episodes"
            )
            for _ in range(options.repetitions):
                ramp, steady = _play(player)
                played.append(steady)
                sessions = recorded_sessions([*ramp.trajectories, *steady.trajectories])
                with_text.append(_replay(bare, sessions, player.capacity, as_text=True))
                ids_only.append(_replay(bare, sessions, player.capacity, as_text=False))
    _report(played, with_text, ids_only, figures)


def _play(player: Player) -> tuple[Played, Played]:
    """The ramp-up, and the steady state that counts; afterwards nothing plays."""
    ramp = player.play_steadily(player.capacity)
    steady = player.play_steadily(_MEASURED_ROUNDS * player.capacity)
    player.finish()
    return ramp, steady


def _replay(bare: Any, sessions: list, num_in_flight: int, as_text: bool) -> Replayed:
    replayed = bare.replay.remote(sessions, num_in_flight, as_text, PLAY_TIMEOUT_S)
    return ray.get(replayed, timeout=PLAY_TIMEOUT_S + 60.0)


def _report(
    played: list[Played], with_text: list[Replayed], ids_only: list[Replayed], figures: Figures
) -> None:
    runners = [one.response_tokens_per_s for one in played]
    bare = [one.response_tokens_per_s for one in with_text]
    bare_ids = [one.response_tokens_per_s for one in ids_only]
    figures.add("env runners", runners, "tokens/s")
    figures.add("env runners", [one.env_steps_per_s for one in played], "steps/s")
    figures.add("bare engine, stop strings as the runners'", bare, "tokens/s")
    figures.add("bare engine, ids alone", bare_ids, "tokens/s")
    _report_processor_time(played, with_text, figures)
    figures.add("prompt tokens cached, env runners", [one.cached_share for one in played], "of all")
    figures.add("prompt tokens cached, bare engine", [one.cached_share for one in with_text], "of all")
    figures.add_ratio("env runners / bare engine", runners, bare, at_least=GOAL)
    figures.add_ratio("env runners / bare engine, ids alone", runners, bare_ids, at_least=FLOOR)


def _report_processor_time(played: list[Played], replayed: list[Replayed], figures: Figures) -> None:
    replica = [one.processor_ms_per_step(REPLICA) for one in played]
    bare = [one.processor_ms_per_request for one in replayed]
    for kind in (REPLICA, ENV_RUNNER, DRIVER, CLUSTER):
        times = [one.processor_ms_per_step(kind) for one in played]
        figures.add(f"processor time, {kind}", times, "ms/step")
    figures.add("processor time, bare engine", bare, "ms/request")
    figures.add_ratio("processor time: bare engine / replica", bare, replica)
