"""What an agent asked, and what it says of it, as steps like those of the built-in episodes."""

from __future__ import annotations

from collections.abc import Sequence

from envs.agent.report import AgentReport, TurnReport
from serl.rollout.actions import ResponseAction, action_token_mask
from serl.rollout.env_calls import EpisodeFailure
from serl.rollout.gateway import GatewayAnswer
from serl.rollout.prompt import PromptEncoder
from serl.types import Step


def agent_steps(
    about: str, answers: Sequence[GatewayAnswer], report: AgentReport, encoder: PromptEncoder
) -> list[Step]:
    """A step for each of ``answers``; the last gets the reward of the episode, unless its turns earned it.

    Raises EpisodeFailure, about ``about``, for a report of a turn that there was not.
    """
    reports = {turn.id: turn for turn in report.turns}
    known = {answer.answer_id for answer in answers}
    if unknown := reports.keys() - known:
        raise EpisodeFailure(
            "agent_error", f"{about}: the agent reports a turn {min(unknown)!r} that is no answer to it"
        )
    seen = [_observation(answer, reports.get(answer.answer_id)) for answer in answers]
    steps = [
        _step(answer, reports.get(answer.answer_id), seen[index], _next(answers, seen, index), encoder)
        for index, answer in enumerate(answers)
    ]
    if steps and not any(turn.reward for turn in report.turns):
        steps[-1].reward = report.episode_reward
    return steps


def _observation(answer: GatewayAnswer, said: TurnReport | None) -> str:
    return answer.observation if said is None or said.observation is None else said.observation


def _next(answers: Sequence[GatewayAnswer], seen: Sequence[str], index: int) -> str | None:
    """What the request said that continues an answer, or else the next one; other choices are none."""
    of_request = answers[index].answer_id.partition("/")[0]
    later = range(index + 1, len(answers))
    continuing = [place for place in later if answers[place].continues == index]
    others = [place for place in later if answers[place].answer_id.partition("/")[0] != of_request]
    return next((seen[place] for place in [*continuing, *others]), None)


def _step(
    answer: GatewayAnswer,
    said: TurnReport | None,
    observation: str,
    next_observation: str | None,
    encoder: PromptEncoder,
) -> Step:
    """A response without tags is an action as a whole, unless the agent found it to be none."""
    completion = answer.completion
    text = encoder.decode(completion.token_ids)
    is_valid = said is None or said.action_valid
    mask = action_token_mask(completion.token_ids, encoder.tokenizer)
    stated = ResponseAction.of(text).stated
    if not any(mask) and is_valid:
        mask, stated = [True] * len(mask), text.strip()
    return Step(
        prompt_ids=answer.prompt_ids,
        response_ids=completion.token_ids,
        old_logprobs=completion.logprobs,
        action_mask=mask,
        version_spans=completion.version_spans,
        finish_reason=completion.finish_reason,
        messages=answer.messages,
        response_text=text,
        anchor=observation,
        action=stated if said is None or said.action is None else said.action,
        action_valid=is_valid,
        feedback=None if said is None else said.feedback,
        next_observation=next_observation,
        reward=0.0 if said is None else said.reward,
        num_cached_tokens=completion.num_cached_tokens,
        tools=answer.tools,
        continues=answer.continues,
    )
