"""The orders of one pair as another gateway tells of them: a snapshot in parts, then batches.

What is told is complete by itself: known orders, and what levels hold beyond them. So this needs no
levels from anywhere else, and fills the same log of events, with the same positions, that a gateway
over the engine's segment fills. A part or a batch that does not follow what is held is not taken;
the reason is returned, and whoever reads the stream begins it anew.
"""

import numpy as np
import numpy.typing as npt

from exchange.enums import Side
from exchange.v1 import market_data_pb2
from mdgateway.book.orders import (
    CONTRADICTS,
    EVENT_COLUMNS,
    EVENT_IS_GONE,
    EVENT_LOTS,
    EVENT_POSITION,
    EVENT_PRICE,
    EVENT_SEQUENCE,
    EVENT_SIDE,
    ORDER_COLUMNS,
    ORDER_NUMBER,
    ORDER_PRICE,
    ORDER_TURN,
    STRANGER,
    UNKNOWN_COLUMNS,
    OrderBook,
    OrdersAt,
)
from mdgateway.feed.order_log import OrderLog

Rows = npt.NDArray[np.int64]


class ToldOrders:
    """The orders of one pair, followed from messages into a log."""

    def __init__(self, log: OrderLog, level_count: int) -> None:
        self.log = log
        self._level_count = level_count
        """Most levels a side whose orders are told on."""
        self._book = OrderBook()
        self._rests: dict[tuple[int, int], list[int]] = {}
        """By side and price: lots and count of what a level holds beyond the known orders."""
        self._parts: list[tuple[Rows, Rows]] = []
        """Parts of a snapshot that is not complete yet."""

    def held(self) -> tuple[int, int]:
        """Return epoch and position to resume with; zeros: nothing is held."""
        return (self.log.epoch, self.log.position) if self.log.epoch else (0, 0)

    def begin_stream(self) -> None:
        """Note that what comes next is the beginning of a stream."""
        self._parts = []

    def reach(self, sequence: int) -> None:
        """Note that nothing happened to any order up to a sequence."""
        if not self._parts:
            self.log.sequence = max(self.log.sequence, sequence)

    def take_part(self, part: market_data_pb2.OrderSnapshot) -> str:
        """Take the next part of a snapshot; return why not, or nothing."""
        if part.part == 0:
            self._parts = []
        if part.part != len(self._parts):
            return f"part {part.part} of the orders came after {len(self._parts)} parts"
        self._parts.append((_order_rows(part), _unknown_rows(part)))
        if not part.is_last:
            return ""
        orders = np.concatenate([one for one, _ in self._parts])
        unknown = np.concatenate([one for _, one in self._parts])
        self._parts = []
        if len(np.unique(orders[:, ORDER_NUMBER])) != len(orders):
            return "a snapshot of the orders has one of them twice"
        # Whatever comes later has a later turn: positions are not negative.
        orders[:, ORDER_TURN] = np.arange(-len(orders), 0)
        self._book.load(orders)
        self._rests = {(side, price): rest for side, price, *rest in unknown.tolist()}
        self.log.begin(part.epoch, part.position)
        self.log.sequence = part.sequence
        return ""

    def take_batch(self, batch: market_data_pb2.OrderBatch) -> str:
        """Take events that follow what is held; return why not, or nothing."""
        log, rows = self.log, _event_rows(batch)
        if (batch.epoch, batch.previous_position) != self.held():
            return f"order events after {batch.previous_position} do not follow {log.position}"
        if not _rise(batch.previous_position, rows[:, EVENT_POSITION], batch.position):
            return f"positions of order events do not rise to {batch.position}"
        outcomes = self._book.apply(rows)
        strangers = rows[outcomes == STRANGER]
        if (outcomes == CONTRADICTS).any() or not self._lower(strangers):
            log.contradiction_count += 1
            log.begin(0, 0)
            return f"order events up to {batch.position} contradict what was told before"
        log.append(rows, batch.position)
        log.is_whole = not batch.more_follows
        if len(rows):
            self.reach(int(rows[-1, EVENT_SEQUENCE]))
        return ""

    def orders_now(self) -> OrdersAt:
        """Return all orders at the log's position, as far down as a gateway tells."""
        orders, unknown = [], []
        for side in (int(Side.BUY), int(Side.SELL)):
            sign = 3 - 2 * side
            known = self._book.known(side)
            rests = np.array(
                [(*key, *rest) for key, rest in self._rests.items() if key[0] == side], np.int64
            ).reshape(-1, UNKNOWN_COLUMNS)
            rests = rests[np.argsort(-sign * rests[:, 1])]
            depths = np.unique(-sign * np.concatenate([known[:, ORDER_PRICE], rests[:, 1]]))
            if len(depths) > self._level_count:
                deepest = depths[self._level_count - 1]
                known = known[-sign * known[:, ORDER_PRICE] <= deepest]
                rests = rests[-sign * rests[:, 1] <= deepest]
            orders.append(known)
            unknown.append(rests)
        return OrdersAt(np.concatenate(orders), np.concatenate(unknown))

    def _lower(self, events: Rows) -> bool:
        """Take events of orders that are not known off the rests; say whether they fit."""
        columns = [EVENT_SIDE, EVENT_PRICE, EVENT_LOTS, EVENT_IS_GONE]
        for side, price, lots, is_gone in events[:, columns].tolist():
            rest = self._rests.get((side, price))
            if rest is None:
                # Deeper than what is told, when the snapshot was made.
                continue
            rest[0] -= lots
            rest[1] -= is_gone
            if min(rest) < 0 or (rest[0] == 0) != (rest[1] == 0):
                return False
            if not rest[1]:
                del self._rests[side, price]
        return True


def _rise(begin: int, positions: Rows, end: int) -> bool:
    """Say whether positions rise from `begin`, which may be the first, to below `end`."""
    places = np.concatenate([[begin - 1], positions, [end]])
    return bool((np.diff(places) > 0).all())


def _order_rows(part: market_data_pb2.OrderSnapshot) -> Rows:
    rows = [
        (one.order_number, one.side, one.price_ticks, one.quantity_lots, 0) for one in part.orders
    ]
    return np.array(rows, np.int64).reshape(-1, ORDER_COLUMNS)


def _unknown_rows(part: market_data_pb2.OrderSnapshot) -> Rows:
    rows = [(one.side, one.price_ticks, one.quantity_lots, one.order_count) for one in part.unknown]
    return np.array(rows, np.int64).reshape(-1, UNKNOWN_COLUMNS)


def _event_rows(batch: market_data_pb2.OrderBatch) -> Rows:
    rows = [
        (
            one.action,
            one.order_number,
            one.side,
            one.price_ticks,
            one.quantity_lots,
            one.trade_number,
            one.sequence,
            one.time_ns,
            one.position,
            one.is_gone,
        )
        for one in batch.events
    ]
    return np.array(rows, np.int64).reshape(-1, EVENT_COLUMNS)
