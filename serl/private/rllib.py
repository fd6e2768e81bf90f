"""Private parts of RLlib's new API stack, as seen in Ray 2.60.0.

Beside these, `SERLLearner` overrides `TorchLearner._make_modules_ddp_if_necessary`, which RLlib marks as one
to override: the last thing that `build` calls, and the place to shard modules instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.core.learner.learner import Learner
    from ray.rllib.core.learner.learner_group import LearnerGroup
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

SEEN_IN = "2.60.0"


def worker_manager(group: EnvRunnerGroup) -> FaultTolerantActorManager:
    """What knows which env runners live, and which call of which has an answer.

    `EnvRunnerGroup.fetch_ready_async_reqs` leaves out calls that failed, and whose they were.
    """
    return group._worker_manager


def add_env_runner(group: EnvRunnerGroup) -> int:
    """Starts another env runner and returns the number that ``group`` knows it by; it does not wait for it.

    `EnvRunnerGroup.add_workers` counts a runner as healthy before it has a place, numbers two alike after one
    was removed, and inside a trial of Tune looks for a place in a bundle that is not there.
    """
    import ray

    manager = group._worker_manager
    index = manager._next_id
    runner_class: Any = group.env_runner_cls
    options: dict[str, Any] = group._remote_args | {"scheduling_strategy": "DEFAULT"}
    runner = ray.remote(**options)(runner_class).remote(
        config=group._remote_config_obj_ref,
        worker_index=index,
        num_workers=index,
        tune_trial_id=group._tune_trial_id,
        log_dir=group._logdir,
    )
    manager.add_actors([runner])
    manager.set_actor_state(index, healthy=False)
    return index


def turn_env_runner_state_sync_off(config: AlgorithmConfig) -> None:
    """Lets `Algorithm.training_step` alone decide what env runners are sent.

    Otherwise RLlib brings the states of learners and connectors to them after every iteration. Its own IMPALA
    sets the same attribute; no method of the config does.
    """
    config._dont_auto_sync_env_runner_states = True


def set_iteration(algorithm: Algorithm, iteration: int) -> None:
    """Makes ``algorithm`` count its iterations on from ``iteration``.

    RLlib sets the counter only where it restores a checkpoint of its own format.
    """
    algorithm._iteration = iteration


def local_learner(group: LearnerGroup) -> Any:
    """The learner in this process of a group without remote ones; `LearnerGroup` has no accessor for it."""
    return group._learner


def remote_learners(group: LearnerGroup) -> list[Any]:
    """The handles of the learners' actors, in the order of their ranks; none for a local learner.

    `LearnerGroup.foreach_learner` can leave out calls to busy learners, and errors.
    """
    return group._workers or []


def begin_remote_group(group: LearnerGroup, config: AlgorithmConfig, module_spec: Any) -> None:
    """What `LearnerGroup.__init__` does for remote learners before it starts them through Ray Train."""
    group.config = config.copy(copy_frozen=False)
    group._module_spec = module_spec
    group._learner = group._worker_manager = None
    group._ts_dropped = 0
    group._is_shut_down = False
    group._workers = []


def set_remote_learners(group: LearnerGroup, learners: list[ActorHandle]) -> None:
    """Makes ``learners`` those that the methods of `LearnerGroup` speak to."""
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

    group._workers = learners
    group._worker_manager = FaultTolerantActorManager(learners)
    group._is_shut_down = not learners


def learner_index(learner: Learner) -> int:
    """The rank of ``learner`` in its group, 0 if it is alone; RLlib tells it to the learner only."""
    return learner._learner_index


def forget_registered_parameters(learner: Learner) -> None:
    """Undoes `Learner.register_optimizer`, for parameters that sharding has replaced.

    RLlib registers them before its hook for wrapping modules runs, and in public forgets them only with their
    module (`remove_module`).
    """
    for registered in (
        learner._params,
        learner._optimizer_parameters,
        learner._named_optimizers,
        learner._module_optimizers,
        learner._optimizer_name_to_module,
        learner._optimizer_lr_schedules,
    ):
        registered.clear()
