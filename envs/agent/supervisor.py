"""Watches one agent after the other: its deadline, its output, and what it leaves behind.

    env runner ── call ──▶ supervisor ── fork ──▶ the agent ── processes of its own
               ◀─ outcome ──   │ adopts what the agent leaves behind, counts it, ends it
               ── finish ──▶   │
               ◀── leaked ──   ┘

Messages are lines of JSON. If the env runner hangs up, everything ends.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import time
from contextlib import suppress
from typing import Any, BinaryIO, Self

import psutil

from envs.agent.child import Call, adopt_orphans, run_call

_MAX_RESULT_BYTES = 4 * 2**20
# Helpers of libraries end by themselves once the agent has ended; whatever outlives this is a leak.
_GRACE_S = 1.0
_POLL_S = 0.01
_KILL_TIMEOUT_S = 10.0


def supervise(connection: socket.socket) -> None:
    """Carries out the calls that ``connection`` brings, in a process with a single thread."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    adopt_orphans()
    with connection, connection.makefile("rb") as lines:
        while line := lines.readline():
            _carry_out(json.loads(line), connection, lines)
            if _has_children():
                return  # that would count as the next agent's


def _carry_out(call: Call, connection: socket.socket, lines: BinaryIO) -> None:
    pipes = stdout, stderr, result = os.pipe(), os.pipe(), os.pipe()
    agent = os.fork()
    if not agent:
        run_call(call, stdout[1], stderr[1], result[1])
    for _, write_end in pipes:
        os.close(write_end)
    handle = os.pidfd_open(agent)
    outcome = None
    try:
        with _Watch(handle, connection.fileno(), stdout[0], stderr[0], result[0], call) as watch:
            outcome = watch.until_outcome()
        if outcome is not None:
            connection.sendall(json.dumps(outcome).encode() + b"\n")
            lines.readline()
    finally:
        num_leaked = _end_all(handle)
        for file in (handle, *(read_end for read_end, _ in pipes)):
            os.close(file)
    if outcome is not None:
        connection.sendall(json.dumps({"num_leaked": num_leaked}).encode() + b"\n")


class _Watch:
    """What an agent prints and returns, until it has returned or ended, or its time is over.

    All are files to read: ``agent`` a handle of its process.
    """

    def __init__(
        self, agent: int, connection: int, stdout: int, stderr: int, result: int, call: Call
    ) -> None:
        self._call = call
        self._texts = {stdout: bytearray(), stderr: bytearray(), result: bytearray()}
        self._stdout, self._stderr, self._result = stdout, stderr, result
        self._exit, self._connection = agent, connection
        self._selector = selectors.DefaultSelector()
        for file in (*self._texts, self._exit, self._connection):
            self._selector.register(file, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._selector.close()

    def until_outcome(self) -> dict[str, Any] | None:
        """How it went, or None if nobody waits for it any more."""
        deadline = time.monotonic() + self._call["timeout_s"]
        while True:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return self._outcome({"timed_out": True})
            ready = {key.fd for key, _ in self._selector.select(remaining_s)}
            for file in ready & self._texts.keys():
                self._read(file)
            if self._connection in ready:
                return None
            if self._texts[self._result].endswith(b"\n"):
                return self._outcome(json.loads(self._texts[self._result]))
            if self._exit in ready:
                return self._outcome({"exit_code": self._exit_code()})
            if len(self._texts[self._result]) > _MAX_RESULT_BYTES:
                return self._outcome({"raised": f"it returned more than {_MAX_RESULT_BYTES} bytes"})

    def _read(self, file: int) -> None:
        data = os.read(file, 2**16)
        if not data:
            self._selector.unregister(file)
        text = self._texts[file]
        text += data
        if file != self._result:
            del text[: -self._call["max_output_bytes"]]

    def _exit_code(self) -> int:
        ended = os.waitid(os.P_PIDFD, self._exit, os.WEXITED)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _drain(self, file: int) -> str:
        """All that is in the pipe; something that the agent left behind may hold it open."""
        os.set_blocking(file, False)
        with suppress(BlockingIOError):
            while file in self._selector.get_map():
                self._read(file)
        return self._texts[file].decode("utf-8", "replace")

    def _outcome(self, found: dict[str, Any]) -> dict[str, Any]:
        return {"stdout": self._drain(self._stdout), "stderr": self._drain(self._stderr)} | found


def _end_all(agent: int) -> int:
    """Ends the agent and everything that it started; returns how many processes outlived it."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(agent, signal.SIGKILL)
    deadline = time.monotonic() + _GRACE_S
    while _has_children() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    leaked: set[int] = set()
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while _has_children() and time.monotonic() < deadline:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    leaked.add(child.pid)
                    child.kill()
        time.sleep(_POLL_S)
    return len(leaked)


def _has_children() -> bool:
    """Whether any is left that has not ended, or not yet."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
