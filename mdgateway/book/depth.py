"""A book of levels as a client keeps it: snapshots in, events in, top N and differences out.

A side is an array of rows (price ticks, lots, orders), worst price first and best price last, so
that almost every change moves a few rows near the end. A book may know a side only down to a
*bound* (when it was taken from a copy of so many levels, or when its capacity ran out): prices
beyond the bound are unknown and never guessed; within it the book is exact.

Invariants: rows of a side are strictly ordered and never empty (lots > 0); a side never grows
beyond its capacity. Nothing here knows segments, clocks, subscribers or the wire; the book is
changed by its one owner only.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from exchange.book_layout import (
    EVENT_COUNT,
    EVENT_LEVEL,
    EVENT_LOTS,
    EVENT_PRICE,
    EVENT_VERB,
)
from exchange.compiled import inlined, kernel
from exchange.enums import Side

Rows = npt.NDArray[np.int64]

LEVEL_COLUMNS: Final = 3
"""A level row: price ticks, lots, order count."""
CHANGE_COLUMNS: Final = 4
"""A change row: side, price ticks, lots, order count; zero lots: the level is gone."""

BID_COUNT: Final = 0
ASK_COUNT: Final = 1
BID_BOUND: Final = 2
"""Bids below this price are unknown; zero: all are known."""
ASK_BOUND: Final = 3
"""Asks above this price are unknown; ``NO_BOUND``: all are known."""
NO_BOUND: Final = 1 << 62

_BUY: Final = int(Side.BUY)
_SELL: Final = int(Side.SELL)


@inlined
def _place(rows: Rows, count: int, sign: int, price: int) -> int:
    """Return the first index whose price is not worse than `price`."""
    low = 0
    high = count
    while low < high:
        middle = (low + high) >> 1
        if rows[middle, 0] * sign < price * sign:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def _put(rows: Rows, count: int, sign: int, price: int, lots: int, orders: int) -> int:
    """Set one level; return the new count, or -1 when there is no room for a new row."""
    at = _place(rows, count, sign, price)
    known = at < count and rows[at, 0] == price
    if lots <= 0:
        if known:
            for index in range(at, count - 1):
                for column in range(3):
                    rows[index, column] = rows[index + 1, column]
            return count - 1
        return count
    if not known:
        if count == rows.shape[0]:
            return -1
        for index in range(count, at, -1):
            for column in range(3):
                rows[index, column] = rows[index - 1, column]
        count += 1
    rows[at, 0] = price
    rows[at, 1] = lots
    rows[at, 2] = orders
    return count


@inlined
def _forget_worst(rows: Rows, count: int) -> int:
    """Drop the worst eighth of a full side (at least one row); return the new count."""
    gone = max(1, count >> 3)
    for index in range(count - gone):
        for column in range(3):
            rows[index, column] = rows[index + gone, column]
    return count - gone


@kernel
def _set_level(rows: Rows, state: Rows, side_index: int, price: int, lots: int, orders: int) -> int:
    """Set one level of one side within its bound; a full side forgets its worst levels."""
    sign = 1 - 2 * side_index
    if price * sign < state[BID_BOUND + side_index] * sign:
        return 0
    count = _put(rows, state[side_index], sign, price, lots, orders)
    if count < 0:
        last_forgotten = rows[max(1, state[side_index] >> 3) - 1, 0]
        state[side_index] = _forget_worst(rows, state[side_index])
        state[BID_BOUND + side_index] = last_forgotten + sign
        if price * sign < state[BID_BOUND + side_index] * sign:
            return 0
        count = _put(rows, state[side_index], sign, price, lots, orders)
    state[side_index] = count
    return 1


@kernel
def _apply_events(bids: Rows, asks: Rows, state: Rows, events: Rows, first: int) -> int:
    """Apply the LEVEL events of `events[first:]` in order; return how many there were."""
    applied = 0
    for index in range(first, events.shape[0]):
        verb = events[index, EVENT_VERB]
        if verb & 0xFF != EVENT_LEVEL:
            continue
        applied += 1
        side = (verb >> 8) & 0xFF
        price = events[index, EVENT_PRICE]
        lots = events[index, EVENT_LOTS]
        orders = events[index, EVENT_COUNT]
        if side == _BUY:
            _set_level(bids, state, 0, price, lots, orders)
        elif side == _SELL:
            _set_level(asks, state, 1, price, lots, orders)
    return applied


@kernel
def difference(old: Rows, new: Rows, sign: int, side: int, out: Rows, start: int) -> int:
    """Append to `out` what turns `old` into `new` (best first); return the new length of `out`."""
    left = old.shape[0] - 1
    right = new.shape[0] - 1
    length = start
    while left >= 0 or right >= 0:
        if right < 0 or (left >= 0 and old[left, 0] * sign > new[right, 0] * sign):
            out[length, 0] = side
            out[length, 1] = old[left, 0]
            out[length, 2] = 0
            out[length, 3] = 0
            length += 1
            left -= 1
        elif left < 0 or new[right, 0] * sign > old[left, 0] * sign:
            out[length, 0] = side
            for column in range(3):
                out[length, 1 + column] = new[right, column]
            length += 1
            right -= 1
        else:
            if old[left, 1] != new[right, 1] or old[left, 2] != new[right, 2]:
                out[length, 0] = side
                for column in range(3):
                    out[length, 1 + column] = new[right, column]
                length += 1
            left -= 1
            right -= 1
    return length


class Snapshot(NamedTuple):
    """Levels of both sides at one moment, best first; rows (price ticks, lots, orders)."""

    sequence: int
    event_position: int
    """Every event below this position is included."""
    bids: Rows
    asks: Rows
    bids_complete: bool
    """Whether `bids` are all bids there were, not only the best."""
    asks_complete: bool


class DepthBook:
    """Both sides of one pair's book within a capacity of levels a side."""

    def __init__(self, level_capacity: int) -> None:
        assert level_capacity >= 8, f"level_capacity is {level_capacity}; at least 8 are needed"
        self.level_capacity = level_capacity
        self.event_position = 0
        """Events below this position are in the book."""
        self._rows = (
            np.zeros((level_capacity, LEVEL_COLUMNS), np.int64),
            np.zeros((level_capacity, LEVEL_COLUMNS), np.int64),
        )
        self._state = np.array([0, 0, 0, NO_BOUND], np.int64)

    def load(self, snapshot: Snapshot) -> None:
        """Forget everything and start from a snapshot; levels beyond the capacity are left out."""
        for index, (levels, complete) in enumerate(
            ((snapshot.bids, snapshot.bids_complete), (snapshot.asks, snapshot.asks_complete))
        ):
            kept = levels[: self.level_capacity]
            rows, sign = self._rows[index], 1 - 2 * index
            rows[: len(kept)] = kept[::-1]
            self._state[index] = len(kept)
            self._state[BID_BOUND + index] = (0, NO_BOUND)[index]
            if not complete or len(kept) < len(levels):
                # An incomplete side without levels says nothing about any price.
                nothing = (NO_BOUND, 0)[index]
                self._state[BID_BOUND + index] = kept[-1, 0] if len(kept) else nothing
            assert (np.diff(rows[: len(kept), 0]) * sign > 0).all(), "a snapshot is ordered"
        self.event_position = snapshot.event_position

    def apply(self, events: Rows, position: int) -> int:
        """Apply a run of event rows whose first stands at `position`; return the LEVEL events.

        Events the book already includes are passed over. A hole before the run is a programmer's
        error: the caller knows of losses and takes a snapshot then.
        """
        skipped = min(max(0, self.event_position - position), len(events))
        assert position + skipped <= self.event_position, (
            f"events from {position} on do not join a book that ends at {self.event_position}"
        )
        self.event_position = max(self.event_position, position + len(events))
        return int(_apply_events(*self._rows, self._state, events, skipped))

    def side(self, side: Side, level_count: int | None = None) -> Rows:
        """Return a copy of the best levels of one side, best first (zero rows: none known)."""
        best_last = self.best_last(0 if side is Side.BUY else 1, level_count)
        return best_last[::-1].copy()

    def top(self, level_count: int) -> tuple[Rows, Rows]:
        """Return copies of the best `level_count` bids and asks, best first."""
        return self.side(Side.BUY, level_count), self.side(Side.SELL, level_count)

    def knows(self, level_count: int) -> bool:
        """Say whether the best `level_count` levels of both sides are certain to be known."""
        counts, bounds = self._state[:2], self._state[2:]
        bids = counts[0] >= level_count or bounds[0] == 0
        asks = counts[1] >= level_count or bounds[1] == NO_BOUND
        return bool(bids and asks)

    def level_counts(self) -> tuple[int, int]:
        """Return how many bids and asks are known."""
        return int(self._state[BID_COUNT]), int(self._state[ASK_COUNT])

    def best_last(self, index: int, level_count: int | None) -> Rows:
        """Return the rows of side 0 (bids) or 1 (asks), best last; valid until the next change."""
        count = int(self._state[index])
        first = 0 if level_count is None else max(0, count - level_count)
        return self._rows[index][first:count]
