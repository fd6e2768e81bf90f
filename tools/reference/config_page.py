"""The page of all config keys, from the typed sections and the registries of what an experiment can name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from envs.alfworld.provider import AlfworldArguments
from envs.webshop.provider import WebshopArguments
from serl.config import ExperimentConfig
from serl.config.hindsight_modes import MODES
from serl.config.registry import ESTIMATORS, LOSSES, SOURCES, Registry
from tools.reference.markdown import from_docstring, one_line, page, table

_ENVIRONMENTS: Mapping[str, type[BaseModel]] = {"alfworld": AlfworldArguments, "webshop": WebshopArguments}
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`"}
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def config_page() -> str:
    """Every key with its type, bounds, default and description; options of everything that is registered."""
    schema = ExperimentConfig.model_json_schema()
    return page(
        "Config reference",
        [
            "Every key of an experiment. A key without a default must be given; an unknown key, or a value "
            "out of its bounds, is an error that names the file and the nearest valid key."
        ],
        *_section(ExperimentConfig, "", schema),
        *_registered(ESTIMATORS, "advantage.args"),
        *_registered(LOSSES, "loss.args"),
        *_registered(SOURCES, "hindsight.args.SOURCE"),
        *_modes(),
        *_environments(),
    )


def _section(section: type[BaseModel], prefix: str, schema: Mapping[str, Any]) -> Iterator[list[str]]:
    """The section's own keys, then the sections in it. ``prefix`` ends in a dot, or is empty."""
    if prefix:
        yield [f"## `{prefix[:-1]}`"]
        yield [from_docstring(section.__doc__)]
    inner = {name: model for name, field in section.model_fields.items() if (model := _model_of(field))}
    own = {name: field for name, field in section.model_fields.items() if name not in inner}
    yield _keys(own, _definition(section, schema)["properties"], prefix)
    for name, model in inner.items():
        yield from _section(model, f"{prefix}{name}.", schema)


def _definition(section: type[BaseModel], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema if section is ExperimentConfig else schema["$defs"][section.__name__]


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that the field holds, if it holds one."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _keys(fields: Mapping[str, FieldInfo], properties: Mapping[str, Any], prefix: str) -> list[str]:
    rows = [
        (f"`{prefix}{name}`", value_words(properties[name]), _default(field), one_line(field.description))
        for name, field in fields.items()
    ]
    return table(("key", "value", "default", "meaning"), rows)


def _options(options: type[BaseModel]) -> list[str]:
    """What they do is said in the docstring of their function."""
    properties = options.model_json_schema().get("properties", {})
    rows = [
        (f"`{name}`", value_words(properties[name]), _default(field))
        for name, field in options.model_fields.items()
    ]
    return table(("option", "value", "default"), rows) if rows else []


def _registered(registry: Registry, key: str) -> Iterator[list[str]]:
    """One part for each built-in entry: what it is, and its options."""
    yield [f"## Options of `{registry.key}`"]
    yield [
        f"The built-in ones; their options are given under `{key}`. One of your own is `package.module:name`."
    ]
    for name in registry.built_in():
        entry = registry.get(name)
        yield [f"### `{name}`"]
        yield [from_docstring(entry.function.__doc__)]
        yield _options(entry.options)


def _modes() -> Iterator[list[str]]:
    yield ["## Names of `hindsight.mode`"]
    yield ["The paper's, and the `sources`, `granularity` and `combine` that each stands for."]
    rows = [
        (f"`{name}`", ", ".join(f"`{source}`" for source in mode.sources), mode.granularity, mode.combine)
        for name, mode in MODES.items()
    ]
    yield table(("mode", "sources", "granularity", "combine"), rows)


def _environments() -> Iterator[list[str]]:
    yield ["## Arguments of `env.name`"]
    yield ["Given under `env.args`. An environment of your own checks what it is given itself."]
    for name, arguments in _ENVIRONMENTS.items():
        yield [f"### `{name}`"]
        yield [from_docstring((arguments.__doc__ or "").partition("\n")[2])]
        yield _options(arguments)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def value_words(schema: Mapping[str, Any]) -> str:
    """What a value must be, from its JSON schema, such as "integer ≥ 1", "`a` or `b`", "text or `null`"."""
    if "anyOf" in schema:
        return " or ".join(value_words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return _listed([f"`{value}`" for value in schema["enum"]])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "null":
        return "`null`"
    if kind == "array" and "prefixItems" in schema:
        return "[" + ", ".join(value_words(item) for item in schema["prefixItems"]) + "]"
    if kind == "array":
        return f"list of {value_words(schema.get('items', {}))}"
    if kind == "object":
        return "mapping"
    bounds = [f"{sign} {schema[name]:.10g}" for name, sign in _BOUNDS if name in schema]
    words = _TYPES.get(kind or "", "any value")
    return f"{words} {', '.join(bounds)}" if bounds else words


def _listed(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
