from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from envs.webshop import search
from envs.webshop.analyzer import terms, words
from envs.webshop.index_build import build_index, decode_length, encode_length
from envs.webshop.porter import stem
from envs.webshop.search import open_index, save_index


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *(("us", "us"), ("caresses", "caress"), ("ponies", "poni"), ("agreed", "agre"), ("feed", "feed")),
        *(("hopping", "hop"), ("falling", "fall"), ("filing", "file"), ("happy", "happi"), ("sky", "sky")),
        *(
            ("relational", "relat"),
            ("possibly", "possibl"),
            ("apology", "apolog"),
            ("geology", "geologi"),
            ("electrical", "electr"),
        ),
        *(("adoption", "adopt"), ("replacement", "replac"), ("rate", "rate"), ("controll", "control")),
    ],
)
def test_words_are_stemmed_as_porter_does(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_words_break_where_the_unicode_rules_say() -> None:
    text = "wi-fi u.s.a 3.5mm 1,000 usb_c size:large don't 100-240v q:1 _ 'quoted'"
    expected = "wi fi u.s.a 3.5mm 1,000 usb_c size:large don't 100 240v q 1 quoted".split()
    assert sorted(words(text)) == sorted(expected)


def test_emoji_and_letters_beyond_ascii_are_words() -> None:
    assert sorted(words("café❤️ ★men’s★ ® 漢字 👨‍👩‍👧 →")) == sorted(
        ["café", "❤️", "★", "men’s", "★", "®", "漢", "字", "👨‍👩‍👧"]
    )


def test_possessives_case_and_stop_words_go() -> None:
    assert terms("The Women's RUNNING shoes are for men") == ["women", "run", "shoe", "men"]
    assert terms("the and of") == []


def test_words_of_over_255_characters_are_cut() -> None:
    assert [len(word) for word in words("x" * 600)] == [255, 255, 90]


def test_lengths_keep_four_significant_bits() -> None:
    assert [decode_length(encode_length(length)) for length in (0, 24, 39, 40, 41, 42, 57, 1000)] == [
        *(0, 24, 39, 40, 40, 42, 56, 984)
    ]
    assert max(encode_length(length) for length in (255, 2**31 - 1)) == 255


def test_scores_are_those_worked_out_by_hand() -> None:
    index = build_index(["red red mug", "red shirt", "blue shirt"], ["A", "B", "C"])
    # red is in 2 of 3 documents; lengths 3, 2, 2, on average 7 / 3.
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    scores = {
        0: idf * 2 / (2 + 0.9 * (0.6 + 0.4 * 3 / (7 / 3))),
        1: idf * 1 / (1 + 0.9 * (0.6 + 0.4 * 2 / (7 / 3))),
    }
    hits = index.search("reds")
    assert [hit.number for hit in hits] == [0, 1]
    assert all(hit.score == pytest.approx(scores[hit.number], abs=1e-6) for hit in hits)
    assert index.search("red red")[0].score == pytest.approx(2 * scores[0], abs=1e-6)
    assert index.search("green") == [] and index.search("the") == []


def test_equal_scores_are_ordered_by_id_and_at_most_fifty_are_found() -> None:
    ids = [f"{number:03d}" for number in range(60)]
    random.Random(1).shuffle(ids)
    hits = build_index(["same mug"] * 60, ids).search("mug")
    assert [ids[hit.number] for hit in hits] == [f"{number:03d}" for number in range(50)]


def test_skipping_postings_changes_no_hit_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    vocabulary = [f"w{number}" for number in range(300)]
    weights = [1 / (rank + 1) for rank in range(300)]
    texts = [" ".join(rng.choices(vocabulary, weights, k=rng.randint(5, 60))) for _ in range(4000)]
    index = build_index(texts, [f"D{rng.random():.9f}" for _ in texts])
    queries = [" ".join(rng.choices(vocabulary, weights, k=rng.randint(1, 25))) for _ in range(60)]
    exhaustive = [index.search(query) for query in queries]
    monkeypatch.setattr(search, "_PRUNED_FROM", 0)
    monkeypatch.setattr(search, "_PROBES", 60)
    assert [index.search(query) for query in queries] == exhaustive


def test_an_index_comes_back_from_disk_as_mapped_files(tmp_path: Path) -> None:
    index = build_index(["red mug", "blue mug ❤"], ["A", "B"])
    save_index(index, tmp_path)
    mapped = open_index(tmp_path)
    assert isinstance(mapped.documents, np.memmap)
    assert mapped.search("❤ mug") == index.search("❤ mug")
    assert mapped.num_bytes == index.num_bytes


def test_an_index_needs_as_many_ids_as_texts() -> None:
    with pytest.raises(ValueError, match="1 texts, 2 ids"):
        build_index(["red"], ["A", "B"])
