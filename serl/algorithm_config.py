"""`SERLConfig`: an experiment dressed as RLlib's configuration.

Every env runner gets one. So this imports no learner: what only the driver and the learners need is imported
when they ask for it, which spares an env runner half of its start and a fifth of its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serl.config import ExperimentConfig
from serl.rllib.setters import ExperimentSetters
from serl.rollout.episode import Policy
from serl.rollout.gateway import Gateway
from serl.serving.names import ServingNames

if TYPE_CHECKING:
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from serl.learner.learner_group import SERLLearnerGroup


class SERLConfig(ExperimentSetters):
    """Carries the experiment; RLlib's setters fill it in, or a file, or it is given whole.

    ``model_dir`` is the local Hugging Face folder of the policy, ``run_dir`` where files of the run go. Where
    they are empty, the algorithm finds the one and makes the other: Tune's folder of the trial, or a new one
    below ``output_dir``.
    ``serving_names`` says under which names the policy deployment answers, which the algorithm stops in the
    end; it starts one if this is None. ``make_policy`` makes a client of it; it is None until then.
    ``make_gateway`` makes one of the gateway, if there is one.
    """

    model_dir: str
    run_dir: str
    serving_names: ServingNames | None
    make_policy: Callable[[], Policy] | None
    make_gateway: Callable[[], Gateway] | None

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.model_dir = self.run_dir = ""
        self.serving_names = None
        self.make_policy = None
        self.make_gateway = None

    @classmethod
    def from_experiment(cls, experiment: ExperimentConfig, model_dir: str, run_dir: str) -> SERLConfig:
        """The RLlib configuration of ``experiment``."""
        config = cls().sections(**experiment.model_dump(mode="json"))
        config._checked = experiment
        config.model_dir, config.run_dir = model_dir, run_dir
        config._derive()
        return config

    @property
    def algo_class(self) -> type:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`SERL`, unless another one was given."""
        from serl.algorithm import SERL

        return vars(self)["algo_class"] or SERL

    @algo_class.setter
    def algo_class(self, algo_class: type | None) -> None:
        vars(self)["algo_class"] = algo_class

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from ray.rllib.core.rl_module.rl_module import RLModuleSpec

        from serl.learner.rl_module import CausalLMModule, module_config

        return RLModuleSpec(
            module_class=CausalLMModule,
            observation_space=self.observation_space,
            action_space=self.action_space,
            model_config=module_config(self.experiment, self.model_dir),
        )

    def get_default_learner_class(self) -> type:
        from serl.learner.learner import SERLLearner

        return SERLLearner

    def build_learner_group(
        self,
        *,
        env: Any = None,
        spaces: Any = None,
        rl_module_spec: Any = None,
        placement_group: Any = None,
    ) -> SERLLearnerGroup:
        from serl.learner.learner_group import SERLLearnerGroup

        spec = rl_module_spec or self.get_multi_rl_module_spec(env=env, spaces=spaces)
        return SERLLearnerGroup(config=self.copy(), module_spec=spec, placement_group=self.learner_placement)
