"""The order-by-order feed of one pair: the newest events, and snapshots to begin with.

One bounded log of events and at most SNAPSHOT_COUNT snapshots serve all subscribers: each is an
index into the log and the number of a snapshot part, so that one that never reads holds nothing.
Positions are those of the segment's event ring: the same in every gateway of one engine.

A *life* begins when the orders are forgotten (start, loss, another engine); nothing of one life
follows from another.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mdgateway.book.orders import EVENT_COLUMNS, EVENT_POSITION, OrdersAt

Rows = npt.NDArray[np.int64]

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
        self.epoch = 0
        """Epoch of the engine that the events are of; zero: it is not known yet."""
        self.sequence = 0
        """Sequence of the last command whose events have been taken."""
        self.position = 0
        """Events below this position have been taken."""
        self.is_whole = True
        """Whether the events taken end with a command; the source says so."""
        self.oldest = 0
        """Index of the oldest event that is kept; indexes rise through all lives."""
        self.next_index = 0
        self.contradiction_count = 0
        """How often the orders known did not fit what was told of them; not once, if all is
        well."""
        self._rows = np.zeros((capacity, EVENT_COLUMNS), np.int64)
        self._first_position = 0
        self._snapshots: deque[OrderSnapshot] = deque(maxlen=SNAPSHOT_COUNT)

    def begin(self, epoch: int, position: int) -> None:
        """Begin another life, at an event position; nothing of the one before is kept."""
        self.life += 1
        self.epoch, self.is_whole = epoch, True
        self.position = self._first_position = position
        self.oldest = self.next_index
        self._snapshots.clear()

    def append(self, rows: Rows, position: int) -> None:
        """Take events, in rows of EVENT_COLUMNS, that follow the last ones and end at `position`.

        There may be fewer of them than positions: many of the ring's events concern no order.
        """
        assert self.position <= position, f"events to {position} do not follow {self.position}"
        self.position = position
        self.next_index += len(rows)
        kept = rows[-self.capacity :]
        places = np.arange(self.next_index - len(kept), self.next_index) & (self.capacity - 1)
        self._rows[places] = kept
        self.oldest = max(self.oldest, self.next_index - self.capacity)

    def snapshot(
        self, now_ns: int, orders_now: Callable[[], OrdersAt | None]
    ) -> OrderSnapshot | None:
        """Return a snapshot of this second; `orders_now` makes one of the log's position.

        None: it cannot be made at this step.
        """
        newest = self._snapshots[-1] if self._snapshots else None
        fresh = newest is not None and now_ns - newest.made_ns < SNAPSHOT_LIFE_NS
        if newest is not None and fresh and newest.index >= self.oldest:
            return newest
        orders = orders_now() if self.epoch and self.is_whole else None
        if orders is None:
            return None
        place = self.epoch, self.sequence, self.position, self.next_index
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
