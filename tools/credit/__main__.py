"""Whether hindsight has anything to say to a policy, before it is trained, or in a run.

    python -m tools.credit embedded:tiny_alfworld
    python -m tools.credit path/to/model --experiment experiments/alfworld_qwen2.5_7b.yaml env.max_steps=20
    python -m tools.credit runs/quickstart-20260131-120000 --figure credit.svg

Credit: the environment says of each action whether it brought the task nearer, and an AUC how often the
teacher's log-ratio tells such an action from an idle one; 0.5 is a coin. Of a model groups are played as in
training, with the policy as its own teacher; of a run those that it recorded are read, the policy that it
began with is the teacher, and `(recorded)` is what the run itself trained on.

The hinted gap: success on held-out tasks with the evidence in the prompt and without. Where there is a gap
and no credit, the teacher knows more than weights on advantages can bring over.

Nothing here starts Ray. Exit status: 0, or 2 for what cannot be measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from envs.base import DemonstratingProvider
from serl.run.surroundings import write_any_character
from tools.arguments import output_file, picture
from tools.credit.figure import NoMatplotlibError, draw, require_matplotlib
from tools.credit.hinted import measure_hints
from tools.credit.measuring import (
    Credit,
    JudgedGroup,
    judge_groups,
    measure_records,
    measure_sources,
    measure_student,
    sections,
)
from tools.credit.report import Report, credit_heading, credit_line, hinted_heading, hinted_line
from tools.credit.subject import Subject, SubjectError, evaluation_tasks, open_subject

RECORDED = "(recorded)"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.credit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subject", metavar="MODEL_OR_RUN", help="as model.path, or a run directory")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of the experiment")
    parser.add_argument(
        "--experiment", type=Path, help="how a model plays (default: the quickstart with that model)"
    )
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="sources and modes (default: all)")
    parser.add_argument(
        "--groups",
        type=int,
        default=12,
        help="groups that a model plays, or that are read of a run, the first it trained on (%(default)s)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=120_000,
        help="that the teacher reads of each kind of evidence, at random steps (%(default)s)",
    )
    parser.add_argument("--games", type=int, default=128, help="of the hinted gap; 0: none (%(default)s)")
    parser.add_argument(
        "--hints",
        nargs="+",
        metavar="NAME",
        default=["successful_sample", "immediate_feedback"],
        help="sources and modes that are played with (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the figures there")
    parser.add_argument("--figure", type=picture, metavar="FILE", help="also draw them, such as credit.svg")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = parse_arguments(arguments)
    started = time.monotonic()
    names = [*(options.sources or []), *options.hints]
    try:
        if options.figure:
            require_matplotlib()
        subject = open_subject(
            options.subject, options.overrides, options.experiment, options.groups, names, options.seed
        )
    except (NoMatplotlibError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        report = measure(subject, options)
    except SubjectError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(report, options.figure)
    return 0


def measure(subject: Subject, options: argparse.Namespace) -> Report:
    """Measures what ``options`` ask for and prints each line as it comes. Raises SubjectError."""
    groups, num_not_judged = judge_groups(subject.provider, subject.groups, subject.config)
    notes = list(subject.notes)
    if num_not_judged:
        notes.append(f"{num_not_judged} groups left out: the environment did not play or judge them again")
    for note in notes:
        print(note)
    chosen = groups[: options.groups]
    if not chosen:
        raise SubjectError(
            f"{subject.name}: none of {len(subject.groups)} groups would be trained on; raise --groups"
        )
    report = Report(_title(subject, chosen), measure_student(chosen))
    print(report.title)
    for line in credit_heading(report.student):
        print(line)
    if subject.records is not None:
        _add_credit(
            report, RECORDED, measure_records(groups, subject.records, subject.config.hindsight.weight)
        )
    if subject.policy is None:
        return report
    names = options.sources or list(sections(subject.config))
    for name, credit in measure_sources(subject.policy, chosen, subject.config, names, options.tokens):
        _add_credit(report, name, credit)
    if options.games and isinstance(subject.provider, DemonstratingProvider):
        tasks = evaluation_tasks(subject, options.games)
        print(f"\n{hinted_heading()}")
        for name, gap in measure_hints(
            subject.provider, subject.policy, subject.config, tasks, options.hints
        ):
            report.hinted[name] = gap
            print(hinted_line(name, gap), flush=True)
    elif options.games:
        print("no hinted gap: the environment has no demonstrator, and so no attempt to show")
    return report


def _add_credit(report: Report, name: str, credit: Credit) -> None:
    report.sources[name] = credit
    print(credit_line(name, credit), flush=True)


def _title(subject: Subject, groups: Sequence[JudgedGroup]) -> str:
    num_steps = sum(len(group.rows) for group in groups)
    num_played = len(subject.groups)
    return f"{subject.name}: {num_steps} steps with an advantage, of {len(groups)} of {num_played} groups"


if __name__ == "__main__":
    write_any_character()
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
