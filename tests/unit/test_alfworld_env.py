from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envs.alfworld.engine import Engine, Frame
from envs.alfworld.env import AlfworldEnv, split_task
from envs.alfworld.game import Game, GameDataError, package_logic
from envs.alfworld.one_thread import OneThreadEngine
from envs.alfworld.oracle import plan
from envs.alfworld.pack import embedded_pack
from envs.alfworld.provider import AlfworldProvider, make_provider
from envs.base import assert_disjoint
from envs.registry import make_provider as make_registered_provider
from serl.config.load import load_experiment
from serl.run.preflight import examine_inputs
from tools.make_alfworld_games import main as make_games


@pytest.fixture(scope="module")
def generated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alfworld") / "games"
    arguments = ["--train", "12", "--heldout", "6", "--sizes", "small=1", "--seed", "3"]
    assert make_games(["--out", str(folder), *arguments]) == 0
    return folder


@pytest.fixture
def game_folder(generated_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(generated_folder, tmp_path / "games")


def trial_folders(root: Path, split: str) -> list[Path]:
    return sorted((root / "json_2.1.1" / split).glob("*/*"))


def write_game_files(root: Path, split: str) -> None:
    """Gives every game of a split the game file of `alfworld-download`, marked as solvable."""
    for folder in trial_folders(root, split):
        stored = {"pddl_domain": "…", "grammar": 'x "Your task is to: look."', "solvable": True}
        (folder / "game.tw-pddl").write_text(json.dumps(stored))


def started(provider: AlfworldProvider, number: int = 0, split: str = "train") -> AlfworldEnv:
    env = provider.make_env()
    env.reset(options={"task_id": provider.task_set(split).tasks[number].task_id})
    return env


def game_of(env: AlfworldEnv) -> Game:
    assert isinstance(env.engine, Engine)
    return env.engine.game


def test_the_games_that_ship_with_the_package_are_the_default() -> None:
    provider = make_registered_provider("alfworld", {})
    train, seen = provider.task_set("train"), provider.task_set("valid_seen")
    assert len(train) >= 2000 and len(seen) >= 200
    assert len({task.task_type for task in train.tasks}) == 6
    assert_disjoint(train, seen, provider.task_set("valid_unseen"))


def test_a_training_game_is_found_among_the_evaluation_games_even_under_another_name(
    game_folder: Path,
) -> None:
    games = game_folder / "json_2.1.1"
    folder = trial_folders(game_folder, "train")[0]
    shutil.copytree(folder, games / "valid_seen" / folder.parent.name / "trial_T20000101_000000_000000")
    provider = make_provider({"data": str(game_folder)})
    train, seen = provider.task_set("train"), provider.task_set("valid_seen")
    name = f"{folder.parent.name}/trial_T20000101_000000_000000"
    sentence = f"task '{name}' of 'alfworld/valid_seen' is also in 'alfworld/train'"
    with pytest.raises(ValueError, match=sentence):
        assert_disjoint(train, seen)
    experiment = load_experiment(
        Path(__file__).parents[2] / "experiments" / "quickstart.yaml", [f"env.args={{data: {game_folder}}}"]
    )
    (finding,) = [found for found in examine_inputs(experiment) if found.subject == "data"]
    assert finding.verdict == "wrong" and "their contents are equal" in finding.text


def test_filters_keep_small_rooms_and_the_wanted_kinds_of_task() -> None:
    small = make_provider({"max_receptacles": 6, "task_types": ["look_at_obj_in_light"]})
    tasks = small.task_set("valid_seen").tasks
    assert 0 < len(tasks) < len(make_provider({}).task_set("valid_seen"))
    assert {task.task_type for task in tasks} == {"look_at_obj_in_light"}
    env = small.make_env()
    for task in tasks[:5]:
        _, info = env.reset(options={"task_id": task.task_id})
        assert sum(action.startswith("go to ") for action in info["admissible_actions"]) <= 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dta": "embedded"}, ["env.args.dta", "did you mean 'data'"]),
        ({"engine": "nativ"}, ["env.args.engine", "'nativ'", "did you mean 'native'"]),
        (
            {"task_types": ["pick_two"]},
            ["env.args.task_types", "'pick_two'", "did you mean 'pick_two_obj_and_place'"],
        ),
        ({"task_types": []}, ["env.args.task_types", "at least one"]),
        ({"success_reward": 0}, ["env.args.success_reward", "greater than 0"]),
        ({"max_receptacles": 0}, ["env.args.max_receptacles"]),
    ],
)
def test_wrong_arguments_are_named_with_their_value_and_what_was_meant(arguments: dict, words: list) -> None:
    with pytest.raises(ValueError) as error:
        make_provider(arguments)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_split_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="'valid_sen'; did you mean 'valid_seen'"):
        make_provider({}).task_set("valid_sen")


def test_filters_that_leave_no_game_are_an_error_that_repeats_them() -> None:
    with pytest.raises(ValueError, match="env.args.max_receptacles 1"):
        make_provider({"max_receptacles": 1}).task_set("train")


def test_missing_data_say_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"alfworld-download.*env\.args\.data.*embedded"):
        make_provider({"data": str(tmp_path)})
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"not set.*alfworld-download.*export ALFWORLD_DATA"):
        make_provider({"data": "ALFWORLD_DATA"})


def test_the_environment_variable_names_the_folder(
    generated_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(generated_folder))
    provider = make_provider({"data": "ALFWORLD_DATA"})
    assert len(provider.task_set("train")) == 12
    with pytest.raises(
        FileNotFoundError, match="no ALFWorld games of split 'valid_unseen'.*train, valid_seen"
    ):
        provider.task_set("valid_unseen")


def test_tasks_are_ordered_by_id_and_their_hash_follows_their_content(game_folder: Path) -> None:
    before = make_provider({"data": str(game_folder)}).task_set("train")
    ids = [task.task_id for task in before.tasks]
    assert ids == sorted(ids)
    assert ids == [f"{folder.parent.name}/{folder.name}" for folder in trial_folders(game_folder, "train")]
    assert make_provider({"data": str(game_folder)}).task_set("train").content_hash == before.content_hash
    problem = trial_folders(game_folder, "train")[4] / "initial_state.pddl"
    problem.write_text(problem.read_text() + "\n; another game\n")
    assert make_provider({"data": str(game_folder)}).task_set("train").content_hash != before.content_hash


def test_damaged_games_are_named_skipped_and_counted(game_folder: Path) -> None:
    write_game_files(game_folder, "train")
    truncated, no_json, no_problem, no_type = trial_folders(game_folder, "train")[:4]
    problem = (truncated / "initial_state.pddl").read_text()
    (truncated / "initial_state.pddl").write_text(problem[: len(problem) // 2])
    (no_json / "game.tw-pddl").write_text('{"grammar": "…", "solv')
    (no_problem / "initial_state.pddl").unlink()
    (no_type / "traj_data.json").write_text("{}")
    tasks = make_provider({"data": str(game_folder)}).task_set("train")
    assert len(tasks) == 8
    assert len(tasks.skipped) == 4
    for folder, line in zip((truncated, no_json, no_problem, no_type), tasks.skipped, strict=True):
        assert line.startswith(f"{folder.parent.name}/{folder.name}: ")
    with pytest.raises(ValueError, match="4 damaged games in split 'train'"):
        make_provider({"data": str(game_folder), "strict": True}).task_set("train")


def test_games_that_alfworld_leaves_out_are_left_out(game_folder: Path) -> None:
    write_game_files(game_folder, "train")
    unsolvable, unmarked, missing, movable, sliced = trial_folders(game_folder, "train")[:5]
    (unsolvable / "game.tw-pddl").write_text('{"solvable": false}')
    (unmarked / "game.tw-pddl").write_text("{}")
    (missing / "game.tw-pddl").unlink()
    movable.rename(movable.with_name("movable_trial"))
    sliced.parent.rename(sliced.parent.with_name("pick_and_place_simple-AppleSliced-None-Desk-1"))
    tasks = make_provider({"data": str(game_folder)}).task_set("train")
    assert len(tasks) == 7
    assert tasks.skipped == ()
    (note,) = tasks.notes
    assert note.startswith("5 left out as ALFWorld does (") and '2 for no "solvable": true' in note


def test_games_that_are_all_left_out_are_told_with_the_reason(game_folder: Path) -> None:
    for folder in trial_folders(game_folder, "train"):
        (folder / "game.tw-pddl").write_text('{"grammar": "g"}')
    with pytest.raises(ValueError, match=r'0 readable, 12 left out .*12 for no "solvable": true.*0 damaged'):
        make_provider({"data": str(game_folder)}).task_set("train")


@pytest.mark.parametrize("name", ["initial_state.pddl", "traj_data.json", "game.tw-pddl"])
@pytest.mark.parametrize("spoil", ["mark", "latin-1", "utf-16", "cut", "no rules"])
def test_a_game_is_listed_exactly_if_it_can_be_loaded(name: str, spoil: str, game_folder: Path) -> None:
    logic = package_logic()
    assert logic is not None
    folder = trial_folders(game_folder, "train")[0]
    for each in trial_folders(game_folder, "train"):
        stored = {"pddl_domain": logic.domain, "grammar": logic.grammar, "solvable": True}
        (each / "game.tw-pddl").write_text(json.dumps(stored), encoding="utf-8")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(
        {
            "mark": b"\xef\xbb\xbf" + content,
            "latin-1": content[:-2] + "é".encode("latin-1") + content[-2:],
            "utf-16": content.decode().encode("utf-16"),
            "cut": content[: len(content) // 2],
            "no rules": content.replace(b"pddl_domain", b"domain"),
        }[spoil]
    )
    provider = make_provider({"data": str(game_folder)})
    task_id = f"{folder.parent.name}/{folder.name}"
    listed = any(task.task_id == task_id for task in provider.task_set("train").tasks)
    try:
        provider.make_env().reset(options={"task_id": task_id})
        loaded = True
    except GameDataError:
        loaded = False
    assert listed == loaded == (spoil == "mark" or (spoil == "no rules" and name != "game.tw-pddl"))


def test_a_task_in_two_splits_is_an_error(game_folder: Path) -> None:
    folder = trial_folders(game_folder, "train")[0]
    shutil.copytree(folder, game_folder / "json_2.1.1" / "valid_seen" / folder.parent.name / folder.name)
    with pytest.raises(ValueError, match=f"{folder.name}.*more than one split: train, valid_seen"):
        make_provider({"data": str(game_folder)}).task_set("train")


def test_a_game_damaged_inside_is_named_before_it_is_played(game_folder: Path) -> None:
    folder = trial_folders(game_folder, "train")[0]
    problem = (folder / "initial_state.pddl").read_text()
    (folder / "initial_state.pddl").write_text(problem.replace("(:goal", "(:gaol"))
    (skipped,) = make_provider({"data": str(game_folder)}).task_set("train").skipped
    assert folder.name in skipped and "the problem lacks :goal" in skipped


@pytest.mark.parametrize("task_id", ["", "nothing", "no/such", "../train", "a/../b", "/etc/passwd"])
def test_an_unknown_task_is_a_key_error(task_id: str, generated_folder: Path) -> None:
    for provider in (make_provider({}), make_provider({"data": str(generated_folder)})):
        with pytest.raises(KeyError):
            provider.make_env().reset(options={"task_id": task_id})


def test_the_first_observation_is_split_into_what_is_seen_and_the_task() -> None:
    opening = (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
        "you see a desk 1.\n\nYour task is to: put a mug in desk."
    )
    seen, task = split_task(opening)
    assert seen == "You are in the middle of a room. Looking quickly around you, you see a desk 1."
    assert task == "put a mug in desk"


def test_a_plan_is_rewarded_once_at_the_step_that_solves_the_task() -> None:
    provider = make_provider({"success_reward": 4.0})
    task = provider.task_set("train").tasks[0]
    env = provider.make_env()
    observation, info = env.reset(options={"task_id": task.task_id})
    assert observation.startswith("You are in the middle of a room.") and "Your task" not in observation
    assert info["task_type"] == task.task_type and info["task_description"]
    assert info["feedback"] is None and not info["success"]
    rewards = []
    for command in plan(game_of(env)):
        _, reward, terminated, truncated, info = env.step(command)
        assert info["action_valid"] and not truncated
        rewards.append(reward)
    assert terminated and info["success"]
    assert rewards == [0.0] * (len(rewards) - 1) + [4.0]
    assert str(info["feedback"]).startswith("The action worked and the task is solved: ")
    with pytest.raises(RuntimeError):
        env.step("look")


def test_a_step_before_any_reset_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        make_provider({}).make_env().step("look")


def test_an_inadmissible_action_changes_nothing_and_the_feedback_says_so() -> None:
    env = started(make_provider({}))
    before = env.step("look")[4]["admissible_actions"]
    observation, reward, terminated, _, info = env.step("fly to\nthe moon")
    assert observation == "Nothing happens."
    assert (reward, terminated, info["action_valid"]) == (0.0, False, False)
    assert info["admissible_actions"] == before
    assert info["feedback"] == "'fly to the moon' is not an admissible action here: nothing happened."


def test_feedback_says_whether_an_action_told_anything_new() -> None:
    env = started(make_provider({}))
    first = env.step("inventory")[4]["feedback"]
    again = env.step("inventory")[4]["feedback"]
    assert first == "The action worked: You are not carrying anything."
    assert again == "The action worked but told nothing new: You are not carrying anything."


def test_a_copied_episode_goes_its_own_way() -> None:
    env = started(make_provider({}))
    copied = env.copy()
    destination = next(a for a in env.step("look")[4]["admissible_actions"] if a.startswith("go to "))
    assert copied.step(destination)[4]["action_valid"]
    assert copied.step(destination)[4]["action_valid"] is False
    assert env.step(destination)[4]["action_valid"]


def test_many_threads_share_a_provider() -> None:
    provider = make_provider({"max_receptacles": 6})
    tasks = provider.task_set("valid_seen").tasks[:8]
    solved: list[bool] = []

    def play_all() -> None:
        for task in tasks:
            env = provider.make_env()
            env.reset(options={"task_id": task.task_id})
            for command in plan(game_of(env)):
                info = env.step(command)[4]
            solved.append(info["success"])

    threads = [threading.Thread(target=play_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert solved == [True] * 32


class ThreadRecorder(Engine):
    """A native engine that notes which thread calls it."""

    callers: list[int] = []

    def __init__(self, game: Game):
        self.callers.append(threading.get_ident())
        super().__init__(game)

    def step(self, command: str) -> Frame:
        self.callers.append(threading.get_ident())
        return super().step(command)

    def close(self) -> None:
        self.callers.append(threading.get_ident())


def test_an_engine_that_must_stay_in_one_thread_stays_there() -> None:
    game = embedded_pack().load(embedded_pack().task_ids("train")[0])

    def play(executor: ThreadPoolExecutor) -> None:
        engine = OneThreadEngine(ThreadRecorder, game, executor)
        assert engine.reset().observation == Engine(game).reset().observation
        assert engine.step("look").observation != "Nothing happens."
        engine.close()

    with ThreadPoolExecutor(max_workers=1) as executor:
        threads = [threading.Thread(target=play, args=(executor,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    assert len(ThreadRecorder.callers) == 9
    assert len(set(ThreadRecorder.callers)) == 1 and threading.get_ident() not in ThreadRecorder.callers


def test_the_original_engine_is_marked_as_blocking_and_cannot_be_copied() -> None:
    env = make_provider({"engine": "textworld"}).make_env()
    assert env.blocking and not make_provider({}).make_env().blocking
    with pytest.raises(RuntimeError, match="native engine"):
        env.copy()
