"""`PolicyGateway`: requests of agents to the policy, and what was answered to each episode."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from serl.gateway.answers import Answer, Choice
from serl.gateway.conversation import ConversationPrompt
from serl.gateway.episodes import Episode, Episodes
from serl.gateway.messages import last_words, plain_message, template_message
from serl.gateway.protocol import (
    ApiError,
    ChatCompletionRequest,
    CompletionRequest,
    Message,
    Request,
    read_request,
)
from serl.gateway.tool_calls import ToolCallParser
from serl.rollout.episode import Policy, sampling_seed
from serl.rollout.gateway import EpisodeRecord, EpisodeTerms, GatewayAnswer
from serl.rollout.prompt import PromptEncoder
from serl.types import Completion, RequestRefused

_COUNTED_KINDS = {"branch": "agent_branches", "template_branch": "agent_template_branches"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that is to be answered: what its answers have in common."""

    episode: Episode
    request: Request
    prompt: ConversationPrompt
    observation: str
    tools: Sequence[dict[str, Any]]


class PolicyGateway:
    """Answers from one asyncio loop. ``tool_parser``: None refuses requests that offer tools."""

    def __init__(self, policy: Policy, encoder: PromptEncoder, tool_parser: ToolCallParser | None) -> None:
        self._policy = policy
        self._encoder = encoder
        self._tool_parser = tool_parser
        self._episodes = Episodes(encoder)

    def open_episode(self, terms: EpisodeTerms) -> str:
        """The key of a new episode."""
        return self._episodes.open(terms)

    def close_episode(self, key: str) -> EpisodeRecord:
        """Ends the episode. Raises KeyError for a key that is not open."""
        return self._episodes.close(key)

    def authorize(self, authorization: str | None) -> Episode:
        """The episode of a request with this header. Raises ApiError (401)."""
        return self._episodes.of(authorization)

    async def chat(self, episode: Episode, body: bytes) -> tuple[Answer, ChatCompletionRequest]:
        """``POST /chat/completions``. Raises ApiError."""
        with _counting_refusals(episode):
            request = _read(episode, ChatCompletionRequest, body)
            tools = request.offered_tools
            if tools and self._tool_parser is None:
                raise ApiError(
                    400, "tools: set serving.tool_parser to the parser of this model's calls", field="tools"
                )
            messages = [template_message(message) for message in request.messages]
            if not any(message["role"] == "user" for message in messages):
                raise ApiError(400, "messages: none is the user's", "invalid_value", "messages")
            prompt = episode.conversations.chat_prompt(messages, tools)
            asked = _Asked(episode, request, prompt, last_words(messages), tuple(tools))
            completions = await self._sample(asked, request.max_completion_tokens)
        answer = self._answer("chatcmpl", asked, completions, request.logprobs)
        for number, choice in enumerate(answer.choices):
            place = _keep(asked, answer.answer_id, number, choice.completion)
            answered = template_message(Message.model_validate(choice.message()))
            episode.conversations.add_chat(place, prompt, choice.completion.token_ids, answered)
        return answer, request

    async def complete(self, episode: Episode, body: bytes) -> tuple[Answer, CompletionRequest]:
        """``POST /completions``. Raises ApiError."""
        with _counting_refusals(episode):
            request = _read(episode, CompletionRequest, body)
            prompt = episode.conversations.text_prompt(request.prompt)
            asked = _Asked(episode, request, prompt, prompt.messages[-1]["content"], ())
            completions = await self._sample(asked, None)
        answer = self._answer("cmpl", asked, completions, request.logprobs is not None)
        for number, choice in enumerate(answer.choices):
            place = _keep(asked, answer.answer_id, number, choice.completion)
            episode.conversations.add_text(place, prompt, choice.completion.token_ids)
        return answer, request

    async def _sample(self, asked: _Asked, max_completion_tokens: int | None) -> list[Completion]:
        """As many responses as were asked for, within the limits of the episode."""
        episode, request, terms = asked.episode, asked.request, asked.episode.terms
        first = _admit(asked)
        limits = (terms.sampling.max_tokens, request.max_tokens, max_completion_tokens)
        sampling = replace(
            terms.sampling,
            max_tokens=min(limit for limit in limits if limit is not None),
            stop=tuple(dict.fromkeys((*terms.sampling.stop, *request.stops))),
        )
        calls = [
            self._policy.generate(
                asked.prompt.token_ids,
                sampling if terms.seed is None else replace(sampling, seed=sampling_seed(terms.seed, index)),
                terms.session_id,
                terms.request_timeout_s,
            )
            for index in range(first, first + request.n)
        ]
        episode.record.num_open += 1
        asked_at = time.perf_counter()
        try:
            return await asyncio.gather(*calls)
        except TimeoutError as error:
            episode.record.failure = "policy_unavailable", f"no answer of the policy in time: {error}"
            raise ApiError(503, str(error), "policy_unavailable") from error
        except RequestRefused as error:
            episode.record.failure = "request_refused", f"the policy refused a request: {error}"
            raise ApiError(400, str(error), "request_refused") from error
        finally:
            episode.record.num_open -= 1
            episode.record.generation_seconds += time.perf_counter() - asked_at

    def _answer(
        self, kind: str, asked: _Asked, completions: Sequence[Completion], with_logprobs: bool
    ) -> Answer:
        choices = [self._choice(asked, completion, with_logprobs) for completion in completions]
        num_prompt_tokens = len(asked.prompt.token_ids)
        return Answer(
            f"{kind}-{uuid.uuid4().hex}", asked.request.model, num_prompt_tokens, choices, with_logprobs
        )

    def _choice(self, asked: _Asked, completion: Completion, with_logprobs: bool) -> Choice:
        """The response as the agent sees it: without its calls, and up to a stop that the agent named."""
        token_ids, calls = completion.token_ids, []
        text = self._encoder.decode(token_ids)
        if asked.tools and self._tool_parser is not None:
            said, _ = self._encoder.said(token_ids)
            left, calls = self._tool_parser.parse(said, asked.tools)
            text = left if calls else text
        of_experiment = asked.episode.terms.sampling.stop
        ends = [text.find(stop) for stop in asked.request.stops if stop and stop not in of_experiment]
        text = text[: min((end for end in ends if end >= 0), default=len(text))]
        texts = [self._encoder.decode([token_id]) for token_id in token_ids] if with_logprobs else []
        return Choice(text, calls, completion, texts)


R = TypeVar("R", bound=Request)


def _read(episode: Episode, model: type[R], body: bytes) -> R:
    request, set_aside = read_request(model, body)
    episode.record.counters["agent_options_set_aside"] += bool(set_aside)
    return request


@contextmanager
def _counting_refusals(episode: Episode) -> Iterator[None]:
    try:
        yield
    except ApiError:
        episode.record.counters["agent_requests_refused"] += 1
        raise


def _admit(asked: _Asked) -> int:
    """The number of the first answer. Raises ApiError (429, 400) past a limit of the episode."""
    episode, terms = asked.episode, asked.episode.terms
    if episode.num_asked + asked.request.n > terms.max_answers:
        episode.record.limit = "max_steps"
        raise ApiError(
            429, f"an episode has at most {terms.max_answers} answers (env.max_steps)", "rate_limit_exceeded"
        )
    if len(asked.prompt.token_ids) > terms.max_prompt_length:
        episode.record.limit = "prompt_too_long"
        raise ApiError(
            400,
            f"the prompt has {len(asked.prompt.token_ids)} tokens; at most {terms.max_prompt_length} are "
            "answered (rollout.max_prompt_length)",
            "context_length_exceeded",
            "messages",
        )
    counted = _COUNTED_KINDS.get(asked.prompt.kind)
    if counted is not None:
        episode.record.counters[counted] += 1
    first = episode.num_asked
    episode.num_asked += asked.request.n
    return first


def _keep(asked: _Asked, answer_id: str, number: int, completion: Completion) -> int:
    """Adds choice ``number`` of a request to the episode's record; returns its index there."""
    answers = asked.episode.record.answers
    answers.append(
        GatewayAnswer(
            answer_id=f"{answer_id}/{number}" if number else answer_id,
            prompt_ids=asked.prompt.token_ids,
            completion=completion,
            messages=tuple(plain_message(message) for message in asked.prompt.messages),
            tools=tuple(asked.tools),
            observation=asked.observation,
            continues=asked.prompt.continues,
        )
    )
    return len(answers) - 1
