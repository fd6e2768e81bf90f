from __future__ import annotations

from pathlib import Path

import pytest
from byte_tokenizers import byte_level
from transformers import PreTrainedTokenizerFast

from envs.base import PromptParts, Turn
from serl.rollout.prompt import ChatTemplateMissingError, PromptEncoder, fit_prompt

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["<system>", "<user>", "<assistant>", "<end>"]
SYSTEM, USER, ASSISTANT, END = range(256, 260)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level(SPECIAL, TEMPLATE, additional_special_tokens=SPECIAL)


def render(parts: PromptParts) -> tuple[dict[str, str], ...]:
    history = "".join(f"{turn.observation}>{turn.action};" for turn in parts.history)
    return (
        {"role": "system", "content": "play"},
        {"role": "user", "content": history + parts.observation},
    )


def parts(*history: Turn, observation: str = "now") -> PromptParts:
    return PromptParts("task", history, len(history), observation, ("look",))


def test_a_prompt_is_the_chat_template_up_to_where_the_answer_begins(tokenizer: PreTrainedTokenizerFast):
    encoder = PromptEncoder(tokenizer)
    ids = encoder.encode(({"role": "system", "content": "ab"}, {"role": "user", "content": "c"}))
    assert (ids[0], ids[3], ids[4], ids[6], ids[7]) == (SYSTEM, END, USER, END, ASSISTANT)
    assert len(ids) == 8
    assert encoder.decode(ids[1:3]) == "ab"


def test_the_number_of_tokens_counts_text_alone(tokenizer: PreTrainedTokenizerFast):
    encoder = PromptEncoder(tokenizer)
    assert encoder.num_tokens("abc") == 3
    assert encoder.num_tokens("é") == 2
    assert encoder.num_tokens("") == 0


def test_decoding_leaves_special_tokens_out_and_spaces_as_they_are(tokenizer: PreTrainedTokenizerFast):
    encoder = PromptEncoder(tokenizer)
    text = " go , now ."
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert encoder.decode([*ids, END]) == text


def test_the_encoder_of_a_saved_policy_is_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    messages = ({"role": "user", "content": "you see a mug"},)
    expected = PromptEncoder(tokenizer).encode(messages)
    assert PromptEncoder.load(str(tmp_path)).encode(messages) == expected
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert PromptEncoder.load(str(tmp_path)).encode(messages) == expected


def test_a_tokenizer_without_chat_template_is_refused_with_the_cure(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateMissingError, match=r"chat_template\.jinja"):
        PromptEncoder(tokenizer)


def test_a_prompt_within_the_limit_keeps_its_history(tokenizer: PreTrainedTokenizerFast):
    encode = PromptEncoder(tokenizer).encode
    whole = parts(Turn("a", "x"), Turn("b", "y"))
    prompt = fit_prompt(whole, render, encode, max_prompt_length=len(encode(render(whole))))
    assert prompt is not None
    assert prompt.messages[-1]["content"] == "a>x;b>y;now"
    assert prompt.token_ids == encode(prompt.messages)
    assert prompt.num_dropped_turns == 0


def test_a_prompt_over_the_limit_loses_its_oldest_turns_first(tokenizer: PreTrainedTokenizerFast):
    encode = PromptEncoder(tokenizer).encode
    whole = parts(Turn("a", "x"), Turn("b", "y"), Turn("c", "z"))
    prompt = fit_prompt(whole, render, encode, max_prompt_length=len(encode(render(whole))) - 5)
    assert prompt is not None
    assert prompt.messages[-1]["content"] == "c>z;now"
    assert prompt.num_dropped_turns == 2


def test_a_prompt_too_long_without_history_is_no_prompt(tokenizer: PreTrainedTokenizerFast):
    encode = PromptEncoder(tokenizer).encode
    shortest = len(encode(render(parts())))
    assert fit_prompt(parts(Turn("a", "x")), render, encode, shortest) is not None
    assert fit_prompt(parts(Turn("a", "x")), render, encode, shortest - 1) is None
