"""That the private parts of transformers still are what `serl.private.transformers` takes them for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import transformers.modeling_flash_attention_utils
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from serl.private.flash_attention import variable_length_attention
from serl.private.transformers import (
    SEEN_IN,
    attends_to_all_before,
    attention_implementation,
    decoder_layer_names,
    forget_quantization,
    has_causal_model,
    load_tokenizer,
)

CONTRACT = f"seen in transformers {SEEN_IN}, this is {transformers.__version__}"
POLICY = str(Path(__file__).resolve().parents[2] / "serl" / "policies" / "tiny_alfworld")
TEXT = "<think>find mug</think><action>go to shelf 1</action> é"
TINY: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LLAMA = LlamaConfig(**TINY)
SLIDING = MistralConfig(**TINY, sliding_window=4)
RECURRENT = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2)


def test_a_generic_tokenizer_is_the_one_that_auto_tokenizer_loads() -> None:
    own, theirs = load_tokenizer(POLICY), AutoTokenizer.from_pretrained(POLICY)
    assert type(own) is type(theirs), CONTRACT
    assert own.encode(TEXT) == theirs.encode(TEXT) and own.chat_template == theirs.chat_template, CONTRACT


def test_any_other_tokenizer_is_left_to_auto_tokenizer(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    GPT2Config().save_pretrained(tmp_path)
    assert type(load_tokenizer(str(tmp_path))) is type(AutoTokenizer.from_pretrained(tmp_path)), CONTRACT
    assert type(load_tokenizer(str(tmp_path))) is not type(tokenizer), CONTRACT


def test_the_types_of_causal_models_are_those_of_the_mapping() -> None:
    assert all(map(has_causal_model, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)), CONTRACT
    assert not any(map(has_causal_model, ("llamas", "t5", "bert-", "None", ""))), CONTRACT


@pytest.mark.parametrize(("config", "name"), [(LLAMA, "LlamaDecoderLayer"), (SLIDING, "MistralDecoderLayer")])
def test_a_model_names_its_decoder_layers(config, name: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    assert decoder_layer_names(model) == {name}, CONTRACT
    layers = [module for module in model.modules() if type(module).__name__ == name]
    assert len(layers) == 2, CONTRACT


@pytest.mark.parametrize(("config", "attends"), [(LLAMA, True), (SLIDING, False), (RECURRENT, False)])
def test_only_full_attention_attends_to_all_tokens_before(config, attends: bool) -> None:
    assert attends_to_all_before(AutoModelForCausalLM.from_config(config)) == attends, CONTRACT


def test_checkpointing_changes_nothing_about_what_is_attended_to() -> None:
    model = AutoModelForCausalLM.from_config(LLAMA)
    model.gradient_checkpointing_enable()
    assert attends_to_all_before(model), CONTRACT


def test_a_model_says_with_which_attention_it_was_loaded() -> None:
    model = AutoModelForCausalLM.from_config(LLAMA, attn_implementation="eager")
    assert attention_implementation(model) == "eager", CONTRACT
    model.set_attn_implementation("sdpa")
    assert attention_implementation(model) == "sdpa", CONTRACT


def test_flash_attention_is_given_every_border_and_the_kernel_by_name(monkeypatch) -> None:
    given: dict[str, Any] = {}

    def flash(query, key, value, mask, **options):
        given.update(options, dtype=query.dtype, mask=mask)
        return query

    utils = transformers.modeling_flash_attention_utils
    parameters = inspect.signature(utils._flash_attention_forward).parameters
    monkeypatch.setattr(utils, "_flash_attention_forward", flash)
    starts, tokens = torch.tensor([0, 3], dtype=torch.int32), torch.randn(3, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        attended = variable_length_attention(
            *(tokens, tokens, tokens),
            scaling=0.5,
            implementation="flash_attention_2",
            query_starts=starts,
            key_starts=starts,
            longest_query=3,
            longest_key=3,
        )
    assert attended.shape == (3, 2, 4)
    assert given.pop("dtype") == torch.bfloat16 and given.pop("mask") is None
    assert given.keys() <= parameters.keys(), CONTRACT
    assert given["attn_implementation"] == "flash_attention_2" and given["is_causal"]


def test_a_model_that_forgot_its_quantization_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(LLAMA)
    model.config.quantization_config = {"quant_method": "gguf"}
    model.hf_quantizer = object()
    with pytest.raises(AttributeError):
        model.save_pretrained(tmp_path / "quantised")
    forget_quantization(model)
    model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text(), CONTRACT
