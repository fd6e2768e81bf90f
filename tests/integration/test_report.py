"""The report of a synthetic sweep whose numbers are worked out by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from serl.evaluation import EvaluationResult, wilson_interval
from serl.run.evaluations import append_evaluation
from tools.curve import main as draw_curve
from tools.report.__main__ import main
from tools.report.figures import draw_time
from tools.report.reading import progress, read_sweep
from tools.report.statistics import (
    compare,
    compare_all,
    compare_means,
    holm,
    mean_interval,
    sign_flip_p_value,
    weighted_mean_interval,
)
from tools.report.timing import (
    PART_NAMES,
    episode_shares,
    seconds_per_iteration,
)
from tools.sweep.runs import Attempt, add_attempt

CONFIG = """\
name: {arm}
seed: {seed}
model: {{path: embedded:tiny_alfworld}}
training: {{num_iterations: 2, max_staleness: {staleness}}}
hindsight: {{enabled: {hindsight}}}
"""
VERSIONS = {
    "python": "3.11.9",
    "platform": "Linux",
    "cpus": 2,
    "git_commit": "abc",
    "git_changed_files": 0,
    "packages": {"ray": "2.60.0", "torch": "2.13.0"},
}
ROW = {
    "weights_seq_no": 1,
    "runners/env_steps": 100,
    "runners/generation_seconds": 90.0,
    "runners/environment_seconds": 10.0,
    "time/iteration_s": 12.0,
    "time/wait_for_batch_s": 3.0,
    "learner/seconds_plan": 1.0,
    "learner/seconds_teacher": 2.0,
    "learner/seconds_reference": 0.75,
    "learner/seconds_forward_backward": 3.25,
    "learner/seconds_optimizer": 0.5,
    "broadcast/seconds_transport": 0.25,
    "broadcast/seconds_load": 0.25,
    "learner/train_inference_mismatch": 0.02,
    "learner/train_inference_mismatch_on_policy": 0.003,
    "rollout/zero_variance_groups": 0.25,
}
TEACHER = {
    "learner/num_teacher_prompts": 8.0,
    "learner/teacher_log_ratio_mean": -0.5,
    "learner/teacher_abs_log_ratio_mean": 0.75,
    "learner/teacher_context_effect": -0.375,
    "learner/teacher_log_ratio_without_context": -0.125,
}
# What SERL 0.1 called these; it wrote the share of groups that do have variance.
FORMER_METRICS = {
    "learner/seconds_plan": "learner/seconds_samples",
    "learner/train_inference_mismatch": "learner/sampler_logprob_gap",
    "learner/train_inference_mismatch_on_policy": "learner/sampler_logprob_gap_fresh",
    "learner/teacher_log_ratio_mean": "learner/teacher_delta_mean",
    "learner/teacher_abs_log_ratio_mean": "learner/teacher_abs_delta_mean",
    "learner/teacher_context_effect": "learner/teacher_feedback_effect",
    "learner/teacher_log_ratio_without_context": "learner/teacher_drift",
    "rollout/zero_variance_groups": "rollout/groups_with_spread",
}
FORMER_CONFIG = """\
rollout: {top_p: 1.0}
loss: {name: ppo_clip, clip_low: 0.2, importance_cap: null}
learner: {betas: [0.9, 0.999]}
"""


def evaluation(iteration: int, outcomes: list[int]) -> EvaluationResult:
    rate = wilson_interval(sum(outcomes), len(outcomes))
    games = {f"game{index}": bool(won) for index, won in enumerate(outcomes)}
    return EvaluationResult(iteration, rate, {"find": rate, "heat": rate}, 5.0, 0.1, 0, 1.0, games)


def write_run(
    sweep: Path, arm: str, seed: int, first: list[int], last: list[int], staleness: int = 1, updates: int = 2
) -> Path:
    folder = sweep / arm / f"seed_{seed}" / f"{arm}-20260131-120000"
    folder.mkdir(parents=True)
    hindsight = "false" if arm == "grpo" else "true"
    text = CONFIG.format(arm=arm, seed=seed, staleness=staleness, hindsight=hindsight)
    (folder / "config.yaml").write_text(text)
    (folder / "versions.json").write_text(json.dumps(VERSIONS))
    teacher = {} if arm == "grpo" else TEACHER
    rows = [{"iteration": 0, "evaluation/success": 0.5}]
    rows += [ROW | teacher | {"iteration": at} for at in range(1, updates + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    append_evaluation(folder, evaluation(0, first))
    if updates == 2:
        append_evaluation(folder, evaluation(2, last))
    return folder


def rewrite_as_serl_0_1_did(run_dir: Path) -> None:
    (run_dir / "evaluations.jsonl").rename(run_dir / "panels.jsonl")
    with (run_dir / "config.yaml").open("a") as config:
        config.write(FORMER_CONFIG)
    metrics = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    former = [{FORMER_METRICS.get(name, name): value for name, value in row.items()} for row in rows]
    for row in former:
        if "rollout/groups_with_spread" in row:
            row["rollout/groups_with_spread"] = 1.0 - row["rollout/groups_with_spread"]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in former))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two arms with two seeds of four games, and one run that got stuck half way."""
    folder = tmp_path / "sweep"
    write_run(folder, "grpo", 0, [1, 0, 0, 0], [1, 1, 0, 0])
    write_run(folder, "grpo", 1, [1, 0, 0, 0], [1, 0, 0, 0])
    write_run(folder, "serl", 0, [1, 0, 0, 0], [1, 1, 1, 0])
    write_run(folder, "serl", 1, [1, 0, 0, 0], [0, 1, 1, 0])
    write_run(folder, "serl", 2, [1, 0, 0, 0], [], updates=1)
    attempt = Attempt("over the limit", ["serl-run"], "attempt_1.log", 0.0, 600.0, 0, "stopped at the limit")
    add_attempt(folder / "serl" / "seed_2", attempt)
    (folder / "commands.txt").write_text("python -m tools.sweep arms --out sweep\n")
    return folder


def test_the_mean_of_two_values_has_students_interval():
    estimate = mean_interval([0.5, 0.25])
    # sd = 0.25 / √2, standard error 0.125, t(0.975, 1) = 12.7062
    assert estimate.mean == 0.375
    assert estimate.half_width == pytest.approx(12.7062 * 0.125, rel=1e-5)
    assert math.isnan(mean_interval([0.5]).half_width)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_a_weighted_mean_counts_likely_values_for_more():
    # mean (3·1 + 1·5) / 4; spread √((3·1)² + (1·3)²) = √18
    estimate = weighted_mean_interval([1.0, 5.0], [3.0, 1.0])
    assert estimate.mean == 2.0
    assert estimate.half_width == pytest.approx(1.95996 * math.sqrt(18) / 4, rel=1e-5)
    with pytest.raises(ValueError, match="positive sum"):
        weighted_mean_interval([1.0], [0.0])


def test_the_sign_flip_test_is_exact_for_few_differences_and_never_zero_for_many():
    assert sign_flip_p_value([0, 0]) == 1.0
    assert sign_flip_p_value([1, 1, 1, 0]) == 0.25  # + + + and − − − of eight
    assert sign_flip_p_value([2, -1]) == 1.0  # sums 1, 3, −3, −1: none is smaller than 1
    assert sign_flip_p_value([3, 1, 1]) == 0.25
    many = sign_flip_p_value([1] * 20)
    assert 0.0 < many < 0.001
    assert sign_flip_p_value([1, -1] * 10) == 1.0


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]


def test_arms_are_compared_game_by_game_on_the_seeds_of_both(sweep: Path):
    read = read_sweep(sweep)
    comparison = compare(read.of("serl"), read.of("grpo"))
    assert comparison is not None
    # seed 0: +1 on game 2; seed 1: −1 on game 0, +1 on games 1 and 2. Per game: −1, 1, 2, 0.
    assert (comparison.left_only, comparison.right_only, comparison.num_games) == (3, 1, 4)
    assert (comparison.difference.mean, comparison.difference.count) == (0.25, 2)
    assert comparison.difference.half_width == 0.0
    # |±1 ± 1 ± 2| ≥ 2 in 6 of 8 sign choices: sums 4, 2, 2, 0 and their negatives
    assert comparison.p_value == 0.75
    assert compare(read.of("serl"), []) is None


def test_arms_are_compared_by_the_mean_of_their_evaluations_seed_by_seed(tmp_path: Path):
    write_run(tmp_path, "grpo", 0, [0, 0, 0, 0], [1, 0, 0, 0])
    write_run(tmp_path, "grpo", 1, [1, 1, 1, 1], [1, 0, 0, 0])
    write_run(tmp_path, "serl", 0, [1, 0, 0, 0], [1, 1, 1, 0])
    write_run(tmp_path, "serl", 1, [1, 0, 0, 0], [0, 1, 1, 0])
    (comparison,) = compare_means(read_sweep(tmp_path))
    # After updates 0.25 − 0.75 and 0.25 − 0.5: mean −0.375, standard error 0.125, t = −3 with 1 degree.
    assert (comparison.left, comparison.right) == ("grpo", "serl")
    assert comparison.difference.mean == -0.375
    assert comparison.difference.half_width == pytest.approx(12.7062 * 0.125, rel=1e-5)
    assert comparison.p_value == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    assert comparison.adjusted == comparison.p_value and comparison.time_ratio == 1.0


def test_with_a_baseline_only_pairs_with_it_are_compared_and_adjusted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for arm in ("distil", "grpo", "serl"):
        for seed in (0, 1):
            write_run(tmp_path, arm, seed, [0, 0, 0, 0], [1, seed, 0, arm == "distil"])
    sweep = read_sweep(tmp_path)
    assert [(c.left, c.right) for c in compare_means(sweep, "grpo")] == [("distil", "grpo"), ("serl", "grpo")]
    assert [(c.left, c.right) for c in compare_all(sweep, "grpo")] == [("distil", "grpo"), ("serl", "grpo")]
    assert len(compare_means(sweep)) == len(compare_all(sweep)) == 3
    assert main([str(tmp_path), "--baseline", "grpo"]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| distil − grpo | 2 |" in page and "serl − grpo" in page and "distil − serl" not in page
    assert main([str(tmp_path), "--baseline", "gpro"]) == 2
    assert "no arm of the sweep: distil, grpo, serl" in capsys.readouterr().err


def test_credit_is_drawn_beside_success_and_perfect_credit_is_told(tmp_path: Path):
    for arm, control in (("grpo", ""), ("serl", ""), ("oracle", ", control: progress")):
        run = write_run(tmp_path, arm, 0, [0, 0], [1, 0])
        metrics = run / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        if arm == "serl":
            rows = [row | {"credit/auc_idle_positive": 0.75} for row in rows]
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("enabled: true", f"enabled: true{control}"))
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| oracle | reweight | immediate_feedback | progress |" in page and "| grpo |  |  |  |" in page
    assert "| serl |  | 0.75 |" in page
    assert "AUC of the teacher's credit" in (tmp_path / "report" / "credit.svg").read_text()
    assert "stroke-dasharray" in (tmp_path / "report" / "success.svg").read_text()


def test_an_evaluation_without_outcomes_is_not_compared(sweep: Path):
    for seed in (0, 1):
        (file,) = (sweep / "grpo" / f"seed_{seed}").glob("*/evaluations.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row | {"outcomes": {}}) + "\n" for row in rows))
    read = read_sweep(sweep)
    assert compare(read.of("serl"), read.of("grpo")) is None
    assert main([str(sweep)]) == 0
    assert "No two arms share a seed" in (sweep / "report" / "report.md").read_text()


def test_what_an_evaluation_had_cost_counts_the_updates_before_it(sweep: Path):
    first, last = progress(read_sweep(sweep).of("grpo")[0])
    assert (first.iteration, first.env_steps, first.hours, first.success) == (0, 0.0, 0.0, 0.25)
    assert (last.iteration, last.env_steps, last.success) == (2, 200.0, 0.5)
    assert last.hours == pytest.approx(24.0 / 3600.0)


def test_the_parts_of_an_iteration_add_up_to_it(sweep: Path):
    runs = read_sweep(sweep).of("grpo")
    parts = dict(zip(PART_NAMES, seconds_per_iteration(runs), strict=True))
    assert parts == pytest.approx(
        {
            "waiting for a batch": 3.0,
            "planning": 1.0,
            "teacher": 2.0,
            "learner": 4.5,
            "broadcast": 0.5,
            "other": 1.0,
        }
    )
    assert episode_shares(runs) == (0.9, 0.1)


def test_the_page_shows_what_was_measured_and_what_did_not_work(
    sweep: Path, capsys: pytest.CaptureFixture[str]
):
    notes = sweep.parent / "notes.md"
    notes.write_text("One seed more would tell.\n")
    assert main([str(sweep), "--title", "Two arms", "--notes", str(notes)]) == 0
    page = Path(capsys.readouterr().out.strip())
    text = page.read_text()
    assert text.startswith("# Two arms\n")
    assert "## What we make of it\n\nOne seed more would tell.\n" in text
    assert "4 finished runs of 2 arms; 1 did not finish" in text
    assert "| grpo | 0, 1 | 0.250 ± 0.000 | 0.375 ± 1.588 | +0.125 ± 1.588 | 200 | 2 | 0.4 |" in text
    assert "| grpo − serl | 2 | 4 | -0.250 ± 0.000 | 1 | 3 | 0.7500 | 0.7500 |" in text
    assert "- serl seed 2: not finished, 1 of 2 updates; over the limit: stopped at the limit" in text
    assert "    python -m tools.sweep arms --out sweep" in text
    assert "2 CPUs, Linux, Python 3.11.9; ray 2.60.0, torch 2.13.0; commit abc: all runs" in text
    assert "| `hindsight.enabled` | False | True |" in text
    assert "| serl | 3.00 | 1.00 | 2.00 | 4.50 | 0.50 | 1.00 | 8 | 90.0% | 10.0% |" in text
    assert "| find | 0.25 → 0.38 | 0.25 → 0.62 |" in text
    pictures = {
        name for name in ("success", "training", "time", "hindsight", "staleness") if f"({name}.svg)" in text
    }
    assert pictures == {path.stem for path in page.parent.glob("*.svg")} == {"success", "time", "hindsight"}
    assert sum(path.stat().st_size for path in page.parent.iterdir()) < 2**20


def test_arms_of_different_staleness_get_a_figure(tmp_path: Path):
    for staleness in (0, 4):
        write_run(tmp_path, f"staleness_{staleness}", 0, [1, 0], [1, 1], staleness)
    assert main([str(tmp_path)]) == 0
    assert "(staleness.svg)" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "staleness.svg").stat().st_size > 2000


def test_figures_round_coordinates_but_no_text(tmp_path: Path):
    assert draw_time(["0.125 of it"], {"arm 0.375": [1.0 / 3.0]}, tmp_path / "time.svg")
    text = (tmp_path / "time.svg").read_text()
    assert ">0.125 of it<" in text and ">arm 0.375<" in text
    coordinates = re.findall(r"\d+\.(\d+)", " ".join(re.findall(r'd="(M[^"]*)"', text)))
    assert len(coordinates) > 20 and {len(decimals) for decimals in coordinates} <= {1, 2}


def test_the_same_sweep_gives_the_same_files(sweep: Path, tmp_path: Path):
    for name in ("one", "two"):
        assert main([str(sweep), "--out", str(tmp_path / name)]) == 0
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_a_sweep_by_serl_0_1_gives_the_same_report(sweep: Path, tmp_path: Path):
    assert main([str(sweep), "--out", str(tmp_path / "present")]) == 0
    run_dirs = list(sweep.glob("*/seed_*/*-20260131-120000"))
    for run_dir in run_dirs:
        rewrite_as_serl_0_1_did(run_dir)
    assert main([str(sweep), "--out", str(tmp_path / "former")]) == 0
    text = (tmp_path / "former" / "report.md").read_text()
    assert "4 finished runs of 2 arms" in text and "| serl |  |  | -0.5 | 0.75 | -0.375 | -0.125 |" in text
    for file in (tmp_path / "present").iterdir():
        assert file.read_bytes() == (tmp_path / "former" / file.name).read_bytes(), file.name


def test_the_curve_of_a_run_is_drawn_also_where_nothing_was_solved(tmp_path: Path):
    run_dir = write_run(tmp_path / "none_solved", "serl", 0, [0] * 6, [0] * 6)
    file = run_dir / "evaluations.jsonl"
    # Such a bound was written by SERL 0.1.
    file.write_text(file.read_text().replace('"low": 0.0', '"low": 2.8e-17'))
    file.rename(run_dir / "panels.jsonl")
    with (run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"iteration": 2, "rollout/success": 0.5}\n')
    assert draw_curve([str(run_dir), str(tmp_path / "curve.svg")]) == 0
    assert ">evaluation of 6 games, 95 % interval<" in (tmp_path / "curve.svg").read_text()


def test_a_folder_that_is_no_run_has_no_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert draw_curve([str(tmp_path), str(tmp_path / "curve.svg")]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_a_folder_without_a_sweep_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
