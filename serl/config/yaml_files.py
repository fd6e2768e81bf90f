"""YAML as people mean it: one key once, `1e-6` a number, and only `true` and `false` booleans.

A `yaml.SafeLoader` with the scalars of YAML 1.2's core schema, so that `no` and `2025-01-01` stay text.
"""

from __future__ import annotations

import json
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


class _Loader(yaml.SafeLoader):
    """Own resolvers; a key given twice is an error."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

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


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(
            None, None, f"{value} is not a finite number", node.start_mark
        )
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def parse_yaml(text: str, origin: str) -> Any:
    """The value that ``text`` stands for; raises ConfigError naming ``origin`` and the line."""
    try:
        value = yaml.load(text, Loader=_Loader)
        json.dumps(value)
    except yaml.YAMLError as error:
        raise ConfigError([f"{origin}: {_in_words(error)}"]) from error
    except TypeError as error:
        raise ConfigError(
            [f"{origin}: a value is neither text, number, boolean, null, list nor mapping"]
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{origin}: a value contains itself, or is nested too deep"]) from error
    return value


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
