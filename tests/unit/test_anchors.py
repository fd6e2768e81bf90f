"""Anchor clusters: which observations are the same situation, and that finding out is quick."""

from __future__ import annotations

import random
import time
from difflib import SequenceMatcher

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


def test_a_large_group_is_clustered_in_time():
    anchors = random_observations(400, most_things=20)  # 8 trajectories of 50 steps, up to 240 characters
    for similarity in (0.8, 0.95):
        started = time.process_time()
        anchor_clusters(anchors, similarity)
        assert time.process_time() - started < 5.0
