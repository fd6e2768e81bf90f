"""``evaluations.jsonl``: one line for each evaluation that a run played."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from serl.evaluation import EvaluationResult
from serl.run.json_lines import read_lines, row_of

EVALUATIONS = "evaluations.jsonl"
# SERL 0.1 wrote the same lines under this name.
_FORMER_NAME = "panels.jsonl"
_EVALUATION = TypeAdapter(EvaluationResult)


def evaluations_file(run_dir: Path) -> Path:
    """Where the evaluations of the run are, whichever version of SERL wrote them; it need not exist."""
    file, former = run_dir / EVALUATIONS, run_dir / _FORMER_NAME
    return former if former.exists() and not file.exists() else file


def rename_former_file(run_dir: Path) -> None:
    """Gives the evaluations of a run by SERL 0.1 their present name, so that new lines follow theirs."""
    if evaluations_file(run_dir).name == _FORMER_NAME:
        (run_dir / _FORMER_NAME).rename(run_dir / EVALUATIONS)


def append_evaluation(run_dir: Path, result: EvaluationResult) -> None:
    """Adds one line; its "iteration" is the ``weights_seq_no`` of the policy that played."""
    row = asdict(result)
    with (run_dir / EVALUATIONS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"iteration": row.pop("weights_seq_no"), **row}) + "\n")


def read_evaluations(run_dir: Path) -> list[EvaluationResult]:
    """All evaluations of a run, in the order they were played; none without a file.

    Damaged lines are left out, with a warning.
    """
    return read_lines(evaluations_file(run_dir), _evaluation)


def _evaluation(value: Any) -> EvaluationResult:
    row = row_of(value)
    return _EVALUATION.validate_python({**row, "weights_seq_no": row["iteration"]})
