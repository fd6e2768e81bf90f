"""RLlib's ways to a checkpoint, as far as they need no cluster; `tests/system` has the others."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm import Algorithm
from run_helpers import write_checkpoint

from serl.algorithm import SERL
from serl.algorithm_state import CheckpointError
from serl.learner.learner import SERLLearner
from serl.learner.learner_group import SERLLearnerGroup
from serl.learner.rl_module import CausalLMModule
from serl.manifest import DamagedCheckpointError


class Trap:
    """Reading its pickle writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_rllibs_pickles_are_not_read(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    for name in ("class_and_ctor_args.pkl", "algorithm_state.pkl", "dict_checkpoint.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
    (tmp_path / "rllib_checkpoint.json").write_text('{"type": "Algorithm", "checkpoint_version": "2.1"}')
    algorithm = SERL.__new__(SERL)
    for way in (SERL.from_checkpoint, algorithm.restore_from_path, algorithm.restore):
        with pytest.raises(CheckpointError, match="is not a complete checkpoint: algorithm.json"):
            way(str(tmp_path))
    assert not sprung.exists()


@pytest.mark.parametrize("component", [CausalLMModule, SERLLearner, SERLLearnerGroup])
def test_rllibs_pickles_of_a_component_are_not_read(component: Any, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / "metadata.json").write_text("{}")
    for name in ("class_and_ctor_args.pkl", "state.pkl", f"{component.STATE_FILE_NAME}.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
    for way in (component.from_checkpoint, component.__new__(component).restore_from_path):
        with pytest.raises(NotImplementedError, match=f"{component.__name__}.* would read pickles"):
            way(str(tmp_path))
    assert not sprung.exists()


def test_ways_that_pickle_are_refused() -> None:
    algorithm = SERL.__new__(SERL)
    with pytest.raises(NotImplementedError, match="save_to_path\\(folder\\) writes all of it"):
        algorithm.get_state()
    with pytest.raises(NotImplementedError, match="use restore_from_path\\(folder\\)"):
        algorithm.set_state({})
    with pytest.raises(NotImplementedError, match=r"save_to_path\(state=…, use_msgpack=…\): a checkpoint is"):
        algorithm.save_to_path("/nowhere", state={}, use_msgpack=True)
    for name in ("save_to_path", "restore_from_path", "from_checkpoint", "restore", "get_state", "set_state"):
        assert getattr(Algorithm, name) is not getattr(SERL, name)


def test_a_damaged_checkpoint_and_one_without_an_experiment_are_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 3)
    with pytest.raises(
        CheckpointError, match="has no config.yaml, nor has a run above it: build the algorithm"
    ):
        SERL.from_checkpoint(checkpoint)
    (checkpoint / "policy" / "model.safetensors").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match="has 0 bytes, 200 were written"):
        SERL.from_checkpoint(checkpoint)
