"""A run on a cluster that Ray's autoscaler lets grow and shrink; the nodes are processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray_start_helpers import environment, free_port, ray_head

from serl.algorithm_state import read_algorithm_state
from serl.config.load import load_experiment
from serl.run.checkpoint import list_checkpoints
from serl.run.processes import descendants
from tools.drill.books import Row, read_books, update_rows
from tools.drill.drill import tasks_in_a_pass
from tools.drill.ledger import violations
from tools.drill.processes import processes_below

_REPOSITORY = Path(__file__).resolve().parents[2]
_EXPERIMENT = "experiments/quickstart.yaml"
# Ray's own of the tests of its autoscaler; it looks for an example.yaml that its wheel lacks, unless it comes
# as a provider from outside.
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_HEAD_ID = f"{'f' * 51}00000"
_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
_WITHOUT_DEFAULT = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
_SETTINGS = (
    "training.groups_per_batch=4",
    "training.group_size=4",
    "training.filter_groups=false",
    "training.num_iterations=500",
    "env.max_steps=6",
    "learner.lr_schedule=constant",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "checkpoint.interval=0",
    "logging.trajectories_per_iteration=16",
    # Four of the 32 episodes that are allowed have a place at first. The head has a CPU for one env runner,
    # each further node for another one.
    "rollout.num_cpus_per_env_runner=1",
    "rollout.max_concurrent_episodes=4",
    "rollout.autoscaling={max_env_runners: 3, upscale_delay_s: 1.0}",
)


def _autoscaling(file: Path, gcs_address: str) -> Path:
    config: dict[str, Any] = {
        "cluster_name": "growing",
        "max_workers": 2,
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": gcs_address,
            "head_node_id": _HEAD_ID,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "ray.worker.default": {
                "resources": {"CPU": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }
    config |= {name: [] for name in _WITHOUT_DEFAULT}
    file.write_text(yaml.safe_dump(config))
    return file


@contextmanager
def _growing_cluster(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a head of two CPUs, which may get two nodes of one more, and its process."""
    port = free_port()
    config = _autoscaling(folder / "autoscaling.yaml", f"{ray.util.get_node_ip_address()}:{port}")
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
    }
    options = (f"--port={port}", "--num-cpus=2", f"--autoscaling-config={config}")
    with ray_head(*options, **_TOKEN, **variables) as head:
        yield head


def _nodes(head: int) -> list[int]:
    """The processes that are nodes, without what one of them has just forked."""
    raylets = _of_kind("raylet", head)
    forked = {pid for raylet in raylets for pid in descendants(raylet)}
    return [pid for pid in raylets if pid not in forked]


def _of_kind(kind: str, head: int) -> list[int]:
    return [pid for pid, found in processes_below(head).items() if found == kind]


def _wait_until(condition: Callable[[], bool], run: subprocess.Popen[str], console: Path) -> None:
    deadline = time.monotonic() + 300.0
    while not condition():
        assert run.poll() is None and time.monotonic() < deadline, console.read_text()
        time.sleep(0.1)


def test_a_run_gets_nodes_loses_one_while_learners_update_and_leaves_none(tmp_path: Path) -> None:
    run_dir, console = tmp_path / "run", tmp_path / "console"

    def newest() -> Row:
        rows = update_rows(run_dir)
        return rows[-1] if rows else {}

    command = [sys.executable, "-m", "serl.run.cli", _EXPERIMENT, *_SETTINGS, "--resume-or-start", run_dir]
    with _growing_cluster(tmp_path) as (address, head), console.open("w") as output:
        (of_head,) = _nodes(head)
        run = subprocess.Popen(
            [*command, "--address", address],
            cwd=_REPOSITORY,
            env=environment(**_TOKEN),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        _wait_until(lambda: newest().get("pool/env_runners") == 3, run, console)
        first, _ = [pid for pid in _nodes(head) if pid != of_head]
        (learner,) = _of_kind("learner", head)
        os.kill(learner, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        before = newest()["iteration"]
        os.kill(learner, signal.SIGCONT)
        _wait_until(lambda: newest().get("total/env_runners_died") == 1, run, console)
        lost_at = newest()["iteration"]
        _wait_until(lambda: newest()["iteration"] > lost_at, run, console)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=120.0) == 0, console.read_text()
        deadline = time.monotonic() + 120.0
        while _nodes(head) != [of_head]:
            assert time.monotonic() < deadline, "nodes stay that nobody needs"
            time.sleep(0.2)

    books = read_books(run_dir)
    died = [row.get("total/env_runners_died", 0) for row in books.updates]
    assert died[before - 1] == 0 and died[-1] == 1
    assert books.updates[-1]["total/env_runners_added"] == 2
    experiment = load_experiment(
        _REPOSITORY / _EXPERIMENT, [*_SETTINGS, f"training.num_iterations={len(books.updates)}"]
    )
    (checkpoint,) = list_checkpoints(run_dir / "checkpoints")
    num_passes = 1 + read_algorithm_state(checkpoint)["sampler"]["pass"]
    assert violations(books, experiment, tasks_in_a_pass(experiment, num_passes)) == []
