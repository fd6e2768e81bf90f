"""The agent that plays in the place of an environment, and the gateway that it asks."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path

from envs.agent.provider import AgentProvider
from serl.config import ExperimentConfig
from serl.gateway.conversation import Conversations
from serl.gateway.protocol import ApiError
from serl.rollout.prompt import ChatTemplateMissingError, PromptEncoder
from serl.run.preflight.finding import Finding

_QUESTION, _THOUGHT, _ANSWER = "How much is 2 + 2?", "<think>Easy.</think>", "4"


def examine_agent(provider: AgentProvider, model_folder: Path) -> Iterator[Finding]:
    """Whether its code can be imported, and how a conversation goes on with the policy in a folder."""
    try:
        provider.load()
    except ValueError as error:
        yield Finding("wrong", "agent", str(error))
    try:
        encoder = PromptEncoder.load(str(model_folder))
        kinds = {said: _kind_of_second_prompt(encoder, said) for said in (_ANSWER, _THOUGHT + _ANSWER)}
    except (ChatTemplateMissingError, ApiError, OSError) as error:
        yield Finding("wrong", "model", f"{model_folder}: {error}")
        return
    if kinds[_ANSWER] == "continuation" and kinds[_THOUGHT + _ANSWER] == "continuation":
        yield Finding("ok", "agent", "conversations continue the sampled tokens")
        return
    what = "a thought" if kinds[_ANSWER] == "continuation" else "an answer"
    text = (
        f"the chat template in {model_folder} writes {what} otherwise once it is history: what follows in a "
        "conversation is a branch, tokenised anew and counted in runners/agent_template_branches"
    )
    yield Finding("ok", "agent", text)


def _kind_of_second_prompt(encoder: PromptEncoder, said: str) -> str:
    """Of a user who asks twice, with what was ``said`` in between."""
    conversations = Conversations(encoder)
    question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": said}
    first = conversations.chat_prompt([question], ())
    conversations.add_chat(0, first, encoder.ids(f"{said}{encoder.tokenizer.eos_token or ''}"), answer)
    return conversations.chat_prompt([question, answer, question], ()).kind


def examine_gateway(experiment: ExperimentConfig, address: str | None) -> Iterator[Finding]:
    """The parser of calls, which vLLM must know, and the port, which must be free on this machine."""
    serving = experiment.serving
    if serving.tool_parser is not None and importlib.util.find_spec("vllm") is not None:
        from vllm.tool_parsers import ToolParserManager

        known = {*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers}
        if serving.tool_parser not in known:
            text = f"serving.tool_parser = {serving.tool_parser!r}: vLLM has {', '.join(sorted(known))}"
            yield Finding("wrong", "gateway", text)
    if not serving.gateway or address is not None:
        return
    where = f"serving.gateway_host = {serving.gateway_host}, serving.gateway_port = {serving.gateway_port}"
    try:
        family = socket.AF_INET6 if ":" in serving.gateway_host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((serving.gateway_host, serving.gateway_port))
    except OSError as error:
        yield Finding("missing", "gateway", f"{where}: {error.strerror}")
    else:
        yield Finding("ok", "gateway", where)
