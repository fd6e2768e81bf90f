"""The driver's benchmark runs the real loop on stand-ins: it must go on fitting what it stands in for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.bench.__main__ import main


def test_the_driver_benchmark_polls_and_sends_every_row_to_two_learners(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    sizes = "--groups 2 --rollouts 2 --steps 3 --prompt-tokens 120 --response-tokens 20 --seconds 1".split()
    own = ["--model", "embedded:tiny_alfworld", "--learners", "2", "--repetitions", "2", "--json", str(file)]
    assert main(["driver", *sizes, *own]) == 0
    medians = {one["name"]: one["median"] for one in json.loads(file.read_text())["figures"]}
    assert medians["2 learners: not polling / 200 s"] == pytest.approx(
        medians["2 learners: not polling"] / 200_000
    )
    for part in ("assemble", "plan", "send"):
        assert 0.0 < medians[f"2 learners: of it, {part}"] < medians["2 learners: not polling"]
    # Ids and log-probs take four bytes, and so little else travels that rows of 12 steps show most of it.
    assert 4.0 < medians["2 learners: a token that travels"] < 10.0
    assert medians["2 learners: a row that travels"] > 4.0 * 120
