"""From YAML files and `key.path=value` overrides to one frozen `ExperimentConfig`.

A file may say ``extends: base.yaml`` (relative to itself): its keys win over the base's, section by
section; lists, values and empty mappings are replaced whole. Overrides win over files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from serl.config.errors import ConfigError
from serl.config.experiment import ExperimentConfig
from serl.config.renamed import translate
from serl.config.section import Section
from serl.config.wording import describe
from serl.config.yaml_files import parse_yaml, read_mapping

COMMAND_LINE = "on the command line"

_MAX_SECTIONS = 30
_OVERRIDE = re.compile(r"([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)", re.DOTALL)


def load_experiment(
    path: str | Path, overrides: Sequence[str] = (), recorded: bool = False
) -> ExperimentConfig:
    """The experiment in the file ``path``, with ``overrides`` such as ``learner.lr=1e-5``.

    ``recorded``: the file is what a run wrote down, perhaps of an older version, whose keys are translated.
    Raises ConfigError that names every problem found: unreadable files, unknown keys, wrong types and
    ranges, keys that contradict each other.
    """
    path = Path(path)
    values, origins = _read_with_bases(path, ())
    if recorded:
        translate(values, f"in {path}")
    for override in overrides:
        key, value = parse_override(override)
        _set(values, key, value)
        origins[key] = COMMAND_LINE
        for section in _sections_above(key):
            origins.setdefault(section, COMMAND_LINE)
    return _validated(values, origins, path)


def parse_override(text: str) -> tuple[str, Any]:
    """``"a.b=c"`` as ``("a.b", c)``, the value read as YAML; raises ConfigError."""
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise ConfigError([f"{text!r} {COMMAND_LINE}: not of the form key.path=value"])
    if match[1].count(".") > _MAX_SECTIONS:
        raise ConfigError([f"{match[1][:60]}… {COMMAND_LINE}: more than {_MAX_SECTIONS} sections in another"])
    value = parse_yaml(match[2], f"{match[1]} {COMMAND_LINE}")
    if value is None and match[2].strip().lower() not in ("null", "~"):
        raise ConfigError([f"{text!r} {COMMAND_LINE}: no value after ="])
    return match[1], value


def _read_with_bases(path: Path, readers: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged mapping of ``path`` and its bases, and from which file each dotted key is."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a name that no file can have
        raise ConfigError([f"{str(path)!r}: cannot be read: {error}"]) from error
    if resolved in readers:
        chain = " extends ".join(str(reader) for reader in (*readers, resolved))
        raise ConfigError([f"extends goes round in a circle: {chain}"])
    own = read_mapping(path)
    base = own.pop("extends", None)
    origins: dict[str, str] = {}
    values: dict[str, Any] = {}
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError([f"extends = {base!r} in {path}: must be the path of one YAML file"])
        values, origins = _read_with_bases(path.parent / base, (*readers, resolved))
    _merge(values, own, origins, f"in {path}", prefix="")
    return values, origins


def _merge(
    values: dict[str, Any], own: dict[str, Any], origins: dict[str, str], origin: str, prefix: str
) -> None:
    for name, value in own.items():
        key = prefix + name
        origins[key] = origin
        if not isinstance(value, dict):
            values[name] = value
            continue
        if not value or not isinstance(values.get(name), dict):
            values[name] = {}
        _merge(values[name], cast(dict[str, Any], value), origins, origin, f"{key}.")


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for depth, section in enumerate(sections):
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            upper = ".".join(sections[: depth + 1])
            raise ConfigError([f"{key} {COMMAND_LINE}: {upper} is a value, not a section"])
        values = cast(dict[str, Any], inner)
    values[name] = value


def _sections_above(key: str) -> list[str]:
    names = key.split(".")
    return [".".join(names[:depth]) for depth in range(1, len(names))]


def _validated(values: dict[str, Any], origins: dict[str, str], path: Path) -> ExperimentConfig:
    def origin(key: str) -> str:
        while key and key not in origins:
            key = key.rpartition(".")[0]
        return origins.get(key, f"in {path}")

    _drop_empty_sections(values)
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ConfigError([describe(problem, origin, path) for problem in found]) from error


def _drop_empty_sections(values: dict[str, Any]) -> None:
    """A section whose lines are all commented out is None in YAML and means its defaults."""
    for name, field in ExperimentConfig.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        if is_section and values.get(name, ...) is None and not field.is_required():
            del values[name]
