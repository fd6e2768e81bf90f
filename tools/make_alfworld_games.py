"""Makes new ALFWorld games, every one proved solvable by playing a plan through the engine.

    python -m tools.make_alfworld_games --out games.xz --seed 0 --train 4000 --heldout 264

A path that ends in .xz gets one pack file, any other becomes a folder laid out like ALFWORLD_DATA. The same
arguments give the same bytes. No game of one split reads like a game of another.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from envs.alfworld.game import build_game
from envs.alfworld.generator.description import GameDescription
from envs.alfworld.generator.generate import GenerationError, SplitPlan, generate_splits
from envs.alfworld.generator.package_data import PackageDataError, read_package_data
from envs.alfworld.generator.problem import Rules, problem_pddl, traj_data
from envs.alfworld.generator.rooms import ROOM_SIZES
from envs.alfworld.oracle import NoPlanError, plan
from envs.alfworld.pack import write_pack
from serl.run.surroundings import write_any_character

logger = logging.getLogger(__name__)

MAX_PLAN_STEPS = {"small": 12, "medium": 20, "large": 20}


class Prover:
    """Plays a plan through the engine; counts what it turns down."""

    def __init__(self, rules: Rules):
        self._rules = rules
        self.rejected = 0
        self.plan_lengths: list[int] = []

    def __call__(self, game: GameDescription) -> bool:
        """Whether the game can be won in few enough steps, and not without a step."""
        built = build_game(game.trial, problem_pddl(game, self._rules), traj_data(game))
        try:
            steps = len(plan(built))
        except NoPlanError:
            steps = 0
        accepted = 0 < steps <= MAX_PLAN_STEPS[game.size]
        if accepted:
            self.plan_lengths.append(steps)
        else:
            self.rejected += 1
        return accepted


def write_folder(root: Path, games: Mapping[str, Sequence[GameDescription]], rules: Rules) -> None:
    """Writes ``root/json_2.1.1/SPLIT/TASK/TRIAL/{initial_state.pddl,traj_data.json}``."""
    for split, descriptions in games.items():
        for game in descriptions:
            folder = root / "json_2.1.1" / split / game.trial
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "initial_state.pddl").write_text(problem_pddl(game, rules), encoding="utf-8")
            described = json.dumps(traj_data(game), indent=1) + "\n"
            (folder / "traj_data.json").write_text(described, encoding="utf-8")


def parse_shares(text: str) -> dict[str, float]:
    """``small=3,large=1`` -> the share of each size. Raises argparse.ArgumentTypeError for anything else."""
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        try:
            shares[name] = float(number)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{item!r} is not SIZE=SHARE") from error
        if name not in ROOM_SIZES or shares[name] < 0:
            raise argparse.ArgumentTypeError(
                f"{item!r}: the sizes are {', '.join(ROOM_SIZES)}, shares from 0 up"
            )
    if sum(shares.values()) <= 0:
        raise argparse.ArgumentTypeError("the shares add up to nothing")
    return shares


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder, or a pack file ending in .xz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=0, help="games of split train")
    parser.add_argument("--heldout", type=int, default=0, help="games of split valid_seen, in rooms of train")
    parser.add_argument("--unseen", type=int, default=0, help="games of split valid_unseen, in other rooms")
    parser.add_argument(
        "--sizes",
        type=parse_shares,
        default="small=7,medium=2,large=1",
        help="shares of room sizes (%(default)s)",
    )
    parser.add_argument(
        "--unseen-sizes",
        type=parse_shares,
        default="small=1,medium=1,large=1",
        help="the same for valid_unseen",
    )
    parsed = parser.parse_args(arguments)
    if (
        parsed.train + parsed.heldout + parsed.unseen <= 0
        or min(parsed.train, parsed.heldout, parsed.unseen) < 0
    ):
        parser.error(
            "--train, --heldout and --unseen: ask for at least one game, and for no less than 0 of any"
        )
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 when the games could not be made."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_arguments(arguments)
    plans = {
        "train": SplitPlan(options.train, options.sizes),
        "valid_seen": SplitPlan(options.heldout, options.sizes),
        "valid_unseen": SplitPlan(options.unseen, options.unseen_sizes, unseen=True),
    }
    try:
        data = read_package_data()
        prover = Prover(data.rules)
        games = generate_splits(data, plans, options.seed, prover)
    except (PackageDataError, GenerationError) as error:
        logger.error("%s", error)
        return 1
    if options.out.suffix == ".xz":
        write_pack(options.out, games, data.rules)
    else:
        write_folder(options.out, games, data.rules)
    counts = ", ".join(f"{split} {len(made)}" for split, made in games.items())
    mean = sum(prover.plan_lengths) / len(prover.plan_lengths)
    logger.info("%s: %s; mean plan %.1f steps, %d drawn anew", options.out, counts, mean, prover.rejected)
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
