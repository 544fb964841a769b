"""A bounded queue from one process to another, where each word in memory has one writer.

    producer's segment                              consumer's segment
    control[0]    tail: positions published         cursors[i]  positions released
    records       (capacity, words), row = position & (capacity - 1)

The producer owns the records and the tail and borrows the cursor; the consumer owns its cursor
and borrows records and tail, read-only. A position is an absolute 64-bit count that never wraps:
tail - cursor is what waits, capacity less that is what is free. A record belongs to the producer
before `commit` and to the consumer until `release`.

Invariants: cursor <= tail <= cursor + capacity; a record is complete before the tail passes it;
it is overwritten only after its release. Both ends survive the death of the other: tail and
cursor lie in the segments, so a successor goes on where the dead left off, and a record that was
being written is simply not published. A counter of the other side that breaks the first invariant
is refused (BROKEN, RingBroken), never followed.

Each end remembers the other's counter in a private word and looks at shared memory again only
when the remembered one is not enough. The compiled functions are meant for use inside kernels as
well. Not here: waiting (see `exchange.doorbell`), more than one producer or consumer.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from exchange import atomics
from exchange.atomics import Words, load_acquire, load_relaxed, store_release
from exchange.compiled import kernel
from exchange.segment import Field, Layout

TAIL: Final = 0
"""Word of `control`: how many records were ever published."""
PRODUCER_ASLEEP: Final = 8
"""Word of `control`: one while the producer, as a follower of answers, waits for its bell."""
CONTROL_WORDS: Final = 64
CACHE_WORDS: Final = 8
"""Length of the private array in which an end remembers the other's counter."""
BROKEN: Final = -1
"""Answer of the compiled functions to a counter that cannot be true."""

Rows = npt.NDArray[np.int64]


class RingBroken(Exception):
    """The other side's counter is outside of what the ring can hold."""


def ring_layout(name: str, capacity: int, record_words: int) -> Layout:
    """Return the layout of a producer's segment: `control` and `records`."""
    assert capacity >= 2, f"ring capacity {capacity} is below 2"
    assert capacity & (capacity - 1) == 0, f"ring capacity {capacity} is not a power of two"
    return Layout(
        name,
        1,
        [
            Field("control", "int64", CONTROL_WORDS),
            Field("records", "int64", (capacity, record_words)),
        ],
    )


@kernel
def free_rows(
    control: Words, records: Rows, cursors: Words, cursor_index: int, cache: Words, wanted: int
) -> int:
    """Return how many records the producer may write: all it knows of, up to `capacity`.

    `cache[0]` is the producer's private copy of the cursor, zero at first; shared memory is asked
    only if it leaves fewer than `wanted`. Returns BROKEN if the cursor cannot be true.
    """
    capacity = records.shape[0]
    tail = load_relaxed(control, TAIL)
    free: int = capacity - (tail - cache[0])
    if free < max(wanted, 1):
        cursor = load_acquire(cursors, cursor_index)
        free = capacity - (tail - cursor)
        if free < 0 or free > capacity:
            return BROKEN
        cache[0] = cursor
    return free


@kernel
def push_rows(
    control: Words,
    records: Rows,
    cursors: Words,
    cursor_index: int,
    cache: Words,
    rows: Rows,
    count: int,
) -> int:
    """Publish the first rows of `rows`, as many of `count` as there is room for; return how many.

    `rows` is (n, record words). Returns BROKEN, having written nothing, if the cursor cannot be
    true.
    """
    free = free_rows(control, records, cursors, cursor_index, cache, count)
    if free < 0:
        return BROKEN
    count = min(count, free)
    mask = records.shape[0] - 1
    tail = load_relaxed(control, TAIL)
    for i in range(count):
        target = records[(tail + i) & mask]
        source = rows[i]
        for word in range(target.shape[0]):
            target[word] = source[word]
    store_release(control, TAIL, tail + count)
    return count


@kernel
def waiting_rows(control: Words, records: Rows, position: int, cache: Words, wanted: int) -> int:
    """Return how many records are published at and after `position`, as far as known.

    `cache[0]` is the consumer's private copy of the tail; shared memory is asked only if it shows
    fewer than `wanted`. Returns BROKEN if the tail cannot be true.
    """
    waiting: int = cache[0] - position
    if waiting < max(wanted, 1):
        tail = load_acquire(control, TAIL)
        waiting = tail - position
        if waiting < 0 or waiting > records.shape[0]:
            return BROKEN
        cache[0] = tail
    return waiting


@kernel
def take_rows(
    control: Words, records: Rows, position: int, cache: Words, out: Rows, limit: int
) -> int:
    """Copy up to `limit` records from `position` on into `out` without releasing them.

    Returns how many were copied, or BROKEN. Release them, once they are safe elsewhere, by a
    release store of `position + count` to the cursor.
    """
    waiting = waiting_rows(control, records, position, cache, limit)
    if waiting < 0:
        return BROKEN
    count = min(limit, waiting)
    mask = records.shape[0] - 1
    for i in range(count):
        source = records[(position + i) & mask]
        target = out[i]
        for word in range(target.shape[0]):
            target[word] = source[word]
    return count


@kernel
def drain_rows(
    control: Words,
    records: Rows,
    cursors: Words,
    cursor_index: int,
    cache: Words,
    out: Rows,
    limit: int,
) -> int:
    """Copy up to `limit` records into `out` and release them; return how many, or BROKEN."""
    position = load_relaxed(cursors, cursor_index)
    count = take_rows(control, records, position, cache, out, limit)
    if count > 0:
        store_release(cursors, cursor_index, position + count)
    return count


class RingProducer:
    """The writing end: owns `tail_words` (a ring's control array) and `records`.

    Rows between `reserve` and `commit` are written in place: row of a position is
    `records[position & (capacity - 1)]`.
    """

    def __init__(
        self, tail_words: Words, records: Rows, cursor_words: Words, cursor_index: int
    ) -> None:
        capacity = records.shape[0]
        assert capacity & (capacity - 1) == 0, f"ring capacity {capacity} is not a power of two"
        self.control = tail_words
        self.records = records
        self.cursors = cursor_words
        self.cursor_index = cursor_index
        self.capacity = capacity
        self.cache = np.zeros(CACHE_WORDS, np.int64)
        self.cache[0] = atomics.load(tail_words, TAIL) - capacity

    @property
    def tail(self) -> int:
        """How many records were ever published: the position of the next one."""
        return atomics.load(self.control, TAIL)

    def _refuse(self) -> RingBroken:
        return RingBroken(
            f"consumer's cursor {atomics.load(self.cursors, self.cursor_index)} does not fit"
            f" tail {self.tail} and capacity {self.capacity}"
        )

    def _free(self, wanted: int) -> int:
        free = free_rows(
            self.control, self.records, self.cursors, self.cursor_index, self.cache, wanted
        )
        if free < 0:
            raise self._refuse()
        return free

    def free(self) -> int:
        """Return how many records can be written now. Raises RingBroken."""
        return self._free(self.capacity)

    def reserve(self, count: int) -> tuple[int, int]:
        """Return (position, granted): up to `count` rows to fill, none if the ring is full."""
        return self.tail, min(count, self._free(count))

    def commit(self, position: int) -> None:
        """Publish every record before `position`; they belong to the consumer from here on."""
        advance = position - self.tail
        assert 0 <= advance <= self.capacity, f"commit to {position} from tail {self.tail}"
        atomics.store(self.control, TAIL, position)

    def push(self, rows: Rows) -> int:
        """Copy and publish as many of `rows`, from the first on, as fit; return how many."""
        assert rows.ndim == 2, f"rows of shape {rows.shape} are not two-dimensional"
        assert rows.shape[1] == self.records.shape[1], f"rows of {rows.shape[1]} words do not fit"
        count = push_rows(
            self.control,
            self.records,
            self.cursors,
            self.cursor_index,
            self.cache,
            rows,
            len(rows),
        )
        if count < 0:
            raise self._refuse()
        return count


class RingConsumer:
    """The reading end: owns `cursor_words[cursor_index]`, borrows tail and records."""

    def __init__(
        self, tail_words: Words, records: Rows, cursor_words: Words, cursor_index: int
    ) -> None:
        capacity = records.shape[0]
        assert capacity & (capacity - 1) == 0, f"ring capacity {capacity} is not a power of two"
        self.control = tail_words
        self.records = records
        self.cursors = cursor_words
        self.cursor_index = cursor_index
        self.capacity = capacity
        self.cache = np.zeros(CACHE_WORDS, np.int64)
        self.cache[0] = self.cursor

    @property
    def cursor(self) -> int:
        """How many records were ever released: the position of the next one."""
        return atomics.load(self.cursors, self.cursor_index)

    def _refuse(self) -> RingBroken:
        return RingBroken(
            f"producer's tail {atomics.load(self.control, TAIL)} does not fit cursor"
            f" {self.cursor} and capacity {self.capacity}"
        )

    def peek(self) -> tuple[int, int]:
        """Return (position, count) of the records that wait. Raises RingBroken.

        They stay readable in place, and are not overwritten, until they are released.
        """
        position = self.cursor
        count = waiting_rows(self.control, self.records, position, self.cache, self.capacity)
        if count < 0:
            raise self._refuse()
        return position, count

    def release(self, position: int) -> None:
        """Give every record before `position` back to the producer."""
        advance = position - self.cursor
        waiting = atomics.load(self.control, TAIL) - self.cursor
        assert 0 <= advance <= waiting, f"release of {position} from cursor {self.cursor}"
        atomics.store(self.cursors, self.cursor_index, position)

    def drain(self, out: Rows) -> int:
        """Copy up to `len(out)` waiting records into `out` and release them; return how many."""
        assert out.ndim == 2, f"out of shape {out.shape} is not two-dimensional"
        assert out.shape[1] == self.records.shape[1], f"out of {out.shape[1]} words does not fit"
        count = drain_rows(
            self.control, self.records, self.cursors, self.cursor_index, self.cache, out, len(out)
        )
        if count < 0:
            raise self._refuse()
        return count
