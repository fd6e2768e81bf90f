"""A run's metrics in the exporters of Ray's nodes, and which nodes Prometheus is to ask for them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.util.metrics import Counter

from serl.durable_files import write_atomically
from serl.run.prometheus import ONLY_EXPORTED, UPDATE_TIMESTAMP_GAUGE, Exported, export_of
from serl.run.run_dir import RunDir
from serl.serving.kept_gauges import KeptGauges
from serl.serving.names import RUN_LABEL, ascii_text

TARGETS = "prometheus_targets.json"
_CLOCK = "weights_seq_no"


@contextmanager
def exported_metrics(run_dir: RunDir) -> Iterator[None]:
    """Meanwhile Ray exports what is written to ``run_dir.metrics``, labelled with the run.

    ``prometheus_targets.json`` names the nodes' exporters, for Prometheus' ``file_sd_configs``; it is written
    with the metrics, for nodes come and go. Needs a connection to Ray's cluster.
    """
    metrics, targets = RayMetrics(run_dir.path.name), run_dir.path / TARGETS

    def record(values: Mapping[str, float]) -> None:
        metrics.record(values)
        write_targets(targets)

    write_targets(targets)
    run_dir.metrics.sinks.append(record)
    try:
        yield
    finally:
        run_dir.metrics.sinks.remove(record)
        metrics.close()
        targets.unlink(missing_ok=True)


class RayMetrics:
    """Gauges and counters of this process, with the label ``run``; Ray must be initialised."""

    def __init__(self, run: str) -> None:
        self._run = {RUN_LABEL: run}
        self._gauges = KeptGauges()
        self._counters: dict[Exported, Counter] = {}
        self._counted: dict[str, float] = {}

    def record(self, metrics: Mapping[str, float]) -> None:
        """Sets the gauges of ``metrics``, and lets its counters grow by as much as these have grown."""
        for name, value in metrics.items():
            if (found := export_of(name)) is None:
                continue
            export, labels = found
            if export.is_counter:
                self._count(name, export, labels, value)
            else:
                self._gauges.set(export.name, export.meaning, self._run | dict(labels), value * export.factor)
        if _CLOCK in metrics:
            meaning, _ = ONLY_EXPORTED[UPDATE_TIMESTAMP_GAUGE]
            self._gauges.set(UPDATE_TIMESTAMP_GAUGE, meaning, self._run, time.time())

    def close(self) -> None:
        """From then on Ray forgets the gauges."""
        self._gauges.close()

    def _count(self, name: str, export: Exported, labels: Mapping[str, str], value: float) -> None:
        # New learners resume from a checkpoint, and with them what the buffer counts: work is done again.
        grown = value - self._counted.get(name, 0.0)
        self._counted[name] = value
        if grown <= 0.0:
            return
        if export not in self._counters:
            labels_of_all = (RUN_LABEL, *export.labels)
            self._counters[export] = Counter(export.name, ascii_text(export.meaning), labels_of_all)
        values = {label: ascii_text(text) for label, text in (self._run | dict(labels)).items()}
        self._counters[export].inc(grown, values)


def write_targets(file: Path) -> None:
    """Writes the addresses of the exporters of all live nodes, as ``file_sd_configs`` reads them."""
    addresses = [
        _address(node["NodeManagerAddress"], node["MetricsExportPort"])
        for node in ray.nodes()
        if node["Alive"] and node["MetricsExportPort"] > 0
    ]
    write_atomically(file, json.dumps([{"targets": sorted(addresses)}]).encode())


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
