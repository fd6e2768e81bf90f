"""Loading, merging, overriding and refusing experiments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from config_helpers import MINIMAL, problem_of, write
from fresh_process import heavy_imports_of
from pydantic import ValidationError

from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.load import load_experiment, parse_override
from serl.config.paths import UnknownPathError, expanded_path
from serl.config.renamed import CHANGED
from serl.config.section import Section
from serl.config.wording import config_keys
from serl.run.run_dir import config_yaml

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("**/*.yaml"))
RECORDED = ROOT / "tests" / "fixtures" / "config" / "recorded_by_0.1.yaml"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_shipped_experiment_is_valid(path: Path):
    assert load_experiment(path).name == path.stem


def test_the_three_shipped_experiments_are_found():
    assert {"quickstart", "smollm2_alfworld", "alfworld_qwen2.5_7b"} <= {path.stem for path in EXPERIMENTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_resolved_yaml_reads_back_as_the_same_experiment(path: Path, tmp_path: Path):
    experiment = load_experiment(path)
    assert load_experiment(write(tmp_path, config_yaml(experiment))) == experiment


def test_config_is_loaded_without_torch_ray_or_vllm():
    quickstart = str(ROOT / "experiments" / "quickstart.yaml")
    code = f"from serl.config.load import load_experiment; load_experiment({quickstart!r})"
    assert heavy_imports_of(code) == []


def test_a_number_in_exponent_notation_without_a_point_is_a_number(tmp_path: Path):
    experiment = load_experiment(write(tmp_path, MINIMAL + "learner:\n  lr: 1e-6\n"))
    assert experiment.learner.lr == 1e-6


def test_overrides_win_and_are_read_as_yaml(tmp_path: Path):
    path = write(tmp_path, MINIMAL + "learner:\n  lr: 1e-6\n")
    overrides = [
        "learner.lr=2e-5",
        "rollout.stop=[a, b]",
        "env.args.data=none=here",
        "hindsight.enabled=false",
    ]
    experiment = load_experiment(path, overrides)
    assert experiment.learner.lr == 2e-5
    assert experiment.rollout.stop == ("a", "b")
    assert experiment.env.args == {"data": "none=here"}
    assert experiment.hindsight.enabled is False


def test_an_override_may_turn_a_section_on_and_off(tmp_path: Path):
    on = load_experiment(write(tmp_path, MINIMAL), ["serving.autoscaling.max_replicas=3"])
    assert on.serving.autoscaling is not None and on.serving.autoscaling.max_replicas == 3
    off = load_experiment(
        write(tmp_path, MINIMAL), ["serving.autoscaling.max_replicas=3", "serving.autoscaling=null"]
    )
    assert off.serving.autoscaling is None


@pytest.mark.parametrize(
    "override", ["seed=", "output_dir=", "seed=  ", "env.args.data=", "learner=", "seed=# 3"]
)
def test_an_override_without_a_value_is_refused(override: str, tmp_path: Path):
    assert problem_of(tmp_path, MINIMAL, override) == f"{override!r} on the command line: no value after ="


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=null", "must be a whole number"),
        ("output_dir=~", "must be text"),
        ("output_dir=''", "must be not empty"),
        ("model.path=''", "must be not empty"),
        ("seed=4294967296", "must be less than 4294967296"),
        ("seed=20261125183000", "must be less than 4294967296"),
    ],
)
def test_a_value_that_would_be_the_default_or_fail_later_is_refused(
    override: str, words: str, tmp_path: Path
):
    assert words in problem_of(tmp_path, MINIMAL, override)


def test_a_path_means_what_a_shell_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("EMPTY", "")
    for text, path in (
        ("$SCRATCH/runs", "/scratch/me/runs"),
        ("${SCRATCH}/runs", "/scratch/me/runs"),
        ("~/runs", "/home/me/runs"),
        ("runs", f"{tmp_path}/runs"),
        ("./~/runs", f"{tmp_path}/~/runs"),
    ):
        assert str(expanded_path(text)) == path
    for text, words in (
        ("$NO_SUCH_NAME/runs", "the environment variable NO_SUCH_NAME is not set"),
        ("/${EMPTY}/runs", "the environment variable EMPTY is not set"),
        ("~nosuchuser/runs", "~nosuchuser has no home folder here"),
        (" ", "the path is empty"),
        ("runs\0", "no path has a character of code 0"),
    ):
        with pytest.raises(UnknownPathError, match=words):
            expanded_path(text)


@pytest.mark.parametrize("override", ["learner.lr", "=3", "learner..lr=3", "learner.lr 3"])
def test_an_override_of_another_form_is_refused(override: str, tmp_path: Path):
    assert "not of the form key.path=value" in problem_of(tmp_path, MINIMAL, override)


def test_a_file_extends_others_key_by_key(tmp_path: Path):
    write(tmp_path, MINIMAL + "learner:\n  lr: 1e-3\n  grad_clip: 2.0\n", "base.yaml")
    (tmp_path / "deep").mkdir()
    write(tmp_path, "extends: base.yaml\nlearner:\n  lr: 1e-4\nseed: 5\n", "middle.yaml")
    leaf = write(tmp_path / "deep", "extends: ../middle.yaml\nseed: 6\nenv: {args: {data: d}}\n")
    experiment = load_experiment(leaf)
    assert (experiment.learner.lr, experiment.learner.grad_clip, experiment.seed) == (1e-4, 2.0, 6)
    assert experiment.env.args == {"data": "d"}


def test_files_that_extend_each_other_are_refused(tmp_path: Path):
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match="circle.*a.yaml extends .*b.yaml extends .*a.yaml"):
        load_experiment(tmp_path / "a.yaml")


def test_a_problem_names_the_file_that_the_key_is_from(tmp_path: Path):
    write(tmp_path, MINIMAL + "learner:\n  lr: -1\n", "base.yaml")
    text = problem_of(tmp_path, "extends: base.yaml\nseed: -2\n")
    assert f"learner.lr = -1 in {tmp_path / 'base.yaml'}: must be greater than 0" in text
    assert f"seed = -2 in {tmp_path / 'x.yaml'}: must be 0 or more" in text


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("learner.lr=-1", "learner.lr = -1 on the command line: must be greater than 0"),
        ("learner.lr=fast", "learner.lr = 'fast' on the command line: must be a number"),
        ("training.group_size=1", "training.group_size = 1 on the command line: must be 2 or more"),
        ("training.group_size=8.0", "training.group_size = 8.0 on the command line: must be a whole number"),
        (
            "training.group_size=true",
            "training.group_size = true on the command line: must be a whole number",
        ),
        ("training.filter_groups=yes", "training.filter_groups = 'yes' on the command line: must be true or"),
        ("learner.lr=.nan", "nan is not a finite number"),
        ("serving.gpu_memory_utilization=2", "utilization = 2 on the command line: must be 1 or less"),
        ("model.dtype=float23", "must be one of 'float32' or 'bfloat16'; did you mean 'float32'?"),
        ("rollout.stop=x", "rollout.stop = 'x' on the command line: must be a list"),
        ("rollout.stop=[1]", "rollout.stop.0 = 1 on the command line: must be text"),
        ("rollout.stop=['']", "rollout.stop.0 = '' on the command line: must be not empty"),
        ("advantage.args=3", "advantage.args = 3 on the command line: must be a mapping"),
        (
            "advantage.estimator=gigop",
            "= 'gigop' on the command line: no such estimator; did you mean 'gigpo'?",
        ),
        (
            "advantage.estimator=xyz",
            "no such estimator; known: gigpo, grpo, grpo_passk, reinforce_pp_baseline",
        ),
        (
            "loss.name=ppoclip",
            "loss.name = 'ppoclip' on the command line: no such loss; did you mean 'ppo_clip'?",
        ),
        ("learner=3", "learner = 3 on the command line: must be a mapping"),
        ("name='a b'", "name = 'a b' on the command line: must be made of letters"),
        ("model.path=null", "model.path = null on the command line: must be text"),
    ],
)
def test_wrong_values_are_told_with_key_value_and_what_they_must_be(
    override: str, sentence: str, tmp_path: Path
):
    assert sentence in problem_of(tmp_path, MINIMAL, override)


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("learner.lrr=1", "did you mean learner.lr?"),
        ("rollout.lr=1", "did you mean learner.lr?"),
        ("lerner.lr=1", "did you mean learner?"),
        ("max_stalenes=1", "did you mean training.max_staleness?"),
        ("training.zzz=1", "training has num_iterations, group_size"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_valid_one(override: str, suggestion: str, tmp_path: Path):
    text = problem_of(tmp_path, MINIMAL, override)
    assert "unknown key" in text and suggestion in text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{estimator: gigpo, args: {gama: 0.9}}",
            "args.gama = 0.9 in FILE: unknown key; did you mean advantage.args.gamma?",
        ),
        (
            "{args: {gamma: 0.9}}",
            "args.gamma = 0.9 in FILE: unknown key; advantage.args has across, normalize_std",
        ),
        ("{estimator: gigpo, args: {gamma: 1.5}}", "args.gamma = 1.5 in FILE: must be 1 or less"),
        ("{estimator: gigpo, args: {gamma: '1'}}", "args.gamma = '1' in FILE: must be a number"),
        ("{args: {normalize_std: 1}}", "args.normalize_std = 1 in FILE: must be true or false"),
        (
            "{args: {across: token}}",
            "args.across = 'token' in FILE: must be one of 'steps' or 'trajectories'",
        ),
    ],
)
def test_options_are_checked_like_every_key(text: str, sentence: str, tmp_path: Path):
    expected = "advantage." + sentence.replace("FILE", str(tmp_path / "x.yaml"))
    assert expected in problem_of(tmp_path, MINIMAL + f"advantage: {text}\n")


OWN_LOSS = """
from serl.learner.losses import LossTokens, register_policy_loss

@register_policy_loss("own_for_config", aggregation="seq-mean-token-sum")
def own_for_config(tokens: LossTokens, *, floor: float, ceiling: float = 1.0):
    return tokens.aggregate(tokens.logprobs), {}
"""


def test_a_loss_of_ones_own_is_checked_by_its_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_loss_for_config.py").write_text(OWN_LOSS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = "loss.name=own_loss_for_config:own_for_config"
    assert "loss.args.floor is missing on the command line: it has no default" in problem_of(
        tmp_path, MINIMAL, own
    )
    text = problem_of(tmp_path, MINIMAL, own, "loss.args.floor=1", "loss.args.ceilin=2")
    assert "loss.args.ceilin = 2 on the command line: unknown key; did you mean loss.args.ceiling?" in text
    text = problem_of(tmp_path, MINIMAL, own, "loss.args.floor=1")
    assert "contradicts loss.aggregation = token-mean" in text and "seq-mean-token-sum" in text
    overrides = [own, "loss.args.floor=1", "loss.aggregation=seq-mean-token-sum"]
    assert load_experiment(write(tmp_path, MINIMAL), overrides).loss.args == {"floor": 1}
    text = problem_of(tmp_path, MINIMAL, "loss.name=own_loss_for_config:other")
    assert (
        "'own_loss_for_config:other' on the command line: own_loss_for_config registers no such loss" in text
    )
    (tmp_path / "own_loss_that_exits.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    assert "SystemExit(0) (" in problem_of(tmp_path, MINIMAL, "loss.name=own_loss_that_exits:loss")
    text = problem_of(tmp_path, MINIMAL, "loss.name=no_such_module_at_all:loss")
    assert "cannot be imported: No module named 'no_such_module_at_all'" in text


@pytest.mark.parametrize("override", ["rollout.top_p=0.9", "loss.importance_cap=2", "advantage.gamma=0.9"])
def test_a_key_of_an_older_version_is_told_what_became_of_it(override: str, tmp_path: Path):
    key, value = parse_override(override)
    change = CHANGED[key]
    told = f"this key is now {change}" if isinstance(change, str) else f"this key is gone: {change.reason}"
    assert f"{key} = {value} on the command line: {told}" in problem_of(tmp_path, MINIMAL, override)
    section, _, name = key.partition(".")
    text = problem_of(tmp_path, MINIMAL + f"{section}:\n  {name}: {value}\n")
    assert f"{key} = {value} in {tmp_path / 'x.yaml'}: {told}" in text


def test_keys_of_older_versions_have_become_keys_of_this_one():
    keys = set(config_keys(ExperimentConfig))
    assert not keys & CHANGED.keys()
    for change in CHANGED.values():
        if isinstance(change, str):
            below_args = change.partition("args.")
            assert below_args[0] + "args" in keys if below_args[1] else change in keys, change


def test_a_config_that_an_older_version_recorded_is_translated():
    experiment = load_experiment(RECORDED, ["seed=3"], recorded=True)
    assert experiment.seed == 3
    assert experiment.advantage.args == {"normalize_std": False, "gamma": 0.9}
    assert experiment.advantage.negative_scale == 0.5
    assert experiment.loss.args == {"clip_high": 0.28}
    assert experiment.loss.truncated_importance_sampling_cap == 2.0
    assert experiment.serving.engine_args == {"enable_prefix_caching": False}
    assert experiment.hindsight.log_ratio_sample_rows == 32
    assert experiment.hindsight.args == {
        "successful_sample": {"exclude_own": False},
        "future_trajectory": {"max_steps": 4},
    }
    with pytest.raises(ConfigError, match="this key is now advantage.args.gamma"):
        load_experiment(RECORDED)


def test_a_recorded_choice_that_no_key_makes_any_more_is_refused(tmp_path: Path):
    text = RECORDED.read_text(encoding="utf-8").replace("  - 0.999\n", "  - 0.95\n")
    with pytest.raises(ConfigError, match=r"learner.betas = \[0.9, 0.95\] in .*always 0.9 and 0.999"):
        load_experiment(write(tmp_path, text), recorded=True)


def sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        for model in (field.annotation, *get_args(field.annotation)):
            if isinstance(model, type) and issubclass(model, Section):
                yield from sections(model)


@pytest.mark.parametrize("section", list(sections(ExperimentConfig)), ids=lambda section: section.__name__)
def test_every_section_and_every_key_of_it_is_described(section: type[Section]):
    assert section.__doc__
    known = set(sections(ExperimentConfig))
    values = {name: field for name, field in section.model_fields.items() if field.annotation not in known}
    assert [name for name, field in values.items() if not field.description] == []


@pytest.mark.parametrize(
    "values",
    [
        {"learner": {"lr": "1e-6"}},
        {"training": {"group_size": 8.0}},
        {"training": {"group_size": True}},
        {"learner": {"lr": float("nan")}},
        {"rollout": {"max_prompt_length": 4000}},
        {"hindsight": {"mode": "no_such_mode"}},
        {"hindsight": {"mode": "next_observation", "granularity": "anchor"}},
        {"advantage": {"estimator": "gigop"}},
        {"advantage": {"args": {"gamma": 0.9}}},
        {"loss": {"name": "gspo"}},
        {"loss": {"clip_low": 0.2}},
    ],
    ids=str,
)
def test_what_a_file_may_not_say_the_model_refuses_too(values: dict[str, Any]):
    minimal = {"name": "test", "model": {"path": "embedded:tiny_alfworld"}}
    assert ExperimentConfig.model_validate(minimal).name == "test"
    with pytest.raises(ValidationError):
        ExperimentConfig.model_validate(minimal | values)


def test_an_empty_mapping_empties_what_a_file_extends(tmp_path: Path):
    write(tmp_path, MINIMAL + "advantage: {estimator: gigpo, args: {gamma: 0.9}}\n", "base.yaml")
    other = "extends: base.yaml\nadvantage: {estimator: rloo}\n"
    text = problem_of(tmp_path, other)
    assert f"advantage.args.gamma = 0.9 in {tmp_path / 'base.yaml'}: unknown key" in text
    emptied = load_experiment(write(tmp_path, other.replace("rloo", "rloo, args: {}")))
    assert (emptied.advantage.estimator, emptied.advantage.args) == ("rloo", {})


def test_a_missing_key_is_named(tmp_path: Path):
    assert "model.path is missing in" in problem_of(tmp_path, "name: test\nmodel: {}\n")
    assert "model is missing in" in problem_of(tmp_path, "name: test\n")


def test_every_problem_is_told_at_once(tmp_path: Path):
    assert len(problem_of(tmp_path, MINIMAL, "seed=-1", "learner.lr=0", "rollout.x=1").splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\nname: b\n", "line 2, column 1: the key 'name' is given twice"),
        ("learner:\n  lr: 1\n  lr: 2\n", "line 3, column 3: the key 'lr' is given twice"),
        ("name: [a\n", "line 2"),
        ("- a\n- b\n", "holds list, not a mapping"),
        ("", "holds NoneType, not a mapping"),
        ("1: a\n", "the key 1 is not text"),
        ("a: &loop [*loop]\n", "contains itself"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("extends: [a, b]\n", "must be the path of one YAML file"),
    ],
)
def test_bad_yaml_is_told_with_file_and_place(text: str, sentence: str, tmp_path: Path):
    problem = problem_of(tmp_path, text)
    assert sentence in problem and "x.yaml" in problem


def test_unreadable_files_are_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read: No such file"):
        load_experiment(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="latin.yaml: cannot be read: not UTF-8"):
        load_experiment(tmp_path / "latin.yaml")


def test_words_and_dates_stay_text(tmp_path: Path):
    text = MINIMAL + "env:\n  args: {a: no, b: 2026-01-31, c: 0x10, d: 010, e: '3'}\n"
    args = load_experiment(write(tmp_path, text)).env.args
    assert args == {"a": "no", "b": "2026-01-31", "c": 16, "d": 10, "e": "3"}
