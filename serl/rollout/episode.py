"""One episode as a coroutine: prompt ids, sampled ids, action, environment, until it ends.

Nothing here waits for another episode. The ids the policy returned go into the trajectory as they are;
their text is only read, for the environment and for people.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from envs.base import PromptParts, Turn
from serl.rollout.actions import action_token_mask, parse_action
from serl.rollout.env_calls import EnvCalls, EpisodeFailure
from serl.rollout.prompt import Prompt, PromptEncoder, fit_prompt
from serl.rollout.report import add_seconds
from serl.types import Completion, RequestRefused, RolloutRequest, Sampling, Step, Trajectory

# What the environment, and later prompts, see of a response that states no action: its last characters.
UNTAGGED_RESPONSE_CHARACTERS = 100

# What a trajectory's metrics hold beside the environment's own.
EPISODE_METRICS = GENERATION_SECONDS, DROPPED_HISTORY_TURNS = "generation_seconds", "dropped_history_turns"


class Policy(Protocol):
    """Whoever turns prompt ids into sampled ids. ``retries`` counts the requests it had to send again."""

    retries: int

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, session_id: str, deadline_s: float
    ) -> Completion:
        """One response. Raises TimeoutError after ``deadline_s`` seconds, and RequestRefused."""
        ...


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """What all episodes of one kind (training or evaluation) have in common; lengths in tokens."""

    max_steps: int
    history_length: int
    invalid_action_penalty: float
    max_prompt_length: int
    request_timeout_s: float
    sampling: Sampling
    seeded_requests: bool


def request_seed(request_seed: int, step_index: int) -> int:
    """The sampling seed of one request, in [0, 2**31): the same for the same member and step."""
    digest = hashlib.blake2b(f"{request_seed}:{step_index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def environment_seed(task_id: str) -> int:
    """The seed an environment is reset with: the members of a group, and every evaluation, start alike."""
    return zlib.crc32(task_id.encode())


@dataclass(slots=True)
class _Progress:
    """Where an episode stands: what the policy sees next, and what it did so far."""

    observation: str
    info: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    reward: float = 0.0
    num_dropped_turns: int = 0
    generation_seconds: float = 0.0

    def prompt_parts(self, history_length: int) -> PromptParts:
        return PromptParts(
            task_description=self.info["task_description"],
            history=tuple(self.turns[-history_length:]) if history_length else (),
            num_past_turns=len(self.turns),
            observation=self.observation,
            admissible_actions=tuple(self.info["admissible_actions"]),
        )


async def run_episode(
    request: RolloutRequest,
    env: EnvCalls,
    render_messages: Callable[[PromptParts], tuple[dict[str, str], ...]],
    encoder: PromptEncoder,
    policy: Policy,
    settings: EpisodeSettings,
    counters: Counter[str],
) -> Trajectory:
    """Plays ``request`` to its end.

    The trajectory's ``end_reason`` is ``success``, ``failure`` (the environment ended it unsolved),
    ``truncated`` (the environment's own limit), ``max_steps`` or ``prompt_too_long``. Its ``reward`` is the
    sum of the environment's rewards; the reward of a step also pays ``invalid_action_penalty`` if the
    response stated no action or an inadmissible one. ``counters`` are those of `RolloutReport`.

    Raises EpisodeFailure if the environment fails, or the policy refuses or does not answer in time.
    """
    started = time.perf_counter()
    counters["episodes_started"] += 1
    progress = _Progress(*await env.reset(environment_seed(request.task.task_id)))
    end_reason = "max_steps"
    while len(progress.steps) < settings.max_steps:
        prompt = fit_prompt(
            progress.prompt_parts(settings.history_length),
            render_messages,
            encoder.encode,
            settings.max_prompt_length,
        )
        if prompt is None:
            end_reason = "prompt_too_long"
            break
        asked = time.perf_counter()
        try:
            completion = await _ask(policy, prompt, request, len(progress.steps), settings)
        finally:
            seconds = time.perf_counter() - asked
            progress.generation_seconds += seconds
            add_seconds(counters, "generation_seconds", seconds)
        terminated, truncated = await _act(env, encoder, prompt, completion, progress, settings)
        _count_step(counters, prompt, progress.steps[-1])
        if terminated:
            end_reason = "success" if progress.info["success"] else "failure"
            break
        if truncated:
            end_reason = "truncated"
            break
    counters["episodes_finished"] += 1
    return _trajectory(request, progress, end_reason, time.perf_counter() - started, env.seconds)


async def _ask(
    policy: Policy, prompt: Prompt, request: RolloutRequest, step_index: int, settings: EpisodeSettings
) -> Completion:
    sampling = settings.sampling
    if settings.seeded_requests:
        sampling = replace(sampling, seed=request_seed(request.seed, step_index))
    try:
        return await policy.generate(
            prompt.token_ids, sampling, trajectory_id(request), settings.request_timeout_s
        )
    except TimeoutError as error:
        raise EpisodeFailure(
            "policy_unavailable",
            f"task {request.task.task_id!r}: no answer of the policy within "
            f"{settings.request_timeout_s:g} s: {error}",
        ) from error
    except RequestRefused as error:
        raise EpisodeFailure(
            "request_refused", f"task {request.task.task_id!r}: the policy refused a request: {error}"
        ) from error


async def _act(
    env: EnvCalls,
    encoder: PromptEncoder,
    prompt: Prompt,
    completion: Completion,
    progress: _Progress,
    settings: EpisodeSettings,
) -> tuple[bool, bool]:
    """Carries the response out and records the step; returns ``(terminated, truncated)``."""
    response_text = encoder.decode(completion.token_ids)
    action = parse_action(response_text)
    attempt = response_text.strip()[-UNTAGGED_RESPONSE_CHARACTERS:] if action is None else action
    observation, reward, terminated, truncated, info = await env.step(attempt)
    action_valid = action is not None and bool(info["action_valid"])
    progress.steps.append(
        Step(
            prompt_ids=prompt.token_ids,
            response_ids=completion.token_ids,
            old_logprobs=completion.logprobs,
            action_mask=action_token_mask(completion.token_ids, encoder.tokenizer),
            version_spans=completion.version_spans,
            finish_reason=completion.finish_reason,
            messages=prompt.messages,
            response_text=response_text,
            anchor=progress.observation,
            action=action,
            action_valid=action_valid,
            feedback=info["feedback"],
            next_observation=observation,
            reward=reward - (0.0 if action_valid else settings.invalid_action_penalty),
            num_cached_tokens=completion.num_cached_tokens,
        )
    )
    progress.turns.append(Turn(progress.observation, attempt))
    progress.observation, progress.info = observation, info
    progress.reward += reward
    progress.num_dropped_turns += prompt.num_dropped_turns
    return terminated, truncated


def trajectory_id(request: RolloutRequest) -> str:
    """Names the episode of ``request``, in trajectories and as the session of its requests."""
    return f"{request.group_id}-{request.rollout_index}"


def _count_step(counters: Counter[str], prompt: Prompt, step: Step) -> None:
    counters["env_steps"] += 1
    counters["invalid_actions"] += not step.action_valid
    counters["prompt_tokens"] += len(step.prompt_ids)
    counters["cached_prompt_tokens"] += step.num_cached_tokens
    counters["response_tokens"] += len(step.response_ids)
    counters["dropped_history_turns"] += prompt.num_dropped_turns


def _trajectory(
    request: RolloutRequest,
    progress: _Progress,
    end_reason: str,
    seconds: float,
    environment_seconds: float,
) -> Trajectory:
    return Trajectory(
        trajectory_id=trajectory_id(request),
        group_id=request.group_id,
        rollout_index=request.rollout_index,
        task=request.task,
        steps=progress.steps,
        reward=progress.reward,
        success=bool(progress.info["success"]),
        end_reason=end_reason,
        seconds=seconds,
        environment_seconds=environment_seconds,
        metrics={
            **progress.info.get("metrics", {}),
            GENERATION_SECONDS: progress.generation_seconds,
            DROPPED_HISTORY_TURNS: float(progress.num_dropped_turns),
        },
    )
