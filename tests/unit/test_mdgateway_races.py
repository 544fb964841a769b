"""No copy is ever torn: a writer at full speed against the reader, with memory made for collisions.

The ring is the shortest and the depth copies are the largest and fewest, so that the reader works
right where the writer does; with the second look at a commit word or version taken out, each of
these tests fails.
"""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from exchange import book_layout as layout
from exchange.atomics import fence_release, load_acquire, store_relaxed, store_release
from exchange.compiled import kernel
from mdgateway.book.depth import Rows
from mdgateway.book.reader import BookReader, EventRun
from tests.unit.market_data_writer import INSTRUMENT, Writer

CONTESTED = dataclasses.replace(
    INSTRUMENT, event_capacity=64, depth_level_count=1_000, depth_copy_count=2
)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path, CONTESTED)
    yield writer
    writer.close()


@pytest.fixture
def reader(writer: Writer) -> Iterator[BookReader]:
    reader = BookReader(CONTESTED, writer.directory, level_capacity=64)
    assert reader.open()
    yield reader
    reader.close()


@kernel
def _write_ring(scalars: Rows, events: Rows, control: Rows, count: int) -> None:
    """Write `count` events whose words all follow from their position."""
    capacity = events.shape[0]
    for position in range(count):
        row = events[position & (capacity - 1)]
        store_relaxed(row, 0, -1)
        fence_release()
        for word in range(1, 8):
            row[word] = position * word
        store_release(row, 0, position + 1)
        store_release(scalars, layout.EVENT_HEAD, position + 1)
        if load_acquire(control, 0):
            break


@kernel
def _write_books(
    scalars: Rows, levels: Rows, depth: Rows, control: Rows, first: int, count: int
) -> None:
    """Rewrite a depth copy and ten levels again and again, all words from one number."""
    for number in range(first, first + count):
        row = depth[number % depth.shape[0]]
        store_relaxed(row, 0, -1)
        fence_release()
        for word in range(1, row.shape[0]):
            row[word] = number
        row[layout.DEPTH_BID_COUNT] = (row.shape[0] - layout.DEPTH_HEADER_WORDS) // 6
        row[layout.DEPTH_ASK_COUNT] = row[layout.DEPTH_BID_COUNT]
        store_release(row, 0, number)
        store_release(scalars, layout.DEPTH_HEAD, number)
        version = scalars[layout.BOOK_VERSION]
        store_relaxed(scalars, layout.BOOK_VERSION, version + 1)
        fence_release()
        for tick in range(128, 138):
            levels[tick, 0] = number
            levels[tick, 1] = number
        scalars[layout.BOOK_SEQUENCE] = number
        store_release(scalars, layout.BOOK_VERSION, version + 2)
        if load_acquire(control, 0):
            break


def test_no_event_is_torn_or_missed_without_notice(writer: Writer, reader: BookReader) -> None:
    control, a = np.zeros(1, np.int64), writer.arrays
    arguments = (a["scalars"], a["events"], control)
    _write_ring(*arguments, 0)
    thread = threading.Thread(target=_write_ring, args=(*arguments, 1 << 40), daemon=True)
    cursor = taken = lost = 0
    thread.start()
    try:
        while taken < 1_000_000:
            run = reader.events(cursor, 1 << 62)
            check_run(run, cursor)
            taken, lost, cursor = taken + len(run.rows), lost + run.lost, run.next_position
    finally:
        store_and_join(control, thread)
    while cursor < reader.event_head():
        run = reader.events(cursor, 1 << 62)
        check_run(run, cursor)
        taken, lost, cursor = taken + len(run.rows), lost + run.lost, run.next_position
    assert lost > 0, "the writer lapped the reader"
    assert taken + lost == reader.event_head()


def check_run(run: EventRun, cursor: int) -> None:
    """Check every word of a run against its position, and that the loss accounts for the hole."""
    positions = np.arange(run.position, run.next_position)
    for word in range(1, 8):
        assert (run.rows[:, word] == positions * word).all()
    assert (run.rows[:, 0] == positions + 1).all()
    assert run.position == cursor + run.lost


def test_no_copy_of_a_book_is_torn(writer: Writer, reader: BookReader) -> None:
    control, a = np.zeros(1, np.int64), writer.arrays
    for tick in range(128, 138):
        a["bits0"][0, tick >> 6] |= np.uint64(1 << (tick & 63))
    for bits in "bits1", "bits2", "bits3":
        a[bits][0, 0] = 1 if bits != "bits1" else np.uint64(1 << 2)
    arguments = (a["scalars"], a["levels"], a["depth"], control)
    _write_books(*arguments, 1, 1)
    thread = threading.Thread(target=_write_books, args=(*arguments, 2, 1 << 40), daemon=True)
    thread.start()
    books = depths = 0
    newest = 0
    try:
        for _ in range(20_000):
            copy = reader.book_copy()
            if copy is not None:
                books += 1
                assert copy.bids[:, 0].tolist() == list(range(137, 127, -1))
                assert (copy.bids[:, 1:] == copy.sequence).all()
            depth = reader.depth_copy()
            if depth is not None:
                depths += 1
                assert (depth.bids == depth.sequence).all()
                assert (depth.asks == depth.sequence).all()
                assert depth.sequence >= newest
                newest = depth.sequence
    finally:
        store_and_join(control, thread)
    assert books > 0
    assert depths > 0
    assert newest > 1, "the writer wrote while the reader read"


def store_and_join(control: Rows, thread: threading.Thread) -> None:
    """Tell a writing thread to stop and wait until it did."""
    control[0] = 1
    thread.join()
