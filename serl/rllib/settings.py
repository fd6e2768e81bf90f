"""What each argument of RLlib's setters means here: a key of the experiment, or why it is refused.

RLlib stores whatever a setter is given, read or not. Here every argument is in one of these tables, and one
that is in none is refused with the sentence of `refusal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The value becomes that of the key, and what is wrong with it is said as of any other key.
KEYS: Mapping[str, str] = {
    "env": "env.name",
    "env_config": "env.args",
    "num_env_runners": "rollout.num_env_runners",
    "num_cpus_per_env_runner": "rollout.num_cpus_per_env_runner",
    "num_envs_per_env_runner": "rollout.max_concurrent_episodes",
    "num_learners": "learner.num_learners",
    "num_cpus_per_learner": "learner.num_cpus_per_learner",
    "num_gpus_per_learner": "learner.num_gpus_per_learner",
    "lr": "learner.lr",
    "grad_clip": "learner.grad_clip",
    "num_epochs": "learner.num_epochs",
    "evaluation_interval": "evaluation.interval",
    "evaluation_duration": "evaluation.num_tasks",
    "evaluation_sample_timeout_s": "evaluation.timeout_s",
    "seed": "seed",
    "model_config": "model",
}

# RLlib's attributes of the same names have the keys' values, for what of RLlib reads them.
SHARED = (
    "num_env_runners",
    "num_cpus_per_env_runner",
    "num_learners",
    "num_cpus_per_learner",
    "num_gpus_per_learner",
    "lr",
    "grad_clip",
    "num_epochs",
)

# What RLlib does itself, as its documentation says.
OF_RLLIB = (
    "callbacks_class",
    "on_algorithm_init",
    "on_train_result",
    "on_evaluate_start",
    "on_evaluate_end",
    "log_level",
    "log_sys_usage",
    "num_cpus_for_main_process",
    "custom_resources_for_main_process",
    "placement_strategy",
    "num_gpus_per_env_runner",
    "custom_resources_per_env_runner",
    "max_num_env_runner_restarts",
)

# These may be said, and nothing else.
ALWAYS: Mapping[str, Any] = {
    "framework": "torch",
    "enable_rl_module_and_learner": True,
    "enable_env_runner_and_connector_v2": True,
    "create_local_env_runner": False,
    "create_env_on_local_worker": False,
    "batch_mode": "complete_episodes",
    "explore": True,
    "grad_clip_by": "global_norm",
    "shuffle_batch_per_epoch": True,
    "evaluation_duration_unit": "episodes",
    "evaluation_num_env_runners": 0,
    "evaluation_parallel_to_training": False,
    "restart_failed_env_runners": True,
}

_BATCH = "a batch is training.groups_per_batch groups of training.group_size episodes, whole ones"
_MODULE = "the policy is the language model at model.path: rl_module(model_config={'path': …})"
_IN_FLIGHT = "rollout.max_concurrent_episodes says how many episodes an env runner plays at a time"
_EPISODE = (
    "episodes are played in other processes: read algorithm.last_recorded in on_train_result, or the run's "
    "trajectories.jsonl"
)
_INSTEAD: Mapping[str, str] = {
    "gamma": "returns are discounted by estimators that have an option for it, as advantage.args.gamma",
    "train_batch_size": _BATCH,
    "train_batch_size_per_learner": _BATCH,
    "minibatch_size": "learner.num_minibatches says how many optimizer steps an epoch has",
    "num_sgd_iter": "use training(num_epochs=…)",
    "model": _MODULE,
    "optimizer": "it is AdamW, with learner.lr, learner.weight_decay and learner.lr_schedule",
    "learner_class": "a loss of your own is registered and named by loss.name",
    "learner_config_dict": "a loss and an estimator of your own take options: loss.args, advantage.args",
    "rollout_fragment_length": _BATCH,
    "sample_timeout_s": "use training.iteration_timeout_s and rollout.request_timeout_s",
    "max_requests_in_flight_per_env_runner": _IN_FLIGHT,
    "env_runner_cls": "an environment of your own is a factory named by environment(env='module:function')",
    "clip_rewards": "env.invalid_action_penalty and advantage say what becomes of rewards",
    "evaluation_config": "rollouts of an evaluation differ in evaluation.temperature alone",
    "custom_evaluation_function": "use on_evaluate_end, or call evaluate() yourself",
    "on_checkpoint_loaded": "do it after restore_from_path()",
    "on_env_runners_recreated": "runners/env_runners_died in the results counts them",
    "log_gradients": "learner/grad_norm is always logged",
    "num_gpus": "use learners(num_gpus_per_learner=…) and serving.num_gpus_per_replica",
    "num_cpus_per_worker": "use env_runners(num_cpus_per_env_runner=…)",
    "num_gpus_per_worker": "use env_runners(num_gpus_per_env_runner=…)",
    "num_rollout_workers": "use env_runners(num_env_runners=…)",
    "num_learner_workers": "use learners(num_learners=…)",
    "num_cpus_per_learner_worker": "use learners(num_cpus_per_learner=…)",
    "num_gpus_per_learner_worker": "use learners(num_gpus_per_learner=…)",
    "num_envs_per_worker": "use env_runners(num_envs_per_env_runner=…)",
    "evaluation_num_workers": "the env runners play evaluations too",
    "model_config_dict": "use rl_module(model_config=…)",
}

_BY_SETTER: Mapping[str, str] = {
    "python_environment": "give ray.init a runtime_env with env_vars",
    "resources": "rollout, learner and serving say what each of their processes takes",
    "framework": "the policy is a PyTorch model; model, learner and serving say how it computes",
    "api_stack": "there is the new one only",
    "environment": "observations and actions are text; options of the environment go into env_config",
    "env_runners": "rollout says how episodes are played",
    "learners": "learner says how learners work",
    "training": "training, learner, advantage, loss and hindsight say how the policy is trained",
    "callbacks": _EPISODE,
    "evaluation": "the env runners play every evaluation task once; the section evaluation says which",
    "offline_data": "training is on what the policy plays; demonstrations are for python -m tools.warm_start",
    "multi_agent": "there is one policy and one agent",
    "reporting": "one train() is one update, and reports the metrics of serl/run/METRICS.md",
    "checkpointing": "a checkpoint always holds the policy in Hugging Face layout",
    "debugging": "use debugging(seed=…, log_level=…)",
    "fault_tolerance": "cluster.heartbeat_timeout_s, rollout.max_failed_share, training.max_restarts decide",
    "rl_module": _MODULE,
    "experimental": "none of it has an effect here",
}
SETTERS = tuple(_BY_SETTER)


def refusal(setter: str, argument: str) -> str:
    """What to do instead of giving ``argument`` to RLlib's ``setter``."""
    if argument in ALWAYS:
        return f"it is always {ALWAYS[argument]!r}"
    return _INSTEAD.get(argument, _BY_SETTER[setter])
