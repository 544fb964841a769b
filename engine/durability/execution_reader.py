"""Reading the execution log from other processes, and the numbers its consumers confirmed.

    folder/control                                a page: what both sides must agree on, below
    folder/executions-<first number, 20 digits>.log   rows of 16 words, a fixed number of them
    folder/cursors/<consumer>                     the number below which a consumer needs nothing

    control (64-bit words; lines of eight)
       0 magic   1 format version   2 rows of a segment   3 identity
       8 committed: so many executions have ever been made visible; the next has this number
      16 first: the smallest number still kept
      24 epoch: raised by every writer that opens the log

Invariants: a reader maps everything read-only and writes nothing; what is below `committed` never
changes. A consumer writes nothing but its own cursor.

It does not wait: a follower asks again, or is rung.
"""

import logging
import mmap
import os
import re
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from engine.durability.frames import DurabilityError
from exchange import atomics
from exchange.records import EXECUTION_BYTES, EXECUTION_WORDS

Rows = npt.NDArray[np.int64]

MAGIC: Final = int.from_bytes(b"HFEXECS\n", "little")
FORMAT_VERSION: Final = 4
"""Rises with every change of what a row says or of what commands do, so that no follower reads old
rows with new eyes and no engine takes an older one's rows for a fault of its own.
2: a REJECTED carries the kind of the command; DIGEST. 3: one for want of funds says what had to be
free. 4: a market order trades with each resting order once, for all that it can pay."""
W_MAGIC: Final = 0
W_VERSION: Final = 1
W_SEGMENT_ROWS: Final = 2
W_IDENTITY: Final = 3
W_COMMITTED: Final = 8
W_FIRST: Final = 16
W_EPOCH: Final = 24

CONTROL_BYTES: Final = 4096

_CONSUMER = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")

_log = logging.getLogger(__name__)


class LogDamaged(DurabilityError):
    """The files of the log do not fit together; the sentence names the file."""


class LogMissing(DurabilityError):
    """There is no log in the folder yet; the engine makes it when it first starts."""


class LogReplaced(DurabilityError):
    """The folder holds another log than the one opened, or none: open again, start at its first."""


class ExecutionsPruned(DurabilityError):
    """The number asked for is no longer kept; `first` is the smallest one that is."""

    def __init__(self, number: int, first: int) -> None:
        super().__init__(f"execution {number} is no longer kept, the first kept is {first}")
        self.number = number
        self.first = first


def segment_path(folder: Path, first: int) -> Path:
    """Return the file of the segment that begins with this number."""
    return folder / f"executions-{first:020}.log"


def map_rows(fd: int, segment_rows: int, protection: int) -> Rows:
    """Map a segment as rows; the mapping lives as long as something refers to it."""
    mapping = mmap.mmap(fd, segment_rows * EXECUTION_BYTES, mmap.MAP_SHARED, protection)
    return np.frombuffer(mapping, np.int64).reshape(-1, EXECUTION_WORDS)


def map_control(path: Path, flags: int, protection: int) -> tuple[int, Rows]:
    """Open, map and check the control page; return its descriptor and words."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LogMissing(f"there is no execution log in {path.parent}") from None
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes != CONTROL_BYTES:
            raise LogDamaged(f"{path} has {size_bytes} bytes, not {CONTROL_BYTES}")
        mapping = mmap.mmap(fd, CONTROL_BYTES, mmap.MAP_SHARED, protection)
        words = np.frombuffer(mapping, np.int64)
        if words[W_MAGIC] != MAGIC:
            raise LogDamaged(f"{path} is no control page: it begins with {int(words[0]):#x}")
        if words[W_VERSION] != FORMAT_VERSION:
            raise LogDamaged(
                f"{path} has format version {words[W_VERSION]}, this program knows version"
                f" {FORMAT_VERSION}: another release wrote this run folder, start with an empty one"
            )
        if words[W_SEGMENT_ROWS] < 1 or not 0 <= words[W_FIRST] <= words[W_COMMITTED]:
            raise LogDamaged(
                f"{path} claims executions {words[W_FIRST]} to {words[W_COMMITTED]}"
                f" in segments of {words[W_SEGMENT_ROWS]} rows"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd, words


class ExecutionLogReader:
    """A follower's side: maps everything read-only and writes nothing."""

    def __init__(self, folder: Path, control_fd: int, control: Rows) -> None:
        self.folder = folder
        self.segment_rows = int(control[W_SEGMENT_ROWS])
        self._control = control
        self._identity = os.fstat(control_fd)
        self._seen_epoch = self.epoch()
        self._mapped: dict[int, Rows] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the log in `folder`; raises LogMissing before there is one, or LogDamaged."""
        fd, control = map_control(folder / "control", os.O_RDONLY, mmap.PROT_READ)
        try:
            return cls(folder, fd, control)
        finally:
            os.close(fd)

    def committed(self) -> int:
        """Return how many executions may be read; the number of the next one (acquire load)."""
        return int(atomics.load(self._control, W_COMMITTED))

    def first(self) -> int:
        """Return the smallest number still kept."""
        return int(atomics.load(self._control, W_FIRST))

    def epoch(self) -> int:
        """Return how often a writer has opened the log."""
        return int(atomics.load(self._control, W_EPOCH))

    def restarted(self) -> bool:
        """Say, once each time, whether another writer has opened the log since last asked.

        Numbers go on; nothing read before has changed.
        """
        seen, self._seen_epoch = self._seen_epoch, self.epoch()
        return self._seen_epoch != seen

    def replaced(self) -> bool:
        """Say whether the folder now holds another log, or none: open again."""
        try:
            named = (self.folder / "control").stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(named, self._identity)

    def _refuse_if_replaced(self) -> None:
        if self.replaced():
            raise LogReplaced(f"{self.folder} holds another execution log now, or none")

    def read(self, number: int, limit: int) -> Rows:
        """Return up to `limit` committed rows from `number` on, a read-only view (k, 16).

        One segment at a time, so ask again behind the rows given; k is 0 where nothing is
        committed yet. The view stays valid as long as it is referred to. Raises ExecutionsPruned
        and LogReplaced.
        """
        assert number >= 0, f"number is {number}, below 0"
        assert limit >= 0, f"limit is {limit}, below 0"
        if number < self.first():
            raise ExecutionsPruned(number, self.first())
        index, offset = divmod(number, self.segment_rows)
        count = min(limit, self.committed() - number, self.segment_rows - offset)
        if count <= 0:
            return np.zeros((0, EXECUTION_WORDS), np.int64)
        rows = self._mapped.get(index)
        if rows is None:
            rows = self._map(index, number)
        return rows[offset : offset + count]

    def _map(self, index: int, number: int) -> Rows:
        path = segment_path(self.folder, index * self.segment_rows)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._refuse_if_replaced()
            if number < self.first():
                raise ExecutionsPruned(number, self.first()) from None
            raise LogDamaged(f"{path} is missing") from None
        try:
            self._refuse_if_replaced()
            size_bytes = os.fstat(fd).st_size
            if size_bytes != self.segment_rows * EXECUTION_BYTES:
                raise LogDamaged(f"{path} has {size_bytes} bytes")
            rows = map_rows(fd, self.segment_rows, mmap.PROT_READ)
        finally:
            os.close(fd)
        # A follower reads forward, and a private stream beside it reads further back.
        while len(self._mapped) >= 4:
            del self._mapped[next(iter(self._mapped))]
        self._mapped[index] = rows
        return rows


def confirm(folder: Path, consumer: str, number: int) -> None:
    """Record that a consumer needs nothing below `number` any more (one atomic rename).

    Raises ValueError for a name that is not lower-case letters, digits, '.', '_', '-', or a
    negative number. Not synced: after a power failure an older number keeps more, not less.
    """
    if not _CONSUMER.fullmatch(consumer):
        raise ValueError(f"consumer is {consumer!r}, not lower-case letters, digits, '.', '_', '-'")
    if number < 0:
        raise ValueError(f"number is {number}, below 0")
    cursors = folder / "cursors"
    cursors.mkdir(mode=0o700, exist_ok=True)
    unfinished = cursors / f"~{consumer}.{os.getpid()}"
    unfinished.write_text(f"{number}\n")
    unfinished.replace(cursors / consumer)


def forget(folder: Path, consumer: str) -> None:
    """Remove a consumer that will not come back, so that it keeps nothing any more."""
    (folder / "cursors" / consumer).unlink(missing_ok=True)


def consumers(folder: Path) -> dict[str, int]:
    """Return each consumer with the number it confirmed; one that cannot be read counts as 0."""
    found = {}
    for path in sorted((folder / "cursors").glob("[!~]*")):
        try:
            found[path.name] = int(path.read_text())
        except ValueError:
            _log.warning("%s holds no number: everything is kept for this consumer", path)
            found[path.name] = 0
    return found
