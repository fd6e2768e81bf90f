"""What environment and model make of each other: real prompts, and a response as the model would write it."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from envs.base import PromptParts, Task, text_messages, turn_messages
from serl.config import ExperimentConfig
from serl.rollout.actions import action_token_mask, parse_action
from serl.rollout.episode import environment_seed
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import PromptEncoder
from serl.rollout.told_prompt import with_context
from serl.run.preflight.conversations import Beginning, examine_conversations
from serl.run.preflight.data import Tasks
from serl.run.preflight.finding import Finding

T = TypeVar("T")
Messages = tuple[dict[str, str], ...]

_NUM_TASKS = 16
_SECONDS = 5.0
# Of a conversation, whose later turns may be longer than its first ones.
_NUM_TURNS = 8
_TURNS_SECONDS = 0.25
_EVIDENCE = "Hindsight: the attempt ended in success."


class _Unusable(Exception):
    """``subject``: whose fault it is; the text says what is wrong and what to do."""

    def __init__(self, subject: str, text: str) -> None:
        super().__init__(text)
        self.subject = subject


@dataclass(frozen=True, slots=True)
class _Opening:
    """What a task begins with, an action that its environment admits there, and the messages after it.

    Those of a conversation are what each of some turns adds.
    """

    messages: Messages
    action: str
    later: tuple[Messages, ...]


def examine_prompts(experiment: ExperimentConfig, tasks: Tasks, model_folder: Path) -> list[Finding]:
    """Plays a sample of tasks for a step or some, and renders their prompts for the policy in a folder.

    Environments, templates and tokenizers may raise anything, which is then what is found.
    """
    try:
        encoder = _tried(
            "model", f"the tokenizer in {model_folder}", lambda: PromptEncoder.load(str(model_folder))
        )
        openings, failures = _openings(experiment, tasks)
        if not openings:
            raise failures[0]
        _check_template(openings[0], encoder, model_folder)
        _check_response(experiment, openings[0].action, encoder, model_folder)
        lengths = _tried(
            "model",
            f"the tokenizer in {model_folder} cannot encode a prompt",
            lambda: [len(encoder.encode(opening.messages)) for opening in openings],
        )
        conversations = _conversations(experiment, openings, encoder, model_folder)
    except _Unusable as found:
        return [Finding("wrong", found.subject, str(found))]
    unplayable = f"{len(failures)} of {len(failures) + len(openings)} tasks cannot be played: "
    told = [Finding("ok", "environment", unplayable + str(failures[0]))] if failures else []
    return [*told, _judged(lengths, experiment.rollout.max_prompt_length), *conversations]


def _conversations(
    experiment: ExperimentConfig, openings: Sequence[_Opening], encoder: PromptEncoder, folder: Path
) -> list[Finding]:
    if experiment.rollout.prompt == "window":
        return []
    beginnings = [Beginning(opening.messages, opening.later) for opening in openings]
    what = f"the chat template in {folder} cannot render a conversation"
    return _tried("model", what, lambda: examine_conversations(experiment, beginnings, encoder, folder))


def _judged(lengths: Sequence[int], limit: int) -> Finding:
    of = f"the first prompts of {len(lengths)} tasks have {min(lengths)} to {max(lengths)} tokens"
    if min(lengths) > limit:
        text = f"rollout.max_prompt_length = {limit}: {of}; every episode would end before its first step"
        return Finding("wrong", "prompts", text)
    num_longer = sum(length > limit for length in lengths)
    told = f"; {num_longer} of these tasks would end before their first step" if num_longer else ""
    return Finding("ok", "prompts", f"{of}, of rollout.max_prompt_length = {limit}{told}")


def _openings(experiment: ExperimentConfig, tasks: Tasks) -> tuple[list[_Opening], list[_Unusable]]:
    """Of tasks from both sets, evenly spread, fewer where environments are slow; and what fails."""
    deadline = time.monotonic() + _SECONDS
    openings: list[_Opening] = []
    failures: list[_Unusable] = []
    for task in _spread(tasks.train.tasks) + _spread(tasks.held_out.tasks):
        if (openings or failures) and time.monotonic() > deadline:
            break
        what = f"{experiment.env.name}: task {task.task_id!r}"
        try:
            openings.append(
                _tried(
                    "environment",
                    what,
                    lambda task=task: _opening(experiment, tasks, task),
                    experiment.env.call_timeout_s,
                )
            )
        except _Unusable as failure:
            failures.append(failure)
    return openings, failures


def _spread(tasks: Sequence[Task]) -> list[Task]:
    wanted = min(len(tasks), _NUM_TASKS // 2)
    return [tasks[index * len(tasks) // wanted] for index in range(wanted)]


def _opening(experiment: ExperimentConfig, tasks: Tasks, task: Task) -> _Opening:
    env = tasks.provider.make_env()
    seed = environment_seed(task.task_id)
    draw = random.Random(task.task_id)
    is_conversation = experiment.rollout.prompt == "conversation"
    history_length = 0 if is_conversation else experiment.env.history_length

    def render(parts: PromptParts) -> Messages:
        return text_messages(
            turn_messages(tasks.provider, parts) if is_conversation else tasks.provider.messages(parts)
        )

    try:
        state = EpisodeState(*env.reset(seed=seed, options={"task_id": task.task_id}))
        first = action = next(iter(state.info["admissible_actions"]), "look")
        if not isinstance(first, str):
            raise TypeError(f"the admissible action {first!r:.60} is no text")
        messages = render(state.prompt_parts(history_length))
        deadline = time.monotonic() + _TURNS_SECONDS
        later: list[Messages] = []
        while not later or (is_conversation and len(later) < _NUM_TURNS and time.monotonic() < deadline):
            state.advance(action, env.step(action))
            later.append(render(state.prompt_parts(history_length)))
            if state.ended:
                break
            action = draw.choice(list(state.info["admissible_actions"]) or ["look"])
    finally:
        env.close()
    return _Opening(messages, first, tuple(later))


def _tried(subject: str, what: str, call: Callable[[], T], timeout_s: float | None = None) -> T:
    """The result of ``call``, whose exceptions become `_Unusable`, and so does that it takes too long."""
    results: queue.SimpleQueue[T | Exception | SystemExit] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(call())
        except (Exception, SystemExit) as error:
            results.put(error)

    if timeout_s is None:
        run()
    else:
        threading.Thread(target=run, name="preflight", daemon=True).start()
    try:
        result = results.get(timeout=timeout_s)
    except queue.Empty:
        raise _Unusable(subject, f"{what}: no answer within env.call_timeout_s = {timeout_s:g}") from None
    if isinstance(result, Exception | SystemExit):
        raise _Unusable(subject, f"{what}: {type(result).__name__}: {result}") from result
    return result


def _check_template(opening: _Opening, encoder: PromptEncoder, folder: Path) -> None:
    """With and without evidence, and nothing of a message may be left out."""
    told = _tried("environment", "its prompt", lambda: tuple(with_context(opening.messages, _EVIDENCE)))
    for messages in (opening.messages, told):
        roles = " and ".join(dict.fromkeys(message["role"] for message in messages))
        text = _tried(
            "model",
            f"the chat template in {folder} cannot render messages with the roles {roles}",
            lambda messages=messages: encoder.render(messages),
        )
        for message in messages:
            if message["content"].strip() not in text:
                raise _Unusable(
                    "model",
                    f"the chat template in {folder} leaves out what the {message['role']} message says; give "
                    "the folder a chat_template.jinja that renders it",
                )


def _check_response(experiment: ExperimentConfig, action: str, encoder: PromptEncoder, folder: Path) -> None:
    """What a response says must be left when its tokens are read."""
    response = f"<think>I should act.</think><action>{action}</action>"
    ids = encoder.tokenizer.encode(response, add_special_tokens=False)
    text = encoder.decode(ids)
    of = f"the tokenizer in {folder}"
    needed = ["<action>", *experiment.rollout.stop]
    if experiment.hindsight.enabled and experiment.hindsight.remove_thinking:
        needed += ["<think>", "</think>"]
    if lost := [tag for tag in dict.fromkeys(needed) if tag in response and tag not in text]:
        raise _Unusable(
            "model",
            f"{of} loses {', '.join(lost)} in a response, as it does with special tokens: no action would be "
            f'found; declare them as "special": false in its tokenizer.json and tokenizer_config.json',
        )
    if parse_action(text) != action.strip() or not any(action_token_mask(ids, encoder.tokenizer)):
        raise _Unusable(
            "model", f"{of} makes {text!r} of the response {response!r}: its action would not be found"
        )
