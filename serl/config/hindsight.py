"""The sections ``hindsight`` and ``hindsight.judge`` of an experiment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serl.config.distill import DistillSection
from serl.config.hindsight_modes import MODES, Combination, Granularity
from serl.config.nearest import name_hint
from serl.config.problems import Problem, contradiction, validation_error
from serl.config.registry import SOURCES
from serl.config.repair import RepairSection
from serl.config.section import Section

Weight = Literal["log_ratio", "action_probability"]

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def judged_sources(sources: Sequence[str]) -> list[str]:
    """Those of ``sources`` that need a judge; raises as `serl.config.registry.Registry.get` does."""
    return [name for name in sources if SOURCES.get(name).traits["judged"]]


class JudgeSection(Section):
    """The model that reviews trajectories, behind any OpenAI-compatible endpoint; read where
    ``hindsight.sources`` has a judged source."""

    base_url: str | None = None
    """Address of the endpoint, such as ``https://host/v1``; a judged source needs it."""

    model: str | None = None
    """Name of the model that is asked; a judged source needs it."""

    fallback_model: str | None = None
    """Asked where ``model`` gave nothing usable; null: nobody is."""

    api_key_env: str | None = None
    """Environment variable that holds the endpoint's key; null: none is sent."""

    timeout_s: PositiveFloat = 60.0
    """Seconds that one request may take."""

    max_retries: int = Field(default=3, ge=0)
    """How often a request that failed is sent again, after a second, then two, four and so on."""

    max_tokens: PositiveInt = 512
    """Tokens of an answer. Where reasoning used them up, one more request allows eight times as many."""

    temperature: float = Field(default=0.0, ge=0.0)
    """Sampling temperature of the judge."""

    max_concurrent_requests: PositiveInt = 16
    """Requests under way at any time."""

    max_wait_s: PositiveFloat = 60.0
    """Seconds that a batch waits for answers that are not there; it is trained without them then."""

    include_feedback: bool = True
    """Whether the judge is told the last feedback of a trajectory."""

    strict: bool = False
    """Whether a trajectory without a usable answer fails the run."""

    @property
    def max_tokens_with_reasoning(self) -> int:
        """Tokens of the second request, where reasoning used up those of the first."""
        return 8 * self.max_tokens

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems: list[Problem] = []
        # What was given is not quoted: it may be a key, or hold one.
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            problems.append(
                contradiction(
                    "hindsight.judge.api_key_env: must be the name of the environment variable that holds "
                    "the key, in capitals, digits and '_'"
                )
            )
        if self.base_url is not None and (problem := _endpoint_problem(self.base_url)):
            problems.append(contradiction(f"hindsight.judge.base_url: {problem}"))
        if problems:
            raise validation_error("hindsight.judge", problems)
        return self


class HindsightSection(Section):
    """The teacher: what it reads beside the student, and how much it may change an advantage."""

    enabled: bool = True
    """Whether there is a teacher; without one the run is plain policy optimization."""

    mode: str | None = None
    """The paper's name for a choice of ``sources``, ``granularity`` and ``combine``; null: these as given."""

    sources: tuple[str, ...] = Field(default=("immediate_feedback",), strict=False)
    """Evidence for the teacher, in the order in which a context shows it; one of your own is
    ``package.module:name``."""

    args: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of a source, by its name as in ``sources``."""

    granularity: Granularity = "step"
    """``step``: evidence about the step alone; ``anchor``: about every action that the group tried from the
    same observation."""

    combine: Combination = "all"
    """``all``: every source, and per step none without all of them; ``first_available``: the first that has
    something."""

    objective: Literal["reweight", "distill", "both"] = "reweight"
    """What the teacher's opinion does: ``reweight`` advantages (the paper), add a divergence to the loss
    (``distill``), or ``both``."""

    distill: DistillSection = DistillSection()

    repair: RepairSection = RepairSection()

    mixing_lambda: float = Field(default=0.5, ge=0.0, le=1.0)
    """λ at the first update: the share of an advantage that the teacher's weight multiplies."""

    lambda_decay_steps: int = Field(default=50, ge=0)
    """Updates after which λ has decayed linearly to 0; 0: it stays."""

    weight: Weight = "log_ratio"
    """What an advantage is weighed by: on each action token the ``log_ratio`` of teacher and student (the
    paper), or on every token of a step, thoughts too, the probability that the teacher gives its action."""

    weight_clip: float = Field(default=0.2, ge=0.0, lt=1.0)
    """A weight is between 1 - ``weight_clip`` and 1 + ``weight_clip``."""

    control: Literal["none", "progress", "other_group", "no_evidence"] = "none"
    """``progress``: a weight is 1 + or - ``weight_clip`` by whether the environment says that the action
    brought success nearer, and there is no teacher: the most that reweighting can give. ``other_group``: the
    teacher reads evidence of the group finished before. ``no_evidence``: it reads none, where it would."""

    baseline: Literal["student", "teacher"] = "student"
    """What the log-prob of the teacher with context is compared with: that of the ``student`` (the paper), or
    of the ``teacher`` without context, which leaves the context effect alone."""

    log_ratio_sample_rows: int = Field(default=64, ge=0)
    """Rows of an update that the teacher also scores without context, for metrics alone; 0: none. With
    ``baseline: teacher`` all rows with a context are."""

    center: Literal["none", "batch", "step"] = "none"
    """Whether the mean log-ratio of the ``batch`` or of each ``step`` is subtracted from every log-ratio."""

    shuffle: bool = False
    """Whether every weight moves to another action token of the batch: a control that should learn nothing
    from the evidence."""

    teacher: Literal["synced", "ema", "frozen", "live"] = "synced"
    """Whose weights the teacher has: the student's of a while ago (``synced``), their moving average
    (``ema``), those that the run began with (``frozen``), or the student's own, without a copy (``live``)."""

    teacher_sync_interval: PositiveInt = 10
    """Updates after which a ``synced`` teacher becomes a copy of the student again."""

    teacher_ema_decay: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Share of its weights that an ``ema`` teacher keeps at each update."""

    max_context_length: PositiveInt = 4096
    """Tokens of prompt and evidence together; the oldest quoted steps are left out first."""

    trajectory_format: Literal["response", "observation_action"] = "response"
    """What is quoted of a step: its ``response`` alone, or ``observation_action``, its prompt too."""

    remove_thinking: bool = True
    """Whether quoted responses lose their ``<think>…</think>``."""

    anchor_similarity: float | None = Field(default=None, gt=0.0, le=1.0)
    """Ratio of difflib from which two observations are the same anchor; null: only equal ones are."""

    judge: JudgeSection = JudgeSection()

    @property
    def reweights(self) -> bool:
        """Whether the teacher weighs advantages."""
        return self.enabled and self.objective != "distill"

    @property
    def distills(self) -> bool:
        """Whether a divergence from the teacher is part of the loss."""
        return self.enabled and self.objective != "reweight"

    @property
    def num_repaired(self) -> int:
        """The last rollouts of every group, which may be given a hint."""
        return self.repair.num_rollouts if self.enabled else 0

    @model_validator(mode="before")
    @classmethod
    def _expand_mode(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = cast(dict[str, Any], values)
        mode = MODES.get(str(given.get("mode")))
        return given if mode is None else mode._asdict() | given

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            *self._problems_of_control(),
            *self._problems_of_weight(),
            *self._problems_of_mode(),
            *self._problems_of_sources(),
        ]
        problems = problems or list(self._problems_of_judging())
        if problems:
            raise validation_error("hindsight", problems)
        return self

    def _problems_of_control(self) -> Iterator[Problem]:
        if self.control == "progress" and self.enabled and self.objective != "reweight":
            yield contradiction(
                f"hindsight.control = progress contradicts hindsight.objective = {self.objective}: it stands "
                "in for a teacher that weighs advantages, and there is none to distil"
            )

    def _problems_of_weight(self) -> Iterator[Problem]:
        if self.weight == "log_ratio":
            return
        for key, used in (("baseline", "student"), ("center", "none"), ("shuffle", False)):
            if (value := getattr(self, key)) != used:
                yield contradiction(
                    f"hindsight.{key} = {json.dumps(value)} contradicts hindsight.weight = {self.weight}: it "
                    "says what becomes of a log-ratio, and there is none"
                )

    def _problems_of_mode(self) -> Iterator[Problem]:
        if self.mode is not None and self.mode not in MODES:
            yield Problem(("mode",), self.mode, f"no such mode{name_hint(self.mode, MODES)}")
        elif self.mode is not None:
            for key, meaning in MODES[self.mode]._asdict().items():
                value = getattr(self, key)
                if value != meaning:
                    yield contradiction(
                        f"hindsight.mode = {self.mode!r} contradicts hindsight.{key} = {_shown(value)}: "
                        f"the mode means {key} = {_shown(meaning)}; give one of the two"
                    )

    def _problems_of_sources(self) -> Iterator[Problem]:
        if self.enabled and not self.sources:
            yield contradiction(
                "hindsight.sources = [] contradicts hindsight.enabled = true: the teacher needs evidence"
            )
        for index, name in enumerate(self.sources):
            args = self.args.get(name, {})
            yield from SOURCES.problems(name, args, name_at=("sources", index), args_at=("args", name))
        for index, name in enumerate(self.repair.sources if self.repair.num_rollouts else ()):
            args, at = self.args.get(name, {}), ("repair", "sources", index)
            problems = list(SOURCES.problems(name, args, name_at=at, args_at=("args", name)))
            yield from problems
            if not problems and not SOURCES.get(name).traits["of_group"]:
                yield Problem(at, name, "speaks of a step: a rollout that has not begun has none")
        used = (*self.sources, *self.repair.sources)
        for name, args in self.args.items():
            if name not in used:
                sentence = f"not among hindsight.sources{name_hint(name, used)}"
                yield Problem(("args", name), args, sentence)

    def _problems_of_judging(self) -> Iterator[Problem]:
        judged = judged_sources(self.sources)
        if not self.enabled or not judged:
            return
        if len(judged) > 1:
            yield contradiction(
                f"hindsight.sources has {judged[0]}, which contradicts {judged[1]} beside it: "
                "a trajectory is judged once"
            )
        judge = self.judge
        if judge.model is None or judge.base_url is None:
            keys = ("hindsight.judge.model", judge.model), ("hindsight.judge.base_url", judge.base_url)
            values = " and ".join(f"{key} = {'null' if value is None else '…'}" for key, value in keys)
            yield contradiction(
                f"hindsight.sources has {judged[0]}, which contradicts {values}: a judge needs both"
            )


def _endpoint_problem(base_url: str) -> str | None:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    else:
        if "@" in parts.netloc or parts.query:
            return "must hold neither user, password nor query; a key belongs in the variable of api_key_env"
    return None if usable else "must be an address such as https://host/v1"


def _shown(value: str | tuple[str, ...]) -> str:
    return str(list(value)) if isinstance(value, tuple) else value
