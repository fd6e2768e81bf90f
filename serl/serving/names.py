"""Under which names a policy deployment answers; plain strings, so that any process can hold them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServingNames:
    """Ray Serve application and deployment, and the actor that knows the newest weights."""

    application: str
    deployment: str
    weight_store: str
    namespace: str
