"""The client of market data for programs without asyncio; see ``holdfast.market.client``."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from exchange.v1 import market_data_pb2
from holdfast.blocking import _iterate, _wait
from holdfast.book import Book
from holdfast.market.client import MARKET_DATA_TARGET, AsyncMarketData
from holdfast.market.order_feed import OrderStep
from holdfast.market.status import MarketStatus
from holdfast.retry import Retry


async def _make(*given: Any, **named: Any) -> AsyncMarketData:
    # gRPC ties a channel to the loop that runs when it is made.
    return AsyncMarketData(*given, **named)


class MarketData:
    """Instruments, tickers, books, orders, trades, candles. Use as a context manager."""

    def __init__(
        self, target: str = MARKET_DATA_TARGET, *, key: str = "", retry: Retry | None = None
    ) -> None:
        self._client = _wait(_make(target, key=key, retry=retry))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all calls and the connection."""
        _wait(self._client.close())

    def instruments(self) -> list[market_data_pb2.Instrument]:
        """Return all instruments that the gateway shows."""
        return _wait(self._client.instruments())

    def get_ticker(self, pair: str) -> market_data_pb2.Ticker:
        """Return best prices, last trade and figures of the day and of 24 hours."""
        return _wait(self._client.get_ticker(pair))

    def get_depth(self, pair: str, level_count: int = 20) -> market_data_pb2.Depth:
        """Return the best levels of both sides; -1: all."""
        return _wait(self._client.get_depth(pair, level_count))

    def get_trades(
        self, pair: str, from_trade_number: int = 0, count: int = 100
    ) -> list[market_data_pb2.Trade]:
        """Return trades from a number on, oldest first; 0: the newest."""
        return _wait(self._client.get_trades(pair, from_trade_number, count))

    def get_candles(
        self,
        pair: str,
        interval: market_data_pb2.CandleInterval.ValueType,
        *,
        from_ns: int = 0,
        to_ns: int = 0,
        count: int = 100,
    ) -> list[market_data_pb2.Candle]:
        """Return the newest candles of a span of time, oldest first."""
        span = {"from_ns": from_ns, "to_ns": to_ns, "count": count}
        return _wait(self._client.get_candles(pair, interval, **span))

    def depth(self, pair: str, level_count: int = 20, interval_ms: int = 0) -> Iterator[Book]:
        """Yield one book each time it may have changed. Between two of them it stands still."""
        return _iterate(self._client.depth(pair, level_count, interval_ms))

    def trades(self, pair: str, from_trade_number: int = 0) -> Iterator[market_data_pb2.Trade]:
        """Yield trades from a number on as far as the gateway has them; 0: from now on."""
        return _iterate(self._client.trades(pair, from_trade_number))

    def ticker(self, pair: str, interval_ms: int = 0) -> Iterator[market_data_pb2.Ticker]:
        """Yield the ticker each time it changed."""
        return _iterate(self._client.ticker(pair, interval_ms))

    def candles(
        self, pair: str, interval: market_data_pb2.CandleInterval.ValueType
    ) -> Iterator[market_data_pb2.Candle]:
        """Yield the newest candles, then each that changed."""
        return _iterate(self._client.candles(pair, interval))

    def orders(self, pair: str) -> Iterator[OrderStep]:
        """Yield what happened to resting orders, command by command, and the book after each."""
        return _iterate(self._client.orders(pair))

    def get_status(self, pair: str) -> market_data_pb2.PairState:
        """Return what the pair accepts, how its engine is and how far the gateway is."""
        return _wait(self._client.get_status(pair))

    def status(self, pair: str) -> Iterator[MarketStatus]:
        """Yield the status at once, when it changes, and at each heartbeat in silence."""
        return _iterate(self._client.status(pair))
