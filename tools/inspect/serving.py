"""The page of a run that is followed, served to this machine's browsers only."""

from __future__ import annotations

import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tools.inspect.page import live_page
from tools.inspect.reading import Problems
from tools.inspect.run import read_run, run_state

_HOST = "127.0.0.1"


class FollowedRun:
    """What was read last of a run; it is read again when somebody asks and its files have changed."""

    def __init__(self, run_dir: Path) -> None:
        self.name = run_dir.resolve().name
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._state: tuple[tuple[int, int], ...] | None = None
        # A page that knew another server's versions has none of this one's.
        self._version = int(time.time())
        self._summary = b""
        self._trajectories: list[str] = []

    def summary(self, after: int) -> bytes | None:
        """The newest summary with its version, as JSON; None if that is version ``after``."""
        with self._lock:
            self._read_if_changed()
            return None if self._version == after else self._summary

    def trajectory(self, index: int) -> bytes | None:
        """The record ``index`` of the last summary, as JSON; None if there is none."""
        with self._lock:
            found = self._trajectories[index : index + 1]
        return found[0].encode() if found else None

    def _read_if_changed(self) -> None:
        # Before it is read: what is written meanwhile is read the next time.
        state = run_state(self._run_dir)
        if state == self._state:
            return
        problems = Problems()
        summary, self._trajectories = read_run(self._run_dir, problems)
        self._version += 1
        self._state = state
        answer = {"version": self._version, "summary": summary.as_values(self.name, problems)}
        self._summary = json.dumps(answer, allow_nan=False).encode()


class RunServer(ThreadingHTTPServer):
    """Serves ``run_dir`` on loopback; raises OSError if ``port`` is taken. 0 takes a free one."""

    daemon_threads = True

    def __init__(self, run_dir: Path, port: int) -> None:
        self.run = FollowedRun(run_dir)
        super().__init__((_HOST, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: RunServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        # A page of another site whose name leads here must not read the run.
        hosts = [f"{name}:{self.server.server_port}" for name in (_HOST, "localhost")]
        if self.headers.get("Host") not in hosts:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        asked = urlsplit(self.path)
        parts = asked.path.strip("/").split("/")
        if parts == [""]:
            self._answer(live_page(self.server.run.name).encode(errors="replace"), "text/html; charset=utf-8")
        elif parts == ["summary"]:
            after = parse_qs(asked.query).get("after", ["0"])[0]
            found = self.server.run.summary(int(after) if after.isdecimal() else 0)
            self._answer(found, "application/json", missing=HTTPStatus.NO_CONTENT)
        elif len(parts) == 2 and parts[0] == "trajectories" and parts[1].isdecimal():
            self._answer(self.server.run.trajectory(int(parts[1])), "application/json")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page asks every two seconds."""

    def _answer(self, content: bytes | None, kind: str, missing: HTTPStatus = HTTPStatus.NOT_FOUND) -> None:
        self.send_response(HTTPStatus.OK if content is not None else missing)
        if content is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content or b"")
