"""That the private parts of vLLM still are what `serl.private.vllm` takes them for, in a real engine."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway_helpers import chat_tokenizer
from serving_helpers import experiment, make_policy, save_tokenizer
from vllm import ModelRegistry, __version__
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import nccl_common, packed_tensor

from serl.gateway.tool_calls import FoundCall, ToolCallParser, UnknownToolParser
from serl.private.vllm import SEEN_IN, check_nccl_group, has_architecture, nccl_wire_format
from serl.serving.engine_options import replica_environment

CONTRACT = f"seen in vLLM {SEEN_IN}, this is {__version__}"
ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json, sys
import torch
from vllm import ModelRegistry, SamplingParams
from vllm.inputs.engine import tokens_input
from serving_helpers import experiment
from serl.private import vllm as private
from serl.serving.engine_options import build_engine

found = {}
engine = build_engine(experiment(), sys.argv[1], seed=0)
found["kind_of_model_class"] = type(ModelRegistry.models["LlamaForCausalLM"]).__name__
sampling = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=0, temperature=0.0)


def finished():
    outputs = []
    while engine.has_unfinished_requests():
        outputs += [output for output in engine.step() if output.finished]
    return outputs


def ask(name, prompt=list(range(40, 80))):
    return engine.add_request(name, tokens_input(prompt), sampling)


ask("plain")
(plain,) = finished()
private.leave_token_texts_out(engine, ask("textless"))
(textless,) = finished()
for name, output in ("plain", plain), ("textless", textless):
    sample = output.outputs[0]
    first = sample.logprobs[0][sample.token_ids[0]]
    found[name] = {"token_ids": list(sample.token_ids), "text": first.decoded_token, "logprob": first.logprob}
found["cached_before_pause"] = textless.num_cached_tokens

late = []
ask("kept", list(range(80, 120)))
late += engine.step() + engine.step()
found["before_pause"] = private.num_requests(engine)
private.pause(engine, late.extend)
ask("added")
late += engine.step() + engine.step()
found["in_pause"] = private.num_requests(engine), [output.request_id for output in late if output.finished]

core = engine.engine_core.engine_core
worker = core.model_executor.driver_worker.worker
model = worker.model_runner.model
weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
with torch.no_grad():
    hidden = torch.randn(3, model.config.hidden_size)
    logits = model.compute_logits(hidden)
    embeddings = model.model.embed_tokens.weight[: model.config.vocab_size]
    replaced = {"model.embed_tokens.weight": 2.0 * embeddings.clone()}
    private.begin_reload(model)
    found["loaded"] = sorted(model.load_weights(replaced.items()))
    private.finish_reload(model, core.vllm_config.model_config)
    found["stale_ratio"] = float((model.compute_logits(hidden) / logits).mean())
    private.pack_tied_heads(model)
    found["ratio"] = float((model.compute_logits(hidden) / logits).mean())

private.sleep(engine)
private.wake_weights(engine)
late += engine.step()
found["in_sleep"] = [output.request_id for output in late if output.finished]
private.wake_cache(engine)
outputs = {output.request_id: output for output in finished()}
found["after_pause"] = {name: len(output.outputs[0].token_ids) for name, output in outputs.items()}
found["cached_after_pause"] = outputs["added"].num_cached_tokens
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one engine did, in a process of its own, which the environment variables are for."""
    folder = tmp_path_factory.mktemp("policy")
    make_policy(0).save_pretrained(folder)
    save_tokenizer(folder)
    environment = replica_environment(experiment().serving) | {"CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    finished = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | environment,
    )
    assert finished.returncode == 0, f"{CONTRACT}: {finished.stderr[-3000:]}"
    return json.loads(finished.stdout.splitlines()[-1])


def test_a_model_class_was_loaded_in_the_engines_process(found: dict[str, Any]) -> None:
    assert found["kind_of_model_class"] == "_RegisteredModel", CONTRACT


def test_log_probabilities_come_without_the_texts_of_their_tokens(found: dict[str, Any]) -> None:
    plain, textless = found["plain"], found["textless"]
    assert plain["text"] is not None and textless["text"] is None, CONTRACT
    assert textless["token_ids"] == plain["token_ids"], CONTRACT
    assert textless["logprob"] == pytest.approx(plain["logprob"], abs=1e-5), CONTRACT


def test_a_pause_keeps_requests_and_forgets_prefixes(found: dict[str, Any]) -> None:
    assert found["before_pause"] == [1, 0], CONTRACT
    (num_running, num_waiting), finished = found["in_pause"]
    assert (num_running + num_waiting, finished) == (2, []), CONTRACT
    assert found["after_pause"] == {"kept": 12, "added": 12}, CONTRACT
    assert found["cached_before_pause"] == 32 and found["cached_after_pause"] == 0, CONTRACT


def test_an_engine_that_slept_goes_on_once_weights_and_cache_are_awake(found: dict[str, Any]) -> None:
    assert found["in_sleep"] == [], CONTRACT
    assert found["after_pause"] == {"kept": 12, "added": 12}, CONTRACT


def test_a_reload_replaces_weights_and_a_tied_head_must_be_packed_again(found: dict[str, Any]) -> None:
    """If the ratio before packing is 2 too, `pack_tied_heads` has become needless."""
    assert found["loaded"] == ["model.embed_tokens.weight"], CONTRACT
    assert found["stale_ratio"] == pytest.approx(1.0, rel=1e-3), CONTRACT
    assert found["ratio"] == pytest.approx(2.0, rel=1e-3), CONTRACT


def test_architectures_are_those_of_the_registry() -> None:
    """What is only in the registry is no language model, or left to transformers."""
    known = {name for name in ModelRegistry.models if has_architecture(name)}
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM"} <= known, CONTRACT
    assert len(known) > len(ModelRegistry.models) / 2, CONTRACT
    assert not has_architecture("LlamasForCausalLM"), CONTRACT


def test_the_nccl_broadcast_takes_what_it_is_given() -> None:
    """No GPU is needed to see that names and defaults are the same at both ends."""
    inspect.signature(nccl_common.trainer_init).bind({})
    producer = inspect.signature(packed_tensor.packed_nccl_broadcast_producer)
    producer.bind(iterator=iter(()), group=None, src=0, post_iter_func=None)
    wire = nccl_wire_format()
    assert producer.parameters["buffer_size_bytes"].default == wire["packed_buffer_size_bytes"], CONTRACT
    assert producer.parameters["num_buffers"].default == wire["packed_num_buffers"], CONTRACT
    fields = nccl_common.NCCLWeightTransferInitInfo.__dataclass_fields__
    assert {*wire, "master_address", "master_port", "world_size", "rank_offset"} <= set(fields), CONTRACT


def test_a_group_that_sends_nothing_says_so() -> None:
    """vLLM makes one of a single member, too; its broadcasts return at once."""
    no_store: Any = None
    alone = PyNcclCommunicator(StatelessProcessGroup(rank=0, world_size=1, store=no_store), "cpu")
    with pytest.raises(RuntimeError, match="broadcasts would do nothing"):
        check_nccl_group(alone)


def test_the_parsers_of_vllm_find_calls_of_tools_in_what_a_policy_said():
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    parser = ToolCallParser("hermes", chat_tokenizer())
    said = 'Hm. <tool_call>{"name": "look", "arguments": {"at": "é"}}</tool_call>'
    text, (call,) = parser.parse(said, [tool])
    assert text == "Hm. "
    assert call == FoundCall(call.call_id, "look", '{"at": "é"}')
    assert call.call_id
    broken = "<tool_call>{</tool_call>"
    assert parser.parse(broken, [tool]) == (broken, [])
    with pytest.raises(UnknownToolParser, match="no tool parser 'hermess'"):
        ToolCallParser("hermess", chat_tokenizer())
