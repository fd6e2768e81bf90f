"""`ExperimentConfig`: one experiment, complete and checked."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from serl.config import checks
from serl.config.hindsight import HindsightSection
from serl.config.objective import AdvantageSection, LossSection
from serl.config.problems import contradiction, validation_error
from serl.config.run import CheckpointSection, ClusterSection, EvaluationSection, LoggingSection
from serl.config.sampling import EnvSection, ModelSection, RolloutSection
from serl.config.section import Section
from serl.config.serving import ServingSection
from serl.config.training import LearnerSection, TrainingSection


class ExperimentConfig(Section):
    """One experiment. Its defaults are the paper's (arXiv 2605.19447), on the CPU of one machine."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Names the run directory: letters, digits, ``.``, ``-`` and ``_``."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides tasks, environments, minibatches and, with ``rollout.seeded_requests``, sampled tokens."""
    output_dir: str = Field(default="runs", min_length=1)
    """The folder in which the run directory is made; ``~`` and ``$NAME`` are filled in."""
    model: ModelSection
    env: EnvSection = EnvSection()
    rollout: RolloutSection = RolloutSection()
    serving: ServingSection = ServingSection()
    training: TrainingSection = TrainingSection()
    advantage: AdvantageSection = AdvantageSection()
    loss: LossSection = LossSection()
    hindsight: HindsightSection = Field(default_factory=HindsightSection)
    learner: LearnerSection = LearnerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    cluster: ClusterSection = ClusterSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="after")
    def _no_key_contradicts_another(self) -> Self:
        found = [
            *checks.lengths(self.model, self.rollout, self.hindsight),
            *checks.env_runners(self.rollout, self.serving),
            *checks.replicas(self.serving),
            *checks.gateway(self.env, self.rollout, self.serving),
            *checks.weight_transfer(self.serving, self.learner),
            *checks.adapters(self.model, self.serving, self.sends_adapters),
            *checks.learners(self.model, self.training, self.learner),
            *checks.distillation(self.hindsight, self.training),
            *checks.repair(self.model, self.env, self.rollout, self.training, self.loss, self.hindsight),
            *checks.waits(self.hindsight, self.training),
            *checks.held_out(self.env, self.evaluation),
        ]
        if found:
            raise validation_error(type(self).__name__, [contradiction(sentence) for sentence in found])
        return self

    @property
    def sends_adapters(self) -> bool:
        """Whether replicas are sent adapters alone, and not whole weights."""
        lora = self.model.lora
        if lora is None or lora.broadcast != "auto":
            return lora is not None and lora.broadcast == "adapters"
        return self.serving.num_gpus_per_replica > 0 and not self.serving.sleep_during_updates
