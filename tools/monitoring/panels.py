"""What the dashboard shows: rows of panels, and the PromQL of their curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_RUN = 'run=~"$run"'
_ENGINE = 'model_name=~"$run"'
_SHARE, _SECONDS, _PER_SECOND, _BYTES, _NUMBER = "percentunit", "s", "ops", "bytes", "short"


@dataclass(frozen=True, slots=True)
class Curve:
    """One PromQL ``expression``; ``legend`` names its curves by their labels in double braces."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    description: str
    unit: str
    curves: Sequence[Curve]
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]


def _of(name: str, legend: str, by: str = "") -> Curve:
    """A gauge of the driver. A run that was resumed on the same cluster has one of each of its processes."""
    labels = f"run, {by}" if by else "run"
    return Curve(f"max by ({labels}) (ray_serl_{name}{{{_RUN}}})", f"{{{{run}}}} {legend}".rstrip())


def _rate_of(counter: str, legend: str, by: str = "") -> Curve:
    """Events of a second, and 0 where none has ever happened: Ray exports no counter before that."""
    labels = f"run, {by}" if by else "run"
    none = f"0 * max by (run) (ray_serl_weights_seq_no{{{_RUN}}})"
    expression = (
        f"sum by ({labels}) (rate(ray_serl_{counter}_total{{{_RUN}}}[$__rate_interval])) or on (run) {none}"
    )
    return Curve(expression, f"{{{{run}}}} {legend}".rstrip())


def _engine(name: str, legend: str) -> Curve:
    return Curve(f"sum by (ReplicaId) (ray_vllm_{name}{{{_ENGINE}}})", f"{{{{ReplicaId}}}} {legend}".rstrip())


def _engine_rate(counter: str) -> str:
    return f"sum by (model_name) (rate(ray_vllm_{counter}_total{{{_ENGINE}}}[$__rate_interval]))"


def _engine_quantile(histogram: str, quantile: float) -> Curve:
    rate = f"rate(ray_vllm_{histogram}_bucket{{{_ENGINE}}}[$__rate_interval])"
    expression = f"histogram_quantile({quantile}, sum by (le, model_name) ({rate}))"
    return Curve(expression, f"{{{{model_name}}}} {quantile * 100:.0f} %")


_LEARNING = Row(
    "Learning",
    (
        Panel(
            "Success",
            "Share of episodes that solved their task: of the last batch, and of the last evaluation.",
            _SHARE,
            (_of("rollout_success_ratio", "training"), _of("evaluation_success_ratio", "evaluation")),
        ),
        Panel("Return", "Mean sum of an episode's rewards.", _NUMBER, (_of("rollout_return", ""),)),
        Panel(
            "Groups",
            "Share of groups that won all, lost all, or some; learners learn from the last.",
            _SHARE,
            (
                _of("rollout_all_won_groups_ratio", "all won"),
                _of("rollout_all_failed_groups_ratio", "all failed"),
                Curve(
                    f"1 - max by (run) (ray_serl_rollout_all_won_groups_ratio{{{_RUN}}}) - on (run)"
                    f" max by (run) (ray_serl_rollout_all_failed_groups_ratio{{{_RUN}}})",
                    "{{run}} mixed",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Invalid actions",
            "Share of steps whose response states no action or an inadmissible one.",
            _SHARE,
            (_of("rollout_invalid_action_ratio", ""),),
        ),
        Panel("Steps of an episode", "Mean.", _NUMBER, (_of("rollout_episode_steps", ""),)),
        Panel(
            "Success by kind of task",
            "Of the last batch.",
            _SHARE,
            (_of("rollout_success_by_task_type_ratio", "{{task_type}}", by="task_type"),),
        ),
    ),
)
_UPDATE = Row(
    "Update",
    (
        Panel(
            "Entropy", "Of the policy over trained tokens, in nats.", _NUMBER, (_of("learner_entropy", ""),)
        ),
        Panel("Gradient norm", "Before clipping.", _NUMBER, (_of("learner_grad_norm", ""),)),
        Panel(
            "Clipped tokens",
            "Share of trained tokens whose loss the ratio's clipping raised.",
            _SHARE,
            (_of("learner_clip_ratio", ""),),
        ),
        Panel(
            "Log-prob mismatch",
            "Mean |sampler's - learner's log-prob| before the update: of all tokens, and of those that the "
            "newest weights sampled, where it is near 0 if weights land and both engines agree.",
            _NUMBER,
            (
                _of("learner_train_inference_mismatch", "all"),
                _of("learner_train_inference_mismatch_on_policy", "newest weights"),
            ),
        ),
        Panel(
            "λ",
            "How much of an advantage hindsight may change.",
            _SHARE,
            (_of("learner_effective_lambda", ""),),
        ),
        Panel(
            "Hindsight",
            "Mean |Δ| of weighted tokens, in nats; share of rows with an advantage that have evidence.",
            _NUMBER,
            (_of("learner_teacher_abs_log_ratio_mean", "|Δ|"), _of("learner_evidence_ratio", "evidence")),
        ),
        Panel(
            "Hindsight credit",
            "How often Δ is higher for a step that brought the task nearer than for an idle one; 0.5 is a "
            "coin. Only with logging.credit.",
            _SHARE,
            (_of("credit_auc_idle", ""),),
        ),
    ),
)
_FRESHNESS = Row(
    "Freshness",
    (
        Panel(
            "Weights",
            "Updates so far, and the version that each replica serves.",
            _NUMBER,
            (
                _of("weights_seq_no", "updates"),
                Curve(
                    f"max by (run, ReplicaId) (ray_serl_replica_weights_seq_no{{{_RUN}}})",
                    "{{run}} {{ReplicaId}}",
                ),
            ),
        ),
        Panel(
            "Staleness",
            "Updates between the weights that sampled an episode and those that it trains.",
            _NUMBER,
            (_of("staleness_mean", "mean"), _of("staleness_max", "greatest")),
        ),
        Panel(
            "Buffer",
            "Complete groups, groups that are not complete yet, and episodes that these lack.",
            _NUMBER,
            (
                _of("buffer_groups_ready", "groups ready"),
                _of("buffer_groups_in_flight", "groups in flight"),
                _of("buffer_trajectories_in_flight", "episodes in flight"),
            ),
        ),
    ),
)
_TIME = Row(
    "Time",
    (
        Panel(
            "Iteration",
            "What learners wait for: the batch, the update, the broadcast. The whole has the rest, too.",
            _SECONDS,
            (
                _of("time_iteration_seconds", "whole"),
                _of("time_wait_for_batch_seconds", "wait for the batch"),
                _of("learner_update_seconds", "update"),
                _of("broadcast_transport_seconds", "transport"),
                _of("broadcast_load_seconds", "load"),
            ),
        ),
        Panel(
            "Sampled tokens",
            "A second, of all episodes.",
            _PER_SECOND,
            (_of("throughput_response_tokens_per_second", ""),),
        ),
        Panel("Environment steps", "A second.", _PER_SECOND, (_of("throughput_env_steps_per_second", ""),)),
        Panel(
            "Trained tokens",
            "A second of forward, backward and optimizer.",
            _PER_SECOND,
            (_of("learner_tokens_per_second", ""),),
        ),
    ),
)
_ENGINES = Row(
    "Engines",
    (
        Panel(
            "Requests",
            "Running and waiting, in each replica.",
            _NUMBER,
            (_engine("num_requests_running", "running"), _engine("num_requests_waiting", "waiting")),
        ),
        Panel(
            "KV cache",
            "Share that is in use, of each replica.",
            _SHARE,
            (_engine("kv_cache_usage_perc", ""),),
        ),
        Panel(
            "Tokens",
            "A second: read and sampled.",
            _PER_SECOND,
            (
                Curve(_engine_rate("prompt_tokens"), "{{model_name}} prompt"),
                Curve(_engine_rate("generation_tokens"), "{{model_name}} sampled"),
            ),
        ),
        Panel(
            "Prefix cache",
            "Share of prompt tokens that were in it.",
            _SHARE,
            (
                Curve(
                    f"{_engine_rate('prefix_cache_hits')} / {_engine_rate('prefix_cache_queries')}",
                    "{{model_name}}",
                ),
            ),
        ),
        Panel(
            "Time to the first token",
            "Of half and of nearly all requests.",
            _SECONDS,
            (
                _engine_quantile("time_to_first_token_seconds", 0.5),
                _engine_quantile("time_to_first_token_seconds", 0.95),
            ),
        ),
        Panel(
            "Time of a request",
            "Of half and of nearly all requests.",
            _SECONDS,
            (
                _engine_quantile("e2e_request_latency_seconds", 0.5),
                _engine_quantile("e2e_request_latency_seconds", 0.95),
            ),
        ),
    ),
)
_FAILURES = Row(
    "Failures",
    (
        Panel(
            "Failed episodes",
            "A second, by reason; failures.jsonl of the run has what happened.",
            _PER_SECOND,
            (_rate_of("rollouts_failed", "{{reason}}", by="reason"),),
        ),
        Panel(
            "Repeated requests",
            "A second: requests to the policy that were sent again.",
            _PER_SECOND,
            (_rate_of("request_retries", ""),),
        ),
        Panel(
            "Restarts",
            "A second: env runners that died, actors that hung and were killed, learners that were replaced.",
            _PER_SECOND,
            (
                _rate_of("env_runners_died", "env runners died"),
                _rate_of("hung_actors", "hung {{kind}}", by="kind"),
                _rate_of("learner_restarts", "learners replaced"),
            ),
        ),
        Panel(
            "Replicas",
            "That serve, and that are missing of what the experiment asks for.",
            _NUMBER,
            (_of("serving_replicas", "serve"), _of("serving_missing_replicas", "missing")),
        ),
        Panel(
            "Env runners",
            "That play, and that are missing: they start, or wait for a place in the cluster.",
            _NUMBER,
            (_of("pool_env_runners", "play"), _of("pool_missing_env_runners", "missing")),
        ),
    ),
)

ROWS: Sequence[Row] = (_LEARNING, _UPDATE, _FRESHNESS, _TIME, _ENGINES, _FAILURES)


def expressions() -> Iterator[tuple[str, str]]:
    """The title of its panel and the PromQL of every curve."""
    for row in ROWS:
        for panel in row.panels:
            for curve in panel.curves:
                yield f"{row.title}: {panel.title}", curve.expression
