"""What the page shows of the whole run, gathered one record at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from serl.run.records import StepRecord, TrajectoryRecord
from serl.types import TeacherRecord
from tools.inspect.evidence_kinds import NO_ADVANTAGE, NO_EVIDENCE, NO_LAMBDA, evidence_kind
from tools.inspect.reading import Problems, number_in

_NUM_INNER_BINS = 18
_CURVES = (
    "rollout/return",
    "rollout/episode_steps",
    "rollout/invalid_action_rate",
    "rollout/zero_variance_groups",
    "learner/loss",
    "learner/entropy",
    "learner/grad_norm",
    "learner/approx_kl",
    "learner/train_inference_mismatch_on_policy",
    "learner/effective_lambda",
    "learner/teacher_abs_log_ratio_mean",
    "credit/auc_idle",
    "staleness/mean",
    "throughput/response_tokens_per_s",
    "time/iteration_s",
    "time/wait_for_batch_s",
)
_LAST_KINDS = (NO_EVIDENCE, NO_ADVANTAGE, NO_LAMBDA)


class RunSummary:
    """Takes records one by one (`add`) and gives what `page.js` reads (`as_values`).

    ``config`` is the run's configuration as plain values, the others are rows of the files of their names.
    """

    def __init__(
        self,
        config: dict[str, Any],
        metrics: list[dict[str, Any]],
        evaluations: list[dict[str, Any]],
        failures: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._evaluations = evaluations
        self._failures = failures
        self._lambdas = {
            row["iteration"]: effective_lambda
            for row in metrics
            if (effective_lambda := number_in(row, "learner/effective_lambda")) is not None
        }
        self.weight_bounds = _weight_bounds(config)
        self._weights = _WeightHistogram(self.weight_bounds)
        self._kinds: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._outcomes: defaultdict[int, list[bool]] = defaultdict(list)
        self.trajectories: list[dict[str, Any]] = []
        self.num_steps = 0

    def add(self, record: TrajectoryRecord) -> None:
        """Takes in one record; it becomes the trajectory of index ``len(trajectories) − 1``."""
        effective_lambda = self._lambdas.get(record.iteration)
        num_clipped = num_without_evidence = 0
        for step in record.steps:
            if step.teacher is None:
                continue
            kind = evidence_kind(step.teacher, effective_lambda)
            self._kinds[record.iteration][kind] += 1
            num_without_evidence += kind == NO_EVIDENCE
            num_clipped += self._weights.add(step, step.teacher)
        self._outcomes[record.iteration].append(record.success)
        self.num_steps += len(record.steps)
        self.trajectories.append(
            {
                "index": len(self.trajectories),
                "id": record.trajectory_id,
                "iteration": record.iteration,
                "group_id": record.group_id,
                "rollout_index": record.rollout_index,
                "task_id": record.task_id,
                "task_type": record.task_type,
                "success": record.success,
                "reward": record.reward,
                "num_steps": len(record.steps),
                "num_clipped": num_clipped,
                "num_without_evidence": num_without_evidence,
            }
        )

    def as_values(self, run_name: str, problems: Problems) -> dict[str, Any]:
        """Everything but the trajectories themselves, as JSON values."""
        return {
            "name": str(self._config.get("name", run_name)),
            "facts": self._facts(run_name),
            "lambdas": self._lambdas,
            "weight_bounds": self.weight_bounds,
            "problems": problems.named,
            "num_problems": problems.count,
            "num_left_out": int(
                sum(number_in(row, "records/trajectories_left_out") or 0 for row in self._metrics)
            ),
            "success": self._success(),
            "evaluations": [
                evaluation for row in self._evaluations if (evaluation := _evaluation(row)) is not None
            ],
            "histogram": self._weights.as_values(),
            "evidence": self._evidence(),
            "curves": self._curves(),
            "failures": [found for row in self._failures if (found := _failure(row)) is not None],
            "trajectories": self.trajectories,
        }

    def _facts(self, run_name: str) -> list[tuple[str, str]]:
        hindsight = _section(self._config, "hindsight")
        evidence = hindsight.get("mode") or " + ".join(map(str, _list(hindsight.get("sources"))))
        facts = [
            ("run", run_name),
            ("model", str(_section(self._config, "model").get("path", ""))),
            ("environment", str(_section(self._config, "env").get("name", ""))),
            ("evidence", str(evidence) if hindsight.get("enabled", True) else "teacher off"),
            ("baseline", str(hindsight.get("baseline", ""))),
            ("log-ratios centred by", str(hindsight.get("center", "none")).replace("none", "")),
            ("weights", "shuffled" if hindsight.get("shuffle") else ""),
            ("recorded", f"{len(self.trajectories):,} trajectories, {self.num_steps:,} steps"),
        ]
        return [(name, value) for name, value in facts if value]

    def _success(self) -> dict[str, Any]:
        """Of all training episodes where metrics tell, else of the recorded ones, not a fair sample."""
        rates = [
            (row["iteration"], success)
            for row in self._metrics
            if (success := number_in(row, "rollout/success")) is not None
        ]
        if rates:
            return {"of": "all training episodes", "rates": rates}
        outcomes = sorted(self._outcomes.items())
        return {
            "of": "recorded episodes",
            "rates": [(iteration, sum(wins) / len(wins)) for iteration, wins in outcomes],
        }

    def _curves(self) -> dict[str, list[tuple[int, float]]]:
        """Those of `_CURVES` that the run has, as pairs of an iteration and a value."""
        curves = {
            name: [
                (row["iteration"], value)
                for row in self._metrics
                if (value := number_in(row, name)) is not None
            ]
            for name in _CURVES
        }
        return {name: points for name, points in curves.items() if points}

    def _evidence(self) -> dict[str, Any]:
        totals: Counter[str] = Counter()
        for counts in self._kinds.values():
            totals.update(counts)
        kinds = [kind for kind, _ in totals.most_common() if kind not in _LAST_KINDS]
        kinds += [kind for kind in _LAST_KINDS if kind in totals]
        rows = [
            (iteration, [counts[kind] for kind in kinds]) for iteration, counts in sorted(self._kinds.items())
        ]
        return {"kinds": kinds, "by_iteration": rows}


class _WeightHistogram:
    """Counts weights by the sign of the token's advantage; the outermost bins hold what is on a bound."""

    def __init__(self, bounds: tuple[float, float] | None) -> None:
        self._bounds = bounds
        low, high = bounds or (0.0, 2.0)
        width = (high - low) / _NUM_INNER_BINS
        self._edges = [low + width * index for index in range(-1, _NUM_INNER_BINS + 2)]
        self._counts = {sign: [0] * (_NUM_INNER_BINS + 2) for sign in ("positive", "negative")}

    def add(self, step: StepRecord, teacher: TeacherRecord) -> int:
        """Takes in a step's weights; returns how many are on a bound."""
        num_clipped = 0
        low, high = self._edges[1], self._edges[-2]
        for weight, advantage in zip(teacher.weights, teacher.token_advantages, strict=True):
            if weight is None or not advantage:
                continue
            clipped = self._bounds is not None and not self._bounds[0] < weight < self._bounds[1]
            num_clipped += clipped
            share = (weight - low) / (high - low)
            if clipped or not 0.0 <= share < 1.0:
                index = 0 if weight < 1.0 else _NUM_INNER_BINS + 1
            else:
                index = 1 + int(share * _NUM_INNER_BINS)
            self._counts["positive" if advantage > 0 else "negative"][index] += 1
        return num_clipped

    def as_values(self) -> dict[str, Any]:
        low, high = self._edges[1], self._edges[-2]
        labels = (f"≤ {low:g}", f"≥ {high:g}")
        return {"edges": self._edges, "first_label": labels[0], "last_label": labels[1], **self._counts}


def _weight_bounds(config: dict[str, Any]) -> tuple[float, float] | None:
    """The bounds of teacher weights, rounded as records are; None if unknown, or if they leave only 1."""
    clip = _section(config, "hindsight").get("weight_clip")
    if not isinstance(clip, int | float) or not 0.0 < clip < 1.0:
        return None
    return round(1.0 - clip, 4), round(1.0 + clip, 4)


def _evaluation(row: dict[str, Any]) -> tuple[int, float, float, float, int] | None:
    """Iteration, rate, its interval and the number of tasks; None if the row lacks one or has no task."""
    overall = row.get("overall")
    if not isinstance(overall, dict):
        return None
    successes, count, low, high = (number_in(overall, name) for name in ("successes", "count", "low", "high"))
    if successes is None or low is None or high is None or not count:
        return None
    return row["iteration"], successes / count, low, high, int(count)


def _failure(row: dict[str, Any]) -> dict[str, Any] | None:
    """What the page shows of a row of failures; None if the row lacks a part of it."""
    shown = {name: row.get(name) for name in ("iteration", "kind", "reason", "count", "last_text")}
    texts = (shown["kind"], shown["reason"], shown["last_text"])
    if not all(isinstance(text, str) for text in texts) or number_in(row, "count") is None:
        return None
    return shown


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}
