"""What can be seen of a live run from outside: its nodes' exporters, and the actors in Ray's dashboard."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_METRICS = (
    "ray_serl_weights_seq_no",
    "ray_serl_last_update_timestamp_seconds",
    "ray_serl_replica_weights_seq_no",
    "ray_serl_rollout_success_ratio",
    "ray_serl_env_steps_total",
)
_ENGINE_METRICS = ("ray_vllm_num_requests_running", "ray_vllm_generation_tokens_total")
_REPRS = re.compile(r"serl (env_runner|learner) .*")


def wait_until(missing: Callable[[], Iterable[Any]], what: str, deadline_s: float = 200.0) -> None:
    """Returns once ``missing()`` finds nothing; AssertionError with what it finds at the end."""
    deadline = time.monotonic() + deadline_s
    while found := list(missing()):
        assert time.monotonic() < deadline, f"{what}: {found}"
        time.sleep(1.0)


def check_that_run_is_watched(run_dir: Path, num_learners: int) -> None:
    """``run_dir`` is that of a live run on a cluster of its own with a dashboard, after an update."""
    wait_until(lambda: _missing_metrics(run_dir), "not among the exported metrics")
    log = (run_dir / "logs" / "driver.log").read_text(encoding="utf-8")
    token_file = re.findall(r"the cluster's token is in (\S+)", log)[-1]
    api = _Dashboard(re.findall(r", dashboard (\S+)", log)[-1], Path(token_file).read_text())
    actors = api.get("api/v0/actors?detail=1")["data"]["result"]["result"]
    reprs = {actor["repr_name"] for actor in actors if actor["state"] == "ALIVE"}
    shown = sorted(name for name in reprs if name and _REPRS.fullmatch(name))
    learners = [f"serl learner {index}/{num_learners}" for index in range(num_learners)]
    assert shown[-num_learners:] == learners
    assert all(re.fullmatch(r"serl env_runner \d+ · \d+ episodes", name) for name in shown[:-num_learners])
    assert len(shown) > num_learners
    replicas = [actor["class_name"] for actor in actors if actor["class_name"].startswith("ServeReplica:")]
    assert replicas and all(name.startswith(f"ServeReplica:serl-{run_dir.name}-") for name in replicas)
    (driver,) = [job for job in api.get("api/jobs/") if job["type"] == "DRIVER" and job["metadata"]]
    assert driver["metadata"]["run"] == str(run_dir) and driver["metadata"]["experiment"]


def exported(run_dir: Path) -> str:
    """What the exporters of the run's nodes say now."""
    (group,) = json.loads((run_dir / "prometheus_targets.json").read_text(encoding="utf-8"))
    pages = []
    for target in group["targets"]:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
            pages.append(answer.read().decode())
    return "\n".join(pages)


def _missing_metrics(run_dir: Path) -> list[str]:
    page = exported(run_dir)
    wanted = [rf'{name}{{.*run="{re.escape(run_dir.name)}"' for name in _METRICS]
    wanted += [rf'{name}{{.*model_name="{re.escape(run_dir.name)}"' for name in _ENGINE_METRICS]
    return [pattern for pattern in wanted if not re.search(rf"^{pattern}", page, re.MULTILINE)]


class _Dashboard:
    def __init__(self, address: str, token: str) -> None:
        self._address, self._token = address, token

    def get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(f"http://{self._address}/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
