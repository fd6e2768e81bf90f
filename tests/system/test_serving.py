"""The policy deployment end to end: Ray, Serve and vLLM on CPU with a tiny Llama of tied embeddings."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gateway_helpers import terms
from openai import AuthenticationError, BadRequestError, OpenAI
from ray import serve
from serving_helpers import (
    CLOSE_ACTION,
    END,
    FREE,
    MAX_MODEL_LEN,
    PROMPT,
    START_TIMEOUT_S,
    Deployment,
    ask_in_turns,
    byte_id,
    experiment,
    kill_replica,
    largest_mismatch,
    make_policy,
    make_repeating_policy,
    reference_logprobs,
    replica_actors,
    running_requests,
    save_tokenizer,
    scale_to,
    wait_until,
)

from serl.gateway.client import GatewayClient
from serl.gateway.start import start_gateway, wait_until_gateway_ready
from serl.rollout.gateway import GatewayUnavailable
from serl.serving.client import PolicyClient
from serl.serving.start import (
    ServingStartError,
    replace_weight_store,
    start_serving,
    stop_serving,
    wait_until_ready,
)
from serl.serving.transfer import shared_memory
from serl.serving.transfer.sender import Weights
from serl.serving.weights import WeightLoadError, WeightPublisher
from serl.serving.weights_folder import weights_folder
from serl.types import Completion, RequestRefused

# Threads of torch that wait would take the cores from the replica.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_policy(0).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def deployment(
    ray_cluster: None, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    run_dir = tmp_path_factory.mktemp("run")
    with_gateway = experiment(gateway=True)
    with pytest.MonkeyPatch.context() as patch:  # `scale_to` decides in the place of Serve's autoscaler
        patch.setattr(serve, "RunTarget", partial(serve.RunTarget, external_scaler_enabled=True))
        names = start_serving(with_gateway, str(model_dir), str(run_dir))
    gateway = start_gateway(with_gateway, str(model_dir), str(run_dir), names)
    assert gateway is not None
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        wait_until_ready(names, START_TIMEOUT_S)
        wait_until_gateway_ready(gateway, START_TIMEOUT_S)
        publisher = WeightPublisher(names, "auto", timeout_s=60.0)
        client = PolicyClient(dataclasses.replace(names, num_session_lanes=16))
        yield Deployment(names, client, publisher, loop, make_policy(0), GatewayClient(gateway))
    finally:
        stop_serving(names)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10.0)
    assert not weights_folder(names.application).exists()


def test_logprobs_of_sampled_tokens_are_those_of_transformers(deployment: Deployment) -> None:
    completion = deployment.generate(PROMPT)
    assert len(completion.token_ids) == len(completion.logprobs) == FREE.max_tokens
    assert completion.finish_reason == "length"
    assert [dataclasses.astuple(span) for span in completion.version_spans] == [(0, 12, 0)]
    assert largest_mismatch(deployment.policy, PROMPT, completion) < 1e-3


def test_logprobs_are_those_of_the_sampling_temperature(deployment: Deployment) -> None:
    completion = deployment.generate(PROMPT, dataclasses.replace(FREE, temperature=0.4))
    assert largest_mismatch(deployment.policy, PROMPT, completion, temperature=0.4) < 1e-3
    assert largest_mismatch(deployment.policy, PROMPT, completion, temperature=1.0) > 1e-2


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


def test_an_agent_over_http_is_answered_with_sampled_ids_whose_logprobs_are_those_of_transformers(
    deployment: Deployment,
) -> None:
    gateway = deployment.gateway
    assert gateway is not None
    access = deployment.run(gateway.open_episode(terms(sampling=FREE, max_prompt_length=200)))
    assert access.base_url.startswith("http://127.0.0.1:")
    said: list[Any] = [{"role": "user", "content": "Go"}]
    with OpenAI(base_url=access.base_url, api_key=access.api_key, max_retries=0) as client:
        for word in ("left", "right"):
            answer = client.chat.completions.create(model="policy", messages=said)
            said += [answer.choices[0].message, {"role": "user", "content": word}]
        with pytest.raises(BadRequestError, match="serving.tool_parser"):
            tool: Any = {"type": "function", "function": {"name": "look"}}
            client.chat.completions.create(model="policy", messages=said, tools=[tool])
        stream = client.chat.completions.create(model="policy", messages=said, stream=True, max_tokens=3)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        record = deployment.run(gateway.close_episode(access.api_key))
        with pytest.raises(AuthenticationError, match="has ended"):
            client.models.list()
    first, second, third = record.answers
    assert (second.continues, third.continues) == (0, 1)
    sampled = first.prompt_ids + first.completion.token_ids
    assert second.prompt_ids[: len(sampled)] == sampled
    assert len(third.completion.token_ids) == 3
    for answer in record.answers:
        assert largest_mismatch(deployment.policy, answer.prompt_ids, answer.completion) < 1e-3
        (span,) = answer.completion.version_spans
        assert span.weights_seq_no == deployment.weights_seq_no
    with pytest.raises(GatewayUnavailable, match="was restarted"):
        deployment.run(gateway.close_episode("serl-nobody"))


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
        assert largest_mismatch(deployment.policy, [number] * 3, completion) < 1e-3


def test_new_weights_are_served_and_old_ones_fail_the_same_check(deployment: Deployment) -> None:
    old, new = deployment.policy, make_policy(1)
    stats = deployment.publish(new)
    completion = deployment.generate(PROMPT)
    assert completion.version_spans[0].weights_seq_no == deployment.weights_seq_no
    assert largest_mismatch(new, PROMPT, completion) < 1e-3
    assert largest_mismatch(old, PROMPT, completion) > 0.05
    assert stats.num_replicas == 1
    assert stats.num_bytes == sum(parameter.nbytes for parameter in new.parameters())
    assert 0 < stats.seconds_load <= stats.seconds_paused < 60


@pytest.mark.parametrize("asleep", [False, True])
def test_an_update_in_flight_keeps_each_request_and_marks_its_tokens(
    deployment: Deployment, asleep: bool
) -> None:
    old, new = deployment.policy, make_policy(2 + asleep)
    old_version = deployment.weights_seq_no
    long = dataclasses.replace(FREE, max_tokens=120)
    prompts = [[number, *PROMPT] for number in range(24)]

    async def ask() -> list[Completion]:
        calls = [deployment.client.generate(p, long, str(i), 60.0) for i, p in enumerate(prompts)]
        return await asyncio.gather(*calls)

    before = deployment.statistics()["generated_tokens"]
    answers = asyncio.run_coroutine_threadsafe(ask(), deployment.loop)
    wait_until(lambda: deployment.statistics()["running_requests"] == 24, 20.0, "all requests to run")
    if asleep:
        deployment.publisher.put_to_sleep()
        steps = deployment.statistics()["engine_steps"]
        time.sleep(0.3)
        assert deployment.statistics()["engine_steps"] == steps
    stats = deployment.publish(new)
    assert (stats.seconds_paused > 0.3) or not asleep
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
    with pytest.raises(ValueError, match="are not newer than weights"):
        deployment.publisher.publish(Weights.of(make_policy(3).named_parameters()), deployment.weights_seq_no)


def test_learners_that_resumed_publish_an_older_version_and_it_is_served(deployment: Deployment) -> None:
    resumed = WeightPublisher(deployment.names, "auto", timeout_s=60.0)
    older = deployment.weights_seq_no - 1
    stats = resumed.publish(Weights.of(make_policy(10).named_parameters()), older).stats
    assert stats.num_replicas == 1
    completion = deployment.generate(PROMPT)
    assert completion.version_spans[0].weights_seq_no == older
    assert largest_mismatch(make_policy(10), PROMPT, completion) < 1e-3


def test_a_weight_store_that_ends_is_replaced_and_replicas_find_the_new_one(deployment: Deployment) -> None:
    served = replica_actors(deployment.names)
    deployment.weights_seq_no += 1
    parameters = make_policy(12).named_parameters()
    snapshot = deployment.publisher.publish(Weights.of(parameters), deployment.weights_seq_no).snapshot
    replace_weight_store(deployment.names, snapshot)
    # One that was killed while nobody looked, and takes a new version at once.
    stats = deployment.publish(make_policy(11))
    assert stats.num_replicas == 1
    completion = deployment.generate(PROMPT)
    assert completion.version_spans[0].weights_seq_no == deployment.weights_seq_no
    assert largest_mismatch(deployment.policy, PROMPT, completion) < 1e-3
    assert replica_actors(deployment.names) == served


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


def test_a_replica_on_another_host_than_the_learner_gets_one_copy_of_its_weights(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "host_id", lambda: "another host")
    for seed in (13, 14):
        assert deployment.publish(make_policy(seed)).seconds_fetch > 0
        completion = deployment.generate(PROMPT)
        assert completion.version_spans[0].weights_seq_no == deployment.weights_seq_no
        assert largest_mismatch(deployment.policy, PROMPT, completion) < 1e-3
    assert len(list(weights_folder(deployment.names.application).glob("*.copy"))) == 1


def test_a_replica_that_is_to_end_in_the_middle_of_requests_loses_none(deployment: Deployment) -> None:
    names = deployment.names
    scale_to(names, 2)
    wait_until(lambda: deployment.statistics()["num_replicas"] == 2, START_TIMEOUT_S, "a second replica")
    assert deployment.publish(make_policy(15)).num_replicas == 2
    client, long = deployment.client, dataclasses.replace(FREE, max_tokens=100)
    played = asyncio.run_coroutine_threadsafe(ask_in_turns(client, 32, 6, long), deployment.loop)
    wait_until(
        lambda: min(deployment.run(running_requests(client))) > 4, 60.0, "both replicas to have requests"
    )
    scale_to(names, 1)
    wait_until(lambda: deployment.statistics()["num_replicas"] == 1, 60.0, "one replica to be left out")
    assert not played.done()
    for prompt, completion in played.result(200.0):
        assert len(completion.token_ids) == 100
        assert [span.weights_seq_no for span in completion.version_spans] == [deployment.weights_seq_no]
        assert largest_mismatch(deployment.policy, prompt, completion) < 1e-3
    wait_until(lambda: len(replica_actors(names)) == 1, 60.0, "the replica to end")


def test_a_killed_replica_is_replaced_and_serves_the_newest_weights(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.publish(make_policy(7))
    # Whatever replaces it fetches them before it serves.
    monkeypatch.setattr(shared_memory, "host_id", lambda: "another host")
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
        assert largest_mismatch(deployment.policy, PROMPT, completion) < 1e-3
    assert replica_actors(deployment.names) != [killed]


def test_weights_that_no_replica_can_load_are_reported_and_survived(deployment: Deployment) -> None:
    parameters = make_policy(9).named_parameters()
    incomplete = [(name, parameter) for name, parameter in parameters if "layers.1" not in name]
    with pytest.raises(WeightLoadError, match="the update lacks weights for .*layers.1"):
        deployment.publisher.publish(Weights.of(incomplete), deployment.weights_seq_no + 1)
    completion = deployment.run(
        deployment.client.generate(PROMPT, FREE, "session", START_TIMEOUT_S), START_TIMEOUT_S
    )
    assert completion.version_spans[0].weights_seq_no == deployment.weights_seq_no
    assert largest_mismatch(deployment.policy, PROMPT, completion) < 1e-3


def test_waiting_for_a_deployment_that_does_not_come_has_a_deadline(deployment: Deployment) -> None:
    missing = dataclasses.replace(deployment.names, application="serl-missing")
    with pytest.raises(TimeoutError, match="'serl-missing' was not ready within 0.2 s"):
        wait_until_ready(missing, 0.2)


def test_an_unknown_engine_argument_is_named(ray_cluster: None, model_dir: Path, tmp_path: Path) -> None:
    wrong = experiment(engine_args={"swap_spice": 4})
    names = start_serving(wrong, str(model_dir), str(tmp_path))
    try:
        with pytest.raises(ServingStartError, match="serving.engine_args.swap_spice: vLLM .* has no such"):
            wait_until_ready(names, START_TIMEOUT_S)
    finally:
        stop_serving(names)
