"""Holdfast for its users: clients of a pair and of money, and the `holdfast` command.

    from holdfast import Client, MoneyClient, Side

    with MoneyClient(account=1) as money:
        money.transfer("USDT", "1000", source="funding", target="trading")
    with Client("BTC-USDT", account=1) as client:
        report = client.submit(Side.BUY, price="64000.10", quantity="0.01")

For those who only look on there is `MarketData`. All come in two forms: blocking, and for asyncio
(`AsyncClient`, `AsyncMoneyClient`, `AsyncMarketData`).

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
    NotPermitted,
    OrderRejected,
    OutcomeUnknown,
    OutOfRange,
    TryAgain,
    Unauthenticated,
    Unavailable,
    accepted,
)
from holdfast.market.blocking import MarketData
from holdfast.market.client import AsyncMarketData
from holdfast.market.order_feed import OrderStep, StepKind
from holdfast.market.orders import OrderBook, Queue, RestingOrder
from holdfast.market.status import MarketStatus
from holdfast.money.answers import LimitChange, PairSequence
from holdfast.money.blocking import MoneyClient
from holdfast.money.client import AsyncMoneyClient
from holdfast.money.liabilities import LiabilityProof
from holdfast.money.verification import Finding
from holdfast.retry import Retry

__all__ = [
    "Asset",
    "AsyncClient",
    "AsyncMarketData",
    "AsyncMoneyClient",
    "Book",
    "CallFailed",
    "Client",
    "ExecutionKind",
    "Finding",
    "Full",
    "HoldfastError",
    "InvalidRequest",
    "Level",
    "LiabilityProof",
    "LimitChange",
    "MarketData",
    "MarketStatus",
    "MoneyClient",
    "NotFound",
    "NotPermitted",
    "OrderBook",
    "OrderRejected",
    "OrderStep",
    "OrderType",
    "OutOfRange",
    "OutcomeUnknown",
    "PairSequence",
    "Queue",
    "Reason",
    "RestingOrder",
    "Retry",
    "SelfTradePrevention",
    "Side",
    "StepKind",
    "TimeInForce",
    "TryAgain",
    "Unauthenticated",
    "Unavailable",
    "accepted",
    "packed",
]
