"""The resting orders of one pair by their public numbers, each in its turn; pure.

What a level holds beyond the orders that were told are *unknown* orders: they rested before the
gateway began to watch, and stand before the known ones. An event about a number that was not told
is about them.

Invariants: levels are the sums of their orders and of their unknown part. Whatever does not fit
raises `Gap`, after which the book is to be begun anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from exchange.enums import Side
from exchange.v1 import market_data_pb2 as of
from holdfast.book import Gap
from holdfast.market.levels import ASKS, BIDS, Levels


class RestingOrder(NamedTuple):
    """One order; nobody but its owner knows whose it is."""

    number: int
    side: Side
    price_ticks: int
    quantity_lots: int


class Queue(NamedTuple):
    """The orders of one price of one side, as they are now."""

    price_ticks: int
    quantity_lots: int
    """All of the level, the unknown part included."""
    order_count: int
    orders: tuple[RestingOrder, ...]
    """Those that are known, first in turn first."""
    unknown_lots: int
    """What stands before them; zero, if all orders are known."""
    unknown_count: int


@dataclass(slots=True)
class _Level:
    side: Side
    price_ticks: int
    lots: dict[int, int] = field(default_factory=dict)
    """Lots of the known orders by their numbers, first in turn first."""
    known_lots: int = 0
    unknown_lots: int = 0
    unknown_count: int = 0

    def queue(self) -> Queue:
        """Return what it is now."""
        side, price = self.side, self.price_ticks
        orders = tuple(
            RestingOrder(number, side, price, lots) for number, lots in self.lots.items()
        )
        total, count = self.known_lots + self.unknown_lots, len(orders) + self.unknown_count
        return Queue(price, total, count, orders, self.unknown_lots, self.unknown_count)


class OrderBook:
    """Bids and asks of one pair, order by order, as of the end of a command."""

    def __init__(self) -> None:
        self.epoch = 0
        self.sequence = 0
        """The last command included."""
        self.time_ns = 0
        """Time of the last event; zero: there was none since the snapshot."""
        self.live = False
        """False until the first snapshot, and while data stand still or the line is lost."""
        self._levels = Levels[_Level]()
        self._at: dict[int, _Level] = {}
        """Where each known order is, by its number."""

    def __len__(self) -> int:
        """Return how many orders are known."""
        return len(self._at)

    def bids(self, count: int = 20) -> list[Queue]:
        """Return the best bids, best first."""
        return [level.queue() for level in self._levels.best(BIDS, count)]

    def asks(self, count: int = 20) -> list[Queue]:
        """Return the best asks, best first."""
        return [level.queue() for level in self._levels.best(ASKS, count)]

    def order(self, number: int) -> RestingOrder | None:
        """Return an order by its public number; None: it does not rest, or is not known."""
        level = self._at.get(number)
        if level is None:
            return None
        return RestingOrder(number, level.side, level.price_ticks, level.lots[number])

    def lots_ahead(self, number: int) -> int | None:
        """Return how much has its turn before a known order at the same price."""
        level = self._at.get(number)
        if level is None:
            return None
        ahead = level.unknown_lots
        for other, lots in level.lots.items():
            if other == number:
                break
            ahead += lots
        return ahead

    def begin(self, parts: Sequence[of.OrderSnapshot]) -> None:
        """Hold what the parts of a snapshot say, and nothing else. Raises Gap."""
        self.forget()
        for part in parts:
            for one in part.orders:
                self._add(one.order_number, one.side, one.price_ticks, one.quantity_lots)
            for rest in part.unknown:
                level = self._level(rest.side, rest.price_ticks)
                level.unknown_lots, level.unknown_count = rest.quantity_lots, rest.order_count
                if min(rest.quantity_lots, rest.order_count) <= 0:
                    raise Gap(f"{rest.order_count} unknown orders have {rest.quantity_lots} lots")
        self.epoch, self.sequence = parts[-1].epoch, parts[-1].sequence

    def forget(self) -> None:
        """Hold nothing any more."""
        self._levels.clear()
        self._at.clear()
        self.epoch = self.sequence = self.time_ns = 0
        self.live = False

    def apply(self, event: of.OrderEvent) -> None:
        """Take the event that follows the last one. Raises Gap."""
        number = event.order_number
        if event.action == of.ORDER_ACTION_ADD:
            self._add(number, event.side, event.price_ticks, event.quantity_lots)
        elif number in self._at:
            self._lower(self._at[number], event)
        else:
            self._lower_unknown(event)
        self.sequence, self.time_ns = event.sequence, event.time_ns

    def _level(self, side: int, price: int) -> _Level:
        level = self._levels.get(_place(side), price)
        if level is None:
            level = _Level(Side(side), price)
            self._levels.set(_place(side), price, level)
        return level

    def _add(self, number: int, side: int, price: int, lots: int) -> None:
        if number in self._at or lots <= 0:
            raise Gap(f"order {number} came with {lots} lots; {self.order(number)} is held")
        level = self._at[number] = self._level(side, price)
        level.lots[number] = lots
        level.known_lots += lots

    def _lower(self, level: _Level, event: of.OrderEvent) -> None:
        number, lots = event.order_number, event.quantity_lots
        left = level.lots[number] - lots
        fits = (
            (int(level.side), level.price_ticks) == (int(event.side), event.price_ticks)
            and lots > 0
            and left >= 0
            and (left == 0) == event.is_gone
        )
        if event.action == of.ORDER_ACTION_EXECUTE:
            fits = fits and not level.unknown_count and next(iter(level.lots)) == number
        if not fits:
            raise Gap(f"what happened at {event.position} does not fit {self.order(number)}")
        level.known_lots -= lots
        level.lots[number] = left
        if event.is_gone:
            del level.lots[number], self._at[number]
            self._drop_if_empty(level)

    def _lower_unknown(self, event: of.OrderEvent) -> None:
        level = self._levels.get(_place(event.side), event.price_ticks)
        if level is None or not level.unknown_count:
            # Deeper than what was told, when the snapshot was made.
            return
        level.unknown_lots -= event.quantity_lots
        level.unknown_count -= event.is_gone
        least = min(level.unknown_lots, level.unknown_count)
        if least < 0 or (level.unknown_lots == 0) != (level.unknown_count == 0):
            raise Gap(f"what happened at {event.position} is more than the level's unknown part")
        self._drop_if_empty(level)

    def _drop_if_empty(self, level: _Level) -> None:
        if not level.lots and not level.unknown_count:
            self._levels.remove(_place(level.side), level.price_ticks)


def _place(side: int) -> int:
    """Return where levels of a side are kept."""
    if side not in (Side.BUY, Side.SELL):
        raise Gap(f"side is {side}; it must be {int(Side.BUY)} or {int(Side.SELL)}")
    return BIDS if side == Side.BUY else ASKS
