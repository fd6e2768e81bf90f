"""Anchor clusters: which observations are the same anchor, and that finding out is quick."""

from __future__ import annotations

import random
from difflib import SequenceMatcher

import pytest

from serl.hindsight.anchors import anchor_clusters, char_positions, common_subsequence


def random_observations(number: int, most_things: int = 5) -> list[str]:
    draw = random.Random(3)
    things = ["mug", "plate", "apple", "bread", "pan", "book"]
    places = ["shelf", "drawer", "cabinet"]

    def observation() -> str:
        seen = [
            f"a {draw.choice(things)} {draw.randrange(1, 4)}"
            for _ in range(draw.randrange(1, most_things + 1))
        ]
        return f"You arrive at {draw.choice(places)} {draw.randrange(1, 9)}. You see {', '.join(seen)}."

    return [observation() for _ in range(number)]


def test_similar_anchors_join_the_first_cluster_whose_first_member_they_resemble():
    anchors = [*random_observations(60), "", ""]
    for similarity in (0.8, 0.95):
        firsts: list[str] = []
        expected = []
        for anchor in anchors:
            ratios = [SequenceMatcher(None, anchor, first).ratio() for first in firsts]
            alike = [index for index, ratio in enumerate(ratios) if ratio >= similarity]
            expected.append(alike[0] if alike else len(firsts))
            firsts += [] if alike else [anchor]
        assert anchor_clusters(anchors, similarity) == expected
        assert 1 < len(firsts) < len(set(anchors))


def test_equal_anchors_without_a_similarity():
    assert anchor_clusters(["a", "b", "a", "A"], None) == [0, 1, 0, 2]
    assert anchor_clusters([], None) == anchor_clusters([], 0.9) == []


def test_the_longest_common_subsequence_by_hand():
    for one, other, expected in (("abcde", "ace", 3), ("", "abc", 0), ("aab", "aba", 2), ("xyz", "abc", 0)):
        assert common_subsequence(one, char_positions(other), len(other)) == expected
        assert common_subsequence(other, char_positions(one), len(one)) == expected


def test_of_a_large_group_few_pairs_need_the_costly_ratio(monkeypatch: pytest.MonkeyPatch):
    calls: list[float] = []
    ratio = SequenceMatcher.ratio

    def counted(self: SequenceMatcher[str]) -> float:
        calls.append(ratio(self))
        return calls[-1]

    monkeypatch.setattr(SequenceMatcher, "ratio", counted)
    anchors = random_observations(400, most_things=20)  # 8 trajectories of 50 steps, up to 240 characters
    for similarity in (0.8, 0.95):
        calls.clear()
        clusters = anchor_clusters(anchors, similarity)
        # Without the bounds every anchor is compared with most of the first members before it.
        num_pairs = sum(len(set(clusters[:index])) for index in range(len(anchors)))
        assert len(calls) < num_pairs / 50
