"""Gauges for Ray's exporters that keep their values."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ray.util.metrics import Gauge

from serl.serving.names import ascii_text

# Ray's processes report every ten seconds what was set since, and a node forgets what two reports lack.
_INTERVAL_S = 3.0


class KeptGauges:
    """Sets each gauge again and again to its last value, in a thread, until it is closed.

    Of a gauge that is set once Ray shows nothing half a minute later. Ray must be initialised.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gauges: dict[tuple[str, tuple[str, ...]], Gauge] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Gauge, float]] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._keep, name="gauges", daemon=True).start()

    def set(self, name: str, meaning: str, labels: Mapping[str, str], value: float) -> None:
        """``name`` without the ``ray_`` that exporters put before it."""
        values = {label: ascii_text(text) for label, text in labels.items()}
        with self._lock:
            key = (name, tuple(labels))
            if key not in self._gauges:
                self._gauges[key] = Gauge(name, ascii_text(meaning), tuple(labels))
            gauge = self._gauges[key]
            self._values[name, tuple(values.items())] = gauge, value
            gauge.set(value, values)

    def close(self) -> None:
        self._closed.set()

    def _keep(self) -> None:
        while not self._closed.wait(_INTERVAL_S):
            with self._lock:
                for (_, labels), (gauge, value) in self._values.items():
                    gauge.set(value, dict(labels))
