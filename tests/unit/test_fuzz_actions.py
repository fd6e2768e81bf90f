"""Any response, as text and as ids: actions lie inside it, the mask covers them, and nothing raises."""

from __future__ import annotations

from typing import Any

import pytest
from fuzzing import any_text, fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from odd_tokenizers import byte_level_tokenizer, sentence_piece_tokenizer, word_piece_tokenizer

from envs.webshop.engine import parse_action as parse_shop_action
from serl.hindsight.quoting import without_thinking
from serl.rollout.actions import ResponseAction, action_spans, action_token_mask, tagged_action_spans
from serl.rollout.token_offsets import token_offsets

TOKENIZERS = {
    "byte-level": byte_level_tokenizer(),
    "sentence-piece": sentence_piece_tokenizer(),
    "word-piece": word_piece_tokenizer(),
}
pieces = st.sampled_from(
    ["<action>", "</action>", "<action", "action>", "[action>", "<ACTION a='>'>", "<think>", "</think>"]
    + ["<actions>", "search[", "click[", "]", "[", ">", "<", "/", " -> ", "look", "go to mug 1", "İ", "ﬀ"]
    + ["\n", " ", "\0", "😀", "é", "\u2581", "\ufffd", "\ud83d", "\udc00", "<0x41>", "<|end|>", "</s>"]
)
responses = st.lists(pieces | any_text, max_size=12).map("".join)
decodable = responses.map(lambda text: text.encode("utf-8", "replace").decode())


@fuzzed(100)
@given(responses)
@example("<action></action>")
@example("steps per action>3 <action>look</action>")
@example("<action>\ud83d</action>")
def test_actions_are_parts_of_the_response_in_order(text: str):
    spans = action_spans(text)
    ends = [0, *(place for span in spans for place in span), len(text)]
    assert ends == sorted(ends)
    assert all(text[start:end].strip() for start, end in spans)
    for start, end in tagged_action_spans(text):
        assert "</action>" not in text[start:end].lower()
        assert text[end:].lower().startswith("</action>") or end == len(text)
    action = ResponseAction.of(text)
    assert action.stated is None if not spans else action.stated == text[slice(*spans[0])].strip()
    assert action.sent in text
    parse_shop_action(action.sent)
    assert len(without_thinking(text)) <= len(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@fuzzed(40)
@given(ids=st.lists(st.integers(0, 350), max_size=40))
@example([170, 255])  # bytes of half a UTF-16 pair
def test_any_ids_have_a_mask_of_the_actions_alone(name: str, ids: list[int]):
    check_mask(TOKENIZERS[name], ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@fuzzed(40)
@given(text=decodable, extra=st.integers(0, 300), at=st.integers(0, 60))
def test_the_ids_of_any_text_have_a_mask_of_the_actions_alone(name: str, text: str, extra: int, at: int):
    ids = TOKENIZERS[name].encode(text, add_special_tokens=False)
    check_mask(TOKENIZERS[name], ids)
    check_mask(TOKENIZERS[name], [*ids[:at], extra, *ids[at + 1 :]])


def check_mask(tokenizer: Any, ids: list[int]) -> None:
    text, offsets = token_offsets(ids, tokenizer)
    assert text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    with_text = [(start, end) for start, end in offsets if start < end]
    assert len(offsets) == len(ids) and with_text == sorted(with_text)
    assert [end for _, end in with_text] == sorted(end for _, end in with_text)
    mask = action_token_mask(ids, tokenizer)
    of_actions = {place for span in action_spans(text) for place in range(*span)}
    covered: set[int] = set()
    for in_action, (start, end) in zip(mask, offsets, strict=True):
        assert in_action == bool(of_actions & set(range(start, end)))
        covered |= set(range(start, end))
    assert covered == set(range(len(text)))
