"""Deploys again what Ray Serve has given up.

A controller of Serve that was restarted does not know that replicas have started before: if one of them
cannot be reached while it looks for them, it gives the deployment up, as one that has never started.
"""

from __future__ import annotations

import logging
import threading

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serl.serving.start import deploy_given_up

logger = logging.getLogger(__name__)

_INTERVAL_S = 5.0
_CLOSE_TIMEOUT_S = 5.0


class Redeployer:
    """A thread that looks after what this process has deployed; ``num_redeployed`` counts what it did."""

    def __init__(self) -> None:
        self.num_redeployed = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redeployer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; what it is doing comes to its end."""
        self._closing.set()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._closing.wait(_INTERVAL_S):
            try:
                for name, why in deploy_given_up(self._closing.is_set):
                    logger.error("Ray Serve gave %s up, which is deployed again: %s", name, why)
                    self.num_redeployed += 1
            except (RayError, RayServeException):  # such as while the controller is restarted
                logger.exception("looking for what Ray Serve has given up")
