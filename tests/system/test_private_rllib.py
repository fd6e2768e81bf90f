"""That the private parts of RLlib still are what `serl.private.rllib` takes them for."""

from __future__ import annotations

import inspect
import time
from typing import Any

import gymnasium
import pytest
import ray
from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from serl.private.rllib import (
    SEEN_IN,
    forget_registered_parameters,
    learner_index,
    local_learner,
    remote_learners,
    set_iteration,
    turn_env_runner_state_sync_off,
    worker_manager,
)

CONTRACT = f"seen in Ray {SEEN_IN}, this is {ray.__version__}"
SPACE = gymnasium.spaces.Box(-1.0, 1.0, (2,))


def sick_runner_class() -> type[EnvRunner]:
    """Made in a function, so that it travels to its actor by value."""

    class SickRunner(EnvRunner):
        """The first one fails at every sample."""

        def sample(self, **kwargs: Any) -> int:
            if self.worker_index == 1:
                raise OSError("no more games")
            return self.worker_index

        def assert_healthy(self) -> None: ...

        def get_metrics(self) -> dict[str, Any]:
            return {}

        def get_spaces(self) -> dict[str, Any]:
            return {}

        def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {}

        def set_state(self, state: dict[str, Any]) -> None: ...

        def stop(self) -> None: ...

    return SickRunner


class HookedLearner(PPOTorchLearner):
    """Remembers what RLlib had registered when it asked for modules to be wrapped."""

    def _make_modules_ddp_if_necessary(self) -> None:
        self.registered_before_hook = len(self._params)


@pytest.fixture(scope="module")
def learners() -> LearnerGroup:
    config = PPOConfig().environment(observation_space=SPACE, action_space=SPACE).framework("torch")
    return config.training(learner_class=HookedLearner).build_learner_group(
        spaces={"default_policy": (SPACE, SPACE)}
    )


def test_the_worker_manager_says_which_runner_failed(ray_cluster: None) -> None:
    """RLlib ends the process of a runner that raises; what it raised is only in the log."""
    config = AlgorithmConfig().environment(observation_space=SPACE, action_space=SPACE)
    config.env_runners(env_runner_cls=sick_runner_class(), num_env_runners=2, create_local_env_runner=False)
    config.fault_tolerance(restart_failed_env_runners=False)
    group = EnvRunnerGroup(config=config, local_env_runner=False)
    try:
        manager = worker_manager(group)
        assert sorted(manager.healthy_actor_ids()) == [1, 2], CONTRACT
        assert (manager.num_actors(), manager.num_healthy_actors()) == (2, 2), CONTRACT
        for runner in (1, 2):
            manager.foreach_actor_async("sample", tag="x", kwargs={}, remote_actor_ids=[runner])
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + 60.0
        while len(answers) < 2 and time.monotonic() < deadline:
            ready = manager.fetch_ready_async_reqs(tags="x", timeout_seconds=1.0, mark_healthy=False)
            answers |= {result.actor_id: result.get() for result in ready.result_or_errors}
        assert answers[2] == 2, CONTRACT
        assert isinstance(answers[1], RayActorError), CONTRACT
    finally:
        group.stop()


def test_the_state_of_env_runners_is_synchronised_unless_switched_off() -> None:
    config = AlgorithmConfig()
    assert config._dont_auto_sync_env_runner_states is False, CONTRACT
    turn_env_runner_state_sync_off(config)
    assert config.copy()._dont_auto_sync_env_runner_states is True, CONTRACT
    assert "not self.config._dont_auto_sync_env_runner_states" in inspect.getsource(Algorithm), CONTRACT


def test_an_algorithm_counts_on_from_the_iteration_that_was_set() -> None:
    algorithm = Algorithm.__new__(Algorithm)
    set_iteration(algorithm, 41)
    assert algorithm.iteration == algorithm.training_iteration == 41, CONTRACT
    assert "self._iteration += 1" in inspect.getsource(Algorithm.train), CONTRACT


def test_a_group_without_remote_learners_has_a_local_one(learners: LearnerGroup) -> None:
    assert isinstance(local_learner(learners), HookedLearner), CONTRACT
    assert learner_index(local_learner(learners)) == 0, CONTRACT
    assert remote_learners(learners) == [], CONTRACT
    assert "self._workers = [w.actor for w in" in inspect.getsource(LearnerGroup.__init__), CONTRACT
    assert "learner_index=idx" in inspect.getsource(LearnerGroup.__init__), CONTRACT


def test_modules_are_wrapped_after_optimizers_are_registered(learners: LearnerGroup) -> None:
    learner = local_learner(learners)
    parameters = list(learner.module["default_policy"].parameters())
    assert learner.registered_before_hook == len(parameters), CONTRACT


def test_forgotten_parameters_can_be_registered_anew(learners: LearnerGroup) -> None:
    learner = local_learner(learners)
    num_parameters = len(learner._params)
    (before,) = learner._named_optimizers.values()
    forget_registered_parameters(learner)
    registries = {name: value for name, value in vars(learner).items() if value and "optim" in name}
    assert not learner._params and not registries, f"{sorted(registries)}: {CONTRACT}"
    learner.configure_optimizers()
    (after,) = learner._named_optimizers.values()
    assert after is not before and len(learner._params) == num_parameters, CONTRACT
