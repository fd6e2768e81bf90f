"""RLlib's setters, which fill in an experiment."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Self

import gymnasium
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.from_config import NotProvided
from ray.tune.result import STDERR_FILE, STDOUT_FILE, TRIAL_INFO
from ray.util.placement_group import PlacementGroup

from serl.config import ExperimentConfig
from serl.config.draft import Draft
from serl.config.errors import ConfigError
from serl.config.load import read_draft
from serl.config.nearest import name_hint
from serl.private.rllib import turn_env_runner_state_sync_off
from serl.rllib.settings import ALWAYS, KEYS, OF_RLLIB, SETTERS, SHARED, refusal
from serl.rollout.env_runner import SERLEnvRunner

_EXPERIMENT = "experiment"
_NAME = "serl"
_CALLBACKS = tuple(name for name in dir(RLlibCallback) if name.startswith("on_"))
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    setter: tuple(signature(getattr(AlgorithmConfig, setter)).parameters)[1:] for setter in SETTERS
}
_SETTER_OF = {name: setter for setter in reversed(SETTERS) for name in _ARGUMENTS[setter]}
# RLlib's attributes that are not called as the argument is.
_ATTRIBUTES = {name: f"callbacks_{name}" for name in _CALLBACKS} | {
    "framework": "framework_str",
    "model_config": "_model_config",
    "rl_module_spec": "_rl_module_spec",
    "learner_class": "_learner_class",
    "learner_connector": "_learner_connector",
    "env_to_module_connector": "_env_to_module_connector",
    "module_to_env_connector": "_module_to_env_connector",
    "train_batch_size_per_learner": "_train_batch_size_per_learner",
    "custom_stats_cls_lookup": "stats_cls_lookup",
}
_NAMES_OF_KEYS = {attribute: name for name, attribute in _ATTRIBUTES.items()} | {
    "callbacks": "callbacks_class",
    "input": "input_",
}
# What RLlib keeps there itself.
_INTERNAL = ("algo_class", "policies", "in_evaluation", "_is_frozen", "_per_module_overrides")


class ExperimentSetters(AlgorithmConfig):
    """An experiment that is filled in by RLlib's setters, each argument a key (`serl.rllib.settings`).

    Every setter and `update_from_dict` raise ConfigError for an argument that has no meaning here; what keys
    say is checked when the experiment is first asked for, so that Tune's search spaces can stand for values.
    ``start_dir`` is the folder that the experiment's relative paths begin in, ``learner_placement`` where Ray
    keeps a place for remote learners, if it does.
    """

    start_dir: str
    learner_placement: PlacementGroup | None

    def __init__(self, algo_class: type | None = None) -> None:
        self._draft = Draft("SERLConfig")
        self._draft.set("name", _NAME, "by default")
        self._checked: ExperimentConfig | None = None
        # From then on RLlib changes copies of its own; a person's change is found by the next `validate`.
        self._derived = False
        self.start_dir = os.getcwd()
        self.learner_placement = None
        super().__init__(algo_class=algo_class)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = (), recorded: bool = False) -> Self:
        """What `load_experiment` reads, for setters to change; raises ConfigError."""
        config = cls()
        config._draft = read_draft(path, overrides, recorded)
        return config

    @property
    def experiment(self) -> ExperimentConfig:
        """What has been given so far, complete; raises ConfigError that names every problem found."""
        if self._checked is None:
            # A frozen config has been checked.
            self._checked = self._draft.experiment()
        return self._checked

    def sections(self, **values: Any) -> Self:
        """Keys of the experiment as in a file: ``sections(training={"group_size": 4}, name="mine")``."""
        return self._merge(values, "in sections(…)")

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Self:
        """The arguments of RLlib's setters by name, and keys of the experiment below ``experiment``.

        Raises ConfigError for what is neither.
        """
        if values := config_dict.get(_EXPERIMENT):
            self._merge(values, f"in the config's {_EXPERIMENT!r}")
        problems: list[str] = []
        for key, value in config_dict.items():
            name = _NAMES_OF_KEYS.get(key, key)
            if key in ("start_dir", STDOUT_FILE, STDERR_FILE):
                setattr(self, key, value)
            elif name in _SETTER_OF:
                problems += self._take(_SETTER_OF[name], name, value, f"in the config's {key!r}")
            elif key not in (_EXPERIMENT, TRIAL_INFO):
                hint = name_hint(key, [_EXPERIMENT, *KEYS])
                problems.append(f"the config's {key!r} is neither an argument of RLlib's setters here{hint}")
        if problems:
            raise ConfigError(problems)
        return self

    def to_dict(self) -> dict[str, Any]:
        """What `update_from_dict` makes this config of; for Tune, whose search spaces stay in it."""
        plain = AlgorithmConfig()
        attributes = {name: _ATTRIBUTES.get(name, name) for name in OF_RLLIB}
        given = {
            name: getattr(self, attribute)
            for name, attribute in attributes.items()
            if getattr(self, attribute) != getattr(plain, attribute)
        }
        return {_EXPERIMENT: copy.deepcopy(self._draft.values), "start_dir": self.start_dir, **given}

    def validate(self) -> None:
        """Raises ConfigError for an experiment that cannot run, and for attributes set past the setters."""
        if not self.in_evaluation:
            if problems := list(self._set_past_setters()):
                raise ConfigError(problems)
            self._derive()
        super().validate()

    def _merge(self, values: Mapping[str, Any], origin: str) -> Self:
        self._require_open()
        self._draft.merge(values, origin)
        self._checked = None
        return self

    def _require_open(self) -> None:
        if self._is_frozen:
            raise AttributeError("this config is frozen: change a copy(copy_frozen=False)")

    def _set(self, setter: str, arguments: Mapping[str, Any]) -> Self:
        problems: list[str] = []
        for name, value in arguments.items():
            if value is NotProvided:
                continue
            if name not in _ARGUMENTS[setter]:
                problems.append(f"{setter}({name}=…): no such argument{_argument_hint(setter, name)}")
            else:
                problems += self._take(setter, name, value, f"in {setter}({name}=…)")
        if problems:
            raise ConfigError(problems)
        return self

    def _take(self, setter: str, name: str, value: Any, origin: str) -> list[str]:
        """The sentences that refuse it, if so."""
        if name in KEYS:
            self._require_open()
            *sections, key = KEYS[name].split(".")
            if isinstance(value, Mapping) or not sections:
                values: dict[str, Any] = {key: value}
                for section in reversed(sections):
                    values = {section: values}
                self._merge(values, origin)
            else:
                self._draft.set(KEYS[name], value, origin)
                self._checked = None
            if name in SHARED:
                setattr(self, name, value)
            return []
        if name in OF_RLLIB or self._derived:
            if name == "callbacks_class" and (found := _unheard_callbacks(value)):
                return found
            getattr(AlgorithmConfig, setter)(self, **{name: value})
            return []
        if name in ALWAYS and value == ALWAYS[name]:
            return []
        return [f"{setter}({name}=…) has no effect on SERL: {refusal(setter, name)}"]

    def _set_past_setters(self) -> Iterator[str]:
        expected = type(self)(algo_class=self.algo_class)
        expected._checked = self.experiment
        expected._derive()
        names = {attribute: name for name, attribute in _ATTRIBUTES.items()}
        for attribute, plain in vars(AlgorithmConfig()).items():
            name, own = names.get(attribute, attribute), getattr(self, attribute, plain)
            if name in OF_RLLIB or attribute in _INTERNAL:
                continue
            if not any(own is allowed or own == allowed for allowed in (plain, getattr(expected, attribute))):
                setter = _SETTER_OF.get(name, "experimental")
                instead = f"use {setter}({name}=…)" if name in KEYS else refusal(setter, name)
                yield f"{attribute} was set as an attribute, which has no effect on SERL: {instead}"

    def _derive(self) -> None:
        """Sets what RLlib reads itself of its own attributes."""
        experiment, rllib = self.experiment, AlgorithmConfig
        text = gymnasium.spaces.Text(max_length=2**20)
        rllib.environment(self, observation_space=text, action_space=text, disable_env_checking=True)
        rllib.framework(self, "torch")
        rllib.env_runners(
            self,
            env_runner_cls=SERLEnvRunner,
            create_local_env_runner=False,
            create_env_on_local_worker=False,
            add_default_connectors_to_env_to_module_pipeline=False,
            add_default_connectors_to_module_to_env_pipeline=False,
            merge_env_runner_states=False,
            broadcast_env_runner_states=False,
        )
        rllib.learners(self, add_default_connectors_to_learner_pipeline=False)
        rllib.fault_tolerance(
            self,
            restart_failed_env_runners=True,
            env_runner_health_probe_timeout_s=0.2,
            delay_between_env_runner_restarts_s=5.0,
        )
        # RLlib adds a runner's number, and no generator of NumPy's takes 2**32.
        rllib.debugging(self, seed=experiment.seed % 2**31)
        turn_env_runner_state_sync_off(self)
        for name in SHARED:
            section, _, key = KEYS[name].partition(".")
            setattr(self, name, getattr(getattr(experiment, section), key))
        self.num_env_runners = experiment.rollout.fewest_env_runners
        self._derived = True

    def python_environment(self, **arguments: Any) -> Self:
        return self._set("python_environment", arguments)

    def resources(self, **arguments: Any) -> Self:
        return self._set("resources", arguments)

    def framework(self, framework: Any = NotProvided, **arguments: Any) -> Self:
        return self._set("framework", {"framework": framework, **arguments})

    def api_stack(self, *values: Any, **arguments: Any) -> Self:
        return self._set("api_stack", _by_name("api_stack", values) | arguments)

    def environment(self, env: Any = NotProvided, **arguments: Any) -> Self:
        return self._set("environment", {"env": env, **arguments})

    def env_runners(self, **arguments: Any) -> Self:
        return self._set("env_runners", arguments)

    def learners(self, **arguments: Any) -> Self:
        return self._set("learners", arguments)

    def training(self, **arguments: Any) -> Self:
        return self._set("training", arguments)

    def callbacks(self, callbacks_class: Any = NotProvided, **arguments: Any) -> Self:
        return self._set("callbacks", {"callbacks_class": callbacks_class, **arguments})

    def evaluation(self, **arguments: Any) -> Self:
        return self._set("evaluation", arguments)

    def offline_data(self, **arguments: Any) -> Self:
        return self._set("offline_data", arguments)

    def multi_agent(self, **arguments: Any) -> Self:
        return self._set("multi_agent", arguments)

    def reporting(self, **arguments: Any) -> Self:
        return self._set("reporting", arguments)

    def checkpointing(self, *values: Any, **arguments: Any) -> Self:
        return self._set("checkpointing", _by_name("checkpointing", values) | arguments)

    def debugging(self, **arguments: Any) -> Self:
        return self._set("debugging", arguments)

    def fault_tolerance(self, **arguments: Any) -> Self:
        return self._set("fault_tolerance", arguments)

    def rl_module(self, **arguments: Any) -> Self:
        return self._set("rl_module", arguments)

    def experimental(self, **arguments: Any) -> Self:
        return self._set("experimental", arguments)


def _by_name(setter: str, values: Sequence[Any]) -> dict[str, Any]:
    """Raises TypeError for more positional arguments than RLlib's setter has."""
    names = _ARGUMENTS[setter]
    if len(values) > len(names):
        raise TypeError(f"{setter}() takes {len(names)} arguments, not {len(values)}")
    return dict(zip(names, values, strict=False))


def _argument_hint(setter: str, name: str) -> str:
    if name in _SETTER_OF:
        return f"; {_SETTER_OF[name]}() has it"
    return name_hint(name, _ARGUMENTS[setter])


def _unheard_callbacks(callbacks_class: Any) -> list[str]:
    """The sentences for methods of a callback class that nothing would call."""
    classes = callbacks_class if isinstance(callbacks_class, list | tuple) else [callbacks_class]
    return [
        f"callbacks({found.__name__}): {name} is never called: {refusal('callbacks', name)}"
        for found in classes
        if isinstance(found, type)
        for name in _CALLBACKS
        if name not in OF_RLLIB and getattr(found, name, None) is not getattr(RLlibCallback, name)
    ]
