"""Holdfast for its users: a client of a pair, blocking or asyncio, and the `holdfast` command.

    from holdfast import Client, Side

    with Client("BTC-USDT", account=1) as client:
        report = client.submit(Side.BUY, price="64000.10", quantity="0.01")

It speaks to the exchange over gRPC only and imports nothing of its services.
"""

from exchange.enums import (
    Asset,
    ExecutionKind,
    OrderType,
    Reason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from holdfast import packed
from holdfast.blocking import Client
from holdfast.book import Book, Level
from holdfast.client import AsyncClient
from holdfast.errors import (
    CallFailed,
    Full,
    HoldfastError,
    InvalidRequest,
    NotFound,
    OrderRejected,
    OutcomeUnknown,
    OutOfRange,
    TryAgain,
    Unauthenticated,
    Unavailable,
    accepted,
)
from holdfast.retry import Retry

__all__ = [
    "Asset",
    "AsyncClient",
    "Book",
    "CallFailed",
    "Client",
    "ExecutionKind",
    "Full",
    "HoldfastError",
    "InvalidRequest",
    "Level",
    "NotFound",
    "OrderRejected",
    "OrderType",
    "OutOfRange",
    "OutcomeUnknown",
    "Reason",
    "Retry",
    "SelfTradePrevention",
    "Side",
    "TimeInForce",
    "TryAgain",
    "Unauthenticated",
    "Unavailable",
    "accepted",
    "packed",
]
