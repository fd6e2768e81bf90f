"""Files that are whole or not there, and whose contents are known: what a checkpoint is made of."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file holds: its size in bytes, and the SHA-256 of them in hexadecimal."""

    size: int
    sha256: str


@dataclass(slots=True)
class HashingWriter:
    """Writes bytes to a file and hashes them on their way, so that nobody has to read the file for it."""

    _file: BinaryIO
    _size: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += memoryview(data).nbytes

    @property
    def digest(self) -> FileDigest:
        """Of everything written so far."""
        return FileDigest(self._size, self._hash.hexdigest())


@contextmanager
def hashed_file(path: Path) -> Iterator[HashingWriter]:
    """A new file at ``path`` whose bytes are on the disk at the end; raises OSError if they do not fit."""
    with path.open("wb") as file:
        yield HashingWriter(file)
        file.flush()
        os.fsync(file.fileno())


def write_hashed(path: Path, data: bytes) -> FileDigest:
    """Writes a small file under its final name; see `write_atomically` where an old one must survive."""
    with hashed_file(path) as file:
        file.write(data)
    return file.digest


def bytes_digest(data: bytes) -> FileDigest:
    return FileDigest(len(data), hashlib.sha256(data).hexdigest())


def digest_of(path: Path) -> FileDigest:
    """Reads the whole file; raises OSError if that cannot be done."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(file.tell(), sha256)


def write_atomically(path: Path, data: bytes) -> None:
    """Leaves what was at ``path`` before, or all of ``data``, wherever the process or the machine stops."""
    # A process id would be another's, too, in another container.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        write_hashed(unfinished, data)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically`, indented."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def sync_folder(folder: Path) -> None:
    """Puts the names in ``folder`` on the disk, as far as its file system lets folders be synchronised."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse, and order names themselves
    finally:
        os.close(descriptor)
