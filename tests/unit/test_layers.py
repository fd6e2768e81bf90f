"""That no module escapes the contract on imports which `lint-imports` checks."""

from __future__ import annotations

import pkgutil
import re
import tomllib
from pathlib import Path

import serl

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_every_module_of_serl_stands_in_one_layer():
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    named = [name for layer in layers for name in re.split(r" [:|] ", layer)]
    modules = [f"serl.{module.name}" for module in pkgutil.iter_modules(serl.__path__)]
    assert sorted(named) == sorted(["envs", "tools", *modules])
