"""The methods of RLlib's `Algorithm` that its users call, on what SERL does already."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils import force_list
from ray.train import Checkpoint

from serl.algorithm_state import CheckpointError
from serl.config import ExperimentConfig
from serl.evaluation import EvaluationResult
from serl.manifest import verify_checkpoint
from serl.private.ray_core import ends_within
from serl.private.rllib import local_learner
from serl.rllib.results import add_nested
from serl.rllib.setters import ExperimentSetters
from serl.run_folder import CONFIG, checkpoint_path, config_yaml

_EVALUATION = "evaluation"


class RLlibInterface(Algorithm):
    """Results, evaluations and checkpoints as RLlib's users know them.

    ``evaluation_interval`` is ``evaluation.interval``; whoever plays evaluations himself sets it to 0.
    """

    experiment: ExperimentConfig
    run_dir: Path
    iteration_metrics: dict[str, float]
    evaluation_interval: int

    @property
    def weights_seq_no(self) -> int:
        raise NotImplementedError

    def run_evaluation(self) -> EvaluationResult:
        raise NotImplementedError

    def setup(self, config: AlgorithmConfig) -> None:
        """RLlib's own, which waits without end for an env runner that hangs as it starts.

        Raises TimeoutError then.
        """
        rollout, learner = self.experiment.rollout, self.experiment.learner
        limit_s = rollout.start_timeout_s + learner.start_timeout_s
        late = (
            f"an env runner or a learner was not ready within {limit_s:g} s, rollout.start_timeout_s + "
            "learner.start_timeout_s: it hangs, or its data or model takes longer to load"
        )
        with ends_within(limit_s, late):
            super().setup(config)

    def step(self) -> dict[str, Any]:
        """One update, and the evaluation that is due after it.

        What is logged of it is `iteration_metrics`, here as nested dicts; ``done`` after
        ``training.num_iterations``.
        """
        result = super().step()
        add_nested(result, self.iteration_metrics)
        if self.evaluation_interval and self.weights_seq_no % self.evaluation_interval == 0:
            result[_EVALUATION] = self.evaluate()
        if self.weights_seq_no >= self.experiment.training.num_iterations:
            result["done"] = True
        return result

    def evaluate(self, parallel_train_future: None = None) -> dict[str, Any]:
        """`run_evaluation`, as nested dicts: what RLlib's ``evaluation`` has, and success."""
        self._call_back("on_evaluate_start")
        result: dict[str, Any] = {}
        add_nested(result, self.run_evaluation().metrics())
        self._call_back("on_evaluate_end", evaluation_metrics=result[_EVALUATION])
        return result[_EVALUATION]

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule | None:
        """The policy of a learner in this process; raises NotImplementedError for remote ones."""
        if module_id != DEFAULT_MODULE_ID:
            return None
        assert self.learner_group is not None
        if not self.learner_group.is_local:
            raise NotImplementedError(
                f"the policy is spread over {self.experiment.learner.num_learners} learner processes: "
                "save_to_path(folder) writes it to folder/policy, which transformers loads"
            )
        return local_learner(self.learner_group).module[DEFAULT_MODULE_ID]

    def save_to_path(self, path: str | Path | None = None, **options: Any) -> str:
        """`save_checkpoint` and the experiment, in ``path`` or where serl-run would save; returns the folder.

        Nothing is pickled. Raises CheckpointError.
        """
        _refuse("save_to_path", options)
        folder = checkpoint_path(self.run_dir / "checkpoints", self.weights_seq_no) if path is None else path
        self._write_experiment(Path(folder))
        self.save_checkpoint(str(folder))
        return str(folder)

    def restore_from_path(self, path: str | Path | Checkpoint, **options: Any) -> None:
        """Resumes from a checkpoint of SERL's whose files are as they were written.

        Raises CheckpointError for anything else; pickles are not read.
        """
        _refuse("restore_from_path", options)
        with _local(path) as folder:
            verify_checkpoint(Path(folder))
            self.load_checkpoint(str(folder))

    @classmethod
    def from_checkpoint(cls, path: str | Path | Checkpoint, **options: Any) -> Self:
        """A new algorithm of the checkpoint's experiment, resumed from it.

        Raises as `restore_from_path`, and CheckpointError where no experiment lies with the checkpoint.
        """
        _refuse("from_checkpoint", options)
        config = cls.get_default_config()
        assert isinstance(config, ExperimentSetters)
        with _local(path) as folder:
            verify_checkpoint(Path(folder))
            algorithm = config.from_yaml(_experiment_of(Path(folder)), recorded=True).build_algo()
            assert isinstance(algorithm, cls)
            algorithm.load_checkpoint(str(folder))
        return algorithm

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """As Tune calls it, with the experiment in the folder too, for `from_checkpoint`."""
        folder = checkpoint_dir or tempfile.mkdtemp()
        self._write_experiment(Path(folder))
        saved = super().save(folder)
        assert saved.checkpoint is not None
        if checkpoint_dir is None and saved.checkpoint.path != folder:
            shutil.rmtree(folder)  # Tune has a copy
        return saved

    def restore(self, checkpoint_path: Any) -> None:
        """As Tune calls it, with what `save` returned; a path is for `restore_from_path`."""
        if isinstance(checkpoint_path, str | Path):
            self.restore_from_path(checkpoint_path)
        else:
            super().restore(checkpoint_path)

    def get_state(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError("the state is in several processes: save_to_path(folder) writes all of it")

    def set_state(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError("the state is in several processes: use restore_from_path(folder)")

    def _call_back(self, name: str, **info: Any) -> None:
        functions = force_list(self.config[f"callbacks_{name}"])  # pyright: ignore[reportOptionalSubscript]
        info = {"algorithm": self, "metrics_logger": self.metrics, **info}
        make_callback(name, list(force_list(self.callbacks)), list(functions), kwargs=info)

    def _write_experiment(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(config_yaml(self.experiment), encoding="utf-8")


def _local(path: str | Path | Checkpoint) -> AbstractContextManager[str | Path]:
    return path.as_directory() if isinstance(path, Checkpoint) else nullcontext(path)


def _experiment_of(checkpoint: Path) -> Path:
    """The file beside the checkpoint's, or that of the run whose checkpoint it is."""
    for file in (checkpoint / CONFIG, checkpoint.absolute().parents[1] / CONFIG):
        if file.is_file():
            return file
    raise CheckpointError(
        f"{checkpoint} has no {CONFIG}, nor has a run above it: build the algorithm of an experiment, then "
        "restore_from_path(folder)"
    )


def _refuse(method: str, options: dict[str, Any]) -> None:
    if options:
        raise NotImplementedError(
            f"{method}({', '.join(f'{name}=…' for name in options)}): a checkpoint is one folder of JSON and "
            "safetensors, written and read whole"
        )
