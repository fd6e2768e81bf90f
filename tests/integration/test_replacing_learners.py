"""What `train` does when learners fail: files and loop are real, a stand-in is there for the cluster."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from serl.algorithm_state import CheckpointError
from serl.config import ExperimentConfig
from serl.durable_files import write_hashed
from serl.learner.errors import LearnerError
from serl.manifest import complete_checkpoint
from serl.run import train as module
from serl.run.checkpoint import list_checkpoints
from serl.run.console import Console
from serl.run.run_dir import RunDir
from serl.run.stop import StopRequest
from serl.run_folder import checkpoint_path


class Algorithm:
    """Counts updates; before its n-th one it does ``what_happens[n]``. Replaces learners at once."""

    def __init__(self, what_happens: dict[int, Callable[[], object]]) -> None:
        self.weights_seq_no = 0
        self.is_updating = False
        self.last_recorded: Sequence[Any] = ()
        self.last_teacher_records: dict[Any, Any] = {}
        names = (
            "serving/replicas",
            "serving/missing_replicas",
            "pool/env_runners",
            "pool/missing_env_runners",
        )
        self.iteration_metrics = dict.fromkeys(names, 0.0)
        self.resumed_from: list[str | None] = []
        self._what_happens = what_happens
        self._num_calls = 0

    def train(self) -> None:
        self._num_calls += 1
        self._what_happens.get(self._num_calls, lambda: None)()
        self.weights_seq_no += 1

    def start_checkpoint(self, directory: Path) -> Callable[[], None]:
        directory.mkdir()
        state = {"has_manifest": True, "weights_seq_no": self.weights_seq_no}
        weights = str(self.weights_seq_no).encode()
        return lambda: complete_checkpoint(
            directory, {"weights": write_hashed(directory / "weights", weights)}, state
        )

    def restart_learners(self, checkpoint: Path | None) -> None:
        self.resumed_from.append(checkpoint and checkpoint.name)
        self.weights_seq_no = int((checkpoint / "weights").read_bytes()) if checkpoint else 0


class Run:
    """Three updates, a checkpoint after each, in ``folder``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sections: dict[str, Any] = {
            "name": "replacing",
            "output_dir": str(folder),
            "model": {"path": "embedded:tiny_alfworld"},
            "learner": {"num_learners": 1},
            "training": {"num_iterations": 3},
            "evaluation": {"interval": 0, "at_start": False, "at_end": False},
            "checkpoint": {"interval": 1, "keep": 3},
        }
        self.experiment = ExperimentConfig.model_validate(sections)
        self.run_dir = RunDir.create(self.experiment)
        self.checkpoints = self.run_dir.path / "checkpoints"
        self.stop = StopRequest()
        self.said = io.StringIO()
        self._monkeypatch = monkeypatch

    def train(self, algorithm: Algorithm) -> bool:
        self._monkeypatch.setattr(module, "running_algorithm", lambda *_: nullcontext(algorithm))
        self._monkeypatch.setattr(module, "exported_metrics", lambda _: nullcontext())
        return module.train(self.experiment, self.run_dir, Console(False, self.said), self.stop)

    def a_learner_dies(self) -> None:
        raise LearnerError("learner 0 died in the update")

    def a_learner_dies_beside_damaged(self, *iterations: int) -> None:
        damaged = [checkpoint_path(self.checkpoints, iteration) for iteration in iterations]
        deadline = time.monotonic() + 60.0
        while not set(damaged) <= set(list_checkpoints(self.checkpoints)):
            assert time.monotonic() < deadline, "the checkpoints are not written"
            time.sleep(0.01)
        for checkpoint in damaged:
            (checkpoint / "weights").write_bytes(b"other")
        self.a_learner_dies()

    def a_learner_dies_after_a_stop(self) -> None:
        self.stop.set()
        self.a_learner_dies()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


def test_a_learner_that_dies_is_replaced_and_resumes_from_the_newest_checkpoint(run: Run) -> None:
    algorithm = Algorithm({3: run.a_learner_dies})
    assert run.train(algorithm)
    assert algorithm.resumed_from == ["iteration_000002"]
    assert "new learners resume from iteration_000002 (restart 1 of 3)" in run.said.getvalue()


def test_a_learner_that_dies_after_a_stop_was_asked_for_is_not_replaced(run: Run) -> None:
    algorithm = Algorithm({3: run.a_learner_dies_after_a_stop})
    assert not run.train(algorithm)
    assert algorithm.resumed_from == []
    assert [path.name for path in list_checkpoints(run.checkpoints)][-1] == "iteration_000002"
    assert "nobody is left to save what came after iteration_000002" in run.said.getvalue()


def test_without_a_checkpoint_such_a_run_fails(run: Run) -> None:
    algorithm = Algorithm({1: run.a_learner_dies_after_a_stop})
    with pytest.raises(LearnerError, match="learner 0 died in the update"):
        run.train(algorithm)
    assert algorithm.resumed_from == []


def test_a_damaged_newest_checkpoint_is_told_and_set_aside_and_its_update_saved_again(run: Run) -> None:
    algorithm = Algorithm({3: lambda: run.a_learner_dies_beside_damaged(2)})
    assert run.train(algorithm)
    assert algorithm.resumed_from == ["iteration_000001"]
    names = ["iteration_000001", "iteration_000002", "iteration_000003"]
    assert [path.name for path in list_checkpoints(run.checkpoints)] == names
    assert (run.checkpoints / "iteration_000002.damaged" / "weights").read_bytes() == b"other"
    assert (
        "weights has 5 bytes, 1 were written; it is kept as iteration_000002.damaged" in run.said.getvalue()
    )


def test_a_run_with_nothing_but_damaged_checkpoints_does_not_start_anew_by_itself(run: Run) -> None:
    algorithm = Algorithm({3: lambda: run.a_learner_dies_beside_damaged(1, 2)})
    with pytest.raises(CheckpointError, match="(?s)iteration_000002 is damaged.*iteration_000001 is damaged"):
        run.train(algorithm)
    assert algorithm.resumed_from == []
