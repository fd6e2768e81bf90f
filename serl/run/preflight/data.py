"""The environment and its tasks."""

from __future__ import annotations

from dataclasses import dataclass

from envs.base import EnvProvider, MeasuringProvider, TaskSet, assert_disjoint
from envs.registry import make_provider
from serl.config import ExperimentConfig
from serl.config.registry import raised_where
from serl.rollout.progress import cannot_measure
from serl.run.preflight.finding import Finding


@dataclass(frozen=True, slots=True)
class Tasks:
    """What an experiment plays."""

    provider: EnvProvider
    train: TaskSet
    held_out: TaskSet


def open_tasks(experiment: ExperimentConfig) -> tuple[Tasks | None, list[Finding]]:
    """The tasks and what is to be said of them; None if they cannot be had."""
    env, evaluation = experiment.env, experiment.evaluation
    try:
        provider = make_provider(env.name, env.args)
        train, held_out = provider.task_set(env.train_split), provider.task_set(evaluation.split)
        assert_disjoint(train, held_out)
    except (ValueError, OSError) as error:
        return None, [Finding("wrong", "data", str(error))]
    except (Exception, SystemExit) as error:  # environments may raise anything
        return None, [Finding("wrong", "data", f"env.name = {env.name!r}: {raised_where(error)}")]
    if empty := [task_set.name for task_set in (train, held_out) if not task_set.tasks]:
        return None, [Finding("wrong", "data", f"{' and '.join(empty)}: no tasks")]
    findings = [Finding("ok", "data", _in_words(task_set)) for task_set in (train, held_out)]
    if evaluation.num_tasks > len(held_out):
        text = (
            f"evaluation.num_tasks = {evaluation.num_tasks} contradicts evaluation.split = "
            f"{evaluation.split!r}, which has {len(held_out)} tasks"
        )
        findings.append(Finding("wrong", "data", text))
    asks_for_progress = {
        "logging.credit = true": experiment.logging.credit,
        "hindsight.control = progress": experiment.hindsight.control == "progress",
    }
    findings += [
        Finding("wrong", "environment", cannot_measure(experiment, setting))
        for setting, is_set in asks_for_progress.items()
        if is_set and not isinstance(provider, MeasuringProvider)
    ]
    return Tasks(provider, train, held_out), findings


def _in_words(task_set: TaskSet) -> str:
    skipped = f", {len(task_set.skipped)} damaged ones skipped" if task_set.skipped else ""
    notes = "".join(f", {note}" for note in task_set.notes)
    return (
        f"{task_set.name}: {len(task_set)} tasks{skipped}, content hash {task_set.content_hash[:12]}{notes}"
    )
