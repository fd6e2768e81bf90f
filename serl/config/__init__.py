"""Typed, validated configuration; imports neither torch, ray nor vllm."""

from serl.config.distill import DistillSection
from serl.config.experiment import ExperimentConfig
from serl.config.hindsight import HindsightSection, JudgeSection
from serl.config.objective import AdvantageSection, Aggregation, KLEstimator, LossSection
from serl.config.run import CheckpointSection, EvaluationSection, LoggingSection
from serl.config.sampling import EnvSection, LoRASection, ModelSection, RolloutSection
from serl.config.serving import ServingSection
from serl.config.training import LearnerSection, TrainingSection

__all__ = [
    "AdvantageSection",
    "Aggregation",
    "CheckpointSection",
    "DistillSection",
    "EnvSection",
    "EvaluationSection",
    "ExperimentConfig",
    "HindsightSection",
    "JudgeSection",
    "KLEstimator",
    "LearnerSection",
    "LoRASection",
    "LoggingSection",
    "LossSection",
    "ModelSection",
    "RolloutSection",
    "ServingSection",
    "TrainingSection",
]
