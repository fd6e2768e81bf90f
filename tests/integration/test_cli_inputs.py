"""`serl-run` in odd surroundings: encodings, proxies, dead clusters. No traceback, whatever is wrong."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from serl.models.resolve import EMBEDDED_POLICIES
from serl.run.cli import main
from serl.run.preflight import address as address_module
from serl.run.preflight.address import AddressError, cluster_resources

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")


def serl_run(*arguments: str, **variables: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "serl.run.cli", *arguments]
    environment = os.environ | variables
    run = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, timeout=120)
    said = (run.stdout + run.stderr).decode(errors="replace")
    assert "Traceback" not in said, said
    return run.returncode, said


def test_help_and_check_are_shown_by_a_terminal_of_ascii(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text(f"extends: {QUICKSTART}\nname: 实验\n", encoding="utf-8")
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert serl_run("--help", **ascii_only)[0] == 0
    code, said = serl_run(str(path), "--check", **ascii_only)
    assert code == 0 and r"name: \u5b9e\u9a8c" in said


def test_a_model_is_read_in_utf_8_under_another_locale(tmp_path: Path):
    model = shutil.copytree(EMBEDDED_POLICIES / "tiny_alfworld", tmp_path / "model")
    config = model / "tokenizer_config.json"
    told = json.loads(config.read_text(encoding="utf-8")) | {"note": "<｜begin▁of▁sentence｜>"}
    config.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, said = serl_run(QUICKSTART, f"model.path={model}", "--check", **locale)
    assert code == 0 and "# ok      prompts: " in said


def test_a_proxy_that_the_judges_client_cannot_use_is_told(tmp_path: Path):
    judge = "{mode: judge_current_traj, judge: {base_url: 'http://judge.example/v1', model: m}}"
    path = tmp_path / "j.yaml"
    path.write_text(f"extends: {QUICKSTART}\nhindsight: {judge}\n")
    for arguments in (["--check"], [f"output_dir={tmp_path}/runs"]):
        code, said = serl_run(str(path), *arguments, all_proxy="socks9://127.0.0.1:1080")
        assert code == 1 and "hindsight.judge.base_url = 'http://judge.example/v1': " in said
        assert "all_proxy is set: unset it, or for a SOCKS proxy pip install" in said
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_is_not_there_ends_check_and_run_within_seconds(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    for arguments in (["--check"], [f"output_dir={tmp_path}/runs"]):
        started = time.monotonic()
        code, said = serl_run(QUICKSTART, *arguments, "--address", address)
        assert code == 1 and f"--address {address}: nothing answers there" in said
        assert time.monotonic() - started < 60.0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--address", "--resume", "--resume-or-start", "--evaluate"])
def test_an_option_of_which_a_shell_left_nothing_is_refused(option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([QUICKSTART, option, ""])
    assert ended.value.code == 2 and f"{option}: no value: is a variable not set?" in capsys.readouterr().err


def test_a_server_that_is_no_cluster_is_told_before_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(address_module, "_ANSWER_SECONDS", 6.0)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        with pytest.raises(AddressError, match=f"--address {address}: "):
            cluster_resources(address)
        server.shutdown()
