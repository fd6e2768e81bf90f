"""Keys of older versions: what each is now, or why it is gone.

An experiment that has one is refused with these words. The config that a run of an older version recorded is
translated, so that the run resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from serl.config.errors import ConfigError
from serl.config.hindsight import HindsightSection
from serl.config.objective import AdvantageSection, LossSection
from serl.config.registry import ESTIMATORS, LOSSES, SOURCES, UnknownEntryError


@dataclass(frozen=True, slots=True)
class Removed:
    """A key that is gone. Where ``always`` is given, a run with another value cannot be resumed."""

    reason: str
    always: Any = None


CHANGED: dict[str, str | Removed] = {
    "rollout.top_p": Removed("the loss needs log-probabilities of the whole distribution"),
    "serving.enable_prefix_caching": "serving.engine_args.enable_prefix_caching",
    "advantage.across": "advantage.args.across",
    "advantage.normalize_std": "advantage.args.normalize_std",
    "advantage.gamma": "advantage.args.gamma",
    "advantage.step_advantage_weight": "advantage.args.step_advantage_weight",
    "advantage.anchor_similarity": "advantage.args.anchor_similarity",
    "loss.clip_low": "loss.args.clip_low",
    "loss.clip_high": "loss.args.clip_high",
    "loss.dual_clip": "loss.args.dual_clip",
    "loss.negative_advantage_scale": "advantage.negative_scale",
    "loss.importance_cap": "loss.truncated_importance_sampling_cap",
    "hindsight.drift_sample_rows": "hindsight.log_ratio_sample_rows",
    "hindsight.exclude_own_success": "hindsight.args.successful_sample.exclude_own",
    "hindsight.max_trajectory_steps": "hindsight.args.successful_sample.max_steps",
    "hindsight.max_future_steps": "hindsight.args.future_trajectory.max_steps",
    "hindsight.judge.retry_delay_s": Removed("the first pause before a repeated request is a second"),
    "hindsight.judge.reasoning_max_tokens": Removed("it is eight times hindsight.judge.max_tokens"),
    "hindsight.judge.cache": Removed("answers are always kept in the run directory"),
    "learner.betas": Removed("they are always 0.9 and 0.999", [0.9, 0.999]),
}


def changed_key(key: str) -> str | None:
    """What to say of ``key`` if an older version had it."""
    change = CHANGED.get(key)
    if isinstance(change, Removed):
        return f"this key is gone: {change.reason}"
    return None if change is None else f"this key is now {change}"


def former_keys(values: Mapping[str, Any]) -> list[str]:
    """Those keys in ``values`` that only older versions had."""
    sections = {key: _mapping_at(values, key.rpartition(".")[0]) or {} for key in CHANGED}
    return [key for key, section in sections.items() if key.rpartition(".")[2] in section]


def translate(values: dict[str, Any], origin: str) -> None:
    """Changes the config that an older version recorded to what this version calls its keys.

    Raises ConfigError that names ``origin`` where a key is gone and had a value that can no longer be chosen.
    """
    problems: list[str] = []
    for key, change in CHANGED.items():
        section, _, name = key.rpartition(".")
        mapping = _mapping_at(values, section)
        if mapping is None or name not in mapping:
            continue
        value = mapping.pop(name)
        if isinstance(change, str):
            if _says_something(values, change, value):
                _put(values, change, value)
        elif change.always not in (None, value):
            problems.append(f"{key} = {value} {origin}: {changed_key(key)}")
    if problems:
        raise ConfigError(problems)


def _says_something(values: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether the experiment is another with ``value`` at ``key`` than without.

    Older versions recorded the options of every estimator, loss and source, defaults included.
    """
    match key.split("."):
        case ["advantage", "args", option]:
            registry, name = ESTIMATORS, values["advantage"].get("estimator", AdvantageSection().estimator)
        case ["loss", "args", option]:
            registry, name = LOSSES, values["loss"].get("name", LossSection().name)
        case ["hindsight", "args", name, option]:
            if name not in (values["hindsight"].get("sources", HindsightSection().sources) or ()):
                return False
            registry = SOURCES
        case ["serving", "engine_args", "enable_prefix_caching"]:
            return value is False
        case _:
            return True
    try:
        field = registry.get(str(name)).options.model_fields.get(option)
    except (ImportError, UnknownEntryError):
        return True  # a name that is none is told by who validates it
    return field is not None and field.default != value


def _mapping_at(values: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    found: Any = values
    for name in key.split("."):
        found = cast(Mapping[str, Any], found).get(name) if isinstance(found, dict) else None
    return cast(dict[str, Any], found) if isinstance(found, dict) else None


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            return  # refused where it is validated, whatever is put there
        values = cast(dict[str, Any], inner)
    values[name] = value
