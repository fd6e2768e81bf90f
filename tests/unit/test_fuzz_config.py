"""Any text as experiment or override: a config, or sentences that say what is wrong with which key."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_helpers import MINIMAL
from fuzzing import any_text, damaged_bytes, fuzzed, json_values
from hypothesis import example, given
from hypothesis import strategies as st

from envs.registry import make_provider
from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.load import COMMAND_LINE, load_experiment
from serl.config.renamed import CHANGED
from serl.config.wording import config_keys
from serl.run.run_dir import config_yaml

KEYS = sorted(config_keys(ExperimentConfig))
RECORDED = Path(__file__).resolve().parents[1] / "fixtures" / "config" / "recorded_by_0.1.yaml"

# What the schema treats in a way of its own, and what YAML 1.1 and 1.2 read differently.
scalars = st.sampled_from(
    """0 1 2 -1 0.5 1e5 08 0o17 0x1f 1_000 1:30 .5 5. +1 .inf .nan no yes true null ~ << = 2025-01-01 ""
    embedded:tiny_alfworld grpo gigpo gspo nccl ipc judge_current_traj anchor_immediate_feedback train
    valid_seen 7e400 """.split()
)
names = st.sampled_from([":grpo", "..:x", ".a:b", "a..b:c", "os:name", "grpo.", "serl.hindsight:x", "\0:x"])
values = json_values | scalars | names
marks = st.sampled_from(
    ["\n", "\n  ", ": ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "? ", "| ", "'", '"', "# ", ", "]
    + ["!!bool ", "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!null ", "!!python/none "]
    + ["!x ", "%YAML 1.1\n", "---\n", "...\n", "\ud800", '"\\ud800"', '"\\0"', "\0", "\ufeff", "\u2028"]
)
yaml_texts = st.lists(marks | scalars | st.sampled_from(KEYS) | any_text).map("".join)
dotted_keys = st.sampled_from(KEYS) | st.tuples(st.sampled_from(KEYS), any_text).map(".".join)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def nested(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    root: dict[str, Any] = {"name": "test", "model": {"path": "p"}}
    for key, value in pairs:
        *sections, last = key.split(".")
        at = root
        for section in sections:
            if not isinstance(at.get(section), dict):
                at[section] = {}
            at = at[section]
        at[last] = value
    return root


def loaded(folder: Path, content: str | bytes, *overrides: str, recorded: bool = False) -> None:
    """Loads; whatever is refused is refused in words, and what is taken reads back as it was written."""
    path = folder / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        experiment = load_experiment(path, overrides, recorded=recorded)
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert str(folder) in problem or COMMAND_LINE in problem, problem
        return
    written = folder / "written.yaml"
    written.write_text(config_yaml(experiment), encoding="utf-8")
    assert load_experiment(written) == experiment


@fuzzed(30)
@given(yaml_texts)
@example("!!bool maybe")
@example("!!timestamp soon")
@example('extends: "\\0"')
@example("seed: " + "9" * 5000)
@example("name: test\nmodel: {path: p}\nenv: {args: {a: &a [*a]}}")
def test_any_text_is_an_experiment_or_a_sentence(folder: Path, text: str):
    loaded(folder, text)


@fuzzed(30)
@given(yaml_texts)
def test_any_lines_after_a_valid_experiment_are_too(folder: Path, text: str):
    loaded(folder, MINIMAL + text)


@fuzzed(40)
@given(st.lists(st.tuples(dotted_keys, values), max_size=4))
@example([("env.args", {"a": "08", "1e5": "1e5", "b": ["0o17", "<<", "="]})])
@example([("env.args.a", "\ud800")])
@example([("advantage.estimator", "..:x")])
def test_any_mapping_is_an_experiment_or_a_sentence(folder: Path, pairs: list[tuple[str, Any]]):
    loaded(folder, yaml.safe_dump(nested(pairs), allow_unicode=True))


@fuzzed(40)
@given(st.lists(st.tuples(dotted_keys, scalars | any_text | yaml_texts), max_size=4), any_text)
@example([("env.args." + "a." * 900 + "a", "1")], "")
def test_any_override_is_taken_or_told(folder: Path, pairs: list[tuple[str, str]], other: str):
    loaded(folder, MINIMAL, *(f"{key}={value}" for key, value in pairs), *([other] if other else []))


@fuzzed(30)
@given(st.data())
def test_a_damaged_record_of_a_config_is_read_or_told(folder: Path, data: st.DataObject):
    loaded(folder, data.draw(damaged_bytes(RECORDED.read_bytes())), recorded=True)


@fuzzed(30)
@given(st.lists(st.tuples(st.sampled_from([*CHANGED, *KEYS]), values), max_size=5))
@example([("advantage.gamma", 0.5), ("advantage.estimator", 5)])
@example([("advantage.gamma", 0.5), ("advantage.args", 5)])
def test_a_record_of_an_older_version_is_translated_or_told(folder: Path, pairs: list[tuple[str, Any]]):
    loaded(folder, yaml.safe_dump(nested(pairs), allow_unicode=True), recorded=True)


@fuzzed(40)
@given(names | any_text, st.dictionaries(any_text, values, max_size=2))
@example("os:name", {})
@example("..:x", {})
def test_any_name_of_an_environment_is_one_or_a_sentence(name: str, args: dict[str, Any]):
    try:
        make_provider(name, args)
    except (ValueError, FileNotFoundError) as error:
        assert str(error)
