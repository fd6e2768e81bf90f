"""From YAML files and `key.path=value` overrides to one frozen `ExperimentConfig`.

A file may say ``extends: base.yaml`` (relative to itself): its keys win over the base's, section by
section; lists, values and empty mappings are replaced whole. Overrides win over files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serl.config.draft import Draft
from serl.config.errors import ConfigError
from serl.config.experiment import ExperimentConfig
from serl.config.renamed import translate
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
    return read_draft(path, overrides, recorded).experiment()


def read_draft(path: str | Path, overrides: Sequence[str] = (), recorded: bool = False) -> Draft:
    """What `load_experiment` checks; raises ConfigError for what cannot be read."""
    path = Path(path)
    draft = Draft(str(path))
    for file, values in _files(path, ()):
        draft.merge(values, f"in {file}")
    if recorded:
        translate(draft.values, f"in {path}")
    for override in overrides:
        draft.set(*parse_override(override), COMMAND_LINE)
    return draft


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


def _files(path: Path, readers: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """What ``path`` and its bases say, the base of all first."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a name that no file can have
        raise ConfigError([f"{str(path)!r}: cannot be read: {error}"]) from error
    if resolved in readers:
        chain = " extends ".join(str(reader) for reader in (*readers, resolved))
        raise ConfigError([f"extends goes round in a circle: {chain}"])
    own = read_mapping(path)
    base = own.pop("extends", None)
    if base is None:
        return [(path, own)]
    if not isinstance(base, str):
        raise ConfigError([f"extends = {base!r} in {path}: must be the path of one YAML file"])
    return [*_files(path.parent / base, (*readers, resolved)), (path, own)]
