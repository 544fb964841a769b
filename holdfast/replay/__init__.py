"""Recorded order flow of other exchanges, read as commands of ours.

Each format has a module with one function `read`; this page only knows their names. What a
recording is, and how a replay is compared with it, is in `formats`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from holdfast.replay import bitstamp, flash1, lobster
from holdfast.replay.formats import Comparison, Recording, RecordingError

__all__ = ["FORMATS", "Comparison", "Recording", "RecordingError", "read"]

FORMATS: Final[dict[str, Callable[[Path], Recording]]] = {
    "bitstamp": bitstamp.read,
    "flash1": flash1.read,
    "lobster": lobster.read,
}


def read(path: Path, format_name: str) -> Recording:
    """Read a recording, or raise RecordingError saying what is wrong with it."""
    reader = FORMATS.get(format_name)
    if reader is None:
        known = ", ".join(sorted(FORMATS))
        raise RecordingError(f"format is {format_name!r}; it must be one of {known}")
    return reader(path)
