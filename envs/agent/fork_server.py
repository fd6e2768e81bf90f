"""A process that has imported an agent's code, and forks a supervisor for each run of it.

    python -m envs.agent.fork_server FILE MODULE …

``FILE`` is the number of an open socket. It says `ready`, or what an import raised; from then on every
message brings the socket of a run (`envs.agent.supervisor`). It ends when the other end is closed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback

from envs.agent.supervisor import supervise

MAX_MESSAGE_BYTES = 2**16


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    control = socket.socket(fileno=int(arguments[0]))
    try:
        for module in arguments[1:]:
            importlib.import_module(module)
    except BaseException:  # whatever it raises, the env runner is to be told
        raised = json.dumps({"raised": traceback.format_exc()[-MAX_MESSAGE_BYTES // 2 :]})
        control.sendall(raised.encode() + b"\n")
        return 1
    _import_what_clients_import_late()
    control.sendall(b'{"ready": true}\n')
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
    while True:
        message, files, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return 0
        if not os.fork():
            control.close()
            _supervise(files[0])
        os.close(files[0])


def _import_what_clients_import_late() -> None:
    """OpenAI's client imports much at its first use: a fifth of a second that each fork would spend again."""
    openai = sys.modules.get("openai")
    if openai is not None:
        client = openai.OpenAI(api_key="none", base_url="http://localhost")
        assert client.chat.completions and client.completions


def _supervise(file: int) -> None:
    try:
        supervise(socket.socket(fileno=file))
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
