"""The policy on Ray Serve: prompt ids in; sampled ids, log-probabilities and weight versions out.

::

    env runner                          replica of the Serve deployment (one process)
    ┌──────────────────────┐            ┌───────────────────────────────────────────────────────┐
    │ client  PolicyClient │  requests  │ deployment  PolicyReplica                             │
    │   lane  Lane ────────┼───────────▶│   streams  ClientStreams ──▶ engine  EngineThread     │
    │         Lane ◀───────┼────────────┼───────────────────────────── (vLLM steps here, and    │
    └──────────────────────┘  answers   │                               loads between steps)    │
                                        │   follower thread ──────────────────▲                 │
    learner, rank 0                     └───────▲──────────────────────────────┼────────────────┘
    ┌──────────────────────┐  announce  ┌───────┴───────┐                      │
    │ weights              │───────────▶│ weight_store  │ which weights,       │ transfer: shared
    │   WeightPublisher    │◀───────────│  WeightStore  │ and where            │ memory, NCCL, IPC
    │     Sender ──────────┼─ loaded by └───────────────┘                      │
    └──────────────────────┘  all ─────────────────────────────────────────────┘

`start` deploys and stops all this, `engine_options` says what the experiment's settings mean to vLLM,
`messages` what a client and a replica send each other, `names` where to find them.

Replicas pull: each asks the weight store for the newest weights before it serves and waits for newer ones
from then on, so replicas that start late, restart or come by autoscaling are right without being told.
"""
