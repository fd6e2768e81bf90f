"""Types of command line arguments that several tools take."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from serl.config.paths import blocked_by

_PICTURES = (".pdf", ".png", ".svg")


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def positive_number(text: str) -> float:
    """A number above 0, and finite."""
    number = float(text)
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{number} is no positive number")
    return number


def share(text: str) -> float:
    """A number from 0 to 1."""
    number = float(text)
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{number} is no share, from 0 to 1")
    return number


def output_folder(text: str) -> Path:
    """A folder that is there, or can be made."""
    folder = Path(text)
    if blocked := blocked_by(folder.absolute()):
        raise argparse.ArgumentTypeError(f"{text}: {blocked} is no folder that can be written")
    return folder


def output_file(text: str) -> Path:
    """A file that can be written, in a folder that is there."""
    file = Path(text)
    is_writable = os.path.isdir(file.parent) and os.access(file if file.exists() else file.parent, os.W_OK)
    if os.path.isdir(file) or not is_writable:
        raise argparse.ArgumentTypeError(f"{text} is no file that can be written")
    return file


def picture(text: str) -> Path:
    """An `output_file`, in the format that its name ends with."""
    file = output_file(text)
    if file.suffix not in _PICTURES:
        raise argparse.ArgumentTypeError(f"{text}: a picture's name ends with {', '.join(_PICTURES)}")
    return file
