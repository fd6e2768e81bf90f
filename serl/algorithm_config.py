"""`SERLConfig`: an `ExperimentConfig` dressed as an RLlib `AlgorithmConfig`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from serl.config import ExperimentConfig

if TYPE_CHECKING:
    from serl.rollout.episode import Policy
    from serl.serving.names import ServingNames


class SERLConfig(AlgorithmConfig):
    """Carries the frozen experiment; RLlib's own fields are derived from it in `from_experiment`.

    ``model_dir`` is the local Hugging Face folder of the policy, ``run_dir`` where files of the run go.
    ``serving_names`` says under which names the policy deployment answers, ``make_policy`` makes a client of
    it; both are None until it runs.
    """

    experiment: ExperimentConfig
    model_dir: str
    run_dir: str
    serving_names: ServingNames | None
    make_policy: Callable[[], Policy] | None

    def __init__(self, algo_class: type | None = None) -> None:
        from serl.algorithm import SERL

        super().__init__(algo_class=algo_class or SERL)
        self.serving_names = None
        self.make_policy = None

    @classmethod
    def from_experiment(cls, experiment: ExperimentConfig, model_dir: str, run_dir: str) -> SERLConfig:
        """The RLlib configuration of ``experiment``."""
        config = cls()
        config.experiment = experiment
        config.model_dir = model_dir
        config.run_dir = run_dir
        text = gymnasium.spaces.Text(max_length=2**20)
        config.environment(observation_space=text, action_space=text, disable_env_checking=True)
        config.framework("torch")
        rollout, learner = experiment.rollout, experiment.learner
        from serl.rollout.env_runner import SERLEnvRunner

        config.env_runners(
            env_runner_cls=SERLEnvRunner,
            num_env_runners=rollout.num_env_runners,
            num_cpus_per_env_runner=rollout.num_cpus_per_env_runner,  # pyright: ignore[reportArgumentType]
            create_local_env_runner=False,
            create_env_on_local_worker=False,
            add_default_connectors_to_env_to_module_pipeline=False,
            add_default_connectors_to_module_to_env_pipeline=False,
        )
        config.learners(
            num_learners=learner.num_learners,
            num_cpus_per_learner=learner.num_cpus_per_learner,
            num_gpus_per_learner=learner.num_gpus_per_learner,
            add_default_connectors_to_learner_pipeline=False,
        )
        config.training(lr=learner.lr, grad_clip=learner.grad_clip)
        config.fault_tolerance(
            restart_failed_env_runners=True,
            env_runner_health_probe_timeout_s=0.2,
            delay_between_env_runner_restarts_s=5.0,
        )
        config.debugging(seed=experiment.seed)
        config._dont_auto_sync_env_runner_states = True
        config.merge_env_runner_states = False
        config.broadcast_env_runner_states = False
        return config

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from serl.learner.rl_module import CausalLMModule

        return RLModuleSpec(
            module_class=CausalLMModule,
            observation_space=self.observation_space,
            action_space=self.action_space,
            model_config={
                "model_dir": self.model_dir,
                "attention": self.experiment.model.attention,
                "temperature": self.experiment.rollout.temperature,
                "gradient_checkpointing": self.experiment.learner.gradient_checkpointing,
                "entropy_gradient": self.experiment.loss.entropy_coefficient > 0.0,
            },
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
    ) -> Any:
        from serl.learner.learner_group import SERLLearnerGroup

        if rl_module_spec is None:
            rl_module_spec = self.get_multi_rl_module_spec(env=env, spaces=spaces)
        return SERLLearnerGroup(
            config=self.copy(), module_spec=rl_module_spec, placement_group=placement_group
        )
