"""How many replicas there should be, from what their engines hold.

Serve's own measure counts open calls, and a client has one open call however many requests it waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

OPEN_REQUESTS = "open_requests"


def replicas_for_open_requests(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """As many replicas as keep ``target_ongoing_requests`` running or waiting requests each.

    Serve applies the bounds and the delays of the autoscaling configuration to the result.
    """
    reported = (context.aggregated_metrics or {}).get(OPEN_REQUESTS, {})
    if not reported:
        return context.target_num_replicas, {}
    assert context.config is not None
    return sum(reported.values()) / context.config.target_ongoing_requests, {}
