"""Dashboard and alerts ask for metrics that there are, and the files in the repository are current."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from monitoring_helpers import MONITORING, alerts, all_expressions, watched

from serl.run.metrics_reference import METRICS
from serl.run.prometheus import ONLY_EXPORTED, export_of, prometheus_name
from tools.monitoring.__main__ import main
from tools.monitoring.panels import ROWS

_METRIC = re.compile(r"\bray_\w+")
_VLLM_METRIC = re.compile(r'_(gauge|counter|histogram)_cls\(\s*name="vllm:(\w+)"')


def _of_serl() -> set[str]:
    metrics = [*METRICS, *(name.replace("runners/", "total/") for name in METRICS if "<" not in name)]
    found = [export_of(metric) for metric in metrics]
    return {export.in_prometheus for export, _ in filter(None, found)} | set(
        map(prometheus_name, ONLY_EXPORTED)
    )


def _of_vllm() -> set[str]:
    """As Ray exports what the source of vLLM's logger names."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text(encoding="utf-8")
    suffixes = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {
        f"ray_vllm_{name}{suffix}" for kind, name in _VLLM_METRIC.findall(source) for suffix in suffixes[kind]
    }


def test_every_metric_of_an_expression_is_one_that_serl_or_vllm_exports() -> None:
    known = _of_serl() | _of_vllm()
    assert {"ray_vllm_kv_cache_usage_perc", "ray_vllm_generation_tokens_total"} < known
    named = {title: _METRIC.findall(expression) for title, expression in all_expressions()}
    assert [title for title, names in named.items() if not names] == ["SerlTargetDown"]
    assert {name for names in named.values() for name in names} - known == set()


def test_what_grows_is_a_counter_and_what_is_looked_at_is_not() -> None:
    for title, expression in all_expressions():
        for name in _METRIC.findall(expression):
            grows = re.search(rf"(rate|increase)\({name}\b", expression) is not None
            assert grows == name.endswith(("_total", "_bucket")), (title, name)


def test_every_curve_of_the_dashboard_is_of_the_runs_that_are_chosen() -> None:
    for title, expression in all_expressions():
        if ":" in title:
            chosen = len(re.findall(r'\{(run|model_name)=~"\$run"\}', expression))
            assert chosen == len(_METRIC.findall(expression)), title


def test_the_dashboard_in_the_repository_is_the_one_of_the_code() -> None:
    assert main(["--check"]) == 0, "run python -m tools.monitoring"
    written = json.loads((MONITORING / "serl.dashboard.json").read_text(encoding="utf-8"))
    titles = [panel["title"] for panel in written["panels"] if panel["type"] == "timeseries"]
    assert titles == [panel.title for row in ROWS for panel in row.panels]
    numbers = [panel["id"] for panel in written["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in written["panels"]:
        letters = [target["refId"] for target in panel.get("targets", ())]
        assert letters == sorted(set(letters)) and "" not in letters


def test_a_dashboard_that_says_something_else_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.monitoring.__main__.FILE", tmp_path / "serl.dashboard.json")
    assert main(["--check"]) == 1 and not list(tmp_path.iterdir())
    assert main([]) == 0 and main(["--check"]) == 0
    assert "is not current" in capsys.readouterr().out


def test_every_alert_ends_in_a_threshold_and_says_what_is_wrong() -> None:
    assert len(alerts()) >= 8
    for alert in alerts():
        assert watched(alert) != alert["expr"], alert["alert"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]


def test_prometheus_reads_the_alerts_and_the_files_that_runs_keep() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["rule_files"] == ["alerts.yml"]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "serl" and job["file_sd_configs"][0]["files"] == ["targets/*.json"]
