"""Packages, processors and memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from serl.config import ExperimentConfig
from serl.config.paths import blocked_by
from serl.models.resolve import ModelPathError
from serl.models.sizes import num_weights
from serl.run.preflight.address import AddressError, ClusterResources, cluster_resources
from serl.run.preflight.finding import Finding

# flash-attn is built against the torch that is installed, so no extra can bring it.
_ATTENTION_PACKAGES = {
    "flash_attention_2": ("flash-attn", "pip install --no-build-isolation flash-attn"),
    "flash_attention_4": ("flash-attn-4", "pip install 'serl[gpu]'"),
}
_BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2}
_KEPT_VERSIONS = 2
# The longest path that the system has for a socket, and the longest of Ray's in its temporary folder.
_MAX_SOCKET_BYTES = 107
_LONGEST_SOCKET = "/ray/session_2026-01-31_12-00-00_123456_{pid}/sockets/plasma_store"


def examine_machine(experiment: ExperimentConfig, address: str | None = None) -> list[Finding]:
    """Packages and resources."""
    findings = [*_packages(experiment), *_resources(experiment, address)]
    if address is None:
        findings += _temporary_folder()
        if experiment.serving.weight_transfer == "shared_memory":
            findings += _shared_memory(experiment)
    return findings


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
    try:
        found = cluster_resources(address) if address else ClusterResources(os.cpu_count() or 1, _num_gpus())
    except AddressError as error:
        yield Finding("missing", "resources", str(error))
        return
    where = f"the cluster at {address}" if address else "this machine"
    need = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    have = f"{found.num_cpus:g} CPUs" + (f" and {found.num_gpus:g} GPUs" if gpus else "")
    enough = cpus <= found.num_cpus and gpus <= found.num_gpus
    yield Finding("ok" if enough else "missing", "resources", f"needs {need}; {where} has {have}")


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


def _temporary_folder() -> Iterator[Finding]:
    """Ray keeps its sockets below it, whose paths are short by the system's rules."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if folder := os.environ.get(variable):
            break
    else:
        return
    length = len(os.fsencode(folder))
    longest = _MAX_SOCKET_BYTES - len(_LONGEST_SOCKET.format(pid=os.getpid()))
    if length > longest:
        text = (
            f"{variable} = {folder} has {length} bytes; below it Ray's sockets would have longer paths than "
            f"the system allows. export RAY_TMPDIR=/tmp, or another folder of {longest} at most"
        )
        yield Finding("missing", "resources", text)
    elif blocked := blocked_by(Path(folder).absolute()):
        yield Finding("missing", "resources", f"{variable} = {folder}: Ray cannot write in {blocked}")


def _shared_memory(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Two versions of the weights lie in shared memory at once, in the type that the engines compute in."""
    try:
        weights = num_weights(experiment.model.path)
    except ModelPathError:
        return  # said of the model
    if weights is None:
        return  # not here yet: nothing says how large it is
    size = _KEPT_VERSIONS * weights * _BYTES_PER_WEIGHT[experiment.model.dtype]
    root = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
    free = shutil.disk_usage(root).free
    if size > free:
        text = f"two versions of the weights need {size >> 20} MiB of {root}; {free >> 20} MiB are free"
        yield Finding("missing", "resources", text)
