"""That what is said through RLlib's setters reaches the experiment, or is refused in a sentence."""

from __future__ import annotations

import copy
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune import PlacementGroupFactory
from ray.tune.search.sample import Float

from serl.algorithm import SERL, SERLConfig
from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.wording import config_keys
from serl.rllib import settings
from serl.rllib.settings import ALWAYS, KEYS, OF_RLLIB, SETTERS, SHARED, refusal

POLICY: dict[str, Any] = {"path": "embedded:tiny_alfworld", "max_model_len": 512}
ARGUMENTS = [
    (setter, name)
    for setter in SETTERS
    for name in list(signature(getattr(AlgorithmConfig, setter)).parameters)[1:]
]


def complete() -> SERLConfig:
    """What an experiment cannot do without, and lengths that fit into the policy's context."""
    config = SERLConfig().rl_module(model_config=POLICY)
    return config.sections(rollout={"max_prompt_length": 400, "max_response_length": 64})


def problems_of(config: SERLConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        config.validate()
    return str(caught.value)


def test_setters_build_an_experiment() -> None:
    config = (
        complete()
        .environment("alfworld", env_config={"data": "embedded", "max_receptacles": 6})
        .env_runners(num_env_runners=2, num_cpus_per_env_runner=0.5, num_envs_per_env_runner=16)
        .learners(num_learners=2, num_gpus_per_learner=0)
        .training(lr=3e-4, grad_clip=0.5, num_epochs=2)
        .evaluation(evaluation_interval=5, evaluation_duration=32, evaluation_sample_timeout_s=60)
        .debugging(seed=7)
    )
    config.validate()
    experiment = config.experiment
    assert (experiment.env.name, experiment.env.args) == (
        "alfworld",
        {"data": "embedded", "max_receptacles": 6},
    )
    assert (experiment.model.path, experiment.model.max_model_len) == ("embedded:tiny_alfworld", 512)
    rollout, learner = experiment.rollout, experiment.learner
    assert (rollout.num_env_runners, rollout.num_cpus_per_env_runner) == (2, 0.5)
    assert rollout.max_concurrent_episodes == 16
    assert (learner.num_learners, learner.lr, learner.grad_clip, learner.num_epochs) == (2, 3e-4, 0.5, 2)
    evaluation = experiment.evaluation
    assert (evaluation.interval, evaluation.num_tasks, evaluation.timeout_s) == (5, 32, 60)
    assert experiment.seed == 7
    # RLlib's own reads.
    assert (config.num_env_runners, config.num_learners, config.lr, config.seed) == (2, 2, 3e-4, 7)
    # Or RLlib would start env runners for evaluations.
    assert config.evaluation_interval is None


def test_every_argument_of_every_setter_has_a_meaning_or_a_refusal() -> None:
    assert len(ARGUMENTS) > 200
    for setter, name in ARGUMENTS:
        places = [name in KEYS, name in OF_RLLIB]
        if any(places):
            assert sum(places) == 1 and name not in ALWAYS, name
            continue
        with pytest.raises(ConfigError) as caught:
            getattr(SERLConfig(), setter)(**{name: "something"})
        assert str(caught.value).startswith(f"{setter}({name}=…) has no effect on SERL: "), name
        assert len(refusal(setter, name)) > 10, name


def test_every_name_of_the_tables_is_an_argument_or_a_key() -> None:
    names = {name for _, name in ARGUMENTS}
    assert {*KEYS, *OF_RLLIB, *ALWAYS, *SHARED} <= names
    assert set(KEYS.values()) <= set(config_keys(ExperimentConfig))
    assert set(settings._INSTEAD) <= names


def test_a_refusal_says_what_to_use() -> None:
    with pytest.raises(
        ConfigError, match=r"^training\(gamma=…\) has no effect on SERL: .*advantage\.args\.gamma"
    ):
        SERLConfig().training(gamma=0.9)
    with pytest.raises(
        ConfigError, match=r"training\(train_batch_size_per_learner=…\) .*training\.groups_per_batch"
    ):
        SERLConfig().training(train_batch_size_per_learner=512)
    with pytest.raises(ConfigError, match=r"no such argument; did you mean 'lr'"):
        SERLConfig().training(lrs=0.1)
    with pytest.raises(
        ConfigError, match=r"training\(num_learners=…\): no such argument; learners\(\) has it"
    ):
        SERLConfig().training(num_learners=2)


def test_what_is_always_so_may_be_said() -> None:
    config = complete().framework("torch").env_runners(batch_mode="complete_episodes", explore=True)
    config.training(grad_clip_by="global_norm").api_stack(True, True)
    with pytest.raises(
        ConfigError, match=r"grad_clip_by=…\) has no effect on SERL: it is always 'global_norm'"
    ):
        config.training(grad_clip_by="value")
    config.validate()
    with pytest.raises(TypeError, match=r"api_stack\(\) takes 2 arguments, not 3"):
        config.api_stack(True, True, True)


def test_a_bad_value_is_refused_in_the_words_of_the_key() -> None:
    config = complete().training(lr=-1.0).environment("alfworld", env_config={}).learners(num_learners=2.5)
    assert problems_of(config).splitlines() == [
        "learner.num_learners = 2.5 in learners(num_learners=…): must be a whole number",
        "learner.lr = -1.0 in training(lr=…): must be greater than 0",
    ]
    assert "model is missing" in problems_of(SERLConfig())


def test_a_value_set_past_the_setters_is_refused() -> None:
    config = complete()
    config.gamma = 0.5
    assert problems_of(config).startswith("gamma was set as an attribute, which has no effect on SERL: ")
    config = complete()
    config["lr"] = 0.5
    assert problems_of(config) == (
        "lr was set as an attribute, which has no effect on SERL: use training(lr=…)"
    )
    config = complete()
    config.env_config["x"] = 1
    assert "use environment(env_config=…)" in problems_of(config)
    config = complete()
    config.evaluation_interval = 3
    assert "use evaluation(evaluation_interval=…)" in problems_of(config)


def test_a_file_can_be_the_beginning(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nmodel: {path: embedded:tiny_alfworld}\nlearner: {lr: 0.1, num_epochs: 3}\n")
    config = SERLConfig.from_yaml(file, ["seed=3"]).training(lr=0.2)
    experiment = config.experiment
    assert (experiment.name, experiment.seed) == ("mine", 3)
    assert (experiment.learner.lr, experiment.learner.num_epochs) == (0.2, 3)
    config.training(lr="high")
    assert problems_of(config) == "learner.lr = 'high' in training(lr=…): must be a number"


def test_an_experiment_can_be_changed_and_copied() -> None:
    first = complete().experiment
    config = SERLConfig.from_experiment(first, "model", "run")
    assert config.experiment is first and (config.model_dir, config.run_dir) == ("model", "run")
    other = copy.deepcopy(config).training(lr=0.5)
    assert other.experiment == first.model_copy(
        update={"learner": first.learner.model_copy(update={"lr": 0.5})}
    )
    assert config.experiment is first
    config.training(gamma=0.5)  # as RLlib might, of a copy of its own
    assert problems_of(config).startswith("gamma was set as an attribute, which has no effect on SERL: ")
    config = SERLConfig.from_experiment(first, "model", "run")
    config.validate()
    config.freeze()
    with pytest.raises(AttributeError, match="frozen"):
        config.training(lr=0.1)


def test_a_config_reaches_an_env_runner_without_the_learners_code() -> None:
    config = SERLConfig.from_experiment(complete().experiment, "model", "run")
    read = (
        "import pickle, sys; config = pickle.load(sys.stdin.buffer)\n"
        "heavy = ('serl.algorithm', 'serl.learner', 'transformers', 'vllm')\n"
        "assert not sys.modules.keys() & set(heavy), sys.modules.keys() & set(heavy)\n"
        "assert config.algo_class.__name__ == 'SERL'"
    )
    pickled = cloudpickle.dumps(config)  # pyright: ignore[reportPrivateImportUsage]
    subprocess.run([sys.executable, "-c", read], input=pickled, check=True, timeout=120)


def test_another_algorithm_is_kept() -> None:
    class Mine(SERL):
        pass

    assert SERLConfig().algo_class is SERL
    assert copy.deepcopy(SERLConfig(algo_class=Mine)).algo_class is Mine


def test_tunes_dict_goes_the_same_way() -> None:
    """Tune resolves the search spaces in `to_dict`, and gives RLlib the dict."""
    space = complete().training(lr=tune.loguniform(1e-5, 1e-3)).callbacks(on_train_result=print)
    values = space.to_dict()
    assert isinstance(values["experiment"]["learner"]["lr"], Float)
    assert values["on_train_result"] is print
    values["experiment"]["learner"]["lr"] = 1e-4
    config = SERL.get_default_config().update_from_dict({**values, "__trial_info__": None, "num_learners": 2})
    config.validate()
    assert (config.experiment.learner.lr, config.experiment.learner.num_learners) == (1e-4, 2)
    assert config.callbacks_on_train_result is print
    assert config.start_dir == space.start_dir


def test_tunes_dict_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError) as caught:
        SERLConfig().update_from_dict({"gamma": 0.9, "num_env_runner": 1, "train_batch_size": 4})
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("training(gamma=…) has no effect on SERL: ")
    assert second == (
        "the config's 'num_env_runner' is neither an argument of RLlib's setters here; did you mean "
        "'num_env_runners'?"
    )
    assert third.startswith("training(train_batch_size=…) has no effect on SERL: ")


def test_a_trial_asks_for_its_processes() -> None:
    config = complete().env_runners(num_env_runners=2, num_cpus_per_env_runner=0.5).learners(num_learners=1)
    request = SERL.default_resource_request(config.to_dict())
    assert isinstance(request, PlacementGroupFactory)
    assert request.bundles == [{"CPU": 1}, {"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 1.0}]
    growing = complete().sections(rollout={"autoscaling": {"min_env_runners": 3, "max_env_runners": 9}})
    request = SERL.default_resource_request(growing.to_dict())
    assert isinstance(request, PlacementGroupFactory)
    assert request.bundles[1:] == [{"CPU": 1.0}] * 3


def test_callbacks_that_nothing_would_call_are_refused() -> None:
    class Watches(RLlibCallback):
        def on_episode_end(self, **info: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"callbacks\(on_episode_end=…\) .*algorithm\.last_recorded"):
        SERLConfig().callbacks(on_episode_end=print)
    with pytest.raises(ConfigError, match=r"callbacks\(Watches\): on_episode_end is never called: episodes"):
        SERLConfig().callbacks(Watches)
