"""Environments as packages for verifiers bring them; skipped by tests where verifiers is not installed."""

from __future__ import annotations

import urllib.request
from typing import Any

import verifiers as vf  # pyright: ignore[reportMissingImports]
from datasets import Dataset, load_dataset  # pyright: ignore[reportMissingImports]


class Guessing(vf.MultiTurnEnv):
    """A number is to be guessed within three turns."""

    async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
        guess, wanted = messages[-1]["content"], state["answer"]
        said = "right" if guess == wanted else "higher" if guess < wanted else "lower"
        answer = [{"role": "user", "content": said}]
        if guess == wanted:
            state["final_env_response"] = answer
        return answer


def guessed(completion: Any, answer: str) -> float:
    return float(any(message["content"] == answer for message in completion))


def load_environment(num_tasks: int = 6, twice: bool = False, download: str = "") -> Any:
    """``twice``: two of the three tasks that are held out are trained on, too."""
    if download == "hub":
        load_dataset("openai/gsm8k", "main")
    if download == "web":
        urllib.request.urlopen("http://localhost:9/tasks.jsonl")
    rows = [{"question": f"Guess {index}.", "answer": str(index % 4)} for index in range(num_tasks)]
    held_out = Dataset.from_list([*rows[:2], {"question": "Guess.", "answer": "3"}]) if twice else None
    rubric = vf.Rubric(funcs=[guessed])
    return Guessing(dataset=Dataset.from_list(rows), eval_dataset=held_out, rubric=rubric, max_turns=3)
