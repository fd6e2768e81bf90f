"""What an agent, or its grader, says of an episode."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from envs.encodable import encodable

_TOLERANCE = 1e-6

Text = Annotated[str, AfterValidator(encodable)]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TurnReport(_Said):
    """Of the response with this ``id``, and of its further choices as ``ID/1``, ``ID/2`` …

    ``feedback`` is what was said to it, for hindsight. ``action`` is what it did, ``observation`` what it
    acted on; left out, they are what the response and the request's last messages say.
    """

    id: str
    feedback: Text | None = None
    reward: float = 0.0
    action: Text | None = None
    action_valid: bool = True
    observation: Text | None = None


class AgentReport(_Said):
    """``reward`` is the episode's, and goes to its last turn unless ``turns`` say which earned it.

    ``success``: left out, a reward above 0 is one. ``metrics`` are reported as means over episodes.
    """

    reward: float | None = None
    success: bool | None = None
    turns: list[TurnReport] = Field(default_factory=list)
    metrics: dict[Text, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_sum_of_rewards(self) -> Self:
        earned = sum(turn.reward for turn in self.turns)
        if not math.isfinite(earned):
            raise ValueError("its turns' rewards add up to more than a number can be")
        if self.reward is not None and earned and abs(earned - self.reward) > _TOLERANCE:
            raise ValueError(f"reward = {self.reward:g}, but its turns' rewards add up to {earned:g}")
        return self

    @property
    def episode_reward(self) -> float:
        return sum(turn.reward for turn in self.turns) if self.reward is None else self.reward

    @property
    def solved(self) -> bool:
        return self.episode_reward > 0.0 if self.success is None else self.success

    def graded(self, grade: AgentReport) -> AgentReport:
        """With the reward, the success and the metrics of ``grade`` in place of its own."""
        turns = [turn.model_copy(update={"reward": 0.0}) for turn in self.turns]
        return AgentReport(
            reward=grade.episode_reward,
            success=grade.solved,
            turns=turns,
            metrics={**self.metrics, **grade.metrics},
        )


def read_report(value: Any) -> AgentReport:
    """What was returned: nothing, a reward, or a mapping with the fields of a report. Raises ValueError."""
    if value is None:
        return AgentReport()
    if isinstance(value, bool | int | float):
        value = {"reward": value}
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.200} is neither a reward nor a mapping with one")
    try:
        return AgentReport.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
    raise ValueError(f"{where}: {first['msg']}" if where else first["msg"])
