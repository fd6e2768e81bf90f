"""Whether every node of a cluster that was joined has what actors need, before the first of them starts.

Without it a node that lacks the model fails minutes later, in an actor, with a traceback, and one that has
other data does not fail at all.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from envs.registry import make_provider
from serl.config import ExperimentConfig
from serl.config.paths import blocked_by
from serl.models.sizes import num_weights
from serl.rollout.failures import first_line
from serl.run.preflight.memory import free_shared_memory
from serl.run.preflight.memory_plan import GB, WEIGHT_VERSIONS, version_bytes
from serl.serving.on_node import on_node

# Some environments read gigabytes before they know their tasks.
LOOK_TIMEOUT_S = 300.0
OK = "ok"
# What every actor imports, and replicas beside that.
_MODULES = ("torch", "transformers")
_MODULES_OF_REPLICAS = ("vllm",)
_MODULES_OF_ADAPTERS = ("peft",)
_NUM_NAMED = 3
# Of a table, and of `Found`.
COLUMNS = ("model", "data", "run_directory", "packages", "shared_memory")


class NodesLackError(RuntimeError):
    """Nodes cannot hold what may be placed on them; the text is a table of what each lacks."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What is looked for on a node, as the driver has it.

    ``model_files`` are sizes by name, ``task_hashes`` by split, ``marker`` is a file in the run directory.
    ``start_dir`` is where relative paths begin.
    """

    start_dir: str
    model_dir: str
    model_files: Mapping[str, int]
    env: str
    env_args: Mapping[str, Any]
    task_hashes: Mapping[str, str]
    marker: str
    modules: tuple[str, ...] = _MODULES
    shared_memory_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """Of each thing OK, or what is the matter with it; ``shares_run_dir`` is no need of every node."""

    model: str
    data: str
    run_directory: str
    packages: str
    shared_memory: str
    shares_run_dir: bool = False

    @property
    def lacks(self) -> bool:
        return any(getattr(self, column) != OK for column in COLUMNS)


_UNKNOWN = Found("?", "?", "?", "?", "?")


@dataclass(frozen=True, slots=True)
class Node:
    """A node that lives; ``name`` is its host's name and address."""

    node_id: str
    name: str
    num_cpus: float
    num_gpus: float


def require_nodes(
    experiment: ExperimentConfig, model_dir: Path, run_dir: Path, nodes: Iterable[Node]
) -> dict[str, str]:
    """The names, by id, of those of ``nodes`` that have a run directory of their own.

    Raises NodesLackError if a node with CPUs or GPUs lacks model, data, packages, shared memory or a folder
    to write to, or does not say so within five minutes.
    """
    nodes = [node for node in nodes if node.num_cpus or node.num_gpus]
    if not nodes:
        return {}
    needs = needs_of(experiment, model_dir, run_dir / f".seen-by-{uuid.uuid4().hex[:8]}")
    marker = Path(needs.marker)
    marker.touch()
    try:
        found = _ask({node: _needs_there(needs, node, experiment) for node in nodes})
    finally:
        marker.unlink()
    if any(each.lacks for each in found.values()):
        raise NodesLackError(table(found, needs))
    return {node.node_id: node.name for node, each in found.items() if not each.shares_run_dir}


def require_whole_checkpoints(
    learner_nodes: Iterable[str], unshared: Mapping[str, str], run_dir: Path
) -> None:
    """Raises NodesLackError if learners are on nodes whose run directory the driver does not see."""
    if apart := sorted({unshared[node] for node in learner_nodes if node in unshared}):
        raise NodesLackError(
            f"learners on {', '.join(apart)} would write their parts of each checkpoint to a {run_dir} of "
            "their own, and no run could be resumed from it: give output_dir a folder that all hosts share"
        )


def living_nodes() -> list[Node]:
    found: list[dict[str, Any]] = ray.nodes()
    return [
        Node(
            node["NodeID"],
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in found
        if node["Alive"]
    ]


def needs_of(experiment: ExperimentConfig, model_dir: Path, marker: Path) -> Needs:
    """What this process's host has of what ``experiment`` needs."""
    env = experiment.env
    provider = make_provider(env.name, env.args)
    splits = (env.train_split, experiment.evaluation.split)
    return Needs(
        start_dir=os.getcwd(),
        model_dir=str(model_dir),
        model_files={path.name: path.stat().st_size for path in model_dir.iterdir() if path.is_file()},
        env=env.name,
        env_args=env.args,
        task_hashes={split: provider.task_set(split).content_hash for split in splits},
        marker=str(marker),
    )


def look_around(needs: Needs) -> Found:
    """On the node that is asked."""
    marker = Path(needs.marker)
    with chdir(needs.start_dir) if Path(needs.start_dir).is_dir() else nullcontext():
        return Found(
            _model(Path(needs.model_dir), needs.model_files),
            _data(needs),
            _run_directory(marker.parent),
            _packages(needs.modules),
            _shared_memory(needs.shared_memory_bytes),
            shares_run_dir=marker.exists(),
        )


def table(found: Mapping[Node, Found], needs: Needs) -> str:
    """What each node lacks, and below it what can be done."""
    lines = [("node", *(column.replace("_", " ") for column in COLUMNS))]
    lines += [(node.name, *(getattr(each, column) for column in COLUMNS)) for node, each in found.items()]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    lacking = [column for column in COLUMNS if any(getattr(each, column) != OK for each in found.values())]
    remedies = {
        "model": f"model: give model.path a folder that all nodes share, or copy {needs.model_dir} to them",
        "data": "data: give the environment a folder that all nodes share, or install the data on them; "
        "cluster.env_vars passes further variables on",
        "run_directory": "run directory: give output_dir a folder that all nodes share, or may make",
        "packages": f"packages: install what {platform.node()} has",
        "shared_memory": "shared memory: give it more, a container with --shm-size or a memory-backed volume",
    }
    advice = [remedies[column] for column in lacking]
    return "\n".join(["not every node has what actors need:", *(row.rstrip() for row in rows), *advice])


def _ask(needs: Mapping[Node, Needs]) -> dict[Node, Found]:
    answers = {on_node(look_around, node.node_id).remote(there): node for node, there in needs.items()}
    answered, _ = ray.wait(list(answers), num_returns=len(answers), timeout=LOOK_TIMEOUT_S)
    return {node: _answer(answer, answer in answered) for answer, node in answers.items()}


def _answer(answer: Any, is_there: bool) -> Found:
    if not is_there:
        return replace(_UNKNOWN, packages=f"no answer within {LOOK_TIMEOUT_S:g} s")
    try:
        return ray.get(answer, timeout=LOOK_TIMEOUT_S)
    except RayError as error:  # another Python, SERL itself missing, or a node that has just gone
        lines = str(error).strip().splitlines()
        return replace(_UNKNOWN, packages=first_line(lines[-1] if lines else type(error).__name__))


def _needs_there(needs: Needs, node: Node, experiment: ExperimentConfig) -> Needs:
    """Replicas alone need vLLM, and one version of the weights; a learner writes more."""
    learner, serving = experiment.learner, experiment.serving
    if not (node.num_gpus if serving.num_gpus_per_replica else node.num_cpus):
        return needs
    may_hold_learners = learner.num_learners and (node.num_gpus or not learner.num_gpus_per_learner)
    num_versions = WEIGHT_VERSIONS if may_hold_learners else 1
    published = 0 if experiment.sends_adapters else num_weights(experiment.model.path) or 0
    version = version_bytes(published, experiment)
    modules = _MODULES + _MODULES_OF_REPLICAS + (_MODULES_OF_ADAPTERS if experiment.model.lora else ())
    return replace(needs, modules=modules, shared_memory_bytes=num_versions * version)


def _model(folder: Path, files: Mapping[str, int]) -> str:
    if not folder.is_dir():
        return f"no {folder}"
    there = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    if missing := sorted(files.keys() - there.keys()):
        return f"{folder} lacks {_listed(missing)}"
    if other := sorted(name for name, size in files.items() if there[name] != size):
        return f"{folder} has another {_listed(other)}"
    return OK


def _data(needs: Needs) -> str:
    try:
        provider = make_provider(needs.env, dict(needs.env_args))
        there = {split: provider.task_set(split).content_hash for split in needs.task_hashes}
    except (ImportError, ValueError, OSError) as error:
        return first_line(str(error))
    other = [split for split, found in there.items() if found != needs.task_hashes[split]]
    return f"other tasks in {_listed(other)}" if other else OK


def _run_directory(folder: Path) -> str:
    blocked = blocked_by(folder)
    return OK if blocked is None else f"cannot write in {blocked}"


def _packages(modules: Iterable[str]) -> str:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"no {_listed(missing)}" if missing else OK


def _shared_memory(needed: float) -> str:
    free = free_shared_memory()
    return OK if needed <= free else f"{free / GB:.2f} GB free, needs {needed / GB:.2f} GB"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
