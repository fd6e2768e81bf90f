"""Games: one trial folder's rules, texts and first state, compiled once and shared by its episodes."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.alfworld.actions import Action, GroundAction
from envs.alfworld.domain import (
    Domain,
    Rule,
    condition_literals,
    parse_domain,
    schema_conditions,
    split_condition,
)
from envs.alfworld.facts import EVERYWHERE, Fact, Facts
from envs.alfworld.grammar import Grammar, grammar_predicates, parse_grammar
from envs.alfworld.grammar_check import OPENING, check_texts
from envs.alfworld.matching import RuleMatcher, World
from envs.alfworld.pddl import Condition, PddlError, Problem, parse_problem
from envs.alfworld.tasks import choose_goal_sentence, task_type_of
from envs.alfworld.text import TextWriter
from envs.alfworld.text_syntax import Entity, GrammarError, Reference
from serl.config.yaml_files import is_unicode

UNKNOWN_GOAL = "UNKNOWN GOAL"
_PROBLEM, _TRAJECTORY, _GAME_FILE = "initial_state.pddl", "traj_data.json", "game.tw-pddl"
_TASK_SENTENCE = re.compile(r'(Your task is to: )([^"]*)(\.")')


class GameDataError(ValueError):
    """A game's files are missing or cannot be read."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class GameLogic:
    """The texts all games share: the PDDL domain and the text grammar without a task."""

    domain: str
    grammar: str


@dataclass(frozen=True, slots=True, eq=False)
class Game:
    """A game that is never changed: any number of episodes and threads may share it.

    Object ids are the problem's names in lower case; `entities` has their names in the texts. `opening`,
    `first_found` and `first_won` are the first observation, and what each of `actions` finds and whether
    the goal holds in the first state. `readers` has the positions in `actions` of those whose commands
    depend on a predicate.
    """

    trial: str
    task_type: str
    task_description: str
    logic: GameLogic
    problem_pddl: str
    goal: Condition
    world: World
    first_facts: Facts
    entities: Mapping[str, Entity]
    writer: TextWriter
    actions: tuple[Action, ...]
    goal_matchers: tuple[RuleMatcher, ...]
    goal_reads: frozenset[str]
    readers: Mapping[str, tuple[int, ...]]
    opening: str
    first_found: tuple[list[tuple[str, GroundAction]], ...]
    first_won: bool


@lru_cache(maxsize=1)
def package_logic() -> GameLogic | None:
    """The domain and grammar of the installed `alfworld` package, or None if it is not installed.

    The package is found, not imported: importing it needs TextWorld and makes folders.
    """
    spec = importlib.util.find_spec("alfworld")
    for location in (spec.submodule_search_locations or []) if spec else []:
        domain, grammar = Path(location, "data", "alfred.pddl"), Path(location, "data", "alfred.twl2")
        if domain.is_file() and grammar.is_file():
            return GameLogic(domain.read_text(encoding="utf-8"), grammar.read_text(encoding="utf-8"))
    return None


@dataclass(frozen=True, slots=True)
class GameFiles:
    """A trial folder's files, read as far as can be without building the game.

    Whoever lists games and whoever builds them read them here, and so agree on which can be read.
    ``contents``: the bytes of each file. ``game_file``: `game.tw-pddl`, None if there is none.
    """

    trial_dir: Path
    contents: Mapping[str, bytes]
    problem: str
    traj_data: dict[str, Any]
    game_file: dict[str, Any] | None

    @classmethod
    def read(cls, trial_dir: Path) -> GameFiles:
        """Raises GameDataError for a file that is missing, not UTF-8 text, or not JSON as it should be."""
        names = [_PROBLEM, _TRAJECTORY, *([_GAME_FILE] if (trial_dir / _GAME_FILE).exists() else [])]
        contents = {name: _read_bytes(trial_dir / name) for name in names}
        problem = _text_of(trial_dir / _PROBLEM, contents[_PROBLEM])
        traj_data = _json_of(trial_dir / _TRAJECTORY, contents[_TRAJECTORY])
        stored = _json_of(trial_dir / _GAME_FILE, contents[_GAME_FILE]) if _GAME_FILE in contents else None
        return cls(trial_dir, contents, problem, traj_data, stored)

    @property
    def marked_solvable(self) -> bool:
        return self.game_file is not None and self.game_file.get("solvable") is True

    def statement(self, task_description: str | None = None) -> Statement:
        """What the game is about, and its rules: the installed package's, else those in `game.tw-pddl`.

        Raises GameDataError if there are neither, or the files do not say.
        """
        stored = None
        if self.game_file is not None:
            stored, sentence = _stored_logic(self.trial_dir / _GAME_FILE, self.game_file)
            task_description = task_description or sentence
        trial = "/".join(self.trial_dir.parts[-2:])
        return _stated(self.trial_dir, trial, self.traj_data, package_logic() or stored, task_description)

    def rules(self, statement: Statement) -> GameRules:
        """The problem and the texts that it is played by, checked against each other.

        Raises GameDataError if a game cannot be built of them.
        """
        return _rules(self.trial_dir, statement, self.problem)


@dataclass(frozen=True, slots=True)
class Statement:
    """Which game it is, without the problem: its trial, the kind and the sentence of its task, its rules."""

    trial: str
    task_type: str
    task_description: str
    logic: GameLogic


@dataclass(frozen=True, slots=True)
class GameRules:
    """What a game is built of, read and checked. ``goal``: the alternatives, one of which must hold."""

    domain: Domain
    grammar: Grammar
    problem: Problem
    goal: tuple[Rule, ...]


def load_game(trial_dir: Path, task_description: str | None = None) -> Game:
    """Load the game of a trial folder: `initial_state.pddl` and `traj_data.json`, `game.tw-pddl` if there.

    The domain and grammar are the installed `alfworld` package's, else those in `game.tw-pddl`. The goal
    sentence is `task_description`, else the one in `game.tw-pddl`, else chosen by the trial's name.

    Raises:
        GameDataError: a file is missing or malformed, or there is neither package nor `game.tw-pddl`.
    """
    files = GameFiles.read(Path(trial_dir))
    statement = files.statement(task_description)
    return _compile(statement, files.rules(statement), files.problem)


def build_game(
    trial: str, problem_pddl: str, traj_data: dict[str, Any], task_description: str | None = None
) -> Game:
    """Build a game from the texts of its problem and `traj_data`, without files of its own.

    The goal sentence is `task_description`, else chosen by the trial's name.

    Raises:
        GameDataError: the texts are malformed, or the `alfworld` package is not installed.
    """
    statement = _stated(trial, trial, traj_data, package_logic(), task_description)
    return _compile(statement, _rules(trial, statement, problem_pddl), problem_pddl)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GameDataError(path, error.strerror or "cannot be read") from error


def _text_of(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GameDataError(path, f"is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _json_of(path: Path, content: bytes) -> dict[str, Any]:
    text = _text_of(path, content)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GameDataError(path, f"is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise GameDataError(path, "is not a JSON object")
    return data


def _stored_logic(path: Path, data: dict[str, Any]) -> tuple[GameLogic, str]:
    """The logic in a `game.tw-pddl`, its task taken out of the grammar, and the task."""
    domain, grammar = data.get("pddl_domain"), data.get("grammar")
    if not isinstance(domain, str) or not isinstance(grammar, str):
        raise GameDataError(path, "lacks pddl_domain or grammar")
    sentence = _TASK_SENTENCE.search(grammar)
    if sentence is None:
        raise GameDataError(path, "its grammar states no task")
    return GameLogic(domain, _TASK_SENTENCE.sub(rf"\g<1>{UNKNOWN_GOAL}\g<3>", grammar, count=1)), sentence[2]


def _stated(
    path: str | Path,
    trial: str,
    traj_data: dict[str, Any],
    logic: GameLogic | None,
    task_description: str | None,
) -> Statement:
    if logic is None:
        raise GameDataError(path, "needs the alfworld package, or a game.tw-pddl beside it, for its rules")
    try:
        task_type = task_type_of(traj_data)
        description = task_description or choose_goal_sentence(trial, traj_data)
    except ValueError as error:
        raise GameDataError(path, f"{_TRAJECTORY}: {error}") from error
    if not is_unicode(description):
        raise GameDataError(path, f"the task {description!r} holds half a character (a lone surrogate)")
    return Statement(trial, task_type, description, logic)


def _rules(path: str | Path, statement: Statement, problem_pddl: str) -> GameRules:
    logic = statement.logic
    try:
        domain, grammar = _parse_logic(logic)
        problem = parse_problem(problem_pddl)
        _check(domain, problem)
        return GameRules(domain, grammar, problem, tuple(split_condition(problem.goal)))
    except (PddlError, GrammarError, RecursionError) as error:
        raise GameDataError(path, str(error)) from error


def _compile(statement: Statement, rules: GameRules, problem_pddl: str) -> Game:
    domain, grammar, problem = rules.domain, rules.grammar, rules.problem
    positions = _index_positions(domain)
    static = Facts((fact for fact in problem.facts if fact[0] not in domain.fluents), positions)
    first_facts = Facts((fact for fact in problem.facts if fact[0] in domain.fluents), positions)
    world = World(domain, static, _objects_by_type(domain, problem), _fanout(problem))
    entities = name_entities(problem)
    fluents = domain.fluents | {f"not_{name}" for name in domain.fluents}
    writer = TextWriter(grammar, world, entities, problem.objects, fluents)
    goal_reads = frozenset(literal.predicate for literal in condition_literals(problem.goal))
    goal_matchers = tuple(RuleMatcher(rule, world) for rule in rules.goal)
    read = goal_reads | _read_predicates(domain) | grammar_predicates(grammar)
    actions = tuple(
        Action(schema, grammar.actions[name], writer, read) for name, schema in domain.schemas.items()
    )
    opening = writer.write((Reference(OPENING),), writer.scope({}), first_facts)
    return Game(
        trial=statement.trial,
        task_type=statement.task_type,
        task_description=statement.task_description,
        logic=statement.logic,
        problem_pddl=problem_pddl,
        goal=problem.goal,
        world=world,
        first_facts=first_facts,
        entities=entities,
        writer=writer,
        actions=actions,
        goal_matchers=goal_matchers,
        goal_reads=goal_reads,
        readers={
            name: tuple(at for at, action in enumerate(actions) if name in action.reads)
            for name in domain.fluents
        },
        opening=opening.replace(UNKNOWN_GOAL, statement.task_description),
        first_found=tuple(action.applicable(first_facts) for action in actions),
        first_won=any(matcher.bindings(first_facts) for matcher in goal_matchers),
    )


@lru_cache(maxsize=8)
def _parse_logic(logic: GameLogic) -> tuple[Domain, Grammar]:
    domain, grammar = parse_domain(logic.domain), parse_grammar(logic.grammar)
    check_texts(grammar, domain)
    return domain, grammar


def _check(domain: Domain, problem: Problem) -> None:
    for literal in condition_literals(problem.goal):
        domain.check_use(literal.predicate, len(literal.args))
    for fact in problem.facts:
        domain.check_use(fact[0], len(fact) - 1)


def _read_predicates(domain: Domain) -> set[str]:
    literals = [literal for schema in domain.schemas.values() for literal in schema_conditions(schema)]
    return {literal.predicate for literal in literals}


def _index_positions(domain: Domain) -> dict[str, tuple[int, ...]]:
    """Index by every argument, but not predicates of one argument: those are looked up whole."""
    positions = {name: tuple(range(1, arity + 1)) for name, arity in domain.arities.items() if arity > 1}
    return positions | {f"not_{name}": at for name, at in positions.items()}


def _objects_by_type(domain: Domain, problem: Problem) -> dict[str, dict[str, None]]:
    objects: dict[str, list[str]] = defaultdict(list)
    for name, type_name in problem.objects.items():
        for known in {type_name} | domain.supertypes.get(type_name, frozenset()):
            objects[known].append(name)
    return {type_name: dict.fromkeys(sorted(names)) for type_name, names in objects.items()}


def _fanout(problem: Problem) -> dict[tuple[str, int], float]:
    """How many facts each predicate has, and how many different values at each of its arguments."""
    values: dict[tuple[str, int], set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for fact in problem.facts:
        counts[fact[0]] += 1
        for position, value in enumerate(fact[1:], 1):
            values[fact[0], position].add(value)
    fanout = {key: float(len(found)) for key, found in values.items()}
    return fanout | {(name, EVERYWHERE): float(count) for name, count in counts.items()}


def name_entities(problem: Problem) -> dict[str, Entity]:
    """Names for the texts: the kind and a number, "mug 2"; the smallest id of a kind has the highest number.

    The kind is what stands before the first `_bar_` of an id, with "basin" added if the id has that word
    anywhere. An id without `_bar_` keeps its name, and the original's blank after it. Objects that no fact
    mentions are not counted.
    """
    mentioned: set[Fact | str] = {value for fact in problem.facts for value in fact[1:]}
    kinds = {name: _kind(name) for name in problem.objects if "_bar_" in name}
    remaining = Counter(kind for name, kind in kinds.items() if name in mentioned)
    names: dict[str, str] = {}
    for name in sorted(problem.objects):
        if name not in mentioned:
            names[name] = name
        elif name in kinds:
            names[name] = f"{kinds[name]} {remaining[kinds[name]]}"
            remaining[kinds[name]] -= 1
        else:
            names[name] = f"{_unescaped(name)} "
    return {name: Entity(name, names[name], type_name) for name, type_name in problem.objects.items()}


def _kind(name: str) -> str:
    kind = _unescaped(name).partition("|")[0]
    return f"{kind}basin" if "basin" in name else kind


def _unescaped(name: str) -> str:
    for escape, character in (("bar", "|"), ("minus", "-"), ("plus", "+"), ("dot", "."), ("comma", ",")):
        name = name.replace(f"_{escape}_", character)
    return name
