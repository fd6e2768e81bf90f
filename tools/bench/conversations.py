"""Conversations against windows: made up and trained in several ways, and played on one deployment."""

from __future__ import annotations

import argparse
import functools
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from serl.algorithm import SERLConfig
from serl.batch.rows import TrainingRows
from serl.config import ExperimentConfig
from serl.learner.learner_group import SERLLearnerGroup
from serl.private.rllib import local_learner
from serl.serving.client import PolicyClient
from serl.types import TrainingRow
from tools.bench.figures import Figures
from tools.bench.play import (
    ENV_RUNNER,
    REPLICA,
    Played,
    Player,
    local_cluster,
    player_on_deployment,
    with_settings,
)

# What a chat template writes between an observation and the answer to it.
_TURN_TOKENS = 4
_WINDOW_TURNS = 2
_VOCABULARY = 500
# Played episodes for every one that runs at the same time: as many ramp up unmeasured.
_MEASURED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class _Episode:
    """Ids: ``first``, what every prompt begins with; of each step ``seen`` and ``said``."""

    name: str
    first: list[int]
    seen: list[list[int]]
    said: list[list[int]]

    def rows(
        self, num_turns: int | None, steps: Sequence[int], evidence: Sequence[int] = ()
    ) -> Iterator[TrainingRow]:
        """Those of ``steps``, each prompt with ``num_turns`` turns before it; None: all of them."""
        for step in steps:
            turns = range(0 if num_turns is None else max(step - num_turns, 0), step)
            before = [*self.first, *(token for turn in turns for token in self.seen[turn] + self.said[turn])]
            seen, to_answer = self.seen[step][:-_TURN_TOKENS], self.seen[step][-_TURN_TOKENS:]
            with_evidence = [*before, *seen, *evidence, *to_answer]
            yield TrainingRow(
                group_id="made up",
                trajectory_id=self.name,
                step_index=step,
                prompt_ids=before + self.seen[step],
                response_ids=self.said[step],
                old_logprobs=[-1.0] * len(self.said[step]),
                action_mask=[True] * len(self.said[step]),
                advantage=1.0 if step % 2 else -1.0,
                weights_seq_no=0,
                teacher_prompt_ids=with_evidence if evidence else None,
            )


def conversations(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    """Row by row only every ``options.every``-th step is trained, and counted that often."""
    arm = with_settings(experiment, learner={"num_learners": 0})
    episodes = list(_episodes(options))
    every_step = range(options.steps)
    some_steps = range(options.every // 2, options.steps, options.every)
    evidence = np.random.default_rng(1).integers(_VOCABULARY, size=options.evidence_tokens).tolist()

    def batch(num_turns: int | None, steps: Sequence[int], evidence: Sequence[int] = ()) -> TrainingRows:
        return TrainingRows.of([row for one in episodes for row in one.rows(num_turns, steps, evidence)])

    batches = {
        "conversation": batch(None, every_step),
        "conversation with a teacher": batch(None, every_step, evidence),
        "windows": batch(_WINDOW_TURNS, every_step),
        "row by row": batch(None, some_steps),
    }
    scale = {name: 1.0 for name in batches} | {"row by row": options.steps / len(some_steps)}
    learners = SERLLearnerGroup(config=SERLConfig.from_experiment(arm, str(model_dir), str(model_dir)))
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in batches}
    # The first turn is not measured. All are update 0, at which λ has not begun to decay.
    for _ in range(1 + options.repetitions):
        for name, rows in batches.items():
            local_learner(learners).policy.lay_out("padded" if name == "row by row" else "tree")
            result = learners.poll_update(learners.start_update(rows, 0), timeout_s=0.0)
            assert result is not None, "a local learner has finished when start_update returns"
            measured[name].append({key: scale[name] * value for key, value in result.metrics.items()})
            gc.collect()
    figures.note(
        f"{experiment.model.path}: {len(episodes)} dialogues of {options.steps} steps, the last prompt of "
        f"{int(batches['conversation'].prompt_ids.lengths.max())} tokens; micro-batches of up to "
        f"{experiment.learner.micro_batch_tokens}; {options.repetitions} updates"
    )
    for name, of_updates in measured.items():
        figures.add(f"{name}, tokens computed", (own["num_computed_tokens"] for own in of_updates[1:]), "")
        figures.add(f"{name}, training", (own["seconds_forward_backward"] for own in of_updates[1:]), "s")
    of_teacher = measured["conversation with a teacher"][1:]
    figures.add("teacher, tokens computed", (own["num_computed_teacher_tokens"] for own in of_teacher), "")
    figures.add("teacher", (own["seconds_teacher"] for own in of_teacher), "s")
    tokens, seconds = "conversation, tokens computed", "conversation, training"
    figures.add_ratio(tokens, "row by row, tokens computed", at_most=0.12)
    figures.add_ratio(seconds, "row by row, training", at_most=0.2)
    figures.add_ratio(seconds, "windows, training", at_most=0.5)
    figures.add_ratio("teacher, tokens computed", tokens)
    figures.add_ratio("teacher", seconds, at_most=0.2)


def prompts(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    """Env runners with either form of prompts take turns on one deployment."""
    windows, conversations = (
        with_settings(experiment, rollout={"prompt": form}) for form in ("window", "conversation")
    )
    played: dict[str, list[Played]] = {"window": [], "conversation": []}
    with (
        local_cluster() as run_dir,
        player_on_deployment(windows, model_dir, run_dir) as (player, names),
    ):
        other = Player(conversations, model_dir, run_dir, functools.partial(PolicyClient, names))
        try:
            for _ in range(options.repetitions):
                for form, own in (("window", player), ("conversation", other)):
                    own.play_steadily(own.capacity)
                    played[form].append(own.play_steadily(_MEASURED_ROUNDS * own.capacity))
                    own.finish()
        finally:
            other.stop()
    figures.note(
        f"{experiment.model.path}: {player.capacity} episodes at a time of up to {experiment.env.max_steps} "
        f"steps, prompts of up to {experiment.rollout.max_prompt_length} tokens, {options.repetitions} "
        f"repetitions of {_MEASURED_ROUNDS * player.capacity} measured episodes"
    )
    for form, own in played.items():
        _report_played(form, own, figures)
    figures.add_ratio("conversation, env steps", "window, env steps")


def _report_played(form: str, played: Sequence[Played], figures: Figures) -> None:
    lengths = [[len(trajectory.steps) for trajectory in one.trajectories] for one in played]
    figures.add(f"{form}, steps of an episode", map(mean, lengths), "")
    for counter, what in (
        ("prompt_tokens", "prompt tokens"),
        ("response_tokens", "response tokens"),
        ("cut_prompts", "cut prompts"),
    ):
        of_a_step = (one.counters[counter] / one.counters["env_steps"] for one in played)
        figures.add(f"{form}, {what}", of_a_step, "/step")
    goal = {"at_least": 0.8} if form == "conversation" else {}
    figures.add(f"{form}, prompt tokens cached", (one.cached_share for one in played), "of all", **goal)
    for kind in (REPLICA, ENV_RUNNER):
        milliseconds = (one.processor_ms_per_step(kind) for one in played)
        figures.add(f"{form}, processor time, {kind}", milliseconds, "ms/step")
    figures.add(f"{form}, env steps", (one.per_s("env_steps") for one in played), "steps/s")


def _episodes(options: argparse.Namespace) -> Iterator[_Episode]:
    draw = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return draw.integers(_VOCABULARY, size=count).tolist()

    first = ids(options.first_tokens)
    for number in range(options.episodes):
        seen = [ids(options.observation_tokens + _TURN_TOKENS) for _ in range(options.steps)]
        said = [ids(options.response_tokens) for _ in range(options.steps)]
        yield _Episode(f"episode {number}", first, seen, said)
