"""The parts of serving that need neither Ray nor vLLM: streams, autoscaling, folders of weights."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from serving_helpers import FREE, PROMPT, wait_until

from serl.serving.autoscaling import replicas_for_open_requests
from serl.serving.engine import Deliver
from serl.serving.messages import Answer, Answers, Request, make_request
from serl.serving.streams import ClientStreams
from serl.serving.transfer import make_sender
from serl.serving.weights_folder import (
    claim_folder,
    release_folder,
    remove_stale_folders,
    weights_folder,
)


class AnswersOnDemand:
    """Stands in for the engine's thread, which decides by itself when requests are finished."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[Request, Deliver]] = {}
        self.aborted: list[str] = []

    def submit(self, requests: list[Request], deliver: Deliver) -> list[str]:
        self.open |= {f"r{request.key}": (request, deliver) for request in requests}
        return [f"r{request.key}" for request in requests]

    def abort(self, names: list[str]) -> None:
        self.aborted += names

    async def finish(self, *keys: int) -> None:
        for key in keys:
            request, deliver = self.open.pop(f"r{key}")
            deliver([Answer(request.key, [1], [-0.5], "length", [(0, 1, 0)], 0)])
        await asyncio.sleep(0)


def test_a_stream_ends_with_the_last_answer_or_hands_over_to_the_next_call() -> None:
    async def converse() -> None:
        engine = AnswersOnDemand()
        streams = ClientStreams(engine, "replica")
        requests = [make_request(key, PROMPT, FREE) for key in range(4)]
        first = streams.converse("client", requests[:3], [])
        assert await anext(first) == Answers("replica", [])
        await engine.finish(0)
        assert [answer.key for answer in (await anext(first)).answers] == [0]
        # These two finish while the message before is still on its way.
        await engine.finish(1)
        await engine.finish(2)
        assert [answer.key for answer in (await anext(first)).answers] == [1, 2]
        assert [message async for message in first] == []

        second = streams.converse("client", requests[:2], [])
        assert await anext(second) == Answers("replica", [])
        await engine.finish(0)
        third = streams.converse("client", requests[2:], [])
        assert await anext(third) == Answers("replica", [])
        assert [message.answers[0].key async for message in second] == [0]
        await engine.finish(1, 2)
        assert [answer.key for answer in (await anext(third)).answers] == [1, 2]
        await third.aclose()
        assert engine.aborted == ["r3"]

    asyncio.run(converse())


def test_replicas_are_as_many_as_the_open_requests_need() -> None:
    config = SimpleNamespace(target_ongoing_requests=64.0)
    busy = {"open_requests": {"first": 100.0, "second": 92.0}}
    context: Any = SimpleNamespace(aggregated_metrics=busy, config=config, target_num_replicas=2)
    assert replicas_for_open_requests(context) == (3.0, {})
    context.aggregated_metrics = {}
    assert replicas_for_open_requests(context) == (2, {})


def test_weights_of_killed_runs_are_removed_and_those_of_live_ones_stay() -> None:
    name = uuid.uuid4().hex[:8]
    stale, live = weights_folder(f"serl-stale-{name}"), weights_folder(f"serl-live-{name}")
    for folder in (stale, live):
        folder.mkdir()
        (folder / "00000001.safetensors").write_bytes(b"weights")
        (folder / "lock").touch()
    lock = os.open(live / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    application = f"serl-new-{name}"
    try:
        assert claim_folder(application) >= 1
        assert weights_folder(application).is_dir() and live.is_dir() and not stale.exists()
        with pytest.raises(FileExistsError, match=application):
            claim_folder(application)
    finally:
        release_folder(application)
        os.close(lock)
        assert not weights_folder(application).exists()
        claim_folder(application)
        release_folder(application)
    assert not live.exists()


def test_what_is_no_folder_of_weights_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serl.serving.weights_folder.shared_memory_root", lambda: tmp_path)
    (tmp_path / "serl-weights-file").touch()
    (tmp_path / "serl-weights-circle").symlink_to(tmp_path / "serl-weights-circle")
    (tmp_path / "serl-weights-odd" / "lock").mkdir(parents=True)
    assert claim_folder("serl-new") == 0
    release_folder("serl-new")


def test_a_folder_lives_as_long_as_one_process_that_joined_it() -> None:
    application = f"serl-joined-{uuid.uuid4().hex[:8]}"
    folder = weights_folder(application)
    script = (
        "import sys; from serl.serving.weights_folder import join_folder; "
        "print(join_folder(sys.argv[1]), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, application]
    joining = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for process in joining:
            assert process.stdout is not None and process.stdout.readline() == f"{folder}\n"
        (folder / "00000001.safetensors").write_bytes(b"weights")
        joining[0].kill()
        joining[0].wait()
        remove_stale_folders()
        assert (folder / "00000001.safetensors").read_bytes() == b"weights"
    finally:
        for process in joining:
            process.kill()
            process.communicate()
    wait_until(lambda: not folder.exists(), 60.0, "the keeper")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the transfer works here")
@pytest.mark.parametrize("transfer", ["nccl", "ipc"])
def test_a_transfer_between_gpus_needs_a_gpu(transfer: Any) -> None:
    with pytest.raises(ValueError, match=f"serving.weight_transfer={transfer} sends from the learner's GPU"):
        make_sender(transfer, "serl-nowhere")
