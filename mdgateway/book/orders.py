"""The resting orders of one pair as far as its public events tell of them, by public number.

A follower begins without orders and takes every event from some position on, without a hole. What
a level holds beyond the orders it knows are *unknown* orders: they rested before the follower
began, and stand before the known ones in turn. Events about a number that is not known are about
them. After a hole, and under a new owner of the segment, it forgets everything and begins again.

Orders are kept in an open hash table without tombstones, which grows and never shrinks. It knows
nothing of subscribers, clocks or the wire.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from exchange.book_layout import (
    ACTION_ADDED,
    ACTION_DELETED,
    ACTION_REDUCED,
    EVENT_ACTION_SHIFT,
    EVENT_LEVEL,
    EVENT_LOTS,
    EVENT_ORDER,
    EVENT_ORDER_LOTS_SHIFT,
    EVENT_PRICE,
    EVENT_TRADE,
    EVENT_VERB,
)
from exchange.compiled import inlined, kernel

Rows = npt.NDArray[np.int64]

ORDER_NUMBER: Final = 0
"""Zero: an empty place of the table."""
ORDER_SIDE: Final = 1
ORDER_PRICE: Final = 2
ORDER_LOTS: Final = 3
ORDER_TURN: Final = 4
"""Position of the event that brought it to its price: who is smaller has the earlier turn."""
ORDER_COLUMNS: Final = 5

UNKNOWN_COLUMNS: Final = 4
"""Side, price ticks, lots, order count of the unknown part of a level."""
FIRST_CAPACITY: Final = 1 << 12


@inlined
def _find(table: Rows, number: int) -> int:
    """Return the place of an order, or of the empty place where it would be put."""
    mask = table.shape[0] - 1
    # Numbers are given one after the other, so they are their own hash.
    at: int = number & mask
    while table[at, 0] != 0 and table[at, 0] != number:
        at = (at + 1) & mask
    return at


@inlined
def _remove(table: Rows, at: int) -> None:
    """Empty a place and move up what was put behind it for want of a better one."""
    mask = table.shape[0] - 1
    hole = at
    follower = (at + 1) & mask
    while table[follower, 0] != 0:
        home = table[follower, 0] & mask
        if (follower - home) & mask >= (follower - hole) & mask:
            for column in range(5):
                table[hole, column] = table[follower, column]
            hole = follower
        follower = (follower + 1) & mask
    table[hole, 0] = 0


@kernel
def _apply(table: Rows, count: int, events: Rows, position: int) -> int:
    """Take events, the first of which stands at `position`; return how many orders are known."""
    for index in range(events.shape[0]):
        number = events[index, EVENT_ORDER]
        if number == 0:
            continue
        verb = events[index, EVENT_VERB]
        action = (verb >> EVENT_ACTION_SHIFT) & 0xF
        at = _find(table, number)
        known = table[at, 0] == number
        if verb & 0xFF == EVENT_LEVEL and action == ACTION_ADDED:
            if not known:
                count += 1
            table[at, 0] = number
            table[at, 1] = (verb >> 8) & 0xFF
            table[at, 2] = events[index, EVENT_PRICE]
            table[at, 3] = verb >> EVENT_ORDER_LOTS_SHIFT
            table[at, 4] = position + index
        elif known and action == ACTION_DELETED:
            _remove(table, at)
            count -= 1
        elif known and action == ACTION_REDUCED:
            lots = verb >> EVENT_ORDER_LOTS_SHIFT
            if verb & 0xFF == EVENT_TRADE:
                lots = events[index, EVENT_LOTS]
            table[at, 3] -= lots
    return count


@kernel
def _grow(old: Rows, new: Rows) -> None:
    """Put every order of `old` into the empty table `new`."""
    for index in range(old.shape[0]):
        if old[index, 0] != 0:
            at = _find(new, old[index, 0])
            for column in range(5):
                new[at, column] = old[index, column]


class OrdersAt(NamedTuple):
    """All orders at one event position."""

    orders: Rows
    """Known orders in rows of ORDER_COLUMNS: bids, then asks, best price first, then by turn."""
    unknown: Rows
    """What the levels hold beyond them, in rows of UNKNOWN_COLUMNS, in the same order."""


class OrderBook:
    """The known orders of one pair."""

    def __init__(self) -> None:
        self.count = 0
        """Orders that are known."""
        self._table = np.zeros((FIRST_CAPACITY, ORDER_COLUMNS), np.int64)

    def forget(self) -> None:
        """Begin again without orders."""
        self.count = 0
        self._table = np.zeros((FIRST_CAPACITY, ORDER_COLUMNS), np.int64)

    def apply(self, events: Rows, position: int) -> None:
        """Take the events that follow the last ones; the first stands at `position`."""
        most = self.count + len(events)
        if 2 * most > len(self._table):
            grown = np.zeros((1 << (2 * most).bit_length(), ORDER_COLUMNS), np.int64)
            _grow(self._table, grown)
            self._table = grown
        self.count = int(_apply(self._table, self.count, events, position))

    def at_levels(self, bids: Rows, asks: Rows) -> OrdersAt | None:
        """Return the orders at these levels (price ticks, lots, orders), best first.

        Orders at no level given are left out. None: the levels hold less than the orders known
        there, so one of the two is not of this moment.
        """
        known = self._table[self._table[:, ORDER_NUMBER] != 0]
        orders, unknown = [], []
        for side, levels in ((1, bids), (2, asks)):
            sign = 3 - 2 * side
            of_side = known[known[:, ORDER_SIDE] == side]
            of_side = of_side[np.isin(of_side[:, ORDER_PRICE], levels[:, 0])]
            best_first = np.lexsort((of_side[:, ORDER_TURN], -sign * of_side[:, ORDER_PRICE]))
            of_side = of_side[best_first]
            # Levels are ordered by -sign * price, so a level is found by searching for that.
            level_of = np.searchsorted(-sign * levels[:, 0], -sign * of_side[:, ORDER_PRICE])
            rest = levels[:, 1:3].copy()
            np.subtract.at(rest[:, 0], level_of, of_side[:, ORDER_LOTS])
            np.subtract.at(rest[:, 1], level_of, 1)
            if (rest < 0).any() or (rest.prod(axis=1) == 0)[rest.any(axis=1)].any():
                return None
            more = np.flatnonzero(rest[:, 0])
            rows = np.empty((len(more), UNKNOWN_COLUMNS), np.int64)
            rows[:, 0], rows[:, 1], rows[:, 2:] = side, levels[more, 0], rest[more]
            orders.append(of_side)
            unknown.append(rows)
        return OrdersAt(np.concatenate(orders), np.concatenate(unknown))
