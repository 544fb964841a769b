"""The order-by-order feed of one pair: the newest events, and snapshots to begin with.

One bounded log of events and at most SNAPSHOT_COUNT snapshots serve all subscribers: each is an
index into the log and the number of a snapshot part, so that one that never reads holds nothing.
Positions are those of the segment's event ring: the same in every gateway of one engine.

A *life* begins when the orders are forgotten (start, loss, another engine); nothing of one life
follows from another.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from exchange import book_layout as layout
from mdgateway.book.depth import DepthBook
from mdgateway.book.orders import OrderBook, OrdersAt

Rows = npt.NDArray[np.int64]

EVENT_ACTION: Final = 0
"""An OrderAction."""
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

SNAPSHOT_COUNT: Final = 8
"""Snapshots kept; a subscriber that has not taken all parts of an older one is too slow."""
ROWS_PER_PART: Final = 1_000
SNAPSHOT_LIFE_NS: Final = 1_000_000_000
"""How long a snapshot is given to new subscribers before another is made."""


@dataclass(frozen=True, slots=True)
class OrderSnapshot:
    """All orders after the events before `position`, and where in the log to go on."""

    life: int
    epoch: int
    sequence: int
    position: int
    index: int
    made_ns: int
    orders: OrdersAt

    @property
    def part_count(self) -> int:
        """Return in how many messages it is told; at least one."""
        most = max(len(self.orders.orders), len(self.orders.unknown), 1)
        return -(-most // ROWS_PER_PART)


class OrderLog:
    """Events and snapshots of one pair; `capacity` (a power of two) events are kept."""

    def __init__(self, capacity: int) -> None:
        assert capacity.bit_count() == 1, f"capacity is {capacity}; a power of two is needed"
        self.capacity = capacity
        self.life = 0
        self.position = 0
        """Events below this position have been taken."""
        self.oldest = 0
        """Index of the oldest event that is kept; indexes rise through all lives."""
        self.next_index = 0
        self.contradiction_count = 0
        """How often the orders known did not fit the levels; not once, if all is well."""
        self.book = OrderBook()
        self._rows = np.zeros((capacity, EVENT_COLUMNS), np.int64)
        self._first_position = 0
        self._snapshots: deque[OrderSnapshot] = deque(maxlen=SNAPSHOT_COUNT)

    def forget(self, position: int) -> None:
        """Begin another life, at an event position, without orders."""
        self.life += 1
        self.position = self._first_position = position
        self.oldest = self.next_index
        self.book.forget()
        self._snapshots.clear()

    def take(self, events: Rows, position: int) -> None:
        """Take a run of the ring's events that follows the last one."""
        assert position == self.position, f"events at {position} do not follow {self.position}"
        self.book.apply(events, position)
        self.position = position + len(events)
        rows = _order_events(events, position)[-self.capacity :]
        places = np.arange(self.next_index, self.next_index + len(rows)) & (self.capacity - 1)
        self._rows[places] = rows
        self.next_index += len(rows)
        self.oldest = max(self.oldest, self.next_index - self.capacity)

    def snapshot(
        self, epoch: int, sequence: int, levels: DepthBook, level_count: int, now_ns: int
    ) -> OrderSnapshot | None:
        """Return a snapshot of this second; `levels` are those at the log's position.

        None: the levels are not those of this moment; what is known was forgotten then.
        """
        newest = self._snapshots[-1] if self._snapshots else None
        fresh = newest is not None and now_ns - newest.made_ns < SNAPSHOT_LIFE_NS
        if newest is not None and fresh and newest.index >= self.oldest:
            return newest
        orders = self.book.at_levels(*levels.top(level_count))
        if orders is None:
            self.contradiction_count += 1
            self.forget(self.position)
            return None
        place = epoch, sequence, self.position, self.next_index
        self._snapshots.append(OrderSnapshot(self.life, *place, now_ns, orders))
        return self._snapshots[-1]

    def holds(self, snapshot: OrderSnapshot) -> bool:
        """Say whether a snapshot is still kept, so that its parts may be told."""
        return any(one is snapshot for one in self._snapshots)

    def index_after(self, position: int) -> int | None:
        """Return the index of the first event at `position` or later; None: it is not known."""
        if not self._first_position <= position <= self.position:
            return None
        indexes = np.arange(self.oldest, self.next_index)
        positions = self._rows[indexes & (self.capacity - 1), EVENT_POSITION]
        if len(positions) == self.capacity and positions[0] > position:
            return None
        return self.oldest + int(np.searchsorted(positions, position))

    def since(self, index: int, limit: int) -> Rows:
        """Return at most `limit` events from an index on; it must be kept, or the next one."""
        assert self.oldest <= index <= self.next_index, f"event {index} is not in the log"
        end = min(self.next_index, index + limit)
        rows: Rows = self._rows[np.arange(index, end) & (self.capacity - 1)]
        return rows


def _order_events(events: Rows, position: int) -> Rows:
    """Return those of the ring's events that are about an order."""
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
