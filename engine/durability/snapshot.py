"""Snapshots of a pair's state: the pages in use of plain arrays, as they stood after a batch.

    folder/snapshot-<sequence, 20 digits>.state

    header (128 bytes, little endian 64-bit words)
       0  magic                  1  format version        2  sequence
       3  execution count        4  chain hash            5  state hash
       6  layout hash (signed)   7  identity (signed)     8  table bytes
       9  run count             10  body bytes           11  xxh3-64 over all that follows
      12 to 14 zero             15  xxh3-64 over words 0 to 14
    table (JSON: name and size of each array), padded to 8 bytes
    runs  (run count, 3) int64: index of the array, first byte in it, bytes
    body  the bytes of the runs, one after the other

The arrays may be very large and mostly never touched: only pages with something in them are kept,
and with the file descriptor of a segment the holes of its file are not even looked at, because
reading a hole of a memory file through its mapping allocates it.

Invariants: a file under its final name was complete and durable when it got the name; the newest
two are kept, so that a damaged newest one costs a longer replay and nothing else.

It does not know what the arrays mean, takes no lock and does not decide when to be called:
between two batches, by their owner.
"""

import json
import logging
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64, xxh3_64_intdigest

from engine.durability.frames import map_file
from engine.durability.journal import DurabilityError, sync_folder
from exchange.compiled import kernel

Array = npt.NDArray[Any]
Runs = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

MAGIC: Final = int.from_bytes(b"HFSTATE\n", "little")
FORMAT_VERSION: Final = 1
PAGE_BYTES: Final = 4096
KEPT_COUNT: Final = 2

_HEADER = struct.Struct("<6Q2q8Q")
_HEADER_BYTES = 128
_NAME = re.compile(r"snapshot-(\d{20})\.state")

_log = logging.getLogger(__name__)

assert _HEADER.size == _HEADER_BYTES


class SnapshotFailed(DurabilityError):
    """The disk did not take the snapshot; the ones before it are untouched."""


class SnapshotInvalid(DurabilityError):
    """The file is no whole snapshot of this state; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Image:
    """An array to keep, and where to look for what is in it.

    With `fd` (and the array's `offset_bytes` in that file) only the file's data extents are read.
    With `used_bytes` only so many first bytes are; the caller vouches that the rest is zero.
    """

    array: Array
    fd: int | None = None
    offset_bytes: int = 0
    used_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a snapshot says about itself; hashes are unsigned 64-bit unless said otherwise."""

    sequence: int
    """The last command applied."""
    execution_count: int
    """Executions in the log up to that command."""
    chain_hash: int
    """Of everything executed up to that command."""
    state_hash: int
    """Of the state, to be compared after `restore`."""
    layout_hash: int = 0
    """Of names, types and capacities; signed, as `exchange.ownership.Layout.hash`."""
    identity: int = 0
    """Which pair; signed, as the journal's."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A copy of the state, taken between two batches; `write` may run in another thread."""

    stamp: Stamp
    sizes: dict[str, int]
    runs: Runs
    body: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot found on disk, checked; `restore` brings it into arrays."""

    path: Path
    stamp: Stamp
    sizes: dict[str, int]
    runs: Runs
    body: memoryview


@kernel
def _find_runs(words: Words, extents: Runs, index: int, runs: Runs) -> int:
    """Put (index, first byte, bytes) of each run of used pages in the extents; return how many.

    An extent is (first byte, end); its pages are counted from its first byte. `runs` has room
    for every second page and one more of each extent.
    """
    count = 0
    for extent in range(len(extents)):
        stop = extents[extent, 1] // 8
        run_start = -1
        for page in range(extents[extent, 0] // 8, stop, PAGE_BYTES // 8):
            used = False
            for word in range(page, min(page + PAGE_BYTES // 8, stop)):
                if words[word] != 0:
                    used = True
                    break
            if used == (run_start >= 0):
                continue
            if used:
                run_start = page
            else:
                runs[count, 0], runs[count, 1] = index, run_start * 8
                runs[count, 2] = (page - run_start) * 8
                count += 1
                run_start = -1
        if run_start >= 0:
            runs[count, 0], runs[count, 1] = index, run_start * 8
            runs[count, 2] = (stop - run_start) * 8
            count += 1
    return count


@kernel
def _copy_runs(words: Words, runs: Runs, body: Words, position: int) -> int:
    """Copy the runs of one array to `position` in the body; return where they end there."""
    for run in range(len(runs)):
        first = runs[run, 1] // 8
        for index in range(first, first + runs[run, 2] // 8):
            body[position] = words[index]
            position += 1
    return position


def _extents(image: Image) -> Iterator[tuple[int, int]]:
    """Yield the (first byte, end) of what may hold something, whole pages of the file."""
    size_bytes = image.array.nbytes
    if image.fd is None:
        yield 0, size_bytes if image.used_bytes is None else min(image.used_bytes, size_bytes)
        return
    position, end = image.offset_bytes, image.offset_bytes + size_bytes
    while position < end:
        try:
            data = os.lseek(image.fd, position, os.SEEK_DATA)
        except OSError:
            return  # Nothing but a hole up to the end of the file.
        hole = os.lseek(image.fd, data, os.SEEK_HOLE)
        first = max(data, position) - image.offset_bytes
        if first < size_bytes:
            yield first, min(hole - image.offset_bytes, size_bytes)
        position = hole


def _words_of(name: str, image: Image) -> Words:
    array = image.array
    assert array.flags.c_contiguous, f"array {name} is not in C order"
    assert array.nbytes % 8 == 0, f"array {name} has {array.nbytes} bytes, not a multiple of 8"
    assert image.offset_bytes % 8 == 0, f"array {name} starts at byte {image.offset_bytes}"
    return array.reshape(-1).view(np.uint64)


def _runs_of(index: int, words: Words, image: Image) -> Runs:
    extents = np.array(list(_extents(image)), np.int64).reshape(-1, 2)
    extents[:, 1] = -(-extents[:, 1] // 8) * 8
    pages = int((extents[:, 1] - extents[:, 0]).sum()) // PAGE_BYTES
    runs = np.empty((pages // 2 + 2 * len(extents) + 1, 3), np.int64)
    return runs[: _find_runs(words, extents, index, runs)]


def capture(stamp: Stamp, images: Mapping[str, Array | Image]) -> Capture:
    """Copy what is in use of the arrays; the caller writes nothing meanwhile.

    `images` names each array (integers, C order, a multiple of 8 bytes). Needs as much memory as
    the pages in use.
    """
    given = [image if isinstance(image, Image) else Image(image) for image in images.values()]
    words = [_words_of(name, image) for name, image in zip(images, given, strict=True)]
    tables = [_runs_of(index, words[index], image) for index, image in enumerate(given)]
    runs = np.concatenate(tables)
    body = np.empty(int(runs[:, 2].sum()) // 8, np.uint64)
    position = 0
    for one, table in zip(words, tables, strict=True):
        position = _copy_runs(one, table, body, position)
    sizes = {name: image.array.nbytes for name, image in zip(images, given, strict=True)}
    return Capture(stamp, sizes, runs, body.view(np.uint8))


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def write(folder: Path, captured: Capture) -> Path:
    """Put a capture on disk, keep the newest two snapshots, return the file.

    Raises SnapshotFailed if the disk does not take it; nothing is left of it then.
    """
    path = folder / f"snapshot-{captured.stamp.sequence:020}.state"
    unfinished = path.with_suffix(".unfinished")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob("snapshot-*.unfinished"):
            left.unlink()
        _write_file(unfinished, captured)
        unfinished.replace(path)
        sync_folder(folder)
        for sequence in sequences(folder)[:-KEPT_COUNT]:
            (folder / f"snapshot-{sequence:020}.state").unlink()
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise SnapshotFailed(f"{path} cannot be written: {error.strerror}") from error
    return path


def _write_file(path: Path, captured: Capture) -> None:
    table = json.dumps(captured.sizes).encode()
    table = table.ljust(-(-len(table) // 8) * 8)
    parts = [memoryview(table), _bytes_of(captured.runs), _bytes_of(captured.body)]
    digest = xxh3_64()
    for part in parts:
        digest.update(part)
    stamp = captured.stamp
    words = _HEADER.pack(
        *(MAGIC, FORMAT_VERSION, stamp.sequence, stamp.execution_count),
        *(int(stamp.chain_hash), int(stamp.state_hash), stamp.layout_hash, stamp.identity),
        *(len(table), len(captured.runs), captured.body.nbytes, digest.intdigest()),
        *(0, 0, 0, 0),
    )
    checksum = xxh3_64_intdigest(words[:-8]).to_bytes(8, "little")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for part in (memoryview(words[:-8] + checksum), *parts):
            written = 0
            while written < len(part):
                written += os.write(fd, part[written:])
        os.fsync(fd)
    finally:
        os.close(fd)


def write_snapshot(folder: Path, stamp: Stamp, images: Mapping[str, Array | Image]) -> Path:
    """Capture and write in one step; returns the file, durable."""
    return write(folder, capture(stamp, images))


def sequences(folder: Path) -> list[int]:
    """Return the sequences of the snapshots in a folder, oldest first, unchecked.

    The journal must reach back to the first of them, so that the last one may turn out damaged.
    """
    found = (_NAME.fullmatch(path.name) for path in folder.glob("snapshot-*.state"))
    return sorted(int(match[1]) for match in found if match)


def newest_snapshot(folder: Path, *, layout_hash: int = 0, identity: int = 0) -> Snapshot | None:
    """Return the newest whole snapshot of this layout and pair, or None.

    One that is damaged or of another layout is passed over with a warning that says why.
    """
    for sequence in reversed(sequences(folder)):
        path = folder / f"snapshot-{sequence:020}.state"
        try:
            return read_snapshot(path, layout_hash=layout_hash, identity=identity)
        except (SnapshotInvalid, OSError) as error:
            _log.warning("passing over a snapshot: %s", error)
    return None


def read_snapshot(path: Path, *, layout_hash: int = 0, identity: int = 0) -> Snapshot:
    """Return the snapshot in a file; raises SnapshotInvalid with a sentence if it is not whole."""
    view = map_file(path)
    if len(view) < _HEADER_BYTES:
        raise SnapshotInvalid(f"{path} has {len(view)} bytes, less than a header")
    words = _HEADER.unpack_from(view)
    if words[0] != MAGIC:
        raise SnapshotInvalid(f"{path} is no snapshot: it begins with {words[0]:#x}")
    if words[1] != FORMAT_VERSION:
        raise SnapshotInvalid(f"{path} has format version {words[1]}, this program reads version 1")
    if xxh3_64_intdigest(view[: _HEADER_BYTES - 8]) != words[15]:
        raise SnapshotInvalid(f"{path}: the header does not have the checksum written in it")
    stamp = Stamp(*words[2:8])
    if path.name != f"snapshot-{stamp.sequence:020}.state":
        raise SnapshotInvalid(f"{path} holds the state after sequence {stamp.sequence}")
    if stamp.layout_hash != layout_hash:
        raise SnapshotInvalid(
            f"{path} has layout {stamp.layout_hash:#x}, this program has {layout_hash:#x}"
        )
    if stamp.identity != identity:
        raise SnapshotInvalid(f"{path} belongs to {stamp.identity:#x}, this pair is {identity:#x}")
    table_bytes, run_count, body_bytes, checksum = words[8:12]
    runs_at = _HEADER_BYTES + table_bytes
    body_at = runs_at + run_count * 24
    if body_at + body_bytes != len(view):
        raise SnapshotInvalid(
            f"{path} has {len(view)} bytes, its header says {body_at + body_bytes}"
        )
    if xxh3_64_intdigest(view[_HEADER_BYTES:]) != checksum:
        raise SnapshotInvalid(f"{path}: the content does not have the checksum in its header")
    sizes = json.loads(bytes(view[_HEADER_BYTES:runs_at]))
    runs = np.frombuffer(view, np.int64, run_count * 3, runs_at).reshape(-1, 3)
    return Snapshot(path, stamp, sizes, runs, view[body_at:])


def restore(snapshot: Snapshot, arrays: Mapping[str, Array]) -> None:
    """Write a snapshot into zeroed arrays of the same names and sizes.

    The arrays must be all zero before: pages that were zero are not written. Raises
    SnapshotInvalid, before anything is written, if names or sizes differ.
    """
    given = {name: array.nbytes for name, array in arrays.items()}
    if given != snapshot.sizes:
        raise SnapshotInvalid(
            f"{snapshot.path} holds arrays of {snapshot.sizes} bytes, wanted are {given}"
        )
    targets = [_words_of(name, Image(arrays[name])).view(np.uint8) for name in snapshot.sizes]
    body = np.frombuffer(snapshot.body, np.uint8)
    position = 0
    for index, first, size in snapshot.runs.tolist():
        targets[index][first : first + size] = body[position : position + size]
        position += size
