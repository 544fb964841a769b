"""Named shared memory with exactly one owner at any instant and any number of read-only borrows.

`Owned` is the only handle with writable arrays. It holds an exclusive lock on the segment's own
open file, which the operating system releases when the owner dies, and which travels with the
file when the segment is moved to another process. `Borrowed` opens the file read-only and maps it
read-only, so a write through it cannot happen, and compiled code that would do it does not compile.

Invariants: one lock, one writer; every claim and every move raises the epoch; a segment never
shrinks under a reader; after a move or a close the giver's addresses fault and are never used
again for anything else in that process; readers write nothing, ever.

It knows nothing of exchanges, decides nothing about the content of arrays, and never waits.
Linux only: it relies on flock, /proc and SCM_RIGHTS.
"""

import json
import mmap
import os
import socket as sockets
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np

from exchange import atomics
from exchange.segment import (
    HEADER_BYTES,
    MAGIC,
    AlreadyOwned,
    Array,
    Field,
    HeaderWord,
    Layout,
    LayoutMismatch,
    Memory,
    OwnershipError,
    SegmentMissing,
    State,
    UseAfterMove,
    boot_id_hash,
    check_layout,
    hash_of,
    leads_to,
    lock,
    open_locked,
    owner_alive,
    permit,
    pid_namespace,
    prepare_file,
    put_text,
    read_header,
    segment_directory,
    segment_path,
    start_ticks,
)

__all__ = [
    "AlreadyOwned",
    "Borrowed",
    "Field",
    "HeaderWord",
    "Layout",
    "LayoutMismatch",
    "Owned",
    "OwnershipError",
    "SegmentMissing",
    "State",
    "Status",
    "UseAfterMove",
    "list_stale",
    "remove_stale",
]

Directory = str | os.PathLike[str] | None

STALE_AFTER_NS = 1_000_000_000
_HEADER_WORDS = HEADER_BYTES // 8
_MOVE_HEAD = struct.Struct("<8sI")
_MOVE_MAGIC = b"HOLDMOVE"
_MOVE_LIMIT_BYTES = 16_384


class Status(IntEnum):
    """What a borrow knows about its owner."""

    LIVE = 1  # open, and the heartbeat is fresh
    STARTING = 2  # a new owner holds the segment and prepares its content
    STALE = 3  # no fresh heartbeat, but the owner is not known to be dead
    MOVED = 4  # another owner (epoch) than the one borrowed from: read again, then `renew`
    CLOSED = 5  # the owner closed it in good order
    DEAD = 6  # the owner's process is gone; the content is what it left behind
    REPLACED = 7  # the name leads to another file now, or to none: open again


def _set_state(header: Array, state: State) -> None:
    atomics.store(header, HeaderWord.STATE, int(state))


class Owned:
    """The one handle with writable arrays. Get it from `claim` or `receive`.

    Attributes that stay readable after a move: `name`, `path`, `layout`, `epoch`, `created` (the
    segment did not exist before), `previous_state` (what the owner before had said: `State.OPEN`
    means that it died; None if created). Everything else raises UseAfterMove then. Not for use
    by two threads at once.
    """

    def __init__(self, memory: Memory, layout: Layout, *, created: bool) -> None:
        self.path = memory.path
        self.name = memory.path.name
        self.layout = layout
        self.created = created
        self.previous_state: State | None = None
        self.epoch = 0
        self._memory = memory
        self._arrays: Mapping[str, Array] | None = MappingProxyType(layout.arrays(memory.content))
        self._header: Array | None = np.frombuffer(memory.content, np.int64, _HEADER_WORDS)

    @classmethod
    def claim(
        cls,
        name: str,
        layout: Layout,
        *,
        mode: int = 0o600,
        group: str | int | None = None,
        directory: Directory = None,
        populate: bool = False,
        prepare: "Callable[[Owned], None] | None" = None,
        now_ns: int | None = None,
    ) -> "Owned":
        """Create the segment, or take over one that nobody owns.

        `mode` and `group` are set exactly, whatever the umask. `populate` reserves and touches all
        memory at once; without it only pages that are written cost anything. `prepare(owned)` runs
        before any reader is told of the new owner: the place to repair what a dead owner left.
        `now_ns` is the first heartbeat (default: the monotonic clock).

        Raises AlreadyOwned, LayoutMismatch, or OSError if the system refuses file or memory.
        """
        path = segment_path(name, directory)
        fd = open_locked(path, mode)
        try:
            created = prepare_file(path, fd, layout)
            permit(fd, mode, group)
            if populate:
                # Unlike touching, this says so when the memory is not there.
                os.posix_fallocate(fd, 0, layout.size_bytes)
            memory = Memory(path, fd, layout.size_bytes, populate=populate)
        except BaseException:
            os.close(fd)
            raise
        return cls(memory, layout, created=created)._enter_upon(prepare, now_ns)

    @classmethod
    def receive(
        cls,
        socket: sockets.socket,
        layout: Layout,
        *,
        prepare: "Callable[[Owned], None] | None" = None,
        now_ns: int | None = None,
    ) -> "Owned":
        """Take over a segment that its owner is sending with `move_to`, and wait for it.

        `socket` is a connected, blocking UNIX stream socket. Raises ConnectionError if the other
        side goes away or sends something else, LayoutMismatch if the segment is another than
        `layout`; in both cases the segment is left without an owner.
        """
        path, fd = _receive_file(socket)
        try:
            if not lock(fd):
                raise OwnershipError(f"{path} arrived without its lock")
            check_layout(path, read_header(fd), os.fstat(fd).st_size, layout)
            memory = Memory(path, fd, layout.size_bytes, populate=False)
        except BaseException:
            os.close(fd)
            raise
        return cls(memory, layout, created=False)._enter_upon(prepare, now_ns)

    def _enter_upon(self, prepare: "Callable[[Owned], None] | None", now_ns: int | None) -> "Owned":
        """Write the owner's words; the ready word of a new segment is the last of all."""
        header = self.header
        if not self.created:
            self.previous_state = State(int(header[HeaderWord.STATE]))
        _set_state(header, State.INITIALISING)
        header[HeaderWord.OWNER_PID] = os.getpid()
        header[HeaderWord.OWNER_START_TICKS] = start_ticks(os.getpid())
        header[HeaderWord.OWNER_PID_NAMESPACE] = pid_namespace()
        header[HeaderWord.BOOT_ID_HASH] = boot_id_hash()
        self.epoch = int(header[HeaderWord.EPOCH]) + 1
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        header[HeaderWord.ACQUIRED_AT_NS] = now_ns
        self.heartbeat(now_ns)
        if self.created:
            self._write_identity()
        try:
            if prepare is not None:
                prepare(self)
        except BaseException:
            self._memory.close()
            raise
        atomics.store(header, HeaderWord.EPOCH, self.epoch)
        _set_state(header, State.OPEN)
        atomics.store(header, HeaderWord.READY, self.layout.version)
        return self

    def _write_identity(self) -> None:
        header = self.header
        header[HeaderWord.LAYOUT_HASH] = self.layout.hash
        header[HeaderWord.LAYOUT_NAME_HASH] = hash_of(self.layout.name)
        header[HeaderWord.SIZE_BYTES] = self.layout.size_bytes
        put_text(header, HeaderWord.LAYOUT_NAME, self.layout.name)
        put_text(header, HeaderWord.SEGMENT_NAME, self.name)

    @property
    def arrays(self) -> Mapping[str, Array]:
        """The writable arrays by field name."""
        if self._arrays is None:
            raise UseAfterMove(f"segment {self.name}, epoch {self.epoch}, was moved or closed")
        return self._arrays

    @property
    def header(self) -> Array:
        """The 512 words of the header page (`HeaderWord`), int64, writable."""
        if self._header is None:
            raise UseAfterMove(f"segment {self.name}, epoch {self.epoch}, was moved or closed")
        return self._header

    @property
    def shared_memory(self) -> Memory:
        """The `multiprocessing.shared_memory.SharedMemory` object behind the arrays."""
        assert self.header is not None
        return self._memory

    def __getitem__(self, field: str) -> Array:
        return self.arrays[field]

    def address(self, field: str) -> int:
        """Return the address of a field's first byte, for kernels reached through integers."""
        return int(self.arrays[field].ctypes.data)

    def heartbeat(self, now_ns: int) -> None:
        """Say that the owner lives; readers compare `now_ns` with a time of the same clock."""
        header = self.header
        header[HeaderWord.HEARTBEAT_COUNT] += 1
        atomics.store(header, HeaderWord.HEARTBEAT_NS, now_ns)

    def set_sequence(self, sequence: int) -> None:
        """Publish the sequence of the last command that is wholly in the arrays."""
        atomics.store(self.header, HeaderWord.LAST_SEQUENCE, sequence)

    def move_to(self, socket: sockets.socket) -> None:
        """Hand the segment and its lock to the process at the other end of a UNIX socket.

        The lock belongs to the open file and the file travels, so at no instant is there no owner
        or two. The giver's arrays are dead before the file leaves. If it cannot be sent, the
        arrays are alive again at their old addresses and the OSError is raised.
        """
        header = self.header
        path = json.dumps(str(self.path.absolute())).encode()
        assert len(path) <= _MOVE_LIMIT_BYTES, f"path of {len(path)} bytes is too long to send"
        _set_state(header, State.MOVING)
        self._memory.retire()
        try:
            message = _MOVE_HEAD.pack(_MOVE_MAGIC, len(path)) + path
            sent = sockets.send_fds(socket, [message], [self._memory.fd])
        except OSError:
            self._memory.revive()
            _set_state(header, State.OPEN)
            raise
        self._die()
        # The file left with the first byte; the rest only names it.
        socket.sendall(message[sent:])

    def close(self, *, unlink: bool = False) -> None:
        """Give up ownership in good order; closing twice, or after a move, does nothing.

        The content stays for readers and for the next owner. With `unlink` the name goes too.
        """
        if self._header is None:
            return
        _set_state(self._header, State.CLOSED)
        if unlink and leads_to(self.path, self._memory.fd):
            self.path.unlink()
        self._die()

    def _die(self) -> None:
        self._arrays = self._header = None
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        life = "dead" if self._header is None else "alive"
        return f"<Owned {self.path} layout {self.layout.name!r} epoch {self.epoch} {life}>"


def _receive_exactly(socket: sockets.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        part = socket.recv(count - len(received))
        if not part:
            raise ConnectionError("the giver went away in the middle of a move")
        received += part
    return bytes(received)


def _receive_file(socket: sockets.socket) -> tuple[Path, int]:
    head, fds, _, _ = sockets.recv_fds(socket, _MOVE_HEAD.size, 1, sockets.MSG_CMSG_CLOEXEC)
    if len(fds) != 1:
        raise ConnectionError("the other side closed or sent no segment")
    try:
        head += _receive_exactly(socket, _MOVE_HEAD.size - len(head))
        magic, length = _MOVE_HEAD.unpack(head)
        if magic != _MOVE_MAGIC or length > _MOVE_LIMIT_BYTES:
            raise ConnectionError(f"{head!r} does not announce a segment")
        return Path(json.loads(_receive_exactly(socket, length))), fds[0]
    except BaseException:
        os.close(fds[0])
        raise


class Borrowed:
    """A read-only view of a segment that somebody else owns, or owned. Get it from `open`.

    Arrays stay valid as long as they are referenced, also after `close` and after the owner's
    death or the removal of the name. `epoch` is the owner borrowed from.
    """

    def __init__(self, path: Path, fd: int, layout: Layout, stale_after_ns: int) -> None:
        self.path = path
        self.name = path.name
        self.layout = layout
        self.stale_after_ns = stale_after_ns
        self._identity = os.fstat(fd)
        mapping = mmap.mmap(fd, layout.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        self._arrays: Mapping[str, Array] | None = MappingProxyType(layout.arrays(mapping))
        self._header: Array | None = np.frombuffer(mapping, np.int64, _HEADER_WORDS)
        self.epoch = self.renew()

    @classmethod
    def open(
        cls,
        name: str,
        layout: Layout,
        *,
        directory: Directory = None,
        stale_after_ns: int = STALE_AFTER_NS,
    ) -> "Borrowed":
        """Map an existing segment read-only; never touches its lock.

        Raises SegmentMissing (also while it is being created), LayoutMismatch, or PermissionError
        if this user may not read it.
        """
        path = segment_path(name, directory)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise SegmentMissing(f"there is no segment {path}") from None
        try:
            header = read_header(fd)
            size_bytes = os.fstat(fd).st_size
            unfinished = header[HeaderWord.MAGIC] == MAGIC and header[HeaderWord.READY] == 0
            if size_bytes == 0 or unfinished:
                raise SegmentMissing(f"segment {path} is still being created")
            check_layout(path, header, size_bytes, layout)
            return cls(path, fd, layout, stale_after_ns)
        finally:
            os.close(fd)

    @property
    def arrays(self) -> Mapping[str, Array]:
        """The read-only arrays by field name."""
        if self._arrays is None:
            raise UseAfterMove(f"the borrow of segment {self.name} was closed")
        return self._arrays

    @property
    def header(self) -> Array:
        """The 512 words of the header page (`HeaderWord`), int64, read-only."""
        if self._header is None:
            raise UseAfterMove(f"the borrow of segment {self.name} was closed")
        return self._header

    def __getitem__(self, field: str) -> Array:
        return self.arrays[field]

    def address(self, field: str) -> int:
        """Return the address of a field's first byte; valid while this borrow is open."""
        return int(self.arrays[field].ctypes.data)

    def renew(self) -> int:
        """Accept the present owner as the one borrowed from; return its epoch."""
        self.epoch = atomics.load(self.header, HeaderWord.EPOCH)
        return self.epoch

    def replaced(self) -> bool:
        """Say whether the name now leads to another file, or to none (one system call)."""
        try:
            named = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return True
        return not os.path.samestat(named, self._identity)

    def status(self, now_ns: int) -> Status:
        """Judge the owner, cheapest evidence first: a few loads as long as all is well.

        `now_ns` is a time of the clock the owner beats with. The file system and /proc are asked
        only once the heartbeat is older than `stale_after_ns` or the owner said goodbye.
        """
        header = self.header
        state = atomics.load(header, HeaderWord.STATE)
        if atomics.load(header, HeaderWord.EPOCH) != self.epoch or state == State.MOVING:
            return Status.MOVED
        age_ns = now_ns - atomics.load(header, HeaderWord.HEARTBEAT_NS)
        if state == State.OPEN and age_ns <= self.stale_after_ns:
            return Status.LIVE
        if self.replaced():
            return Status.REPLACED
        if state == State.CLOSED:
            return Status.CLOSED
        if owner_alive(header) is False:
            return Status.DEAD
        return Status.STARTING if state == State.INITIALISING else Status.STALE

    def close(self) -> None:
        """Let go of the mapping; it disappears with the last array that refers to it."""
        self._arrays = self._header = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _stale(prefix: str, directory: Directory, *, remove: bool) -> Iterator[str]:
    for path in sorted(segment_directory(directory).glob(prefix + "*")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # Not ours to open: another user's, a link, a folder, or just gone.
        try:
            header = read_header(fd) if path.is_file() else np.zeros(_HEADER_WORDS, np.int64)
            if header[HeaderWord.MAGIC] != MAGIC or not lock(fd) or not leads_to(path, fd):
                continue
            if owner_alive(header) is True:
                continue  # Closed in good order by a process that may want it again.
            if remove:
                path.unlink()
            yield path.name
        finally:
            os.close(fd)


def list_stale(prefix: str, directory: Directory = None) -> list[str]:
    """Return the segments named `prefix...` that nobody holds and whose owner is dead."""
    assert prefix, "an empty prefix would judge everybody's segments"
    return list(_stale(prefix, directory, remove=False))


def remove_stale(prefix: str, directory: Directory = None) -> list[str]:
    """Remove what `list_stale` returns, and return it.

    A file is removed only if it bears our magic number and this process got its lock, so neither
    a living owner's segment nor a stranger's file can go.
    """
    assert prefix, "an empty prefix would judge everybody's segments"
    return list(_stale(prefix, directory, remove=True))
