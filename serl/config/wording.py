"""Pydantic's findings in plain words: file, key, value, what it must be, and the nearest valid key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from serl.config.experiment import ExperimentConfig
from serl.config.nearest import nearest
from serl.config.problems import CONTRADICTION
from serl.config.renamed import changed_key

_MUST_BE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda context: f"greater than {_number(context['gt'])}",
    "greater_than_equal": lambda context: f"{_number(context['ge'])} or more",
    "less_than": lambda context: f"less than {_number(context['lt'])}",
    "less_than_equal": lambda context: f"{_number(context['le'])} or less",
    "int_type": lambda context: "a whole number",
    "int_from_float": lambda context: "a whole number",
    "float_type": lambda context: "a number",
    "finite_number": lambda context: "a finite number",
    "bool_type": lambda context: "true or false",
    "string_type": lambda context: "text",
    "tuple_type": lambda context: "a list",
    "dict_type": lambda context: "a mapping of keys to values",
    "model_type": lambda context: "a mapping of keys to values",
    "literal_error": lambda context: f"one of {context['expected']}",
    "string_too_short": lambda context: "not empty",
    "string_pattern_mismatch": lambda context: "made of letters, digits, '.', '-' and '_' only",
}


def describe(problem: Mapping[str, Any], origin: Callable[[str], str], title: str) -> str:
    """One sentence for one entry of `pydantic.ValidationError.errors`.

    ``origin`` says where a key comes from: ``in FILE`` or ``on the command line``. ``title``: what sentences
    about several keys together begin with.
    """
    key, kind = dotted(problem["loc"]), problem["type"]
    value, context = problem["input"], problem.get("ctx", {})
    if kind == CONTRADICTION:
        return f"{title}: {problem['msg']}"
    if kind == "missing":
        return f"{key} is missing {origin(key)}: it has no default"
    return f"{key} = {shown(value)} {origin(key)}: {_sentence(key, kind, value, context, problem['msg'])}"


def _sentence(key: str, kind: str, value: Any, context: Mapping[str, Any], message: str) -> str:
    if kind == "extra_forbidden":
        return changed_key(key) or f"unknown key{key_hint(key, context.get('known_keys'))}"
    if kind not in _MUST_BE:
        return message.removeprefix("Value error, ")
    sentence = f"must be {_MUST_BE[kind](context)}"
    if kind == "literal_error" and isinstance(value, str):
        choices = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        close = nearest(value, choices)
        sentence += f"; did you mean {close!r}?" if close else ""
    return sentence


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


def key_hint(key: str, beside: Sequence[str] | None = None) -> str:
    """The valid key that was probably meant: a similar one beside it, else that name in another section.

    ``beside``: the keys of a mapping that is no section of the config, such as ``advantage.args``.
    """
    section, _, name = key.rpartition(".")
    by_name: dict[str, list[str]] = {}
    for known in config_keys(ExperimentConfig):
        by_name.setdefault(known.rpartition(".")[2], []).append(known)
    if beside is None:
        beside = [own for own, keys in by_name.items() if any(k.rpartition(".")[0] == section for k in keys)]
    if close := nearest(name, beside, cutoff=0.6):
        return f"; did you mean {f'{section}.{close}'.lstrip('.')}?"
    if close := nearest(name, by_name, cutoff=0.75):
        return f"; did you mean {by_name[close][0]}?"
    return f"; {section or 'an experiment'} has {', '.join(beside) or 'no keys'}"


def config_keys(section: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted key of ``section``, the sections themselves included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = [field.annotation, *get_args(field.annotation)]
        for model in inner:
            if isinstance(model, type) and issubclass(model, BaseModel):
                yield from config_keys(model, f"{prefix}{name}.")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
