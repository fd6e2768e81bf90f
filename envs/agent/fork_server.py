"""A process that has imported an agent's code, and forks supervisors of its runs.

    python -m envs.agent.fork_server FILE PREPARATION …

``FILE`` is the number of an open socket. A preparation is a module, which is imported, or
``module:function TEXT``, which is called with the text. It says `ready`, or what they raised; from then on
every message brings the socket of a supervisor (`envs.agent.supervisor`). It ends when the other end is
closed.
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
_ANSWER = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 0,
    "model": "policy",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Gone"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    control = socket.socket(fileno=int(arguments[0]))
    try:
        for preparation in arguments[1:]:
            _prepare(preparation)
    except BaseException:  # whatever it raises, the env runner is to be told
        raised = json.dumps({"raised": traceback.format_exc()[-MAX_MESSAGE_BYTES // 2 :]})
        control.sendall(raised.encode() + b"\n")
        return 1
    _make_what_clients_make_at_their_first_request()
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


def _prepare(preparation: str) -> None:
    name, _, text = preparation.partition(" ")
    module, _, function = name.partition(":")
    imported = importlib.import_module(module)
    if function:
        getattr(imported, function)(text)


def _make_what_clients_make_at_their_first_request() -> None:
    """OpenAI's client imports and builds much then: a fifth of a second that each fork would spend again."""
    openai = sys.modules.get("openai")
    if openai is None:
        return
    import httpx2  # OpenAI's client brings it

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=_ANSWER)

    client = openai.OpenAI(
        api_key="none",
        base_url="http://localhost",
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )
    assert client.completions
    client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Go"}])


def _supervise(file: int) -> None:
    try:
        supervise(socket.socket(fileno=file))
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
