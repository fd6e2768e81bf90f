"""A real Prometheus asks a real run: every expression of the dashboard and of the alerts has an answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from monitoring_helpers import MONITORING, all_expressions, program
from watched_helpers import wait_until

_REPOSITORY = Path(__file__).resolve().parents[2]
_SMALL = (
    "name=watched",
    "training.groups_per_batch=2",
    "training.group_size=4",
    "env.max_steps=6",
    "evaluation.num_tasks=12",
    "evaluation.interval=2",
    "training.num_iterations=10000",
    "cluster.dashboard=false",
    "logging.credit=true",
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run without Ray's dashboard that goes on until it is stopped."""
    program("prometheus")
    output = tmp_path_factory.mktemp("runs")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "serl.run.cli",
            "experiments/quickstart.yaml",
            *_SMALL,
            f"output_dir={output}",
        ],
        cwd=_REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )

    def missing() -> list[str]:
        assert process.poll() is None, process.communicate()[0]
        return [] if list(output.glob("*/prometheus_targets.json")) else ["prometheus_targets.json"]

    try:
        wait_until(missing, "the run did not start", deadline_s=400.0)
        (found,) = output.iterdir()
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert not (found / "prometheus_targets.json").exists()


class Prometheus:
    """Debian's Prometheus with the configuration of the repository, but for how often it asks."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (folder / "alerts.yml").write_bytes((MONITORING / "alerts.yml").read_bytes())
        (folder / "targets").mkdir()
        (folder / "targets" / "watched.json").symlink_to(run_dir / "prometheus_targets.json")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        options = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
        command = [f"--{name}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            [program("prometheus"), *command, f"--web.listen-address={self._address}"],
            stderr=(folder / "log").open("w"),
        )

    def has_data(self, expression: str) -> bool:
        """Whether the expression has a value that is one, for some run."""
        asked = expression.replace('"$run"', '".*"').replace("$__rate_interval", "1m")
        query = urllib.parse.urlencode({"query": asked})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{query}", timeout=30) as answer:
            result = json.load(answer)["data"]["result"]
        return any(series["value"][1] != "NaN" for series in result)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)


@pytest.fixture(scope="module")
def prometheus(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    started = Prometheus(tmp_path_factory.mktemp("prometheus"), run_dir)
    yield started
    started.close()


def test_every_expression_has_an_answer_while_a_run_goes_on(prometheus: Prometheus) -> None:
    # No episode fails and no actor hangs, and a counter that never counted is not there.
    never = {"SerlFailuresRising", "SerlActorsHang"}

    def missing() -> list[str]:
        with suppress(urllib.error.URLError):  # until Prometheus listens
            return [
                title
                for title, expression in all_expressions()
                if title not in never and not prometheus.has_data(expression)
            ]
        return ["Prometheus"]

    wait_until(missing, "without an answer")
