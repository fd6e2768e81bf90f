"""Typed, validated configuration; imports neither torch, ray nor vllm."""

from serl.config.hindsight import HindsightSection, JudgeSection
from serl.config.sections import (
    AdvantageSection,
    CheckpointSection,
    EnvSection,
    EvaluationSection,
    ExperimentConfig,
    LearnerSection,
    LoggingSection,
    LossSection,
    ModelSection,
    RolloutSection,
    ServingSection,
    TrainingSection,
)

__all__ = [
    "AdvantageSection",
    "CheckpointSection",
    "EnvSection",
    "EvaluationSection",
    "ExperimentConfig",
    "HindsightSection",
    "JudgeSection",
    "LearnerSection",
    "LoggingSection",
    "LossSection",
    "ModelSection",
    "RolloutSection",
    "ServingSection",
    "TrainingSection",
]
