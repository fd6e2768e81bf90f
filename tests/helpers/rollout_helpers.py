"""A corridor to walk, a policy that says what a test scripts, and a tokenizer of one id per byte."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from byte_tokenizers import byte_level
from transformers import PreTrainedTokenizerFast

from envs.base import EnvProvider, PromptParts, Task, TaskSet, TextEnv
from serl.rollout.env_calls import EnvCalls
from serl.rollout.episode import EpisodeSettings, run_episode
from serl.rollout.episode_prompts import PromptSettings
from serl.rollout.prompt import PromptEncoder
from serl.types import Completion, RolloutRequest, Sampling, Trajectory, VersionSpan

FORWARD = "<action>forward</action>"


class Corridor(TextEnv):
    """Task ``corridor N`` is solved by N times "forward"; "jump" ends it unsolved, "long" fills the screen.

    ``broken`` raises at the first step, ``unknown …`` at reset, a step of ``blocking N`` waits for ``gate``,
    of ``blocking exhausted`` it has no answer; ``exiting`` ends the process, ``mute`` gives no feedback, of
    ``speechless`` no messages can be made, of ``numeric`` none of text, and ``stuck`` cannot be closed.
    """

    gate = threading.Event()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        assert options is not None
        self.kind, _, length = options["task_id"].partition(" ")
        if self.kind == "unknown":
            raise KeyError(options["task_id"])
        self.blocking = self.kind == "blocking"
        self.exhausted = length == "exhausted"
        self.seed, self.length, self.position = seed, 1 if self.exhausted else int(length or 1), 0
        return "You stand at 0.", self._info(valid=True)

    def step(self, action: str):
        if self.kind == "broken":
            raise OSError("the floor gave way")
        if self.kind == "exiting":
            raise SystemExit(3)
        if self.exhausted:
            raise StopIteration
        if self.blocking:
            self.gate.wait(timeout=60.0)
        valid = action in ("forward", "jump", "long", "leave")
        self.position += action == "forward"
        solved = self.position == self.length
        observation = "x" * 1000 if action == "long" else f"You stand at {self.position}."
        observation = observation if valid else "Nothing happens."
        ended = solved or action == "jump"
        info = self._info(valid, solved, f"did {action}")
        if self.kind == "mute":
            del info["feedback"]
        return observation, 10.0 * solved, ended, action == "leave", info

    def close(self) -> None:
        self.closed_in = threading.current_thread().name
        if self.blocking or self.kind == "stuck":
            raise OSError("the door is stuck")

    def _info(self, valid: bool, success: bool = False, feedback: str | None = None) -> dict[str, Any]:
        return {
            "admissible_actions": ["forward", "jump"],
            "task_description": {"speechless": "", "numeric": "5"}.get(self.kind, "walk to the end"),
            "task_type": "corridor",
            "success": success,
            "action_valid": valid,
            "feedback": feedback,
        }


class CorridorProvider:
    def task_set(self, split: str) -> TaskSet:
        return TaskSet(split, (Task("corridor 2"),), "hash")

    def make_env(self) -> TextEnv:
        return Corridor()

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        if not parts.task_description:
            raise LookupError("no words for the speechless")
        if parts.task_description == "5":
            return ({"role": "user", "content": 5},)  # pyright: ignore[reportReturnType]
        history = "".join(f"{turn.observation} > {turn.action}\n" for turn in parts.history)
        return (
            {"role": "system", "content": parts.task_description},
            {"role": "user", "content": f"{history}{parts.num_past_turns}: {parts.observation}"},
        )


def make_provider(args: dict[str, Any]) -> EnvProvider:
    assert args == {}
    return CorridorProvider()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte, in the order of the byte alphabet, and an end token."""
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    return byte_level(["<eos>"], template, eos_token="<eos>")


class ScriptedClient:
    """Answers request number ``index`` of a session with ``respond(session_id, index)`` after ``delay``."""

    def __init__(
        self,
        encoder: PromptEncoder,
        respond: Callable[[str, int], str | list[int]] = lambda session_id, index: FORWARD,
        delay: Callable[[str], float] = lambda session_id: 0.0,
    ):
        self.encoder = encoder
        self.respond = respond
        self.delay = delay
        self.retries = 0
        self.num_asked: Counter[str] = Counter()
        self.requests: list[tuple[list[int], Sampling]] = []

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, session_id: str, deadline_s: float
    ) -> Completion:
        index = self.num_asked[session_id]
        self.num_asked[session_id] += 1
        self.requests.append((prompt_ids, sampling))
        await asyncio.wait_for(asyncio.sleep(self.delay(session_id)), deadline_s)
        response = self.respond(session_id, index)
        if isinstance(response, str):
            response = self.encoder.tokenizer.encode(response, add_special_tokens=False)
        return Completion(
            token_ids=response,
            logprobs=[-0.25 * (position + 1) for position in range(len(response))],
            finish_reason="stop",
            version_spans=(VersionSpan(0, len(response), 7),),
            num_cached_tokens=3,
        )


SAMPLING = Sampling(temperature=1.0, max_tokens=64, stop=("</action>",), seed=None)
WINDOWS = PromptSettings(
    form="window", history_length=2, max_prompt_length=400, old_observation_length=8, kept_history_share=0.5
)
SETTINGS = EpisodeSettings(
    max_steps=5,
    prompts=WINDOWS,
    max_hinted_prompt_length=512,
    request_timeout_s=60.0,
    sampling=SAMPLING,
    seeded_requests=False,
)


def rollout_request(
    task_id: str = "corridor 2", rollout_index: int = 0, evaluation: bool = False
) -> RolloutRequest:
    return RolloutRequest(Task(task_id, "corridor"), "g000000", rollout_index, seed=11, evaluation=evaluation)


async def episode(
    client: ScriptedClient,
    request: RolloutRequest,
    settings: EpisodeSettings,
    counters: Counter[str],
    env_threads: Executor,
) -> Trajectory:
    env = EnvCalls(Corridor(), request.task, env_threads, timeout_s=60.0, counters=counters)
    return await run_episode(request, env, CorridorProvider(), client.encoder, client, settings, counters)
