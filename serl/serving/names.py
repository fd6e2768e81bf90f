"""Under which names a policy deployment answers; plain strings, so that any process can hold them."""

from __future__ import annotations

from dataclasses import dataclass

# A metric for Ray, and its labels.
REPLICA_WEIGHTS_GAUGE = "serl_replica_weights_seq_no"
REPLICA_WEIGHTS_MEANING = "The version of the weights that a replica serves."
RUN_LABEL = "run"
REPLICA_LABEL = "ReplicaId"  # as vLLM calls it in its own


def ascii_text(text: str) -> str:
    """``text`` as a label's value or a meaning: Ray's metrics are of ASCII alone."""
    return text.encode("ascii", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class ServingNames:
    """Ray Serve application and deployment, and the actor that knows the newest weights.

    Requests of one session go to one replica, for its prefix cache; clients spread sessions over
    ``num_session_lanes`` and send the requests of a lane together.
    """

    application: str
    deployment: str
    weight_store: str
    namespace: str
    num_session_lanes: int = 1
