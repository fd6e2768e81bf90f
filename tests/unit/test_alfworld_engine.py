from __future__ import annotations

import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

from alfworld_small_game import (
    APPLE_ON_DESK,
    HOLD_APPLE_IN_LIGHT,
    TWO_APPLES_ON_DESK,
    play,
    said,
    small_game,
    walk,
)

from envs.alfworld.engine import Engine
from envs.alfworld.textworld_engine import MissingTextWorldError, TextWorldEngine

TAKE_COLD_APPLE = ("go to fridge 1", "open fridge 1", "take apple 2 from fridge 1")


def test_the_opening_lists_receptacles_by_id_and_the_smallest_id_has_the_highest_number() -> None:
    frame = Engine(small_game()).reset()
    assert frame.observation == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
        "you see a desk 1, a fridge 1, a microwave 1, a shelf 2, a shelf 1, and a sinkbasin 1.\n\n"
        "Your task is to: put some apple on desk."
    )
    assert frame.admissible_commands == [
        "go to desk 1",
        "go to fridge 1",
        "go to microwave 1",
        "go to shelf 1",
        "go to shelf 2",
        "go to sinkbasin 1",
        "help",
        "inventory",
        "look",
    ]
    assert (frame.won, frame.done, frame.score) == (False, False, 0)


def test_looking_at_the_start_shows_nothing() -> None:
    assert said("look") == "You are in the middle of a room. Looking quickly around you, you see nothing."


def test_one_arrives_at_a_receptacle_and_sees_what_is_on_it_in_order_of_ids() -> None:
    assert said("go to shelf 2") == "You arrive at shelf 2. On the shelf 2, you see a apple 1, and a knife 1."
    assert said("go to fridge 1") == "You arrive at fridge 1. The fridge 1 is closed."
    opened = "You open the fridge 1. The fridge 1 is open. In it, you see a apple 2."
    assert said("go to fridge 1", "open fridge 1") == opened
    assert said("go to sinkbasin 1") == "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing."


def test_going_to_a_receptacle_at_ones_own_place_is_not_admissible() -> None:
    frame = play(Engine(small_game()), "go to shelf 1")
    assert {"examine shelf 1", "examine shelf 2", "take mug 1 from shelf 1"} <= set(frame.admissible_commands)
    assert not {"go to shelf 1", "go to shelf 2"} & set(frame.admissible_commands)
    assert said("go to shelf 1", "go to shelf 2") == "Nothing happens."


def test_commands_may_have_white_space_around_them_but_not_other_case() -> None:
    assert said("  look \n") == said("look")
    for command in (
        "LOOK",
        "Look",
        "go  to desk 1",
        "go to desk 1.",
        "",
        " ",
        "go to",
        "{r}",
        "examine agent1",
    ):
        assert said(command) == "Nothing happens."


def test_help_has_no_newline_at_its_beginning_but_one_at_its_end() -> None:
    text = said("help")
    assert text.startswith("Available commands:\n  look:                             look around")
    assert text.endswith("slice an object using a sharp object\n")


def test_only_a_held_object_can_be_examined() -> None:
    frame = play(Engine(small_game()), "go to shelf 1")
    assert "examine mug 1" not in frame.admissible_commands
    assert said("go to shelf 1", "examine mug 1") == "Nothing happens."
    examined = said("go to shelf 1", "take mug 1 from shelf 1", "examine mug 1")
    assert examined == "This is a normal mug 1. In it, you see nothing."
    knife = said("go to shelf 1", "take knife 1 from shelf 2", "examine knife 1")
    assert knife == "There's nothing special about knife 1."


def test_one_hand_holds_one_object() -> None:
    engine = Engine(small_game())
    frame = play(engine, "go to shelf 1", "take mug 1 from shelf 1")
    assert engine.step("inventory").observation == "You are carrying: a mug 1."
    assert not any(command.startswith("take") for command in frame.admissible_commands)
    assert {"move mug 1 to shelf 1", "move mug 1 to shelf 2"} <= set(frame.admissible_commands)
    assert said("inventory") == "You are not carrying anything."


def test_heating_cooling_and_cleaning_need_the_place_but_no_open_door() -> None:
    engine = Engine(small_game())
    play(engine, *TAKE_COLD_APPLE, "close fridge 1")
    assert engine.step("heat apple 2 with microwave 1").observation == "Nothing happens."
    assert engine.step("cool apple 2 with fridge 1").observation == "You cool the apple 2 using the fridge 1."
    assert engine.step("examine apple 2").observation == "This is a cold apple 2."
    engine.step("go to microwave 1")
    assert (
        engine.step("heat apple 2 with microwave 1").observation
        == "You heat the apple 2 using the microwave 1."
    )
    assert engine.step("examine apple 2").observation == "This is a hot apple 2."
    engine.step("go to sinkbasin 1")
    assert (
        engine.step("clean apple 2 with sinkbasin 1").observation
        == "You clean the apple 2 using the sinkbasin 1."
    )
    assert engine.step("examine apple 2").observation == "This is a hot and clean apple 2."


def test_slicing_needs_a_knife_in_hand_and_the_object_at_ones_place() -> None:
    engine = Engine(small_game())
    frame = play(engine, "go to shelf 1", "take knife 1 from shelf 2")
    assert "slice apple 1 with knife 1" in frame.admissible_commands
    assert "slice apple 2 with knife 1" not in frame.admissible_commands
    assert engine.step("slice apple 1 with knife 1").observation == "You sliced the apple 1 with the knife 1."
    engine.step("move knife 1 to shelf 1")
    engine.step("take apple 1 from shelf 2")
    assert engine.step("examine apple 1").observation == "This is a sliced apple 1."


def test_a_lamp_is_turned_on_every_time_it_is_used() -> None:
    lit = "You turn on the desklamp 1."
    assert said("go to desk 1", "use desklamp 1") == lit
    assert said("go to desk 1", "use desklamp 1", "use desklamp 1") == lit


def test_what_was_moved_between_receptacles_at_one_place_lies_next_to_the_other() -> None:
    moved = ("go to shelf 1", "take mug 1 from shelf 1", "move mug 1 to shelf 2", "look")
    assert said(*moved) == "You are facing the shelf 2, and shelf 1. Next to it, you see a mug 1."
    assert (
        said("go to shelf 1", "look")
        == "You are facing the shelf 2, and shelf 1. Next to it, you see nothing."
    )


def test_an_object_in_two_receptacles_is_taken_from_one() -> None:
    both = "(inReceptacle Mug_bar__plus_01 Sink_bar__plus_01_bar_SinkBasin)"
    engine = Engine(small_game(facts=both))
    play(engine, "go to shelf 1", "take mug 1 from shelf 1")
    on_sink = "You arrive at sinkbasin 1. On the sinkbasin 1, you see a mug 1."
    assert engine.step("go to sinkbasin 1").observation == on_sink


def test_the_game_goes_on_after_a_win_and_taking_the_object_back_undoes_it() -> None:
    engine = Engine(small_game())
    won = play(engine, *TAKE_COLD_APPLE, "go to desk 1", "move apple 2 to desk 1")
    assert (won.observation, won.won, won.done, won.score) == (
        "You move the apple 2 to the desk 1.",
        True,
        True,
        1,
    )
    assert engine.step("xyzzy").won
    undone = engine.step("take apple 2 from desk 1")
    assert (undone.won, undone.done, undone.score) == (False, False, 0)


def test_two_objects_must_be_two() -> None:
    engine = Engine(small_game(TWO_APPLES_ON_DESK))
    one = play(engine, *TAKE_COLD_APPLE, "go to desk 1", "move apple 2 to desk 1")
    assert not one.won
    for command in ("go to shelf 1", "take apple 1 from shelf 2", "go to desk 1", "move apple 1 to desk 1"):
        frame = engine.step(command)
    assert frame.won


def test_examining_in_the_light_needs_lamp_and_object_at_once() -> None:
    engine = Engine(small_game(HOLD_APPLE_IN_LIGHT))
    assert not play(engine, "go to desk 1", "use desklamp 1", *TAKE_COLD_APPLE).won
    assert engine.step("go to desk 1").won


def test_a_goal_can_ask_for_every_receptacle_to_be_closed() -> None:
    engine = Engine(small_game(f"(and {APPLE_ON_DESK} (forall (?re - receptacle) (not (opened ?re))))"))
    assert not play(engine, *TAKE_COLD_APPLE, "go to desk 1", "move apple 2 to desk 1").won
    engine.step("go to fridge 1")
    assert engine.step("close fridge 1").won


def test_a_copy_goes_its_own_way() -> None:
    engine = Engine(small_game())
    play(engine, "go to shelf 1")
    copy = engine.copy()
    copy.step("take mug 1 from shelf 1")
    original, copied = engine.step("inventory"), copy.step("inventory")
    assert (original.observation, copied.observation) == (
        "You are not carrying anything.",
        "You are carrying: a mug 1.",
    )
    assert "take mug 1 from shelf 1" in original.admissible_commands
    assert "take mug 1 from shelf 1" not in copied.admissible_commands


def test_episodes_of_one_game_in_many_threads_give_the_same_answers_as_alone() -> None:
    alone = [walk(small_game(), seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(walk, [small_game()] * 24, range(24)))
    assert together == alone


def test_an_episode_takes_less_than_a_megabyte() -> None:
    game = small_game()
    walk(game, 0)
    tracemalloc.start()
    engine = Engine(game)
    frame = engine.reset()
    for seed in range(200):
        frame = engine.step(random.Random(seed).choice(frame.admissible_commands))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1 << 20


def test_the_original_engine_gives_the_same_answers_or_says_what_to_install() -> None:
    game = small_game(facts="(inReceptacle Mug_bar__plus_01 Sink_bar__plus_01_bar_SinkBasin)")
    try:
        original = TextWorldEngine(game)
    except MissingTextWorldError as error:
        assert "pip install textworld" in str(error)
        return
    chooser = random.Random(0)
    engine = Engine(game)
    frame = engine.reset()
    assert original.reset() == frame
    for _ in range(60):
        command = chooser.choice([*frame.admissible_commands, frame.admissible_commands[0].upper()])
        frame = engine.step(command)
        assert original.step(command) == frame
    original.close()
