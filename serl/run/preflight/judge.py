"""The judge of hindsight."""

from __future__ import annotations

from serl.config import ExperimentConfig
from serl.hindsight.judge.endpoint import JudgeError, api_key, make_client, probe
from serl.hindsight.judge_request import judge_mode
from serl.run.preflight.finding import Finding


def examine_judge(experiment: ExperimentConfig, ask: bool = False) -> list[Finding]:
    """The key of the judge and, if ``ask``, its endpoint; nothing without a judged source."""
    hindsight, judge = experiment.hindsight, experiment.hindsight.judge
    if not hindsight.enabled or judge_mode(hindsight.sources) is None:
        return []
    try:
        make_client(judge, api_key(judge))
        problem = probe(judge) if ask else None
    except JudgeError as error:
        return [Finding("missing", "judge", str(error))]
    if problem is not None:
        return [Finding("missing", "judge", f"hindsight.judge.base_url = {judge.base_url!r}: {problem}")]
    return [Finding("ok", "judge", f"{judge.model} at {judge.base_url}")]
