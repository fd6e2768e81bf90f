"""The page that follows a run: what the server answers, to whom, and when a run's files change."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from inspect_helpers import trajectory_records, write_run

from tools.inspect.__main__ import main
from tools.inspect.page import live_page
from tools.inspect.serving import RunServer

RECORDS = trajectory_records(num_iterations=2, groups_per_iteration=1, group_size=2, num_steps=2)


class Client:
    def __init__(self, server: RunServer) -> None:
        self.port = server.server_port

    def get(self, path: str, host: str = "localhost") -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"Host": f"{host}:{self.port}"})
        answer = connection.getresponse()
        return answer, answer.read()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", RECORDS[:2])


@pytest.fixture
def client(run_dir: Path) -> Iterator[Client]:
    with RunServer(run_dir, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Client(server)
        server.shutdown()


def test_the_page_asks_its_own_server_and_nobody_else(client: Client) -> None:
    answer, content = client.get("/")
    assert answer.status == 200 and content.decode() == live_page("run")
    assert b"default-src 'none'; " in content and b"connect-src 'self'; " in content
    assert b'id="summary-data"' not in content


def test_a_summary_is_sent_when_the_run_has_something_new(client: Client, run_dir: Path) -> None:
    _, content = client.get("/summary")
    first = json.loads(content)
    assert [row["id"] for row in first["summary"]["trajectories"]] == [r.trajectory_id for r in RECORDS[:2]]
    answer, content = client.get(f"/summary?after={first['version']}")
    assert (answer.status, content) == (204, b"")
    with (run_dir / "trajectories.jsonl").open("a") as file:
        file.write(RECORDS[2].model_dump_json() + "\n")
    _, content = client.get(f"/summary?after={first['version']}")
    second = json.loads(content)
    assert second["version"] != first["version"] and len(second["summary"]["trajectories"]) == 3


def test_a_trajectory_is_sent_when_it_is_shown(client: Client) -> None:
    client.get("/summary")
    _, content = client.get("/trajectories/1")
    assert json.loads(content) == json.loads(RECORDS[1].model_dump_json())
    for path in ("/trajectories/2", "/trajectories/-1", "/trajectories/x", "/config.yaml", "/../config.yaml"):
        assert client.get(path)[0].status == 404, path


def test_a_run_without_records_is_followed_until_it_has_some(client: Client, run_dir: Path) -> None:
    for file in run_dir.iterdir():
        file.unlink()
    summary = json.loads(client.get("/summary")[1])["summary"]
    assert summary["trajectories"] == [] and summary["success"]["rates"] == []


def test_pages_of_other_sites_learn_nothing(client: Client) -> None:
    assert client.get("/summary", host="rebound.example")[0].status == 403
    assert client.get("/summary", host="127.0.0.1")[0].status == 200


def test_it_listens_on_loopback_alone_and_names_a_port_that_is_taken(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(run_dir), "--serve", "--port", str(port)]) == 2
    assert f"cannot listen on port {port}: Address already in use" in capsys.readouterr().err
    assert main([str(run_dir), "--serve", "--port", "99999"]) == 2
    assert "--port 99999: " in capsys.readouterr().err
    with RunServer(run_dir, port=0) as server:
        assert server.server_address[0] == "127.0.0.1"
    assert not (run_dir / "inspect.html").exists()
