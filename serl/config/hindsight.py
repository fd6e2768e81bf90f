"""The sections ``hindsight`` and ``hindsight.judge`` of an experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from serl.config.section import Section


class JudgeSection(Section):
    """The model that reviews trajectories, behind any OpenAI-compatible endpoint; read where
    ``hindsight.sources`` has a judged source.

    ``api_key_env`` names the environment variable that holds the key (null: none is sent). ``fallback_model``
    is asked where ``model`` gave nothing usable. A failed request is sent again ``max_retries`` times, after
    ``retry_delay_s``, then twice that, and so on. ``reasoning_max_tokens`` is the limit of one more request
    where reasoning used up ``max_tokens``. ``max_wait_s`` bounds how long a batch waits for answers.
    ``include_feedback``: the judge is told the trajectory's last feedback. ``strict``: a trajectory without
    a usable answer fails the run. ``cache`` keeps answers in the run directory for a resumed run."""

    base_url: str | None = None
    model: str | None = None
    fallback_model: str | None = None
    api_key_env: str | None = None
    timeout_s: PositiveFloat = 60.0
    max_retries: int = Field(default=3, ge=0)
    retry_delay_s: PositiveFloat = 1.0
    max_tokens: PositiveInt = 512
    reasoning_max_tokens: PositiveInt = 4096
    temperature: float = Field(default=0.0, ge=0.0)
    max_concurrent_requests: PositiveInt = 16
    max_wait_s: PositiveFloat = 60.0
    include_feedback: bool = True
    strict: bool = False
    cache: bool = True


class HindsightSection(Section):
    """The teacher: what it sees beside the student, and how much it may change an advantage.

    ``baseline``: what the teacher's log-prob of an action token is compared with, the ``student``'s (the
    paper) or the ``teacher``'s own without the evidence, which takes the drift between the two out. With
    ``student`` that second score is made for ``log_ratio_sample_rows`` rows of an update, for the metrics.
    ``center`` subtracts the mean gap of the batch or of each step. ``shuffle`` moves every weight to another
    action token of the batch: a control that should learn nothing from the evidence.

    ``sources`` are names of evidence; one of your own is ``package.module:name``. ``max_context_length``
    bounds the tokens of prompt and evidence together. What quoted trajectories look like:
    ``trajectory_format`` ``response`` quotes responses only, ``observation_action`` prompts too;
    ``exclude_own_success``: a step's own trajectory is never its successful sample; ``remove_thinking`` drops
    ``<think>…</think>``; ``max_trajectory_steps`` and ``max_future_steps`` bound the steps quoted (0: all).
    ``anchor_similarity``: from which difflib ratio two observations are the same situation (null: only equal
    ones)."""

    enabled: bool = True
    mode: str | None = None
    sources: tuple[str, ...] = ("immediate_feedback",)
    granularity: Literal["step", "anchor"] = "step"
    combine: Literal["all", "first_available"] = "all"
    mixing_lambda: float = Field(default=0.5, ge=0.0, le=1.0)
    lambda_decay_steps: int = Field(default=50, ge=0)
    weight_clip: float = Field(default=0.2, ge=0.0, lt=1.0)
    baseline: Literal["student", "teacher"] = "student"
    log_ratio_sample_rows: int = Field(default=64, ge=0)
    center: Literal["none", "batch", "step"] = "none"
    shuffle: bool = False
    teacher_sync_interval: PositiveInt = 10
    max_context_length: PositiveInt = 4096
    trajectory_format: Literal["response", "observation_action"] = "response"
    exclude_own_success: bool = True
    remove_thinking: bool = True
    max_trajectory_steps: int = Field(default=0, ge=0)
    max_future_steps: int = Field(default=0, ge=0)
    anchor_similarity: float | None = Field(default=None, gt=0.0, le=1.0)
    judge: JudgeSection = JudgeSection()
