"""A cluster that somebody else has started, and that asks for a token: with it, without it, with another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_start_helpers import environment, ray_head

from serl.run.preflight import examine_address
from serl.serving.weights_folder import weights_folder

_REPOSITORY = Path(__file__).resolve().parents[2]
_TOKEN = "0123456789abcdef" * 4
_SMALL = (
    "training.groups_per_batch=2",
    "training.group_size=4",
    "training.num_iterations=1",
    "env.max_steps=6",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster that asks for a token."""
    with ray_head("--port=0", "--num-cpus=8", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_TOKEN) as (address, _):
        yield address


def _serl_run(*arguments: str, **variables: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "serl.run.cli", "experiments/quickstart.yaml", *arguments],
        cwd=_REPOSITORY,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert "Traceback" not in run.stdout, run.stdout
    return run.returncode, run.stdout


def test_a_token_that_is_missing_or_wrong_is_one_sentence_and_with_it_a_run_joins(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(f"{_TOKEN}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    mode, wrong, missing = {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": "f" * 64}, tmp_path / "nothing"
    for variables, words in (
        ({}, "the cluster asks for a token: export RAY_AUTH_MODE=token, "),
        (mode | wrong, "the cluster has another token than the one in RAY_AUTH_TOKEN"),
        (mode, "Token authentication is enabled but no authentication token was found"),
        (mode | {"RAY_AUTH_TOKEN_PATH": str(missing)}, f"cannot be opened or is empty: {missing}"),
    ):
        with monkeypatch.context() as patch:
            for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            (found,) = examine_address(address)
        assert found.verdict == "missing" and found.text.startswith(f"--address {address}: ")
        assert words in found.text and "\n" not in found.text

    runs = tmp_path / "runs"
    code, said = _serl_run("--check", "--address", address, **mode, **wrong)
    assert code == 1 and "the cluster has another token" in said
    code, said = _serl_run(f"output_dir={runs}", "--address", address)
    assert code == 1 and said.count("\n") == 1 and "the cluster asks for a token" in said
    assert not runs.exists()
    by_path = mode | {"RAY_AUTH_TOKEN_PATH": f"{tmp_path}/token"}
    code, said = _serl_run(*_SMALL, f"output_dir={runs}", "--address", address, **by_path)
    assert code == 0, said
    (run_dir,) = runs.iterdir()
    assert '"learner/loss"' in (run_dir / "metrics.jsonl").read_text()


_SWEEP = """
import sys
from tools.sweep.__main__ import main
sys.exit(main(sys.argv[2:], program=(sys.executable, sys.argv[1])))
"""


def _sweep(*arguments: str, **variables: str) -> tuple[int, str]:
    """With a program that ends at once in the place of serl-run."""
    program = str(_REPOSITORY / "tests" / "helpers" / "sweep_program.py")
    swept = subprocess.run(
        [sys.executable, "-c", _SWEEP, program, *arguments],
        cwd=_REPOSITORY,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=400,
    )
    return swept.returncode, swept.stdout + swept.stderr


def test_a_sweep_joins_a_cluster_or_says_in_a_sentence_why_not(address: str, tmp_path: Path) -> None:
    arm = tmp_path / "arm.yaml"
    base = _REPOSITORY / "experiments" / "quickstart.yaml"
    arm.write_text(
        f"extends: {base}\nname: arm\ntraining: {{num_iterations: 2}}\nevaluation: {{at_end: false}}\n"
    )
    command = (str(arm), "--seeds", "0", "1", "--out", str(tmp_path / "out"), "--address", address)
    code, said = _sweep(*command)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith(f"--address {address}: the cluster asks for a token")
    code, said = _sweep(*command, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_TOKEN)
    assert code == 0, said
    assert "2 of 2 runs are finished" in said
    for seed in (0, 1):
        log = tmp_path / "out" / "arm" / f"seed_{seed}" / "attempt_1.log"
        assert log.read_text().strip() == "own cluster"


_APPLICATIONS = """
import sys
import ray
from ray import serve
ray.init(address=sys.argv[1], log_to_driver=False)
print("applications:", *serve.status().applications)
"""


def test_a_run_that_is_stopped_while_it_starts_leaves_no_application_and_no_weights(
    address: str, tmp_path: Path
) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    command = [sys.executable, "-m", "serl.run.cli", "experiments/quickstart.yaml"]
    with (tmp_path / "console").open("w") as console:
        run = subprocess.Popen(
            [*command, f"output_dir={tmp_path / 'runs'}", "--address", address],
            cwd=_REPOSITORY,
            env=environment(**token),
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    ask = [sys.executable, "-c", _APPLICATIONS, address]
    deadline = time.monotonic() + 300.0
    while "applications: serl-" not in (
        said := subprocess.run(
            ask, env=environment(**token), capture_output=True, text=True, timeout=120
        ).stdout
    ):
        assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "console").read_text() + said
    weights = weights_folder(said.split()[-1])
    assert weights.exists()
    run.terminate()
    assert run.wait(timeout=60) == 128 + signal.SIGTERM, (tmp_path / "console").read_text()
    said = subprocess.run(ask, env=environment(**token), capture_output=True, text=True, timeout=120).stdout
    assert "applications:\n" in said
    assert not weights.exists()
