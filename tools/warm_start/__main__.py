"""Trains a tiny policy like those that ship with SERL: behaviour cloning of an environment's demonstrator.

    python -m tools.warm_start --out policies/my_policy --episodes 1200
    python -m tools.warm_start experiments/webshop_quickstart.yaml --out policies/my_shopper env.max_steps=10

Environment, lengths and held-out split are those of the experiment, whose model is not read; a task that is
in both splits, by id or by content, is an error. The result is a Hugging Face folder; name it as
``model.path``. ``tiny_alfworld`` has the defaults, ``tiny_webshop`` ``--episodes 8000 --vocab-size 2200
--batch-size 8 --lr 0.0015 --stray-thought-share 0.15 --detour-share 0.3``; either took 25 minutes of a core.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch

from envs.base import DemonstratingProvider, assert_disjoint
from envs.registry import make_provider
from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.load import load_experiment
from serl.config.sampling import PromptForm
from serl.rollout.episode_prompts import PromptSettings
from serl.run.surroundings import write_any_character
from tools.arguments import output_folder, positive, positive_number, share
from tools.warm_start.playing import PlaySettings
from tools.warm_start.run import WarmStartSettings, play_held_out, save, save_report, warm_start
from tools.warm_start.tokenizer import least_vocab_size

logger = logging.getLogger(__name__)

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; its defaults are those of the settings."""
    defaults = WarmStartSettings()
    parser = argparse.ArgumentParser(
        prog="python -m tools.warm_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "experiment",
        nargs="*",
        metavar="EXPERIMENT.yaml key.path=value",
        help="whose tasks to learn (experiments/quickstart.yaml); only its training split is learned",
    )
    parser.add_argument(
        "--prompt", choices=get_args(PromptForm), help="in place of the experiment's rollout.prompt"
    )
    parser.add_argument("--out", type=output_folder, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--episodes", type=positive, default=defaults.demonstrations.num_episodes)
    parser.add_argument(
        "--detour-share",
        type=share,
        default=defaults.demonstrations.detour_share,
        help="random actions of the demonstrator, which are learned too (%(default)s)",
    )
    parser.add_argument(
        "--stray-thought-share",
        type=share,
        default=defaults.demonstrations.stray_thought_share,
        help="labels beside hindsight that stand behind the thought of another step (%(default)s)",
    )
    parser.add_argument("--vocab-size", type=positive, default=defaults.vocab_size)
    parser.add_argument("--batch-size", type=positive, default=defaults.cloning.batch_size)
    parser.add_argument(
        "--lr", type=positive_number, default=defaults.cloning.lr, help="default: %(default)g"
    )
    parser.add_argument(
        "--evaluation", type=int, default=0, help="held-out tasks to play at the end (0: all)"
    )
    return parser.parse_intermixed_args(arguments)


def experiment_of(positional: Sequence[str]) -> ExperimentConfig:
    """The experiment named first, or the quickstart's, with the overrides behind it. Raises ConfigError."""
    names = [text for text in positional if "=" not in text]
    if len(names) > 1:
        raise ConfigError([f"one experiment at a time, not {', '.join(names)}"])
    path = Path(names[0]) if names else EXPERIMENTS / "quickstart.yaml"
    return load_experiment(path, [text for text in positional if "=" in text])


def demonstrating_provider(experiment: ExperimentConfig) -> DemonstratingProvider:
    """The experiment's environment. Raises ValueError if it has no demonstrator, FileNotFoundError."""
    provider = make_provider(experiment.env.name, experiment.env.args)
    if not hasattr(provider, "demonstrator") or not hasattr(provider, "prompt_phrases"):
        raise ValueError(
            f"env.name = {experiment.env.name!r} has no demonstrator (DemonstratingProvider in envs/base.py)"
        )
    return cast(DemonstratingProvider, provider)


def warm_start_settings(experiment: ExperimentConfig, options: argparse.Namespace) -> WarmStartSettings:
    """The defaults with what the experiment and the command line say."""
    defaults = WarmStartSettings()
    return replace(
        defaults,
        seed=options.seed,
        vocab_size=options.vocab_size,
        demonstrations=replace(
            defaults.demonstrations,
            num_episodes=options.episodes,
            max_steps=experiment.env.max_steps,
            history_length=experiment.env.history_length,
            prompt=experiment.rollout.prompt,
            detour_share=options.detour_share,
            stray_thought_share=options.stray_thought_share,
        ),
        cloning=replace(defaults.cloning, batch_size=options.batch_size, lr=options.lr),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for arguments or data that do not work."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_arguments(arguments)
    # On a shared machine a second thread costs more than it brings at this size.
    torch.set_num_threads(1)
    try:
        form = [f"rollout.prompt={options.prompt}"] if options.prompt else []
        experiment = experiment_of([*options.experiment, *form])
        provider = demonstrating_provider(experiment)
        if options.vocab_size < (least := least_vocab_size(provider.prompt_phrases())):
            raise ValueError(
                f"--vocab-size {options.vocab_size}: what is no learned word alone takes {least}"
            )
        splits = experiment.env.train_split, experiment.evaluation.split
        assert_disjoint(*(provider.task_set(split) for split in splits))
    except (ValueError, FileNotFoundError) as error:
        logger.error("%s", error)
        return 2
    env = experiment.env
    settings = warm_start_settings(experiment, options)
    start = warm_start(provider, env.train_split, settings)
    save(start, options.out)
    play_settings = PlaySettings(
        max_steps=env.max_steps,
        prompts=PromptSettings.of(experiment),
        temperature=experiment.evaluation.temperature,
        max_response_length=experiment.rollout.max_response_length,
    )
    split, num_tasks = experiment.evaluation.split, options.evaluation
    held_out = play_held_out(start, provider, split, num_tasks, play_settings)
    save_report(start, settings, held_out, options.out)
    logger.info(
        "%s: solves %.0f %% of held-out tasks in %d steps, %.0f %% of its actions are inadmissible; "
        "%d demonstrations, %.0f CPU seconds",
        options.out,
        100 * held_out.success_rate,
        env.max_steps,
        100 * held_out.inadmissible_rate,
        start.num_demonstrations,
        start.demonstration_seconds + start.cloning_seconds,
    )
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
