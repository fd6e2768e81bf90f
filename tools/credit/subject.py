"""What is measured: a model, which plays groups of its own, or a run, whose recorded groups are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.base import EnvProvider, MeasuringProvider, Task
from envs.registry import make_provider
from serl.buffer.task_sampler import TaskSampler, evaluation_requests
from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.config.nearest import name_hint
from serl.models.resolve import ModelPathError, resolve_model
from serl.run.run_dir import CONFIG
from serl.types import TeacherRecords, TrajectoryGroup
from tools.credit.measuring import sections
from tools.credit.playing import play_groups
from tools.credit.policy import Policy
from tools.credit.recorded import read_groups
from tools.inspect.reading import Problems

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
# Of those that ship, the first whose policy is the one that is measured says how it plays.
_QUICKSTARTS = ("quickstart.yaml", "webshop_quickstart.yaml")


class SubjectError(ValueError):
    """There is nothing to measure; the text says why and what to do."""


@dataclass(slots=True)
class Subject:
    """``records`` None: nothing was trained. ``notes`` are sentences about what was left out."""

    name: str
    config: ExperimentConfig
    provider: MeasuringProvider
    policy: Policy | None
    groups: list[TrajectoryGroup]
    records: TeacherRecords | None = None
    notes: list[str] = field(default_factory=list)


def open_subject(
    name: str,
    overrides: Sequence[str],
    experiment: Path | None,
    num_groups: int,
    names: Sequence[str],
    seed: int,
) -> Subject:
    """The run in the folder ``name``, or the model of that name, whose ``num_groups`` groups are played.

    ``names`` are of evidence that will be asked for. Raises SubjectError, ConfigError, ModelPathError, and
    what the environment raises for wrong arguments (ValueError, OSError).
    """
    is_run = (Path(name) / CONFIG).is_file()
    if is_run:
        config = load_experiment(Path(name) / CONFIG, overrides, recorded=True)
    else:
        config = load_experiment(experiment or _experiment_of(name), overrides)
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": name})})
    known = sections(config)
    for wanted in names:
        if wanted not in known:
            hint = name_hint(wanted, known)
            raise SubjectError(f"{wanted!r} is no source or mode that can be measured{hint}")
    provider = _measuring(config)
    if is_run:
        return _recorded(Path(name), config, provider, seed)
    policy = Policy.load(resolve_model(name), config, seed)
    sampler = TaskSampler(provider.task_set(config.env.train_split), 1, config.seed)
    tasks = [sampler.next_group()[0].task for _ in range(num_groups)]
    return Subject(name, config, provider, policy, play_groups(provider, policy, config, tasks))


def evaluation_tasks(subject: Subject, num_tasks: int) -> list[Task]:
    """The first ``num_tasks`` tasks of the experiment's evaluation, fewer where it has fewer.

    Raises SubjectError if it has none.
    """
    config = subject.config
    try:
        task_set = subject.provider.task_set(config.evaluation.split)
    except (ValueError, OSError) as error:
        raise SubjectError(f"no tasks to play with hints, --games 0 leaves them out: {error}") from error
    requests = evaluation_requests(task_set, min(num_tasks, len(task_set)), config.seed)
    return [request.task for request in requests]


def _recorded(run_dir: Path, config: ExperimentConfig, provider: MeasuringProvider, seed: int) -> Subject:
    """With the policy that the run began with as the teacher, where it can be had."""
    problems = Problems()
    notes: list[str] = []
    try:
        policy = Policy.load(resolve_model(config.model.path), config, seed)
    except ModelPathError as error:
        policy = None
        notes.append(f"only what the run recorded is measured, there is no teacher: {error}")
    try:
        read = read_groups(run_dir, config, policy.encoder if policy else None, problems)
    except OSError as error:
        raise SubjectError(f"{run_dir}: no trajectories were recorded: {error}") from error
    if read.num_left_out:
        notes.append(
            f"{read.num_left_out} trajectories left out: their groups were recorded in part; whole ones need "
            f"logging.trajectories_per_iteration of at least training.group_size = "
            f"{config.training.group_size}"
        )
    if problems.count:
        notes.append(f"{problems.count} lines left out, the first: {problems.named[0]}")
    return Subject(run_dir.name, config, provider, policy, read.groups, read.records, notes)


def _measuring(config: ExperimentConfig) -> MeasuringProvider:
    provider: EnvProvider = make_provider(config.env.name, config.env.args)
    if not isinstance(provider, MeasuringProvider):
        raise SubjectError(
            f"env.name = {config.env.name!r}: its provider cannot tell progress; give it the method "
            "`progress` (see envs/base.py)"
        )
    return provider


def _experiment_of(model: str) -> Path:
    found = [EXPERIMENTS / name for name in _QUICKSTARTS]
    return next((path for path in found if load_experiment(path).model.path == model), found[0])
