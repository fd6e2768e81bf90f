"""Plays random episodes of an environment and reports where it breaks what `envs/base.py` promises.

    python -m tools.check_env alfworld
    python -m tools.check_env webshop catalogue=small data=WEBSHOP_DATA --split valid
    python -m tools.check_env my_package.my_env:make_provider
    python -m tools.check_env my_package.my_env:MyEnv

An environment is named as in `env.name`; the class of a `TextEnv` works too: it is built without arguments
and reset without a task. Arguments `key=value` are the environment's own (`env.args`). Exit status: 0 if it
keeps its promises, 1 if not, 2 if it cannot be loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from envs.registry import UnknownEnvironmentError
from serl.run.surroundings import write_any_character
from tools.check_env.episodes import CheckSettings, Target, TargetError, open_target
from tools.check_env.report import check
from tools.play import BadRequest, env_args


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; its defaults are those of the settings."""
    defaults = CheckSettings()
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_env",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("environment", help="alfworld, webshop, package.module:factory or module:Class")
    parser.add_argument("args", nargs="*", metavar="key=value", help="arguments of the environment")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--episodes", type=int, default=defaults.num_episodes)
    parser.add_argument("--max-steps", type=int, default=defaults.max_steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--call-limit-ms",
        type=float,
        default=defaults.call_limit_ms,
        help="for nine of ten calls of an environment that is not declared blocking (%(default)g)",
    )
    parser.add_argument(
        "--growth-limit-mb",
        type=float,
        default=defaults.growth_limit_mb,
        help="of memory, an episode (%(default)g)",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.episodes < 1 or options.max_steps < 1:
        parser.error("--episodes and --max-steps are at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = parse_arguments(arguments)
    settings = CheckSettings(
        num_episodes=options.episodes,
        max_steps=options.max_steps,
        seed=options.seed,
        call_limit_ms=options.call_limit_ms,
        growth_limit_mb=options.growth_limit_mb,
    )
    try:
        target: Target = open_target(options.environment, env_args(options.args), options.split)
    except (TargetError, BadRequest, UnknownEnvironmentError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    violations = check(target, settings)
    for line in violations.lines():
        print(line)
    print(violations.summary(target.name, settings))
    return 1 if violations else 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
