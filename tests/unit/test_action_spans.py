"""Actions in responses: as characters, and as the sampled tokens that hold them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from odd_tokenizers import byte_level_tokenizer, sentence_piece_tokenizer, word_piece_tokenizer
from transformers import PreTrainedTokenizerFast

from serl.rollout import token_offsets as token_offsets_module
from serl.rollout.actions import action_spans, action_token_mask, parse_action
from serl.rollout.token_offsets import token_offsets


def contents(text: str) -> list[str]:
    return [text[start:end] for start, end in action_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<action>look</action>", ["look"]),
        ("<think>x</think>\n<action>\n go to shelf 1 \n</action> done", ["\n go to shelf 1 \n"]),
        ("<action>look", ["look"]),
        ('<ACTION type="x">look</Action> tail', ["look"]),
        ("action>look</action>", ["look"]),
        ("[action>look</action>]", ["look"]),
        ("<think>use <action>no</action></think><action>yes</action>", ["no", "yes"]),
        ("<action>search[mug]</action> then click[buy]", ["search[mug]"]),
        ("first search[red mug], then Click[buy now]", ["search[red mug]", "Click[buy now]"]),
        ("go to shelf 1", []),
        ("", []),
        ("<action>", []),
        ("look</action>", []),
        ("<think>the best action is this</think><action>look</action>", ["look"]),
        ("<actions>look</actions>", []),
        ("research[mug]", []),
        ("<action></action><action>look</action>", ["look"]),
        ("<action></action>", []),
        ("<action> \n</action>", []),
        ("<action></action> search[mug]", ["search[mug]"]),
        ("<think>the next action is to go -> take it</think><action>look</action>", ["look"]),
        ("<think>best action => go</think><action>look</action>", ["look"]),
        ("<think>the action (price > 5) is bad</think><action>look</action>", ["look"]),
        ("<think>steps per action>3, so hurry</think><action>look</action>", ["look"]),
        ("<think>steps per action>3</think> search[mug]", ["search[mug]"]),
        ("<think>x</think>[action>look</action>]", ["look"]),
        ("[action>look", ["look"]),
    ],
)
def test_action_contents(text: str, expected: list[str]):
    assert contents(text) == expected


def test_the_first_action_is_parsed_and_stripped():
    assert (
        parse_action("<think>é</think><action> go to shelf 1\n</action><action>look</action>")
        == "go to shelf 1"
    )
    assert parse_action("click[buy now]") == "click[buy now]"
    assert parse_action("I do not know") is None


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def sentence_piece() -> PreTrainedTokenizerFast:
    return sentence_piece_tokenizer()


@pytest.fixture(scope="module")
def word_piece() -> PreTrainedTokenizerFast:
    return word_piece_tokenizer()


def sampled(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def masked_tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    mask = action_token_mask(ids, tokenizer)
    assert len(mask) == len(ids)
    return [tokenizer.convert_ids_to_tokens(token) for token, chosen in zip(ids, mask, strict=True) if chosen]


def test_a_token_counts_if_it_overlaps_the_action_at_all(byte_level):
    ids = [
        byte_level.convert_tokens_to_ids(token)
        for token in ("<", "action", ">", "l", "o", "o", "k", "<", "/")
    ]
    ids += [byte_level.convert_tokens_to_ids(token) for token in ("action", ">")]
    assert action_token_mask(ids, byte_level) == [False] * 3 + [True] * 4 + [False] * 4


def test_a_character_of_several_tokens_marks_them_all(byte_level):
    ids = sampled(byte_level, "<action>\u65e5</action>")
    assert masked_tokens(byte_level, ids) == [
        "\u00e6",
        "\u0139",
        "\u00a5",
    ]  # the three bytes of one character


def test_characters_outside_the_action_do_not_count(byte_level):
    ids = sampled(byte_level, "<think>\u00e9 \U0001f642</think><action>go to \u672c</action>\U0001f642")
    assert "".join(masked_tokens(byte_level, ids)) == "go to\u0120\u00e6\u013e\u00ac"


def test_special_tokens_have_empty_spans_and_are_never_part_of_an_action(byte_level):
    end = byte_level.eos_token_id
    ids = [*byte_level.encode("<action>lo"), end, *byte_level.encode("ok"), end]
    text, offsets = token_offsets(ids, byte_level)
    assert text == "<action>look"
    mask = action_token_mask(ids, byte_level)
    assert [mask[index] for index, token in enumerate(ids) if token == end] == [False, False]
    assert all(start == stop for (start, stop), token in zip(offsets, ids, strict=True) if token == end)
    assert "".join(text[start:stop] for start, stop in offsets) == text


def test_the_ids_decide_and_not_how_the_text_would_be_tokenised_again(byte_level):
    letters = [byte_level.convert_tokens_to_ids(letter) for letter in "<action>look</action>"]
    assert letters != byte_level.encode("<action>look</action>")
    assert action_token_mask(letters, byte_level) == [8 <= position < 12 for position in range(len(letters))]


def test_broken_bytes_keep_their_neighbours_in_place(byte_level):
    broken = byte_level.convert_tokens_to_ids("\u00e6")  # the first of three bytes, alone
    ids = [*byte_level.encode("<action>"), broken, *byte_level.encode("x</action>")]
    text, offsets = token_offsets(ids, byte_level)
    assert text == "<action>\ufffdx</action>"
    position = ids.index(broken)
    assert offsets[position : position + 2] == [(8, 9), (9, 10)]


def test_an_id_beyond_the_vocabulary_is_nothing(byte_level):
    ids = [len(byte_level) + 7, *byte_level.encode("<action>x"), len(byte_level) + 7]
    assert token_offsets(ids, byte_level)[0] == "<action>x"
    mask = action_token_mask(ids, byte_level)
    assert (mask[0], mask[-2], mask[-1]) == (False, True, False)


def test_no_ids_have_no_mask(byte_level):
    assert action_token_mask([], byte_level) == []


def test_a_decoder_that_strips_the_leading_space(sentence_piece):
    ids = sampled(sentence_piece, "<action>go \u00e9</action>")
    assert sentence_piece.convert_ids_to_tokens(ids[0]) == "\u2581"
    assert token_offsets(ids, sentence_piece)[0] == "<action>go \u00e9</action>"
    assert masked_tokens(sentence_piece, ids) == ["g", "o", "\u2581", "<0xC3>", "<0xA9>"]


def test_any_other_decoder_is_asked_prefix_by_prefix(word_piece):
    ids = [
        word_piece.convert_tokens_to_ids(token) for token in ("action", ">", "look", "##ing", "[END]", "at")
    ]
    text, offsets = token_offsets(ids, word_piece)
    assert text == "action > looking at"
    assert offsets == [(0, 6), (6, 8), (8, 13), (13, 16), (16, 16), (16, 19)]


@pytest.mark.parametrize("name", ["byte_level", "sentence_piece"])
def test_offsets_cover_the_text_of_any_ids(name: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(name)
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(20))]
        text, offsets = token_offsets(ids, tokenizer)
        assert text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        covered: set[int] = set()
        for start, stop in offsets:
            assert 0 <= start <= stop <= len(text)
            covered.update(range(start, stop))
        assert covered == set(range(len(text)))


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_a_response_is_decoded_once_and_not_prefix_by_prefix(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = request.getfixturevalue(kind)
    ids = sampled(tokenizer, "<think>" + "go to the shelf " * 15 + "</think><action>take mug 1</action>")
    decoded: list[list[int]] = []
    decode = token_offsets_module._decode

    def counted(tokenizer: Any, ids: list[int]) -> str:
        decoded.append(ids)
        return decode(tokenizer, ids)

    monkeypatch.setattr(token_offsets_module, "_decode", counted)
    action_token_mask(ids, tokenizer)
    assert decoded == [ids]
