"""`SERLEnvRunner`: an RLlib EnvRunner whose episodes are coroutines on one event loop.

    driver ── exchange(requests, wait_s) ──▶ actor's thread
                                                    │  hands over, waits
                                                event loop (background thread): EpisodePool
                                                    ├─ episode: env ─ ids ─▶ policy deployment
                                                    ├─ episode: …  nobody waits for anybody else's step
                                                    └─ blocking environments: threads
    driver ◀── RolloutReport, by value ─────────────┘

The runner holds no weights and no state worth saving: it plays what was requested, and whatever it loses the
driver requests again.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gymnasium
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner

from envs.agent.provider import AgentProvider
from envs.registry import make_provider
from serl.config import ExperimentConfig
from serl.rollout.agent_episode import AgentEpisodes
from serl.rollout.agent_processes import AgentProcesses
from serl.rollout.env_calls import EnvCalls, EnvThreads, foreign_code
from serl.rollout.episode import EpisodeSettings, Policy, run_episode
from serl.rollout.episode_pool import EpisodePool
from serl.rollout.gateway import Gateway
from serl.rollout.prompt import PromptEncoder
from serl.rollout.report import RolloutReport
from serl.rollout.signals import unblock_signals_for_children
from serl.types import RolloutRequest, Trajectory

T = TypeVar("T")

# Beyond what it was asked to wait, the event loop gets this long to answer the actor's thread.
_LOOP_ANSWER_TIMEOUT_S = 60.0
_TICK_S = 0.5


class EventLoopHeldError(TimeoutError):
    """The event loop of the episodes does not answer."""


class EnvRunnerConfig(Protocol):
    """What an env runner needs of RLlib's config beyond RLlib's own fields.

    ``model_dir`` is the policy's local Hugging Face folder, for its tokenizer, ``start_dir`` the folder that
    relative paths in the environment's arguments begin in. ``make_policy`` makes what answers this runner's
    requests, in the runner's process (None until the policy is served), ``make_gateway`` what gives its
    agents access (None without ``serving.gateway``).
    """

    experiment: ExperimentConfig
    model_dir: str
    start_dir: str
    make_policy: Callable[[], Policy] | None
    make_gateway: Callable[[], Gateway] | None
    observation_space: gymnasium.Space
    action_space: gymnasium.Space


class SERLEnvRunner(EnvRunner):
    """Plays the requests it is sent, up to ``rollout.max_concurrent_episodes`` at a time.

    ``config`` is RLlib's, and an `EnvRunnerConfig`. No method is a coroutine: Ray would run them all outside
    the main thread, which alone may handle signals.
    """

    config: EnvRunnerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        unblock_signals_for_children()
        if Path(self.config.start_dir).is_dir():  # a cluster that was joined was started in another one
            os.chdir(self.config.start_dir)
        experiment = self.config.experiment
        self._training_settings, self._evaluation_settings = _episode_settings(experiment)
        self._start_error = ""
        try:
            self.provider = make_provider(experiment.env.name, experiment.env.args)
            self.encoder = PromptEncoder.load(self.config.model_dir)
        except Exception:  # RLlib says nothing of a runner that is not built; this one does when it is asked
            self._start_error = traceback.format_exc()
        self._policy: Policy | None = None
        self._agents: AgentEpisodes | None = None
        self._num_reported_retries = 0
        max_concurrent_episodes = experiment.rollout.max_concurrent_episodes
        self._pool = EpisodePool(partial(_play, self), max_concurrent_episodes)
        self._env_threads = EnvThreads(max_concurrent_episodes, experiment.env.call_timeout_s)
        self._unfit = ""
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self._loop.run_forever, name="episodes", daemon=True)
        self._loop_thread.start()

    def __repr__(self) -> str:
        """What Ray's dashboard calls this actor."""
        episodes = self.config.experiment.rollout.max_concurrent_episodes
        return f"serl env_runner {self.worker_index} · {episodes} episodes"

    def exchange(self, requests: Sequence[RolloutRequest], wait_s: float) -> RolloutReport:
        """Takes on ``requests``; returns what ended since the last call, by value.

        Waits up to ``wait_s`` seconds for the first episode to end, and a little longer for others. Raises
        nothing: whatever an episode raised beyond the failures that are reported is the report's ``error``,
        and so are what `make_provider` or `PromptEncoder.load` raised on this machine, and
        TooManyRequestsError if more than twice ``rollout.max_concurrent_episodes`` requests were unfinished.
        One whose event loop does not answer is ``unfit``, and one of which too many calls hang.
        """
        if self._start_error:
            return RolloutReport(error=self._start_error)
        try:
            if self._policy is None and requests:
                self._policy = self._make_policy()
                self._agents = self._make_agents()
            report = self._report(self._pool.exchange(requests, wait_s), wait_s, "a report of its episodes")
            report.unfit = self._unfit = self._why_unfit()
            return report
        except EventLoopHeldError as error:
            self._unfit = str(error)
            return RolloutReport(unfit=self._unfit)
        except Exception:  # RLlib ends the process of a runner that raises, and the driver is not told why
            return RolloutReport(error=traceback.format_exc())

    def sample(
        self, *, requests: Sequence[RolloutRequest] = (), wait_s: float = 0.0, **kwargs: Any
    ) -> RolloutReport:
        """RLlib's name for `exchange`."""
        return self.exchange(requests, wait_s)

    def ping(self) -> str:
        """Raises RuntimeError once this runner is unfit, lest it be taken for the one in its place."""
        if self._unfit:
            raise RuntimeError(self._unfit)
        return super().ping()

    def abort(self) -> RolloutReport:
        """Ends all episodes now; reports what had finished, and the others as failed (``aborted``)."""
        return self._report(self._pool.abort(), 0.0, "its episodes to end")

    def assert_healthy(self) -> None:
        assert self._loop_thread.is_alive(), "the event loop of the episodes has stopped"

    def get_spaces(self) -> dict[str, tuple[gymnasium.Space | None, gymnasium.Space | None]]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {name: spaces for name in (INPUT_ENV_SPACES, INPUT_ENV_SINGLE_SPACES, DEFAULT_MODULE_ID)}

    def get_metrics(self) -> dict[str, Any]:
        """RLlib's own metrics of this runner; what SERL counts comes with `exchange`."""
        return self.metrics.reduce()

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Empty: a runner is complete with its constructor's arguments."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Ignores ``state``: the weights live in the policy deployment."""

    def stop(self) -> None:
        """Ends all episodes and the threads; may be called twice."""
        if not self._loop_thread.is_alive():
            return
        self.abort()
        self._on_loop(_cancel_other_tasks(), _LOOP_ANSWER_TIMEOUT_S, "the policy's calls to end")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop_thread.join(_LOOP_ANSWER_TIMEOUT_S)
        self._loop.close()
        if self._agents is not None:
            self._agents.close()
        self._env_threads.shutdown(wait=False, cancel_futures=True)

    def _why_unfit(self) -> str:
        num_hung = self._env_threads.num_hung
        if num_hung < self.config.experiment.rollout.max_concurrent_episodes:
            return ""
        timeout_s = self.config.experiment.env.call_timeout_s
        return f"{num_hung} calls of its environments hang (env.call_timeout_s = {timeout_s:g} s)"

    def _make_policy(self) -> Policy:
        if self.config.make_policy is None:
            raise ValueError("the config's make_policy is not set: start the policy deployment first")
        return self.config.make_policy()

    def _make_agents(self) -> AgentEpisodes | None:
        """What plays in the place of an environment; None if it is one."""
        if not isinstance(self.provider, AgentProvider):
            return None
        if self.config.make_gateway is None:
            raise ValueError("the config's make_gateway is not set: an agent needs serving.gateway: true")
        processes = AgentProcesses(self.provider.preparations, self.config.experiment.env.call_timeout_s)
        return AgentEpisodes(self.provider, processes, self.config.make_gateway(), self.encoder)

    def _report(
        self, coroutine: Coroutine[Any, Any, RolloutReport], wait_s: float, waited_for: str
    ) -> RolloutReport:
        report = self._on_loop(coroutine, wait_s + _LOOP_ANSWER_TIMEOUT_S, waited_for)
        if self._policy is not None:
            report.counters["request_retries"] = self._policy.retries - self._num_reported_retries
            self._num_reported_retries = self._policy.retries
        return report

    def _on_loop(self, coroutine: Coroutine[Any, Any, T], timeout_s: float, waited_for: str) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        # Counted, not measured: in the seconds that this process was stopped for nothing held the loop.
        waited_s = 0.0
        while waited_s < timeout_s and not wait([future], _TICK_S).done:
            waited_s += _TICK_S
        if future.done():
            return future.result()
        future.cancel()
        raise EventLoopHeldError(
            f"waited {timeout_s:g} s for {waited_for}: something holds the event loop, such as an "
            "environment that blocks and does not declare it"
        )


async def _play(runner: SERLEnvRunner, request: RolloutRequest, counters: Counter[str]) -> Trajectory:
    assert runner._policy is not None
    settings = runner._evaluation_settings if request.evaluation else runner._training_settings
    if runner._agents is not None:
        experiment = runner.config.experiment
        split = experiment.evaluation.split if request.evaluation else experiment.env.train_split
        return await runner._agents.play(request, split, settings, counters)
    timeout_s = runner.config.experiment.env.call_timeout_s
    with foreign_code("environment_error", f"task {request.task.task_id!r}: make_env"):
        made = runner.provider.make_env()
    env = EnvCalls(made, request.task, runner._env_threads, timeout_s, counters)
    try:
        return await run_episode(
            request,
            env,
            runner.provider,
            runner.encoder,
            runner._policy,
            settings,
            counters,
        )
    finally:
        env.close()


async def _cancel_other_tasks() -> None:
    """What episodes leave behind: calls of the policy that are still open."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_LOOP_ANSWER_TIMEOUT_S / 2)


def _episode_settings(experiment: ExperimentConfig) -> tuple[EpisodeSettings, EpisodeSettings]:
    """How training and evaluation episodes are played."""
    training = EpisodeSettings.of(experiment)
    evaluation_sampling = replace(training.sampling, temperature=experiment.evaluation.temperature)
    return training, replace(training, sampling=evaluation_sampling)
