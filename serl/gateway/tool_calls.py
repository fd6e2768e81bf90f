"""Calls of tools in what a policy said, found by vLLM's parsers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundCall:
    """``arguments`` is JSON as the policy wrote it, or as the parser put it together."""

    call_id: str
    name: str
    arguments: str


class UnknownToolParser(ValueError):
    """vLLM has no parser of that name."""


class ToolCallParser:
    """The parser ``name`` of vLLM, whose import takes seconds. Raises UnknownToolParser."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        from vllm.tool_parsers import ToolParserManager

        try:
            self._parser_class = ToolParserManager.get_tool_parser(name)
        except KeyError as error:
            raise UnknownToolParser(f"vLLM has no tool parser {name!r}") from error
        self._tokenizer = tokenizer

    def parse(self, said: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[FoundCall]]:
        """What is left of ``said`` beside calls of ``tools``, and the calls; all of it if there are none."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest.model_validate(
            {"model": "", "messages": [{"role": "user", "content": ""}], "tools": list(tools)}
        )
        try:
            parser = self._parser_class(self._tokenizer, list(request.tools or ()))
            found = parser.extract_tool_calls(said, request)
        except Exception:  # whatever a policy says, a parser meets for the first time
            logger.exception("the tool parser failed on %r", said)
            return said, []
        if not found.tools_called:
            return said, []
        calls = [FoundCall(call.id, call.function.name, call.function.arguments) for call in found.tool_calls]
        return found.content or "", calls
