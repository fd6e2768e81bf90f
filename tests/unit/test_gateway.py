"""The gateway behind OpenAI's own client, with a policy that says what the test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from gateway_helpers import (
    CHAT,
    END,
    THINKING_LEFT_OUT,
    TOOL,
    assistant,
    chat_tokenizer,
    chats,
    played,
    say,
    saying,
    terms,
    user,
)
from openai import AsyncOpenAI
from rollout_helpers import ScriptedClient

from envs.agent.report import read_report
from serl.batch.group import add_evidence, finish
from serl.config import ExperimentConfig, HindsightSection, ModelSection
from serl.gateway.conversation import Conversations
from serl.gateway.tool_calls import FoundCall, ToolCallParser
from serl.rollout.agent_steps import agent_steps
from serl.rollout.episode import sampling_seed
from serl.rollout.prompt import PromptEncoder
from serl.types import Task, Trajectory, TrajectoryGroup

__all__ = ["chats"]


def test_a_prompt_is_what_the_template_makes_of_the_messages_and_an_answer_keeps_what_was_sampled(
    chats: PromptEncoder,
):
    async def agent(client: AsyncOpenAI) -> None:
        answer = await say(client, {"role": "system", "content": "Be brief."}, user("Hi"))
        assert answer.choices[0].message.content == "Hello"
        assert answer.choices[0].finish_reason == "stop"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (18, 6)
        assert answer.usage.prompt_tokens_details.cached_tokens == 3

    record = played(agent, saying(chats, "Hello" + END))
    (answer,) = record.answers
    assert answer.prompt_ids == chats.ids(f"<|system|>Be brief.{END}\n<|user|>Hi{END}\n<|assistant|>")
    assert answer.completion.token_ids == chats.ids("Hello" + END)
    assert answer.completion.logprobs == [-0.25, -0.5, -0.75, -1.0, -1.25, -1.5]
    assert answer.completion.version_spans[0].weights_seq_no == 7
    assert (answer.observation, answer.continues) == ("Hi", None)
    assert answer.messages == ({"role": "system", "content": "Be brief."}, user("Hi"))
    assert not record.counters


def test_a_conversation_goes_on_with_the_sampled_ids_whatever_their_text_would_be_tokenised_to():
    """The tokenizer has one id for "ab" and the policy samples two."""
    encoder = PromptEncoder(chat_tokenizer())
    encoder.tokenizer.add_tokens(["ab"])
    sampled = [*encoder.ids("a"), *encoder.ids("b"), *encoder.ids(END)]
    assert encoder.ids("ab" + END) != sampled

    async def agent(client: AsyncOpenAI) -> None:
        first = await say(client, user("Go"))
        assert first.choices[0].message.content == "ab"
        await say(client, user("Go"), first.choices[0].message, user("On"))

    record = played(agent, ScriptedClient(encoder, lambda session_id, index: sampled))
    first, second = record.answers
    expected = first.prompt_ids + sampled + encoder.ids(f"\n<|user|>On{END}\n<|assistant|>")
    assert second.prompt_ids == expected
    assert (second.continues, second.observation) == (0, "On")
    assert not record.counters


def test_a_response_that_was_cut_off_gets_the_end_of_its_turn_from_the_template(chats: PromptEncoder):
    async def agent(client: AsyncOpenAI) -> None:
        await say(client, user("Go"))
        await say(client, user("Go"), assistant("Well"), user("On"))

    record = played(agent, saying(chats, "Well"))
    tail = f"{END}\n<|user|>On{END}\n<|assistant|>"
    assert record.answers[1].prompt_ids == record.answers[0].prompt_ids + chats.ids("Well" + tail)


@pytest.mark.parametrize("kept", ["Well", " Well", " Well \n"])
def test_white_space_that_an_agent_trims_is_no_change_of_history(chats: PromptEncoder, kept: str):
    async def agent(client: AsyncOpenAI) -> None:
        await say(client, user("Go"))
        await say(client, user("Go"), assistant(kept), user("On"))

    record = played(agent, saying(chats, " Well \n" + END))
    assert record.answers[1].continues == 0
    first = record.answers[0]
    sampled = first.prompt_ids + first.completion.token_ids
    assert record.answers[1].prompt_ids[: len(sampled)] == sampled


def test_an_agent_that_changes_history_begins_a_branch_which_is_counted(chats: PromptEncoder):
    async def agent(client: AsyncOpenAI) -> None:
        await say(client, user("Go"))
        await say(client, user("Summary: it went."), user("On"))
        await say(client, user("Go"), assistant("Poorly"), user("On"))

    record = played(agent, saying(chats, "Well" + END))
    assert [answer.continues for answer in record.answers] == [None, None, None]
    rendered = f"<|user|>Go{END}\n<|assistant|>Poorly{END}\n<|user|>On{END}\n<|assistant|>"
    assert record.answers[2].prompt_ids == chats.ids(rendered)
    assert record.counters == {"agent_branches": 2}


def test_two_ways_to_go_on_share_the_sampled_ids_and_the_second_is_a_branch(chats: PromptEncoder):
    async def agent(client: AsyncOpenAI) -> None:
        await say(client, user("Go"))
        await asyncio.gather(
            *(say(client, user("Go"), assistant("Well"), user(word)) for word in ("left", "right"))
        )

    record = played(agent, saying(chats, "Well" + END))
    assert [answer.continues for answer in record.answers] == [None, 0, 0]
    first = record.answers[0].prompt_ids + record.answers[0].completion.token_ids
    assert all(answer.prompt_ids[: len(first)] == first for answer in record.answers[1:])
    assert record.counters == {"agent_branches": 1}


def test_a_template_that_leaves_thinking_out_of_history_begins_a_branch_of_its_own_kind():
    encoder = PromptEncoder(chat_tokenizer(THINKING_LEFT_OUT))
    thought = "<think>hm</think>Well"

    async def agent(client: AsyncOpenAI) -> None:
        await say(client, user("Go"))
        await say(client, user("Go"), assistant(thought), user("On"))

    record = played(agent, saying(encoder, thought + END))
    rendered = f"<|user|>Go{END}\n<|assistant|>Well{END}\n<|user|>On{END}\n<|assistant|>"
    assert record.answers[1].prompt_ids == encoder.ids(rendered)
    assert record.answers[1].continues is None
    assert record.counters == {"agent_template_branches": 1}


def test_a_template_that_does_not_take_an_answer_as_it_was_sampled_says_why(
    caplog: pytest.LogCaptureFixture,
):
    choosy = CHAT.replace("{{ m.content }}", "{{ 1 / 0 if 'raw' in m.content else m.content }}")
    encoder = PromptEncoder(chat_tokenizer(choosy))
    conversations = Conversations(encoder)
    first = conversations.chat_prompt([user("Go")], ())
    conversations.add_chat(0, first, encoder.ids("raw" + END), assistant("parsed"))
    prompt = conversations.chat_prompt([user("Go"), assistant("parsed"), user("On")], ())
    assert (prompt.kind, prompt.continues) == ("template_branch", None)
    assert "ZeroDivisionError" in caplog.text


def test_several_choices_are_sampled_under_seeds_of_their_own_and_each_can_be_continued(
    chats: PromptEncoder,
):
    policy = saying(chats, "one" + END, "two" + END, "three" + END)

    async def agent(client: AsyncOpenAI) -> None:
        answer = await say(client, user("Go"), n=2)
        assert [choice.message.content for choice in answer.choices] == ["one", "two"]
        await say(client, user("Go"), assistant("two"), user("On"))

    record = played(agent, policy, terms(seed=5))
    assert [answer.continues for answer in record.answers] == [None, None, 1]
    ids = [answer.answer_id for answer in record.answers]
    assert ids[1] == f"{ids[0]}/1"
    assert [sampling.seed for _, sampling in policy.requests] == [sampling_seed(5, i) for i in range(3)]


def test_the_experiment_decides_how_is_sampled_and_what_an_agent_asks_for_beside_it_is_counted(
    chats: PromptEncoder,
):
    policy = saying(chats, "a STOP b" + END)

    async def agent(client: AsyncOpenAI) -> None:
        answer = await say(
            client, user("Go"), temperature=0.1, seed=3, max_tokens=9, stop=["STOP"], user="me", logprobs=True
        )
        assert answer.choices[0].message.content == "a "
        assert [entry.token for entry in answer.choices[0].logprobs.content][:3] == ["a", " ", "S"]
        assert answer.choices[0].logprobs.content[1].logprob == -0.5

    record = played(agent, policy)
    ((_, sampling),) = policy.requests
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (1.0, None, 9)
    assert sampling.stop == ("</action>", "STOP")
    assert record.counters == {"agent_options_set_aside": 1}


def test_the_experiments_own_stops_stay_in_the_text(chats: PromptEncoder):
    async def agent(client: AsyncOpenAI) -> None:
        answer = await say(client, user("Go"), stop="</action>")
        assert answer.choices[0].message.content == "<action>x</action>"

    played(agent, saying(chats, "<action>x</action>"))


def test_a_stream_says_the_same_as_a_whole_answer(chats: PromptEncoder):
    async def agent(client: AsyncOpenAI) -> None:
        stream = await say(client, user("Go"), stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == "Well"
        assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, None, "stop"]
        assert chunks[-1].usage.completion_tokens == 5
        await say(client, user("Go"), assistant(said), user("On"))

    assert played(agent, saying(chats, "Well" + END)).answers[1].continues == 0


def test_completions_take_a_text_or_ids_and_go_on_with_sampled_ids(chats: PromptEncoder):
    async def agent(client: AsyncOpenAI) -> None:
        create: Any = client.completions.create
        first = await create(model="policy", prompt="Once", logprobs=1)
        assert first.choices[0].text == " upon"
        assert first.choices[0].logprobs.token_logprobs[:2] == [-0.25, -0.5]
        await create(model="policy", prompt="Once upon a time")
        stream = await create(model="policy", prompt=chats.ids("Twice"), stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == " upon"

    record = played(agent, saying(chats, " upon"))
    assert [answer.continues for answer in record.answers] == [None, 0, None]
    assert record.answers[1].prompt_ids == chats.ids("Once") + chats.ids(" upon") + chats.ids(" a time")
    assert record.answers[2].prompt_ids == chats.ids("Twice")


class OneCall(ToolCallParser):
    """Finds ``CALL name`` at the end of what was said."""

    def __init__(self) -> None:
        pass

    def parse(self, said: str, tools: Sequence[Any]) -> tuple[str, list[FoundCall]]:
        text, found, name = said.partition("CALL ")
        return (text, [FoundCall("call_1", name, '{"x": 1}')]) if found else (said, [])


def test_calls_of_tools_are_found_and_their_results_continue_the_sampled_ids(chats: PromptEncoder):
    async def agent(client: AsyncOpenAI) -> None:
        first = await say(client, user("Go"), tools=[TOOL], tool_choice="required")
        message = first.choices[0].message
        assert first.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls[0].function.arguments == '{"x": 1}'
        result = {"role": "tool", "tool_call_id": "call_1", "content": "a lamp"}
        await say(client, user("Go"), message, result, tools=[TOOL])

    record = played(agent, saying(chats, "CALL look" + END), tool_parser=OneCall())
    first, second = record.answers
    assert first.prompt_ids == chats.ids(f"[look]<|user|>Go{END}\n<|assistant|>")
    new = chats.ids(f"\n<|tool|>a lamp{END}\n<|assistant|>")
    assert second.prompt_ids == first.prompt_ids + first.completion.token_ids + new
    assert (second.observation, first.tools) == ("a lamp", (TOOL,))
    assert second.messages[1] == assistant("CALL look")
    assert record.counters == {"agent_options_set_aside": 1}


def test_hindsight_reads_what_an_agent_reports_and_its_teacher_is_offered_the_same_tools(
    chats: PromptEncoder,
):
    async def agent(client: AsyncOpenAI) -> None:
        await say(client, user("Go"), tools=[TOOL])

    task = Task("t")
    trajectories: list[Trajectory] = []
    for index, reward in enumerate((0.0, 1.0)):
        record = played(agent, saying(chats, "Well" + END), tool_parser=OneCall())
        turn = {"id": record.answers[0].answer_id, "feedback": "too warm", "reward": reward}
        report = read_report({"turns": [turn]})
        steps = agent_steps("t", record.answers, report, chats)
        trajectories.append(Trajectory(f"g-{index}", "g", index, task, steps, reward, reward > 0, "success"))
    seen = chats.tokenizer.decode(_teacher_prompts(trajectories, chats)[0])
    assert seen.startswith("[look]<|user|>Go\n\nHindsight: ")
    assert "too warm" in seen


def test_the_teacher_of_a_turn_reads_what_was_sampled_before_it_by_its_ids():
    encoder = PromptEncoder(chat_tokenizer())
    encoder.tokenizer.add_tokens(["ab"])
    sampled = [*encoder.ids("a"), *encoder.ids("b"), *encoder.ids(END)]

    async def agent(client: AsyncOpenAI) -> None:
        first = await say(client, user("Go"))
        await say(client, user("Go"), first.choices[0].message, user("On"))

    trajectories: list[Trajectory] = []
    for index, reward in enumerate((0.0, 1.0)):
        record = played(agent, ScriptedClient(encoder, lambda session_id, index: sampled))
        turns = [{"id": answer.answer_id, "feedback": "too warm"} for answer in record.answers]
        report = read_report({"reward": reward, "turns": turns})
        steps = agent_steps("t", record.answers, report, encoder)
        for step in steps:
            step.action_mask = [True] * len(step.response_ids)
        trajectories.append(Trajectory(f"g-{index}", "g", index, Task("t"), steps, reward, reward > 0, ""))
    first, second = trajectories[0].steps
    told = _teacher_prompts(trajectories, encoder)[1]
    known = first.prompt_ids + sampled
    assert second.continues == 0 and told[: len(known)] == known
    assert encoder.tokenizer.decode(told[len(known) :]).startswith("\n<|user|>On\n\nHindsight: ")


def _teacher_prompts(trajectories: list[Trajectory], encoder: PromptEncoder) -> list[list[int]]:
    """Of a group of these, with the environment's feedback as evidence."""
    hindsight = HindsightSection.model_validate({"mode": "immediate_feedback"})
    experiment = ExperimentConfig(name="e", model=ModelSection(path="p"), hindsight=hindsight)
    finished = finish(TrajectoryGroup("g", trajectories[0].task, trajectories), experiment)
    prompts = add_evidence(finished, experiment, encoder, {}).rows.teacher_prompt_ids
    assert prompts is not None
    return [prompts[row].tolist() for row in range(len(prompts))]
