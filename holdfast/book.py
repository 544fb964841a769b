"""A subscriber's own book, kept from the messages of a depth stream.

Invariants: after every message that `apply` took, the book is the exchange's as of the end of the
command `sequence`; an update that does not follow what is here is never applied but raises `Gap`,
after which only a snapshot helps. No I/O, no clock.
"""

from bisect import insort
from typing import NamedTuple

from exchange.v1 import market_data_pb2


class Gap(Exception):
    """An update does not follow the book's own sequence: something was missed."""


class Level(NamedTuple):
    """One price of one side; the texts are the exchange's own."""

    price_ticks: int
    quantity_lots: int
    order_count: int
    price: str
    quantity: str


class Book:
    """Bids and asks of one pair as far down as the stream was asked for."""

    def __init__(self) -> None:
        self.epoch = 0
        self.sequence = 0
        self.time_ns = 0
        self.live = False
        """False until the first snapshot, and while the exchange says that data stand still."""
        self._levels: tuple[dict[int, Level], dict[int, Level]] = ({}, {})
        # Keys in ascending order, the best last: prices of bids, negative prices of asks.
        self._keys: tuple[list[int], list[int]] = ([], [])

    def apply(self, message: market_data_pb2.StreamDepthResponse) -> bool:
        """Take one message; say whether the book may have changed. Raises Gap."""
        kind = message.WhichOneof("event")
        if kind == "snapshot":
            self._start(message.snapshot)
        elif kind == "update":
            self._update(message.update)
        elif kind == "notice":
            down = market_data_pb2.NOTICE_KIND_ENGINE_DOWN
            restarted = market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
            if message.notice.kind in (down, restarted):
                self.live = False
        return kind in ("snapshot", "update", "notice")

    def bids(self, count: int = 20) -> list[Level]:
        """Return the best bids, best first."""
        return self._best(0, count)

    def asks(self, count: int = 20) -> list[Level]:
        """Return the best asks, best first."""
        return self._best(1, count)

    def _best(self, index: int, count: int) -> list[Level]:
        levels, keys = self._levels[index], self._keys[index]
        return [levels[key] for key in keys[: -count - 1 : -1]] if count > 0 else []

    def _start(self, depth: market_data_pb2.Depth) -> None:
        for index, found in enumerate((depth.bids, depth.asks)):
            self._levels[index].clear()
            self._keys[index].clear()
            for level in found:
                self._set(index, level)
        self.epoch, self.sequence, self.time_ns = depth.epoch, depth.sequence, depth.time_ns
        self.live = True

    def _update(self, update: market_data_pb2.DepthUpdate) -> None:
        if update.epoch != self.epoch or update.previous_sequence != self.sequence:
            raise Gap(
                f"an update follows sequence {update.previous_sequence} of epoch {update.epoch};"
                f" the book is at {self.sequence} of epoch {self.epoch}"
            )
        for index, found in enumerate((update.bids, update.asks)):
            for level in found:
                self._set(index, level)
        self.sequence, self.time_ns, self.live = update.sequence, update.time_ns, True

    def _set(self, index: int, level: market_data_pb2.Level) -> None:
        key = level.price_ticks if index == 0 else -level.price_ticks
        levels, keys = self._levels[index], self._keys[index]
        if level.quantity_lots == 0:
            if levels.pop(key, None) is not None:
                keys.remove(key)
            return
        if key not in levels:
            insort(keys, key)
        levels[key] = Level(
            level.price_ticks, level.quantity_lots, level.order_count, level.price, level.quantity
        )
