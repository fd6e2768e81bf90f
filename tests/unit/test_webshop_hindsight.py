"""Every hindsight mode on a group of WebShop episodes, played by the real env runner's coroutine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from rollout_helpers import WINDOWS, byte_tokenizer
from webshop_helpers import task_with_two_options

from envs.base import Task
from envs.webshop.oracle import plan
from envs.webshop.provider import WebshopProvider, make_provider
from serl.config import ExperimentConfig, HindsightSection, JudgeSection
from serl.config.hindsight_modes import MODES
from serl.hindsight.collect import collect_evidence
from serl.hindsight.context import render_context
from serl.hindsight.evidence import GroupView, StepEvidence
from serl.hindsight.judge_request import judge_mode, judge_request
from serl.rollout.env_calls import EnvCalls
from serl.rollout.episode import EpisodeSettings, run_episode
from serl.rollout.prompt import PromptEncoder
from serl.types import Completion, RolloutRequest, Sampling, Trajectory, VersionSpan

JUDGE = JudgeSection(base_url="https://localhost/v1", model="judge")
SCORE_LINE = "Your score (min 0.0, max 1.0): "


class Script:
    """A policy that takes ``actions`` one after the other."""

    retries = 0

    def __init__(self, encoder: PromptEncoder, actions: Sequence[str]):
        self._encoder, self._actions = encoder, iter(actions)

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, session_id: str, deadline_s: float
    ) -> Completion:
        ids = self._encoder.tokenizer.encode(f"<think>so</think><action>{next(self._actions)}</action>")
        return Completion(ids, [0.0] * len(ids), "stop", (VersionSpan(0, len(ids), 1),))


def play(provider: WebshopProvider, task: Task, rollout_index: int, actions: Sequence[str]) -> Trajectory:
    encoder = PromptEncoder(byte_tokenizer())
    counters: Counter[str] = Counter()
    settings = EpisodeSettings(
        max_steps=15,
        prompts=replace(WINDOWS, max_prompt_length=8192),
        max_hinted_prompt_length=8192,
        request_timeout_s=5.0,
        sampling=Sampling(max_tokens=512, temperature=1.0, stop=("</action>",), seed=None),
        seeded_requests=False,
    )
    with ThreadPoolExecutor(1) as executor:
        env = EnvCalls(provider.make_env(), task, executor, 5.0, counters)
        return asyncio.run(
            run_episode(
                RolloutRequest(task, "g", rollout_index, 0),
                env,
                provider,
                encoder,
                Script(encoder, actions),
                settings,
                counters,
            )
        )


@pytest.fixture(scope="module")
def group() -> list[Trajectory]:
    """A full score, the same product without its options, and another product after a mistake."""
    provider = make_provider({})
    task = task_with_two_options(provider, "train")
    good = plan(provider.shop, provider.goal(task.task_id))
    hasty = [action for action in good if action.startswith(("search", "click[B"))] + ["click[Buy Now]"]
    other = [good[0], "dance", "click[features]", "search[pillow]", "click[next >]", "click[< prev]"]
    found = provider.shop.search("pillow")
    other += [f"click[{provider.shop.product(found[0]).asin}]", "click[buy now]"]
    return [
        play(provider, task, rollout_index, actions)
        for rollout_index, actions in enumerate((good, hasty, other))
    ]


def settings_of(mode: str) -> HindsightSection:
    return HindsightSection(mode=mode, trajectory_format="observation_action", judge=JUDGE)


def collect(
    group: list[Trajectory], mode: str, judge_texts: Mapping[str, str] | None = None
) -> list[list[StepEvidence]]:
    settings = settings_of(mode)
    return collect_evidence(GroupView(group, settings, judge_texts or {}), settings)


def test_the_episodes_end_as_they_were_played(group: list[Trajectory]) -> None:
    assert [t.end_reason for t in group] == ["success", "failure", "failure"]
    assert [t.reward for t in group] == [10.0, 0.0, 0.0]
    scores = [t.metrics["task_score"] for t in group]
    assert scores[0] == 1.0 and 0 < scores[1] < 1 and scores[2] < scores[1]
    assert [step.action_valid for step in group[2].steps[:4]] == [True, False, False, True]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_something_to_say_about_most_steps(group: list[Trajectory], mode: str) -> None:
    judged = {t.trajectory_id: f"Attempt {t.rollout_index} was judged." for t in group}
    evidence = collect(group, mode, judged)
    contexts = [[render_context(step)[0] for step in steps] for steps in evidence]
    assert [len(steps) for steps in contexts] == [len(t.steps) for t in group]
    # The successful episode has no other success to quote, a last step no future.
    for number in (1, 2):
        assert all(contexts[number][:-1]), contexts[number]
    if judge_mode(settings_of(mode).sources):
        assert "Attempt 1 was judged." in str(contexts[1][0])
        text = judge_request(group[1], GroupView(group, settings_of(mode)), mode, include_feedback=True).text
        assert "Task: Find me" in text and SCORE_LINE in text


def test_after_the_last_action_the_feedback_is_the_final_page_s_score_line(group: list[Trajectory]) -> None:
    contexts = [render_context(steps[-1])[0] for steps in collect(group, "immediate_feedback")]
    for trajectory, context in zip(group, contexts, strict=True):
        assert f"{SCORE_LINE}{trajectory.metrics['task_score']:.2f}" in str(context)


def test_steps_from_the_same_page_share_an_anchor(group: list[Trajectory]) -> None:
    """All three began at the search bar with the same query, so the table lists one action tried by three."""
    first = collect(group, "anchor_next_observation")
    assert first[0][0] and group[0].steps[0].anchor == group[1].steps[0].anchor == "WebShop [SEP] Search"
    results = [t.steps[1].anchor for t in group]
    assert results[0] == results[1] == results[2]
    table = render_context(first[1][1])[0] or ""
    assert str(group[0].steps[1].action).lower() in table.lower() and "dance" in table


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_config_is_valid_with_every_mode(mode: str) -> None:
    config = ExperimentConfig.model_validate(
        {
            "name": "x",
            "model": {"path": "embedded:tiny_webshop"},
            "env": {"name": "webshop"},
            "hindsight": {"mode": mode, "judge": JUDGE.model_dump()},
        }
    )
    assert config.hindsight.sources == MODES[mode].sources
