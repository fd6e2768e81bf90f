"""Environments by name: built-in ones, entry points of installed packages, and ``module:Class``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from envs.base import EnvProvider
from serl.config.registry import OWN_NAME, import_own, raised_where

ENTRY_POINT_GROUP = "serl.envs"
BUILT_IN = {
    "agent": "envs.agent.provider:make_provider",
    "alfworld": "envs.alfworld.provider:make_provider",
    "gymnasium": "envs.hubs.gymnasium_text:make_provider",
    "reasoning_gym": "envs.hubs.reasoning_gym:make_provider",
    "textarena": "envs.hubs.textarena:make_provider",
    "webshop": "envs.webshop.provider:make_provider",
}
# Each stands for many environments, written ``NAME:ID``; the factory gets the ID first.
HUBS = {"verifiers": "envs.hubs.verifiers:make_provider"}


class UnknownEnvironmentError(ValueError):
    """No environment of that name is built in, installed, or importable."""


def environment_names() -> list[str]:
    """The names one can write as ``env.name``, besides ``module:factory``."""
    hubs = (f"{hub}:ID" for hub in HUBS)
    return sorted({*BUILT_IN, *hubs, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def make_provider(name: str, args: dict[str, Any]) -> EnvProvider:
    """Builds the provider of environment ``name`` from its own arguments.

    ``name`` is a built-in name, a hub with an ID of its own, the name of an entry point in the group
    ``serl.envs``, or ``package.module:factory`` where ``factory(args)`` returns an `EnvProvider`.
    Raises UnknownEnvironmentError, also if the factory exits, and whatever the factory raises for wrong
    arguments (ValueError).
    """
    try:
        return load_target(name)(args)
    except SystemExit as error:  # uncaught it would end a command as if all were well
        raise UnknownEnvironmentError(f"environment {name!r}: {raised_where(error)}") from error


def load_target(name: str) -> Callable[..., Any]:
    """What ``name`` stands for, without calling it. Raises UnknownEnvironmentError."""
    hub, _, env_id = name.partition(":")
    if hub in HUBS and env_id:
        return functools.partial(load_target(HUBS[hub]), env_id)
    target = BUILT_IN.get(name)
    if target is None:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            if point.name == name:
                return point.load()
        target = name
    if not OWN_NAME.fullmatch(target):
        known = ", ".join(environment_names())
        raise UnknownEnvironmentError(
            f"unknown environment {name!r}; known: {known}, or package.module:factory"
        )
    module_name, _, attribute = target.partition(":")
    try:
        factory = getattr(import_own(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownEnvironmentError(f"environment {name!r} cannot be loaded: {error}") from error
    if not callable(factory):
        raise UnknownEnvironmentError(f"environment {name!r}: {attribute} is no function that makes one")
    return factory
