"""The page in a real, headless Chromium: it loads without errors, shows what was recorded, and filters."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from inspect_helpers import HOSTILE, TASK_TYPES, trajectory_records, write_run

from serl.run.records import TrajectoryRecord
from tools.inspect.__main__ import main
from tools.inspect.serving import RunServer

_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    _CHROMIUM is None or _DRIVER is None,
    reason="needs Debian's chromium and chromium-driver; tools/check installs them where it may",
)
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: tools/pins-check.txt")

_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1440,1200"
)
_PATIENCE_S = 60.0
CARD = "#trajectory .step"
ROLLOUTS = "#groups .rollouts button"


class Browser:
    """One Chromium; every page is loaded anew."""

    def __init__(self, profile: Path) -> None:
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(_CHROMIUM)
        for option in _OPTIONS.split():
            options.add_argument(option)
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(_DRIVER)))
        self.driver.set_page_load_timeout(_PATIENCE_S)

    def open(self, page: Path, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(page.as_uri() + fragment)

    def run(self, script: str):
        return self.driver.execute_script(script)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def wait_for(self, selector: str) -> None:
        """What opens a <details> hears of it only after the click has been answered."""
        self.wait_until(lambda: bool(self.all(selector)), f"no {selector}")

    def wait_until(self, holds: Callable[[], bool], otherwise: str = "") -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, _PATIENCE_S).until(lambda _: holds(), otherwise)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.run(f"return [...document.querySelectorAll({selector!r})].map((n) => n.textContent)")

    def choose(self, select: str, value: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.one(select)).select_by_value(value)

    def press(self, keys: str) -> None:
        self.one("body").send_keys(keys)

    def messages(self) -> list[dict]:
        return self.driver.get_log("browser")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    assert started.messages() == []
    started.driver.quit()


@pytest.fixture(scope="module")
def records() -> list[TrajectoryRecord]:
    return trajectory_records(num_iterations=3, groups_per_iteration=2, group_size=4, num_steps=4)


@pytest.fixture(scope="module")
def page(records: list[TrajectoryRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(records, tmp_path_factory.mktemp("runs") / "run")


def page_of(records: list[TrajectoryRecord], run_dir: Path, *extra_lines: str) -> Path:
    assert main([str(write_run(run_dir, records, *extra_lines))]) == 0
    return run_dir / "inspect.html"


def test_the_first_trajectory_is_shown_token_by_token(
    browser: Browser, page: Path, records: list[TrajectoryRecord]
):
    browser.open(page)
    assert browser.messages() == []
    first = records[0]
    assert first.task_id in browser.one("#trajectory h2").text
    assert len(browser.all(CARD)) == len(first.steps)
    shown = browser.texts(f"{CARD}:nth-of-type(2) .token")
    special = first.steps[1].special_tokens
    assert shown == [special.get(i) or text or "·" for i, text in enumerate(first.steps[1].tokens)]
    assert len(browser.all(f"{CARD} .token.action")) == sum(sum(step.action_mask) for step in first.steps)
    contexts = [step.teacher.context for step in first.steps if step.teacher and step.teacher.context]
    assert browser.texts("pre.evidence") == contexts
    assert [len(browser.all(f"#{name}-chart svg")) for name in ("success", "weight", "evidence")] == [1, 1, 1]


def test_filters_leave_exactly_the_trajectories_they_name(
    browser: Browser, page: Path, records: list[TrajectoryRecord]
):
    browser.open(page)

    def count() -> int:
        return int(browser.one("#match-count").text.split()[0])

    assert count() == len(records) == 24
    successes = sum(record.success for record in records)
    browser.choose("#filter-success", "success")
    assert count() == successes > 0
    assert all("✓" in text for text in browser.texts(ROLLOUTS))
    browser.choose("#filter-success", "failure")
    assert count() == 24 - successes > 0
    browser.choose("#filter-success", "all")
    browser.choose("#filter-task-type", f"={TASK_TYPES[0]}")
    assert count() == sum(record.task_type == TASK_TYPES[0] for record in records) > 0
    browser.choose("#filter-task-type", "all")

    def has_clipped(record: TrajectoryRecord) -> bool:
        return any(w in (0.8, 1.2) for step in record.steps if step.teacher for w in step.teacher.weights)

    def lacks_evidence(record: TrajectoryRecord) -> bool:
        return any(step.teacher is not None and step.teacher.context is None for step in record.steps)

    browser.one("#filter-clipped").click()
    assert count() == sum(map(has_clipped, records))
    browser.one("#filter-clipped").click()
    browser.one("#filter-no-evidence").click()
    assert 0 < count() == sum(map(lacks_evidence, records)) < 24
    assert any("no evidence" in text for text in browser.texts(f"{CARD} .chip"))


def test_filters_that_nothing_matches_say_so(browser: Browser, tmp_path: Path):
    records = [record.model_copy(update={"success": True}) for record in trajectory_records(1, 1, 2, 1)]
    browser.open(page_of(records, tmp_path / "run"))
    browser.choose("#filter-success", "failure")
    assert browser.one("#trajectory").text == "No trajectory matches these filters."
    browser.choose("#filter-success", "all")
    assert len(browser.all(CARD)) == 1


def test_iterations_groups_and_rollouts_are_picked_by_hand_and_by_keys(browser: Browser, page: Path):
    browser.open(page)
    browser.choose("#iteration", "2")
    assert len(browser.all("#groups .group")) == 2 and len(browser.all(ROLLOUTS)) == 8
    browser.all(ROLLOUTS)[5].click()
    assert "group 000002-1, rollout 1" in browser.texts(".head .chip")
    assert browser.run("return location.hash") == "#000002-1-1"
    browser.press("j")
    assert "group 000002-1, rollout 2" in browser.texts(".head .chip")
    browser.press("k")
    browser.press("]")
    assert "iteration 3" in browser.texts(".head .chip")
    browser.open(page, "#000002-1-1")
    assert "group 000002-1, rollout 1" in browser.texts(".head .chip")


def test_colours_follow_what_they_are_asked_to_show(
    browser: Browser, page: Path, records: list[TrajectoryRecord]
):
    browser.open(page)

    def coloured(kind: str) -> int:
        return len(browser.all(f".token.{kind}"))

    teachers = [step.teacher for step in records[0].steps if step.teacher is not None]
    weights = [weight for teacher in teachers for weight in teacher.weights if weight is not None]
    assert (coloured("up"), coloured("down")) == (
        sum(w > 1 for w in weights),
        sum(w < 1 for w in weights),
    )
    assert coloured("high") == weights.count(1.2) and coloured("low") == weights.count(0.8)
    browser.one("input[value=advantage]").click()
    positive = records[0].success
    num_tokens = sum(len(step.tokens) for step in records[0].steps)
    assert (coloured("up"), coloured("down")) == ((num_tokens, 0) if positive else (0, num_tokens))
    browser.press("c")
    log_ratios = [ratio for teacher in teachers for ratio in teacher.log_ratios if ratio is not None]
    assert coloured("up") == sum(ratio > 0 for ratio in log_ratios)
    browser.press("c")
    assert coloured("up") == 0 and coloured("amount") > 0.9 * num_tokens


def test_a_token_tells_its_numbers_on_focus_and_in_the_table(
    browser: Browser, page: Path, records: list[TrajectoryRecord]
):
    browser.open(page)
    step = next(step for step in records[0].steps if step.teacher and step.teacher.context)
    index = records[0].steps.index(step)
    position = step.action_mask.index(1)
    browser.run(
        f'document.querySelector(\'.token[data-step="{index}"][data-position="{position}"]\').focus()'
    )
    tip = browser.one("#tip").text
    assert step.teacher is not None and step.teacher.context_effects is not None
    effect, weight = step.teacher.context_effects[position], step.teacher.weights[position]
    assert effect is not None and weight is not None
    assert f"{abs(effect):.4f}" in tip and f"{weight:.4f}" in tip
    assert all(name in tip for name in ("part of the action", "log-ratio Δ", "context effect"))
    from selenium.webdriver.common.keys import Keys

    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert f"{position + 1}, {step.token_ids[position + 1]}" in browser.one("#tip").text
    assert not browser.all(f"{CARD} table"), "tables are built when they are opened"
    browser.run(
        f"document.querySelectorAll('{CARD}')[{index}].querySelector('details:last-child').open = true"
    )
    browser.wait_for(f"{CARD} tbody tr")
    assert len(browser.all(f"{CARD} tbody tr")) == len(step.tokens)


def test_any_metric_is_drawn_and_failures_are_told_with_their_last_text(browser: Browser, tmp_path: Path):
    failure = {
        "iteration": 2,
        "kind": "episode",
        "reason": "aborted",
        "count": 1200,
        "last_text": f"x\n{HOSTILE}",
    }
    run_dir = write_run(tmp_path / "run", trajectory_records(2, 1, 2, 1))
    (run_dir / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    assert main([str(run_dir)]) == 0
    browser.open(run_dir / "inspect.html")
    assert browser.texts("#curve-name option") == ["learner/effective_lambda"]
    assert len(browser.all("#curve-chart circle")) == 2
    assert browser.texts("#failure-rows tbody td")[:4] == ["episode", "aborted", "1,200", "2"]
    assert browser.texts("#failure-rows summary") == [HOSTILE]
    assert not browser.one("#live").is_displayed()


def test_a_served_page_moves_on_with_the_run_and_stays_where_somebody_reads(browser: Browser, tmp_path: Path):
    records = trajectory_records(num_iterations=3, groups_per_iteration=1, group_size=2, num_steps=2)
    run_dir = write_run(tmp_path / "run", [])

    def append(iteration: int) -> None:
        with (run_dir / "trajectories.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(f"{each.model_dump_json()}\n" for each in records if each.iteration == iteration)

    with RunServer(run_dir, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.driver.get(server.url)
        browser.wait_until(lambda: browser.one("#trajectory").text == "No trajectory has been recorded yet.")
        for iteration in (1, 2):
            append(iteration)
            browser.wait_until(lambda at=iteration: f"iteration {at}" in browser.texts(".head .chip"))
        shown = [token for step in records[2].steps for token in step.tokens]
        assert len(browser.all(f"{CARD} .token")) == len(shown)
        browser.press("k")
        browser.wait_until(lambda: "iteration 1" in browser.texts(".head .chip"))
        append(3)
        browser.wait_until(lambda: browser.one("#match-count").text == "6 of 6 trajectories")
        assert "iteration 1" in browser.texts(".head .chip")
        browser.one("#follow").click()
        browser.wait_until(lambda: "iteration 3" in browser.texts(".head .chip"))
        server.shutdown()


def test_prompts_show_every_message_once_opened(
    browser: Browser, page: Path, records: list[TrajectoryRecord]
):
    browser.open(page)
    assert not browser.all("details.prompt pre")
    browser.one("#prompts").click()
    browser.wait_for("details.prompt pre")
    expected = [message["content"] for step in records[0].steps for message in step.messages]
    assert browser.texts("details.prompt pre") == expected


def test_what_models_and_environments_say_stays_text(browser: Browser, tmp_path: Path):
    (record,) = trajectory_records(1, 1, 1, 1)
    step = record.steps[0]
    assert step.teacher is not None
    teacher = replace(step.teacher, context=HOSTILE)
    changes = {
        "messages": [{"role": HOSTILE, "content": HOSTILE}],
        "tokens": [HOSTILE, *step.tokens[1:]],
        "next_observation": HOSTILE,
        "feedback": HOSTILE,
        "action": HOSTILE,
        "teacher": teacher,
    }
    hostile = record.model_copy(
        update={
            "steps": [step.model_copy(update=changes)],
            "task_id": HOSTILE,
            "task_type": HOSTILE,
            "group_id": HOSTILE,
            "trajectory_id": HOSTILE,
        }
    )
    browser.open(page_of([hostile], tmp_path / "run", HOSTILE))
    browser.one("#prompts").click()
    browser.wait_for("details.prompt pre")
    assert browser.run("return window.pwned ?? null") is None
    assert browser.all("img") == [] and browser.messages() == []
    assert browser.texts("pre.evidence") == [HOSTILE]
    assert browser.texts(f"{CARD} .token")[0] == HOSTILE
    assert browser.texts("details.prompt pre") == [HOSTILE]


def test_records_without_a_teacher_are_shown_and_problems_are_named(browser: Browser, tmp_path: Path):
    (record,) = trajectory_records(1, 1, 1, 2)
    steps = [step.model_copy(update={"teacher": None}) for step in record.steps]
    empty = record.model_copy(update={"steps": [], "trajectory_id": "empty", "rollout_index": 1})
    page = page_of([record.model_copy(update={"steps": steps}), empty], tmp_path / "run", "{broken")
    browser.open(page)
    assert browser.texts(".columns .nothing") == ["the learner reported nothing of this step"] * 2
    assert "1 line or file could not be read" in browser.one("#problems").text
    assert "trajectories.jsonl line 3" in browser.texts("#problems li")[0]
    browser.press("j")
    assert "This episode has no step." in browser.one("#trajectory").text


def test_of_five_thousand_steps_only_those_of_one_trajectory_are_parsed_and_drawn(
    browser: Browser, tmp_path: Path
):
    records = trajectory_records(num_iterations=32, groups_per_iteration=1, group_size=8, num_steps=20)
    assert sum(len(record.steps) for record in records) == 5120
    browser.open(page_of(records, tmp_path / "run"))
    assert browser.one("#match-count").text == "256 of 256 trajectories"
    browser.run(
        "window.parsed = 0; const parse = JSON.parse; JSON.parse = (t) => (window.parsed++, parse(t))"
    )
    browser.run("for (let i = 0; i < 20; i++) stepTrajectory(1)")
    assert browser.run("return window.parsed") == 20
    assert len(browser.all(CARD)) == 20
    assert len(browser.all(".token")) == sum(len(step.tokens) for step in records[20].steps)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_schemes(scheme: str, browser: Browser, page: Path):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.open(page)
    lightness = """
        const numbers = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const light = (colour) => numbers(colour).reduce((sum, part) => sum + part, 0) / 3;
        const style = getComputedStyle(document.body);
        return [light(style.backgroundColor), light(style.color)];
    """
    ground, ink = browser.run(lightness)
    assert (ground > 200 and ink < 60) if scheme == "light" else (ground < 60 and ink > 200)
    browser.one("#scheme").click()
    assert browser.run("return document.documentElement.dataset.scheme") != scheme
    turned_ground, turned_ink = browser.run(lightness)
    assert (turned_ground > turned_ink) != (ground > ink)
