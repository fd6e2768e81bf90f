"""tools/quickstart and tools/check: what they install, when they install nothing, how they fail.

A stand-in for Python writes down how pip was called, so that nothing is downloaded here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELL_TOOLS = (
    *("awk", "bash", "cat", "cp", "cut", "date", "df", "dirname", "env", "flock", "grep", "mkdir", "mktemp"),
    *("readlink", "rm", "sha256sum", "sleep", "tail", "tee", "touch", "uname"),
)

PYTHON = """\
    #!/bin/bash
    case "$*" in
        "-c import sys"*) echo {version} ;;
        "-c ") ;;
        "-m venv --clear "*)
            rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >> {calls} ;;
        "-m pip install "*)
            echo "$*" >> {calls}
            {pip} ;;
        *) exit 1 ;;
    esac
    """


CHECKS = ("ruff check", "ruff format", "lint-imports", "pyright", "pytest")
CHECKER = """\
    #!/bin/bash
    [ "$1" != -c ] || exit 0
    command="${0##*/} $*"
    command="${command#python -m }"
    echo "$command" >> '%s'
    case "$command" in pyright*) sleep 0.2 ;; esac
    echo "summary of $command"
    for failing in %s; do case "$command" in "${failing/_/ }"*) exit 3 ;; esac; done
    """


class Checkout:
    """A copy of the scripts beside a stand-in for Python, alone on the PATH with the shell's tools."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"
        self.calls = folder / "calls"
        self.bin = folder / "bin"
        (self.root / "tools").mkdir(parents=True)
        (self.root / "experiments").mkdir()
        for name in ("quickstart", "check", "environment.sh", "browser.sh", "pins-cpu.txt", "pins-check.txt"):
            shutil.copy(ROOT / "tools" / name, self.root / "tools" / name)
        (self.root / "pyproject.toml").write_text("[project]\nname = 'serl'\n")
        self.bin.mkdir()
        for tool in SHELL_TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)
        self.python("3.11")

    def python(self, version: str, pip: str = "true", name: str = "python3") -> None:
        text = PYTHON.format(version=version, calls=f"'{self.calls}'", pip=pip)
        self.executable(self.bin / name, textwrap.dedent(text))

    @staticmethod
    def executable(path: Path, text: str) -> None:
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def quickstart(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        serl_run = self.root / ".venv" / "bin" / "serl-run"
        if serl_run.parent.is_dir():
            self.executable(serl_run, '#!/bin/bash\necho "serl-run $*"\n')
        return self.run("quickstart", *arguments)

    def run(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": str(self.bin)}
        command = [str(self.root / "tools" / tool), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, timeout=300)

    def check(self, *arguments: str, failing: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """tools/check in an environment where all is installed, with stand-ins for what it runs."""
        self.run("check")
        self.forget()
        text = textwrap.dedent(CHECKER % (self.calls, " ".join(name.replace(" ", "_") for name in failing)))
        for name in ("python", "ruff", "lint-imports", "pyright"):
            self.executable(self.root / ".venv" / "bin" / name, text)
        return self.run("check", *arguments)

    def installed(self) -> subprocess.CompletedProcess[str]:
        """The first call has no serl-run to start at its end, as the stand-in installs none."""
        self.quickstart()
        self.forget()
        return self.quickstart()

    def forget(self) -> None:
        self.calls.unlink(missing_ok=True)

    def num_calls(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_call_installs_torch_then_the_pins_then_the_project(checkout: Checkout):
    checkout.quickstart()
    venv, torch, pins, project = checkout.calls.read_text().splitlines()
    assert venv == "venv"
    assert "--no-deps" in torch and "torch==" in torch
    assert "--no-deps" in pins and "-r " in pins
    assert project.endswith(f"--no-deps --no-build-isolation -e {checkout.root}")


def test_the_second_call_installs_nothing_and_passes_its_arguments_on(checkout: Checkout):
    checkout.installed()
    run = checkout.quickstart("seed=1")
    assert checkout.num_calls() == 0
    assert run.returncode == 0
    root = checkout.root
    assert run.stdout == f"serl-run {root}/experiments/quickstart.yaml output_dir={root}/runs seed=1\n"


def test_changed_pins_are_installed_into_the_same_environment(checkout: Checkout):
    checkout.installed()
    with (checkout.root / "tools" / "pins-cpu.txt").open("a") as pins:
        pins.write("something==1.0\n")
    checkout.quickstart()
    assert "venv" not in checkout.calls.read_text().splitlines() and checkout.num_calls() == 3


def test_an_install_that_was_cut_short_begins_anew(checkout: Checkout):
    checkout.python("3.11", pip='kill -KILL "$PPID"; sleep 1')
    assert checkout.quickstart().returncode != 0
    checkout.python("3.11")
    checkout.forget()
    checkout.quickstart()
    assert checkout.calls.read_text().startswith("venv\n") and checkout.num_calls() == 4


def test_without_a_cpu_build_of_torch_the_default_build_is_taken(checkout: Checkout):
    checkout.python("3.11", pip='case "$*" in *+cpu*) exit 1 ;; esac')
    run = checkout.quickstart()
    assert "taking the default build" in run.stdout
    default = checkout.calls.read_text().splitlines()[2]
    assert "+cpu" not in default and "--no-deps" not in default and "-c " in default and "torch==" in default


def test_an_unsupported_python_ends_in_one_sentence(checkout: Checkout):
    checkout.python("3.9")
    run = checkout.quickstart()
    assert run.returncode == 1 and run.stdout == ""
    assert (
        run.stderr == "SERL needs Python 3.11 to 3.14; found python3 3.9. Install one and run this again.\n"
    )


def test_no_python_ends_in_one_sentence(checkout: Checkout):
    (checkout.bin / "python3").unlink()
    run = checkout.quickstart()
    assert run.returncode == 1
    assert (
        run.stderr
        == "SERL needs Python 3.11 to 3.14; found no Python at all. Install one and run this again.\n"
    )


def test_a_newer_python_beside_an_old_one_is_found(checkout: Checkout):
    checkout.python("3.9")
    checkout.python("3.12", name="python3.12")
    checkout.quickstart()
    assert checkout.num_calls() == 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("NewConnectionError: refused", "A download failed: check the network and pip's settings"),
        ("OSError: [Errno 28] No space left on device", "The disk is full: free about 5000 MiB"),
        (
            "ERROR: No matching distribution for x==1",
            "pip could not install a package: No matching distribution",
        ),
    ],
)
def test_a_failed_install_ends_in_one_sentence(words: str, sentence: str, checkout: Checkout):
    checkout.python("3.11", pip=f"echo '{words}'; exit 1")
    run = checkout.quickstart()
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1 and run.stderr.startswith(sentence)


def test_a_check_runs_everything_and_closes_with_the_summary_of_the_tests(checkout: Checkout):
    run = checkout.check()
    calls = checkout.calls.read_text().splitlines()
    assert sorted(calls) == [
        "lint-imports --no-logo",
        "pyright ",
        "pytest -q --durations=15 -n 2 --dist loadfile --no-loadscope-reorder",
        "ruff check",
        "ruff format --check",
    ]
    assert run.returncode == 0
    assert run.stdout.splitlines()[-2:] == [
        "summary of pyright ",
        "summary of pytest -q --durations=15 -n 2 --dist loadfile --no-loadscope-reorder",
    ]


def test_a_fast_check_takes_the_unit_tier_and_looks_for_no_browser(checkout: Checkout):
    assert "tools.inspect" in checkout.check().stdout
    run = checkout.check("--fast", "-x")
    assert run.returncode == 0 and "tools.inspect" not in run.stdout
    assert run.stdout.splitlines()[-1] == "summary of pytest -q --durations=15 tests/unit -x"


def test_a_check_hands_its_arguments_to_pytest(checkout: Checkout):
    run = checkout.check("tests/system", "-k", "some name")
    assert run.returncode == 0
    assert run.stdout.splitlines()[-1] == "summary of pytest -q --durations=15 tests/system -k some name"


@pytest.mark.parametrize("failing", CHECKS)
@pytest.mark.parametrize("arguments", [(), ("--fast",)])
def test_whatever_fails_fails_the_check_and_is_named(
    failing: str, arguments: tuple[str, ...], checkout: Checkout
):
    run = checkout.check(*arguments, failing=[failing])
    assert run.returncode == 1
    assert len(checkout.calls.read_text().splitlines()) == len(CHECKS)
    *_, failed, summary = run.stdout.splitlines()
    assert failed == f"FAILED: {failing.replace(' ', '-')}" and summary.startswith("summary of pytest")


def test_every_pin_is_exact():
    for name in ("pins-cpu.txt", "pins-check.txt"):
        for line in (ROOT / "tools" / name).read_text().splitlines():
            is_no_pin = line.startswith(("#", "--no-binary="))
            assert is_no_pin or line.split(";")[0].count("==") == 1, line
