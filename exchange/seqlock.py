"""Publication by one writer to readers that write nothing: version counters and rings of copies.

A *seqlock record* is a row of 64-bit words with a version word elsewhere: odd while the row is
being written, even when it is stable. A reader copies, then checks that the version did not move.
Cheap for small records; a reader of a large one starves under a fast writer, and a writer that
dies inside the section leaves the version odd for its successor to repair (`needs_repair`).

A *ring of copies* keeps the last K complete records, each under its own commit word, and a head
that names the newest. A writer killed at any instruction leaves every earlier copy readable, and
a reader fails only if the writer laps the whole ring during one copy-out.

Invariants: versions are 64-bit and only grow; an accepted copy is one that the writer published
as a whole; every loop is bounded. Readers work on read-only mappings.

Everything here is compiled, callable from Python and from other kernels. Arrays are C-contiguous
int64; `record` and `out` are one-dimensional and equally long. Not here: more than one writer.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from exchange.atomics import (
    Words,
    fence_acquire,
    fence_release,
    load_acquire,
    load_relaxed,
    pause,
    store_relaxed,
    store_release,
)
from exchange.compiled import inlined, kernel

COPY_HEAD_WORDS: Final = 8
"""Words before the record in each row of a ring of copies: the commit word on its own line."""

Rows = npt.NDArray[np.int64]


@inlined
def write_begin(words: Words, index: int) -> None:
    """Make the version odd before the first write to its record.

    A version left odd by a dead writer stays odd: nobody has accepted anything under it.
    """
    store_relaxed(words, index, load_relaxed(words, index) | 1)
    # The odd version must be visible before any of the writes that follow.
    fence_release()


@inlined
def write_end(words: Words, index: int) -> None:
    """Make the version even after the last write to its record."""
    store_release(words, index, load_relaxed(words, index) + 1)


@inlined
def copy_words(source: Words, out: Words) -> None:
    """Copy as many words as `out` has; the compiler makes one vector copy of it."""
    for i in range(out.shape[0]):
        out[i] = source[i]


@kernel
def needs_repair(words: Words, index: int) -> bool:
    """Say whether the last writer died inside its section: the record must be written anew."""
    return load_acquire(words, index) & 1 == 1


@kernel
def write_record(words: Words, index: int, target: Words, record: Words) -> None:
    """Replace the record `target` under its version; also the repair after a writer's death."""
    write_begin(words, index)
    copy_words(record, target)
    write_end(words, index)


@kernel
def read_stable(words: Words, version_index: int, source: Words, out: Words, tries: int) -> bool:
    """Copy `source` into `out` as one published whole; False if no try succeeded.

    On False the content of `out` is meaningless. Never index or branch with `out` before this
    returned True.
    """
    for _ in range(tries):
        version = load_acquire(words, version_index)
        if version & 1 == 0:
            copy_words(source, out)
            # Keeps the copy before the second look; an acquire load there would not.
            fence_acquire()
            if load_relaxed(words, version_index) == version:
                return True
        pause()
    return False


@kernel
def read_unchecked(source: Words, out: Words) -> None:
    """Copy without looking at any version: the copy may be torn.

    It exists so that a test can show that torn reads happen when nobody checks.
    """
    copy_words(source, out)
    fence_acquire()


@kernel
def publish_copy(words: Words, head_index: int, copies: Rows, record: Words) -> None:
    """Publish `record` as the newest copy and advance the head.

    `copies` has K rows (a power of two, at least 2) of COPY_HEAD_WORDS + len(record) words;
    `words[head_index]` counts copies ever published, zero at first. A successor of a dead writer
    just goes on: the row that was half written is the one it writes next.
    """
    number = load_relaxed(words, head_index) + 1
    row = copies[number & (copies.shape[0] - 1)]
    store_relaxed(row, 0, -1)
    fence_release()
    copy_words(record, row[COPY_HEAD_WORDS:])
    store_release(row, 0, number)
    store_release(words, head_index, number)


@inlined
def _take_copy(row: Words, number: int, out: Words) -> bool:
    if load_acquire(row, 0) != number:
        return False
    copy_words(row[COPY_HEAD_WORDS:], out)
    fence_acquire()
    return load_relaxed(row, 0) == number


@kernel
def read_copy(words: Words, head_index: int, copies: Rows, out: Words, tries: int) -> int:
    """Copy the newest complete record into `out`; return its number, zero if there is none.

    Zero also means that the writer lapped the ring in every one of `tries` attempts.
    """
    mask = copies.shape[0] - 1
    for _ in range(tries):
        number = load_acquire(words, head_index)
        if number <= 0:
            return 0
        if _take_copy(copies[number & mask], number, out):
            return number
        pause()
    return 0
