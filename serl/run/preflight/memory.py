"""Whether the memory plan fits: GPUs of learners and replicas, shared memory, disk, the node's memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serl.config import ExperimentConfig
from serl.config.paths import UnknownPathError, expanded_path
from serl.models.description import HUB_SECONDS, model_config
from serl.models.resolve import ModelPathError, is_hub_id
from serl.models.shape import ModelShape, UnknownShapeError
from serl.models.sizes import num_weights
from serl.run.preflight import memory_plan
from serl.run.preflight.finding import Finding, Verdict
from serl.run.preflight.memory_plan import GB, Plan

_NVIDIA_SMI_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What a node has, in bytes; None where that cannot be known here, ``gpu`` is its smallest GPU."""

    gpu: float | None = None
    memory: float | None = None
    shared_memory: float | None = None
    disk: float | None = None


def examine_memory(experiment: ExperimentConfig, address: str | None = None) -> list[Finding]:
    """The plan in figures, and what of it does not fit; with ``address`` nothing is known of the nodes."""
    path = experiment.model.path
    try:
        config = model_config(path, HUB_SECONDS)
        if config is None:
            why = "the hub did not send its config.json" if is_hub_id(path) else "it is yet to be converted"
            return [Finding("ok", "memory", f"not known: {path} is not here, and {why}")]
        shape = ModelShape.of(config, num_weights(path))
    except ModelPathError:
        return []  # said of the model
    except UnknownShapeError as error:
        return [Finding("ok", "memory", f"not known: {path}: {error}")]
    machine = Machine() if address else this_machine(experiment)
    return list(judge_memory(shape, experiment, machine))


def examine_shared_memory(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Only whether this node's is too small for the weights of a model that is here; adapters are small."""
    if experiment.sends_adapters:
        return
    try:
        counted = num_weights(experiment.model.path)
    except ModelPathError:
        return  # said of the model
    if counted is not None:
        found = _shared_memory(memory_plan.version_bytes(counted, experiment), free_shared_memory())
        if found.verdict == "missing":
            yield found


def judge_memory(shape: ModelShape, experiment: ExperimentConfig, machine: Machine) -> Iterator[Finding]:
    """A line for each place; ``missing``, with what to change, where the plan does not fit in ``machine``."""
    if experiment.learner.num_gpus_per_learner:
        yield _learner(shape, experiment, machine)
    if experiment.serving.num_gpus_per_replica:
        yield _replica(shape, experiment, machine)
        if 0 < experiment.serving.num_gpus_per_replica < 1:
            yield from _shared_gpu(shape, experiment, machine)
    yield _told(f"host: {memory_plan.host_plan(shape, experiment)}", _host_lack(shape, experiment, machine))
    version = memory_plan.version_bytes(memory_plan.num_published(shape, experiment), experiment)
    yield _shared_memory(version, machine.shared_memory)
    needed = memory_plan.disk_bytes(shape, experiment)
    each = _gb(memory_plan.checkpoint_bytes(shape, experiment))
    text = f"disk: {_gb(needed)} for {experiment.checkpoint.keep} checkpoints of {each} and the next one"
    yield _told(text, _lack(needed, machine.disk, "lower checkpoint.keep, or change output_dir"))


def _learner(shape: ModelShape, experiment: ExperimentConfig, machine: Machine) -> Finding:
    peak = memory_plan.peak(memory_plan.learner_plans(shape, experiment))
    kept = sum(memory_plan.kept_by_learner(shape, experiment).values())
    is_kept_too_much = machine.gpu is not None and kept > machine.gpu
    what_to_do = _key_for(peak, experiment, is_kept_too_much)
    return _told(f"GPU of a learner: {peak}", _lack(peak.total, machine.gpu, what_to_do))


def _key_for(peak: Plan, experiment: ExperimentConfig, is_kept_too_much: bool) -> str:
    """The setting that takes most off ``peak`` at the least price."""
    learner = experiment.learner
    more_learners = "raise learner.num_learners: each then holds a smaller shard"
    if is_kept_too_much:
        return more_learners
    if learner.gradient_checkpointing:
        return f"lower learner.micro_batch_tokens = {learner.micro_batch_tokens}, or {more_learners}"
    return "set learner.gradient_checkpointing: true, or lower learner.micro_batch_tokens"


def _replica(shape: ModelShape, experiment: ExperimentConfig, machine: Machine) -> Finding:
    serving = experiment.serving
    plan = memory_plan.replica_plan(shape, experiment)
    context, share = memory_plan.context_bytes(shape, experiment), serving.gpu_memory_utilization
    text = (
        f"GPU of a replica: {plan}; the key-value cache, {_gb(context)} for {experiment.model.max_model_len} "
        f"tokens, takes the rest of serving.gpu_memory_utilization = {share:g}"
    )
    receiving = memory_plan.receiving_bytes(experiment)
    if machine.gpu is None:
        least = max((plan.total + context) / share, (receiving / (1 - share)) if share < 1 else 0.0)
        return Finding("ok", "memory", f"{text}; a GPU of {_gb(least)} is the least")
    left = share * machine.gpu - plan.total
    if left < context:
        lack = (
            f"{_gb(share * machine.gpu)} leave no room for one: raise serving.tensor_parallel_size or "
            "serving.gpu_memory_utilization, or lower model.max_model_len or serving.max_num_batched_tokens"
        )
    elif share * machine.gpu + receiving > machine.gpu:
        lack = (
            f"{_gb((1 - share) * machine.gpu)} beside it are too few for the {_gb(receiving)} in which new "
            "weights arrive: lower serving.gpu_memory_utilization"
        )
    else:
        return Finding("ok", "memory", f"{text}, {left / context:.0f} such contexts at once")
    return Finding("missing", "memory", f"{text}; {lack}")


def _shared_gpu(shape: ModelShape, experiment: ExperimentConfig, machine: Machine) -> Iterator[Finding]:
    """Learner and replicas on one GPU; the engines set their memory aside, or sleep while it updates."""
    serving = experiment.serving
    share = serving.most_replicas * serving.gpu_memory_utilization
    update = memory_plan.peak(memory_plan.learner_plans(shape, experiment)).total
    learner = memory_plan.awake_beside_engines(shape, experiment)
    text = f"GPU that they share: {_gb(learner)} for the learner and {share:.0%} of it for engines"
    if serving.sleep_during_updates:
        update += memory_plan.asleep_bytes(experiment)
        text += f", which sleep while it takes {_gb(update)}"
    what_to_do = "lower serving.gpu_memory_utilization"
    if share >= 1:
        yield Finding("missing", "memory", f"{text}; {what_to_do}")
    elif machine.gpu is None:
        least = max(update, learner / (1 - share))
        yield Finding("ok", "memory", f"{text}; a GPU of {_gb(least)} is the least")
    else:
        yield _told(text, _lack(learner / (1 - share), machine.gpu, what_to_do))


def _shared_memory(version: float, there: float | None) -> Finding:
    needed = memory_plan.WEIGHT_VERSIONS * version
    text = f"/dev/shm: {_gb(needed)} for {memory_plan.WEIGHT_VERSIONS} versions of the weights"
    return _told(text, _lack(needed, there, "give it more, a container with --shm-size"))


def _host_lack(shape: ModelShape, experiment: ExperimentConfig, machine: Machine) -> str:
    what = "a node with more, or a smaller model"
    if not experiment.learner.num_gpus_per_learner:
        what = "lower learner.micro_batch_tokens or serving.kv_cache_gib"
    return _lack(memory_plan.host_plan(shape, experiment).total, machine.memory, what)


def _lack(needed: float, there: float | None, what_to_do: str) -> str:
    """Empty if it is enough, or nothing is known."""
    if there is None or needed <= there:
        return ""
    return f"{_gb(there)} are there: {what_to_do}"


def _told(text: str, lack: str) -> Finding:
    verdict: Verdict = "missing" if lack else "ok"
    return Finding(verdict, "memory", f"{text}; {lack}" if lack else text)


def _gb(size: float) -> str:
    return f"{size / GB:.2f} GB" if size < GB else f"{size / GB:.1f} GB"


def this_machine(experiment: ExperimentConfig) -> Machine:
    """Of this node: the smallest GPU, what is free of memory and of the file systems that are written to."""
    return Machine(_gpu_bytes(), _available_bytes(), free_shared_memory(), _free_disk(experiment))


def free_shared_memory() -> float:
    """Bytes, of this host."""
    root = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
    return float(shutil.disk_usage(root).free)


def _gpu_bytes() -> float | None:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(
            query, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [int(line) for line in asked.split() if line.isdigit()]
    return min(sizes) * 2.0**20 if sizes else None


def _available_bytes() -> float | None:
    """What the system has to give, or all that a container may have, if that is less."""
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    limits = [] if found is None else [int(found[1]) * 1024.0]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        limits.append(float(text))
    return min(limits, default=None)


def _free_disk(experiment: ExperimentConfig) -> float | None:
    try:
        folder = expanded_path(experiment.output_dir)
    except UnknownPathError:
        return None  # said of the output
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return float(shutil.disk_usage(existing).free)
