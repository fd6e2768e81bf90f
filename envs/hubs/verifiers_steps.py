"""An environment of verifiers, which runs its own loop, as one that waits for each action."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion

from envs.base import StepAnswer, TextEnv


class StepByStep(TextEnv):
    """``start`` plays a task by asking a client like OpenAI's, and returns a report of the episode.

    An observation is the newest of the messages that the client is asked with, an action what it answers.
    """

    blocking = True

    def __init__(self, start: Callable[[str, Any], Coroutine[Any, Any, dict[str, Any]]]) -> None:
        self._start = start
        self._loop = asyncio.new_event_loop()
        self._episode: asyncio.Task[dict[str, Any]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self._end()
        self._episode = self._loop.create_task(self._start((options or {})["task_id"], _Client(self)))
        self._description = ""
        self._run()
        if self._episode.done():
            raise RuntimeError(f"it ended before it asked: {self._episode.result()}")
        self._description = self._seen
        return self._seen, self._info({}, None)

    def step(self, action: str) -> StepAnswer:
        if self._episode is None or self._episode.done():
            raise RuntimeError("step needs a reset first")
        self._answer.set_result(action)
        self._run()
        if not self._episode.done():
            return self._seen, 0.0, False, False, self._info({}, self._seen)
        report = self._episode.result()
        last = report["turns"][-1]["feedback"] if report["turns"] else None
        return last or "", float(report["reward"]), True, False, self._info(report, last)

    def close(self) -> None:
        self._end()
        self._loop.close()

    async def asked(self, text: str) -> str:
        """What the next action answers to ``text``."""
        self._seen, self._answer = text, self._loop.create_future()
        self._has_asked.set()
        return await self._answer

    def _run(self) -> None:
        """Until the environment asks, or the episode has ended."""
        assert self._episode is not None
        self._has_asked = asyncio.Event()

        async def wait(episode: asyncio.Task[Any]) -> None:
            asking = asyncio.create_task(self._has_asked.wait())
            await asyncio.wait({episode, asking}, return_when=asyncio.FIRST_COMPLETED)
            asking.cancel()

        self._loop.run_until_complete(wait(self._episode))

    def _end(self) -> None:
        if self._episode is not None and not self._episode.done():
            self._episode.cancel()
            self._loop.run_until_complete(asyncio.wait({self._episode}))

    def _info(self, report: dict[str, Any], feedback: str | None) -> dict[str, Any]:
        return {
            "admissible_actions": [],
            "task_description": self._description,
            "task_type": "",
            "success": bool(report.get("success", False)),
            "action_valid": True,
            "feedback": feedback,
            "metrics": report.get("metrics", {}),
        }


class _Client:
    """So much of OpenAI's client as verifiers uses."""

    def __init__(self, env: StepByStep) -> None:
        self._env = env
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.answer_chat))
        self.completions = SimpleNamespace(create=self.answer_text)

    async def answer_chat(self, *, messages: list[dict[str, Any]], **options: Any) -> ChatCompletion:
        text = await self._env.asked(newest(messages))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return ChatCompletion.model_validate(_head("chat.completion") | {"choices": [choice]})

    async def answer_text(self, *, prompt: str, **options: Any) -> Completion:
        choice = {"index": 0, "finish_reason": "stop", "text": await self._env.asked(prompt)}
        return Completion.model_validate(_head("text_completion") | {"choices": [choice]})


def newest(messages: list[dict[str, Any]]) -> str:
    """What was said after the policy's last answer; all of it before the first."""
    answered = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return "\n".join(str(message["content"]) for message in messages[answered[-1] + 1 if answered else 0 :])


def _head(kind: str) -> dict[str, Any]:
    return {"id": "step", "object": kind, "created": int(time.time()), "model": "policy"}
