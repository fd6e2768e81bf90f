"""Agents, well behaved and not, and graders of them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from typing import Any

from openai import OpenAI


def tasks(split: str) -> list[dict[str, Any]]:
    return [{"id": f"{split} {kind}", "type": "toy", "kind": kind} for kind in KINDS]


def ask(text: str = "Go") -> Any:
    return OpenAI().chat.completions.create(model="policy", messages=[{"role": "user", "content": text}])


def play(task: dict[str, Any], api_key: str) -> Any:
    """Does what ``kind`` says."""
    assert os.environ["OPENAI_API_KEY"] == api_key
    print("nobody should see this")
    return KINDS[task["kind"]]()


def _rewarded() -> Any:
    first = ask()
    second = OpenAI().chat.completions.create(
        model="policy",
        messages=[
            {"role": "user", "content": "Go"},
            {"role": "assistant", "content": first.choices[0].message.content or ""},
            {"role": "user", "content": "On"},
        ],
    )
    turn = {"id": second.id, "reward": 2.0, "feedback": "good", "action": "wave"}
    return {"turns": [turn], "metrics": {"luck": random.random()}}


def _until_the_limit() -> Any:
    while True:
        ask()


def _leaky() -> Any:
    ask()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    return 1.0


def _with_zombie() -> Any:
    ask()
    subprocess.Popen(["true"])
    return 1.0


async def _coroutine() -> Any:
    ask()
    return True


def _returning(value: Any) -> Any:
    ask()
    return value


def _raising() -> Any:
    ask()
    print("its last words")
    raise ValueError("no idea")


KINDS: dict[str, Any] = {
    "rewarded": _rewarded,
    "until the limit": _until_the_limit,
    "leaky": _leaky,
    "with zombie": _with_zombie,
    "coroutine": _coroutine,
    "raising": _raising,
    "exiting": lambda: os._exit(3),
    "hanging": lambda: time.sleep(600),
    "silent": lambda: 1.0,
    "of few words": lambda: _returning(None),
    "of strange words": lambda: _returning("fine"),
    "of another turn": lambda: _returning({"turns": [{"id": "other"}]}),
}


def grade(task: dict[str, Any], returned: Any, answers: list[str]) -> Any:
    """The number of answers; those of one kind cannot be graded."""
    if task["kind"] == "of strange words":
        raise LookupError("words")
    return {"reward": float(len(answers)), "success": False, "metrics": {"graded": 1.0}}
