"""Checks an environment's own arguments (`env.args`) and says what is wrong with them in one sentence."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from serl.config.nearest import name_hint


class EnvironmentArguments(BaseModel):
    """An environment's own arguments; numbers are finite, and what is not among them is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Arguments = TypeVar("Arguments", bound=BaseModel)


def parse_arguments(model: type[Arguments], values: dict[str, Any]) -> Arguments:
    """``values`` as a ``model``; raises ValueError naming the key, its value and the nearest valid key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_sentence(dict(problem), model) for problem in error.errors()]
    raise ValueError("; ".join(problems))


def _sentence(problem: dict[str, Any], model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"env.args.{key}: unknown key{name_hint(str(problem['loc'][-1]), model.model_fields)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        options = str(problem["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        message += name_hint(str(problem["input"]), options)
    return f"env.args.{key}: {problem['input']!r}: {message}"
