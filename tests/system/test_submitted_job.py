"""A run as a job of a cluster: submitted from a fresh checkout, stopped, submitted again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray_start_helpers import RAY, environment, free_port, ray_head

from serl.algorithm_state import read_algorithm_state
from serl.run.checkpoint import list_checkpoints
from tools.drill.processes import not_in_use, processes_below, shared_memory_files

_REPOSITORY = Path(__file__).resolve().parents[2]
_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
_TIME_TO_SAVE = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})
# Ray's command line takes a core for seconds each time.
_ASK_AGAIN_S = 3.0
_SETTINGS = (
    "training.groups_per_batch=2",
    "training.group_size=4",
    "training.filter_groups=false",
    "env.max_steps=6",
    "learner.lr_schedule=constant",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "checkpoint.interval=0",
)


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Asked by Ray's command line, as a person would, in the folder ``checkout``."""

    dashboard_port: int
    head: int
    checkout: Path

    def try_job(self, *arguments: str) -> tuple[int, str]:
        ran = subprocess.run(
            [str(RAY), "job", *arguments],
            cwd=self.checkout,
            env=environment(RAY_ADDRESS=f"http://127.0.0.1:{self.dashboard_port}", **_TOKEN),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return ran.returncode, ran.stdout

    def job(self, *arguments: str) -> str:
        code, said = self.try_job(*arguments)
        assert code == 0, said
        return said

    def submit(self, name: str, run_dir: Path, *settings: str) -> None:
        serl_run = str(RAY.with_name("serl-run"))
        run = (serl_run, "experiments/quickstart.yaml", "--resume-or-start", str(run_dir), *_SETTINGS)
        how = ("--no-wait", "--working-dir", ".", "--runtime-env-json", _TIME_TO_SAVE)

        def is_taken() -> bool:
            code, said = self.try_job("submit", "--submission-id", name, *how, "--", *run, *settings)
            # The node's agent, which starts jobs, comes up after the head.
            assert code == 0 or "No available agent" in said, said
            return code == 0

        _wait_until(is_taken, 120, lambda: "the agent of the head", every_s=_ASK_AGAIN_S)

    def actors_of_runs(self) -> set[str]:
        kinds = {"env_runner", "learner", "replica", "weight_store"}
        return kinds & set(processes_below(self.head).values())


@contextmanager
def _cluster(checkout: Path) -> Iterator[_Cluster]:
    port = free_port()
    options = (
        "--port=0",
        "--num-cpus=4",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",
    )
    with ray_head(*options, **_TOKEN) as (_, head):
        yield _Cluster(port, head, checkout)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a clone would have, changes and new files included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=_REPOSITORY,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("git does not know this checkout")
    for name in listed.stdout.rstrip("\0").split("\0"):
        source, target = _REPOSITORY / name, tmp_path / "checkout" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return tmp_path / "checkout"


def _wait_until(
    condition: Callable[[], bool], timeout_s: float, what: Callable[[], str], every_s: float = 0.2
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what()}"
        time.sleep(every_s)


def _num_updates(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return file.read_text().count('"learner/loss"') if file.exists() else 0


def test_a_job_is_stopped_with_a_checkpoint_and_goes_on_when_it_is_submitted_again(
    checkout: Path, tmp_path: Path
) -> None:
    files_before, run_dir = shared_memory_files(), tmp_path / "run"
    with _cluster(checkout) as cluster:

        def is_tidy() -> bool:
            return not cluster.actors_of_runs() and not not_in_use(shared_memory_files() - files_before)

        def logs(name: str, waited_for: str) -> Callable[[], str]:
            return lambda: f"{waited_for}:\n{cluster.job('logs', name)}"

        cluster.submit("first", run_dir, "training.num_iterations=500")
        _wait_until(lambda: _num_updates(run_dir) >= 2, 300, logs("first", "two updates"))
        cluster.job("stop", "first")
        said = cluster.job("logs", "first")
        assert "kills it" not in said, said
        checkpoints = list_checkpoints(run_dir / "checkpoints")
        assert checkpoints, said
        stopped_at = read_algorithm_state(checkpoints[-1])["weights_seq_no"]
        assert stopped_at >= 2, said
        _wait_until(is_tidy, 30, logs("first", "actors and weights to be gone"))

        cluster.submit("second", run_dir, f"training.num_iterations={stopped_at + 1}")
        _wait_until(lambda: _num_updates(run_dir) == stopped_at + 1, 300, logs("second", "one more update"))

        def has_succeeded() -> bool:
            return "Job 'second' succeeded" in cluster.job("status", "second")

        _wait_until(has_succeeded, 120, logs("second", "its end"), every_s=_ASK_AGAIN_S)
        _wait_until(is_tidy, 30, logs("second", "actors and weights to be gone"))
