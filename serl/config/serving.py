"""The section ``serving``: vLLM on Ray Serve."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from serl.config.section import Section


class AutoscalingSection(Section):
    """Ray Serve's autoscaling of the policy replicas, in place of a fixed ``num_replicas``."""

    min_replicas: PositiveInt = 1
    """Replicas that always run."""
    max_replicas: PositiveInt = 1
    """Replicas that run under load."""
    target_ongoing_requests: PositiveFloat = 64.0
    """Requests that run or wait in a replica's engine that autoscaling aims at, as the mean of the last
    30 s."""
    upscale_delay_s: float = Field(default=30.0, ge=0.0)
    """Seconds that this mean must have asked for more replicas before they are started."""
    downscale_delay_s: float = Field(default=600.0, ge=0.0)
    """Seconds that it must have asked for fewer before replicas end; longer than an update, in which rollouts
    may stand still. One that ends gets no more requests; what it has not answered 5 s later is sent to
    another one again."""


class ServingSection(Section):
    """The policy replicas, each with one vLLM engine."""

    num_replicas: PositiveInt = 1
    """How many, if their number is fixed."""
    autoscaling: AutoscalingSection | None = None
    """Null: a fixed number."""
    num_cpus_per_replica: float = Field(default=1.0, ge=0.0)
    """What Ray sets aside for each replica."""
    num_gpus_per_replica: float = Field(default=0.0, ge=0.0)
    """What Ray sets aside for each replica; 0: engines run on the CPU."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that one engine is spread over."""
    num_threads: PositiveInt = 1
    """Threads that an engine on the CPU computes with."""
    max_num_seqs: PositiveInt = 256
    """Sequences that an engine advances in one step."""
    max_num_batched_tokens: PositiveInt = 4096
    """Tokens, prompts included, that an engine computes in one step."""
    kv_cache_gib: PositiveFloat = 1.0
    """The key-value cache of an engine on the CPU, in GiB."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, le=1.0)
    """The share of a GPU's memory that an engine takes; less where a learner runs on the same GPU."""
    weight_transfer: Literal["auto", "shared_memory", "nccl", "ipc"] = "auto"
    """How new weights reach replicas: through memory that their host shares with the learner's process and
    Ray's object store to other hosts, through shared memory alone, from GPU to GPU, or within one GPU."""
    sleep_during_updates: bool = False
    """Whether engines give their memory back while the learner updates, on whose GPU they are (``ipc``).
    Requests under way wait, and go on with the new weights."""
    start_timeout_s: PositiveFloat = 300.0
    """Seconds that replicas may take to be ready."""
    update_timeout_s: PositiveFloat = 120.0
    """Seconds that a replica may take to load new weights."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's engine; one that a key of the experiment decides is refused."""
    gateway: bool = False
    """An endpoint like OpenAI's in front of the replicas, for agents (``env.name: agent``)."""
    gateway_host: str = Field(default="127.0.0.1", min_length=1)
    """The address that it listens at: of this machine only, or ``0.0.0.0`` where env runners have nodes of
    their own. Whoever reaches it still needs the key of an episode."""
    gateway_port: int = Field(default=0, ge=0, lt=2**16)
    """Its port; 0: a free one. Where Ray Serve runs already, it has that of Serve's proxy."""
    tool_parser: str | None = None
    """vLLM's parser of the calls of tools that the policy writes, such as ``hermes``; null: requests that
    offer tools are refused."""

    @property
    def fewest_replicas(self) -> int:
        """Those that a run starts with."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.min_replicas

    @property
    def most_replicas(self) -> int:
        """Those that may serve at a time."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.max_replicas
