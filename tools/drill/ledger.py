"""Whether a complete run, whatever happened to it, has done what an unbroken one would have.

Every check takes the run's `Books` and its experiment, and yields one sentence for each violation. The
experiment must record every trajectory, or what was trained is not known.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from serl.config import ExperimentConfig
from serl.hindsight.schedules import teacher_lambda
from serl.learner.optimizer import learning_rate
from tools.drill.books import Books, Row


def violations(
    books: Books, experiment: ExperimentConfig, tasks_in_a_pass: Sequence[Sequence[str]], num_damaged: int = 0
) -> list[str]:
    """What is wrong, nothing if all is well.

    ``tasks_in_a_pass`` has the task ids of each pass of the sampler, in the order they are dealt, as many
    passes as the run began. ``num_damaged`` checkpoints are known to have been damaged.
    """
    return [
        *books.unreadable,
        *_updates(books, experiment),
        *_schedules(books, experiment),
        *_groups(books, experiment),
        *_staleness(books, experiment),
        *_evaluations(books, experiment),
        *_checkpoints(books, experiment, num_damaged),
        *_sampler(books, tasks_in_a_pass),
    ]


def _updates(books: Books, experiment: ExperimentConfig) -> Iterator[str]:
    found = [row["iteration"] for row in books.updates]
    wanted = list(range(1, experiment.training.num_iterations + 1))
    if found != wanted:
        yield f"updates are {found}, not each of 1 to {len(wanted)} once and in order"
    for row in books.updates:
        if row.get("weights_seq_no") != row["iteration"]:
            yield f"update {row['iteration']}: weights_seq_no is {row.get('weights_seq_no')}"


def _schedules(books: Books, experiment: ExperimentConfig) -> Iterator[str]:
    num_updates = experiment.training.num_iterations
    for row in books.updates:
        before = row["iteration"] - 1
        wanted = {
            "learner/lr": learning_rate(experiment.learner, before, num_updates),
            "learner/effective_lambda": teacher_lambda(experiment.hindsight, before),
        }
        for name, value in wanted.items():
            found = row.get(name, 0.0)
            if found is None or not math.isclose(found, value, rel_tol=1e-6, abs_tol=1e-12):
                yield f"update {row['iteration']}: {name} is {found}, {value:g} in an unbroken run"


def _groups(books: Books, experiment: ExperimentConfig) -> Iterator[str]:
    """Whole, as many as an update has, each trained in one update."""
    training = experiment.training
    groups: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in books.trajectories:
        groups[row["iteration"], row["group_id"]].append(row)
    for (iteration, group_id), rows in groups.items():
        members = sorted(row["rollout_index"] for row in rows)
        if members != list(range(training.group_size)):
            yield f"update {iteration}: group {group_id} has the rollouts {members} of {training.group_size}"
        if len({row["task_id"] for row in rows}) > 1:
            yield f"update {iteration}: group {group_id} has trajectories of different tasks"
    for group_id, count in Counter(group_id for _, group_id in groups).items():
        if count > 1:
            yield f"group {group_id} was trained in {count} updates"
    for trajectory_id, count in Counter(row["trajectory_id"] for row in books.trajectories).items():
        if count > 1:
            yield f"trajectory {trajectory_id} was trained {count} times"
    in_update = Counter(iteration for iteration, _ in groups)
    for row in books.updates:
        iteration = row["iteration"]
        if in_update[iteration] != training.groups_per_batch:
            yield f"update {iteration} trained {in_update[iteration]} groups of {training.groups_per_batch}"
        taken = row.get("buffer/groups_taken")
        if taken != iteration * training.groups_per_batch:
            yield f"update {iteration}: {taken} groups taken since the run began"


def _staleness(books: Books, experiment: ExperimentConfig) -> Iterator[str]:
    """Neither older than allowed, nor of weights that came after the update or were undone."""
    most = experiment.training.max_staleness
    for row in books.updates:
        if row.get("staleness/max", 0.0) > most:
            yield f"update {row['iteration']}: staleness/max is {row['staleness/max']:g}, more than {most}"
    for row in books.trajectories:
        versions = [span[2] for step in row["steps"] for span in step["version_spans"]]
        trains = row["iteration"] - 1
        where = f"update {row['iteration']}: trajectory {row['trajectory_id']}"
        if versions and trains - min(versions) > most:
            yield f"{where} was sampled {trains - min(versions)} updates before, more than {most}"
        if versions and max(versions) > trains:
            yield f"{where} was sampled by weights {max(versions)}, of which there were {trains}"


def evaluations_due(experiment: ExperimentConfig) -> list[int]:
    """After which updates a complete run has been evaluated, 0 for its start."""
    settings, last = experiment.evaluation, experiment.training.num_iterations
    between = range(settings.interval, last, settings.interval) if settings.interval else ()
    return [*([0] if settings.at_start else []), *between, *([last] if settings.at_end else [])]


def _evaluations(books: Books, experiment: ExperimentConfig) -> Iterator[str]:
    due = evaluations_due(experiment)
    for name, rows in (
        ("evaluations", books.evaluations),
        ("metrics of evaluations", [row for row in books.metrics if "evaluation/success" in row]),
    ):
        found = [row["iteration"] for row in rows]
        if found != due:
            yield f"{name} are those of iterations {found}, due are {due}"
    for row in books.evaluations:
        if row["unfinished"]:
            yield f"evaluation of iteration {row['iteration']}: {row['unfinished']} tasks gave no episode"


def _checkpoints(books: Books, experiment: ExperimentConfig, num_damaged: int) -> Iterator[str]:
    last = f"iteration_{experiment.training.num_iterations:06d}"
    if last not in books.checkpoints:
        yield f"there is no sound {last}, only {sorted(books.checkpoints)}"
    for name, state in books.checkpoints.items():
        if name != f"iteration_{state['weights_seq_no']:06d}":
            yield f"{name} is of update {state['weights_seq_no']}"
    if len(books.checkpoints) > experiment.checkpoint.keep:
        yield f"{len(books.checkpoints)} checkpoints are kept, not {experiment.checkpoint.keep}"
    damaged = [name for name in books.other_folders if ".damaged" in name]
    if len(damaged) != num_damaged:
        yield f"set aside as damaged are {damaged}; {num_damaged} were damaged"
    if more := set(books.other_folders) - set(damaged):
        yield f"among the checkpoints lie {sorted(more)}"


def _sampler(books: Books, tasks_in_a_pass: Sequence[Sequence[str]]) -> Iterator[str]:
    """What was dealt has been trained or waits to be dealt again, each task as often as it was dealt."""
    if not books.checkpoints:
        return
    state = books.checkpoints[max(books.checkpoints)]
    sampler, buffer = state["sampler"], state["buffer"]
    present: int = sampler["pass"]
    dealt = Counter(task for tasks in tasks_in_a_pass[:present] for task in tasks)
    dealt.update(tasks_in_a_pass[present][: sampler["position"]])
    tasks = {row["group_id"]: row["task_id"] for row in books.trajectories}
    accounted = Counter(
        [*tasks.values(), *sampler["requeued"], *(task["task_id"] for task in buffer["tasks"])]
    )
    for task, count in (accounted - dealt).items():
        number = dealt[task] + count
        yield f"task {task} was dealt {dealt[task]} times, trained or waiting it is {number} times"
    counters = buffer["counters"]
    discarded = sum(counters.get(f"groups_discarded_{why}", 0) for why in ("failed", "zero_variance"))
    lost = dealt - accounted
    if lost.total() != discarded:
        missing = f"{lost.total()} tasks that were dealt are neither trained nor waiting: {sorted(lost)}"
        yield f"{missing}; {discarded} groups were discarded"
