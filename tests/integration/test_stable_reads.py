"""No read of a book segment is ever torn: the kernel at full speed in one process, readers here.

`HOLDFAST_READS=100000000` reads each publication so often; the common form reads a million times.
The readers are those of the gateway. Every accepted copy is compared word for word with what the
kernel must have published under its name (`repeating_market`); tries that gave no copy because
the writer was at work are counted.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest

from exchange import book_layout as layout
from exchange.atomics import load_acquire
from exchange.compiled import kernel
from exchange.ownership import Borrowed
from exchange.seqlock import read_stable, read_unchecked
from mdgateway.book import stable
from tests.integration.repeating_market import (
    INSTRUMENT,
    Expected,
    book_is_wrong,
    depth_is_wrong,
    event_is_wrong,
    expect,
    touch_is_wrong,
)

pytestmark = pytest.mark.integration

Rows = Any

READS: Final = int(os.environ.get("HOLDFAST_READS", "1000000"))
DIFFERENT: Final = 10_000
"""How often a copy has to be another than the one before."""
ATTEMPTS_EACH: Final = 1_000
"""Attempts for each read that is wanted, before the writer is said to leave no room."""
ROOT: Final = Path(__file__).resolve().parents[2]

# Tallies, by index.
READ, TORN, FRUITLESS, CHANGED, LOST = range(5)


@kernel
def read_touches(
    book: Rows, expected: Expected, wanted: int, different: int, limit: int, tally: Rows
) -> None:
    """Read the touch, checked by its version."""
    touch, out, last = book.touch, np.zeros(layout.TOUCH_WORDS, np.int64), 0
    for _ in range(limit):
        if tally[READ] >= wanted and tally[CHANGED] >= different:
            break
        if not read_stable(touch, layout.TOUCH_VERSION, touch, out, 1):
            tally[FRUITLESS] += 1
            continue
        tally[READ] += 1
        tally[TORN] += touch_is_wrong(out, expected)
        tally[CHANGED] += out[layout.TOUCH_SEQUENCE] != last
        last = out[layout.TOUCH_SEQUENCE]


@kernel
def read_depth_copies(
    book: Rows, expected: Expected, wanted: int, different: int, limit: int, tally: Rows
) -> None:
    """Read the newest depth copy, checked by its commit word."""
    out, last = np.zeros(book.depth.shape[1], np.int64), 0
    for _ in range(limit):
        if tally[READ] >= wanted and tally[CHANGED] >= different:
            break
        number = stable.copy_depth(book.scalars, book.depth, out, 1)
        if number == 0:
            tally[FRUITLESS] += 1
            continue
        tally[READ] += 1
        tally[TORN] += depth_is_wrong(out, number, expected) or number < last
        tally[CHANGED] += number != last
        last = number


@kernel
def read_events(
    book: Rows, expected: Expected, wanted: int, different: int, limit: int, tally: Rows
) -> None:
    """Read every event once, checked by its commit word; what was overwritten is counted."""
    out, result = (
        np.zeros((64, layout.EVENT_WORDS), np.int64),
        np.zeros(stable.RESULT_WORDS, np.int64),
    )
    cursor = load_acquire(book.scalars, layout.EVENT_HEAD)
    for _ in range(limit):
        if tally[READ] >= wanted:
            break
        stable.drain_events(book.scalars, book.events, cursor, 1 << 62, out, result)
        drained, after = result[stable.DRAINED], result[stable.NEXT_POSITION]
        tally[FRUITLESS] += drained == 0
        tally[LOST] += result[stable.LOST]
        # What was not read was counted, to the event.
        tally[TORN] += after - drained != cursor + result[stable.LOST]
        for index in range(drained):
            tally[TORN] += event_is_wrong(out[index], after - drained + index, expected)
        tally[READ] += drained
        tally[CHANGED] += drained
        cursor = after


@kernel
def read_books(
    book: Rows, expected: Expected, wanted: int, different: int, limit: int, tally: Rows
) -> None:
    """Copy the levels the kernel works on, checked by the book's version."""
    room = (book.depth.shape[1] - layout.DEPTH_HEADER_WORDS) // 2
    sides = np.zeros((2, room // layout.DEPTH_LEVEL_WORDS, layout.DEPTH_LEVEL_WORDS), np.int64)
    result, last = np.zeros(stable.RESULT_WORDS, np.int64), 0
    for _ in range(limit):
        if tally[READ] >= wanted and tally[CHANGED] >= different:
            break
        if not stable.copy_book(
            book.scalars,
            book.levels,
            book.bits3,
            book.bits2,
            book.bits1,
            book.bits0,
            sides[0],
            sides[1],
            result,
            1,
        ):
            tally[FRUITLESS] += 1
            continue
        tally[READ] += 1
        tally[TORN] += book_is_wrong(sides, result, expected)
        tally[CHANGED] += result[stable.COPIED_SEQUENCE] != last
        last = result[stable.COPIED_SEQUENCE]


@kernel
def find_torn_touch(book: Rows, expected: Expected, limit: int) -> int:
    """Read the touch without looking at its version; return how many reads the first torn took."""
    out = np.zeros(layout.TOUCH_WORDS, np.int64)
    for reads in range(limit):
        read_unchecked(book.touch, out)
        if touch_is_wrong(out, expected):
            return reads + 1
    return 0


@kernel
def find_torn_depth_copy(book: Rows, expected: Expected, limit: int) -> int:
    """Read depth copies that are due next without looking at their commit words."""
    out = np.zeros(book.depth.shape[1], np.int64)
    for reads in range(limit):
        number = load_acquire(book.scalars, layout.DEPTH_HEAD) + 1
        read_unchecked(book.depth[number % book.depth.shape[0]], out)
        if out[layout.DEPTH_COMMIT] > 0 and depth_is_wrong(out, out[layout.DEPTH_COMMIT], expected):
            return reads + 1
    return 0


@kernel
def find_torn_event(book: Rows, expected: Expected, limit: int) -> int:
    """Read the events that are due next without looking at their commit words."""
    out = np.zeros(layout.EVENT_WORDS, np.int64)
    for reads in range(limit):
        position = load_acquire(book.scalars, layout.EVENT_HEAD)
        read_unchecked(book.events[position & (book.events.shape[0] - 1)], out)
        if out[layout.EVENT_COMMIT] > 0 and event_is_wrong(
            out, out[layout.EVENT_COMMIT] - 1, expected
        ):
            return reads + 1
    return 0


@kernel
def find_torn_book(book: Rows, expected: Expected, limit: int) -> int:
    """Look at the levels a book of this sequence has, without looking at the book's version."""
    side_words = (book.depth.shape[1] - layout.DEPTH_HEADER_WORDS) // 2
    words = expected.depth
    for reads in range(limit):
        index = load_acquire(book.scalars, layout.BOOK_SEQUENCE) - expected.sequence - 1
        batch = expected.batch_at[index % expected.batch_at.shape[0]]
        different = 0
        for side in range(2):
            at = layout.DEPTH_HEADER_WORDS + side * side_words
            for _ in range(words.first[batch, layout.DEPTH_BID_COUNT + side]):
                tick, lots = words.first[batch, at], words.first[batch, at + 1]
                level = book.levels[side * (book.levels.shape[0] // 2) + tick]
                different |= level[layout.LEVEL_LOTS] - lots
                at += layout.DEPTH_LEVEL_WORDS
        if different:
            return reads + 1
    return 0


class Book(NamedTuple):
    """The arrays of a borrowed segment, as the readers take them."""

    scalars: Rows
    touch: Rows
    depth: Rows
    events: Rows
    levels: Rows
    bits0: Rows
    bits1: Rows
    bits2: Rows
    bits3: Rows


@pytest.fixture(scope="module")
def expected() -> Expected:
    return expect()


@pytest.fixture(scope="module")
def book() -> Iterator[Book]:
    """Borrow the book of a writer on a core of its own, as far as there are two."""
    available = sorted(os.sched_getaffinity(0))
    core = (str(available[0]),) if len(available) > 1 else ("",)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="holdfast-test-") as directory:
        module = "tests.integration.repeating_market"
        command = [sys.executable, "-m", module, directory, *core]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "running\n"
            os.sched_setaffinity(0, available[1:] or available)
            name, fields = (
                layout.segment_name(INSTRUMENT.pair, "book"),
                layout.book_layout(INSTRUMENT),
            )
            with Borrowed.open(name, fields, directory=directory) as borrowed:
                yield Book(*(borrowed[field] for field in Book._fields))
            assert writer.poll() is None, "the writer wrote to the end"
        finally:
            os.sched_setaffinity(0, available)
            writer.kill()
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()


KINDS: Final = {
    "touch": (read_touches, find_torn_touch),
    "depth copy": (read_depth_copies, find_torn_depth_copy),
    "event": (read_events, find_torn_event),
    "book": (read_books, find_torn_book),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_accepted_read_is_torn(kind: str, book: Book, expected: Expected) -> None:
    read, find_torn = KINDS[kind]
    tally, nothing = np.zeros(5, np.int64), np.zeros(5, np.int64)
    read(book, expected, 0, 0, 0, nothing)  # Compiled before the time is taken.
    head, started_ns = int(book.scalars[layout.DEPTH_HEAD]), time.monotonic_ns()
    read(book, expected, READS, DIFFERENT, ATTEMPTS_EACH * READS, tally)
    spent_s = (time.monotonic_ns() - started_ns) / 1e9
    batches = int(book.scalars[layout.DEPTH_HEAD]) - head
    read_count, torn, fruitless, changed, lost = tally.tolist()
    print(
        f"{kind}: {read_count} read in {spent_s:.1f} s ({read_count / spent_s:.0f}/s), {torn} torn,"
        f" {fruitless} tries without any, {changed} another than before, {lost} lost,"
        f" beside {batches / spent_s:.0f} batches/s"
    )
    assert torn == 0
    assert (read_count >= READS, changed >= DIFFERENT, fruitless > 0) == (True, True, True), tally
    # The same without the check finds a torn one, so the test could have failed.
    assert find_torn(book, expected, ATTEMPTS_EACH * READS) > 0
