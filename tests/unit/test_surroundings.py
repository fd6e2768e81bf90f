"""Terminals and proxies."""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path
from urllib.request import proxy_bypass_environment  # pyright: ignore[reportAttributeAccessIssue]

import pytest

from serl.run.surroundings import (
    address_to_join,
    reach_local_hosts_directly,
    stop_wait_note,
    write_any_character,
)

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        # Set first, so that what the code under test sets is undone too.
        for written in (name, name.upper()):
            monkeypatch.setenv(written, "")
            monkeypatch.delenv(written)


def test_a_terminal_that_lacks_a_character_shows_its_escape(monkeypatch: pytest.MonkeyPatch):
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding="ascii"))
    write_any_character()
    print("实验 …", flush=True)
    assert terminal.getvalue() == b"\\u5b9e\\u9a8c \\u2026\n"


def test_every_tool_writes_to_any_terminal():
    for path in (Path(__file__).resolve().parents[2] / "tools").rglob("*.py"):
        _, is_command, block = path.read_text(encoding="utf-8").partition('if __name__ == "__main__":\n')
        if is_command and "sys.exit(main(" in block:
            assert block.startswith("    write_any_character()\n"), path


@pytest.mark.parametrize("proxy", ["http_proxy", "https_proxy", "ALL_PROXY", "grpc_proxy"])
def test_with_a_proxy_this_machine_is_reached_directly(proxy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(proxy, "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    set_by_us = reach_local_hosts_directly("10.1.2.3:6379")
    assert set_by_us.keys() == {"no_proxy", "NO_PROXY"} and len(set(set_by_us.values())) == 1
    for host in ("localhost", "127.0.0.1", socket.gethostname(), "10.1.2.3", "intranet.example"):
        assert proxy_bypass_environment(host)
    assert not proxy_bypass_environment("judge.example")
    assert reach_local_hosts_directly("10.1.2.3:6379") == set_by_us


def test_grpcs_own_exceptions_are_kept_and_added_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_grpc_proxy", "other.example")
    assert {"127.0.0.1", "other.example"} <= set(reach_local_hosts_directly()["no_grpc_proxy"].split(","))


def test_a_list_that_excepts_every_host_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "*")
    assert reach_local_hosts_directly() == {"no_proxy": "*", "NO_PROXY": "*"}


def test_without_a_proxy_nothing_is_set():
    assert reach_local_hosts_directly() == {}


def test_a_submitted_job_joins_its_cluster_and_nobody_joins_a_dashboard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_to_join(None) is None
    assert address_to_join("auto") == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_to_join(None) == "10.0.0.1:6379"
    assert address_to_join("10.0.0.2:6379") == "10.0.0.2:6379"
    assert address_to_join("local") is None
    for others in ("http://10.0.0.1:8265", "local", " "):
        monkeypatch.setenv("RAY_ADDRESS", others)
        assert address_to_join(None) is None


def test_a_job_is_told_how_long_it_has_to_save_a_checkpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    assert stop_wait_note() == ""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert stop_wait_note().startswith("`ray job stop` gives this run 3 s to save a checkpoint")
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "60")
    assert stop_wait_note() == ""
