"""What an experiment can name: functions registered with typed options, built in or anybody's.

A registry stands for one key of the config, such as ``advantage.estimator``. Its built-in entries are the
modules of one package, a module a name; an entry of one's own is written ``package.module:name``. The options
of an entry are the keyword-only parameters of its function, annotated and with defaults; an experiment gives
them under ``args``, and they are checked like every other key.

Names are listed without importing anything, so a config can refuse a wrong one without torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

F = TypeVar("F", bound=Callable[..., Any])


class UnknownEntryError(ValueError):
    """A registry has no entry of that name."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[F]):
    """A registered function. ``options`` validates its ``args``; ``traits`` is what its registration says."""

    name: str
    function: F
    options: type[BaseModel]
    traits: Mapping[str, Any]

    def bind(self, args: Mapping[str, Any]) -> F:
        """The function with its options filled in. Raises pydantic.ValidationError for wrong ``args``."""
        values = self.options.model_validate(dict(args), strict=True)
        options = {name: getattr(values, name) for name in self.options.model_fields}
        return functools.partial(self.function, **options)  # type: ignore[return-value]


class Registry(Generic[F]):
    """The entries of the config's ``key``; those built in are modules of ``package``."""

    def __init__(self, key: str, package: str) -> None:
        self.key = key
        self._package = package
        self._entries: dict[str, Entry[F]] = {}

    def register(self, name: str, **traits: Any) -> Callable[[F], F]:
        """Makes the decorated function known as ``name``.

        Raises ValueError if another function has the name. The same one may be registered again, as when its
        module is loaded anew.
        """

        def add(function: F) -> F:
            known = self._entries.get(name)
            if known is not None and _origin(known.function) != _origin(function):
                raise ValueError(f"{self.key}: {name!r} is already {_origin(known.function)}")
            self._entries[name] = Entry(name, function, _options_of(function), traits)
            return function

        return add

    def names(self) -> list[str]:
        """Every short name: those built in and those registered so far."""
        spec = find_spec(self._package)
        folders = spec.submodule_search_locations if spec is not None else None
        built_in = [module.name for module in pkgutil.iter_modules(folders or [])]
        return sorted({*built_in, *self._entries})

    def get(self, name: str) -> Entry[F]:
        """The entry ``name``; its module is imported first.

        Raises UnknownEntryError, and what importing a module of one's own raises.
        """
        module, _, own = name.rpartition(":")
        if module:
            importlib.import_module(module)
        elif own not in self._entries and own in self.names():
            importlib.import_module(f"{self._package}.{own}")
        if own not in self._entries:
            raise UnknownEntryError(f"{self.key} = {name!r}: unknown; known: {', '.join(self.names())}")
        return self._entries[own]


def _options_of(function: Callable[..., Any]) -> type[BaseModel]:
    """A model of the keyword-only parameters of ``function``."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(f"{function.__name__}_options", __config__=ConfigDict(extra="forbid"), **fields)


def _origin(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


ESTIMATORS: Registry[Any] = Registry("advantage.estimator", "serl.batch.advantages")
LOSSES: Registry[Any] = Registry("loss.name", "serl.learner.losses")
SOURCES: Registry[Any] = Registry("hindsight.sources", "serl.hindsight.sources")
