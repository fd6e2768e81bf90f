"""tools/browser.sh: when it installs a browser for tools/check, and that it never stops the check."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "browser.sh"


class Machine:
    """A PATH of stand-ins: ``apt-get`` writes down its calls, ``id`` says who is asking."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.bin.mkdir()
        for tool in ("bash", "grep", "timeout", "chmod", "sleep"):
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)
        self.executable("id", "echo 0")

    def executable(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    def apt_get(self, text: str) -> None:
        self.executable("apt-get", f"echo \"$*\" >> '{self.calls}'\n{text}")

    def install_browser(self) -> str:
        run = subprocess.run(
            ["bash", "-c", f"set -u -o pipefail; venv='{self.folder}'; . '{SCRIPT}'; install_browser"],
            capture_output=True,
            text=True,
            env=os.environ | {"PATH": str(self.bin)},
            timeout=30,
        )
        assert run.returncode == 0 and run.stderr == ""
        return run.stdout

    def apt_calls(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_installed_where_a_browser_and_its_driver_are(machine: Machine):
    machine.apt_get("exit 1")
    machine.executable("chromium", "")
    machine.executable("chromedriver", "")
    assert machine.install_browser() == "" and machine.apt_calls() == []


def test_root_on_debian_gets_both_packages_downloaded_before_they_are_unpacked(machine: Machine):
    made = " && ".join(
        f"printf '#!/bin/bash\\n' > '{machine.bin / name}' && chmod 755 '{machine.bin / name}'"
        for name in ("chromium", "chromedriver")
    )
    machine.apt_get(f'case "$*" in *--no-download*) {made} ;; esac')
    said = machine.install_browser()
    assert said.startswith("Installing chromium") and len(said.splitlines()) == 1
    update, download, unpack = machine.apt_calls()
    assert update.endswith("update")
    assert download.endswith("install --download-only chromium chromium-driver")
    assert unpack.endswith("install --no-download chromium chromium-driver")


def test_a_refused_download_is_one_sentence_and_not_a_failure(machine: Machine):
    machine.apt_get("echo 'E: Failed to fetch http://deb.example/chromium'; exit 100")
    said = machine.install_browser().splitlines()
    assert len(machine.apt_calls()) == 1
    assert "are skipped. E: Failed to fetch http://deb.example/chromium" in said[-1]


@pytest.mark.parametrize("lacking", ["root", "apt"])
def test_whoever_cannot_install_is_told_what_is_skipped(lacking: str, machine: Machine):
    if lacking == "root":
        machine.apt_get("")
        machine.executable("id", "echo 1000")
    said = machine.install_browser()
    assert "only root on Debian" in said and "are skipped" in said
    assert machine.apt_calls() == []
