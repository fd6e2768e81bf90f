"""Checks an environment's own arguments (`env.args`) and says what is wrong with them in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Arguments = TypeVar("Arguments", bound=BaseModel)


def parse_arguments(model: type[Arguments], values: dict[str, Any]) -> Arguments:
    """``values`` as a ``model``; raises ValueError naming the key, its value and the nearest valid key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_sentence(dict(problem), model) for problem in error.errors()]
    raise ValueError("; ".join(problems))


def nearest_name(word: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` if one of ``names`` is close to ``word``, else the names."""
    known = list(names)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _sentence(problem: dict[str, Any], model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"env.args.{key}: unknown key{nearest_name(str(problem['loc'][-1]), model.model_fields)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        options = str(problem["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        message += nearest_name(str(problem["input"]), options)
    return f"env.args.{key}: {problem['input']!r}: {message}"
