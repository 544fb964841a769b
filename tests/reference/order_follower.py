"""A follower of the public events that rebuilds the orders: docs/market-data-events.md in Python.

It reads the eight words of an event on its own account and complains about anything the page rules
out. It may begin late: then it knows a level's orders only as far as they came after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LEVEL, TRADE = 1, 2
NOTHING, ADDED, REDUCED, DELETED = range(4)
Key = tuple[int, int]
"""Side (1 buy, 2 sell) and price."""


@dataclass(slots=True)
class PublicOrder:
    """A resting order as everybody may know it."""

    number: int
    side: int
    price: int
    lots: int


class OrderFollower:
    """Orders by public number and levels by side and price, as the events tell them."""

    def __init__(self, levels: dict[Key, tuple[int, int]] | None = None) -> None:
        """Begin with an empty book, or late: with the levels as they are, of unknown orders."""
        self.late = levels is not None
        self.levels = dict(levels or {})
        self.orders: dict[int, PublicOrder] = {}
        self.queues: dict[Key, list[PublicOrder]] = {}

    def take(self, event: Sequence[int]) -> None:
        """Follow one event. Raises AssertionError when it contradicts the ones before."""
        verb, number = event[1], event[7]
        kind, side, action, lots = verb & 0xFF, verb >> 8 & 0xFF, verb >> 16 & 0xF, verb >> 20
        assert verb >= 0, verb
        if kind == TRADE:
            assert lots == 0
            self.trade(number, 3 - side, event[2], event[3], action)
        elif kind == LEVEL:
            self.change(number, (side, event[2]), action, lots)
            self.levels[side, event[2]] = event[3], event[6]
            if not event[6]:
                del self.levels[side, event[2]]
            hidden, hidden_orders = self.unknown((side, event[2]))
            assert min(hidden, hidden_orders) >= 0, event
            assert (hidden == 0) == (hidden_orders == 0), event
            assert self.late or hidden == 0, event
        else:
            assert (action, lots, number) == (NOTHING, 0, 0), event

    def change(self, number: int, key: Key, action: int, lots: int) -> None:
        """Follow what one order did, other than trading."""
        assert (number == 0) == (action == NOTHING)
        if action == NOTHING:
            assert lots == 0
            return
        assert lots > 0
        if action == ADDED:
            assert number not in self.orders, f"order {number} came twice"
            self.orders[number] = PublicOrder(number, *key, lots)
            self.queues.setdefault(key, []).append(self.orders[number])
        else:
            self.lower(number, key, lots, action)

    def trade(self, number: int, side: int, price: int, lots: int, action: int) -> None:
        """Follow a trade: the maker is at the front of its price."""
        assert action in (REDUCED, DELETED)
        known = self.orders.get(number)
        if known is not None:
            assert self.queues[side, price][0] is known, f"order {number} traded out of turn"
        self.lower(number, (side, price), lots, action)

    def lower(self, number: int, key: Key, lots: int, action: int) -> None:
        """Take lots off an order; DELETED says that nothing is left."""
        order = self.orders.get(number)
        if order is None:
            assert self.late, f"order {number} never came"
            return
        assert (order.side, order.price) == key
        order.lots -= lots
        assert order.lots >= 0
        assert (order.lots == 0) == (action == DELETED)
        if order.lots == 0:
            del self.orders[number]
            self.queues[key].remove(order)

    def unknown(self, key: Key) -> tuple[int, int]:
        """Return lots and count of a level's orders that came before this follower."""
        lots, count = self.levels.get(key, (0, 0))
        queue = self.queues.get(key, ())
        return lots - sum(order.lots for order in queue), count - len(queue)
