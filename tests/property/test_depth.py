"""The compiled book of levels against a dictionary, and clients fed by differences."""

from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from exchange import book_layout as layout
from exchange.enums import Side
from mdgateway.book.depth import DepthBook, Rows, Snapshot
from mdgateway.book.view import View, apply_changes

Levels = dict[tuple[int, int], tuple[int, int]]
Change = tuple[int, int, int, int]

changes_of_levels = st.tuples(
    st.sampled_from([1, 2]),
    st.integers(1, 40),
    st.one_of(st.just(0), st.integers(1, 5)),
    st.integers(1, 3),
)
batches = st.lists(st.lists(changes_of_levels, max_size=12), max_size=25)


def event_rows(changes: Iterable[Change]) -> Rows:
    """Return LEVEL events, each followed by a TRADE event that the book has to pass over."""
    changes = list(changes)
    rows = np.zeros((2 * len(changes), layout.EVENT_WORDS), np.int64)
    for index, (side, price, lots, orders) in enumerate(changes):
        level, trade = rows[2 * index], rows[2 * index + 1]
        level[layout.EVENT_VERB] = layout.EVENT_LEVEL | side << 8
        trade[layout.EVENT_VERB] = layout.EVENT_TRADE | side << 8
        level[layout.EVENT_PRICE] = trade[layout.EVENT_PRICE] = price
        level[layout.EVENT_LOTS] = lots
        level[layout.EVENT_COUNT] = orders if lots else 0
        trade[layout.EVENT_LOTS] = 1_000_000
        trade[layout.EVENT_COUNT] = index + 1
    return rows


def follow(levels: Levels, changes: Iterable[Change]) -> None:
    """Apply changes the obvious way."""
    for side, price, lots, orders in changes:
        levels.pop((side, price), None)
        if lots:
            levels[side, price] = (lots, orders)


def best(levels: Levels, side: int, count: int | None = None) -> list[list[int]]:
    """Return the best levels of one side of a plain book, best first."""
    rows = [[price, *value] for (of, price), value in levels.items() if of == side]
    rows.sort(key=lambda row: row[0], reverse=side == 1)
    return rows[:count]


def snapshot_of(levels: Levels, count: int | None, position: int = 0) -> Snapshot:
    """Return the best levels of a plain book as a copy from the segment would hold them."""
    sides = [np.array(best(levels, side, count), np.int64).reshape(-1, 3) for side in (1, 2)]
    complete = [count is None or len(rows) < count for rows in sides]
    return Snapshot(1, position, sides[0], sides[1], complete[0], complete[1])


def flat(levels: Levels, count: int) -> Levels:
    """Return the best levels of both sides of a plain book as a plain book."""
    return {
        (side, row[0]): (row[1], row[2]) for side in (1, 2) for row in best(levels, side, count)
    }


@given(batches)
def test_a_book_with_room_equals_the_dictionary(rounds: list[list[Change]]) -> None:
    book, levels = DepthBook(64), Levels()
    book.load(snapshot_of(levels, None))
    for changes in rounds:
        rows = event_rows(changes)
        assert book.apply(rows, book.event_position) == len(changes)
        follow(levels, changes)
        for side in Side.BUY, Side.SELL:
            assert book.side(side).tolist() == best(levels, side)
            assert book.side(side, 3).tolist() == best(levels, side, 3)
        assert book.knows(64)


@given(batches, st.integers(8, 12), st.integers(0, 10))
def test_a_book_known_in_part_is_right_in_that_part(
    rounds: list[list[Change]], capacity: int, copied: int
) -> None:
    book, levels = DepthBook(capacity), Levels()
    follow(levels, [(side, price, 2, 1) for side in (1, 2) for price in range(1, 30, 2)])
    book.load(snapshot_of(levels, copied))
    for changes in rounds:
        book.apply(event_rows(changes), book.event_position)
        follow(levels, changes)
        for side, count in zip((Side.BUY, Side.SELL), book.level_counts(), strict=True):
            # All that is known is the top of the truth: no hole, nothing made up.
            assert book.side(side).tolist() == best(levels, side, count)
        for count in range(1, capacity + 1):
            if book.knows(count):
                known = flat(levels, count)
                bids, asks = book.top(count)
                assert len(bids) + len(asks) == len(known)


@given(batches, st.integers(1, 8), st.integers(1, 60), st.data())
def test_clients_that_follow_a_view_hold_its_levels(
    rounds: list[list[Change]], level_count: int, change_capacity: int, data: st.DataObject
) -> None:
    book, view = DepthBook(64), View(level_count, change_capacity)
    book.load(snapshot_of({}, None))
    levels: Levels = {}
    quick: Levels = {}
    slow: Levels = {}
    held = 0
    for sequence, changes in enumerate(rounds, start=1):
        book.apply(event_rows(changes), book.event_position)
        follow(levels, changes)
        before = view.generation
        told = view.advance(book, sequence)
        assert (view.generation != before) == bool(len(told))
        apply_changes(quick, told)
        assert quick == flat(levels, level_count)
        if not data.draw(st.booleans(), label="the slow client asks"):
            continue
        missed = view.since(held)
        if missed is None:
            slow = {
                (side, row[0]): (row[1], row[2])
                for side, rows in enumerate(view.levels(), start=1)
                for row in rows.tolist()
            }
        else:
            keys = [(side, price) for side, price, _, _ in missed.tolist()]
            assert len(keys) == len(set(keys)), "each level once"
            apply_changes(slow, missed)
        held = view.generation
        assert slow == quick


@given(batches)
def test_events_that_a_snapshot_includes_are_passed_over(rounds: list[list[Change]]) -> None:
    levels: Levels = {}
    everything = [change for changes in rounds for change in changes]
    follow(levels, everything)
    rows = event_rows(everything)
    late = DepthBook(64)
    late.load(snapshot_of(levels, None, position=len(rows)))
    for start in range(0, len(rows), 7):
        assert late.apply(rows[start : start + 7], start) == 0
    assert late.event_position == len(rows)
    assert late.side(Side.SELL).tolist() == best(levels, 2)
