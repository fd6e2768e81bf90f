"""A run's metrics under the names that Prometheus finds, and what Ray is told of them."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray

from serl.run import ray_metrics
from serl.run.metrics_reference import METRICS
from serl.run.metrics_writer import MetricsWriter
from serl.run.prometheus import ONLY_EXPORTED, export_of, exported
from serl.run.ray_metrics import RayMetrics, write_targets
from serl.serving import kept_gauges
from serl.serving.kept_gauges import KeptGauges

EXPORTED = {name: export for name in METRICS if (export := exported(name)) is not None}


@pytest.mark.parametrize(
    ("metric", "name", "labels"),
    [
        ("rollout/success", "ray_serl_rollout_success_ratio", {}),
        ("rollout/invalid_action_rate", "ray_serl_rollout_invalid_action_ratio", {}),
        ("learner/seconds_update", "ray_serl_learner_update_seconds", {}),
        ("learner/learner_tokens_per_s", "ray_serl_learner_tokens_per_second", {}),
        ("learner/num_teacher_tokens", "ray_serl_learner_teacher_tokens", {}),
        ("time/iteration_s", "ray_serl_time_iteration_seconds", {}),
        ("weights_seq_no", "ray_serl_weights_seq_no", {}),
        ("total/env_steps", "ray_serl_env_steps_total", {}),
        ("total/failed_env_runner_died", "ray_serl_rollouts_failed_total", {"reason": "env_runner_died"}),
        ("total/hung_learners", "ray_serl_hung_actors_total", {"kind": "learners"}),
        ("buffer/groups_discarded_stale", "ray_serl_buffer_groups_discarded_stale_total", {}),
        ("episode/generation_seconds", "ray_serl_episode_generation_seconds", {}),
        ("episode/task_score", "ray_serl_episode_metric", {"metric": "task_score"}),
        (
            "learner/teacher_negative_clipped_fraction",
            "ray_serl_learner_teacher_by_sign_clipped_ratio",
            {"sign": "negative"},
        ),
        ("learner/of_my_loss/a-b", "ray_serl_learner_of_my_loss_a_b", {}),
    ],
)
def test_a_name_says_the_base_unit_and_what_depends_on_the_run_is_a_label(
    metric: str, name: str, labels: Mapping[str, str]
) -> None:
    found = export_of(metric)
    assert found is not None
    assert (found[0].in_prometheus, found[1]) == (name, labels)


def test_second_names_of_a_metric_are_not_exported() -> None:
    assert export_of("env_runners/episode_return_mean") is None
    assert export_of("learners/default_policy/entropy") is None
    # They grow by what `runners/` says of an iteration.
    assert export_of("runners/env_steps") is None and export_of("total/env_steps") is not None


def test_every_exported_name_is_one_that_prometheus_takes_and_that_no_other_metric_has() -> None:
    names = [*(export.name for export in EXPORTED.values()), *ONLY_EXPORTED]
    assert len(set(names)) == len(names) > 140
    filled = [name.replace("<counter>", "counter") for name in names]
    assert [name for name in filled if not re.fullmatch(r"serl_[a-z][a-z0-9_]*", name)] == []
    assert [name for name in filled if re.search(r"_(s|mib|ms|share|rate|total)$", name)] == []


def test_counters_are_what_is_counted_since_the_run_or_the_process_began() -> None:
    since = re.compile(r"since (the run|this process) began|learners were replaced|done again")
    assert {name for name, export in EXPORTED.items() if export.is_counter} == {
        name for name, meaning in METRICS.items() if since.search(meaning) and name in EXPORTED
    }


class _Metric:
    """In the place of Ray's gauges and counters, which no process can read back: what they were told."""

    told: ClassVar[list[tuple[str, float, dict[str, str]]]] = []

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description.endswith(".") and description.isascii() and name.isascii()
        self._name, self._tag_keys = name, tag_keys

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self._tag_keys) and all(value.isascii() for value in tags.values())
        self.told.append((self._name, value, tags))

    inc = set


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, dict[str, str]]]:
    monkeypatch.setattr(kept_gauges, "Gauge", _Metric)
    monkeypatch.setattr(ray_metrics, "Counter", _Metric)
    _Metric.told.clear()
    return _Metric.told


def test_a_gauge_is_set_in_base_units_and_a_counter_grows_by_the_difference(told: list[Any]) -> None:
    metrics = RayMetrics("mine-1")
    for steps, mib in ((10.0, 1.0), (10.0, 2.0), (4.0, 2.0), (6.0, 2.0)):
        metrics.record({"total/failed_aborted": steps, "records/trajectories_mib": mib})
    of_run = {"run": "mine-1"}
    # 10 at first, no more, less after a restart from a checkpoint, and 2 that were done since.
    assert [each for each in told if each[0] == "serl_rollouts_failed"] == [
        ("serl_rollouts_failed", 10.0, of_run | {"reason": "aborted"}),
        ("serl_rollouts_failed", 2.0, of_run | {"reason": "aborted"}),
    ]
    sizes = [value for name, value, _ in told if name == "serl_records_trajectories_bytes"]
    assert sizes == [2.0**20, 2.0**21, 2.0**21, 2.0**21]


def test_whatever_a_run_or_a_task_is_called_ray_is_told_in_ascii(told: list[Any]) -> None:
    metrics = RayMetrics("küche-1")
    metrics.record({"rollout/success_by_task_type/größe": 1.0, "total/failed_größe": 1.0})
    metrics.record(dict.fromkeys(METRICS, 1.0))
    (first, second) = told[:2]
    assert first[2] == {"run": "k\\xfcche-1", "task_type": "gr\\xf6\\xdfe"}
    assert second[2] == {"run": "k\\xfcche-1", "reason": "gr\\xf6\\xdfe"}


def test_an_update_leaves_its_time_and_an_evaluation_does_not(told: list[Any]) -> None:
    metrics = RayMetrics("mine-1")
    metrics.record({"evaluation/success": 0.5})
    assert [name for name, _, _ in told] == ["serl_evaluation_success_ratio"]
    metrics.record({"weights_seq_no": 3.0})
    ((name, seconds, _),) = told[2:]
    assert name == "serl_last_update_timestamp_seconds" and seconds > 1.7e9


def test_a_gauge_is_set_again_until_it_is_closed(
    told: list[tuple[str, float, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_gauges, "_INTERVAL_S", 0.01)
    gauges = KeptGauges()
    for replica, version in (("a", 1.0), ("b", 1.0), ("a", 2.0)):
        gauges.set("serl_version", "A version.", {"replica": replica}, version)
    deadline = time.monotonic() + 60.0
    while len(told) < 9:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gauges.close()
    again = [(value, tags["replica"]) for _, value, tags in told[3:9]]
    assert again == [(2.0, "a"), (1.0, "b")] * 3


def test_sinks_get_what_is_written(tmp_path: Path) -> None:
    writer, taken = MetricsWriter(tmp_path), []
    writer.sinks.append(taken.append)
    writer.start(0)
    writer.write(1, {"learner/loss": math.inf})
    writer.close()
    assert taken == [{"learner/loss": math.inf}]


def test_targets_are_the_exporters_of_live_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeManagerAddress": "10.0.0.2", "MetricsExportPort": 8080, "Alive": True},
        {"NodeManagerAddress": "fd00::1", "MetricsExportPort": 8081, "Alive": True},
        {"NodeManagerAddress": "10.0.0.3", "MetricsExportPort": 8080, "Alive": False},
        {"NodeManagerAddress": "10.0.0.4", "MetricsExportPort": 0, "Alive": True},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    write_targets(tmp_path / "targets.json")
    assert json.loads((tmp_path / "targets.json").read_text()) == [
        {"targets": ["10.0.0.2:8080", "[fd00::1]:8081"]}
    ]


def test_an_open_name_gives_way_to_one_that_is_given_in_full() -> None:
    counted, restarts = exported("total/<counter>"), export_of("total/learner_restarts")
    assert counted is not None and (counted.name, counted.is_counter) == ("serl_<counter>", True)
    assert restarts is not None and restarts[0] == exported("total/learner_restarts")
