"""Alerts fire when they should and not before, as Prometheus' own tool computes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from monitoring_helpers import MONITORING, alerts, program

_RUN = '{run="mine"}'
# A series of each minute in promtool's notation: `1+2x3` is 1, 3, 5, 7.
_QUIET = {
    f"ray_serl_last_update_timestamp_seconds{_RUN}": "0+60x120",
    f"ray_serl_weights_seq_no{_RUN}": "10x120",
    'ray_serl_replica_weights_seq_no{run="mine", ReplicaId="a"}': "10x120",
    'ray_serl_replica_weights_seq_no{run="mine", ReplicaId="b"}': "9x120",
    f"ray_serl_serving_missing_replicas{_RUN}": "0x120",
    'ray_serl_rollouts_failed_total{run="mine", reason="aborted"}': "0+1x120",
    f"ray_serl_episodes_started_total{_RUN}": "0+100x120",
    f"ray_serl_rollout_invalid_action_ratio{_RUN}": "0.4x120",
    f"ray_serl_learner_entropy{_RUN}": "1x60 0.3x60",
    f"ray_serl_learner_train_inference_mismatch_on_policy{_RUN}": "0.01x120",
    f"ray_serl_learner_skipped_optimizer_steps{_RUN}": "0x120",
    'ray_serl_hung_actors_total{run="mine", kind="learners"}': "1x120",
    'up{job="serl", instance="10.0.0.1:8080"}': "1x120",
}
# What is different when an alert fires; each has fired two hours later.
_ALARMING = {
    "SerlNoUpdate": {f"ray_serl_last_update_timestamp_seconds{_RUN}": "0+60x60 3600x60"},
    "SerlReplicasBehind": {'ray_serl_replica_weights_seq_no{run="mine", ReplicaId="b"}': "8x120"},
    "SerlReplicasMissing": {f"ray_serl_serving_missing_replicas{_RUN}": "1x120"},
    "SerlFailuresRising": {'ray_serl_rollouts_failed_total{run="mine", reason="aborted"}': "0+11x120"},
    "SerlInvalidActions": {f"ray_serl_rollout_invalid_action_ratio{_RUN}": "0.6x120"},
    "SerlEntropyCollapsing": {f"ray_serl_learner_entropy{_RUN}": "1x60 0.1x60"},
    "SerlEnginesDisagree": {f"ray_serl_learner_train_inference_mismatch_on_policy{_RUN}": "0.2x120"},
    "SerlOptimizerStepsSkipped": {f"ray_serl_learner_skipped_optimizer_steps{_RUN}": "1x120"},
    "SerlActorsHang": {'ray_serl_hung_actors_total{run="mine", kind="learners"}': "1x70 5x50"},
    "SerlTargetDown": {'up{job="serl", instance="10.0.0.1:8080"}': "1x60 0x60"},
}


def _firing(tmp_path: Path, series: dict[str, str], expected: list[str]) -> None:
    """Asserts that exactly the alerts ``expected`` fire after two hours of ``series``."""
    names = [alert["alert"] for alert in alerts()]
    values = [{"series": name, "values": values} for name, values in series.items()]
    # promtool compares all labels and annotations of what fires; of the alerts only whether they do is asked.
    asked = [
        {"expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)', "eval_time": "2h"}
        | {"exp_samples": [{"labels": "{}", "value": 1 if name in expected else 0}]}
        for name in names
    ]
    test = {
        "rule_files": [str(MONITORING / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": values, "promql_expr_test": asked}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test), encoding="utf-8")
    command = [program("promtool"), "test", "rules", str(tmp_path / "test.yml")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_a_run_that_trains_alarms_nobody(tmp_path: Path) -> None:
    _firing(tmp_path, _QUIET, [])


def test_every_alert_is_tried() -> None:
    assert list(_ALARMING) == [alert["alert"] for alert in alerts()]


@pytest.mark.parametrize("alert", _ALARMING)
def test_an_alert_fires_for_what_it_is_for(alert: str, tmp_path: Path) -> None:
    _firing(tmp_path, _QUIET | _ALARMING[alert], [alert])


def test_the_configuration_is_one_that_prometheus_takes() -> None:
    command = [program("promtool"), "check", "config", str(MONITORING / "prometheus.yml")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
