"""The frames of the command journal: how a batch looks in a file and what is wrong with one.

    frame (64-byte header, then `count` command rows of 64 bytes; little endian)
       0  magic u64                     8  format version u32     12  command count u32
      16  first sequence i64           24  time ns i64            32  chain hash u64
      40  payload bytes i64            48  identity i64 (which pair's journal)
      56  xxh3-64 over bytes 0 to 55 and the rows

Invariants: a frame is either whole (every check passes) or named with what is wrong; bytes that
are all zero are no frame and no fault. Reading copies nothing.

It writes no file and decides nothing about repair; `engine.durability.journal` does.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64

from exchange.records import COMMAND_BYTES

Rows = npt.NDArray[np.int64]

MAGIC: Final = int.from_bytes(b"\xf5HFJRNL\n", "little")
"""The first byte is no command kind, so that a command row cannot pass for a header."""
FORMAT_VERSION: Final = 1
HEADER_BYTES: Final = 64

_HEADER = struct.Struct("<QIIqqQqqQ")
_CHECKED_BYTES = 56
_CHUNK_BYTES = 1 << 20

assert _HEADER.size == HEADER_BYTES


class DurabilityError(Exception):
    """Root of what journal, snapshots and execution log raise about the disk."""


class JournalDamaged(DurabilityError):
    """The journal is not what was written: `path` and `offset_bytes` say where."""

    def __init__(self, path: Path, offset_bytes: int, what: str) -> None:
        super().__init__(f"{path}, byte {offset_bytes}: {what}")
        self.path = path
        self.offset_bytes = offset_bytes


class Frame(NamedTuple):
    """A batch as it was appended; `commands` is a read-only (n, 8) view of the mapped file."""

    first_sequence: int
    time_ns: int
    chain_hash: int
    commands: Rows


class Header(NamedTuple):
    """The header of a frame, word by word."""

    magic: int
    version: int
    command_count: int
    first_sequence: int
    time_ns: int
    chain_hash: int
    payload_bytes: int
    identity: int
    checksum: int


def header_of(
    commands: Rows, first_sequence: int, time_ns: int, chain_hash: int, identity: int
) -> bytes:
    """Return the header that stands before these command rows."""
    fields = (MAGIC, FORMAT_VERSION, len(commands), first_sequence, time_ns, int(chain_hash))
    header = bytearray(_HEADER.pack(*fields, commands.nbytes, identity, 0))
    digest = xxh3_64(memoryview(header)[:_CHECKED_BYTES])
    digest.update(commands.data)
    header[_CHECKED_BYTES:] = digest.intdigest().to_bytes(8, "little")
    return bytes(header)


def map_file(path: Path) -> memoryview:
    """Map a file read-only; the mapping lives as long as something refers to it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size == 0:
            return memoryview(b"")
        mapping = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        mapping.madvise(mmap.MADV_SEQUENTIAL)
        return memoryview(mapping)
    finally:
        os.close(fd)


def _header_at(view: memoryview, offset: int, identity: int) -> Header | str:
    """Return the header of the whole frame at this offset, or what is wrong with it."""
    if offset + HEADER_BYTES > len(view):
        return f"the file ends {len(view) - offset} bytes into a frame header"
    header = Header._make(_HEADER.unpack_from(view, offset))
    if header.magic != MAGIC:
        return f"the frame begins with {header.magic:#x} instead of the magic number"
    if header.version != FORMAT_VERSION:
        return f"the frame has format version {header.version}, this program reads version 1"
    rows = offset + HEADER_BYTES
    end = rows + header.payload_bytes
    if header.command_count == 0 or header.payload_bytes != header.command_count * COMMAND_BYTES:
        return f"the frame claims {header.command_count} commands in {header.payload_bytes} bytes"
    if end > len(view):
        return f"the frame claims {header.payload_bytes} bytes, the file holds {len(view) - rows}"
    digest = xxh3_64(view[offset : offset + _CHECKED_BYTES])
    digest.update(view[rows:end])
    if digest.intdigest() != header.checksum:
        return f"the frame's checksum is {digest.intdigest():#x}, written was {header.checksum:#x}"
    if header.identity != identity:
        return f"the frame belongs to journal {header.identity:#x}, this one is {identity:#x}"
    return header


def frames_in(
    path: Path, view: memoryview, first: int, identity: int
) -> Iterator[tuple[int, Header | str]]:
    """Yield (offset, header) of every frame, lastly (offset, what is wrong there).

    Raises JournalDamaged if a whole frame holds other sequences than should follow.
    """
    offset, expected = 0, first
    while not isinstance(header := _header_at(view, offset, identity), str):
        if header.first_sequence != expected:
            raise JournalDamaged(
                path,
                offset,
                f"the frame begins with sequence {header.first_sequence}, {expected} must follow",
            )
        yield offset, header
        offset += HEADER_BYTES + header.payload_bytes
        expected += header.command_count
    yield offset, header


def used_bytes(view: memoryview, offset: int) -> int:
    """Return how many bytes from the offset on reach to the last one that is not zero."""
    end = len(view)
    while end > offset:
        start = max(offset, end - _CHUNK_BYTES)
        used = np.flatnonzero(np.frombuffer(view[start:end], np.uint8))
        if used.size:
            return start + int(used[-1]) + 1 - offset
        end = start
    return 0


def _whole_frame_after(view: memoryview, offset: int) -> int | None:
    """Return the offset of a whole frame behind this one, of whatever journal and sequence."""
    line_count = (len(view) - offset) // HEADER_BYTES
    words = np.frombuffer(view, np.uint64, line_count * 8, offset).reshape(-1, 8)
    for line in np.flatnonzero(words[:, 0] == MAGIC):
        candidate = offset + int(line) * HEADER_BYTES
        identity = int(words[line, 6].astype(np.int64))
        if line and not isinstance(_header_at(view, candidate, identity), str):
            return candidate
    return None


def why_not_torn(view: memoryview, offset: int, wrong: str) -> str | None:
    """Say why the bytes at this offset cannot be the torn last frame of this journal."""
    start = bytes(view[offset : offset + HEADER_BYTES]).ljust(HEADER_BYTES, b"\0")
    header = Header._make(_HEADER.unpack(start))
    whole_magic = MAGIC.to_bytes(8, "little")
    if header.magic == MAGIC and header.version not in {0, FORMAT_VERSION}:
        return wrong
    if not isinstance(_header_at(view, offset, header.identity), str):
        return wrong
    if offset == 0 and not whole_magic.startswith(start[:8].rstrip(b"\0")):
        return f"the file is no journal: {wrong}"
    if (later := _whole_frame_after(view, offset)) is not None:
        return f"{wrong}, and a whole frame follows at byte {later}"
    return None
