"""The twin's book: one sorted map of prices for each side, one queue of orders at each price.

Invariant: a price without orders is not in the map. Knows no money and no rule.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from sortedcontainers import SortedDict

from exchange.enums import Side
from exchange.records import ORDER_SLOT_BITS

Queue = OrderedDict[int, "Order"]


@dataclass(slots=True)
class Order:
    """An order, incoming or resting."""

    number: int
    slot: int
    account: int
    client_order_id: int
    side: int
    order_type: int
    time_in_force: int
    price: int
    prevention: int
    post_only: bool
    leaves: int
    """Lots left; of an order by amount the quote units left."""
    filled: int
    maker_ppm: int
    hold_ppm: int

    @property
    def order_id(self) -> int:
        """Return the id the order is known by outside."""
        return self.number << ORDER_SLOT_BITS | self.slot


def opposite(side: int) -> int:
    """Return the other side."""
    return Side.SELL if side == Side.BUY else Side.BUY


def crosses(side: int, limit: int, price: int) -> bool:
    """Say whether an order of this side and limit trades at this price of the other side."""
    return price <= limit if side == Side.BUY else price >= limit


class Book:
    """All resting orders."""

    def __init__(self) -> None:
        self.levels = {Side.BUY: SortedDict(), Side.SELL: SortedDict()}
        self.orders: dict[int, Order] = {}

    def best(self, side: int) -> int:
        """Return the best price of a side, 0 when it is empty."""
        prices = self.levels[Side(side)]
        if not prices:
            return 0
        price: int = prices.peekitem(-1 if side == Side.BUY else 0)[0]
        return price

    def first(self, side: int) -> Order | None:
        """Return the oldest order at the best price of a side."""
        price = self.best(side)
        if price == 0:
            return None
        queue: Queue = self.levels[Side(side)][price]
        return next(iter(queue.values()))

    def append(self, order: Order) -> None:
        """Put an order at the back of its price."""
        queue = self.levels[Side(order.side)].setdefault(order.price, OrderedDict())
        queue[order.order_id] = order
        self.orders[order.order_id] = order

    def remove(self, order: Order) -> None:
        """Take an order out."""
        prices = self.levels[Side(order.side)]
        del prices[order.price][order.order_id]
        if not prices[order.price]:
            del prices[order.price]
        del self.orders[order.order_id]

    def in_turn(self, side: int, limit: int) -> Iterator[Order]:
        """Walk the orders of a side that an order of the other side meets, in its order."""
        prices = self.levels[Side(side)]
        for price in reversed(prices) if side == Side.BUY else iter(prices):
            if not crosses(opposite(side), limit, price):
                return
            yield from prices[price].values()

    def depth(self, side: int) -> list[tuple[int, int, int]]:
        """Return (price, lots, orders) of each level of a side, best first."""
        levels = [
            (price, sum(order.leaves for order in queue.values()), len(queue))
            for price, queue in self.levels[Side(side)].items()
        ]
        return levels[::-1] if side == Side.BUY else levels
