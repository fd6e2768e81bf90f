"""What every metric of a run means: the names in `metrics.jsonl`, on TensorBoard and, some, on the console.

``METRICS.md`` is written from this table, and tests check it against what runs write. A part in angle
brackets stands for a name that depends on the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serl.run.learner_metrics import LEARNER


@dataclass(frozen=True, slots=True)
class MetricGroup:
    """The metrics ``FIRST_PART/name``: what they are about, and what each of them means."""

    title: str
    meanings: Mapping[str, str]


GROUPS: Mapping[str, MetricGroup] = {
    "rollout": MetricGroup(
        "what was played for the batch",
        {
            "success": "Share of the batch's trajectories that solved their task.",
            "return": "Mean sum of a trajectory's rewards, without penalties.",
            "episode_steps": "Mean number of environment steps of a trajectory.",
            "invalid_action_rate": "Share of steps whose response states no action or an inadmissible one.",
            "no_action_rate": "Share of steps whose response states no action.",
            "prompt_tokens": "Mean prompt tokens of a step.",
            "response_tokens": "Mean sampled tokens of a step.",
            "truncated_response_rate": "Share of responses that ended at `rollout.max_response_length`.",
            "action_token_share": "Share of the sampled tokens that are part of an action.",
            "prefix_cache_hit_rate": "Share of prompt tokens that the engine had in its prefix cache.",
            "zero_variance_groups": "Share of the groups whose trajectories all have the same reward.",
            "all_won_groups": "Share of the groups whose trajectories all solved their task.",
            "all_failed_groups": "Share of the groups of which no trajectory solved its task.",
            "hinted_episodes": "Episodes that were played with a hint (`hindsight.repair`); they count in no "
            "other metric of success, return or reward.",
            "hinted_success": "Share of these that solved their task.",
            "end_<reason>": "Share of trajectories that ended as `success`, `failure`, `truncated` (by the "
            "environment), `max_steps` or `prompt_too_long`.",
            "success_by_task_type/<task_type>": "Share of the trajectories of this kind of task that solved "
            "it.",
        },
    ),
    "batch": MetricGroup(
        "how much of it there is",
        {
            "groups": "Groups of the batch.",
            "steps": "Environment steps of the batch.",
            "tokens": "Prompt and response tokens of the batch.",
        },
    ),
    "staleness": MetricGroup(
        "how old it is",
        {
            "mean": "Mean over trajectories of the updates between the oldest weights that sampled one and "
            "those that it trains.",
            "max": "The greatest of these, in updates; never more than `training.max_staleness`.",
        },
    ),
    "episode": MetricGroup(
        "what its environment reports",
        {
            "generation_seconds": "Mean seconds that an episode waited for the policy.",
            "dropped_history_turns": "Mean turns of history that were left out of an episode's prompts to "
            "make them fit.",
            "<metric>": "Mean over episodes of a metric that the environment reports, such as `task_score`.",
        },
    ),
    "buffer": MetricGroup(
        "groups on their way to the learners",
        {
            "groups_ready": "Complete groups in the buffer.",
            "groups_in_flight": "Groups that are not complete, or not finished yet.",
            "trajectories_in_flight": "Trajectories that these lack.",
            "groups_admitted": "Groups begun since the run began.",
            "groups_taken": "Groups given to the learners since the run began.",
            "groups_discarded_zero_variance": "Groups removed by `training.filter_groups` since the run "
            "began.",
            "groups_discarded_stale": "Groups removed since the run began because they had become too old; "
            "their tasks are played again.",
            "groups_discarded_failed": "Groups removed since the run began because a rollout failed too "
            "often.",
            "zero_variance_groups_kept": "Zero-variance groups since the run began that were trained on "
            "because `training.max_filtered_groups_per_batch` was reached.",
            "trajectories_added": "Trajectories that arrived since the run began.",
            "trajectories_late": "Trajectories since the run began whose group had left the buffer.",
            "trajectories_duplicate": "Trajectories since the run began that were there already.",
            "failures_<reason>": "Failed rollouts since the run began, by reason (see "
            "`runners/failed_<reason>`).",
            "retries": "Rollouts since the run began that were started again after a failure.",
            "filtered_groups": "Groups removed by `training.filter_groups` between this batch and the one "
            "before.",
            "filtered_mean_steps": "Mean steps of the trajectories of these groups.",
            "kept_mean_steps": "Mean steps of the trajectories of the groups that are trained.",
        },
    ),
    "learner": MetricGroup("advantages, teacher and update", LEARNER),
    "broadcast": MetricGroup(
        "new weights on their way to the engines",
        {
            "seconds_transport": "Seconds until the new weights could be loaded.",
            "seconds_fetch": "Seconds until the slowest of the hosts without the learner had a copy of them.",
            "seconds_load": "Seconds that the slowest replica took to load them.",
            "seconds_paused": "Seconds that the slowest replica sampled nothing for it.",
            "num_bytes": "Size of the weights in bytes.",
            "num_replicas": "Replicas that serve the new weights.",
        },
    ),
    "serving": MetricGroup(
        "the replicas, at the end of the iteration",
        {
            "replicas": "Replicas that serve.",
            "missing_replicas": "How many fewer serve than `serving.num_replicas` or "
            "`serving.autoscaling.min_replicas`; the console says so when the number changes.",
        },
    ),
    "pool": MetricGroup(
        "the env runners, at the end of the iteration",
        {
            "env_runners": "Env runners that play.",
            "missing_env_runners": "How many more are wanted: they start, or wait for a place in the "
            "cluster; the console says so when the number changes.",
            "places": "Episodes that may run at a time: `rollout.max_concurrent_episodes` for each env "
            "runner, and with `rollout.autoscaling` no more than `max_episodes_per_replica` for each replica "
            "that serves.",
            "episodes_running": "Episodes that run.",
            "episodes_waiting": "Episodes that wait for a place.",
        },
    ),
    "env_runners": MetricGroup(
        "what was played, under RLlib's names",
        {
            "episode_return_mean": "`rollout/return`.",
            "episode_len_mean": "`rollout/episode_steps`.",
            "num_episodes": "`runners/episodes_finished`.",
            "num_episodes_lifetime": "`total/episodes_finished`.",
            "num_env_steps_sampled": "`runners/env_steps`.",
            "num_env_steps_sampled_lifetime": "`total/env_steps`.",
        },
    ),
    "num_env_steps_sampled_lifetime": MetricGroup(
        "the steps so far, under RLlib's name",
        {
            "": "`total/env_steps`.",
        },
    ),
    "learners": MetricGroup(
        "the update, under RLlib's names",
        {
            "__all_modules__/num_env_steps_trained": "`batch/steps`.",
            "default_policy/total_loss": "`learner/loss`.",
            "default_policy/entropy": "`learner/entropy`.",
            "default_policy/default_optimizer_learning_rate": "`learner/lr`.",
            "default_policy/gradients_default_optimizer_global_norm": "`learner/grad_norm`.",
        },
    ),
    "weights_seq_no": MetricGroup(
        "the clock",
        {
            "": "Updates so far; the version of the weights that are served after this iteration.",
        },
    ),
    "judge": MetricGroup(
        "the judge's answers, where there is one",
        {
            "requests": "Trajectories that the judge was asked about in this iteration.",
            "answers": "Usable answers.",
            "cached": "Answers that were in `judge/answers.jsonl` already.",
            "fallback_answers": "Usable answers of `hindsight.judge.fallback_model`.",
            "retries": "Requests repeated after a failure.",
            "failed_<reason>": "Trajectories without a usable answer, by reason.",
            "given_up": "Trajectories asked about that are needed no more.",
            "pending": "Trajectories asked about and not answered yet.",
            "waited_s": "Seconds that the batch waited for answers.",
            "latency_mean_s": "Mean seconds to an answer or failure, cached ones left out.",
            "latency_max_s": "The longest of these, in seconds.",
        },
    ),
    "throughput": MetricGroup(
        "speed",
        {
            "env_steps_per_s": "Environment steps a second, of all episodes played meanwhile.",
            "response_tokens_per_s": "Sampled tokens a second.",
            "prompt_tokens_per_s": "Prompt tokens a second, cached ones included.",
        },
    ),
    "time": MetricGroup(
        "where the time went",
        {
            "iteration_s": "Seconds of the iteration.",
            "wait_for_batch_s": "Seconds of it until the batch was there.",
            "not_polling_s": "Seconds of it in which the driver polled no env runner.",
        },
    ),
    "runners": MetricGroup(
        "what the env runners counted in the iteration",
        {
            "episodes_started": "Episodes begun.",
            "episodes_finished": "Episodes ended.",
            "env_steps": "Environment steps.",
            "invalid_actions": "Steps whose response states no action or an inadmissible one.",
            "prompt_tokens": "Prompt tokens sent to the policy.",
            "cached_prompt_tokens": "Prompt tokens of these that the engine had cached.",
            "response_tokens": "Tokens sampled.",
            "dropped_history_turns": "Turns of history left out of prompts to make them fit; of a "
            "conversation each once.",
            "shortened_observations": "Observations of conversations that were shortened for it.",
            "cut_prompts": "Prompts of conversations that had to be made to fit so, and continue no tokens.",
            "rewritten_prompts": "Prompts of conversations that continue no tokens because the chat template "
            "writes responses otherwise once they are history, such as without their thinking.",
            "hints_left_out": "Prompts whose hint did not fit, so that the policy did not read it.",
            "request_retries": "Requests to the policy that were repeated.",
            "environment_seconds": "Seconds inside environments, added up over episodes that run at the same "
            "time.",
            "generation_seconds": "Seconds waiting for the policy, added up in the same way.",
            "env_runners_died": "Env runners that died.",
            "env_runners_added": "Env runners that `rollout.autoscaling` asked for.",
            "env_runners_removed": "Env runners that it let end.",
            "environment_close_errors": "Environments whose `close` raised; their episodes count all the "
            "same.",
            "agent_branches": "Requests of agents that continue no answer, or one that is continued already: "
            "history was changed, or goes on in parallel.",
            "agent_template_branches": "Requests that continue an answer which the chat template writes "
            "otherwise once it is history, such as without its thinking.",
            "agent_options_set_aside": "Requests of agents for a temperature, a seed or the like of their "
            "own, or for a call of a tool by force.",
            "agent_requests_refused": "Requests of agents past a limit, or that cannot be answered.",
            "agent_calls_after_end": "Requests with the key of an episode that had ended.",
            "failed_<reason>": "Rollouts that failed in this iteration: `environment_error`, "
            "`environment_timeout`, `prompt_error` (raised by the environment's messages, the chat template "
            "or the tokenizer), `policy_unavailable`, `request_refused`, `aborted` or `env_runner_died`; of "
            "agents `agent_error`, `agent_timeout`, `agent_leak` (of processes or open requests), "
            "`grader_error` or `gateway_unavailable`. What happened is in `failures.jsonl`.",
        },
    ),
    "total": MetricGroup(
        "the same since the run began",
        {
            "<counter>": "Sum of `runners/<counter>` since the run began, resumed parts and evaluations "
            "included.",
            "failed_<reason>": "Rollouts that failed since the run began, by reason.",
            "learner_restarts": "How often failed learners were replaced inside the run.",
            "updates_redone": "Updates that were done again after that, from the newest checkpoint.",
            "rollouts_given_up": "Rollouts that were under way when learners were replaced; their groups are "
            "played again.",
            "hung_<kind>": "Actors that did not answer within `cluster.heartbeat_timeout_s` and were killed "
            "since the run began: `env_runners`, `learners`, `replicas`, `weight_stores`, "
            "`serve_controllers`.",
            "redeployments": "How often Ray Serve gave the policy or the gateway up, which was then deployed "
            "again, since the run began.",
        },
    ),
    "checkpoint": MetricGroup(
        "checkpoints, in the line of the next iteration that ends; not of the last one",
        {
            "seconds_paused": "Seconds that training stood still for it: until the one before was written, "
            "and while this one was copied.",
            "seconds_written": "Seconds that it took to be written after that, beside training.",
        },
    ),
    "records": MetricGroup(
        "trajectories recorded",
        {
            "trajectories_written": "Trajectories of this iteration written to `trajectories.jsonl`.",
            "trajectories_left_out": "Trajectories not written because the file is full.",
            "trajectories_mib": "Size of the file in MiB.",
        },
    ),
    "credit": MetricGroup(
        "whether the teacher tells progress from the rest, with `logging.credit`",
        {
            "auc_idle": "How often, of a recorded step that brought the task nearer and an admissible one "
            "that did not, the former has the higher Δ (with `weight: action_probability`, log-prob by the "
            "teacher), summed over its action: 0.5 is a coin, and then the weights carry no credit.",
            "auc_idle_positive": "The same among steps with a positive advantage.",
            "auc_rest": "As `auc_idle`, against inadmissible actions too.",
            "student_auc_idle": "As `auc_idle`, by the log-probs that the student's sampler recorded.",
            "num_progress": "Recorded steps with weighted tokens that brought the task nearer.",
            "num_idle": "Those whose action was admissible and did not.",
            "num_inadmissible": "Those with an inadmissible action.",
            "trajectories_not_judged": "Recorded trajectories that cannot be played again, or went another "
            "way; `logs/driver.log` says why.",
        },
    ),
    "evaluation": MetricGroup(
        "held-out tasks",
        {
            "success": "Share of the evaluation's tasks that were solved; those without an episode count as "
            "not.",
            "success_low": "Lower bound of its 95 % Wilson interval.",
            "success_high": "Upper bound of its 95 % Wilson interval.",
            "success_by_task_type/<task_type>": "Share of the episodes of this kind of task that solved it.",
            "tasks": "Tasks of the evaluation.",
            "unfinished": "Tasks that gave no episode.",
            "mean_steps": "Mean environment steps of an episode.",
            "invalid_action_rate": "Share of steps whose response states no action or an inadmissible one.",
            "seconds": "Seconds that the evaluation took.",
            "env_runners/episode_return_mean": "Mean sum of an episode's rewards; RLlib's name.",
            "env_runners/episode_len_mean": "The same as `evaluation/mean_steps`; RLlib's name.",
            "env_runners/num_episodes": "Episodes that ended; RLlib's name.",
            "<metric>": "Mean over episodes of a metric that the environment reports, such as `task_score`.",
        },
    ),
}

METRICS: Mapping[str, str] = {
    f"{first}/{name}" if name else first: meaning
    for first, group in GROUPS.items()
    for name, meaning in group.meanings.items()
}


def undescribed(names: Iterable[str]) -> list[str]:
    """Those of the metric ``names`` that the table lacks."""
    return sorted(name for name in set(names) if not _DESCRIBED.fullmatch(name))


def pattern(name: str) -> str:
    """A regular expression for the metric ``name``, with a group for each part in angle brackets."""
    return "".join(
        "(.+)" if part.startswith("<") else re.escape(part) for part in re.split("(<[^>]+>)", name)
    )


_DESCRIBED = re.compile("|".join(pattern(name) for name in METRICS))
