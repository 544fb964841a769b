"""From what a caller means to the messages of the contract, and the ids that make retries safe.

Pure but for `ClientOrderIds`, which asks the clock once an id. Nothing is checked here that the
server checks: there is one place that says what is wrong.
"""

import secrets
import threading
import time
from typing import Any, Final

from exchange.enums import OrderType, SelfTradePrevention, Side, TimeInForce
from exchange.v1 import order_entry_pb2

ACCOUNT_KEY: Final = "holdfast-account"
"""Metadata key in which a caller names its account."""
_SALT_BITS: Final = 12


class ClientOrderIds:
    """Hands out client order ids that rise and never repeat, also across restarts.

    An id is the time in microseconds and twelve bits that differ between clients, so that two
    programs of one account do not meet. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._salt = secrets.randbits(_SALT_BITS)
        self._last = 0

    def __call__(self) -> int:
        """Return the next id."""
        return self.block(1)

    def block(self, count: int) -> int:
        """Return the first of `count` ids that stand `1 << 12` apart."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000)
            first = self._last
            self._last += count - 1
        return first << _SALT_BITS | self._salt

    @staticmethod
    def step() -> int:
        """Return how far apart the ids of a block are."""
        return 1 << _SALT_BITS


def submit_request(
    pair: str,
    client_order_id: int,
    side: Side,
    *,
    price: str = "",
    quantity: str = "",
    amount: str = "",
    time_in_force: TimeInForce | None = None,
    self_trade_prevention: SelfTradePrevention = SelfTradePrevention.UNSPECIFIED,
    post_only: bool = False,
) -> order_entry_pb2.SubmitOrderRequest:
    """Return the request of a new order.

    With a price it is a limit order, good till cancelled unless said otherwise; without, a market
    order by quantity or by amount. Prices, quantities and amounts are decimal text.
    """
    order_type = OrderType.LIMIT
    if not price:
        order_type = OrderType.MARKET_BY_AMOUNT if amount else OrderType.MARKET
    if time_in_force is None:
        time_in_force = TimeInForce.IMMEDIATE_OR_CANCEL
        if order_type == OrderType.LIMIT:
            time_in_force = TimeInForce.GOOD_TILL_CANCELLED
    enums: dict[str, Any] = {
        "side": int(side),
        "order_type": int(order_type),
        "time_in_force": int(time_in_force),
        "self_trade_prevention": int(self_trade_prevention),
    }
    return order_entry_pb2.SubmitOrderRequest(
        pair=pair,
        client_order_id=client_order_id,
        price=price,
        quantity=quantity,
        amount=amount,
        post_only=post_only,
        **enums,
    )


def cancel_request(
    pair: str, order_id: int = 0, client_order_id: int = 0
) -> order_entry_pb2.CancelOrderRequest:
    """Return the request to cancel an order, named by either id."""
    return order_entry_pb2.CancelOrderRequest(
        pair=pair, order_id=order_id, client_order_id=client_order_id
    )


def amend_request(
    pair: str, order_id: int = 0, client_order_id: int = 0, *, price: str = "", quantity: str = ""
) -> order_entry_pb2.AmendOrderRequest:
    """Return the request to change an order; `quantity` is the whole order's."""
    return order_entry_pb2.AmendOrderRequest(
        pair=pair,
        order_id=order_id,
        client_order_id=client_order_id,
        price=price,
        quantity=quantity,
    )


def cancel_all_request(
    pair: str, side: Side = Side.UNSPECIFIED
) -> order_entry_pb2.CancelAllOrdersRequest:
    """Return the request to cancel all orders of one side, or of both."""
    side_number: Any = int(side)
    return order_entry_pb2.CancelAllOrdersRequest(pair=pair, side=side_number)
