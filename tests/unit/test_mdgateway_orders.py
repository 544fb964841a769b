"""The table of resting orders against a plain dict, with numbers that want the same place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange import book_layout as layout
from mdgateway.book.depth import Rows
from mdgateway.book.orders import (
    CONTRADICTS,
    EVENT_ORDER,
    EVENT_POSITION,
    FIRST_CAPACITY,
    FITS,
    STRANGER,
    OrderBook,
    order_events,
)
from mdgateway.feed.order_log import OrderLog

PRICE = 100
# Neighbours and numbers that are equal modulo the table's size, also across its end.
NUMBERS = [
    base + turn * FIRST_CAPACITY
    for base in (1, 2, 3, FIRST_CAPACITY - 1, FIRST_CAPACITY)
    for turn in range(4)
]


def event(number: int, action: int, lots: int) -> list[int]:
    """Return a LEVEL event of one buyer at the one price."""
    verb = layout.EVENT_LEVEL | 1 << 8 | action << layout.EVENT_ACTION_SHIFT
    return [0, verb | lots << layout.EVENT_ORDER_LOTS_SHIFT, PRICE, 0, 1, 1, 0, number]


def rows_of(events: list[list[int]], position: int = 0) -> Rows:
    """Return events of the ring, the first of which stands at `position`, as order events."""
    ring = np.array(events, np.int64).reshape(-1, layout.EVENT_WORDS)
    return order_events(ring, position)


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(NUMBERS), st.integers(0, 2)), max_size=20), max_size=8
    )
)
def test_orders_that_want_the_same_place_are_kept_apart(
    batches: list[list[tuple[int, int]]],
) -> None:
    book, plain, position = OrderBook(), dict[int, int](), 1
    for batch in batches:
        events = []
        for number, what in batch:
            if number not in plain:
                plain[number] = 5
                events.append(event(number, layout.ACTION_ADDED, 5))
            elif what and plain[number] > 1:
                plain[number] -= 1
                events.append(event(number, layout.ACTION_REDUCED, 1))
            else:
                events.append(event(number, layout.ACTION_DELETED, plain.pop(number)))
        assert not book.apply(rows_of(events, position)).any()
        position += len(events)
        assert book.count == len(plain)
        level = np.array([[PRICE, 1_000, 1_000]])
        at = book.at_levels(level, level[:0])
        assert at is not None
        assert [(number, lots) for number, _, _, lots, _ in at.orders.tolist()] == list(
            plain.items()
        )
        assert at.unknown.tolist() == [[1, PRICE, 1_000 - sum(plain.values()), 1_000 - len(plain)]]


def test_the_table_grows_and_loses_nobody() -> None:
    book, count = OrderBook(), 3 * FIRST_CAPACITY
    book.apply(rows_of([event(one, layout.ACTION_ADDED, 1) for one in range(1, count + 1)]))
    level = np.array([[PRICE, count, count]])
    at = book.at_levels(level, level[:0])
    assert at is not None
    assert at.orders[:, 0].tolist() == list(range(1, count + 1))
    assert not len(at.unknown)


@pytest.mark.parametrize(
    "level", [[PRICE, 4, 1], [PRICE, 5, 0], [PRICE, 5, 2], [PRICE, 6, 1], [PRICE, 4, 0]]
)
def test_levels_that_do_not_fit_the_orders_are_noticed(level: list[int]) -> None:
    book = OrderBook()
    book.apply(rows_of([event(1, layout.ACTION_ADDED, 5)]))
    levels = np.array([level])
    assert book.at_levels(levels, levels[:0]) is None


def test_the_log_knows_what_follows_a_position_and_what_is_gone() -> None:
    log = OrderLog(64)
    log.begin(1, 1_000)
    # Every second event concerns no order.
    for position in range(1_000, 1_200, 2):
        silent = event(0, layout.ACTION_NONE, 0)
        added = event(position, layout.ACTION_ADDED, 1)
        log.append(rows_of([silent, added], position), position + 2)
    assert (log.position, log.next_index, log.oldest) == (1_200, 100, 36)
    for position in (1_073, 1_100, 1_101, 1_199, 1_200):
        index = log.index_after(position)
        assert index is not None
        found = log.since(index, 1)
        assert found[:, EVENT_POSITION].tolist() == [position | 1][: 1_200 - position]
        assert found[:, EVENT_ORDER].tolist() == [position & ~1][: 1_200 - position]
    for position in (999, 1_000, 1_071, 1_201):
        assert log.index_after(position) is None


def test_a_run_longer_than_the_log_leaves_its_end_and_says_what_is_gone() -> None:
    log = OrderLog(64)
    log.begin(1, 0)
    events = [event(one + 1, layout.ACTION_ADDED, 1) for one in range(100)]
    log.append(rows_of(events), 100)
    assert (log.oldest, log.next_index) == (36, 100)
    assert log.since(36, 100)[:, EVENT_POSITION].tolist() == list(range(36, 100))


@pytest.mark.parametrize(
    ("number", "action", "lots", "outcome"),
    [
        (1, layout.ACTION_REDUCED, 4, FITS),
        (1, layout.ACTION_DELETED, 5, FITS),
        (2, layout.ACTION_DELETED, 5, STRANGER),
        (2, layout.ACTION_ADDED, 5, FITS),
        (1, layout.ACTION_ADDED, 5, CONTRADICTS),
        (1, layout.ACTION_REDUCED, 5, CONTRADICTS),
        (1, layout.ACTION_REDUCED, 6, CONTRADICTS),
        (1, layout.ACTION_DELETED, 4, CONTRADICTS),
    ],
)
def test_what_came_of_an_event(number: int, action: int, lots: int, outcome: int) -> None:
    book = OrderBook()
    book.apply(rows_of([event(1, layout.ACTION_ADDED, 5)]))
    assert book.apply(rows_of([event(number, action, lots)], 1)).tolist() == [outcome]
