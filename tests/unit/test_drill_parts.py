"""The parts of the drill that need no run: kinds of processes, moments, slopes, tables."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tools.drill.drill import DrillResult
from tools.drill.faults import CHAIN, CHAIN_LENGTH, FAULTS, faults_of
from tools.drill.moments import PHASES, START, draw_moment
from tools.drill.processes import kind_of, not_in_use
from tools.drill.samples import QUANTITIES, Sample, series, take_sample
from tools.drill.slopes import slope, slopes_after
from tools.drill.soak_figure import draw
from tools.drill.table import line, table


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::SERLEnvRunner.apply", "env_runner"),
        ("ray::ServeReplica:serl-1d1d1c66:policy.initialize_and_get_metadata", "replica"),
        ("ray::SERLLearner", "learner"),
        ("ray::WeightStore.wait_for_other", "weight_store"),
        ("ray::ServeController.check_alive", "controller"),
        ("ray::IDLE", "idle_worker"),
        ("ray::DashboardAgent", "ray_agent"),
        ("/x/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/ray", "gcs"),
        ("/x/site-packages/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp", "raylet"),
        ("/x/python -u /x/site-packages/ray/_private/log_monitor.py --session-dir=/tmp", "ray_agent"),
        ("/x/python -m serl.run.cli experiments/quickstart.yaml", "driver"),
        ("/x/python -P -c import sys; from serl.run.guardian import main", "guardian"),
        ("sleep 5", "other"),
    ],
)
def test_processes_are_known_by_their_titles(title: str, kind: str) -> None:
    assert kind_of(title) == kind


def test_a_file_in_shared_memory_is_in_use_while_a_process_has_it_open() -> None:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="serl-test-"))
    try:
        with (folder / "lock").open("w"):
            assert not_in_use([folder]) == []
        assert not_in_use([folder, folder / "lock", folder / "none"]) == [folder, folder / "lock"]
    finally:
        (folder / "lock").unlink()
        folder.rmdir()


def test_faults_come_one_by_one_joined_or_at_random_from_the_seed() -> None:
    assert [each.name for each in faults_of("sigterm", random.Random(0))] == ["sigterm"]
    repeated = faults_of("sigterm*2+learner_killed", random.Random(0))
    assert [each.name for each in repeated] == ["sigterm", "sigterm", "learner_killed"]
    joined = faults_of("learner_killed+gcs_killed", random.Random(0))
    assert [each.name for each in joined] == ["learner_killed", "gcs_killed"]
    chains = [[each.name for each in faults_of(CHAIN, random.Random(seed))] for seed in (0, 0, 1)]
    assert chains[0] == chains[1] != chains[2]
    assert len(chains[0]) == CHAIN_LENGTH
    assert {fault.name for fault in FAULTS.values() if not fault.ends_run} == {
        f"{kind}_{what}"
        for kind in ("env_runner", "replica", "learner", "weight_store", "controller")
        for what in ("killed", "stopped")
    }


def test_moments_are_drawn_from_all_phases_and_the_start_is_for_the_first_fault_only() -> None:
    fault = FAULTS["env_runner_killed"]
    drawn = [draw_moment(fault, number % 2 == 0, random.Random(number)) for number in range(200)]
    assert {moment.phase for moment in drawn[::2]} == set(PHASES)
    assert {moment.phase for moment in drawn[1::2]} == set(PHASES) - {START}
    assert draw_moment(fault, True, random.Random(5)) == draw_moment(fault, True, random.Random(5))
    assert draw_moment(FAULTS["checkpoint_damaged"], True, random.Random(0)).phase == "two checkpoints"


def _noisy(per_update: float) -> list[float]:
    generator = random.Random(0)
    return [100.0 + per_update * number + generator.gauss(0.0, 1.0) for number in range(1000)]


def test_growth_is_told_from_noise_and_from_what_does_not_matter() -> None:
    updates = [float(number) for number in range(1000)]
    grows = slope(updates, _noisy(0.02), matters_from=1.0)
    assert grows.verdict == "grows"
    assert grows.low < 2.0 < grows.high and 1.9 < grows.per_100 < 2.1
    assert slope(updates, _noisy(0.02), matters_from=5.0).verdict == "little"
    assert slope(updates, _noisy(0.0), matters_from=0.0).verdict == "none"
    assert slope(updates, [7.0] * 1000, matters_from=0.5).verdict == "none"
    assert slope(updates, _noisy(-0.02), matters_from=1.0).verdict == "none"
    assert slope(updates[:3], [1.0, 2.0, 3.0], matters_from=0.1).verdict == "too short"
    assert slope([], [], matters_from=0.1).verdict == "too short"


def test_what_comes_before_the_warmup_does_not_count_as_growth() -> None:
    updates = [float(number) for number in range(1000)]
    values = [min(number, 600.0) for number in updates]
    found = slopes_after({"driver": (updates, values)}, warmup=600, matters_from=0.1)
    assert found["driver"].verdict == "none"
    assert slopes_after({"driver": (updates, values)}, 0, 0.1)["driver"].per_100 > 0.0


def test_a_sample_has_every_quantity_of_a_process_and_of_those_below_it() -> None:
    others_before = take_sample(os.getpid(), 3, set()).values["processes"].get("other", 0.0)
    program = "import sys; sys.argv; data = bytearray(64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        sample = take_sample(os.getpid(), 3, set(Path("/dev/shm").iterdir()))
        child.communicate(b"")
    assert set(sample.values) == set(QUANTITIES)
    assert sample.values["processes"] == {"driver": 1.0, "other": others_before + 1.0}
    assert sample.values["resident MiB"]["other"] > 64.0
    assert sample.values["threads"]["other"] >= 1.0
    assert sample.values["file descriptors"]["other"] >= 3.0


def test_kinds_that_come_and_go_have_a_value_in_every_sample_and_a_line_in_the_figure(tmp_path: Path) -> None:
    none: dict[str, dict[str, float]] = {quantity: {} for quantity in QUANTITIES}
    samples = [
        Sample(0.0, 1, none | {"threads": {"driver": 5.0}}),
        Sample(5.0, 2, none | {"threads": {"driver": 6.0, "learner": 2.0}}),
    ]
    assert series(samples, "threads") == {
        "driver": ([1.0, 2.0], [5.0, 6.0]),
        "learner": ([1.0, 2.0], [0.0, 2.0]),
    }
    pytest.importorskip("matplotlib")
    draw(samples, 1, tmp_path / "soak.svg")
    text = (tmp_path / "soak.svg").read_text()
    assert "threads" in text and "learner" in text


def test_the_table_counts_survivors_recoveries_and_ledgers() -> None:
    results = [
        DrillResult(
            "sigterm",
            0,
            ["sigterm"],
            ["update after update 2: SIGTERM to driver 7"],
            "survived",
            False,
            [4.0],
        ),
        DrillResult(
            "sigterm", 1, ["sigterm"], [], "no next update within 600 s", True, [], folder="out/sigterm-1"
        ),
        DrillResult(
            "gcs_killed+sigterm+replica_killed",
            0,
            ["gcs_killed", "sigterm", "replica_killed"],
            ["rollout after update 2: SIGKILL to gcs 8", "broadcast after update 5: SIGTERM to driver 9"],
            "the run ended with 1",
            False,
            [20.0],
        ),
        DrillResult(
            "gcs_killed", 0, ["gcs_killed"], ["start"], "survived", False, [30.0], violations=["one"]
        ),
    ]
    assert [result.passed for result in results] == [True, False, False, False]
    rows = table(results).splitlines()
    assert rows[2:] == [
        "| gcs_killed | 2 of 2 | 0 | 25.0 s | 30.0 s | 1 |",
        "| sigterm | 1 of 3 | 1 | 4.0 s | 4.0 s | 0 |",
        "| all | 3 of 5 | 1 | 20.0 s | 30.0 s | 1 |",
    ]
    assert line(results[0]).startswith(
        "sigterm seed 0 | update after update 2: SIGTERM to driver 7 | survived"
    )
    assert "kept in out/sigterm-1" in line(results[1])
    assert line(results[3]).splitlines()[1].strip() == "one"
