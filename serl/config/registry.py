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
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import to_json

from serl.config.nearest import name_hint
from serl.config.problems import Location, Problem, problems_of

F = TypeVar("F", bound=Callable[..., Any])

OWN_NAME = re.compile(r"\w+(?:\.\w+)*:\w+")


class UnknownEntryError(ValueError):
    """A registry has no entry of that name."""


class NameTakenError(ValueError):
    """Another function is registered under that name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered function. ``options`` validates its ``args``; ``traits`` is what its registration says."""

    name: str
    function: Callable[..., Any]
    options: type[BaseModel]
    traits: Mapping[str, Any]

    def validated(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Every option, those that ``args`` leaves out with their defaults.

        Raises pydantic.ValidationError for options that are unknown, missing, of a wrong type, out of range.
        """
        # By way of JSON, where a list may become a tuple but "3" or true never become 3.
        values = self.options.model_validate_json(to_json(args, inf_nan_mode="constants"))
        return {name: getattr(values, name) for name in self.options.model_fields}

    def bind(self, args: Mapping[str, Any]) -> Callable[..., Any]:
        """The function with its options filled in; raises as `validated` does."""
        return functools.partial(self.function, **self.validated(args))


class Registry:
    """The entries of the config's ``key``, each a ``noun``; those built in are modules of ``package``."""

    def __init__(self, key: str, noun: str, package: str) -> None:
        self.key = key
        self.noun = noun
        self._package = package
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, **traits: Any) -> Callable[[F], F]:
        """Makes the decorated function known as ``name``.

        Raises NameTakenError if another function has the name, registered or built in; the same one may be
        registered again, as when its module is loaded anew. Raises TypeError for an option without
        annotation.
        """

        def add(function: F) -> F:
            known = self._entries.get(name)
            if known is not None and _origin(known.function) != _origin(function):
                raise NameTakenError(f"the {self.noun} {name!r} exists already: {_origin(known.function)}")
            if name in self.built_in() and not function.__module__.startswith(f"{self._package}."):
                raise NameTakenError(f"the {self.noun} {name!r} exists already: it is built in")
            self._entries[name] = Entry(name, function, _options_of(function), traits)
            return function

        return add

    def built_in(self) -> list[str]:
        """The modules of the registry's package."""
        spec = find_spec(self._package)
        folders = spec.submodule_search_locations if spec is not None else None
        return sorted(module.name for module in pkgutil.iter_modules(folders or []))

    def names(self) -> list[str]:
        """Every short name: those built in and those registered so far."""
        return sorted({*self.built_in(), *self._entries})

    def get(self, name: str) -> Entry:
        """The entry ``name``; its module is imported first.

        Raises UnknownEntryError; ImportError and NameTakenError for a module of one's own.
        """
        module_name, colon, short = name.rpartition(":")
        if colon:
            if not OWN_NAME.fullmatch(name):
                raise UnknownEntryError("one of your own is written package.module:name")
            module = import_own(module_name)
            entry = self._entries.get(short)
            if entry is None or not any(value is entry.function for value in vars(module).values()):
                raise UnknownEntryError(f"{module_name} registers no such {self.noun}")
            return entry
        if short not in self._entries and short in self.built_in():
            importlib.import_module(f"{self._package}.{short}")
        if short not in self._entries:
            raise UnknownEntryError(f"no such {self.noun}{name_hint(name, self.names())}")
        return self._entries[short]

    def problems(
        self, name: str, args: Mapping[str, Any], *, name_at: Location, args_at: Location
    ) -> list[Problem]:
        """What is wrong with a section that names ``name`` and gives it ``args``."""
        try:
            entry = self.get(name)
        except (UnknownEntryError, NameTakenError) as error:
            return [Problem(name_at, name, str(error))]
        except ImportError as error:
            return [Problem(name_at, name, f"cannot be imported: {error}")]
        try:
            entry.validated(args)
        except ValidationError as error:
            return problems_of(error, args_at, known_keys=list(entry.options.model_fields))
        return []


def import_own(name: str) -> ModuleType:
    """Somebody's own module. Raises ImportError, whatever the module raises, and NameTakenError."""
    try:
        return importlib.import_module(name)
    except (ImportError, NameTakenError):
        raise
    except (Exception, SystemExit) as error:  # whatever it raises, it is refused like one that is not there
        raise ImportError(raised_where(error)) from error


def raised_where(error: BaseException) -> str:
    """What somebody's own code raised, and the line that did."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error!r} ({place.filename}, line {place.lineno})"


def _options_of(function: Callable[..., Any]) -> type[BaseModel]:
    """A model of the keyword-only parameters of ``function``."""
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for parameter in parameters:
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{_origin(function)}: its option {parameter.name} has no annotation")
    # Of the options alone: the other annotations may name what is imported for type checkers only.
    annotated = SimpleNamespace(__annotations__={p.name: p.annotation for p in parameters})
    hints = get_type_hints(annotated, globalns=cast(FunctionType, function).__globals__, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters
    }
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(f"{function.__name__}_options", __config__=strict, **fields)


def _origin(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


ESTIMATORS = Registry("advantage.estimator", "estimator", "serl.batch.advantages")
LOSSES = Registry("loss.name", "loss", "serl.learner.losses")
SOURCES = Registry("hindsight.sources", "source", "serl.hindsight.sources")
