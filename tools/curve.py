"""Draws the learning curve of a run: ``python -m tools.curve RUN_DIR PICTURE.svg``.

Success of the training episodes by iteration (each, and the mean of the last five), and the evaluations with
their 95 % intervals. Needs matplotlib (``pip install .[dev]``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serl.evaluation import EvaluationResult
from serl.run.evaluations import read_evaluations
from serl.run.metrics_writer import METRICS, read_metrics
from serl.run.surroundings import write_any_character
from tools.arguments import picture

_WINDOW = 5


def training_success(run_dir: Path) -> tuple[list[int], list[float]]:
    """Iterations and success rates of the training episodes; raises FileNotFoundError without metrics."""
    if not (run_dir / METRICS).is_file():
        raise FileNotFoundError(f"it has no {METRICS}")
    trained = [row for row in read_metrics(run_dir) if row.get("rollout/success") is not None]
    return [row["iteration"] for row in trained], [row["rollout/success"] for row in trained]


def moving_mean(values: list[float], window: int) -> list[float]:
    """The mean of each value and up to ``window`` − 1 before it."""
    starts = [max(0, end - window) for end in range(1, len(values) + 1)]
    return [sum(values[start:end]) / (end - start) for end, start in enumerate(starts, start=1)]


def draw(
    name: str,
    iterations: list[int],
    success: list[float],
    evaluations: list[EvaluationResult],
    file: Path,
) -> None:
    """Writes ``file`` in the format that its name ends with."""
    import matplotlib

    matplotlib.use("Agg")
    # Letters as text and a fixed salt: the same run gives the same small file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "serl"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 3.4), layout="constrained")
    axes.plot(iterations, success, ".", color="#9db4c8", label="training episodes, each iteration")
    axes.plot(
        iterations,
        moving_mean(success, _WINDOW),
        color="#2f6690",
        label=f"training episodes, mean of {_WINDOW} iterations",
    )
    for index, evaluation in enumerate(evaluations):
        overall = evaluation.overall
        axes.errorbar(
            evaluation.weights_seq_no,
            overall.rate,
            # SERL 0.1 could write a lower bound of 3e-17 for a rate of 0.
            yerr=[[max(0.0, overall.rate - overall.low)], [max(0.0, overall.high - overall.rate)]],
            fmt="D",
            capsize=4,
            color="#c1440e",
            label=f"evaluation of {overall.count} games, 95 % interval" if index == 0 else None,
        )
    axes.set(xlabel="iteration (learner updates)", ylabel="success rate", ylim=(0.0, 1.0), title=name)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("picture", type=picture)
    options = parser.parse_args(arguments)
    try:
        iterations, success = training_success(options.run_dir)
    except FileNotFoundError as error:
        print(f"{options.run_dir} is no run directory: {error}", file=sys.stderr)
        return 2
    draw(options.run_dir.name, iterations, success, read_evaluations(options.run_dir), options.picture)
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
