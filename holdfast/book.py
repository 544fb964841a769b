"""A subscriber's own book, kept from the messages of a depth stream.

Invariants: after every message that `apply` took, the book is the exchange's as of the end of the
command `sequence`, proved by its checksum; an update that does not follow what is here is never
applied but raises `Gap`, after which it is to be forgotten. No I/O, no clock.
"""

from typing import NamedTuple

from exchange.v1 import market_data_pb2
from holdfast.market.levels import ASKS, BIDS, CHECKED_LEVELS, Levels, checksum
from holdfast.market.presence import Presence


class Gap(Exception):
    """What came does not follow the book, or does not lead to the book the exchange has."""


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
        """False until the first snapshot, and while the exchange says that data stand still; also
        of a book that is begun while the engine is down, until it is said to be back."""
        self._levels = Levels[Level]()
        self._presence = Presence()

    def stall(self) -> None:
        """Say that the connection is lost: nothing is known of the present until more comes."""
        self.live = False
        self._presence.begin_stream()

    def forget(self) -> None:
        """Hold nothing any more, until a snapshot comes."""
        self._levels.clear()
        self.epoch = self.sequence = 0
        self.stall()

    def apply(self, message: market_data_pb2.StreamDepthResponse) -> bool:
        """Take one message; say whether the book may have changed. Raises Gap."""
        kind = message.WhichOneof("event")
        if kind == "snapshot":
            self._start(message.snapshot)
        elif kind == "update":
            self._update(message.update)
        elif kind == "notice":
            self._presence.heed(message.notice)
            down = market_data_pb2.NOTICE_KIND_ENGINE_DOWN
            restarted = market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
            if message.notice.kind in (down, restarted):
                self.live = False
        elif kind == "heartbeat":
            # Silence, and nothing missed: the book a returning subscriber held is the present one.
            return self._revive(message.heartbeat.position)
        return kind in ("snapshot", "update", "notice")

    def bids(self, count: int = 20) -> list[Level]:
        """Return the best bids, best first."""
        return self._levels.best(BIDS, count)

    def asks(self, count: int = 20) -> list[Level]:
        """Return the best asks, best first."""
        return self._levels.best(ASKS, count)

    def checksum(self) -> int:
        """Return the checksum of what is here, as the exchange computes it."""
        sides = (
            [(level.price_ticks, level.quantity_lots) for level in side]
            for side in (self.bids(CHECKED_LEVELS), self.asks(CHECKED_LEVELS))
        )
        return checksum(*sides)

    def _start(self, depth: market_data_pb2.Depth) -> None:
        self._levels.clear()
        self._put(depth)
        self.epoch, self.sequence, self.time_ns = depth.epoch, depth.sequence, depth.time_ns
        self._prove(depth.checksum)

    def _update(self, update: market_data_pb2.DepthUpdate) -> None:
        if update.epoch != self.epoch or update.previous_sequence != self.sequence:
            raise Gap(
                f"an update follows sequence {update.previous_sequence} of epoch {update.epoch};"
                f" the book is at {self.sequence} of epoch {self.epoch}"
            )
        self._put(update)
        self.sequence, self.time_ns = update.sequence, update.time_ns
        self._prove(update.checksum)

    def _prove(self, expected: int) -> None:
        found = self.checksum()
        if found != expected:
            raise Gap(f"the checksum at {self.sequence} is {found}; it must be {expected}")
        self.live = self._presence.is_up(self.epoch)

    def _revive(self, position: int) -> bool:
        follows = position == self.sequence > 0
        revived = not self.live and follows and self._presence.is_up(self.epoch)
        self.live = self.live or revived
        return revived

    def _put(self, content: market_data_pb2.Depth | market_data_pb2.DepthUpdate) -> None:
        for side, levels in ((BIDS, content.bids), (ASKS, content.asks)):
            for level in levels:
                if level.quantity_lots == 0:
                    self._levels.remove(side, level.price_ticks)
                    continue
                lots, orders = level.quantity_lots, level.order_count
                entry = Level(level.price_ticks, lots, orders, level.price, level.quantity)
                self._levels.set(side, level.price_ticks, entry)
