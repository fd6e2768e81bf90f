"""Episodes whose policy answers all of them at once: what a trainer that generates whole batches needs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from envs.base import EnvProvider
from serl.config import ExperimentConfig
from serl.rollout.env_calls import EnvCalls
from serl.rollout.episode import EpisodeSettings, run_episode
from serl.rollout.prompt import PromptEncoder
from serl.types import Completion, RolloutRequest, Sampling, Trajectory

# Prompt ids of all episodes under way to their response ids, and the log-probability of each where known.
Respond = Callable[[list[list[int]]], Sequence[tuple[list[int], list[float]]]]


@dataclass(slots=True)
class _LockstepPolicy:
    """Collects what all episodes ask, and answers when `respond` is called."""

    max_tokens: int
    retries: int = 0
    waiting: list[tuple[list[int], asyncio.Future[Completion]]] = field(default_factory=list)

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, session_id: str, deadline_s: float
    ) -> Completion:
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((prompt_ids, answer))
        return await answer

    def answer(self, respond: Respond) -> None:
        asked, self.waiting = self.waiting, []
        responses = respond([prompt_ids for prompt_ids, _ in asked])
        for (_, answer), (response_ids, logprobs) in zip(asked, responses, strict=True):
            reason = "length" if len(response_ids) == self.max_tokens else "stop"
            answer.set_result(Completion(response_ids, logprobs, reason, ()))


class LockstepPlayer:
    """Plays as env runners do, with their prompts and actions, step by step for all episodes together.

    Environments must answer at once (`TextEnv.blocking`). Raises ValueError if they do not.
    """

    def __init__(self, experiment: ExperimentConfig, provider: EnvProvider, encoder: PromptEncoder) -> None:
        if provider.make_env().blocking:
            raise ValueError(f"env {experiment.env.name!r} blocks: its episodes cannot be played in lockstep")
        self._provider = provider
        self._encoder = encoder
        self._settings = replace(EpisodeSettings.of(experiment), seeded_requests=False)

    def play(self, requests: Sequence[RolloutRequest], respond: Respond) -> list[Trajectory]:
        """In the order of ``requests``. Raises EpisodeFailure, and what ``respond`` raises."""
        return asyncio.run(self._play(requests, respond))

    async def _play(self, requests: Sequence[RolloutRequest], respond: Respond) -> list[Trajectory]:
        policy = _LockstepPolicy(self._settings.sampling.max_tokens)
        with ThreadPoolExecutor(1) as unused:
            episodes = [asyncio.create_task(self._episode(one, policy, unused)) for one in requests]
            while running := sum(not episode.done() for episode in episodes):
                if len(policy.waiting) == running:
                    policy.answer(respond)
                await asyncio.sleep(0)
            return await asyncio.gather(*episodes)

    async def _episode(
        self, request: RolloutRequest, policy: _LockstepPolicy, executor: ThreadPoolExecutor
    ) -> Trajectory:
        counters: Counter[str] = Counter()
        env = EnvCalls(self._provider.make_env(), request.task, executor, 0.0, counters)
        try:
            return await run_episode(
                request, env, self._provider, self._encoder, policy, self._settings, counters
            )
        finally:
            env.close()
