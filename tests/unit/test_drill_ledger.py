"""The ledger of a drill finds each kind of violation in hand-made files of a run, and none in a clean one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serl.algorithm_state import algorithm_state_digest, write_algorithm_state
from serl.config.load import load_experiment
from serl.manifest import write_manifest
from tools.drill.books import read_books
from tools.drill.ledger import violations

_REPOSITORY = Path(__file__).resolve().parents[2]
_EXPERIMENT = load_experiment(
    _REPOSITORY / "experiments" / "quickstart.yaml",
    [
        "training.num_iterations=4",
        "training.groups_per_batch=2",
        "training.group_size=2",
        "learner.lr=0.4",
        "hindsight.lambda_decay_steps=8",
        "evaluation.interval=2",
        "checkpoint.interval=2",
    ],
)
# Twelve tasks a pass; eight were trained, the ninth waits in the buffer, the tenth to be dealt again.
_TASKS = [[f"t{number}" for number in range(12)]]

Rows = list[dict[str, Any]]


def _metrics() -> Rows:
    rows: Rows = [{"iteration": 0, "evaluation/success": 0.0}]
    for iteration, lr, teacher in ((1, 0.4, 0.5), (2, 0.3, 0.4375), (3, 0.2, 0.375), (4, 0.1, 0.3125)):
        rows.append(
            {
                "iteration": iteration,
                "weights_seq_no": float(iteration),
                "learner/loss": None,
                "learner/lr": lr,
                "learner/effective_lambda": teacher,
                "buffer/groups_taken": 2.0 * iteration,
                "staleness/max": 1.0 if iteration > 1 else 0.0,
            }
        )
        if iteration % 2 == 0:
            rows.append({"iteration": iteration, "evaluation/success": 0.5})
    return rows


def _trajectories() -> Rows:
    return [
        {
            "iteration": 1 + group // 2,
            "group_id": f"g{group}",
            "trajectory_id": f"g{group}-{member}",
            "rollout_index": member,
            "task_id": f"t{group}",
            "steps": [{"version_spans": [[0, 5, max(0, group // 2 - 1)], [5, 8, group // 2]]}],
        }
        for group in range(8)
        for member in range(2)
    ]


def _state(iteration: int) -> dict[str, Any]:
    return {
        "has_manifest": True,
        "weights_seq_no": iteration,
        "sampler": {"pass": 0, "position": 10, "requeued": ["t9"]},
        "buffer": {"counters": {}, "tasks": [{"task_id": "t8", "task_type": ""}]},
    }


def _save_checkpoint(run_dir: Path, name: str, state: dict[str, Any]) -> None:
    folder = run_dir / "checkpoints" / name
    folder.mkdir(parents=True)
    write_manifest(folder, {"algorithm.json": algorithm_state_digest(state)})
    write_algorithm_state(folder, state)


def _write(file: Path, rows: Rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _rows(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """That of a complete run with a clean ledger."""
    _write(tmp_path / "metrics.jsonl", _metrics())
    _write(tmp_path / "evaluations.jsonl", [{"iteration": n, "unfinished": 0} for n in (0, 2, 4)])
    _write(tmp_path / "trajectories.jsonl", _trajectories())
    for iteration in (2, 4):
        _save_checkpoint(tmp_path, f"iteration_{iteration:06d}", _state(iteration))
    return tmp_path


def _found(run_dir: Path, num_damaged: int = 0) -> list[str]:
    return violations(read_books(run_dir), _EXPERIMENT, _TASKS, num_damaged)


def test_an_unbroken_run_has_no_violation(run_dir: Path) -> None:
    assert _found(run_dir) == []


def _with(row: int, **changed: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[row].update({name.replace("__", "/"): value for name, value in changed.items()})


def _drop(row: int) -> Callable[[Rows], None]:
    return lambda rows: rows.remove(rows[row])


def _move_last_to(row: int) -> Callable[[Rows], None]:
    return lambda rows: rows.insert(row, rows.pop())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_drop(2), "updates are [1, 3, 4], not each of 1 to 4 once and in order"),
        (lambda rows: rows.insert(3, rows[2]), "updates are [1, 2, 2, 3, 4], not each of 1 to 4"),
        (_with(1, weights_seq_no=2.0), "update 1: weights_seq_no is 2.0"),
        (_with(2, learner__lr=0.4), "update 2: learner/lr is 0.4, 0.3 in an unbroken run"),
        (
            _with(2, learner__effective_lambda=1.0),
            "learner/effective_lambda is 1.0, 0.4375 in an unbroken run",
        ),
        (_with(5, buffer__groups_taken=10.0), "update 4: 10.0 groups taken since the run began"),
        (_with(2, staleness__max=2.0), "update 2: staleness/max is 2, more than 1"),
        (_drop(0), "metrics of evaluations are those of iterations [2, 4], due are [0, 2, 4]"),
    ],
)
def test_what_is_wrong_with_the_metrics_is_found(
    run_dir: Path, change: Callable[[Rows], None], sentence: str
) -> None:
    _changed(run_dir / "metrics.jsonl", change)
    assert any(sentence in found for found in _found(run_dir)), _found(run_dir)


def _changed(file: Path, change: Callable[[Rows], None]) -> None:
    rows = _rows(file)
    change(rows)
    _write(file, rows)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_drop(3), "update 1: group g1 has the rollouts [0] of 2"),
        (_with(3, rollout_index=0), "update 1: group g1 has the rollouts [0, 0] of 2"),
        (_with(1, task_id="t1"), "group g0 has trajectories of different tasks"),
        (_with(3, trajectory_id="g0-0"), "trajectory g0-0 was trained 2 times"),
        (lambda rows: [row.update(group_id="g0") for row in rows[4:6]], "group g0 was trained in 2 updates"),
        (lambda rows: rows.__delitem__(slice(4, 6)), "update 2 trained 1 groups of 2"),
        (
            _with(8, steps=[{"version_spans": [[0, 5, 0], [5, 8, 2]]}]),
            "update 3: trajectory g4-0 was sampled 2 updates before, more than 1",
        ),
        (
            _with(8, steps=[{"version_spans": [[0, 5, 2], [5, 8, 3]]}]),
            "update 3: trajectory g4-0 was sampled by weights 3, of which there were 2",
        ),
        (
            lambda rows: [row.update(task_id="t0") for row in rows[2:4]],
            "task t0 was dealt 1 times, trained or waiting it is 2 times",
        ),
        (
            lambda rows: [row.update(task_id="t11") for row in rows[2:4]],
            "1 tasks that were dealt are neither trained nor waiting: ['t1']; 0 groups were discarded",
        ),
    ],
)
def test_what_is_wrong_with_the_trajectories_is_found(
    run_dir: Path, change: Callable[[Rows], Any], sentence: str
) -> None:
    _changed(run_dir / "trajectories.jsonl", change)
    assert any(sentence in found for found in _found(run_dir)), _found(run_dir)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_drop(1), "evaluations are those of iterations [0, 4], due are [0, 2, 4]"),
        (_move_last_to(0), "evaluations are those of iterations [4, 0, 2]"),
        (_with(2, unfinished=3), "evaluation of iteration 4: 3 tasks gave no episode"),
    ],
)
def test_what_is_wrong_with_the_evaluations_is_found(
    run_dir: Path, change: Callable[[Rows], None], sentence: str
) -> None:
    _changed(run_dir / "evaluations.jsonl", change)
    assert any(sentence in found for found in _found(run_dir)), _found(run_dir)


def test_lines_that_do_not_read_are_violations(run_dir: Path) -> None:
    with (run_dir / "evaluations.jsonl").open("a") as file:
        file.write('no line\n{"iteration": 4')
    found = _found(run_dir)
    assert any(each.startswith("evaluations.jsonl line 4: ") for each in found)
    assert "evaluations.jsonl: the last line has no end" in found


def test_checkpoints_that_are_missing_damaged_too_many_or_misnamed_are_violations(run_dir: Path) -> None:
    checkpoints = run_dir / "checkpoints"
    (checkpoints / "iteration_000006.partial").mkdir()
    _save_checkpoint(run_dir, "iteration_000003", _state(2))
    found = _found(run_dir)
    assert "iteration_000003 is of update 2" in found
    assert "3 checkpoints are kept, not 2" in found
    assert "among the checkpoints lie ['iteration_000006.partial']" in found

    state = checkpoints / "iteration_000004" / "algorithm.json"
    state.write_text(state.read_text().replace("t9", "t7"))
    found = _found(run_dir)
    assert any("there is no sound iteration_000004" in each for each in found)
    assert any("iteration_000004" in each and "algorithm.json" in each for each in found)


def test_a_damaged_checkpoint_stays_aside_and_is_no_violation_where_it_was_damaged(run_dir: Path) -> None:
    shutil.copytree(
        run_dir / "checkpoints" / "iteration_000004", run_dir / "checkpoints" / "iteration_000004.damaged"
    )
    assert _found(run_dir, num_damaged=1) == []
    assert _found(run_dir) == ["set aside as damaged are ['iteration_000004.damaged']; 0 were damaged"]


def test_discarded_groups_may_be_missing(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints" / "iteration_000004")
    state = _state(4)
    state["sampler"]["requeued"] = []
    state["buffer"]["counters"] = {"groups_discarded_failed": 1}
    _save_checkpoint(run_dir, "iteration_000004", state)
    assert _found(run_dir) == []
