"""The agents of `framework_agents` by turns. Both frameworks are imported once, before agents are forked."""

from __future__ import annotations

from typing import Any

import agents  # noqa: F401  # pyright: ignore[reportMissingImports]
from framework_agents import of_openai_agents, of_smolagents
from smolagents.agents import EMPTY_PROMPT_TEMPLATES  # pyright: ignore[reportMissingImports]

# That of smolagents itself has 2,700 tokens, too many to train in a test.
_INSTRUCTIONS = (
    "Answer with Python between <code> and </code>. It gives the answer by calling final_answer(answer)."
)


def tasks(split: str) -> list[dict[str, Any]]:
    """A task for an agent of each framework."""
    question, answer = ("How much is 2 + 3?", "5") if split == "train" else ("How much is 3 + 4?", "7")
    return [
        {"id": f"{split} {name}", "type": name, "question": question, "answer": answer}
        for name in ("openai-agents", "smolagents")
    ]


def play(task: dict[str, Any]) -> Any:
    if task["type"] == "openai-agents":
        return of_openai_agents(task)
    return of_smolagents(task, prompt_templates=EMPTY_PROMPT_TEMPLATES | {"system_prompt": _INSTRUCTIONS})
