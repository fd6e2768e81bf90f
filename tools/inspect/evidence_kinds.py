"""Which kinds of evidence a recorded step had, by the titles that its context carries."""

from __future__ import annotations

import re
from functools import cache

from serl.config.registry import SOURCES
from serl.hindsight.sources import source_traits
from serl.types import TeacherRecord

NO_EVIDENCE = "no evidence"
NO_ADVANTAGE = "not asked: advantage 0"
NO_LAMBDA = "not asked: λ is 0"

# `## Title` heads evidence of the step itself, `  Title (about):` that of one action tried at an anchor.
_HEADING = re.compile(r"^(?:## (?P<own>.+)|  (?P<tried>.+) \([^()]*\):)$", re.MULTILINE)
_ANCHOR_HEADING = re.compile(r"^## Actions tried in this situation", re.MULTILINE)


def evidence_kind(teacher: TeacherRecord, effective_lambda: float | None) -> str:
    """What a step's context is made of, as ``a + b``, or why it has none."""
    if effective_lambda == 0.0:
        return NO_LAMBDA
    if teacher.advantage == 0.0:
        return NO_ADVANTAGE
    if teacher.context is None:
        return NO_EVIDENCE
    names = _source_of_title()
    titles = [match["own"] or match["tried"] for match in _HEADING.finditer(teacher.context)]
    sources = [names[title] for title in titles if title in names]
    if _ANCHOR_HEADING.search(teacher.context):
        sources.insert(0, "anchor")
    elif titles and titles[0] not in names:
        # A source of the user's own, which is not imported here. Later headings may be those of quoted text.
        sources.insert(0, titles[0])
    return " + ".join(dict.fromkeys(sources)) or "other evidence"


@cache
def _source_of_title() -> dict[str, str]:
    """The two judged sources share a title, and so a name here."""
    names: dict[str, str] = {}
    for name in SOURCES.built_in():
        traits = source_traits(name)
        names.setdefault(traits.title, "judge" if traits.judged else name)
    return names
