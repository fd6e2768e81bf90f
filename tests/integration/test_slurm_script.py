"""The Slurm script, with programs in the place of Slurm's and Ray's that write down how they were called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "cluster" / "slurm.sh"
_PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "scontrol $*" >>"$CALLS"; fi',
    # Runs the command of the step on this machine.
    "srun": """
for word in "$@"; do
    case "$word" in
        --nodelist=*) node="${word#*=}" ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
NODE="$node" exec "$@"
""",
    "hostname": "echo '10.0.0.1 10.1.0.1'",
    "ray": 'echo "$NODE: ray $*" >>"$CALLS"; echo "$RAY_AUTH_MODE" >>"$CALLS"; exec sleep 0.2',
    # Both nodes are there.
    "python": """
until [ "$(grep -c token "$CALLS" 2>/dev/null)" = 2 ]; do sleep 0.02; done
echo "python $*" >>"$CALLS"
""",
    "serl-run": """
trap 'echo "saved a checkpoint" >>"$CALLS"; exit "${EXIT_CODE:-0}"' TERM
echo "serl-run $*" >>"$CALLS"
[ -z "$ENDLESS" ] || while sleep 0.05; do :; done
exit "${EXIT_CODE:-0}"
""",
}


class Slurm:
    """A folder of programs, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls_file = folder, folder / "calls"
        self.run_dir = folder / "run"
        programs = folder / "bin"
        programs.mkdir()
        for name, body in _PROGRAMS.items():
            (programs / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
            (programs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "SLURM_JOB_ID": "40123",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "32",
            "SLURM_GPUS_ON_NODE": "4",
            "ENDLESS": "",
        }

    def start(self, **environment: str) -> subprocess.Popen[str]:
        command = ["bash", str(_SCRIPT), "x.yaml", str(self.run_dir), "seed=3"]
        return subprocess.Popen(
            command, env=self.environment | environment, stderr=subprocess.PIPE, text=True, cwd=self.folder
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text(encoding="utf-8").splitlines() if self.calls_file.exists() else []


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_bash_reads_the_script_and_slurm_its_options() -> None:
    subprocess.run([shutil.which("bash") or "bash", "-n", str(_SCRIPT)], check=True)
    lines = _SCRIPT.read_text(encoding="utf-8").splitlines()
    options = [line for line in lines if line.startswith("#SBATCH --")]
    assert "#SBATCH --signal=B:TERM@600" in options and "#SBATCH --requeue" in options
    # Slurm reads no option below the first command.
    assert lines.index(options[-1]) < lines.index("set -euo pipefail")


def test_ray_starts_on_every_node_before_the_run_which_gets_its_keys(slurm: Slurm) -> None:
    process = slurm.start()
    assert process.wait(60) == 0, process.communicate()[1]
    calls = slurm.calls
    head = "node1: ray start --head --node-ip-address=10.0.0.1 --port=20123 --include-dashboard=false"
    resources = " --num-cpus=32 --num-gpus=4 --disable-usage-stats --block"
    assert head + resources in calls
    assert f"node2: ray start --address=10.0.0.1:20123{resources}" in calls
    assert "python -m tools.cluster.wait_for_nodes 10.0.0.1:20123 2" in calls
    run = f"serl-run x.yaml --address 10.0.0.1:20123 --resume-or-start {slurm.run_dir} seed=3"
    assert calls.count(run) == 1 and calls.count("token") == 2
    assert "scontrol requeue 40123" not in calls


def test_the_token_is_the_users_alone(slurm: Slurm) -> None:
    assert slurm.start().wait(60) == 0
    token = slurm.run_dir / ".ray-token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64


def test_the_signal_before_the_end_of_the_time_saves_a_checkpoint_and_queues_the_job_again(
    slurm: Slurm,
) -> None:
    process = slurm.start(ENDLESS="1")
    deadline = time.monotonic() + 60.0
    while not any(call.startswith("serl-run") for call in slurm.calls):
        assert time.monotonic() < deadline and process.poll() is None, "the run did not start"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, process.communicate()[1]
    assert slurm.calls[-2:] == ["saved a checkpoint", "scontrol requeue 40123"]


def test_a_run_that_fails_fails_the_job_and_is_not_queued_again(slurm: Slurm) -> None:
    process = slurm.start(EXIT_CODE="2")
    assert process.wait(60) == 2
    assert not any(call.startswith("scontrol") for call in slurm.calls)
