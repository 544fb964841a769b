"""The file behind a segment: layout, header page, lock, named owner, and the owner's mapping.

A segment is one file in a memory directory: a header page of 512 words, then plain integer arrays
at offsets that a `Layout` computes. This module knows how to read and judge such a file; who may
write it is the business of `exchange.ownership`.

Invariants: a header is complete before its ready word is set, so a reader either refuses a file
or finds every word of its identity; the lock on the file decides who owns it, the process named in
the header is only there for sentences and for readers, who must not touch the lock.

The mapping here is the writable one; borrows map on their own. Linux only: it relies on flock
and /proc.
"""

import ctypes
import fcntl
import json
import mmap
import os
import re
import stat
import sys
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from hashlib import sha256
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

HEADER_BYTES = 4096
LINE_BYTES = 64
MAGIC = int.from_bytes(b"HOLDFAST", "little")
DEFAULT_DIRECTORY = "/dev/shm"

_PROT_NONE = 0
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NAME_WORDS = 8
# A claim loops only when somebody unlinks the file between its open and its lock.
_CLAIM_ATTEMPTS = 100


class HeaderWord:
    """Index of each 64-bit word of the header page; lines of eight words, one cache line each."""

    MAGIC: Final = 0
    READY: Final = 1  # layout version once the header is complete, zero before
    LAYOUT_HASH: Final = 2
    LAYOUT_NAME_HASH: Final = 3
    SIZE_BYTES: Final = 4

    EPOCH: Final = 8
    OWNER_PID: Final = 9
    OWNER_START_TICKS: Final = 10
    OWNER_PID_NAMESPACE: Final = 11
    BOOT_ID_HASH: Final = 12
    STATE: Final = 13
    ACQUIRED_AT_NS: Final = 14

    HEARTBEAT_NS: Final = 16
    HEARTBEAT_COUNT: Final = 17
    LAST_SEQUENCE: Final = 18

    LAYOUT_NAME: Final = 24  # eight words of text, for sentences and hexdumps
    SEGMENT_NAME: Final = 32  # eight words of text, cut at 64 bytes


class State(IntEnum):
    """What the owner says about its segment."""

    INITIALISING = 1
    OPEN = 2
    MOVING = 3
    CLOSED = 4


class Status(IntEnum):
    """What a borrow knows about its owner."""

    LIVE = 1  # open, and the heartbeat is fresh
    STARTING = 2  # a new owner holds the segment and is preparing its content
    STALE = 3  # no fresh heartbeat, but the owner is not known to be dead
    MOVED = 4  # another owner (epoch) than the one borrowed from: read again, then `renew`
    CLOSED = 5  # the owner closed it in good order
    DEAD = 6  # the owner's process is gone; the content is what it left
    REPLACED = 7  # the name now leads to another file or to none: open again


class OwnershipError(Exception):
    """Root of everything this module refuses."""


class AlreadyOwned(OwnershipError):
    """Somebody else holds the segment; `pid` is the owner's process id, zero if unknown."""

    def __init__(self, sentence: str, pid: int) -> None:
        super().__init__(sentence)
        self.pid = pid


class LayoutMismatch(OwnershipError):
    """The file is no segment of ours, or one of another layout, version or size."""


class SegmentMissing(OwnershipError):
    """There is no segment of that name, or its owner has not finished creating it."""


class UseAfterMove(OwnershipError):
    """The handle was moved or closed; its arrays belong to somebody else or to nobody."""


def hash_of(text: str) -> int:
    """Return the first eight bytes of SHA-256 as a signed 64-bit integer."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little", signed=True)


@dataclass(frozen=True)
class Field:
    """One integer array of a layout: one- or two-dimensional, C order, starts on a cache line."""

    name: str
    dtype: str
    shape: int | tuple[int, ...]

    def __post_init__(self) -> None:
        dtype = np.dtype(self.dtype)
        assert dtype.kind in "iu", f"field {self.name}: {dtype} is no integer type"
        assert dtype.isnative, f"field {self.name}: {dtype} is not in this machine's byte order"
        shape = (self.shape,) if isinstance(self.shape, int) else tuple(map(int, self.shape))
        assert 1 <= len(shape) <= 2, f"field {self.name}: shape {shape} is not 1-D or 2-D"
        assert min(shape) > 0, f"field {self.name}: shape {shape} has an empty axis"
        object.__setattr__(self, "dtype", dtype.name)
        object.__setattr__(self, "shape", shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the array without padding."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The fields of a segment in order; two processes agree when name, version and hash agree.

    `hash` covers names, types, shapes (so every capacity) and offsets. `size_bytes` includes the
    header page and is rounded up to a page.
    """

    name: str
    version: int
    fields: tuple[Field, ...]
    offsets: Mapping[str, int] = field(init=False, compare=False, repr=False)
    size_bytes: int = field(init=False, compare=False)
    hash: int = field(init=False, compare=False, repr=False)

    def __init__(self, name: str, version: int, fields: list[Field] | tuple[Field, ...]) -> None:
        assert version >= 1, f"layout {name}: version {version} is below 1"
        assert len(name.encode()) <= 8 * _NAME_WORDS, f"layout name {name!r} exceeds 64 bytes"
        offsets: dict[str, int] = {}
        end = HEADER_BYTES
        for one in fields:
            assert one.name not in offsets, f"layout {name}: field {one.name} appears twice"
            offsets[one.name] = end
            end += -(-one.size_bytes // LINE_BYTES) * LINE_BYTES
        described = [[one.name, one.dtype, one.shape, offsets[one.name]] for one in fields]
        values = {
            "name": name,
            "version": version,
            "fields": tuple(fields),
            "offsets": MappingProxyType(offsets),
            "size_bytes": -(-end // mmap.PAGESIZE) * mmap.PAGESIZE,
            "hash": hash_of(json.dumps([HEADER_BYTES, name, version, described])),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def arrays(self, buffer: Any) -> dict[str, Array]:
        """Form the arrays over a buffer of `size_bytes`; writable exactly if the buffer is."""
        formed: dict[str, Array] = {}
        for one in self.fields:
            assert isinstance(one.shape, tuple)
            count = int(np.prod(one.shape, dtype=np.int64))
            flat = np.frombuffer(buffer, one.dtype, count, self.offsets[one.name])
            formed[one.name] = flat.reshape(one.shape)
        return formed


def segment_directory(directory: str | os.PathLike[str] | None = None) -> Path:
    """Return where segments lie: the argument, or the system's memory directory."""
    return Path(DEFAULT_DIRECTORY if directory is None else directory)


def segment_path(name: str, directory: str | os.PathLike[str] | None = None) -> Path:
    """Return the file of a segment; asserts that the name cannot leave the directory."""
    assert _NAME.fullmatch(name), f"segment name {name!r} is not letters, digits, '.', '_', '-'"
    return segment_directory(directory) / name


@cache
def boot_id_hash() -> int:
    """Return which boot of which machine this is."""
    return hash_of(Path("/proc/sys/kernel/random/boot_id").read_text())


def pid_namespace() -> int:
    """Return which set of process ids this process counts in."""
    return Path("/proc/self/ns/pid").stat().st_ino


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; zero if it is dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The name in parentheses may hold anything, so count from its end.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def owner_alive(header: Array) -> bool | None:
    """Say whether the process named in a header lives; None if its pids are not ours to judge.

    A container sees another container's process ids only if they share a namespace.
    """
    if header[HeaderWord.BOOT_ID_HASH] != boot_id_hash():
        return False
    if header[HeaderWord.OWNER_PID_NAMESPACE] != pid_namespace():
        return None
    pid, ticks = int(header[HeaderWord.OWNER_PID]), int(header[HeaderWord.OWNER_START_TICKS])
    return pid > 0 and start_ticks(pid) == ticks


def read_header(fd: int) -> Array:
    """Copy the header out of a file; a file shorter than a header reads as zeros behind its end."""
    content = os.pread(fd, HEADER_BYTES, 0)
    return np.frombuffer(content.ljust(HEADER_BYTES, b"\0"), np.int64)


def _text(header: Array, word: int) -> str:
    raw = header[word : word + _NAME_WORDS].tobytes()
    return raw.rstrip(b"\0").decode(errors="replace")


def put_text(header: Array, word: int, text: str) -> None:
    """Write a name into eight words of a header, cut at 64 bytes."""
    raw = text.encode()[: 8 * _NAME_WORDS].ljust(8 * _NAME_WORDS, b"\0")
    header[word : word + _NAME_WORDS] = np.frombuffer(raw, np.int64)


def check_layout(path: Path, header: Array, size_bytes: int, layout: Layout) -> None:
    """Refuse, with a sentence, a complete header that does not describe `layout`."""
    if header[HeaderWord.MAGIC] != MAGIC:
        raise LayoutMismatch(f"{path} is not a segment: its first word is not the magic number")
    name, version = _text(header, HeaderWord.LAYOUT_NAME), int(header[HeaderWord.READY])
    if header[HeaderWord.LAYOUT_NAME_HASH] != hash_of(layout.name) or name != layout.name:
        raise LayoutMismatch(f"{path} holds layout {name!r}, not {layout.name!r}")
    if version != layout.version:
        raise LayoutMismatch(
            f"{path} holds version {version} of layout {name!r}, this program knows version"
            f" {layout.version}: remove the segment or run the matching program"
        )
    if header[HeaderWord.LAYOUT_HASH] != layout.hash:
        raise LayoutMismatch(
            f"{path} holds layout {name!r} version {version} with other fields or capacities"
            f" (hash {int(header[HeaderWord.LAYOUT_HASH]):#x}, expected {layout.hash:#x})"
        )
    said_bytes = int(header[HeaderWord.SIZE_BYTES])
    if not said_bytes == size_bytes == layout.size_bytes:
        raise LayoutMismatch(
            f"{path} has {size_bytes} bytes, its header says {said_bytes}, layout {name!r}"
            f" needs {layout.size_bytes}"
        )


def lock(fd: int) -> bool:
    """Take the owner's lock without waiting; say whether it is held now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def leads_to(path: Path, fd: int) -> bool:
    """Say whether the name still means the open file (it may be unlinked or replaced)."""
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def _refusal(path: Path, fd: int) -> AlreadyOwned:
    header = read_header(fd)
    pid = int(header[HeaderWord.OWNER_PID])
    if pid and owner_alive(header) is not False:
        epoch = int(header[HeaderWord.EPOCH])
        return AlreadyOwned(f"{path} is owned by process {pid}, epoch {epoch}", pid)
    return AlreadyOwned(f"{path} is being claimed or cleaned by another process", 0)


def open_locked(path: Path, mode: int) -> int:
    """Open or create the file and lock it; the descriptor is closed in children by exec."""
    for _ in range(_CLAIM_ATTEMPTS):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            if not lock(fd):
                raise _refusal(path, fd)
            if leads_to(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise OwnershipError(f"{path} was replaced {_CLAIM_ATTEMPTS} times while being claimed")


def permit(fd: int, mode: int, group: str | int | None) -> None:
    """Set exactly the wanted permissions, whatever the umask was."""
    if group is not None:
        import grp

        gid = group if isinstance(group, int) else grp.getgrnam(group).gr_gid
        os.fchown(fd, -1, gid)
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def prepare_file(path: Path, fd: int, layout: Layout) -> bool:
    """Bring a locked file to its full size, or check the one that is there; say whether new.

    The magic number is written while the file is still too short to hold anything else, so a file
    whose creator died half-way is recognised as ours, and never mapped by a reader.
    """
    size_bytes = os.fstat(fd).st_size
    header = read_header(fd)
    if size_bytes and (header[HeaderWord.MAGIC] != MAGIC or header[HeaderWord.READY] != 0):
        check_layout(path, header, size_bytes, layout)
        return False
    os.ftruncate(fd, 0)
    os.pwrite(fd, MAGIC.to_bytes(8, "little"), 0)
    os.ftruncate(fd, layout.size_bytes)
    return True


def _map(address: int | None, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    mapped = _mmap(address, size_bytes, protection, flags, fd, 0)
    if mapped is None or mapped == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {size_bytes} bytes: {os.strerror(number)}")
    return int(mapped)


class Memory(SharedMemory):
    """The owner's mapping of a segment: a `SharedMemory` whose life is the owner's, not Python's.

    `SharedMemory` itself registers every segment with a tracker that unlinks it when the process
    dies, knows one directory only and keeps a duplicate of the file open inside its mapping, which
    would keep the lock after a move. So the base class's constructor is not used: this object maps
    a file that is already open and locked, and has the base's `name`, `size`, `buf` and `close`.
    """

    def __init__(self, path: Path, fd: int, size_bytes: int, *, populate: bool) -> None:
        self._name = "/" + path.name
        self._fd = fd
        self._size = size_bytes
        self._mmap = None
        self.path = path
        self._flags_of_map = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        self.base_address = _map(
            None, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, self._flags_of_map, fd
        )
        whole = (ctypes.c_char * size_bytes).from_address(self.base_address)
        self.content = memoryview(whole).cast("B")
        self._buf = self.content
        self.retired = False
        _memories.add(self)

    @property
    def fd(self) -> int:
        """The open, locked file; -1 once it is closed."""
        return self._fd

    def retire(self) -> None:
        """Make every address fault, now and for the rest of the process.

        The pages are let go, the addresses stay reserved: a stray view or a stray integer address
        in compiled code kills the process instead of writing to what it no longer owns.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        _map(self.base_address, self._size, _PROT_NONE, flags, -1)
        self.retired = True

    def revive(self) -> None:
        """Map the file again at the same addresses, after a move that could not be sent."""
        flags = self._flags_of_map | _MAP_FIXED
        _map(self.base_address, self._size, mmap.PROT_READ | mmap.PROT_WRITE, flags, self._fd)
        self.retired = False

    def close(self) -> None:
        """Retire the mapping and close the file; the lock goes with it unless it was passed on."""
        if self._fd >= 0:
            if not self.retired:
                self.retire()
            os.close(self._fd)
            self._fd = -1

    def unlink(self) -> None:
        """Remove the name; the memory stays with those who have mapped it."""
        self.path.unlink()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a segment is moved with move_to, never pickled")

    def __del__(self) -> None:
        # At the end of the interpreter the operating system frees lock and mapping by itself,
        # and threads in compiled code may still be using it.
        if not sys.is_finalizing() and getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"segment {self.path} was never closed", ResourceWarning, stacklevel=2)
            self.close()


_memories: "weakref.WeakSet[Memory]" = weakref.WeakSet()


def _disown_in_child() -> None:
    """Take a forked child's inherited lock and mapping away: only the parent is the owner."""
    for memory in list(_memories):
        memory.close()


os.register_at_fork(after_in_child=_disown_in_child)
