"""Trains the tiny policy that ships with SERL: behaviour cloning of a searcher on the embedded games.

    python -m tools.warm_start --out policies/my_policy --episodes 2400

It takes a few minutes on one core. The result is a Hugging Face folder; name it as ``model.path``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from envs.alfworld.provider import make_provider
from serl.warm_start.panel import PanelSettings
from serl.warm_start.run import WarmStartSettings, evaluate, save, warm_start

logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; its defaults are those of the settings."""
    defaults = WarmStartSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--data", default="embedded", help="as env.args.data; only its split train is learned"
    )
    parser.add_argument("--max-receptacles", type=int, default=6, help="rooms to learn and play in")
    parser.add_argument("--episodes", type=int, default=defaults.demonstrations.num_episodes)
    parser.add_argument("--max-steps", type=int, default=defaults.demonstrations.max_steps)
    parser.add_argument("--history-length", type=int, default=defaults.demonstrations.history_length)
    parser.add_argument("--panel", type=int, default=0, help="held-out games to play at the end (0: all)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for arguments or data that do not work."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_arguments(arguments)
    # On a shared machine a second thread costs more than it brings at this size.
    torch.set_num_threads(1)
    defaults = WarmStartSettings()
    demonstrations = replace(
        defaults.demonstrations,
        num_episodes=options.episodes,
        max_steps=options.max_steps,
        history_length=options.history_length,
    )
    settings = replace(defaults, seed=options.seed, demonstrations=demonstrations)
    try:
        provider = make_provider({"data": options.data, "max_receptacles": options.max_receptacles})
    except (ValueError, FileNotFoundError) as error:
        logger.error("%s", error)
        return 2
    start = warm_start(provider, settings)
    panel_settings = PanelSettings(max_steps=options.max_steps, history_length=options.history_length)
    panel = evaluate(start, provider, "valid_seen", options.panel, panel_settings)
    save(start, settings, panel, options.out)
    logger.info(
        "%s: solves %.0f %% of held-out games in %d steps, %.0f %% of its actions are inadmissible; "
        "%d demonstrations, %.0f CPU seconds",
        options.out,
        100 * panel.success_rate,
        options.max_steps,
        100 * panel.inadmissible_rate,
        start.num_demonstrations,
        start.demonstration_seconds + start.cloning_seconds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
