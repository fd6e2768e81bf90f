"""The judge's answers by content, as JSON lines: what was answered once is not asked again.

One object a line: ``key`` (SHA-256 of what was asked, see `answer_key`) and ``text``. Requests are not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from serl.config import JudgeSection
from serl.config.yaml_files import is_unicode

logger = logging.getLogger(__name__)


def answer_key(messages: Sequence[dict[str, str]], settings: JudgeSection) -> str:
    """The same for two requests exactly if models, messages and sampling parameters are the same."""
    asked = {
        "models": [settings.model, settings.fallback_model],
        "messages": list(messages),
        "max_tokens": [settings.max_tokens, settings.max_tokens_with_reasoning],
        "temperature": settings.temperature,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers in memory and in ``file``.

    Not a ``*.jsonl`` directly in the run directory: those lose the lines of later iterations at a resume.
    """

    def __init__(self, file: Path) -> None:
        self._texts: dict[str, str] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        self._log = file.open("a+", encoding="utf-8", errors="replace")
        self._read(file)

    def get(self, key: str) -> str | None:
        return self._texts.get(key)

    def add(self, key: str, text: str) -> None:
        self._texts[key] = text
        self._log.write(json.dumps({"key": key, "text": text}) + "\n")
        self._log.flush()

    def close(self) -> None:
        self._log.close()

    def _read(self, file: Path) -> None:
        self._log.seek(0)
        content = self._log.read()
        num_unreadable = 0
        for line in content.splitlines():
            answer = _answer_in(line)
            if answer is None:
                num_unreadable += 1
            else:
                self._texts[answer[0]] = answer[1]
        if num_unreadable:
            logger.warning("%s: %d lines are no answer (a run that was killed?)", file, num_unreadable)
        if content and not content.endswith("\n"):
            self._log.write("\n")


def _answer_in(line: str) -> tuple[str, str] | None:
    try:
        answer = json.loads(line)
        key, text = answer["key"], answer["text"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    usable = isinstance(key, str) and isinstance(text, str) and is_unicode(text)
    return (key, text) if usable else None
