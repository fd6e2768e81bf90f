"""What the gateway takes and answers: the part of OpenAI's API that makes sense for a policy in training.

Every field is answered, set aside and counted, without a meaning here, or refused by name. Sources: OpenAI's
API reference (chat completions, completions, models); vLLM's for fields of its own.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

# The learners score tokens at the temperature of the experiment, and groups need seeds that differ.
SET_ASIDE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
)
# They say nothing about the answer itself.
WITHOUT_MEANING = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
)


class ApiError(Exception):
    """A request is refused with ``status``; ``field`` is what it is about ("": none of its fields)."""

    def __init__(self, status: int, message: str, code: str = "", field: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.field = status, code, field

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.field or None,
                "code": self.code or None,
            }
        }


class _Part(BaseModel):
    """Fields that are null count as left out: clients send them back as they got them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


class TextPart(_Part):
    """A part of a message's content; others (images, sound) are refused."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class CalledFunction(_Part):
    """``arguments`` is JSON as a text."""

    name: str
    arguments: str


class ToolCall(_Part):
    """A call of a tool in a message of the assistant."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int = 0


class Message(_Part):
    """One message of a conversation; ``developer`` is OpenAI's newer word for ``system``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] = ""
    name: str = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str = ""
    annotations: list[Any] = []

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class Function(_Part):
    """A function that the policy may call; ``parameters`` is a JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False


class Tool(_Part):
    """What a request offers."""

    type: Literal["function"]
    function: Function


class StreamOptions(_Part):
    """``include_usage``: the counts of tokens come as a last chunk."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(_Part):
    """Only text: a grammar would change the distribution that tokens are sampled from."""

    type: Literal["text"]


class Request(_Part):
    """What both kinds of request have in common; ``model`` is not looked at, for there is one."""

    model: str = ""
    max_tokens: PositiveInt | None = None
    stop: str | list[str] = Field(default_factory=list)
    n: int = Field(default=1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatCompletionRequest(Request):
    """``POST /chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    top_logprobs: Literal[0] = 0
    tools: list[Tool] = []
    tool_choice: Literal["auto", "none"] = "auto"
    response_format: ResponseFormat = ResponseFormat(type="text")

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_unset=True) for tool in self.tools]


class CompletionRequest(Request):
    """``POST /completions``; ``prompt`` is one text, or the ids of its tokens."""

    prompt: str | list[int] = Field(min_length=1)
    logprobs: Literal[0, 1] | None = None
    echo: Literal[False] = False


R = TypeVar("R", bound=Request)


def read_request(model: type[R], body: bytes) -> tuple[R, list[str]]:
    """The request in ``body``, and the names of what it asked for that is set aside.

    Raises ApiError (400) for what is no JSON, and for a field that is unknown, missing or cannot be answered.
    """
    try:
        values = json.loads(body)
    except ValueError as error:
        raise ApiError(400, f"the request is no JSON: {error}", "invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError(400, "the request is no JSON object", "invalid_json")
    given = {name: value for name, value in values.items() if name not in WITHOUT_MEANING}
    set_aside = [name for name in SET_ASIDE if given.pop(name, None) is not None]
    if given.get("tool_choice") not in ("auto", "none", None):
        given["tool_choice"] = "auto"
        set_aside.append("tool_choice")
    try:
        return model.model_validate(given), set_aside
    except ValidationError as error:
        # Of a union every member has something to say; the one that got furthest was meant.
        found = max(error.errors(include_url=False), key=lambda found: len(found["loc"]))
    field = ".".join(str(part) for part in found["loc"] if part != "str" and "[" not in str(part))
    raise ApiError(400, f"{field}: {found['msg']}", "invalid_value", field)
