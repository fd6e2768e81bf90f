"""An agent of one's own, whole: a loop around OpenAI's client that plays ALFWorld."""

import re
from typing import Any

from openai import OpenAI, RateLimitError

from envs.alfworld.provider import make_provider
from envs.base import PromptParts, Turn

CLIENT = OpenAI(api_key="the one of the episode")
GAMES: Any = make_provider({"data": "embedded", "max_receptacles": 6})
# What all games share is read here, once, and not by each of the processes that are forked for episodes.
GAMES.make_env().reset(options={"task_id": GAMES.task_set("train").tasks[0].task_id})


def tasks(split):
    return [{"id": task.task_id, "type": task.task_type} for task in GAMES.task_set(split).tasks]


def play(task, seed, base_url, api_key):
    client, env = CLIENT.with_options(base_url=base_url, api_key=api_key), GAMES.make_env()
    seen, info = env.reset(seed=seed, options={"task_id": task["id"]})
    past, turns, ended = [], [], False
    while not ended:
        parts = PromptParts(
            info["task_description"], tuple(past[-2:]), len(past), seen, tuple(info["admissible_actions"])
        )
        try:
            answer = client.chat.completions.create(model="policy", messages=GAMES.messages(parts))
        except RateLimitError:  # env.max_steps
            break
        text = answer.choices[0].message.content or ""
        found = re.search(r"<action>(.*?)(</action>|$)", text, re.DOTALL)
        action = found[1].strip() if found else text.strip()[-100:]
        past.append(Turn(seen, action))
        seen, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        said = {"feedback": info["feedback"], "action_valid": bool(found and info["action_valid"])}
        turns.append({"id": answer.id, "reward": reward, "observation": past[-1].observation, **said})
    return {"success": info["success"], "turns": turns}
