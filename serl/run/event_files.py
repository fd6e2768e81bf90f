"""The curves that TensorBoard shows: event files, written at once by whoever adds to them.

tensorboardX's own writer leaves that to a thread behind a queue. A full disk ends that thread, and whoever
adds then waits for ever.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboardX import RecordWriter

logger = logging.getLogger(__name__)


class EventFiles:
    """Those in ``folder``. Events there from step ``purge_step`` on, if that is given, are void.

    A file that cannot be written is told to ``say`` and given up; the next points go to another one.
    """

    def __init__(self, folder: Path, purge_step: int | None, say: Callable[[str], object]) -> None:
        self._folder = folder
        self._purge_step = purge_step
        self._say = say
        self._file: RecordWriter | None = None
        self._num_begun = 0
        self._works = True

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        points = [{"tag": name, "simple_value": float(value)} for name, value in metrics.items()]
        try:
            if self._file is None:
                self._file = self._begin(iteration)
            self._file.write(_event(step=iteration, summary={"value": points}))
            self._file.flush()
        except OSError as error:
            self._give_up(error)
        else:
            self._purge_step, self._works = None, True

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # of which `write` has told
                file.close()

    def _begin(self, iteration: int) -> RecordWriter:
        # It imports torch, for which checking a config should not wait.
        from tensorboardX import RecordWriter

        self._folder.mkdir(exist_ok=True)
        self._num_begun += 1
        # TensorBoard reads files in the order of their names.
        began = f"{int(time.time())}.{socket.gethostname()}.{iteration:08d}.{self._num_begun}"
        file = RecordWriter(str(self._folder / f"events.out.tfevents.{began}"))
        file.write(_event(file_version="brain.Event:2"))
        if self._purge_step is not None:
            file.write(_event(step=self._purge_step, session_log={"status": "START"}))
        return file

    def _give_up(self, error: OSError) -> None:
        logger.exception("%s", self._folder)
        self.close()
        if self._works:
            self._works = False
            self._say(f"{self._folder} lacks points, which metrics.jsonl has: {error.strerror}")


def _event(**fields: Any) -> bytes:
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    return Event(wall_time=time.time(), **fields).SerializeToString()
