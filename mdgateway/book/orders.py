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

from exchange import book_layout as layout
from exchange.compiled import inlined, kernel

Rows = npt.NDArray[np.int64]

EVENT_ACTION: Final = 0
"""ADD, REDUCE, DELETE or EXECUTE: the OrderAction of the wire."""
EVENT_ORDER: Final = 1
EVENT_SIDE: Final = 2
"""Side of the resting order, also for a trade."""
EVENT_PRICE: Final = 3
EVENT_LOTS: Final = 4
EVENT_TRADE_NUMBER: Final = 5
EVENT_SEQUENCE: Final = 6
EVENT_TIME_NS: Final = 7
EVENT_POSITION: Final = 8
EVENT_IS_GONE: Final = 9
"""One: the order left the book with this event."""
EVENT_COLUMNS: Final = 10

ADD: Final = 1
REDUCE: Final = 2
DELETE: Final = 3
EXECUTE: Final = 4

FITS: Final = 0
"""What came of an event: it fits the order it is about."""
STRANGER: Final = 1
"""It is about an order that is not known."""
CONTRADICTS: Final = 2
"""It cannot be of the order that is known by this number."""

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
def _apply(table: Rows, count: int, events: Rows, outcomes: Rows) -> int:
    """Take events and write down what came of each; return how many orders are known."""
    for index in range(events.shape[0]):
        number = events[index, EVENT_ORDER]
        at = _find(table, number)
        known = table[at, 0] == number
        if events[index, EVENT_ACTION] == ADD:
            if known:
                outcomes[index] = CONTRADICTS
            else:
                count += 1
            table[at, 0] = number
            table[at, 1] = events[index, EVENT_SIDE]
            table[at, 2] = events[index, EVENT_PRICE]
            table[at, 3] = events[index, EVENT_LOTS]
            table[at, 4] = events[index, EVENT_POSITION]
            continue
        if not known:
            outcomes[index] = STRANGER
            continue
        table[at, 3] -= events[index, EVENT_LOTS]
        is_gone = events[index, EVENT_IS_GONE] == 1
        placed = (
            table[at, 1] == events[index, EVENT_SIDE] and table[at, 2] == events[index, EVENT_PRICE]
        )
        if not placed or table[at, 3] < 0 or (table[at, 3] == 0) != is_gone:
            outcomes[index] = CONTRADICTS
        if is_gone:
            _remove(table, at)
            count -= 1
    return count


@kernel
def _grow(old: Rows, new: Rows) -> None:
    """Put every order of `old` into the empty table `new`."""
    for index in range(old.shape[0]):
        if old[index, 0] != 0:
            at = _find(new, old[index, 0])
            for column in range(5):
                new[at, column] = old[index, column]


def order_events(events: Rows, position: int) -> Rows:
    """Return those of the ring's events that are about an order, in rows of EVENT_COLUMNS.

    The first of `events` stands at `position`.
    """
    about = np.flatnonzero(events[:, layout.EVENT_ORDER])
    given = events[about]
    verb = given[:, layout.EVENT_VERB]
    is_trade = verb & 0xFF == layout.EVENT_TRADE
    action = (verb >> layout.EVENT_ACTION_SHIFT) & 0xF
    side = (verb >> 8) & 0xFF
    rows = np.empty((len(about), EVENT_COLUMNS), np.int64)
    rows[:, EVENT_ACTION] = np.where(is_trade, EXECUTE, action)
    rows[:, EVENT_ORDER] = given[:, layout.EVENT_ORDER]
    rows[:, EVENT_SIDE] = np.where(is_trade, 3 - side, side)
    rows[:, EVENT_PRICE] = given[:, layout.EVENT_PRICE]
    order_lots = verb >> layout.EVENT_ORDER_LOTS_SHIFT
    rows[:, EVENT_LOTS] = np.where(is_trade, given[:, layout.EVENT_LOTS], order_lots)
    rows[:, EVENT_TRADE_NUMBER] = np.where(is_trade, given[:, layout.EVENT_COUNT], 0)
    rows[:, EVENT_SEQUENCE] = given[:, layout.EVENT_SEQUENCE]
    rows[:, EVENT_TIME_NS] = given[:, layout.EVENT_TIME_NS]
    rows[:, EVENT_POSITION] = position + about
    rows[:, EVENT_IS_GONE] = action == layout.ACTION_DELETED
    return rows


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

    def load(self, orders: Rows) -> None:
        """Begin again with these orders, in rows of ORDER_COLUMNS."""
        self.forget()
        self._make_room(len(orders))
        _grow(orders, self._table)
        self.count = len(orders)

    def apply(self, events: Rows) -> Rows:
        """Take the events that follow the last ones; return what came of each."""
        self._make_room(self.count + len(events))
        outcomes = np.zeros(len(events), np.int64)
        self.count = int(_apply(self._table, self.count, events, outcomes))
        return outcomes

    def known(self, side: int) -> Rows:
        """Return the orders of a side: best price first, orders of one price by their turn."""
        sign = 3 - 2 * side
        of_side = self._table[self._table[:, ORDER_NUMBER] != 0]
        of_side = of_side[of_side[:, ORDER_SIDE] == side]
        best_first = np.lexsort((of_side[:, ORDER_TURN], -sign * of_side[:, ORDER_PRICE]))
        ordered: Rows = of_side[best_first]
        return ordered

    def _make_room(self, most: int) -> None:
        """Make the table large enough for so many orders."""
        if 2 * most > len(self._table):
            grown = np.zeros((1 << (2 * most).bit_length(), ORDER_COLUMNS), np.int64)
            _grow(self._table, grown)
            self._table = grown

    def at_levels(self, bids: Rows, asks: Rows) -> OrdersAt | None:
        """Return the orders at these levels (price ticks, lots, orders), best first.

        Orders at no level given are left out. None: the levels hold less than the orders known
        there, so one of the two is not of this moment.
        """
        orders, unknown = [], []
        for side, levels in ((1, bids), (2, asks)):
            sign = 3 - 2 * side
            of_side = self.known(side)
            of_side = of_side[np.isin(of_side[:, ORDER_PRICE], levels[:, 0])]
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
