"""That announced weights have landed: vLLM's models, loaders and packed broadcast, with queues for NCCL."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_helpers import make_policy
from torch import Tensor
from transfer_helpers import (
    K_PROJ,
    WAIT_S,
    Named,
    QueueGroup,
    Rendezvous,
    Replica,
    application,
    assert_dies,
    broadcast,
    named,
    rendezvous,
    weights,
    workers,
)

from serl.serving.transfer import ipc as ipc_transfer
from serl.serving.transfer.ipc import IPCSender
from serl.serving.transfer.landing import UpdateError, checksum
from serl.serving.transfer.nccl import NCCLSender
from serl.serving.transfer.receiver import PolicyWeightReceiver
from serl.serving.transfer.sender import Weights
from serl.serving.transfer.shared_memory import SharedMemorySender
from serl.serving.weights import WeightLoadError

pytestmark = pytest.mark.usefixtures("one_torch_thread", "rendezvous")
__all__ = ["application", "rendezvous", "workers"]

EXACT = 1e-4


def counts(*replicas: Replica) -> dict[str, int]:
    return {replica.name: replica.num_workers for replica in replicas}


def assert_serves(replica: Replica, seed: int, weights_seq_no: int) -> None:
    """The replica has the weights of ``seed``, says so, and the check tells them from older ones."""
    assert replica.engine.weights_seq_no == weights_seq_no and replica.versions[-1] == str(weights_seq_no)
    assert replica.mismatch(make_policy(seed)) < EXACT
    assert replica.mismatch(make_policy(seed - 1)) > 0.1


def test_every_broadcast_lands_in_every_replica(
    workers: list[PolicyWeightReceiver], application: str
) -> None:
    sender = NCCLSender(application)
    first, second = Replica("first", workers[:1]), Replica("second", workers[1:2])
    for version in (1, 2, 3):
        update = sender.prepare(weights(version), version, counts(first, second))
        broadcast(sender, update, first, second)
        assert_serves(first, version, version)
        assert_serves(second, version, version)


def test_replicas_come_and_go_between_broadcasts(
    workers: list[PolicyWeightReceiver], application: str, rendezvous: Rendezvous
) -> None:
    sender = NCCLSender(application)
    first, second = Replica("first", workers[:1]), Replica("second", workers[1:2])
    broadcast(sender, sender.prepare(weights(1), 1, counts(first, second)), first, second)
    broadcast(sender, sender.prepare(weights(2), 2, counts(first)), first)
    assert_serves(first, 2, 2)
    assert second.engine.weights_seq_no == 1

    returned = Replica("returned", workers[1:2])
    returned.load(sender.snapshot().result(WAIT_S))
    assert_serves(returned, 2, 2)
    broadcast(sender, sender.prepare(weights(3), 3, counts(first, returned)), first, returned)
    assert_serves(first, 3, 3)
    assert_serves(returned, 3, 3)
    learners = [group[0] for group in rendezvous.groups.values()]
    assert [len(group) for group in rendezvous.groups.values()] == [3, 2, 3]
    assert [learner.destroyed for learner in learners] == [True, True, False]


def test_the_first_broadcast_of_a_resumed_learner_lands(
    workers: list[PolicyWeightReceiver], application: str
) -> None:
    replica = Replica("replica", workers[:1])
    before = NCCLSender(application)
    broadcast(before, before.prepare(weights(7), 7, counts(replica)), replica)
    resumed = NCCLSender(application)
    broadcast(resumed, resumed.prepare(weights(8), 8, counts(replica)), replica)
    assert_serves(replica, 8, 8)


def test_the_workers_of_a_replica_follow_those_of_the_one_before(
    workers: list[PolicyWeightReceiver], application: str, rendezvous: Rendezvous
) -> None:
    sender = NCCLSender(application)
    first, second = Replica("first", workers[:2]), Replica("second", workers[2:])
    update = sender.prepare(weights(1), 1, counts(first, second))
    assert update["group"]["rank_offsets"] == {"first": 1, "second": 3}
    broadcast(sender, update, first, second)
    assert_serves(first, 1, 1)
    assert_serves(second, 1, 1)
    (group,) = rendezvous.groups.values()
    assert sorted(group) == [0, 1, 2, 3, 4]
    assert {member.num_broadcasts for member in group.values()} == {group[0].num_broadcasts}
    assert group[0].num_broadcasts > 3


def test_tensors_are_gathered_as_the_broadcast_asks_for_them(
    workers: list[PolicyWeightReceiver], application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    send = QueueGroup.broadcast

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named(1):
            events.append("gathered")
            yield name, tensor

    def record_broadcast(group: QueueGroup, *args: Any, **options: Any) -> None:
        if group.rank == 0:
            events.append("broadcast")
        send(group, *args, **options)

    monkeypatch.setattr(QueueGroup, "broadcast", record_broadcast)
    sender, replica = NCCLSender(application), Replica("replica", workers[:1])
    lazy = Weights(weights(1).specs, gathered())
    broadcast(sender, sender.prepare(lazy, 1, counts(replica)), replica)
    assert_serves(replica, 1, 1)
    assert events.count("gathered") == len(named(1)) and events[0] == "gathered"
    # A buffer is sent when it is full: never more than a buffer is gathered ahead.
    assert events.index("broadcast") < 5 and events.count("broadcast") > 3


def test_what_later_replicas_load_is_a_copy_that_training_does_not_touch(
    workers: list[PolicyWeightReceiver], application: str
) -> None:
    sender, replica = NCCLSender(application), Replica("replica", workers[:1])
    trained = named(1)
    for present, late in ([replica], Replica("late", workers[1:2])), ([], Replica("later", workers[2:3])):
        version = len(late.name)
        update = sender.prepare(Weights.of(trained), version, counts(*present))
        sender.transmit(WAIT_S, lambda: None) if not present else broadcast(sender, update, *present)
        with torch.no_grad():
            for _, tensor in trained:
                tensor.add_(1.0)
        late.load(sender.snapshot().result(WAIT_S))
        with torch.no_grad():
            for _, tensor in trained:
                tensor.sub_(1.0)
        assert_serves(late, 1, version)


def test_a_replica_that_gives_up_ends_a_broadcast_before_its_deadline(
    workers: list[PolicyWeightReceiver], application: str
) -> None:
    def say_what_it_said() -> None:
        raise WeightLoadError("the replica said why")

    sender = NCCLSender(application)
    sender.prepare(weights(1), 1, {"never joins": 1})
    with pytest.raises(WeightLoadError, match="the replica said why"):
        sender.transmit(WAIT_S, say_what_it_said)


def test_a_replica_that_dies_in_a_broadcast_ends_it_and_the_next_one_has_a_group_of_its_own(
    workers: list[PolicyWeightReceiver], application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = QueueGroup.broadcast

    def die_at_the_second_buffer(group: QueueGroup, *args: Any, **options: Any) -> None:
        if group.rank == 1 and group.num_broadcasts == 1:
            raise ConnectionError("the replica's host is gone")
        receive(group, *args, **options)

    sender, dying = NCCLSender(application), Replica("dying", workers[:1])
    with monkeypatch.context() as patch:
        patch.setattr(QueueGroup, "broadcast", die_at_the_second_buffer)
        with pytest.raises(TimeoutError, match="broadcast of weights 1 to 1 replicas did not end within 1 s"):
            broadcast(sender, sender.prepare(weights(1), 1, counts(dying)), dying, timeout_s=1.0)
    assert isinstance(dying.died.result(WAIT_S), ConnectionError)
    assert dying.versions == ["0"] and dying.calls.count("update_weights") == 1

    replacement = Replica("dying", workers[:1])
    broadcast(sender, sender.prepare(weights(2), 2, counts(replacement)), replacement)
    assert_serves(replacement, 2, 2)


def test_a_broadcast_of_another_version_or_of_other_bytes_is_no_update(
    workers: list[PolicyWeightReceiver], application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = QueueGroup.broadcast

    def send_nothing(group: QueueGroup, tensor: Tensor, src: int, stream: Any = None) -> None:
        send(group, torch.full_like(tensor, 7) if group.num_broadcasts == 2 else tensor, src, stream)

    sender, replica = NCCLSender(application), Replica("replica", workers[:1])
    update = sender.prepare(weights(2), 2, counts(replica))
    sender._weights, sender._weights_seq_no = weights(1), 1
    with pytest.raises(UpdateError, match="weights 2 are not loaded: what arrived are weights 1"):
        broadcast(sender, update, replica)

    replica = Replica("replica", workers[:1])
    sender = NCCLSender(application)
    update = sender.prepare(weights(3), 3, counts(replica))
    monkeypatch.setattr(QueueGroup, "broadcast", send_nothing)
    with pytest.raises(
        UpdateError, match="weights 3 are not loaded: model.layers.* other bytes than were sent"
    ):
        broadcast(sender, update, replica)
    assert isinstance(replica.died.result(WAIT_S), UpdateError) and replica.versions == ["0"]


def test_a_group_that_sends_nothing_is_not_joined(
    workers: list[PolicyWeightReceiver], application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueueGroup, "disabled", True)
    sender, replica = NCCLSender(application), Replica("replica", workers[:1])
    update = sender.prepare(weights(1), 1, counts(replica))
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(replica.load, update)
        with pytest.raises(RuntimeError, match="no NCCL library was found"):
            sender.transmit(10.0, lambda: None)
        with pytest.raises(RuntimeError, match="no NCCL library was found"):
            load.result(10.0)
    assert isinstance(replica.died.result(WAIT_S), RuntimeError)


def without_k_proj(tensors: Named) -> Named:
    return [(name, tensor) for name, tensor in tensors if name != K_PROJ]


WRONG_UPDATES: list[tuple[Callable[[Named], Named], str]] = [
    (without_k_proj, rf"the update lacks weights for {K_PROJ}$"),
    (lambda tensors: tensors[:1], r"the update lacks weights for model.layers.0.* and \d+ more"),
    (lambda tensors: [*tensors, ("lm_head.bias", torch.zeros(260))], "model has no lm_head.bias"),
    (
        lambda tensors: [(n, t[:, :32] if n == K_PROJ else t) for n, t in tensors],
        rf"{K_PROJ} is announced as float32 \[64, 32\], the replica's is float32 \[64, 64\]",
    ),
    (
        lambda tensors: [(n, t.bfloat16() if n == K_PROJ else t) for n, t in tensors],
        rf"{K_PROJ} is announced as bfloat16 \[64, 64\], the replica's is float32",
    ),
]


@pytest.fixture
def handles_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's handles within one process: the numbers of tensors, beside what only torch can read."""
    tensors: list[Tensor] = []

    def reduce_tensor(tensor: Tensor) -> tuple[None, tuple[Any, ...]]:
        tensors.append(tensor)
        return None, (len(tensors) - 1, tensor.dtype, *[None] * 5)

    properties = type("Properties", (), {"uuid": "gpu"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(ipc_transfer, "reduce_tensor", reduce_tensor)
    rebuild = "vllm.distributed.weight_transfer.ipc_engine.rebuild_cuda_tensor"
    monkeypatch.setattr(rebuild, lambda number, *_: tensors[number])


@pytest.mark.parametrize("make_sender", [SharedMemorySender, NCCLSender, IPCSender])
@pytest.mark.parametrize(("change", "why"), WRONG_UPDATES)
@pytest.mark.usefixtures("handles_are_numbers")
def test_an_update_that_is_not_one_of_the_model_ends_the_replica(
    workers: list[PolicyWeightReceiver], application: str, make_sender: Any, change: Any, why: str
) -> None:
    replica = Replica("replica", workers[:1])
    update = make_sender(application).prepare(Weights.of(change(named(1))), 1, counts(replica))
    if make_sender is NCCLSender:
        # Before the group: what is announced can be refused without receiving it.
        update = update | {"group": None}
    assert_dies(replica, update, why)


@pytest.mark.parametrize("make_sender", [SharedMemorySender, NCCLSender, IPCSender])
@pytest.mark.usefixtures("handles_are_numbers")
def test_the_weight_store_needs_no_torch_to_hand_an_update_on(application: str, make_sender: Any) -> None:
    update = make_sender(application).prepare(Weights.of(named(1)), 1, {})
    read = "import pickle, sys; pickle.load(sys.stdin.buffer); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", read], input=pickle.dumps(update), check=True, timeout=WAIT_S)


@pytest.mark.parametrize("make_sender", [SharedMemorySender, NCCLSender, IPCSender])
def test_an_update_without_tensors_is_neither_sent_nor_taken(
    workers: list[PolicyWeightReceiver], application: str, make_sender: Any
) -> None:
    with pytest.raises(UpdateError, match="weights 1 have no tensors"):
        make_sender(application).prepare(Weights.of([]), 1, {})
    empty = {
        "kind": "nccl",
        "weights_seq_no": 1,
        "info": {"names": [], "dtype_names": [], "shapes": []},
        "group": None,
    }
    assert_dies(Replica("replica", workers[:1]), empty, "the update lacks weights for")


def test_an_update_that_was_begun_and_never_received_does_not_finish(
    workers: list[PolicyWeightReceiver],
) -> None:
    workers[0].start_weight_update()
    with pytest.raises(UpdateError, match="no weights have landed"):
        workers[0].finish_weight_update()


@pytest.mark.usefixtures("handles_are_numbers")
def test_handles_are_loaded_and_checked(workers: list[PolicyWeightReceiver], application: str) -> None:
    sender, replica = IPCSender(application), Replica("replica", workers[:1])
    replica.load(sender.prepare(weights(1), 1, counts(replica)))
    assert_serves(replica, 1, 1)
    late = Replica("late", workers[1:2])
    late.load(sender.snapshot().result(WAIT_S))
    assert_serves(late, 1, 1)

    update = sender.prepare(weights(2), 2, counts(replica))
    sender._sent[0][1].zero_()
    with pytest.raises(UpdateError, match="weights 2 are not loaded: model.embed_tokens.weight arrived with"):
        replica.load(update)
    assert replica.versions == ["0", "1"]


def test_weights_from_shared_memory_land_and_a_failed_read_is_tried_again(
    workers: list[PolicyWeightReceiver], application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, replica = SharedMemorySender(application), Replica("replica", workers[:1])
    replica.load(sender.prepare(weights(1), 1, {}))
    assert_serves(replica, 1, 1)
    update = sender.prepare(weights(2), 2, {})
    path = Path(update["path"])
    content = path.read_bytes()
    path.write_bytes(content[:-100])

    def write_whole_file() -> None:
        path.write_bytes(content)
        workers[0].__class__.start_weight_update(workers[0])

    starts = iter([workers[0].start_weight_update, write_whole_file])
    monkeypatch.setattr(workers[0], "start_weight_update", lambda: next(starts)())
    replica.load(update)
    assert_serves(replica, 2, 2)


def test_a_checksum_adds_the_bytes_eight_at_a_time() -> None:
    assert checksum(torch.tensor([1, 2, 3])) == 6
    assert checksum(torch.tensor([1, 1], dtype=torch.int32)) == 1 + 2**32
    assert checksum(torch.tensor([1.0], dtype=torch.bfloat16)) == 0x80 + 0x3F
    assert checksum(torch.zeros(0)) == 0
    assert checksum(torch.tensor([[1, 2], [3, 4]]).t()) == 10
    assert checksum(torch.arange(20, dtype=torch.uint8)[3:]) == checksum(
        torch.arange(20, dtype=torch.uint8)[3:].clone()
    )
