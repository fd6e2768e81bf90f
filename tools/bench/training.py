"""Updates against bare forward and backward passes; the start of whole runs."""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from torch import Tensor

import serl.algorithm
import serl.run.cli
from serl.algorithm import SERLConfig
from serl.batch.assemble import build_rows
from serl.batch.packing import plan_update
from serl.batch.rows import TrainingRows
from serl.config import ExperimentConfig
from serl.iteration import Progress
from serl.learner.learner_group import SERLLearnerGroup, UpdateResult
from serl.private.rllib import local_learner
from serl.rollout.prompt import PromptEncoder
from serl.run.console import Console
from serl.types import TrainingRow, TrajectoryGroup
from tools.bench.figures import Figures
from tools.bench.learner_profile import Profile, peak, profiled, report
from tools.bench.play import local_cluster, player_on_deployment, with_settings
from tools.bench.synchronisations import HostSynchronisations

_IGNORED = -100
_ROW_BY_ROW = "GRPO row by row"
# Reading a profile takes longer than the update.
_PROFILED_GROUPS = 2

# One start, with everything that ends after it.
_START_TIMEOUT_S = 600.0
_IMPORTED, _FIRST_EPISODE = "imported", "first episode"
# From a moment to a moment, and what happens between them. One after another these are all there is; parts
# that begin with "of it" or "beside" lie within others.
_PARTS = (
    ("command", _IMPORTED, "imports"),
    (_IMPORTED, "ray begins", "reading and checking the experiment"),
    ("ray begins", "ray ends", "Ray"),
    ("ray ends", "serve ends", "Ray Serve"),
    ("serve ends", "runners and learners end", "env runners and learners"),
    ("learners begin", "learners end", "of it learners"),
    ("runners and learners end", "replica ends", "waiting for the replica alone"),
    ("serve ends", "replica ends", "beside these: the replica"),
    ("replica ends", _FIRST_EPISODE, "tasks and the first episode"),
)


def learner(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    serl_arm = with_settings(experiment, learner={"num_learners": 0})
    grpo_arm = with_settings(serl_arm, hindsight={"enabled": False})
    arms = {"SERL": serl_arm, "GRPO": grpo_arm, _ROW_BY_ROW: grpo_arm}
    encoder = PromptEncoder.load(str(model_dir))
    with local_cluster() as run_dir:
        with player_on_deployment(experiment, model_dir, run_dir) as (player, _):
            groups = player.play_groups(experiment.training.groups_per_batch)
        bare = _BarePasses(grpo_arm, model_dir, encoder, groups)
        learners = {name: _learner_of(arm, model_dir) for name, arm in arms.items()}
        local_learner(learners[_ROW_BY_ROW]).policy.lay_out("padded")
        num_computed: dict[str, list[float]] = {name: [] for name in arms}
        updates: list[dict[str, float]] = []
        # The first turn is not measured: memory is asked for, libraries warm up.
        for weights_seq_no in range(1 + options.repetitions):
            own = {"bare forward and backward": bare.run()}
            for name, arm in arms.items():
                started = time.perf_counter()
                rows, _ = build_rows(groups, arm, encoder, weights_seq_no)
                result = _update(learners[name], rows, weights_seq_no)
                own[f"{name} from groups to new weights"] = time.perf_counter() - started
                own[f"{name} update"] = result.metrics["seconds_update"]
                num_computed[name].append(result.metrics["num_computed_tokens"])
                for part in ("teacher", "forward_backward", "optimizer"):
                    own[f"{name}, of it {part}"] = result.metrics[f"seconds_{part}"]
            updates.append(own)
        with HostSynchronisations() as waits:
            rows, _ = build_rows(groups, grpo_arm, encoder, len(updates))
            _update(learners["GRPO"], rows, len(updates))
        num_passes = len(_micro_batches(grpo_arm, encoder, groups, as_trees=True))
        rows, _ = build_rows(groups[:_PROFILED_GROUPS], grpo_arm, encoder, len(updates))
        profiles, peaks = _profiles(learners["GRPO"], rows, len(updates), options)
    figures.note(
        f"{experiment.model.path}: {len(groups)} groups of {experiment.training.group_size}, "
        f"{bare.num_rows} rows with an advantage, {bare.num_tokens} tokens in {len(bare.tensors)} "
        f"micro-batches of up to {experiment.learner.micro_batch_tokens}; {options.repetitions} updates"
    )
    figures.add("tokens of a row", [bare.num_tokens / bare.num_rows], "")
    figures.add("padding, of all positions", [1.0 - bare.num_tokens / bare.num_positions], "")
    figures.add("host synchronisations of a micro-batch", [waits.number / num_passes], "")
    figures.add_all(updates[1:], "s")
    for name in ("GRPO", _ROW_BY_ROW):
        figures.add(f"{name} tokens computed", num_computed[name][1:], "")
    figures.add_ratio("GRPO tokens computed", f"{_ROW_BY_ROW} tokens computed", at_most=0.8)
    figures.add_ratio("GRPO update", f"{_ROW_BY_ROW} update", at_most=0.9)
    # Both compute the same tokens.
    figures.add_ratio("bare forward and backward", f"{_ROW_BY_ROW} update", at_least=0.9)
    figures.add_ratio("SERL update", "GRPO update", at_most=1.2)
    figures.add_ratio("SERL, of it teacher", "GRPO update", at_most=0.2)
    figures.add_ratio("SERL from groups to new weights", "GRPO from groups to new weights")
    if options.profile:
        report(profiles, peaks, figures)


def _update(learner: SERLLearnerGroup, rows: TrainingRows, weights_seq_no: int) -> UpdateResult:
    result = learner.poll_update(learner.start_update(rows, weights_seq_no), timeout_s=0.0)
    assert result is not None, "a local learner has finished when start_update returns"
    return result


def _profiles(
    learner: SERLLearnerGroup, rows: TrainingRows, weights_seq_no: int, options: argparse.Namespace
) -> tuple[list[Profile], list[float]]:
    """Of as many updates as repetitions, with ``options.profile``, each with what the machine can do."""
    vocabulary = local_learner(learner).policy.model.config.vocab_size
    profiles: list[Profile] = []
    peaks: list[float] = []
    for _ in range(options.repetitions if options.profile else 0):
        peaks.append(peak())
        profiles.append(profiled(lambda: _update(learner, rows, weights_seq_no), vocabulary))
    return profiles, peaks


def _learner_of(experiment: ExperimentConfig, model_dir: Path) -> SERLLearnerGroup:
    return SERLLearnerGroup(config=SERLConfig.from_experiment(experiment, str(model_dir), str(model_dir)))


class _BarePasses:
    """transformers alone: forward and backward over the micro-batches of GRPO's update, padded rows.

    Nothing else is in the measured seconds, neither making tensors nor an optimizer.
    """

    def __init__(
        self,
        experiment: ExperimentConfig,
        model_dir: Path,
        encoder: PromptEncoder,
        groups: list[TrajectoryGroup],
    ) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        attention = experiment.model.attention
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation=attention, local_files_only=True
        )
        self._model.train()
        self._threads = experiment.learner.num_threads
        batches = _micro_batches(experiment, encoder, groups, as_trees=False)
        self.num_rows = sum(map(len, batches))
        self.num_tokens = sum(_num_tokens(row) for batch in batches for row in batch)
        if not self.num_rows:
            raise RuntimeError("no row of the played groups has an advantage")
        self.tensors = [_padded(batch) for batch in batches]
        self.num_positions = sum(ids.numel() for ids, _ in self.tensors)

    def run(self) -> float:
        """Seconds."""
        torch.set_num_threads(self._threads)
        started = time.perf_counter()
        for ids, labels in self.tensors:
            self._model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        seconds = time.perf_counter() - started
        self._model.zero_grad()
        return seconds


def _micro_batches(
    experiment: ExperimentConfig, encoder: PromptEncoder, groups: list[TrajectoryGroup], as_trees: bool
) -> list[list[TrainingRow]]:
    """The rows that each forward pass of an update holds."""
    rows, _ = build_rows(groups, experiment, encoder, 0)
    settings = experiment.learner
    (plan,) = plan_update(
        rows,
        num_learners=1,
        num_minibatches=settings.num_minibatches,
        num_epochs=settings.num_epochs,
        micro_batch_tokens=settings.micro_batch_tokens,
        seed=(experiment.seed, 0),
        as_trees=as_trees,
    )
    batches = [batch for minibatch in plan.minibatches for batch in minibatch.micro_batches if batch]
    return [[plan.rows.row(row) for row in batch] for batch in batches]


def _num_tokens(row: TrainingRow) -> int:
    return len(row.prompt_ids) + len(row.response_ids)


def _padded(rows: Sequence[TrainingRow]) -> tuple[Tensor, Tensor]:
    """Ids and labels [R, longest], filled up on the right; only responses have labels."""
    shape = len(rows), max(map(_num_tokens, rows))
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, _IGNORED)
    for index, row in enumerate(rows):
        ids[index, : _num_tokens(row)] = torch.tensor(row.prompt_ids + row.response_ids)
        labels[index, len(row.prompt_ids) : _num_tokens(row)] = torch.tensor(row.response_ids)
    return ids, labels


def startup(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    """Of the command `serl-run`, to its first finished episode; it reads the experiment itself."""
    starts = [_start(experiment.model.path, options) for _ in range(options.repetitions)]
    figures.note(f"{options.experiment}: {options.repetitions} starts")
    figures.add(_FIRST_EPISODE, (moments[_FIRST_EPISODE] for moments in starts), "s", at_most=60.0)
    for begin, end, what in _PARTS:
        figures.add(what, (moments[end] - moments.get(begin, 0.0) for moments in starts), "s")
        figures.add_ratio(what, _FIRST_EPISODE)


def _start(model: str, options: argparse.Namespace) -> dict[str, float]:
    """The moments of one start, in seconds since the command."""
    with tempfile.TemporaryDirectory(prefix="serl-bench-") as folder:
        moments = Path(folder) / "moments.json"
        overrides = [*options.overrides, f"model.path={model}"]
        overrides += [f"output_dir={folder}", "cluster.dashboard=false"]
        command = [sys.executable, "-m", "tools.bench.training", str(time.time()), str(moments)]
        finished = subprocess.run(
            [*command, str(options.experiment), *overrides],
            timeout=_START_TIMEOUT_S,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode or not moments.is_file():
            raise RuntimeError(f"serl-run failed ({finished.returncode}): {finished.stdout}{finished.stderr}")
        return json.loads(moments.read_text(encoding="utf-8"))


class _Watch:
    """Notes moments, in seconds since ``started``; the first of a name counts."""

    def __init__(self, started: float) -> None:
        self._started = started
        self.moments: dict[str, float] = {}

    def note(self, moment: str) -> None:
        self.moments.setdefault(moment, time.time() - self._started)

    def around(self, owner: Any, function: str, begins: str, ends: str) -> None:
        """Notes when ``owner.function`` begins and ends."""
        timed: Callable[..., Any] = getattr(owner, function)

        @functools.wraps(timed)
        def call(*arguments: Any, **options: Any) -> Any:
            self.note(begins)
            try:
                return timed(*arguments, **options)
            finally:
                self.note(ends)

        setattr(owner, function, call)


def run_to_first_episode() -> int:
    """`serl-run` with a watch in its hand: ``STARTED MOMENTS.json EXPERIMENT.yaml [key.path=value …]``."""
    started, file, *arguments = sys.argv[1:]
    # Of arguments that it is given, `main` hears no signals.
    sys.argv[1:] = arguments
    watch = _Watch(float(started))
    watch.note(_IMPORTED)
    watch.around(ray, "init", "ray begins", "ray ends")
    watch.around(serl.algorithm, "start_serving", "serve begins", "serve ends")
    watch.around(Algorithm, "setup", "runners and learners begin", "runners and learners end")
    watch.around(SERLConfig, "build_learner_group", "learners begin", "learners end")
    watch.around(serl.algorithm, "wait_until_ready", "replica alone begins", "replica ends")

    def progress(self: Console, progress: Progress) -> None:
        if progress.episodes and _FIRST_EPISODE not in watch.moments:
            watch.note(_FIRST_EPISODE)
            Path(file).write_text(json.dumps(watch.moments), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGINT)

    Console.progress = progress
    return serl.run.cli.main()


if __name__ == "__main__":
    sys.exit(run_to_first_episode())
