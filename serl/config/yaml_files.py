"""YAML as people mean it: one key once, `1e-6` a number, and only `true` and `false` booleans.

A `yaml.SafeLoader` with the scalars of YAML 1.2's core schema and no others, so that `no` and `2025-01-01`
stay text; and a dumper that quotes whatever either version of YAML would not take for text.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, cast

import yaml

from serl.config.errors import ConfigError

_CORE_SCHEMA = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
_KINDS = ("map", "seq", "str", "null", "bool", "int", "float")
# More than anyone writes: what goes on for ever ends there, and aliases that multiply each other.
_MAX_DEPTH = 30
_MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """Own resolvers; a key given twice is an error."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _KINDS
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = cast(object, self.construct_object(key_node, deep=True))  # pyright: ignore[reportUnknownMemberType]
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


for _kind, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


class _Dumper(yaml.SafeDumper):
    """Quotes text that looks like another scalar of YAML 1.1, as its base does, or of the core schema."""


for _kind, _pattern, _first in _CORE_SCHEMA:
    _Dumper.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def _boolean(loader: _Loader, node: yaml.ScalarNode) -> bool:
    text = loader.construct_scalar(node).lower()
    if text not in ("true", "false"):
        raise _refusal(node, f"{text[:60]!r} is neither true nor false")
    return text == "true"


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        value = int(text[2:] if base != 10 else text, base)
    except ValueError:
        raise _refusal(node, f"{text[:60]!r} is no whole number that can be read") from None
    if not -(2**63) <= value < 2**63:
        raise _refusal(node, f"{text[:60]} is a number of more than 64 bits")
    return value


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node)
    try:
        value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise _refusal(node, f"{text[:60]!r} is no number") from None
    if not math.isfinite(value):
        raise _refusal(node, f"{value} is not a finite number")
    return value


def _refusal(node: yaml.ScalarNode, sentence: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, sentence, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:bool", _boolean)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def parse_yaml(text: str, origin: str) -> Any:
    """The value that ``text`` stands for; raises ConfigError naming ``origin`` and the line."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError([f"{origin}: {_in_words(error)}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{origin}: {_TOO_DEEP}"]) from error
    if problem := _problem_within(value):
        raise ConfigError([f"{origin}: {problem}"])
    return value


def dump_yaml(value: Any) -> str:
    """The text that `parse_yaml` reads back as ``value``, and YAML 1.1 does too."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


_TOO_DEEP = f"a value contains itself, or is nested deeper than {_MAX_DEPTH}"


def _problem_within(value: Any) -> str | None:
    """What keeps ``value`` from being written down again."""
    pending: list[tuple[Any, int]] = [(value, 0)]
    num_seen = 0
    while pending:
        found, depth = pending.pop()
        num_seen += 1
        if depth > _MAX_DEPTH:
            return _TOO_DEEP
        if num_seen > _MAX_VALUES:
            return f"holds more than {_MAX_VALUES} values"
        if isinstance(found, str) and not is_unicode(found):
            return f"{found[:60]!r} holds half a character (a lone surrogate)"
        if isinstance(found, dict):
            pending += [(inner, depth + 1) for pair in cast(dict[str, Any], found).items() for inner in pair]
        elif isinstance(found, list):
            pending += [(inner, depth + 1) for inner in cast(list[Any], found)]
    return None


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be encoded: halves of UTF-16 pairs, which JSON and YAML can write, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in the file ``path``; raises ConfigError if it cannot be read or holds none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError([f"{path}: cannot be read: {reason}"]) from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError([f"{path}: holds {type(value).__name__}, not a mapping of keys to values"])
    return cast(dict[str, Any], value)


def _in_words(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"not YAML: {error}"
    mark = error.problem_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{error.problem or 'not YAML'}"
