"""Processes of agents, from the event loop of an env runner; `envs.agent` has their ends."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from envs.agent.child import Call
from envs.agent.fork_server import MAX_MESSAGE_BYTES

# Beyond an agent's own deadline its supervisor gets this long to say how it went, or what was left behind.
_SUPERVISOR_ANSWER_S = 60.0
_MAX_LINE_BYTES = 2**27
_END_TIMEOUT_S = 5.0


class AgentProcessError(RuntimeError):
    """The processes that run agents cannot be started, or have ended."""


@dataclass(frozen=True, slots=True)
class AgentOutcome:
    """How a call ended: it ``returned`` a value, ``raised``, ``timed_out``, or exited with ``exit_code``.

    ``stdout`` and ``stderr`` are the ends of what it printed.
    """

    stdout: str
    stderr: str
    returned: Any = None
    raised: str | None = None
    timed_out: bool = False
    exit_code: int | None = None

    @property
    def output(self) -> str:
        return "\n".join(text for text in (self.stdout.rstrip(), self.stderr.rstrip()) if text)


_Supervisor = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AgentRun:
    """One call under way; leaving its context ends the agent with all that it started.

    A supervisor whose run was finished is one of ``idle`` again.
    """

    def __init__(self, supervisor: _Supervisor, timeout_s: float, idle: list[_Supervisor]) -> None:
        self._reader, self._writer = supervisor
        self._timeout_s, self._idle = timeout_s, idle
        self._is_finished = False

    async def __aenter__(self) -> AgentRun:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_finished:
            self._idle.append((self._reader, self._writer))
        else:
            self._writer.close()

    async def outcome(self) -> AgentOutcome:
        """How the call ended; what it started may still run. Raises AgentProcessError."""
        return AgentOutcome(**await self._read(self._timeout_s + _SUPERVISOR_ANSWER_S))

    async def finish(self) -> int:
        """Ends the agent; returns how many processes it had left behind. Raises AgentProcessError."""
        self._writer.write(b"\n")
        num_leaked = (await self._read(_SUPERVISOR_ANSWER_S))["num_leaked"]
        self._is_finished = True
        return num_leaked

    async def _read(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = await asyncio.wait_for(self._reader.readline(), timeout_s)
        except TimeoutError as error:
            raise AgentProcessError(f"an agent's supervisor said nothing for {timeout_s:g} s") from error
        except OSError as error:
            raise AgentProcessError(f"an agent's supervisor is gone: {error}") from error
        if not line:
            raise AgentProcessError("an agent's supervisor has ended")
        return json.loads(line)


class AgentProcesses:
    """Runs functions, once ``preparations`` are done (`envs.agent.fork_server`), and commands.

    One event loop uses it.
    """

    def __init__(self, preparations: Sequence[str], start_timeout_s: float) -> None:
        self._preparations = preparations
        self._start_timeout_s = start_timeout_s
        self._starting = asyncio.Lock()
        self._idle: list[_Supervisor] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def start_run(self, call: Call) -> AgentRun:
        """``call`` under way, in processes of its own. Raises AgentProcessError."""
        supervisor = self._idle_supervisor() or await self._new_supervisor()
        supervisor[1].write(json.dumps(call).encode() + b"\n")
        return AgentRun(supervisor, call["timeout_s"], self._idle)

    def _idle_supervisor(self) -> _Supervisor | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def _new_supervisor(self) -> _Supervisor:
        ours, theirs = socket.socketpair()
        try:
            control = await self._started()
            socket.send_fds(control, [b"\n"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            self.close()
            raise AgentProcessError(f"the process that starts agents has ended: {error}") from error
        except AgentProcessError:
            ours.close()
            raise
        finally:
            theirs.close()
        return await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)

    def close(self) -> None:
        """Ends the process that starts agents; may be called twice. Agents under way end with their runs."""
        while self._idle:
            # The event loop may be closed by now, through which the writer would be.
            self._idle.pop()[1].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            try:
                self._server.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._server.kill()
        self._control = self._server = None

    async def _started(self) -> socket.socket:
        async with self._starting:
            if self._control is None:
                await self._start()
        assert self._control is not None
        return self._control

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "envs.agent.fork_server", str(theirs.fileno()), *self._preparations],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        ours.setblocking(False)
        try:
            said = await asyncio.wait_for(
                asyncio.get_running_loop().sock_recv(ours, MAX_MESSAGE_BYTES), self._start_timeout_s
            )
        except TimeoutError as error:
            self._server.kill()
            raise AgentProcessError(
                f"importing {', '.join(self._preparations)} took longer than env.call_timeout_s = "
                f"{self._start_timeout_s:g}"
            ) from error
        raised = json.loads(said).get("raised") if said else "the process ended"
        if raised is not None:
            ours.close()
            raise AgentProcessError(f"{', '.join(self._preparations)} cannot be imported\n{raised}")
        self._control = ours
