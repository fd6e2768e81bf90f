"""WebShop for SERL: task sets, environments and prompts behind the `EnvProvider` interface."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from envs.arguments import EnvironmentArguments, parse_arguments
from envs.base import PromptParts, Task, TaskSet, TextEnv, manifest_hash
from envs.webshop import prompt
from envs.webshop.catalogue import Catalogue
from envs.webshop.data_files import DATA_VARIABLE, data_folder, embedded_catalogue, find_files, load_catalogue
from envs.webshop.demonstrator import (
    Purchase,
    WebshopDemonstrator,
    actions_left,
    best_purchase,
    prompt_phrases,
)
from envs.webshop.env import Reward, WebshopEnv
from envs.webshop.goals import Goal, goal_fingerprint
from envs.webshop.nouns import FALLBACK
from envs.webshop.packed import PackedCatalogue, find_pack
from envs.webshop.reachability import reachable_on_own_product
from envs.webshop.shop import PRICE_SEED, Shop
from envs.webshop.splits import TRAIN, Protocol, split_goals
from serl.config.nearest import name_hint

logger = logging.getLogger(__name__)

_REMEMBERED_PURCHASES = 128


class WebshopArguments(EnvironmentArguments):
    """``env.args`` of the environment ``webshop``.

    ``catalogue``: ``embedded`` (the generated products that ship with SERL), or WebShop's own ``small``
    (1,000 products) or ``full`` one (1.18 million; made ready once by `tools.prepare_webshop`).
    ``data``: for those two, the folder with WebShop's files, or ``WEBSHOP_DATA`` (the folder that environment
    variable names).
    ``human_goals``: goals written by people instead of synthetic ones over all options.
    ``protocol``: ``disjoint`` (no product is a goal in two splits), or the cut of the ``original`` or of
    ``verl_agent``, for comparison with published numbers.
    ``max_options``: keep only goals that ask for at most so many options (null keeps all).
    ``drop_unreachable``: leave goals out of training that no purchase of their own product meets in full.
    ``price_seed``: the stream that prices and limits are drawn from.
    ``reward``: ``binary`` (``success_reward`` for a full score, else 0) or ``score`` (times the score).
    ``show_admissible_actions``: whether the prompt lists them.
    ``max_observation_tokens``: pages above this estimate are trimmed in the prompt.
    ``strict``: malformed products are an error instead of being skipped and counted.
    """

    catalogue: Literal["embedded", "small", "full"] = "embedded"
    data: str = DATA_VARIABLE
    human_goals: bool = False
    protocol: Protocol = "disjoint"
    max_options: int | None = Field(default=None, ge=0)
    drop_unreachable: bool = False
    price_seed: int = PRICE_SEED
    reward: Reward = "binary"
    success_reward: float = Field(default=10.0, gt=0.0)
    show_admissible_actions: bool = True
    max_observation_tokens: PositiveInt = 1024
    strict: bool = False

    @field_validator("data")
    @classmethod
    def _data_is_read(cls, data: str, info: ValidationInfo) -> str:
        if info.data.get("catalogue") == "embedded":
            raise ValueError("it is only read with env.args.catalogue small or full, and that is embedded")
        return data


class WebshopProvider:
    """One per process; the shop is opened when first needed and shared by all episodes."""

    def __init__(self, arguments: WebshopArguments):
        self.arguments = arguments
        self._lock = threading.Lock()
        self._open_catalogue = self._find_catalogue()
        self._purchase = lru_cache(maxsize=_REMEMBERED_PURCHASES)(self._best_purchase)

    def task_set(self, split: str) -> TaskSet:
        """The goals of ``split`` in the original's order.

        Raises ValueError for a split the protocol does not have, for splits that overlap, for one without
        goals and, if ``strict``, for malformed products; FileNotFoundError without data.
        """
        splits = self._splits
        if split not in splits:
            raise ValueError(
                f"env: unknown split {split!r} with env.args.protocol {self.arguments.protocol}"
                f"{name_hint(split, sorted(splits))}"
            )
        goals = splits[split]
        if self.arguments.drop_unreachable and split == TRAIN:
            unreachable = set(self.unreachable_goals(split))
            goals = tuple(goal for goal in goals if goal.goal_id not in unreachable)
            logger.info("webshop/%s: %d goals that cannot be met in full left out", split, len(unreachable))
        if not goals:
            raise ValueError(
                f"no goal in split {split!r}: {sum(map(len, splits.values()))} goals in all, "
                f"env.args.protocol {self.arguments.protocol}, human_goals {self.arguments.human_goals}, "
                f"max_options {self.arguments.max_options}"
            )
        catalogue = self.shop.catalogue
        return TaskSet(
            name=f"webshop/{split}",
            tasks=tuple(Task(goal.goal_id, self._category(goal)) for goal in goals),
            content_hash=manifest_hash(
                [(g.goal_id, goal_fingerprint(g, catalogue.fingerprint)) for g in goals]
            ),
            skipped=catalogue.report.malformed,
            notes=(f"title nouns from {catalogue.noun_source}",),
        )

    def unreachable_goals(self, split: str) -> tuple[str, ...]:
        """The ids of the goals of ``split`` that no choice of options of their own product meets in full."""
        return tuple(g.goal_id for g in self._splits[split] if not reachable_on_own_product(g, self.shop))

    def goal(self, task_id: str) -> Goal:
        """The goal of a task; raises KeyError for an unknown one."""
        return self._goals[task_id]

    def make_env(self) -> WebshopEnv:
        """A fresh environment in the shared shop."""
        arguments = self.arguments
        blocking = arguments.catalogue == "full"
        return WebshopEnv(self.shop, self.goal, arguments.reward, arguments.success_reward, blocking)

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """Chat messages of one step's prompt."""
        arguments = self.arguments
        return prompt.messages(parts, arguments.show_admissible_actions, arguments.max_observation_tokens)

    def turn_messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """Chat messages that a turn adds to a conversation."""
        arguments = self.arguments
        return prompt.turn_messages(
            parts, arguments.show_admissible_actions, arguments.max_observation_tokens
        )

    def progress(self, env: TextEnv) -> float:
        """Minus the number of actions that lead to the best product, with its options, and buy it."""
        if not isinstance(env, WebshopEnv) or env.engine is None:
            raise ValueError("progress needs an episode under way in a WebshopEnv")
        return -float(actions_left(env.engine, self._purchase(env.engine.goal.goal_id)))

    def demonstrator(self, env: TextEnv, rng: random.Random, detour_share: float) -> WebshopDemonstrator:
        """A shopper for the episode under way in ``env``. Raises ValueError without one."""
        if not isinstance(env, WebshopEnv):
            raise ValueError(f"demonstrations need a WebshopEnv, not {type(env).__name__}")
        return WebshopDemonstrator(env, rng, detour_share)

    def prompt_phrases(self) -> tuple[str, ...]:
        """Fixed wording of prompts, actions and feedback, and the ids of all products."""
        return prompt_phrases(self.shop)

    def _best_purchase(self, goal_id: str) -> Purchase:
        return best_purchase(self.shop, self.goal(goal_id))

    @property
    def shop(self) -> Shop:
        """The shop all episodes play in."""
        with self._lock:
            return self._shop

    @cached_property
    def _shop(self) -> Shop:
        catalogue = self._open_catalogue()
        self._check(catalogue)
        index = catalogue.open_index() if isinstance(catalogue, PackedCatalogue) else None
        return Shop.open(catalogue, index, self.arguments.price_seed)

    def _find_catalogue(self) -> Callable[[], Catalogue]:
        """How to open the catalogue; raises FileNotFoundError at once if it is not there."""
        arguments = self.arguments
        if arguments.catalogue == "embedded":
            return embedded_catalogue
        folder = data_folder(arguments.data)
        if arguments.catalogue == "full":
            packed = PackedCatalogue(find_pack(folder))
            return lambda: packed
        files = find_files(folder, arguments.catalogue)
        if arguments.human_goals and files.human is None:
            raise FileNotFoundError(
                f"env.args.human_goals needs items_human_ins.json in {folder}; WebShop's setup.sh gets it"
            )
        return lambda: load_catalogue(files)

    def _check(self, catalogue: Catalogue) -> None:
        """Says what was loaded; raises ValueError for malformed products if ``strict``."""
        malformed = catalogue.report.malformed
        if self.arguments.strict and malformed:
            raise ValueError(f"{len(malformed)} malformed products: {malformed[0]}")
        for problem in malformed:
            logger.warning("webshop: skipped %s", problem)
        logger.info(
            "webshop: %d products, %d malformed and skipped, %d left out as originally, title nouns from %s",
            *(len(catalogue), len(malformed), catalogue.report.num_left_out, catalogue.noun_source),
        )
        if catalogue.noun_source == FALLBACK:
            logger.warning(
                "webshop: no title nouns: the type part of scores differs a little from the original's; "
                "`python -m tools.prepare_webshop` works them out with spaCy"
            )

    @cached_property
    def _splits(self) -> dict[str, tuple[Goal, ...]]:
        goals = self.shop.goals(self.arguments.human_goals)
        if goals.num_without_attributes:
            logger.info(
                "webshop: %d instructions without attributes make no goal", goals.num_without_attributes
            )
        limit = self.arguments.max_options
        splits = split_goals(goals.goals, self.arguments.protocol)
        return {
            name: tuple(goal for goal in part if limit is None or len(goal.options) <= limit)
            for name, part in splits.items()
        }

    @cached_property
    def _goals(self) -> dict[str, Goal]:
        return {goal.goal_id: goal for goals in self._splits.values() for goal in goals}

    def _category(self, goal: Goal) -> str:
        catalogue = self.shop.catalogue
        return catalogue.titled(catalogue.number_of(goal.asin)).product.category


def make_provider(args: dict[str, Any]) -> WebshopProvider:
    """Builds the provider from ``env.args``; raises ValueError, or FileNotFoundError without data."""
    return WebshopProvider(parse_arguments(WebshopArguments, args))
