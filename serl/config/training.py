"""The sections of the loop and its updates: ``training`` and ``learner``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from serl.config.section import Section


class TrainingSection(Section):
    """The loop: how many groups make an update, how old they may be, and for how long."""

    num_iterations: PositiveInt = 150
    """Learner updates of the run, one an iteration."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts of one task, which are compared with each other."""
    groups_per_batch: PositiveInt = 16
    """Groups of one update."""
    max_staleness: int = Field(default=1, ge=0)
    """How many updates may lie between the weights that an episode began with and those that it trains; 0:
    rollouts and updates take turns."""
    filter_groups: bool = False
    """A zero-variance group is discarded and others are played in its place (DAPO, arXiv 2503.14476)."""
    max_filtered_groups_per_batch: PositiveInt = 64
    """Groups that may be discarded so for one batch; further ones stay in it, and learners do not starve."""
    iteration_timeout_s: PositiveFloat = 3600.0
    """Seconds that one iteration may take; then the run fails."""
    max_restarts: int = Field(default=3, ge=0)
    """How often within an hour, or without a new update, remote learners that failed are replaced, and the
    run resumes in place from its newest checkpoint; then it fails, or when learners raise the same error in
    the same update twice."""


class LearnerSection(Section):
    """Learners and the optimizer, AdamW."""

    num_learners: int = Field(default=0, ge=0)
    """Learner processes, which share every batch and its gradients; 0: one inside the driver."""
    num_cpus_per_learner: float = Field(default=1.0, ge=0.0)
    """What Ray sets aside for each learner."""
    num_gpus_per_learner: float = Field(default=0.0, ge=0.0)
    """What Ray sets aside for each learner; 0: they compute on the CPU."""
    num_threads: PositiveInt = 1
    """Threads that a learner on the CPU computes with."""
    lr: PositiveFloat = 1e-6
    """The learning rate after the warmup."""
    lr_warmup_updates: int = Field(default=0, ge=0)
    """Updates in which the learning rate rises in a straight line to ``lr``."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """After the warmup ``lr`` stays, or falls in a straight line to 0 after ``training.num_iterations``
    updates."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """AdamW's decoupled weight decay."""
    grad_clip: PositiveFloat = 1.0
    """The global norm that gradients are clipped to."""
    num_epochs: PositiveInt = 1
    """How often an update goes through its batch."""
    num_minibatches: PositiveInt = 1
    """Optimizer steps of one epoch, each with random groups of the batch, and at least one of them."""
    micro_batch_tokens: PositiveInt = 16384
    """Tokens of one forward and backward pass on one learner, those that rows begin with together counted
    once; bounds its memory and changes no result. Where it holds two of the longest rows, little is computed
    twice."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass: less memory, more time."""
    start_timeout_s: PositiveFloat = 600.0
    """Seconds that remote learners may take to get a place in the cluster and to load the model."""
    update_timeout_s: PositiveFloat = 1800.0
    """Seconds that one update may take; then new learners do it again (``training.max_restarts``)."""
