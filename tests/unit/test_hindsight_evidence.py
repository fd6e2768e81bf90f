"""Evidence: sources, granularities and combinations, anchors, rendered contexts, judge requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trajectories

from serl.config import HindsightSection
from serl.config.hindsight_modes import MODES
from serl.config.registry import SOURCES, NameTakenError, UnknownEntryError
from serl.hindsight.candidates import comparable_action
from serl.hindsight.collect import collect_evidence
from serl.hindsight.context import ContextStats, render_context
from serl.hindsight.evidence import Attempt, Evidence, GroupView, Outcome, QuotedStep, StepEvidence
from serl.hindsight.judge_request import judge_mode, judge_request
from serl.hindsight.quoting import without_thinking
from serl.hindsight.sources import CandidateAttempts, register_source
from serl.types import Step


def settings_of(mode: str | None = None, **keys: Any) -> HindsightSection:
    judge = {"base_url": "https://localhost/v1", "model": "judge"}
    return HindsightSection.model_validate({"mode": mode, "judge": judge} | keys)


SUCCESS_ONLY = settings_of(sources=["successful_sample"])


def make_step(
    action: str,
    anchor: str = "room",
    feedback: str | None = None,
    prompt: str | None = None,
    next_observation: str | None = None,
) -> Step:
    return trajectories.make_step(
        messages=({"role": "user", "content": prompt or f"You are at {anchor}."},),
        response_text=f"<think>hm {action}</think><action>{action}</action>",
        anchor=anchor,
        action=action,
        feedback=feedback,
        next_observation=next_observation,
    )


def make_group(*episodes: tuple[float, Sequence[Step]]) -> GroupView:
    """Trajectories t0, t1, … of ``(reward, steps)``; a positive reward is a success."""
    played = [
        trajectories.make_trajectory(steps, reward, rollout_index=index, trajectory_id=f"t{index}")
        for index, (reward, steps) in enumerate(episodes)
    ]
    return GroupView(played, settings_of())


def quoted(evidence: Evidence) -> list[str]:
    return [step.response for step in evidence.quoted_steps]


def collect(group: GroupView, settings: HindsightSection) -> list[list[StepEvidence]]:
    return collect_evidence(replace(group, settings=settings), settings)


def evidence_of(
    group: GroupView, settings: str | HindsightSection, trajectory: int, step: int
) -> StepEvidence:
    """``settings``: the name of a mode will do."""
    chosen = settings_of(settings) if isinstance(settings, str) else settings
    return collect(group, chosen)[trajectory][step]


def test_immediate_feedback_is_the_environments_answer_and_none_gives_no_context():
    group = make_group((0.0, [make_step("look", feedback="Nothing happens."), make_step("wait")]))
    first, second = collect(group, settings_of("immediate_feedback"))[0]
    assert first.parts == (Evidence("immediate_feedback", text="Nothing happens."),)
    assert not second
    assert render_context(second) == (None, ContextStats(None, 0, 0, False))


def test_the_successful_sample_is_the_first_success_other_than_ones_own():
    group = make_group((0.0, [make_step("a")]), (1.0, [make_step("b")]), (2.0, [make_step("c")]))
    assert quoted(evidence_of(group, SUCCESS_ONLY, 0, 0).parts[0]) == ["<action>b</action>"]
    assert quoted(evidence_of(group, SUCCESS_ONLY, 1, 0).parts[0]) == ["<action>c</action>"]
    own = settings_of(sources=["successful_sample"], args={"successful_sample": {"exclude_own": False}})
    assert quoted(evidence_of(group, own, 1, 0).parts[0]) == ["<action>b</action>"]


def test_quotations_are_bounded_from_the_front_and_the_future_from_the_step():
    steps = [make_step(action) for action in "abcde"]
    group = make_group((0.0, [make_step("x")]), (1.0, steps))
    two = settings_of(sources=["successful_sample"], args={"successful_sample": {"max_steps": 2}})
    assert quoted(evidence_of(group, two, 0, 0).parts[0]) == [
        "<action>a</action>",
        "<action>b</action>",
    ]
    one = settings_of(sources=["future_trajectory"], args={"future_trajectory": {"max_steps": 1}})
    (future,) = evidence_of(group, one, 1, 2).parts
    assert quoted(future) == ["<action>d</action>"]
    assert future.quoted_steps[0].step_index == 3
    assert not evidence_of(group, one, 1, 4)


def test_formats_and_thinking():
    steps = [make_step("a"), make_step("b", anchor="shelf")]
    whole = settings_of("future_trajectory", trajectory_format="observation_action", remove_thinking=False)
    (future,) = evidence_of(make_group((0.0, steps)), whole, 0, 0).parts
    assert future.quoted_steps == (QuotedStep(1, "You are at shelf.", steps[1].response_text),)
    assert without_thinking("<think>a\nb</think> x <THINK>c</THINK>y") == "x y"
    assert without_thinking("<think>never closed") == "<think>never closed"


def test_thinking_that_the_prompt_opened_is_removed_up_to_its_end():
    assert without_thinking("so I look\n</think>\n<action>look</action>") == "<action>look</action>"
    assert without_thinking("a</think> b <think>c</think>d <think>e") == "b d <think>e"


def test_all_needs_every_part_per_step_and_keeps_the_order():
    steps = [make_step("a", feedback="F"), make_step("b", feedback="F"), make_step("c")]
    group = make_group((0.0, steps), (1.0, [make_step("s")]))
    mode = "successful_sample_future_trajectory_immediate_feedback"
    names = [part.source for part in evidence_of(group, mode, 0, 0).parts]
    assert names == ["successful_sample", "future_trajectory", "immediate_feedback"]
    assert not evidence_of(group, mode, 0, 2)  # no future, no feedback
    assert not evidence_of(group, mode, 1, 0)  # no other success


def test_first_available_falls_back():
    steps = [make_step("a", feedback="F")]
    alone = make_group((0.0, steps))
    helped = make_group((0.0, steps), (1.0, [make_step("s")]))
    mode = "successful_sample_or_immediate_feedback"
    assert [part.source for part in evidence_of(alone, mode, 0, 0).parts] == ["immediate_feedback"]
    assert [part.source for part in evidence_of(helped, mode, 0, 0).parts] == ["successful_sample"]


def test_candidates_summarise_every_attempt_from_the_same_observation():
    group = make_group(
        (0.0, [make_step("wait", next_observation="w"), make_step("Go  North", next_observation="n0")]),
        (10.0, [make_step("go north", next_observation="n1"), make_step("end", anchor="hall")]),
        (4.0, [make_step("go north", next_observation="n2")]),
    )
    for trajectory, step in ((0, 0), (0, 1), (1, 0), (2, 0)):
        evidence = evidence_of(group, "anchor_next_observation", trajectory, step)
        wait, north = evidence.candidates
        assert (wait.action, wait.tried, wait.successes) == ("wait", 1, 0)
        assert [(part.about, part.text) for part in wait.evidence] == [("only try", "w")]
        assert (north.action, north.tried, north.successes, north.mean_return) == ("go north", 3, 2, 4.6667)
        assert (north.best, north.worst) == (Outcome(True, 10.0), Outcome(False, 0.0))
        assert [(part.about, part.text) for part in north.evidence] == [
            ("best try", "n1"),
            ("worst try", "n0"),
        ]
    assert [c.action for c in evidence_of(group, "anchor_next_observation", 1, 1).candidates] == ["end"]


def test_ties_go_to_the_earlier_attempt_as_best_and_the_later_as_worst():
    steps = [make_step("look", next_observation=str(index)) for index in range(3)]
    group = make_group((1.0, steps), (1.0, [make_step("look", next_observation="other")]))
    (look,) = evidence_of(group, "anchor_next_observation", 0, 0).candidates
    assert [part.text for part in look.evidence] == ["0", "2"]


def test_candidate_futures_follow_observations_and_come_from_best_success_and_worst_failure():
    group = make_group(
        (5.0, [make_step("go", next_observation="n0"), make_step("won", anchor="a")]),
        (-1.0, [make_step("go", next_observation="n1"), make_step("lost", anchor="b")]),
        (9.0, [make_step("go", next_observation="n2"), make_step("best", anchor="c")]),
    )
    evidence = evidence_of(group, "anchor_successful_sample_future_trajectory_next_observation", 1, 0)
    (go,) = evidence.candidates
    assert [(part.source, part.about) for part in go.evidence] == [
        ("next_observation", "best try"),
        ("next_observation", "worst try"),
        ("future_trajectory", "best successful try"),
        ("future_trajectory", "worst failed try"),
    ]
    assert [part.text or quoted(part)[0] for part in go.evidence] == [
        "n2",
        "n1",
        "<action>best</action>",
        "<action>lost</action>",
    ]
    assert [part.source for part in evidence.parts] == ["successful_sample"]


def test_anchor_feedback_lists_pairs_without_repeating_one():
    group = make_group(
        (0.0, [make_step("b", feedback="F2"), make_step("a")]),
        (0.0, [make_step("a", feedback="F1"), make_step("b", feedback="F2"), make_step("b", feedback="F3")]),
    )
    evidence = evidence_of(group, "anchor_immediate_feedback", 0, 1)
    pairs = [(pair.action, pair.feedback) for pair in evidence.feedback_pairs]
    assert pairs == [("b", "F2"), ("b", "F3"), ("a", "F1")]
    silent = make_group((0.0, [make_step("a")]))
    assert not evidence_of(silent, "anchor_immediate_feedback", 0, 0)


def test_anchor_first_available_quotes_feedback_only_without_a_success():
    mode = "anchor_successful_sample_or_immediate_feedback"
    failed = (0.0, [make_step("a", feedback="F")])
    (candidate,) = evidence_of(make_group(failed), mode, 0, 0).candidates
    assert [part.text for part in candidate.evidence] == ["F"]
    helped = evidence_of(make_group(failed, (1.0, [make_step("s", anchor="x")])), mode, 0, 0)
    assert helped.candidates[0].evidence == ()
    assert [part.source for part in helped.parts] == ["successful_sample"]
    silent = evidence_of(make_group((0.0, [make_step("a")])), mode, 0, 0)
    assert (silent.candidates[0].evidence, silent.parts) == ((), ())
    assert render_context(silent)[0] is not None  # the table of actions is a context of its own


def test_comparable_actions():
    assert comparable_action("<action> Go\n to  SHELF 1 </action>") == "go to shelf 1"
    assert comparable_action("I click[Buy  Now]") == "i click[buy now]"


def test_judged_trajectories_share_the_judges_text():
    group = make_group((0.0, [make_step("a"), make_step("b")]), (1.0, [make_step("c")]))
    judged = replace(group, judge_texts={"t0": "Too slow.", "t1": None})
    for mode in ("judge_current_traj", "judge_current_traj_on_successful_sample"):
        both, none = collect(judged, settings_of(mode))
        assert [evidence.parts[0].text for evidence in both] == ["Too slow.", "Too slow."]
        assert not none[0]


def test_the_paper_names_twenty_modes_of_built_in_sources():
    assert len(MODES) == 20
    of_repair_alone = {"failed_sample"}
    named = {name for mode in MODES.values() for name in mode.sources}
    assert named == set(SOURCES.built_in()) - of_repair_alone


def test_every_module_of_the_sources_registers_the_source_of_its_name():
    assert [SOURCES.get(name).name for name in SOURCES.built_in()] == SOURCES.built_in()


def test_a_source_of_ones_own_works_at_both_granularities():
    @register_source("echo_for_this_test", title="Echo", attempts=CandidateAttempts.BEST_AND_WORST)
    def echo(attempt: Attempt, group: GroupView, *, times: int = 1) -> Evidence | None:
        return Evidence(text="echo " * times + f"of {attempt.step.action}")

    group = make_group((0.0, [make_step("a")]))
    twice = {"sources": ["echo_for_this_test"], "args": {"echo_for_this_test": {"times": 2}}}
    per_step = evidence_of(group, settings_of(**twice), 0, 0)
    assert per_step.parts == (Evidence("echo_for_this_test", text="echo echo of a"),)
    per_anchor = evidence_of(group, settings_of(**twice, granularity="anchor"), 0, 0)
    assert "Echo (only try):\necho echo of a" in (render_context(per_anchor)[0] or "")

    def other(attempt: Attempt, group: GroupView) -> Evidence | None:
        return None

    with pytest.raises(NameTakenError, match="exists already"):
        register_source("echo_for_this_test", title="", attempts=CandidateAttempts.OWN_STEP_ONLY)(other)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sources": []}, "hindsight.sources = \\[\\] contradicts hindsight.enabled"),
        ({"sources": ["immediate_feedbak"]}, "no such source; did you mean 'immediate_feedback'"),
        ({"mode": "immediate_feedbak"}, "no such mode; did you mean 'immediate_feedback'"),
        ({"mode": "next_observation", "combine": "first_available"}, "contradicts hindsight.combine"),
        ({"mode": "next_observation", "sources": ["future_trajectory"]}, "contradicts hindsight.sources"),
        ({"args": {"future_trajectory": {}}}, "not among hindsight.sources"),
        ({"mode": "future_trajectory", "args": {"future_trajectory": {"max_stps": 5}}}, "max_stps"),
        ({"mode": "future_trajectory", "args": {"future_trajectory": {"max_steps": -1}}}, "equal to 0"),
        ({"mode": "future_trajectory", "args": {"future_trajectory": {"max_steps": True}}}, "valid integer"),
        ({"mode": "judge_current_traj", "judge": {"model": "m"}}, "hindsight.judge.base_url = null"),
    ],
)
def test_wrong_settings_are_refused_by_the_section_itself(keys: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        HindsightSection.model_validate(keys)


def test_a_mode_stands_for_its_keys_wherever_a_section_is_made():
    named = HindsightSection(mode="anchor_successful_sample_or_immediate_feedback")
    assert named.sources == ("successful_sample", "immediate_feedback")
    assert (named.granularity, named.combine) == ("anchor", "first_available")
    assert HindsightSection.model_validate(named.model_dump()) == named


def long_evidence(num_steps: int) -> StepEvidence:
    steps = tuple(QuotedStep(index, None, f"response{index}") for index in range(num_steps))
    return StepEvidence(
        parts=(
            Evidence("successful_sample", quoted_steps=steps),
            Evidence("immediate_feedback", text="Nothing happens."),
        )
    )


def words(text: str) -> int:
    return len(text.split())


def test_without_a_budget_everything_is_quoted():
    text, stats = render_context(long_evidence(5), words)
    assert text is not None
    assert re.findall(r"response\d", text) == [f"response{index}" for index in range(5)]
    assert stats == ContextStats(words(text), 5, 0, False)
    assert render_context(long_evidence(5))[1].num_tokens is None


def test_a_budget_drops_the_oldest_steps_first_and_says_so():
    whole = words(render_context(long_evidence(30))[0] or "")
    budget = whole - 30
    text, stats = render_context(long_evidence(30), words, budget)
    assert text is not None
    kept = [int(number) for number in re.findall(r"response(\d+)", text)]
    assert 0 < stats.num_dropped_steps == 30 - len(kept)
    assert kept == list(range(30 - len(kept), 30))
    assert f"the {stats.num_dropped_steps} oldest of 30 steps" in text
    assert "Nothing happens." in text
    assert stats.num_tokens == words(text) <= budget
    assert not stats.over_budget
    one_step_more, _ = render_context(long_evidence(30), words, budget - 1)
    assert words(one_step_more or "") < words(text)


def test_the_newest_step_and_all_texts_stay_even_over_budget():
    text, stats = render_context(long_evidence(10), words, 1)
    assert text is not None
    assert re.findall(r"response\d", text) == ["response9"]
    assert "Nothing happens." in text
    assert (stats.num_dropped_steps, stats.num_quoted_steps, stats.over_budget) == (9, 1, True)
    with pytest.raises(ValueError, match="count_tokens"):
        render_context(long_evidence(1), max_context_tokens=10)


def test_a_judge_request_holds_prompt_steps_and_last_answers():
    steps = [make_step("a", feedback="F0", next_observation="N0", prompt="P0"), make_step("b", prompt="P1")]
    group = make_group((0.0, steps), (1.0, [make_step("won", prompt="P2", feedback="F2")]))
    request = judge_request(group.trajectories[0], group, "judge_current_traj", include_feedback=True)
    assert re.findall(r"\b[PFN]\d\b|<action>\w+", request.text) == [
        "P0",
        "<action>a",
        "<action>b",
        "N0",
        "F0",
    ]
    assert [message["role"] for message in request.messages] == ["system", "user"]
    without = judge_request(group.trajectories[0], group, "judge_current_traj", include_feedback=False)
    assert "F0" not in without.text


def test_a_judge_compares_with_another_success_then_with_its_own():
    failed, first, second = (0.0, [make_step("f")]), (1.0, [make_step("s1")]), (1.0, [make_step("s2")])
    mode = "judge_current_traj_on_successful_sample"

    def actions(group: GroupView, index: int) -> list[str]:
        text = judge_request(group.trajectories[index], group, mode, include_feedback=False).text
        return re.findall(r"<action>(\w+)", text)

    three = make_group(failed, first, second)
    assert [actions(three, index) for index in range(3)] == [["f", "s1"], ["s1", "s2"], ["s2", "s1"]]
    assert actions(make_group(failed, first), 1) == ["s1", "s1"]
    assert actions(make_group(failed, failed), 0) == ["f"]


def test_a_judge_request_of_nothing_is_refused():
    group = make_group((0.0, []))
    with pytest.raises(ValueError, match="no step"):
        judge_request(group.trajectories[0], group, "judge_current_traj", include_feedback=True)
    with pytest.raises(ValueError, match="needs no judge"):
        judge_request(group.trajectories[0], group, "next_observation", include_feedback=True)
    with pytest.raises(UnknownEntryError, match="no such source"):
        judge_request(group.trajectories[0], group, "jury", include_feedback=True)


def test_the_judged_source_is_found_among_others():
    assert judge_mode(["immediate_feedback", "judge_current_traj"]) == "judge_current_traj"
    assert judge_mode(["immediate_feedback", "next_observation"]) is None


def test_the_readmes_own_source_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*@register_source[^`]*)```", readme)
    (tmp_path / "my_source.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    lost = make_step("fly")
    lost.action_valid = False
    won = [make_step("a", anchor="hall"), make_step("b"), make_step("c", anchor="shelf"), make_step("d")]
    group = make_group((0.0, [make_step("wait"), lost]), (1.0, won))
    name = "my_source:recovery"
    settings = settings_of(sources=[name])
    assert not evidence_of(group, settings, 0, 0)
    evidence = evidence_of(group, settings, 0, 1)
    assert quoted(evidence.parts[0]) == ["<action>b</action>", "<action>c</action>"]
    assert "How another attempt went on" in (render_context(evidence)[0] or "")
    shorter = settings_of(sources=[name], granularity="anchor", args={name: {"max_steps": 1}})
    (wait, fly) = evidence_of(group, shorter, 0, 1).candidates[:2]
    assert (wait.evidence, fly.action) == ((), "fly")
    assert [quoted(evidence) for evidence in fly.evidence] == [["<action>b</action>"]]
