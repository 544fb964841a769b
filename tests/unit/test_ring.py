"""The ring between two owners: order, bounds, and counters that cannot be true."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core.errors import TypingError

from exchange.atomics import pause
from exchange.compiled import kernel
from exchange.ring import (
    BROKEN,
    CACHE_WORDS,
    CONTROL_WORDS,
    PRODUCER_ASLEEP,
    TAIL,
    RingBroken,
    RingConsumer,
    RingProducer,
    drain_rows,
    free_rows,
    push_rows,
    ring_layout,
    take_rows,
)

CAPACITY = 8
WORDS = 3
CURSOR = 16


class Ring:
    """Both ends over private memory; a cursor that is not the first word of its array."""

    def __init__(self, capacity: int = CAPACITY, start: int = 0) -> None:
        layout = ring_layout("test", capacity, WORDS)
        arrays = layout.arrays(bytearray(layout.size_bytes))
        self.control, self.records = arrays["control"], arrays["records"]
        self.cursors = np.zeros(64, np.int64)
        self.control[TAIL] = self.cursors[CURSOR] = start
        self.producer = RingProducer(self.control, self.records, self.cursors, CURSOR)
        self.consumer = RingConsumer(self.control, self.records, self.cursors, CURSOR)


def rows(first: int, count: int) -> Any:
    return np.arange(first, first + count, dtype=np.int64)[:, None] * [1, 10, 100]


def test_layout_keeps_the_flags_on_lines_of_their_own() -> None:
    layout = ring_layout("inbox", 1024, 8)
    assert dict(layout.offsets) == {"control": 4096, "records": 4096 + 512}
    assert layout.size_bytes == 73_728
    assert (TAIL, PRODUCER_ASLEEP, CONTROL_WORDS) == (0, 8, 64)
    assert layout.hash != ring_layout("inbox", 2048, 8).hash


@pytest.mark.parametrize("capacity", [0, 1, 3, 1000])
def test_a_capacity_that_is_no_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises(AssertionError, match=f"capacity {capacity}"):
        ring_layout("test", capacity, WORDS)


def test_records_come_out_as_they_went_in_until_the_ring_is_full() -> None:
    ring = Ring()
    assert ring.producer.push(rows(0, 5)) == 5
    assert ring.producer.push(rows(5, 5)) == 3
    assert (ring.producer.free(), ring.producer.push(rows(8, 1))) == (0, 0)
    assert ring.consumer.peek() == (0, 8)
    out = np.zeros((20, WORDS), np.int64)
    assert ring.consumer.drain(out) == 8
    assert out[:8].tolist() == rows(0, 8).tolist()
    assert (ring.consumer.peek(), ring.producer.free()) == ((8, 0), 8)


def test_what_is_reserved_is_invisible_until_committed() -> None:
    ring = Ring(start=6)
    position, count = ring.producer.reserve(4)
    assert (position, count) == (6, 4)
    for place in range(position, position + count):
        ring.records[place & (CAPACITY - 1)] = place
    assert ring.consumer.peek() == (6, 0)
    ring.producer.commit(position + 3)
    position, count = ring.consumer.peek()
    assert (position, count) == (6, 3)
    taken = [int(ring.records[place & (CAPACITY - 1), 0]) for place in range(6, 9)]
    assert taken == [6, 7, 8]
    assert ring.producer.reserve(CAPACITY) == (9, 5)
    ring.consumer.release(position + 1)
    assert ring.consumer.peek() == (7, 2)
    assert ring.producer.reserve(CAPACITY) == (9, 6)


def test_commit_and_release_outside_of_the_ring_are_programmer_errors() -> None:
    ring = Ring()
    for position in (-1, CAPACITY + 1):
        with pytest.raises(AssertionError):
            ring.producer.commit(position)
    with pytest.raises(AssertionError):
        ring.consumer.release(1)


def test_rows_of_another_width_are_refused() -> None:
    ring = Ring()
    with pytest.raises(AssertionError, match="4 words"):
        ring.producer.push(np.zeros((1, 4), np.int64))
    with pytest.raises(AssertionError, match="4 words"):
        ring.consumer.drain(np.zeros((1, 4), np.int64))


@given(
    start=st.sampled_from([0, 5, 2**40 + 3]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, CAPACITY + 2)), max_size=60),
)
def test_the_ring_is_a_bounded_queue(start: int, steps: list[tuple[bool, int]]) -> None:
    ring = Ring(start=start)
    queue: list[int] = []
    pushed = 0
    for push, count in steps:
        if push:
            fits = min(count, CAPACITY - len(queue))
            assert ring.producer.push(rows(pushed, count)) == fits
            queue += range(pushed, pushed + fits)
            pushed += fits
        else:
            out = np.zeros((count, WORDS), np.int64)
            taken = ring.consumer.drain(out)
            assert taken == min(count, len(queue))
            assert out[:taken].tolist() == rows(0, pushed)[queue[:taken]].tolist()
            del queue[:taken]
        assert ring.consumer.peek() == (start + pushed - len(queue), len(queue))
        assert ring.producer.free() == CAPACITY - len(queue)


@pytest.mark.parametrize("lead", [1, -(CAPACITY + 1), 2**62])
def test_a_cursor_that_cannot_be_true_is_refused(lead: int) -> None:
    ring = Ring(start=100)
    ring.cursors[CURSOR] = 100 + lead
    with pytest.raises(RingBroken, match=f"cursor {100 + lead} does not fit tail 100"):
        ring.producer.free()
    with pytest.raises(RingBroken):
        ring.producer.push(rows(0, CAPACITY))
    assert ring.control[TAIL] == 100


@pytest.mark.parametrize("lead", [-1, CAPACITY + 1, 2**62])
def test_a_tail_that_cannot_be_true_is_refused(lead: int) -> None:
    ring = Ring(start=100)
    ring.control[TAIL] = 100 + lead
    with pytest.raises(RingBroken, match=f"tail {100 + lead} does not fit cursor 100"):
        ring.consumer.peek()
    with pytest.raises(RingBroken):
        ring.consumer.drain(np.zeros((4, WORDS), np.int64))
    assert ring.cursors[CURSOR] == 100


@pytest.mark.parametrize("start", [0, 100, 2**40])
def test_compiled_functions_may_start_with_an_empty_memory(start: int) -> None:
    ring = Ring(start=start)
    cache = np.zeros(CACHE_WORDS, np.int64)
    for wanted in (0, 1, CAPACITY):
        cache[:] = 0
        arguments = (ring.control, ring.records, ring.cursors, CURSOR, cache, wanted)
        assert free_rows(*arguments) == CAPACITY
    cache[:] = 0
    out = np.zeros((4, WORDS), np.int64)
    assert take_rows(ring.control, ring.records, start, cache, out, 0) == 0
    pushing = (ring.control, ring.records, ring.cursors, CURSOR)
    assert push_rows(*pushing, np.zeros(CACHE_WORDS, np.int64), rows(0, 4), 3) == 3
    assert take_rows(ring.control, ring.records, start, cache, out, 4) == 3
    assert ring.consumer.peek() == (start, 3)  # Taken is not released.
    assert drain_rows(*pushing, cache, out, 2) == 2
    assert ring.consumer.peek() == (start + 2, 1)
    ring.cursors[CURSOR] = start + 9
    assert drain_rows(*pushing, cache, out, 2) == BROKEN


def test_neither_end_can_write_what_the_other_owns() -> None:
    ring = Ring()
    for array in (ring.control, ring.records, ring.cursors):
        array.flags.writeable = False
    producer = RingProducer(ring.control, ring.records, ring.cursors, CURSOR)
    with pytest.raises(TypingError):
        producer.push(rows(0, 1))
    with pytest.raises(TypingError):
        RingConsumer(ring.control, ring.records, ring.cursors, CURSOR).drain(rows(0, 1))
    # What each end only borrows may be read-only.
    writable = Ring()
    writable.cursors.flags.writeable = False
    assert RingProducer(writable.control, writable.records, writable.cursors, 0).push(rows(0, 1))


@kernel
def _produce(
    control: Any, records: Any, cursors: Any, cursor_index: int, cache: Any, count: int
) -> int:
    rows = np.zeros((5, 3), np.int64)
    sent = 0
    while sent < count:
        wanted = min(5, count - sent)
        for i in range(wanted):
            rows[i, 0] = sent + i
            rows[i, 2] = 7 * (sent + i)
        pushed = push_rows(control, records, cursors, cursor_index, cache, rows, wanted)
        if pushed < 0:
            return -1
        sent += pushed
        if pushed == 0:
            pause()
    return sent


@kernel
def _consume(
    control: Any, records: Any, cursors: Any, cursor_index: int, cache: Any, count: int
) -> int:
    out = np.zeros((4, 3), np.int64)
    taken = 0
    while taken < count:
        drained = drain_rows(control, records, cursors, cursor_index, cache, out, 4)
        for i in range(drained):
            if out[i, 0] != taken + i or out[i, 2] != 7 * (taken + i):
                return -1
        if drained < 0:
            return -1
        taken += drained
        if drained == 0:
            pause()
    return taken


def test_two_threads_exchange_every_record_once_and_in_order() -> None:
    count = 1_000_000
    _produce(*_ends(Ring()), 0)
    _consume(*_ends(Ring()), 0)
    ring = Ring(capacity=1024)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(_produce(*_ends(ring), count)))
    thread.start()
    assert _consume(*_ends(ring), count) == count
    thread.join()
    assert answers == [count]


def _ends(ring: Ring) -> tuple[Any, Any, Any, int, Any]:
    return ring.control, ring.records, ring.cursors, CURSOR, np.zeros(CACHE_WORDS, np.int64)
