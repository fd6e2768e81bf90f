"""The planner with full knowledge and the searcher without."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import pytest

from envs.alfworld.demonstrator import AlfworldDemonstrator
from envs.alfworld.engine import Engine
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.game import Game, build_game
from envs.alfworld.generator.description import Furniture, GameDescription, Goal, PlacedObject
from envs.alfworld.generator.package_data import read_package_data
from envs.alfworld.generator.problem import problem_pddl, traj_data
from envs.alfworld.oracle import NoPlanError, Searcher, plan
from envs.alfworld.pack import embedded_pack
from envs.alfworld.searcher import SearchGoal, parse_goal
from envs.alfworld.tasks import GOAL_SENTENCES

KITCHEN = (
    Furniture("CounterTop", (0, 90, 0), (0, 0, 0, 60)),
    Furniture("Drawer", (100, 70, 0), (4, 0, 0, 60)),
    Furniture("Fridge", (200, 0, 0), (8, 0, 0, 60)),
    Furniture("Microwave", (300, 90, 0), (12, 0, 0, 60)),
    Furniture("SinkBasin", (400, 80, 0), (16, 0, 0, 60)),
    Furniture("DiningTable", (500, 80, 0), (20, 0, 0, 60)),
    Furniture("Shelf", (600, 80, 0), (24, 0, 0, 60)),
    Furniture("Desk", (700, 80, 0), (28, 0, 0, 60)),
)
COUNTER, DRAWER, FRIDGE, TABLE, SHELF, DESK = 0, 1, 2, 5, 6, 7


def room(goal: Goal, *things: tuple[str, int], closing: bool = False, homeless: str = "") -> Game:
    """A kitchen with a desk; with ``closing`` the goal also asks for every receptacle to be closed.

    What is ``homeless`` can be taken, but no receptacle takes it back.
    """
    description = GameDescription(
        goal=goal,
        size="small",
        floor_plan=1,
        start=(40, 40, 0, 30),
        furniture=KITCHEN,
        objects=tuple(
            PlacedObject(name, (10 * at, 100 + at, 5), where) for at, (name, where) in enumerate(things)
        ),
    )
    problem = problem_pddl(description, read_package_data().rules)
    if closing:
        problem = problem.replace("(:goal (and", "(:goal (and (forall (?re - receptacle) (not (opened ?re)))")
    if homeless:
        problem = re.sub(rf"\(canContain \w+ {homeless}Type\)", "", problem)
    return build_game(description.trial, problem, traj_data(description))


def played(game: Game, commands: list[str]) -> bool:
    engine = Engine(game)
    frame = engine.reset()
    for command in commands:
        assert command in frame.admissible_commands
        frame = engine.step(command)
    return frame.won


def test_a_watch_in_a_drawer_goes_to_the_shelf_in_five_steps():
    game = room(Goal("pick_and_place_simple", "Watch", parent="Shelf"), ("Watch", DRAWER), ("Mug", COUNTER))
    assert plan(game) == [
        "go to drawer 1",
        "open drawer 1",
        "take watch 1 from drawer 1",
        "go to shelf 1",
        "move watch 1 to shelf 1",
    ]


@pytest.mark.parametrize(
    ("verb", "place"), [("clean", "sinkbasin"), ("heat", "microwave"), ("cool", "fridge")]
)
def test_a_changed_mug_takes_a_visit_to_its_appliance(verb: str, place: str):
    game = room(Goal(f"pick_{verb}_then_place_in_recep", "Mug", parent="Shelf"), ("Mug", COUNTER))
    assert plan(game) == [
        "go to countertop 1",
        "take mug 1 from countertop 1",
        f"go to {place} 1",
        f"{verb} mug 1 with {place} 1",
        "go to shelf 1",
        "move mug 1 to shelf 1",
    ]


def test_two_mugs_are_carried_one_after_the_other():
    game = room(Goal("pick_two_obj_and_place", "Mug", parent="Shelf"), ("Mug", COUNTER), ("Mug", COUNTER))
    commands = plan(game)
    assert len(commands) == 8 and played(game, commands)
    assert [command.split()[0] for command in commands] == ["go", "take", "go", "move"] * 2


def test_one_of_two_mugs_already_in_place_stays_there():
    game = room(Goal("pick_two_obj_and_place", "Mug", parent="Shelf"), ("Mug", SHELF), ("Mug", TABLE))
    commands = plan(game)
    assert len(commands) == 4 and played(game, commands)


def test_a_book_is_looked_at_where_the_lamp_stands():
    game = room(
        Goal("look_at_obj_in_light", "Book", toggle="DeskLamp"),
        ("Book", DRAWER),
        ("DeskLamp", DESK),
        ("Mug", DESK),
    )
    assert plan(game) == [
        "go to drawer 1",
        "open drawer 1",
        "take book 1 from drawer 1",
        "go to desk 1",
        "use desklamp 1",
    ]


def test_a_goal_that_wants_all_closed_ends_with_closing_the_drawer():
    goal = Goal("pick_and_place_simple", "Watch", parent="Shelf")
    game = room(goal, ("Watch", DRAWER), closing=True)
    commands = plan(game)
    assert commands[-2:] == ["go to drawer 1", "close drawer 1"] and played(game, commands)


def test_a_plan_can_start_in_the_middle_with_the_wrong_thing_in_hand():
    game = room(
        Goal("pick_heat_then_place_in_recep", "Potato", parent="DiningTable"),
        ("Potato", FRIDGE),
        ("Mug", COUNTER),
    )
    engine = Engine(game)
    engine.reset()
    for command in ("go to fridge 1", "open fridge 1", "go to countertop 1", "take mug 1 from countertop 1"):
        engine.step(command)
    before = engine.step("look")
    commands = plan(engine)
    assert engine.step("look") == before
    assert commands[0] == "move mug 1 to countertop 1" and "open fridge 1" not in commands
    for command in commands:
        frame = engine.step(command)
    assert frame.won and plan(engine) == []


def test_a_plan_in_the_middle_does_not_heat_twice_what_it_holds():
    game = room(Goal("pick_heat_then_place_in_recep", "Potato", parent="DiningTable"), ("Potato", COUNTER))
    engine = Engine(game)
    engine.reset()
    for command in plan(game)[:4]:
        engine.step(command)
    assert plan(engine) == ["go to diningtable 1", "move potato 1 to diningtable 1"]


def test_a_game_without_the_object_has_no_plan():
    game = room(Goal("pick_and_place_simple", "Watch", parent="Shelf"), ("Mug", COUNTER))
    with pytest.raises(NoPlanError, match="pick_and_place_simple-Watch-None-Shelf-1"):
        plan(game)


def test_an_action_into_a_dead_end_brings_nothing_nearer_and_from_there_no_action_is_best():
    goal = Goal("pick_and_place_simple", "Watch", parent="Shelf")
    game = room(goal, ("Watch", COUNTER), ("Mug", COUNTER), homeless="Mug")
    env = AlfworldEnv(lambda _: game, Engine, success_reward=1.0)
    _, info = env.reset(options={"task_id": "watch"})
    demonstrator = AlfworldDemonstrator(env, info["task_description"], random.Random(0), 0.0)
    assert demonstrator.best_action() == "go to countertop 1"
    env.step("go to countertop 1")
    assert demonstrator.try_out("take watch 1 from countertop 1")[1]
    assert not demonstrator.try_out("take mug 1 from countertop 1")[1]
    env.step("take mug 1 from countertop 1")
    assert demonstrator.best_action() is None
    assert not demonstrator.try_out("go to shelf 1")[1]


def test_every_goal_sentence_of_alfworld_is_understood():
    understood = {
        parse_goal(f"Your task is to: {sentence.format(obj='mug', recep='shelf', toggle='desklamp')}.")
        for sentences in GOAL_SENTENCES.values()
        for sentence in sentences
    }
    assert understood == {
        SearchGoal("mug", parent="shelf"),
        SearchGoal("mug", parent="shelf", count=2),
        SearchGoal("mug", parent="shelf", verb="clean"),
        SearchGoal("mug", parent="shelf", verb="heat"),
        SearchGoal("mug", parent="shelf", verb="cool"),
        SearchGoal("mug", toggle="desklamp"),
    }


@pytest.mark.parametrize("sentence", ["", "clean the kitchen", "put a hot slice of bread in fridge"])
def test_other_sentences_are_refused(sentence: str):
    with pytest.raises(ValueError, match="not a goal sentence"):
        parse_goal(sentence)


@dataclass(frozen=True)
class Outcome:
    won: bool
    steps: int
    thoughts: tuple[str, ...]


def search(game: Game, limit: int, noise: float = 0.0, order: str = "plausible", seed: int = 0) -> Outcome:
    engine = Engine(game)
    frame = engine.reset()
    searcher = Searcher(game.task_description, random.Random(seed), noise, order)
    thoughts: list[str] = []
    while not frame.done and len(thoughts) < limit:
        thought, action = searcher.act(frame.observation, frame.admissible_commands)
        assert action in frame.admissible_commands
        thoughts.append(thought)
        frame = engine.step(action)
    return Outcome(frame.won, len(thoughts), tuple(thoughts))


@pytest.mark.parametrize("order", ["plausible", "listed"])
def test_the_searcher_wins_small_games_of_every_kind(order: str):
    pack = embedded_pack()
    small = [entry for entry in pack.entries("valid_seen") if entry.size == "small"][::5]
    outcomes = {entry.task_id: search(pack.load(entry.task_id), 30, order=order) for entry in small}
    assert {entry.task_type for entry in small} == set(GOAL_SENTENCES)
    assert sum(outcome.won for outcome in outcomes.values()) >= 0.95 * len(small)
    assert sum(outcome.steps for outcome in outcomes.values()) / len(small) < 12


def test_the_searcher_makes_up_for_its_noise():
    pack = embedded_pack()
    small = [entry for entry in pack.entries("train") if entry.size == "small"][:300:7]
    outcomes = [search(pack.load(entry.task_id), 50, noise=0.3) for entry in small]
    assert sum(outcome.won for outcome in outcomes) >= 0.9 * len(small)
    assert any("try something" in outcome.thoughts for outcome in outcomes)


def test_the_searcher_thinks_of_what_it_does():
    game = room(Goal("pick_clean_then_place_in_recep", "Mug", parent="Shelf"), ("Mug", COUNTER))
    thoughts = search(game, 40).thoughts
    stages = list(dict.fromkeys(thoughts))
    assert stages == ["find mug", "take mug", "clean mug", "put mug"]


def test_the_same_rng_plays_the_same_episode():
    pack = embedded_pack()
    game = pack.load(pack.task_ids("train")[5])
    assert search(game, 50, noise=0.2, seed=4) == search(game, 50, noise=0.2, seed=4)


def test_the_searcher_closes_what_it_opened_where_the_goal_wants_it():
    game = room(Goal("pick_and_place_simple", "Watch", parent="Shelf"), ("Watch", DRAWER), closing=True)
    assert search(game, 50).won


def test_receptacles_in_reach_from_one_place_are_all_looked_into():
    description = GameDescription(
        goal=Goal("pick_and_place_simple", "Watch", parent="Desk"),
        size="small",
        floor_plan=1,
        start=(9, 9, 0, 30),
        furniture=(
            Furniture("Desk", (0, 0, 0), (0, 0, 0, 60)),
            Furniture("Drawer", (100, 20, 0), (1, 1, 0, 60)),
            Furniture("Drawer", (100, 40, 0), (1, 1, 0, 60)),
        ),
        objects=(PlacedObject("Watch", (100, 25, 0), 1),),
    )
    game = build_game(
        description.trial, problem_pddl(description, read_package_data().rules), traj_data(description)
    )
    assert all(search(game, 12, seed=seed).won for seed in range(10))
    assert played(game, plan(game))


def test_an_unknown_search_order_is_refused():
    with pytest.raises(ValueError, match="unknown search order 'random'"):
        Searcher("put a mug in shelf", random.Random(0), search_order="random")
