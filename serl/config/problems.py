"""What validation finds wrong with a section, at the key that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString, cast

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Location = tuple[str | int, ...]

CONTRADICTION = "contradiction"


@dataclass(frozen=True, slots=True)
class Problem:
    """``sentence`` says what ``value`` must be. ``at`` leads from the section that finds it to the key.

    ``kind`` and ``context`` are a type of pydantic's errors and its context, for `serl.config.wording`.
    """

    at: Location
    value: Any
    sentence: str
    kind: str = "refused"
    context: dict[str, Any] = field(default_factory=dict[str, Any])


def contradiction(sentence: str) -> Problem:
    """``sentence`` names the keys itself, and no value that may be a secret."""
    return Problem((), None, sentence, CONTRADICTION)


def validation_error(section: str, problems: Sequence[Problem]) -> ValidationError:
    """For a validator of ``section`` to raise: pydantic adds the place of the section to each location."""
    return ValidationError.from_exception_data(
        section,
        [
            InitErrorDetails(
                type=PydanticCustomError(
                    cast(LiteralString, problem.kind), cast(LiteralString, problem.sentence), problem.context
                ),
                loc=problem.at,
                input=problem.value,
            )
            for problem in problems
        ],
    )


def problems_of(error: ValidationError, at: Location, known_keys: Sequence[str]) -> list[Problem]:
    """What ``error`` says of a mapping at ``at``, which may have ``known_keys``."""
    return [
        Problem(
            at=(*at, *found["loc"]),
            value=found["input"],
            sentence=found["msg"],
            kind=found["type"],
            context=dict(found.get("ctx", {})) | {"known_keys": list(known_keys)},
        )
        for found in error.errors(include_url=False)
    ]
