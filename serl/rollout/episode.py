"""One episode as a coroutine: prompt ids, sampled ids, action, environment, until it ends.

Nothing here waits for another episode. The ids the policy returned go into the trajectory as they are;
their text is only read, for the environment and for people.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from envs.base import EnvProvider
from serl.config import ExperimentConfig
from serl.rollout.actions import ResponseAction, action_token_mask
from serl.rollout.env_calls import EnvCalls, EpisodeFailure, foreign_code
from serl.rollout.episode_prompts import PromptSettings, episode_prompts
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import Prompt, PromptEncoder
from serl.rollout.report import add_seconds
from serl.rollout.told_prompt import told_prompt_encoder
from serl.types import Completion, RequestRefused, RolloutRequest, Sampling, Step, Trajectory

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
    """What all episodes of one kind (training or evaluation) have in common."""

    max_steps: int
    prompts: PromptSettings
    max_hinted_prompt_length: int
    request_timeout_s: float
    sampling: Sampling
    seeded_requests: bool

    @classmethod
    def of(cls, experiment: ExperimentConfig) -> Self:
        """Those of training."""
        rollout = experiment.rollout
        return cls(
            max_steps=experiment.env.max_steps,
            prompts=PromptSettings.of(experiment),
            max_hinted_prompt_length=experiment.hindsight.max_context_length,
            request_timeout_s=rollout.request_timeout_s,
            sampling=Sampling(
                temperature=rollout.temperature,
                max_tokens=rollout.max_response_length,
                stop=rollout.stop,
                seed=None,
            ),
            seeded_requests=rollout.seeded_requests,
        )


def sampling_seed(rollout_seed: int, step_index: int) -> int:
    """The seed of one request to the policy, in [0, 2**31): the same for the same rollout and step."""
    digest = hashlib.blake2b(f"{rollout_seed}:{step_index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def environment_seed(task_id: str) -> int:
    """The seed an environment is reset with: the rollouts of a group, and every evaluation, start alike."""
    return zlib.crc32(task_id.encode())


@dataclass(slots=True)
class _Record:
    """What an episode did so far."""

    steps: list[Step] = field(default_factory=list)
    num_dropped_turns: int = 0
    generation_seconds: float = 0.0


async def run_episode(
    request: RolloutRequest,
    env: EnvCalls,
    provider: EnvProvider,
    encoder: PromptEncoder,
    policy: Policy,
    settings: EpisodeSettings,
    counters: Counter[str],
) -> Trajectory:
    """Plays ``request`` to its end, with the prompts of ``provider``.

    The trajectory's ``end_reason`` is ``success``, ``failure`` (the environment ended it unsolved),
    ``truncated`` (the environment's own limit), ``max_steps`` or ``prompt_too_long``. Rewards are the
    environment's own, a trajectory's is the sum of those of its steps; invalid actions cost nothing yet.
    ``counters`` are those of `RolloutReport`.

    Raises EpisodeFailure if the environment fails, if no prompt can be made of what it says, or if the policy
    refuses or does not answer in time.
    """
    started = time.perf_counter()
    counters["episodes_started"] += 1
    state, record = await _begin(request, env), _Record()
    prompts = episode_prompts(provider, encoder, settings.prompts, f"task {request.task.task_id!r}")
    end_reason = "max_steps"
    while len(record.steps) < settings.max_steps:
        prompt = prompts.next(state)
        if prompt is None:
            end_reason = "prompt_too_long"
            break
        prompt_ids = _with_hint(request, prompt, record.steps, encoder, settings, counters)
        completion = await _ask_timed(policy, prompt_ids, request, record, settings, counters)
        prompts.answered(completion.token_ids)
        step = await _act(request, env, encoder, prompt, completion, state)
        if prompt.origin == "continuation":
            step.continues = len(record.steps) - 1
        record.steps.append(step)
        record.num_dropped_turns += prompt.num_dropped_turns
        count_step(counters, step)
        _count_prompt(counters, prompt)
        if state.terminated:
            end_reason = "success" if state.success else "failure"
            break
        if state.truncated:
            end_reason = "truncated"
            break
    counters["episodes_finished"] += 1
    return finished_trajectory(
        request,
        record.steps,
        reward=state.reward,
        success=state.success,
        end_reason=end_reason,
        seconds=time.perf_counter() - started,
        environment_seconds=env.seconds,
        generation_seconds=record.generation_seconds,
        metrics=state.info["metrics"],
        num_dropped_turns=record.num_dropped_turns,
    )


async def _begin(request: RolloutRequest, env: EnvCalls) -> EpisodeState:
    answer = await env.reset(environment_seed(request.task.task_id))
    with foreign_code("environment_error", f"task {request.task.task_id!r}: what reset returned"):
        return EpisodeState(*answer)


def _with_hint(
    request: RolloutRequest,
    prompt: Prompt,
    steps: Sequence[Step],
    encoder: PromptEncoder,
    settings: EpisodeSettings,
    counters: Counter[str],
) -> list[int]:
    """What the policy is asked with: the ids of ``prompt``, with the request's hint in it where that fits."""
    if request.hint is None:
        return prompt.token_ids
    before = steps[-1] if prompt.origin == "continuation" else None
    with foreign_code("prompt_error", f"task {request.task.task_id!r}: its prompt with a hint"):
        token_ids = told_prompt_encoder(prompt.messages, (), before, encoder)(request.hint)
    if len(token_ids) > settings.max_hinted_prompt_length:
        counters["hints_left_out"] += 1
        return prompt.token_ids
    return token_ids


async def _ask_timed(
    policy: Policy,
    prompt_ids: list[int],
    request: RolloutRequest,
    record: _Record,
    settings: EpisodeSettings,
    counters: Counter[str],
) -> Completion:
    asked = time.perf_counter()
    try:
        return await _ask(policy, prompt_ids, request, len(record.steps), settings)
    finally:
        seconds = time.perf_counter() - asked
        record.generation_seconds += seconds
        add_seconds(counters, "generation_seconds", seconds)


async def _ask(
    policy: Policy,
    prompt_ids: list[int],
    request: RolloutRequest,
    step_index: int,
    settings: EpisodeSettings,
) -> Completion:
    sampling = settings.sampling
    if settings.seeded_requests:
        sampling = replace(sampling, seed=sampling_seed(request.seed, step_index))
    try:
        return await policy.generate(prompt_ids, sampling, trajectory_id(request), settings.request_timeout_s)
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
    request: RolloutRequest,
    env: EnvCalls,
    encoder: PromptEncoder,
    prompt: Prompt,
    completion: Completion,
    state: EpisodeState,
) -> Step:
    """Carries the response out: advances ``state`` and returns the step."""
    response_text = encoder.decode(completion.token_ids)
    action = ResponseAction.of(response_text)
    seen = state.observation
    answer = await env.step(action.sent)
    with foreign_code("environment_error", f"task {request.task.task_id!r}: what step returned"):
        reward = state.advance(action.sent, answer)
        feedback, action_valid = state.info["feedback"], action.is_valid(state.info)
    return Step(
        prompt_ids=prompt.token_ids,
        response_ids=completion.token_ids,
        old_logprobs=completion.logprobs,
        action_mask=action_token_mask(completion.token_ids, encoder.tokenizer),
        version_spans=completion.version_spans,
        finish_reason=completion.finish_reason,
        messages=prompt.messages,
        response_text=response_text,
        anchor=seen,
        action=action.stated,
        action_valid=action_valid,
        feedback=feedback,
        next_observation=state.observation,
        reward=reward,
        num_cached_tokens=min(completion.num_cached_tokens, len(prompt.token_ids)),
    )


def trajectory_id(request: RolloutRequest) -> str:
    """Names the episode of ``request``, in trajectories and as the session of its requests."""
    return f"{request.group_id}-{request.rollout_index}"


def count_step(counters: Counter[str], step: Step) -> None:
    """Adds ``step`` to the counters of `RolloutReport`."""
    counters["env_steps"] += 1
    counters["invalid_actions"] += not step.action_valid
    counters["prompt_tokens"] += len(step.prompt_ids)
    counters["cached_prompt_tokens"] += step.num_cached_tokens
    counters["response_tokens"] += len(step.response_ids)


def _count_prompt(counters: Counter[str], prompt: Prompt) -> None:
    counters["dropped_history_turns"] += prompt.num_dropped_turns
    counters["shortened_observations"] += prompt.num_shortened_observations
    counters["cut_prompts"] += prompt.origin == "cut"
    counters["rewritten_prompts"] += prompt.origin == "rewritten"


def finished_trajectory(
    request: RolloutRequest,
    steps: list[Step],
    *,
    reward: float,
    success: bool,
    end_reason: str,
    seconds: float,
    environment_seconds: float,
    generation_seconds: float,
    metrics: dict[str, float],
    num_dropped_turns: int = 0,
) -> Trajectory:
    """What became of ``request``; ``metrics`` are the environment's own, or the agent's."""
    return Trajectory(
        trajectory_id=trajectory_id(request),
        group_id=request.group_id,
        rollout_index=request.rollout_index,
        task=request.task,
        steps=steps,
        reward=reward,
        success=success,
        end_reason=end_reason,
        seconds=seconds,
        environment_seconds=environment_seconds,
        hint=request.hint,
        metrics={
            **metrics,
            GENERATION_SECONDS: generation_seconds,
            DROPPED_HISTORY_TURNS: float(num_dropped_turns),
        },
    )
