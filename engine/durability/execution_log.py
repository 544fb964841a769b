"""The execution log of one pair: every fact the kernel reported, once, in order, for all followers.

The engine writes through a shared mapping; followers in other processes map the same files
read-only (`engine.durability.execution_reader`, which describes the files) and find what is below
`committed`. The space of a segment is allocated before it is named, so that a full disk is an
answer (`LogBlocked`) and never a fault in the middle of a store.

Invariants: rows below `committed` never change; `committed` and `first` never fall; one writer at
a time. What a power failure took (rows of zeros) recovery writes again; a row that is there and
differs from the regenerated one stops it (`ExecutionLogDiverged`).

It does not know what a row means beyond the sequence in its first word.
"""

import logging
import mmap
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np

from engine.durability.execution_reader import (
    CONTROL_BYTES,
    FORMAT_VERSION,
    MAGIC,
    W_COMMITTED,
    W_EPOCH,
    W_FIRST,
    W_IDENTITY,
    W_MAGIC,
    W_SEGMENT_ROWS,
    W_VERSION,
    ExecutionLogReader,
    ExecutionsPruned,
    LogDamaged,
    LogMissing,
    LogReplaced,
    Rows,
    confirm,
    consumers,
    forget,
    map_control,
    map_rows,
    segment_path,
)
from engine.durability.journal import DurabilityError, lock_folder, sync_folder
from exchange import atomics
from exchange.records import E_SEQUENCE, EXECUTION_BYTES, EXECUTION_WORDS

__all__ = [
    "ExecutionLogDiverged",
    "ExecutionLogReader",
    "ExecutionLogWriter",
    "ExecutionsPruned",
    "LogBlocked",
    "LogDamaged",
    "LogLost",
    "LogMissing",
    "LogReplaced",
    "confirm",
    "consumers",
    "forget",
]

SEGMENT_ROWS: Final = 1 << 18
KEEP_COUNT: Final = 1 << 20
WRITTEN_ROWS: Final = 64
"""From so many rows on a call costs less than the faults of storing them through the mapping."""

FIELDS: Final = (
    *("sequence", "time", "verb", "order id", "client order id", "price", "quantity", "leaves"),
    *("filled", "fee", "source", "maker order id", "maker client order id", "maker account"),
    *("maker leaves", "maker fee"),
)

_NAME = re.compile(r"executions-(\d{20})\.log")
_NEXT = "executions-next.unfinished"

_log = logging.getLogger(__name__)

assert len(FIELDS) == EXECUTION_WORDS


class LogBlocked(DurabilityError):
    """The disk has no room for more executions; nothing was written, ask again later."""


class LogLost(DurabilityError):
    """A sync failed: nobody knows what the disk has. The process must end and recover."""


class ExecutionLogDiverged(DurabilityError):
    """Recovery computes another execution than the one followers may have seen."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"execution {number}: {what}")
        self.number = number


class _Segment(NamedTuple):
    fd: int
    rows: Rows


def _make_segment(folder: Path, first: int, segment_rows: int) -> None:
    """Create a segment with all its space and give it its name, durably."""
    unfinished = folder / _NEXT
    fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        os.posix_fallocate(fd, 0, segment_rows * EXECUTION_BYTES)
        os.fsync(fd)
        unfinished.rename(segment_path(folder, first))
        sync_folder(folder)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise
    finally:
        os.close(fd)


class ExecutionLogWriter:
    """The engine's side. Made by `open`; one process at a time.

    `committed` is what followers see, `appended` is the number of the next row to be appended;
    they differ between `append` and `commit`, and during recovery.
    """

    def __init__(self, folder: Path, keep_count: int, lock: int) -> None:
        self.folder = folder
        self.keep_count = keep_count
        self.segment_rows = 0
        self.appended = 0
        self.epoch = 0
        self._lock = lock
        self._control_fd = -1
        self._control = np.zeros(0, np.int64)
        self._open: dict[int, _Segment] = {}
        self._ready = 0
        self._next: Future[None] | None = None
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="executions-next")
        self._lost = False

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        keep_count: int = KEEP_COUNT,
        segment_rows: int = SEGMENT_ROWS,
        identity: int = 0,
    ) -> Self:
        """Open or create the log in `folder` and stand behind the last committed row.

        The newest `keep_count` rows are kept whatever the consumers confirmed. `segment_rows` is
        for a new log; an old one keeps its own. Raises LogDamaged, LogBlocked if a new log finds
        no room, and JournalOwned if another process has the log open.
        """
        assert keep_count >= 1, f"keep_count is {keep_count}, below 1"
        assert segment_rows >= 1, f"segment_rows is {segment_rows}, below 1"
        log = cls(folder, keep_count, lock_folder(folder))
        try:
            log._open_control(segment_rows, identity)
            log._check_segments()
        except BaseException:
            log.close()
            raise
        atomics.store(log._control, W_EPOCH, log.epoch)
        return log

    def _open_control(self, segment_rows: int, identity: int) -> None:
        path = self.folder / "control"
        if not path.exists():
            self._make_control(path, segment_rows, identity)
        self._control_fd, self._control = map_control(
            path, os.O_RDWR, mmap.PROT_READ | mmap.PROT_WRITE
        )
        if self._control[W_IDENTITY] != identity:
            raise LogDamaged(
                f"{path} belongs to {int(self._control[W_IDENTITY]):#x}, this pair is {identity:#x}"
            )
        self.segment_rows = int(self._control[W_SEGMENT_ROWS])
        self.epoch = int(self._control[W_EPOCH]) + 1
        self.appended = self.committed

    def _make_control(self, path: Path, segment_rows: int, identity: int) -> None:
        for left in self.folder.glob("executions-*.log"):
            raise LogDamaged(f"{path} is missing, but {left.name} is there")
        words = np.zeros(CONTROL_BYTES // 8, np.int64)
        words[[W_MAGIC, W_VERSION, W_SEGMENT_ROWS]] = MAGIC, FORMAT_VERSION, segment_rows
        words[W_IDENTITY] = identity
        unfinished = path.with_suffix(".unfinished")
        try:
            unfinished.write_bytes(words.tobytes())
            unfinished.chmod(0o640)
            fd = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            unfinished.rename(path)
            sync_folder(self.folder)
        except OSError as error:
            raise LogBlocked(f"{path} cannot be made: {error.strerror}") from error

    def _check_segments(self) -> None:
        """Find how far the segments reach; remove what an interrupted prune left behind."""
        size_bytes = self.segment_rows * EXECUTION_BYTES
        lowest = self.first // self.segment_rows * self.segment_rows
        found = []
        for path in sorted(self.folder.glob("executions-*.log")):
            match = _NAME.fullmatch(path.name)
            if match is None or int(match[1]) % self.segment_rows:
                raise LogDamaged(f"{path}: the name is not that of a segment of this log")
            if int(match[1]) < lowest:
                path.unlink()
                continue
            if path.stat().st_size != size_bytes:
                raise LogDamaged(f"{path} has {path.stat().st_size} bytes, not {size_bytes}")
            found.append(int(match[1]))
        reach = range(lowest, max(self.committed, *found, 0), self.segment_rows)
        for first in reach:
            if first not in found:
                raise LogDamaged(f"{segment_path(self.folder, first)} is missing")
        self._ready = found[-1] + self.segment_rows if found else lowest

    # What is there ---------------------------------------------------------------------------

    @property
    def committed(self) -> int:
        """How many executions followers may see; the number of the next one."""
        return int(self._control[W_COMMITTED])

    @property
    def first(self) -> int:
        """The smallest number still kept."""
        return int(self._control[W_FIRST])

    def last_sequence(self) -> int:
        """Return the newest sequence the committed rows prove to have been applied, or zero."""
        end = self.committed
        while end > self.first:
            start = max((end - 1) // self.segment_rows * self.segment_rows, self.first)
            used = np.flatnonzero(self._rows(start, end)[:, E_SEQUENCE])
            if used.size:
                return int(self._rows(start, end)[used[-1], E_SEQUENCE])
            end = start
        return 0

    def _rows(self, start: int, end: int) -> Rows:
        """Return the rows of these numbers, which lie in one segment, as a writable view."""
        index, offset = divmod(start, self.segment_rows)
        segment = self._open.get(index)
        if segment is None:
            path = segment_path(self.folder, index * self.segment_rows)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            segment = _Segment(fd, map_rows(fd, self.segment_rows, protection))
            self._open[index] = segment
        return segment.rows[offset : offset + end - start]

    # Appending -------------------------------------------------------------------------------

    def reserve(self, count: int) -> None:
        """Make sure that `count` more rows find room, before the batch is journaled.

        Raises LogBlocked; nothing has changed then, and asking again later is right.
        """
        self._refuse_if_lost()
        while self._ready < self.appended + count:
            self._extend()
        if self._next is None and self._ready - self.appended - count < self.segment_rows // 2:
            self._next = self._preparer.submit(
                _make_segment, self.folder, self._ready, self.segment_rows
            )

    def _extend(self) -> None:
        ahead, self._next = self._next, None
        try:
            if ahead is not None:
                # Nobody was told of a failure then; whether the disk has recovered shows below.
                with suppress(OSError):
                    ahead.result()
                    self._ready += self.segment_rows
                    return
            _make_segment(self.folder, self._ready, self.segment_rows)
            self._ready += self.segment_rows
        except OSError as error:
            path = segment_path(self.folder, self._ready)
            raise LogBlocked(f"{path} cannot be made: {error.strerror}") from error

    def append(self, rows: Rows) -> None:
        """Copy executions (int64, (n, 16)) behind the last ones; `commit` shows them.

        Raises LogBlocked before anything is copied; never after a `reserve` of as many.
        """
        assert rows.dtype == np.int64, f"executions are {rows.dtype}, not int64"
        assert rows.shape == (len(rows), EXECUTION_WORDS), f"executions have shape {rows.shape}"
        self.reserve(len(rows))
        done = 0
        while done < len(rows):
            start = self.appended
            room = self.segment_rows - start % self.segment_rows
            part = rows[done : done + room]
            self._store(start, part)
            self.appended += len(part)
            done += len(part)

    def _store(self, start: int, part: Rows) -> None:
        """Put rows in their place, which lies in one segment.

        Many at once are written, few are stored through the mapping: a fresh page costs a fault
        there, a call costs more than a few rows here. The page cache makes both one.
        """
        target = self._rows(start, start + len(part))
        if len(part) < WRITTEN_ROWS:
            target[:] = part
            return
        content = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        fd = self._open[start // self.segment_rows].fd
        offset = start % self.segment_rows * EXECUTION_BYTES
        written = 0
        while written < len(content):
            written += os.pwrite(fd, content[written:], offset + written)

    def commit(self) -> None:
        """Show everything appended to the followers (a release store)."""
        if self.appended > self.committed:
            atomics.store(self._control, W_COMMITTED, self.appended)

    # Recovery --------------------------------------------------------------------------------

    def rewind(self, number: int) -> None:
        """Stand before execution `number` to have it and what follows verified or written again.

        Raises ExecutionLogDiverged if the log ends before `number`.
        """
        if number > self.committed:
            raise ExecutionLogDiverged(
                self.committed, f"the log ends here, the state was taken after {number}"
            )
        assert number >= 0, f"number is {number}, below 0"
        self.appended = number

    def append_or_verify(self, rows: Rows) -> None:
        """Append regenerated executions; where committed ones are, they must be the same.

        Rows no longer kept are passed over, rows of zeros (lost with the power) are written
        again. Raises ExecutionLogDiverged naming number and field, LogBlocked as `append`.
        """
        assert rows.shape == (len(rows), EXECUTION_WORDS), f"executions have shape {rows.shape}"
        passed = min(max(self.first - self.appended, 0), len(rows))
        self.appended += passed
        rows = rows[passed:]
        while len(rows) and self.appended < self.committed:
            start = self.appended
            room = self.segment_rows - start % self.segment_rows
            part = rows[: min(room, self.committed - start)]
            self._verify(start, part)
            self.appended += len(part)
            rows = rows[len(part) :]
        if len(rows):
            self.append(rows)

    def _verify(self, start: int, rows: Rows) -> None:
        kept = self._rows(start, start + len(rows))
        if np.array_equal(kept, rows):
            return
        lost = np.all(kept == 0, axis=1)
        different = np.argwhere((kept != rows) & ~lost[:, None])
        if len(different):
            row, word = (int(index) for index in different[0])
            raise ExecutionLogDiverged(
                start + row,
                f"the log has {FIELDS[word]} {kept[row, word]}, the replay gave {rows[row, word]}",
            )
        kept[:] = rows
        _log.warning(
            "%s: wrote %d executions again that were lost, the first is %d",
            self.folder,
            int(lost.sum()),
            start + int(np.argmax(lost)),
        )

    def end_recovery(self) -> None:
        """Check that the replay gave every committed execution, and show what it added.

        Raises ExecutionLogDiverged if the log holds more than the journal explains.
        """
        if self.appended < self.committed:
            raise ExecutionLogDiverged(
                self.appended,
                f"the log holds {self.committed} executions, the replay gave {self.appended}",
            )
        self.commit()

    # Keeping ---------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make everything committed durable; a snapshot is valid only after this.

        May run in another thread than `append`, but not beside `prune`. Raises LogLost: end the
        process and recover.
        """
        self._refuse_if_lost()
        current = self.appended // self.segment_rows
        segments = sorted(self._open.items())
        try:
            for _, segment in segments:
                os.fdatasync(segment.fd)
            os.fdatasync(self._control_fd)
        except OSError as error:
            self._lost = True
            raise LogLost(f"{self.folder} could not be synced: {error.strerror}") from error
        for index, segment in segments:
            if index < current:
                del self._open[index]
                os.close(segment.fd)

    def _refuse_if_lost(self) -> None:
        if self._lost:
            raise LogLost(f"{self.folder}: an earlier sync failed, end the process and recover")

    def prune(self) -> int:
        """Delete the segments nobody needs any more; return how many.

        Needed is what is not below every consumer's cursor, and the newest `keep_count` rows.
        """
        wanted = min([self.committed - self.keep_count, *consumers(self.folder).values()])
        lowest = wanted // self.segment_rows * self.segment_rows
        numbers = range(
            self.first // self.segment_rows * self.segment_rows, lowest, self.segment_rows
        )
        if not numbers:
            return 0
        # First the word, durable, then the files: a reader must not look for a file that is
        # gone, a restart must not miss one.
        atomics.store(self._control, W_FIRST, lowest)
        os.fdatasync(self._control_fd)
        for number in numbers:
            segment_path(self.folder, number).unlink()
            if segment := self._open.pop(number // self.segment_rows, None):
                os.close(segment.fd)
        return len(numbers)

    def close(self) -> None:
        """Let go of files and lock; nothing is synced or committed."""
        self._preparer.shutdown(wait=True)
        for segment in self._open.values():
            os.close(segment.fd)
        self._open = {}
        for fd in (self._control_fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._control_fd = self._lock = -1
