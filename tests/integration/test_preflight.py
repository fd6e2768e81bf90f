"""What is found before a run starts: each finding by something that is really wrong."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM  # pyright: ignore[reportAttributeAccessIssue]

from serl.config.load import load_experiment
from serl.models.resolve import EMBEDDED_POLICIES, ModelPathError, ready_folder
from serl.run.preflight import examine_address, examine_inputs, examine_machine
from serl.run.preflight.memory import examine_memory
from serl.run.preflight.model import examine_model

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.yaml"
SYSTEM_IS_REFUSED = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ messages[0]['content'] }}"
)
SYSTEM_IS_LEFT_OUT = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A policy that a test may spoil."""
    return shutil.copytree(EMBEDDED_POLICIES / "tiny_alfworld", tmp_path / "model")


def wrong(*overrides: str) -> list[str]:
    found = examine_inputs(load_experiment(QUICKSTART, overrides))
    return [f"{finding.subject}: {finding.text}" for finding in found if finding.verdict == "wrong"]


def test_the_prompts_of_a_sample_of_tasks_are_measured():
    (found,) = [f for f in examine_inputs(load_experiment(QUICKSTART)) if f.subject == "prompts"]
    assert found.verdict == "ok"
    assert found.text.startswith("the first prompts of 16 tasks have ")


def test_how_long_conversations_grow_is_told_and_what_a_template_rewrites(model: Path):
    def told(*overrides: str) -> list[str]:
        experiment = load_experiment(QUICKSTART, ["rollout.prompt=conversation", *overrides])
        return [found.text for found in examine_inputs(experiment) if found.subject == "conversations"]

    (grown,) = told()
    assert re.search(
        r"a turn adds about \d+ tokens and a response of up to 32: with env.max_steps = 15 ", grown
    )
    assert re.search(r"= 448; from step [3-9] on they may have to be cut$", grown)
    (short,) = told("env.max_steps=2")
    assert short.endswith("of rollout.max_prompt_length = 448")
    template = model / "chat_template.jinja"
    thinking_left_out = template.read_text().replace(
        "message.content }}<|end|>", "message.content[-9:] }}<|end|>"
    )
    template.write_text(thinking_left_out)
    rewritten, _ = told(f"model.path={model}")
    assert "writes responses otherwise once they are history" in rewritten


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (SYSTEM_IS_REFUSED, "with the roles system and user: TemplateError: System role not supported"),
        (SYSTEM_IS_LEFT_OUT, "leaves out what the system message says"),
        ("{% for m in messages %}{{ m.content }", "TemplateSyntaxError"),
        ("", "has no chat template: add chat_template.jinja"),
    ],
)
def test_a_chat_template_that_cannot_write_the_prompts_is_told(template: str, words: str, model: Path):
    (model / "chat_template.jinja").write_text(template)
    (told,) = wrong(f"model.path={model}")
    assert told.startswith("model: ") and str(model) in told and words in told


def test_a_model_without_a_chat_template_is_told(model: Path):
    (model / "chat_template.jinja").unlink()
    (told,) = wrong(f"model.path={model}")
    assert "has no chat template: add chat_template.jinja" in told


def describe(model: Path, **changes: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_a_model_that_transformers_has_no_class_for_is_told(model: Path):
    describe(model, model_type="llamas")
    (told,) = wrong(f"model.path={model}")
    assert "has model_type = 'llamas', for which transformers " in told
    assert told.endswith(" has no causal language model: learners could not load it")


def test_a_model_that_vllm_has_no_class_for_is_told(model: Path):
    describe(model, architectures=["LlamasForCausalLM"])
    (told,) = wrong(f"model.path={model}")
    assert "has the architectures LlamasForCausalLM, for which the installed vLLM has no class" in told


def test_a_configuration_that_is_no_object_is_told(model: Path):
    (model / "config.json").write_text("[]")
    (told,) = wrong(f"model.path={model}")
    assert told == f"model: {model}/config.json is not a model's configuration: it is no object"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 99}, "num_hidden_layers = 99, and its files have no layer 3"),
        ({"num_hidden_layers": 2}, "num_hidden_layers = 2, and its files have 3 layers"),
        ({"vocab_size": 10}, "and hidden_size = 128, and model.embed_tokens.weight is (823, 128)"),
        ({"hidden_size": 96}, "and hidden_size = 96, and model.embed_tokens.weight is (823, 128)"),
    ],
)
def test_a_configuration_of_another_model_than_the_files_is_told(
    changes: dict[str, int], words: str, model: Path
):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))
    (told,) = wrong(f"model.path={model}")
    assert told.startswith(f"model: {model}: its config.json says ") and words in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "config.json is not a model's configuration: maximum recursion depth"),
        ('{"model_type": "llama", "architectures": 5, "hidden_size": Infinity}', "the architectures none"),
    ],
)
def test_a_configuration_that_nobody_can_read_is_told(text: str, words: str, model: Path):
    (model / "config.json").write_text(text)
    experiment = load_experiment(QUICKSTART, [f"model.path={model}"])
    (told,) = [found.text for found in examine_model(experiment) if found.verdict == "wrong"]
    assert words in told
    assert {found.verdict for found in examine_memory(experiment)} <= {"ok"}


def test_an_output_folder_whose_name_no_system_takes_ends_no_check():
    experiment = load_experiment(QUICKSTART, [f"output_dir=/tmp/{'x' * 300}"])
    assert "missing" not in {found.verdict for found in examine_memory(experiment)}


def test_experts_that_transformers_holds_in_another_form_than_the_files_are_told(model: Path):
    config = Qwen2MoeConfig(
        vocab_size=823,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    Qwen2MoeForCausalLM(config).save_pretrained(model)
    (told,) = wrong(f"model.path={model}")
    assert "transformers holds 2 weights in another form than the files, such as " in told
    assert "model.layers.0.mlp.experts.down_proj" in told
    file = model / "model.safetensors"
    state = Qwen2MoeForCausalLM(config).state_dict()
    save_file({name: weight.contiguous() for name, weight in state.items()}, file)
    assert wrong(f"model.path={model}") == []


@pytest.mark.parametrize("key", ["learner.num_gpus_per_learner", "serving.num_gpus_per_replica"])
def test_bfloat16_on_processors_is_told(key: str):
    overrides = ["model.dtype=bfloat16", "learner.num_gpus_per_learner=1", "serving.num_gpus_per_replica=1"]
    overrides += ["serving.weight_transfer=nccl"]
    assert wrong(*overrides) == []
    told = wrong("model.dtype=bfloat16")
    assert len(told) == 2
    assert any(one.startswith(f"model: model.dtype = bfloat16 contradicts {key} = 0: ") for one in told)


def make_special(model: Path, *tags: str) -> None:
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    for tag in tags:
        number = vocabulary.get(tag, max(vocabulary.values()) + 1 + len(added))
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added[tag] = added.get(tag, {"id": number, "content": tag} | flags) | {"special": True}
    tokenizer["added_tokens"] = list(added.values())
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.mark.parametrize("tag", ["<action>", "</action>", "<think>"])
def test_tags_that_are_special_tokens_are_told(tag: str, model: Path):
    make_special(model, tag)
    (told,) = wrong(f"model.path={model}")
    assert told.startswith("model: ") and f"loses {tag} in a response" in told


def test_thinking_may_be_special_tokens_where_none_is_removed(model: Path):
    make_special(model, "<think>", "</think>")
    assert wrong(f"model.path={model}", "hindsight.remove_thinking=false") == []


def test_a_limit_that_no_prompt_keeps_is_told():
    (told,) = wrong("rollout.max_prompt_length=20")
    assert told.startswith("prompts: rollout.max_prompt_length = 20: the first prompts of 16 tasks have ")
    assert told.endswith("every episode would end before its first step")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.path=~nosuchuser/m", "model: model.path = '~nosuchuser/m': ~nosuchuser has no home"),
        ("output_dir=~nosuchuser/runs", "output: output_dir = '~nosuchuser/runs': ~nosuchuser has no home"),
        ("env.args.data=~nosuchuser/d", "data: '~nosuchuser/d': ~nosuchuser has no home"),
        ("model.path=$NO_SUCH_NAME/m", "the environment variable NO_SUCH_NAME is not set"),
        ("output_dir=$NO_SUCH_NAME/runs", "the environment variable NO_SUCH_NAME is not set"),
        ("env.args.data=$NO_SUCH_NAME", "the environment variable NO_SUCH_NAME is not set"),
    ],
)
def test_a_path_that_names_nobody_is_told(override: str, words: str):
    (told,) = wrong(override)
    assert words in told


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"name={'x' * 230}", "output: output_dir = 'runs': xxx"),
        (f"output_dir=/tmp/{'x' * 300}", "has more than the 255 bytes that a folder's name may have"),
        ("checkpoint.copy_to=nosuch://x", "output: checkpoint.copy_to = 'nosuch://x': Protocol not known"),
        ("env.args.success_reward=inf", "data: env.args.success_reward: 'inf': Input should be a finite"),
    ],
)
def test_what_no_run_could_begin_with_is_told(override: str, words: str):
    (told,) = wrong(override)
    assert words in told


def test_damaged_weights_are_told(model: Path):
    file = model / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", b"\x10" + b"\0" * 7 + b"no weights at all", whole[:-1], whole[:100]):
        file.write_bytes(damaged)
        (told,) = wrong(f"model.path={model}")
        assert told.startswith(f"model: {file} is not a whole file of weights: ")


def missing(*overrides: str) -> list[str]:
    found = examine_machine(load_experiment(QUICKSTART, overrides))
    return [finding.text for finding in found if finding.verdict == "missing"]


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_is_told(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    monkeypatch.setenv(variable, str(folder))
    (told,) = missing()
    assert (
        told.startswith(f"{variable} = {folder} has {len(str(folder))} bytes") and "RAY_TMPDIR=/tmp" in told
    )


def test_an_address_where_nobody_listens_is_told_within_seconds():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    (found,) = examine_address(f"127.0.0.1:{port}")
    assert found.verdict == "missing" and f"--address 127.0.0.1:{port}: nothing answers there" in found.text
    assert time.monotonic() - started < 5.0


def test_a_hub_model_that_is_not_here_is_no_folder_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert ready_folder("nobody/nothing") is None
    with pytest.raises(ModelPathError, match="no such folder"):
        ready_folder("./nobody/nothing")
