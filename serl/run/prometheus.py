"""The names of a run's metrics in Prometheus, where Ray's exporters bring them.

They follow Prometheus' conventions: ``ray_serl_`` before every name, base units at its end, ``_total`` at the
end of a counter, ``_ratio`` at that of a share. A part of a name that depends on the run becomes a label, and
so does the run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from serl.run.metrics_reference import METRICS, pattern
from serl.serving.names import REPLICA_LABEL, REPLICA_WEIGHTS_GAUGE, REPLICA_WEIGHTS_MEANING

PREFIX = "serl_"
UPDATE_TIMESTAMP_GAUGE = "serl_last_update_timestamp_seconds"

# Beside the metrics of METRICS.md: what they mean, and the labels they have beside the run.
ONLY_EXPORTED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    UPDATE_TIMESTAMP_GAUGE: ("When the last update ended, in Unix seconds.", ()),
    REPLICA_WEIGHTS_GAUGE: (REPLICA_WEIGHTS_MEANING, (REPLICA_LABEL,)),
}

# `total/` counts what `runners/` does, and RLlib's names are second names.
_NOT_EXPORTED = re.compile(
    r"(runners|env_runners|learners|evaluation/env_runners)/.*|num_env_steps_sampled_lifetime"
)
_COUNTERS = re.compile(
    r"total/.*|buffer/(groups_(admitted|taken|discarded_\w+)|zero_variance_groups_kept"
    r"|trajectories_(added|late|duplicate)|failures_<reason>|retries)"
)
# Where the rules of `_words` would not say what it is.
_NAMES: Mapping[str, str] = {
    "rollout/success": "rollout_success_ratio",
    "rollout/success_by_task_type/<task_type>": "rollout_success_by_task_type_ratio",
    "rollout/end_<reason>": "rollout_end_ratio",
    "rollout/zero_variance_groups": "rollout_zero_variance_groups_ratio",
    "rollout/all_won_groups": "rollout_all_won_groups_ratio",
    "rollout/all_failed_groups": "rollout_all_failed_groups_ratio",
    "learner/evidence_share/any": "learner_evidence_ratio",
    "learner/evidence_share/<source>": "learner_evidence_by_source_ratio",
    "evaluation/success": "evaluation_success_ratio",
    "evaluation/success_low": "evaluation_success_low_ratio",
    "evaluation/success_high": "evaluation_success_high_ratio",
    "evaluation/success_by_task_type/<task_type>": "evaluation_success_by_task_type_ratio",
    "total/failed_<reason>": "rollouts_failed",
    "total/hung_<kind>": "hung_actors",
    "episode/<metric>": "episode_metric",
    "evaluation/<metric>": "evaluation_metric",
    # The name of a counter is no label: what counters count cannot be added up.
    "total/<counter>": "<counter>",
}
_PLACEHOLDER = re.compile(r"<(\w+)>")
_MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class Exported:
    """A metric for Ray, whose exporters put ``ray_`` before ``name`` and ``_total`` after a counter's.

    ``labels`` are those beside the run; the exported value is the metric's times ``factor``.
    """

    name: str
    meaning: str = ""
    is_counter: bool = False
    labels: tuple[str, ...] = ()
    factor: float = 1.0

    @property
    def in_prometheus(self) -> str:
        return prometheus_name(self.name) + ("_total" if self.is_counter else "")


def prometheus_name(name: str) -> str:
    """What Prometheus calls Ray's metric ``name``; of a counter ``_total`` is missing."""
    return f"ray_{name}"


def exported(described: str) -> Exported | None:
    """How the metric ``described``, a name of `METRICS`, is exported; None if it is not."""
    if _NOT_EXPORTED.fullmatch(described):
        return None
    name = _NAMES.get(described) or _words(described)
    labels = tuple(label for label in _PLACEHOLDER.findall(described) if f"<{label}>" not in name)
    factor = _MIB if described.endswith("_mib") else 1.0
    is_counter = _COUNTERS.fullmatch(described) is not None
    return Exported(PREFIX + name, METRICS[described], is_counter, labels, factor)


@functools.cache
def export_of(metric: str) -> tuple[Exported, Mapping[str, str]] | None:
    """How ``metric``, as a run writes it, is exported, and the values of its labels; None if it is not.

    One that `METRICS` does not describe, of a loss of one's own for example, is named by the same rules.
    """
    for described, expression in _BY_LENGTH:
        if (found := re.fullmatch(expression, metric)) is None:
            continue
        if (export := exported(described)) is None:
            return None
        return _filled(export, _PLACEHOLDER.findall(described), found.groups())
    return Exported(PREFIX + re.sub(r"\W", "_", _words(metric), flags=re.ASCII)), {}


def _filled(
    export: Exported, placeholders: Sequence[str], values: Sequence[str]
) -> tuple[Exported, Mapping[str, str]]:
    by_name = dict(zip(placeholders, values, strict=True))
    name = _PLACEHOLDER.sub(lambda part: by_name[part[1]], export.name)
    return replace(export, name=name), {label: by_name[label] for label in export.labels}


def _words(described: str) -> str:
    """``learner/seconds_update`` → ``learner_update_seconds``, and so on."""
    first, _, name = described.replace("/<", "_<").partition("/")
    name = re.sub(r"_<\w+>$", "", re.sub(r"_<(\w+)>_", r"_by_\1_", name.replace("/", "_")))
    if first != "total" and not name.startswith(f"{first}_"):
        name = f"{first}_{name}" if name else first
    name = re.sub(r"(^|_)num_", r"\1", name)
    name = re.sub(r"(^|_)seconds_(\w+)$", r"\1\2_seconds", name)
    for ending, unit in (("_per_s", "_per_second"), ("_s", "_seconds"), ("_mib", "_bytes")):
        name = re.sub(f"{ending}$", unit, name)
    return re.sub(r"_(rate|share|fraction)$", "_ratio", name)


# A name that is given in full comes before one that is open, so that `total/failed_<reason>` is found.
_BY_LENGTH = sorted(
    ((described, pattern(described)) for described in METRICS),
    key=lambda entry: -len(_PLACEHOLDER.sub("", entry[0])),
)
