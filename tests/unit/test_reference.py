"""The reference pages say what the code says, and every metric that the code names is described."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from buffer_helpers import buffer, give, group_of, trajectory

from serl.batch.metrics import batch_metrics, group_sums
from serl.batch.step_rows import StepRows
from serl.batch.teacher_prompts import ContextCounts
from serl.config import ExperimentConfig
from serl.config.registry import ESTIMATORS, LOSSES
from serl.hindsight.judge.pool import JudgePool
from serl.hindsight.teacher_weights import teacher_weights
from serl.learner.loss_terms import Denominators, LossTokens, kl_loss, truncated_importance_weights
from serl.learner.report import LearnerReport, combine_reports
from serl.run.metrics_reference import GROUPS, METRICS, undescribed
from serl.serving.weights import BroadcastStats
from serl.types import TrajectoryGroup
from tools.reference.__main__ import main
from tools.reference.config_page import config_page, value_words
from tools.reference.markdown import from_docstring, table
from tools.reference.pages import PAGES, REPOSITORY, outdated_pages, write_pages

_METRIC = re.compile(rf"(?:{'|'.join(GROUPS)})/[\w/<>]*\w[\w/<>]*")


def test_the_pages_are_current() -> None:
    assert outdated_pages() == [], "run python -m tools.reference"
    assert main(["--check"]) == 0


def test_a_page_that_says_something_else_is_found_and_written_anew(tmp_path: Path) -> None:
    for name in PAGES:
        (tmp_path / name).parent.mkdir(parents=True)
    assert len(write_pages(tmp_path)) == len(PAGES)
    assert outdated_pages(tmp_path) == []
    page = tmp_path / "serl/run/METRICS.md"
    page.write_text(page.read_text() + "one more line\n")
    assert outdated_pages(tmp_path) == [page]
    assert write_pages(tmp_path) == [page]
    assert "one more line" not in page.read_text()


def test_every_key_is_described() -> None:
    rows = [line for line in config_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_section_and_every_entry_says_what_it_is() -> None:
    headings = re.findall(r"^##+ (`.*`)\n\n(\||#)?", config_page(), re.MULTILINE)
    assert {"`training`", "`hindsight.judge`", "`grpo`", "`ppo_clip`"} <= {name for name, _ in headings}
    assert [name for name, begins_with in headings if begins_with] == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer ≥ 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0, ≤ 1"),
        ({"enum": ["a", "b", "c"], "type": "string"}, "`a`, `b` or `c`"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or `null`"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "integer"}]}, "[number, integer]"),
        ({"type": "boolean"}, "`true` or `false`"),
        ({}, "any value"),
    ],
)
def test_what_a_value_must_be_is_said_in_words(schema: dict[str, object], words: str) -> None:
    assert value_words(schema) == words


def test_docstrings_become_markdown_paragraphs() -> None:
    assert from_docstring("One ``a``\n    line.\n\n    Two.") == "One `a` line.\n\nTwo."
    assert table(("x",), [("a|b",)]) == ["| x |", "| --- |", "| a\\|b |"]


def test_a_metric_that_the_table_lacks_is_found() -> None:
    known = ["rollout/success", "rollout/end_success", "total/env_steps", "weights_seq_no"]
    assert undescribed([*known, "rollout/succes", "learner/x", "weights_seq_no/x"]) == [
        "learner/x",
        "rollout/succes",
        "weights_seq_no/x",
    ]


def test_every_meaning_is_a_sentence() -> None:
    assert [name for name, meaning in METRICS.items() if not re.fullmatch(r"\S.*\.", meaning)] == []


def _named_metrics(source: Path) -> Iterator[str]:
    """Strings of the code that name a metric; what an f-string fills in is ``x``."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "x" for part in node.values]
            text = "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if _METRIC.fullmatch(text) and text[-1] not in "/_":
            yield text


def test_every_metric_that_the_code_names_is_described() -> None:
    """Left out are names of which the code has the first part only, as ``learner/{name}``."""
    found: dict[str, set[str]] = {}
    for source in [path for folder in ("serl", "tools") for path in (REPOSITORY / folder).rglob("*.py")]:
        # What reports read may be of SERL 0.1.
        if source != REPOSITORY / "tools/report/reading.py":
            for name in _named_metrics(source):
                if name.split("/")[1:] != ["x"]:
                    found.setdefault(name, set()).add(str(source.relative_to(REPOSITORY)))
    assert {"rollout/success", "time/iteration_s", "evaluation/success"} <= found.keys()
    assert {name: found[name] for name in undescribed(found)} == {}


def _undescribed_of(first_part: str, names: Iterable[str]) -> list[str]:
    """Asserts that there are names, too: a test over nothing says nothing."""
    below = [f"{first_part}/{name}" for name in names]
    assert below
    return undescribed(below)


def _group() -> TrajectoryGroup:
    requests = group_of("g")
    trajectories = [trajectory(requests[0], reward=1.0, num_steps=2), trajectory(requests[1])]
    trajectories[0].metrics["task_score"] = 0.5
    return TrajectoryGroup("g", requests[0].task, trajectories)


@pytest.mark.parametrize("name", ESTIMATORS.built_in())
def test_the_metrics_of_every_estimator_are_described(name: str) -> None:
    _, metrics = ESTIMATORS.get(name).bind({})(StepRows.from_groups([_group()]))
    assert undescribed(f"learner/{metric}" for metric in metrics) == []


@pytest.mark.parametrize("name", LOSSES.built_in())
def test_the_metrics_of_every_loss_are_described(name: str) -> None:
    _, metrics = LOSSES.get(name).bind({})(_loss_tokens())
    assert _undescribed_of("learner", metrics) == []


def test_the_metrics_of_what_may_be_added_to_a_loss_are_described() -> None:
    tokens, ones = _loss_tokens(), torch.ones(2)
    _, of_kl = kl_loss(tokens, ones, estimator="k3", coefficient=0.1)
    _, of_weights = truncated_importance_weights(ones, ones, tokens.denominators, cap=2.0)
    assert _undescribed_of("learner", of_kl | of_weights) == []


def _loss_tokens() -> LossTokens:
    ones = torch.ones(2)
    return LossTokens(-ones, -ones, ones, torch.zeros(2, dtype=torch.long), Denominators(2, 1))


def test_the_metrics_of_teacher_weights_and_contexts_are_described() -> None:
    advantages = torch.tensor([1.0, -1.0])
    _, metrics = teacher_weights(
        advantages, -torch.ones(2), -torch.ones(2), torch.ones(2, dtype=torch.bool), weight_clip=0.2
    )
    report = LearnerReport()
    report.add_teacher_metrics(metrics)
    assert _undescribed_of("learner", combine_reports([report])) == []
    assert _undescribed_of("learner", ContextCounts(anchor_sizes=[1]).metrics(["next_observation"])) == []


def test_the_metrics_of_a_batch_are_described() -> None:
    group = _group()
    assert undescribed(batch_metrics([group_sums(group, True)], group.trajectories, 0)) == []


def test_the_metrics_of_the_buffer_are_described() -> None:
    target = buffer(filtered=1)
    for group_id in ("filtered", "kept"):
        target.num_admissible(0)
        requests = group_of(group_id)
        target.admit(requests)
        for request in requests:
            give(target, trajectory(request))
        give(target, trajectory(requests[0]))
    target.admit(requests := group_of("failed"))
    for _ in range(3):
        target.fail(requests[0], "environment_error")
    assert target.take_batch(0) is not None
    metrics = target.metrics()
    assert {"groups_discarded_zero_variance", "groups_discarded_failed", "kept_mean_steps"} <= metrics.keys()
    assert _undescribed_of("buffer", metrics) == []


def test_the_metrics_of_a_judge_and_of_broadcasts_are_described(tmp_path: Path) -> None:
    judge = {"base_url": "http://localhost/v1", "model": "judge"}
    experiment = ExperimentConfig.model_validate(
        {
            "name": "judged",
            "model": {"path": "embedded:tiny_alfworld"},
            "hindsight": {"mode": "judge_current_traj", "judge": judge},
        }
    )
    metrics = JudgePool(experiment, tmp_path).metrics()
    assert "judge/requests" in metrics
    assert undescribed(metrics) == []
    assert _undescribed_of("broadcast", [field.name for field in fields(BroadcastStats)]) == []
