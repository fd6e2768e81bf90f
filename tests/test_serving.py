"""The policy deployment end to end: Ray, Serve and vLLM on CPU with a tiny Llama of tied embeddings."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import ray
import torch
from ray.exceptions import RayTaskError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from serl.config import ExperimentConfig, ModelSection, RolloutSection, ServingSection
from serl.serving.autoscaling import replicas_for_open_requests
from serl.serving.client import PolicyClient, RequestRefused, Sampling
from serl.serving.engine import Deliver, LoadReport
from serl.serving.messages import Answer, Answers, Request, make_request
from serl.serving.names import ServingNames
from serl.serving.start import ServingStartError, start_serving, stop_serving, wait_until_ready
from serl.serving.streams import ClientStreams
from serl.serving.transfer import make_sender
from serl.serving.transfer.shared_memory import claim_folder, release_folder, weights_folder
from serl.serving.weight_store import create_weight_store, find_weight_store, live_actors
from serl.serving.weights import WeightLoadError, WeightPublisher
from serl.types import Completion

T = TypeVar("T")
State = dict[str, torch.Tensor]

VOCAB_SIZE = 260
END = 256
CLOSE_ACTION = 257
MAX_MODEL_LEN = 256
PROMPT = list(range(40, 80))
START_TIMEOUT_S = 300.0
FREE = Sampling(temperature=1.0, top_p=1.0, max_tokens=12, stop=(), seed=None)


def make_policy(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_MODEL_LEN,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END,
        )
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.3 if "embed" in name else 0.15)
            # A direction that no layer touches and only the end token points against: no response ends
            # before a test wants it to.
            if "o_proj" in name or "down_proj" in name:
                parameter[0] = 0.0
        policy.model.embed_tokens.weight[:, 0] = 3.0
        policy.model.embed_tokens.weight[END, 0] = -3.0
    return policy.eval()


def make_repeating_policy() -> LlamaForCausalLM:
    """Says its last token again and again: layers add nothing, and each embedding matches itself best."""
    policy = make_policy(99)
    with torch.no_grad():
        policy.model.embed_tokens.weight.normal_(0.0, 2.0)
        for name, parameter in policy.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
    return policy


def save_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "</action>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    assert fast.convert_tokens_to_ids(["<|end|>", "</action>"]) == [END, CLOSE_ACTION]
    fast.save_pretrained(folder)


def byte_id(text: str) -> int:
    """The token of one printable ASCII character."""
    return sorted(pre_tokenizers.ByteLevel.alphabet()).index(text)


def reference_logprobs(
    policy: LlamaForCausalLM, prompt_ids: list[int], response_ids: list[int], temperature: float = 1.0
) -> torch.Tensor:
    with torch.no_grad():
        logits = policy(torch.tensor([prompt_ids + response_ids])).logits[0, len(prompt_ids) - 1 : -1]
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(response_ids)[:, None])[:, 0]


def largest_gap(
    policy: LlamaForCausalLM, prompt_ids: list[int], completion: Completion, temperature: float = 1.0
) -> float:
    expected = reference_logprobs(policy, prompt_ids, completion.token_ids, temperature)
    return float((torch.tensor(completion.logprobs) - expected).abs().max())


@dataclasses.dataclass
class Deployment:
    """A running deployment, a client of it on its own loop, and what it serves."""

    names: ServingNames
    client: PolicyClient
    publisher: WeightPublisher
    loop: asyncio.AbstractEventLoop
    policy: LlamaForCausalLM
    weights_seq_no: int = 0

    def run(self, awaitable: Awaitable[T], timeout_s: float = 120.0) -> T:
        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(timeout_s)

    def generate(self, prompt_ids: list[int], sampling: Sampling = FREE) -> Completion:
        return self.run(self.client.generate(prompt_ids, sampling, "session", 60.0))

    def publish(self, policy: LlamaForCausalLM) -> Any:
        self.weights_seq_no += 1
        stats = self.publisher.publish(policy.named_parameters(), self.weights_seq_no)
        self.policy = policy
        return stats

    def statistics(self) -> dict[str, int]:
        return self.run(self.client.statistics())


def experiment(**serving: Any) -> ExperimentConfig:
    return ExperimentConfig(
        name="serving-test",
        model=ModelSection(path="unused", max_model_len=MAX_MODEL_LEN),
        rollout=RolloutSection(stop=()),
        serving=ServingSection(
            kv_cache_gib=0.1, max_num_seqs=64, max_num_batched_tokens=512, num_cpus_per_replica=0, **serving
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of torch that wait would take the cores from the replica."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_policy(0).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def deployment(
    cluster: None, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    run_dir = tmp_path_factory.mktemp("run")
    names = start_serving(experiment(), str(model_dir), str(run_dir), uuid.uuid4().hex[:8])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        wait_until_ready(names, START_TIMEOUT_S)
        publisher = WeightPublisher(names, "shared_memory", timeout_s=60.0)
        yield Deployment(names, PolicyClient(names), publisher, loop, make_policy(0))
    finally:
        stop_serving(names)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10.0)
    assert not weights_folder(names.application).exists()


def replica_actors(names: ServingNames) -> list[str]:
    return [actor for actor in live_actors() if actor.startswith(f"SERVE_REPLICA::{names.application}#")]


def kill_replica(names: ServingNames) -> str:
    (name,) = replica_actors(names)
    ray.kill(ray.get_actor(name, namespace="serve"))
    return name


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def test_logprobs_of_sampled_tokens_are_those_of_transformers(deployment: Deployment) -> None:
    completion = deployment.generate(PROMPT)
    assert len(completion.token_ids) == len(completion.logprobs) == FREE.max_tokens
    assert completion.finish_reason == "length"
    assert [dataclasses.astuple(span) for span in completion.version_spans] == [(0, 12, 0)]
    assert largest_gap(deployment.policy, PROMPT, completion) < 1e-3


def test_logprobs_are_those_of_the_sampling_temperature(deployment: Deployment) -> None:
    completion = deployment.generate(PROMPT, dataclasses.replace(FREE, temperature=0.4))
    assert largest_gap(deployment.policy, PROMPT, completion, temperature=0.4) < 1e-3
    assert largest_gap(deployment.policy, PROMPT, completion, temperature=1.0) > 1e-2


def test_temperature_zero_takes_the_likeliest_tokens(deployment: Deployment) -> None:
    completion = deployment.generate(PROMPT, dataclasses.replace(FREE, temperature=0.0))
    with torch.no_grad():
        logits = deployment.policy(torch.tensor([PROMPT + completion.token_ids])).logits[0]
    assert completion.token_ids == logits[len(PROMPT) - 1 : -1].argmax(dim=-1).tolist()


def test_the_same_seed_gives_the_same_response(deployment: Deployment) -> None:
    seeded = dataclasses.replace(FREE, seed=7)
    assert deployment.generate(PROMPT, seeded).token_ids == deployment.generate(PROMPT, seeded).token_ids


def test_a_prompt_seen_before_comes_from_the_prefix_cache(deployment: Deployment) -> None:
    prompt_ids = [5] * 70
    before = deployment.statistics()
    assert deployment.generate(prompt_ids).num_cached_tokens == 0
    assert deployment.generate(prompt_ids).num_cached_tokens == 64
    after = deployment.statistics()
    difference = {key: after[key] - before[key] for key in before}
    assert difference["prompt_tokens"] == 140
    assert difference["cached_tokens"] == 64
    assert difference["generated_tokens"] == 24
    assert difference["finished_requests"] == 2
    assert after["num_replicas"] == 1


def test_a_prompt_that_is_too_long_is_refused_alone(deployment: Deployment) -> None:
    async def ask() -> list[Completion | BaseException]:
        prompts = [PROMPT, [1] * (MAX_MODEL_LEN + 1), PROMPT]
        calls = [deployment.client.generate(prompt, FREE, "session", 60.0) for prompt in prompts]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, refused, last = deployment.run(ask())
    assert isinstance(first, Completion) and isinstance(last, Completion)
    assert isinstance(refused, RequestRefused) and str(MAX_MODEL_LEN) in str(refused)


def test_a_deadline_says_what_was_waited_for_and_ends_the_request(deployment: Deployment) -> None:
    before = deployment.statistics()["aborted_requests"]
    long = dataclasses.replace(FREE, max_tokens=200)
    with pytest.raises(TimeoutError, match=f"{deployment.names.application}.*did not answer within 0.05 s"):
        deployment.run(deployment.client.generate(PROMPT, long, "session", 0.05))
    wait_until(lambda: deployment.statistics()["aborted_requests"] == before + 1, 20.0, "the abort")
    assert deployment.statistics()["running_requests"] == 0


def test_requests_of_one_turn_travel_together_and_each_gets_its_own_answer(deployment: Deployment) -> None:
    async def ask() -> list[Completion]:
        samplings = [dataclasses.replace(FREE, max_tokens=1 + number % 9) for number in range(100)]
        calls = [
            deployment.client.generate([number] * 3, sampling, "session", 60.0)
            for number, sampling in enumerate(samplings)
        ]
        return await asyncio.gather(*calls)

    retries = deployment.client.retries
    completions = deployment.run(ask())
    assert deployment.client.retries == retries
    for number, completion in enumerate(completions):
        assert len(completion.token_ids) == 1 + number % 9
        assert largest_gap(deployment.policy, [number] * 3, completion) < 1e-3


def test_new_weights_are_served_and_old_ones_fail_the_same_check(deployment: Deployment) -> None:
    old, new = deployment.policy, make_policy(1)
    stats = deployment.publish(new)
    completion = deployment.generate(PROMPT)
    assert completion.version_spans[0].weights_seq_no == deployment.weights_seq_no
    assert largest_gap(new, PROMPT, completion) < 1e-3
    assert largest_gap(old, PROMPT, completion) > 0.05
    assert stats.num_replicas == 1
    assert stats.num_bytes == sum(parameter.nbytes for parameter in new.parameters())
    assert 0 < stats.seconds_load <= stats.seconds_paused < 60


def test_an_update_in_flight_keeps_each_request_and_marks_its_tokens(deployment: Deployment) -> None:
    old, new = deployment.policy, make_policy(2)
    old_version = deployment.weights_seq_no
    long = dataclasses.replace(FREE, max_tokens=120)
    prompts = [[number, *PROMPT] for number in range(24)]

    async def ask() -> list[Completion]:
        calls = [deployment.client.generate(p, long, str(i), 60.0) for i, p in enumerate(prompts)]
        return await asyncio.gather(*calls)

    before = deployment.statistics()["generated_tokens"]
    answers = asyncio.run_coroutine_threadsafe(ask(), deployment.loop)
    wait_until(lambda: deployment.statistics()["running_requests"] == 24, 20.0, "all requests to run")
    deployment.publish(new)
    completions = answers.result(60.0)

    assert deployment.statistics()["generated_tokens"] == before + 24 * 120
    for prompt_ids, completion in zip(prompts, completions, strict=True):
        first, second = completion.version_spans
        assert (first.start, first.weights_seq_no) == (0, old_version)
        assert (second.end, second.weights_seq_no) == (120, old_version + 1)
        assert 0 < first.end == second.start < 120
        sampled = torch.tensor(completion.logprobs)
        by_old = (sampled - reference_logprobs(old, prompt_ids, completion.token_ids)).abs()
        by_new = (sampled - reference_logprobs(new, prompt_ids, completion.token_ids)).abs()
        assert by_old[: first.end].max() < 1e-3 and by_new[first.end :].max() < 1e-3
        assert by_old[first.end :].max() > 0.05


def test_weights_that_are_not_newer_are_not_published(deployment: Deployment) -> None:
    with pytest.raises(RayTaskError, match="are not newer than weights"):
        deployment.publisher.publish(make_policy(3).named_parameters(), deployment.weights_seq_no)


def test_only_the_two_newest_versions_stay_in_shared_memory(deployment: Deployment) -> None:
    for seed in (4, 5, 6):
        deployment.publish(make_policy(seed))
    folder = weights_folder(deployment.names.application)
    versions = sorted(path.name for path in folder.glob("*.safetensors"))
    newest = deployment.weights_seq_no
    assert versions == [f"{newest - 1:08d}.safetensors", f"{newest:08d}.safetensors"]


def test_a_stop_string_ends_a_response_and_its_tokens_are_returned(deployment: Deployment) -> None:
    deployment.publish(make_repeating_policy())
    stop = dataclasses.replace(FREE, stop=("</action>",))
    one_token = deployment.generate([*PROMPT, CLOSE_ACTION], stop)
    assert (one_token.token_ids, one_token.finish_reason) == ([CLOSE_ACTION], "stop")
    assert len(one_token.logprobs) == 1

    bang = byte_id("!")
    three_tokens = deployment.generate([*PROMPT, bang], dataclasses.replace(FREE, stop=("!!!",)))
    assert (three_tokens.token_ids, three_tokens.finish_reason) == ([bang] * 3, "stop")
    assert three_tokens.version_spans[0].end == 3

    the_end = deployment.generate([*PROMPT, END], FREE)
    assert (the_end.token_ids, the_end.finish_reason) == ([END], "stop")


def test_a_killed_replica_is_replaced_and_serves_the_newest_weights(deployment: Deployment) -> None:
    deployment.publish(make_policy(7))
    long = dataclasses.replace(FREE, max_tokens=150)

    async def ask() -> list[Completion]:
        calls = [deployment.client.generate(PROMPT, long, str(i), 200.0) for i in range(8)]
        return await asyncio.gather(*calls)

    answers = asyncio.run_coroutine_threadsafe(ask(), deployment.loop)
    wait_until(lambda: deployment.statistics()["running_requests"] == 8, 20.0, "all requests to run")
    killed = kill_replica(deployment.names)
    published = deployment.publish(make_policy(8))

    completions = answers.result(START_TIMEOUT_S)
    assert published.num_replicas == 0
    assert deployment.client.retries >= 8
    for completion in completions:
        assert len(completion.token_ids) == 150
        assert [span.weights_seq_no for span in completion.version_spans] == [deployment.weights_seq_no]
        assert largest_gap(deployment.policy, PROMPT, completion) < 1e-3
    assert replica_actors(deployment.names) != [killed]


def test_weights_that_no_replica_can_load_are_reported_and_survived(deployment: Deployment) -> None:
    parameters = make_policy(9).named_parameters()
    incomplete = [(name, parameter) for name, parameter in parameters if "layers.1" not in name]
    with pytest.raises(WeightLoadError, match="the update lacks weights for .*layers.1"):
        deployment.publisher.publish(incomplete, deployment.weights_seq_no + 1)
    completion = deployment.run(
        deployment.client.generate(PROMPT, FREE, "session", START_TIMEOUT_S), START_TIMEOUT_S
    )
    assert completion.version_spans[0].weights_seq_no == deployment.weights_seq_no
    assert largest_gap(deployment.policy, PROMPT, completion) < 1e-3


def test_a_replica_that_does_not_load_in_time_is_named(cluster: None) -> None:
    names = ServingNames("serl-silent", "policy", "serl-weights-silent", "serl")
    store = create_weight_store(names)
    # The name of an actor that lives and never loads anything: the store itself.
    ray.get(store.register.remote(names.weight_store, 1, LoadReport(0, 0.0, 0.0)))
    publisher = WeightPublisher(names, "shared_memory", timeout_s=1.0)
    try:
        with pytest.raises(
            TimeoutError, match="weights 1 were not loaded within 1 s by 1 of 1 replicas: serl"
        ):
            publisher.publish(make_policy(0).named_parameters(), 1)
    finally:
        release_folder(names.application)
    assert find_weight_store(names) is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the transfer works here")
@pytest.mark.parametrize("transfer", ["nccl", "ipc"])
def test_a_transfer_between_gpus_needs_a_gpu(transfer: Any) -> None:
    with pytest.raises(ValueError, match=f"serving.weight_transfer={transfer} sends from the learner's GPU"):
        make_sender(transfer, "serl-nowhere")


def test_more_workers_than_gpus_are_refused(model_dir: Path, tmp_path: Path) -> None:
    wrong = experiment(num_gpus_per_replica=1, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="serving.tensor_parallel_size=2 needs as many GPUs"):
        start_serving(wrong, str(model_dir), str(tmp_path), "refused")


def test_waiting_for_a_deployment_that_does_not_come_has_a_deadline(deployment: Deployment) -> None:
    missing = dataclasses.replace(deployment.names, application="serl-missing")
    with pytest.raises(TimeoutError, match="'serl-missing' was not ready within 0.2 s"):
        wait_until_ready(missing, 0.2)


def test_an_unknown_engine_argument_is_named(cluster: None, model_dir: Path, tmp_path: Path) -> None:
    wrong = experiment(engine_args={"swap_spice": 4})
    names = start_serving(wrong, str(model_dir), str(tmp_path), uuid.uuid4().hex[:8])
    try:
        with pytest.raises(ServingStartError, match="serving.engine_args.swap_spice: vLLM .* has no such"):
            wait_until_ready(names, START_TIMEOUT_S)
    finally:
        stop_serving(names)


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
