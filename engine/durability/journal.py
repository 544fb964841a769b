"""The command journal of one pair: every command in its one order, on disk before it is applied.

    folder/journal-<first sequence, 20 digits>.log     a segment: frames back to back, then zeros
    folder/journal-next.zero                           the next segment, zeroed ahead of time

Invariants: sequences are contiguous from frame to frame and from file to file; what follows the
last frame is zero; a segment has its final size, all blocks written, before it is named; the
folder is locked by one process at a time. A frame is durable when `sync` returned after it.

A torn tail is cut when the journal is opened: the last frame, if it is not whole, nothing whole
follows it and nothing proves that it was applied. Everything else that is not as written raises
`JournalDamaged`. A failed write can be retried (`JournalBlocked`), a failed sync cannot
(`JournalLost`): after it Linux calls pages clean which never reached the disk, and a later sync
would report a success that did not happen.

It does not know what a command means, applies nothing and reads no clock. The bytes of a frame
are described in `engine.durability.frames`.
"""

import bisect
import errno
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

import numpy as np

from engine.durability.frames import (
    HEADER_BYTES,
    DurabilityError,
    Frame,
    JournalDamaged,
    Rows,
    frames_in,
    header_of,
    map_file,
    used_bytes,
    why_not_torn,
)
from exchange.records import COMMAND_WORDS

__all__ = [
    "BLOCKING",
    "Durability",
    "DurabilityError",
    "Frame",
    "Journal",
    "JournalBlocked",
    "JournalDamaged",
    "JournalLost",
    "JournalOwned",
    "lock_folder",
    "sync_folder",
]

SEGMENT_BYTES: Final = 64 << 20
# What a disk says when it is full, read-only, over quota, over a size limit, or failing.
BLOCKING: Final = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG})

_NAME = re.compile(r"journal-(\d{20})\.log")
_NEXT = "journal-next.zero"
# Small enough that a sync of the journal beside it hardly notices (measured, see the decision).
_ZEROS = bytes(256 << 10)

_log = logging.getLogger(__name__)


class Durability(StrEnum):
    """When a command counts as kept: the disk has it, or the operating system has it."""

    FSYNC = "fsync"
    OS = "os"


class JournalBlocked(DurabilityError):
    """The disk took nothing (full, read-only, failing): nothing changed, append again later."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path} cannot be written: {error.strerror}")
        self.path = path
        self.errno = error.errno


class JournalLost(DurabilityError):
    """A sync failed: nobody knows what the disk has. The process must end and recover."""


class JournalOwned(DurabilityError):
    """Another process holds the journal's folder."""


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_folder(folder: Path) -> int:
    """Make the folder if need be and lock it; return the descriptor that holds the lock.

    Raises JournalOwned if another process holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise JournalOwned(f"{folder} is held by another process") from None
    return fd


def zeroed_file(path: Path, size_bytes: int) -> int:
    """Create a file whose every block is written with zeros and durable; return it open.

    Asking for the space first makes a full disk answer before anything is written. Chunks are
    synced one by one, so that somebody else's sync never waits for more than one of them.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        for offset in range(0, size_bytes, len(_ZEROS)):
            os.pwrite(fd, _ZEROS[: size_bytes - offset], offset)
            os.fdatasync(fd)
        os.fsync(fd)
    except OSError:
        os.close(fd)
        with suppress(OSError):
            path.unlink()
        raise
    return fd


class Journal:
    """The journal of one pair, open for appending. Made by `open`; one process at a time."""

    def __init__(
        self, folder: Path, durability: Durability, segment_bytes: int, identity: int, lock: int
    ) -> None:
        self.folder = folder
        self.durability = durability
        self.segment_bytes = segment_bytes
        self.identity = identity
        self.last_sequence = 0
        self.cut_bytes = 0
        self._lock = lock
        self._segments: list[int] = []
        self._fd = -1
        self._position = 0
        self._capacity_bytes = 0
        self._unsynced = False
        self._lost = False
        self._next: Future[int] | None = None
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="journal-next")

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        durability: Durability = Durability.FSYNC,
        segment_bytes: int = SEGMENT_BYTES,
        applied_sequence: int = 0,
        identity: int = 0,
    ) -> Self:
        """Open or create the journal in `folder`, cut a torn tail and stand behind the last frame.

        `applied_sequence` is the newest sequence of which the execution log or a snapshot proves
        that it was applied: a journal that ends below it is damaged. `identity` tells the
        journals of two pairs apart. Raises JournalDamaged, JournalOwned, and JournalBlocked if
        the disk does not take a first segment.
        """
        assert segment_bytes >= 4096, f"segment_bytes is {segment_bytes}, below 4096"
        assert segment_bytes % HEADER_BYTES == 0, f"segment_bytes is {segment_bytes}, not n x 64"
        lock = lock_folder(folder)
        journal = cls(folder, durability, segment_bytes, identity, lock)
        try:
            journal._segments = journal._segments_found()
            journal._stand_behind_last_frame(applied_sequence)
        except BaseException:
            journal.close()
            raise
        return journal

    # Opening ---------------------------------------------------------------------------------

    def _path(self, first_sequence: int) -> Path:
        return self.folder / f"journal-{first_sequence:020}.log"

    def _segments_found(self) -> list[int]:
        found = []
        for path in self.folder.glob("journal-*"):
            if path.name == _NEXT:
                continue
            match = _NAME.fullmatch(path.name)
            if match is None or not path.is_file():
                raise JournalDamaged(path, 0, "the name is not that of a journal segment")
            found.append(int(match[1]))
        return sorted(found)

    def _stand_behind_last_frame(self, applied_sequence: int) -> None:
        if not self._segments:
            if applied_sequence:
                raise JournalDamaged(
                    self.folder,
                    0,
                    f"there is no journal, but sequence {applied_sequence} was applied",
                )
            self._rotate_to(1)
            return
        path = self._path(self._segments[-1])
        position, last, torn = self._tail(path, self._segments[-1], applied_sequence)
        if position == 0 and len(self._segments) > 1:
            self._check_end_before_last()
        self.last_sequence, self._position = last, position
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._restore_zeros(path, torn)
        except OSError as error:
            raise JournalBlocked(path, error) from error
        self._prepare_ahead()

    def _tail(self, path: Path, first: int, applied_sequence: int) -> tuple[int, int, int]:
        """Return where frames end, the last sequence, and how many bytes behind it are torn."""
        view = map_file(path)
        end, last, wrong = 0, first - 1, ""
        for offset, found in frames_in(path, view, first, self.identity):
            if isinstance(found, str):
                end, wrong = offset, found
            else:
                last = found.first_sequence + found.command_count - 1
        torn = used_bytes(view, end)
        if torn and (reason := why_not_torn(view, end, wrong)):
            raise JournalDamaged(path, end, reason)
        if last < applied_sequence:
            what = wrong if torn else "the journal ends here"
            raise JournalDamaged(
                path,
                end,
                f"{what}; the last whole command is {last}, but {applied_sequence} was applied",
            )
        return end, last, torn

    def _check_end_before_last(self) -> None:
        """Check the last segment but one, of whose end a last one without frames says nothing."""
        first, following = self._segments[-2:]
        for _ in self._frames_of(first, following, following - 1):
            pass

    def _restore_zeros(self, path: Path, torn_bytes: int) -> None:
        """Cut a torn tail, and give a file that was cut short its size back."""
        size_bytes = os.fstat(self._fd).st_size
        if torn_bytes:
            _log.warning(
                "%s, byte %d: cut the torn last frame (%d bytes), never acknowledged",
                path,
                self._position,
                torn_bytes,
            )
            self.cut_bytes = torn_bytes
        wanted_bytes = max(size_bytes, self.segment_bytes)
        self._zero(self._position, self._position + torn_bytes)
        self._zero(size_bytes, wanted_bytes)
        if torn_bytes or wanted_bytes > size_bytes:
            os.fsync(self._fd)
        self._capacity_bytes = wanted_bytes

    def _zero(self, start: int, end: int) -> None:
        while start < end:
            start += os.pwrite(self._fd, _ZEROS[: end - start], start)

    # Appending -------------------------------------------------------------------------------

    def append(self, commands: Rows, first_sequence: int, time_ns: int, chain_hash: int) -> None:
        """Write one batch behind the last one; it counts once `sync` returned.

        `commands` is int64 (n, 8) in C order, `first_sequence` follows the last one appended,
        `chain_hash` (unsigned, 64 bits) covers everything executed before this batch. Raises
        JournalBlocked, after which nothing has changed and the same call may be made again.
        """
        self._refuse_if_lost()
        count, frame_bytes = len(commands), HEADER_BYTES + commands.nbytes
        assert commands.dtype == np.int64, f"commands are {commands.dtype}, not int64"
        assert commands.shape == (count, COMMAND_WORDS), f"commands have shape {commands.shape}"
        assert commands.flags.c_contiguous, "commands are not in C order"
        assert count > 0, "there is no command to append"
        assert first_sequence == self.last_sequence + 1, (
            f"first_sequence is {first_sequence}, {self.last_sequence + 1} must follow"
        )
        assert frame_bytes <= self.segment_bytes, (
            f"a frame of {frame_bytes} bytes exceeds a segment of {self.segment_bytes}"
        )
        # Two frames under way could reach the disk in the other order, and a torn first one
        # would then look like damage.
        assert not (self._unsynced and self.durability is Durability.FSYNC), "sync comes first"
        if self._position + frame_bytes > self._capacity_bytes:
            self._rotate_to(first_sequence)
        header = header_of(commands, first_sequence, time_ns, chain_hash, self.identity)
        self._write(header, commands, frame_bytes)
        self._position += frame_bytes
        self.last_sequence += count
        self._unsynced = True
        if self._next is None:
            self._prepare_ahead()

    def _write(self, header: bytes, commands: Rows, frame_bytes: int) -> None:
        written = 0
        try:
            written = os.pwritev(self._fd, (header, commands.data), self._position)
            if written < frame_bytes:
                frame = memoryview(header + commands.tobytes())
                while written < frame_bytes:
                    written += os.pwrite(self._fd, frame[written:], self._position + written)
        except OSError as error:
            # Should the zeros fail too: the next append overwrites, a restart cuts.
            with suppress(OSError):
                self._zero(self._position, self._position + written)
            if error.errno not in BLOCKING:
                raise
            raise JournalBlocked(self._path(self._segments[-1]), error) from error

    def sync(self) -> None:
        """Return once everything appended is on disk; with durability `os` return at once.

        May run in another thread while the next batch is gathered, not while it is appended.
        Raises JournalLost: end the process and recover, retrying would lie.
        """
        self._refuse_if_lost()
        if self.durability is Durability.FSYNC and self._unsynced:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._lost = True
                path = self._path(self._segments[-1])
                raise JournalLost(f"{path} could not be synced: {error.strerror}") from error
        self._unsynced = False

    def _refuse_if_lost(self) -> None:
        if self._lost:
            raise JournalLost(f"{self.folder}: an earlier sync failed, end the process and recover")

    # Segments --------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Begin a new segment if the present one holds a frame, so that it can be let go later."""
        self._refuse_if_lost()
        assert not (self._unsynced and self.durability is Durability.FSYNC), "sync comes first"
        if self._position:
            self._rotate_to(self.last_sequence + 1)

    def _prepare_ahead(self) -> None:
        """Zero the next segment in another thread once this one is half full."""
        if 2 * self._position >= self._capacity_bytes:
            path = self.folder / _NEXT
            self._next = self._preparer.submit(zeroed_file, path, self.segment_bytes)

    def _prepared(self) -> int:
        """Return the zeroed next segment, made here and now if it could not be made ahead."""
        ahead, self._next = self._next, None
        if ahead is not None:
            # Nobody was told of the failure then; whether the disk has recovered shows below.
            with suppress(OSError):
                return ahead.result()
        return zeroed_file(self.folder / _NEXT, self.segment_bytes)

    def _rotate_to(self, first_sequence: int) -> None:
        path = self._path(first_sequence)
        try:
            fd = self._prepared()
        except OSError as error:
            raise JournalBlocked(self.folder / _NEXT, error) from error
        try:
            (self.folder / _NEXT).rename(path)
        except OSError as error:
            os.close(fd)
            raise JournalBlocked(path, error) from error
        try:
            # The name must be durable before a frame in it is acknowledged.
            sync_folder(self.folder)
        except OSError as error:
            os.close(fd)
            self._lost = True
            raise JournalLost(f"{self.folder} could not be synced: {error.strerror}") from error
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._position, self._capacity_bytes = fd, 0, self.segment_bytes
        self._segments.append(first_sequence)

    def retain_from(self, sequence: int) -> int:
        """Delete the segments wholly below `sequence`, oldest first; return how many.

        The segment in use always stays.
        """
        count = max(bisect.bisect_right(self._segments, sequence) - 1, 0)
        for first in self._segments[:count]:
            self._path(first).unlink()
        if count:
            del self._segments[:count]
            sync_folder(self.folder)
        return count

    # Replaying -------------------------------------------------------------------------------

    def replay(self, after_sequence: int) -> Iterator[Frame]:
        """Return the frames behind `after_sequence` in order, checked one by one.

        `after_sequence` is the last sequence of a frame (or 0). Raises JournalDamaged, at once if
        the journal begins too late or ends too early, else when the damage is reached.
        """
        index = bisect.bisect_right(self._segments, after_sequence + 1) - 1
        if index < 0:
            first = self._segments[0]
            raise JournalDamaged(
                self._path(first),
                0,
                f"the journal begins with sequence {first}, {after_sequence + 1} is missing",
            )
        if after_sequence > self.last_sequence:
            raise JournalDamaged(
                self._path(self._segments[-1]),
                self._position,
                f"the journal ends with sequence {self.last_sequence}, before {after_sequence}",
            )
        return self._replay(self._segments[index:], after_sequence)

    def _replay(self, segments: list[int], after_sequence: int) -> Iterator[Frame]:
        for first, following in zip(segments, [*segments[1:], None], strict=True):
            yield from self._frames_of(first, following, after_sequence)

    def _frames_of(self, first: int, following: int | None, after_sequence: int) -> Iterator[Frame]:
        """Yield the frames of one segment; `following` is the first sequence of the next one."""
        path = self._path(first)
        view = map_file(path)
        if following is None:
            view = view[: self._position]
        lines = np.frombuffer(view[: len(view) // 64 * 64], np.int64).reshape(-1, COMMAND_WORDS)
        expected = first
        for offset, found in frames_in(path, view, first, self.identity):
            if isinstance(found, str):
                self._check_end(path, view, offset, found, expected, following)
                return
            expected += found.command_count
            if expected <= after_sequence + 1:
                continue
            if found.first_sequence <= after_sequence:
                raise JournalDamaged(
                    path, offset, f"sequence {after_sequence} lies inside a frame, not at its end"
                )
            line = offset // HEADER_BYTES + 1
            rows = lines[line : line + found.command_count]
            yield Frame(found.first_sequence, found.time_ns, found.chain_hash, rows)

    def _check_end(
        self,
        path: Path,
        view: memoryview,
        offset: int,
        wrong: str,
        expected: int,
        following: int | None,
    ) -> None:
        """Accept the end of a segment's frames only where it must be."""
        if used_bytes(view, offset):
            raise JournalDamaged(path, offset, wrong)
        wanted = self.last_sequence + 1 if following is None else following
        if expected != wanted:
            raise JournalDamaged(
                path,
                offset,
                f"the segment ends with sequence {expected - 1}, {wanted - 1} was to be its last",
            )

    def close(self) -> None:
        """Let go of the files and the lock; nothing is synced."""
        self._preparer.shutdown(wait=True)
        if self._next is not None:
            with suppress(OSError):
                os.close(self._next.result())
            self._next = None
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1
