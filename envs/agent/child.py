"""What the process of an agent does: its function, or the program of its command, and nothing after it."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import json
import os
import random
import signal
import sys
import traceback
from typing import Any, NoReturn, TypedDict

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Call(TypedDict):
    """``function`` is called with ``arguments``, and with those of ``offered`` that it has parameters for.

    Or ``command`` is run with ``standard_input``. ``environment`` comes on top of what there is, ``seed`` is
    what `random` begins from, ``max_output_bytes`` of either output are kept.
    """

    function: str
    arguments: list[Any]
    offered: dict[str, Any]
    command: list[str]
    standard_input: str
    environment: dict[str, str]
    seed: int
    timeout_s: float
    max_output_bytes: int


def adopt_orphans() -> None:
    """Processes whose parents end become children of this one, if it is among their ancestors (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def run_call(call: Call, stdout: int, stderr: int, result: int) -> NoReturn:
    """Carries ``call`` out; ``result`` gets a line of JSON: ``returned`` or ``raised``.

    A function's process then waits to be ended: what it started is still to be counted.
    """
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for file, number in ((_file_of(call["standard_input"]), 0), (stdout, 1), (stderr, 2)):
            os.dup2(file, number)
        os.environ.update(call["environment"])
        said = _carried_out(call)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with open(result, "wb", closefd=False) as file:
            file.write(said.encode() + b"\n")
        while True:
            signal.pause()
    finally:
        os._exit(1)  # whatever is raised must not reach the supervisor's code, whose copy this process is


def _carried_out(call: Call) -> str:
    try:
        if call["command"]:
            os.execvp(call["command"][0], call["command"])
        return json.dumps({"returned": _called(call)}, allow_nan=False)
    except BaseException:  # it ends this episode alone, by name
        return json.dumps({"raised": traceback.format_exc()})


def _called(call: Call) -> Any:
    random.seed(call["seed"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(call["seed"] % 2**32)
    module, _, name = call["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(function).parameters
    offered = {name: value for name, value in call["offered"].items() if name in parameters}
    returned = function(*call["arguments"], **offered)
    return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


async def _awaited(returned: Any) -> Any:
    return await returned


def _file_of(text: str) -> int:
    file = os.memfd_create("task")
    os.write(file, text.encode())
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
