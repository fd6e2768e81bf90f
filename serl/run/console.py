"""What a person sees of a run: a progress bar inside an iteration, a line after it, a table at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from serl.evaluation import EvaluationResult, SuccessRate

if TYPE_CHECKING:
    from serl.iteration import Progress

# Column of the line after an iteration, the metric it shows, and how.
_COLUMNS = (
    ("success", "rollout/success", "{:.2f}"),
    ("return", "rollout/return", "{:.2f}"),
    ("invalid", "rollout/invalid_action_rate", "{:.2f}"),
    ("loss", "learner/loss", "{:+.4f}"),
    ("entropy", "learner/entropy", "{:.2f}"),
    ("lambda", "learner/effective_lambda", "{:.2f}"),
    ("steps/s", "throughput/env_steps_per_s", "{:.0f}"),
    ("tokens/s", "throughput/response_tokens_per_s", "{:.0f}"),
    ("stale", "staleness/mean", "{:.1f}"),
    ("s", "time/iteration_s", "{:.1f}"),
)


class Console:
    """Writes to ``stream`` (standard output); the bar is drawn on terminals only, if ``progress_bar``."""

    def __init__(self, progress_bar: bool, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._show_bar = progress_bar and self._stream.isatty()
        self._bar: tqdm | None = None
        self._phase = ""
        self._missing_replicas = 0.0
        self._env_runners = (0.0, 0.0)

    def begin(self, run_dir: Path) -> None:
        """Says where everything goes."""
        self.note(f"run directory: {run_dir}\nlogs of engines and servers: {run_dir / 'logs'}")

    def note(self, text: str) -> None:
        """Prints ``text`` above the bar."""
        self._end_bar()
        try:
            print(text, file=self._stream, flush=True)
        except OSError:  # the terminal was hung up; the run has a checkpoint to save
            silence(self._stream)

    def replicas(self, num_serving: float, num_missing: float, logs: Path) -> None:
        """A line when another number than before is missing of the replicas that are wanted."""
        if num_missing != self._missing_replicas:
            hint = f": see the newest {logs}/serving-*.log" if num_missing else ""
            self.note(f"{num_serving:g} of {num_serving + num_missing:g} replicas serve{hint}")
        self._missing_replicas = num_missing

    def env_runners(self, num_playing: float, num_missing: float) -> None:
        """A line when another number than before plays, or is wanted."""
        numbers = num_playing, num_playing + num_missing
        if numbers != self._env_runners and (num_missing or any(self._env_runners)):
            self.note("{:g} of {:g} env runners play".format(*numbers))
        self._env_runners = numbers

    def progress(self, progress: Progress) -> None:
        """Redraws the bar: episodes so far, steps and tokens a second, staleness."""
        if not self._show_bar:
            return
        if self._bar is None or progress.phase != self._phase or progress.episodes < self._bar.n:
            self._end_bar()
            self._phase = progress.phase
            self._bar = tqdm(
                total=progress.episodes_wanted,
                desc=progress.phase,
                unit=" episodes",
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {bar} {n_fmt}/{total_fmt}{unit} [{elapsed}{postfix}]",
            )
        seconds = max(progress.seconds, 1e-9)
        asked = progress.judged + progress.judge_pending
        judge = f", judge {progress.judged}/{asked}" if asked else ""
        self._bar.total = max(progress.episodes_wanted, progress.episodes)
        self._bar.set_postfix_str(
            f"{progress.env_steps / seconds:.0f} steps/s, {progress.response_tokens / seconds:.0f} tokens/s, "
            f"staleness {progress.staleness:.1f}{judge}",
            refresh=False,
        )
        self._bar.n = progress.episodes
        self._bar.refresh()

    def iteration(self, iteration: int, num_iterations: int, metrics: Mapping[str, float]) -> None:
        """One line for one finished iteration; a metric that it lacks has no place in the line."""
        shown = [f"{name} {form.format(metrics[key])}" for name, key, form in _COLUMNS if key in metrics]
        width = len(str(num_iterations))
        self.note(f"[{iteration:>{width}}/{num_iterations}] " + "  ".join(shown))

    def evaluation(self, title: str, result: EvaluationResult) -> None:
        """One line for one evaluation."""
        unfinished = f", {result.unfinished} unfinished" if result.unfinished else ""
        own = "".join(f", {name} {mean:.2f}" for name, mean in result.environment.items())
        self.note(
            f"evaluation, {title}: success {rate_text(result.overall)}, "
            f"{result.mean_steps:.1f} steps, invalid {result.invalid_action_rate:.2f}{own}{unfinished} "
            f"({result.seconds:.1f} s)"
        )

    def summary(self, evaluations: Sequence[EvaluationResult]) -> None:
        """The table of the first and the last evaluation; nothing without two."""
        if len(evaluations) >= 2:
            self.note(summary_table(evaluations[0], evaluations[-1]))

    def close(self) -> None:
        self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def silence(stream: TextIO) -> None:
    """Sends what ``stream`` still holds, and all that follows, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def rate_text(success: SuccessRate) -> str:
    """``0.41 [0.33, 0.50] of 128``."""
    return f"{success.rate:.2f} [{success.low:.2f}, {success.high:.2f}] of {success.count}"


def summary_table(first: EvaluationResult, last: EvaluationResult) -> str:
    """Success before and after, over all tasks and by task type, with 95 % intervals."""
    header = ("success [95 %]", f"iteration {first.weights_seq_no}", f"iteration {last.weights_seq_no}", "")
    rows = [header, ("all", rate_text(first.overall), rate_text(last.overall), _verdict(first, last))]
    for task_type in sorted({*first.by_task_type, *last.by_task_type}):
        cells = [
            rate_text(evaluation.by_task_type[task_type]) if task_type in evaluation.by_task_type else "-"
            for evaluation in (first, last)
        ]
        rows.append((task_type, *cells, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _verdict(first: EvaluationResult, last: EvaluationResult) -> str:
    if last.overall.low > first.overall.high:
        return "higher, intervals apart"
    if last.overall.high < first.overall.low:
        return "lower, intervals apart"
    return "intervals overlap"
