"""Pydantic's findings in plain words: file, key, value, what it must be, and the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from serl.config.sections import ExperimentConfig

_MUST_BE: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda context: f"greater than {_number(context['gt'])}",
    "greater_than_equal": lambda context: f"{_number(context['ge'])} or more",
    "less_than": lambda context: f"less than {_number(context['lt'])}",
    "less_than_equal": lambda context: f"{_number(context['le'])} or less",
    "int_type": lambda context: "a whole number",
    "int_from_float": lambda context: "a whole number",
    "float_type": lambda context: "a number",
    "bool_type": lambda context: "true or false",
    "string_type": lambda context: "text",
    "tuple_type": lambda context: "a list",
    "dict_type": lambda context: "a mapping of keys to values",
    "model_type": lambda context: "a mapping of keys to values",
    "literal_error": lambda context: f"one of {context['expected']}",
    "string_pattern_mismatch": lambda context: "made of letters, digits, '.', '-' and '_' only",
}


def describe(problem: dict[str, Any], origin: Callable[[str], str]) -> str:
    """One sentence for one entry of `pydantic.ValidationError.errors`.

    ``origin`` says where a key comes from: ``in FILE`` or ``on the command line``.
    """
    location = problem["loc"]
    key = dotted(location)
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "missing" and _in_a_list(location):
        return f"{dotted(location[:-1])} {origin(key)}: has too few values"
    if kind == "missing":
        return f"{key} is missing {origin(key)}: it has no default"
    if kind == "extra_forbidden":
        return f"{key} = {shown(value)} {origin(key)}: unknown key{nearest_key(key)}"
    if kind in _MUST_BE:
        sentence = f"must be {_MUST_BE[kind](context)}"
    else:
        sentence = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "literal_error" and isinstance(value, str):
        sentence += nearest_name(
            value, context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        )
    return f"{key} = {shown(value)} {origin(key)}: {sentence}"


def dotted(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location)


def shown(value: Any) -> str:
    """``value`` as it would be written in YAML, short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, dict):
        return "{…}"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def nearest_name(word: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or nothing if no name is close."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest_key(key: str) -> str:
    """The valid key that was probably meant: a similar one beside it, else that name in another section."""
    section, _, name = key.rpartition(".")
    by_name: dict[str, list[str]] = {}
    for known in config_keys(ExperimentConfig):
        by_name.setdefault(known.rpartition(".")[2], []).append(known)
    beside = [known for known in by_name if any(key.rpartition(".")[0] == section for key in by_name[known])]
    for names, cutoff in ((beside, 0.6), (list(by_name), 0.75)):
        close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
        if close:
            meant = by_name[close[0]]
            return f"; did you mean {f'{section}.{close[0]}'.lstrip('.') if names is beside else meant[0]}?"
    return f"; {section or 'an experiment'} has {', '.join(beside)}" if beside else ""


def config_keys(section: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted key of ``section``, the sections themselves included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = [field.annotation, *get_args(field.annotation)]
        for model in inner:
            if isinstance(model, type) and issubclass(model, BaseModel):
                yield from config_keys(model, f"{prefix}{name}.")


def _in_a_list(location: Sequence[str | int]) -> bool:
    return isinstance(location[-1], int)


def _number(value: float) -> str:
    return f"{value:g}"
