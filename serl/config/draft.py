"""An experiment while it is put together: what has been given so far, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from serl.config.errors import ConfigError
from serl.config.experiment import ExperimentConfig
from serl.config.section import Section
from serl.config.wording import describe


class Draft:
    """``values`` as in a file; ``origins`` has ``in FILE`` and the like by dotted key.

    ``title`` is what a sentence about several keys together begins with.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def merge(self, values: Mapping[str, Any], origin: str) -> None:
        """Takes ``values`` section by section; lists, values and empty mappings are replaced whole."""
        self._merge(self.values, values, origin, prefix="")

    def set(self, key: str, value: Any, origin: str) -> None:
        """Replaces the value of the dotted ``key``; raises ConfigError if it lies inside another value."""
        *sections, name = key.split(".")
        values = self.values
        for depth, section in enumerate(sections):
            inner = values.setdefault(section, {})
            if inner is None:
                inner = values[section] = {}
            upper = ".".join(sections[: depth + 1])
            if not isinstance(inner, dict):
                raise ConfigError([f"{key} {origin}: {upper} is a value, not a section"])
            self.origins.setdefault(upper, origin)
            values = cast(dict[str, Any], inner)
        values[name] = value
        self.origins[key] = origin

    def experiment(self) -> ExperimentConfig:
        """The experiment; raises ConfigError that names every problem found."""
        values = _without_empty_sections(self.values)
        try:
            return ExperimentConfig.model_validate(values)
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise ConfigError([describe(problem, self._origin, self.title) for problem in found]) from error

    def _merge(self, values: dict[str, Any], own: Mapping[str, Any], origin: str, prefix: str) -> None:
        for name, value in own.items():
            key = prefix + name
            self.origins[key] = origin
            if not isinstance(value, Mapping):
                values[name] = value
                continue
            if not value or not isinstance(values.get(name), dict):
                values[name] = {}
            self._merge(values[name], cast(Mapping[str, Any], value), origin, f"{key}.")

    def _origin(self, key: str) -> str:
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, f"in {self.title}")


def _without_empty_sections(values: dict[str, Any]) -> dict[str, Any]:
    """A section whose lines are all commented out is None in YAML and means its defaults."""
    empty = {
        name
        for name, field in ExperimentConfig.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, Section)
        and not field.is_required()
        and values.get(name, ...) is None
    }
    return {name: value for name, value in values.items() if name not in empty}
