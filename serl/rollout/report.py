"""What an env runner tells the driver: finished trajectories, failed requests, and counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from serl.types import RolloutRequest, Trajectory

ABORTED, ENV_RUNNER_DIED = "aborted", "env_runner_died"


@dataclass(slots=True, frozen=True)
class FailedRollout:
    """A request that ended without a trajectory.

    ``reason`` is a short key to count by: ``environment_error``, ``environment_timeout``, ``prompt_error``,
    ``policy_unavailable``, ``request_refused``, ``aborted`` or ``env_runner_died``; of agents
    ``agent_error``, ``agent_timeout``, ``agent_leak``, ``grader_error`` or ``gateway_unavailable``. The first
    line of ``message`` says what happened, to which task or env runner; further ones where it was raised.
    """

    request: RolloutRequest
    reason: str
    message: str


def add_seconds(counters: Counter[str], name: str, seconds: float) -> None:
    """Adds a time to a sum. `Counter` is typed for integers; its sums are right for any number."""
    counters[name] += seconds  # pyright: ignore[reportArgumentType]


@dataclass(slots=True)
class RolloutReport:
    """Everything that ended since the last report of one env runner.

    ``num_unfinished`` requests are still played or queued. ``counters`` are sums since the last report:
    ``episodes_started``, ``episodes_finished``, ``env_steps``, ``invalid_actions``, ``prompt_tokens``,
    ``cached_prompt_tokens``, ``response_tokens``, ``dropped_history_turns``, ``shortened_observations``,
    ``cut_prompts``, ``rewritten_prompts``, ``hints_left_out``, ``request_retries``,
    ``environment_close_errors``, ``environment_seconds`` and ``generation_seconds``; of agents
    ``agent_branches``, ``agent_template_branches``, ``agent_options_set_aside``, ``agent_requests_refused``
    and ``agent_calls_after_end``. The seconds add up over episodes that run at the same time, so they can
    exceed wall time; failed episodes count in what they did before they failed.
    ``error`` is the traceback of an error that is no failure of one episode ("": there was none),
    ``unfit`` why the env runner must be replaced, with which what is unfinished is lost ("": it plays on).
    """

    trajectories: list[Trajectory] = field(default_factory=list)
    failures: list[FailedRollout] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    num_unfinished: int = 0
    error: str = ""
    unfit: str = ""
