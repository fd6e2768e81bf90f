"""Agents of frameworks from PyPI, as their documentation shows them."""

from __future__ import annotations

import os
from typing import Any


def tasks(split: str) -> list[dict[str, Any]]:
    return [{"id": f"{split} sum", "question": "How much is 2 + 3?", "answer": "5"}]


def of_smolagents(task: dict[str, Any], **options: Any) -> float:
    from smolagents import CodeAgent, OpenAIServerModel  # pyright: ignore[reportMissingImports]

    model = OpenAIServerModel(
        "policy", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"]
    )
    said = CodeAgent(tools=[], model=model, max_steps=3, **options).run(task["question"])
    return float(str(said) == task["answer"])


async def of_openai_agents(task: dict[str, Any]) -> float:
    from agents import (  # pyright: ignore[reportMissingImports]
        Agent,
        OpenAIChatCompletionsModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    @function_tool
    def add(a: int, b: int) -> int:
        """The sum of a and b."""
        return a + b

    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel(model="policy", openai_client=AsyncOpenAI())
    agent = Agent(name="adder", instructions="Add.", tools=[add], model=model)
    result = await Runner.run(agent, task["question"])
    return float(result.final_output == task["answer"])
