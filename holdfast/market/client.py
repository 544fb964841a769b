"""The asyncio client of market data: all pairs of one gateway, nothing about trading.

Streams heal: after a lost connection they go on where they stopped, and a book is never shown that
is not the exchange's (docs/market-data.md is the procedure this follows). Trades carry
numbers without gaps: a hole in them says that the gateway no longer had some.

`MarketData` is the same for programs without asyncio.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final

from grpc import aio

from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from holdfast.book import Book, Gap
from holdfast.calls import CHANNEL_OPTIONS, Closing, Message, Metadata, made, until_lost
from holdfast.market.order_feed import OrderFeed, OrderStep
from holdfast.market.status import MarketStatus, StatusFeed
from holdfast.retry import Attempts, Retry

MARKET_DATA_TARGET: Final = "127.0.0.1:8851"
KEY_METADATA: Final = "holdfast-market-data-key"
_LOST: Final = "the connection to the gateway is lost"


class AsyncMarketData(Closing):
    """Instruments, tickers, books, orders, trades, candles. Use as an async context manager.

    `key` is a market data key; without one the gateway's anonymous tier applies.
    """

    def __init__(
        self, target: str = MARKET_DATA_TARGET, *, key: str = "", retry: Retry | None = None
    ) -> None:
        self.retry = (retry or Retry()).validate()
        self._metadata: Metadata = ((KEY_METADATA, key),) if key else ()
        self._channel = aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub = market_data_pb2_grpc.MarketDataServiceStub(self._channel)

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close()

    async def instruments(self) -> list[market_data_pb2.Instrument]:
        """Return all instruments that the gateway shows."""
        request = market_data_pb2.ListInstrumentsRequest()
        return list((await self._made(self._stub.ListInstruments, request)).instruments)

    async def get_ticker(self, pair: str, retry: Retry | None = None) -> market_data_pb2.Ticker:
        """Return best prices, last trade and figures of the day and of 24 hours."""
        request = market_data_pb2.GetTickerRequest(pair=pair)
        return (await self._made(self._stub.GetTicker, request, retry)).ticker

    async def get_depth(self, pair: str, level_count: int = 20) -> market_data_pb2.Depth:
        """Return the best levels of both sides; -1: all."""
        request = market_data_pb2.GetDepthRequest(pair=pair, level_count=level_count)
        return (await self._made(self._stub.GetDepth, request)).depth

    async def get_trades(
        self, pair: str, from_trade_number: int = 0, count: int = 100
    ) -> list[market_data_pb2.Trade]:
        """Return trades from a number on, oldest first; 0: the newest."""
        request = market_data_pb2.ListTradesRequest(
            pair=pair, from_trade_number=from_trade_number, page_size=count
        )
        return list((await self._made(self._stub.ListTrades, request)).trades)

    async def get_candles(
        self,
        pair: str,
        interval: market_data_pb2.CandleInterval.ValueType,
        *,
        from_ns: int = 0,
        to_ns: int = 0,
        count: int = 100,
    ) -> list[market_data_pb2.Candle]:
        """Return the newest candles of a span of time, oldest first."""
        request = market_data_pb2.GetCandlesRequest(
            pair=pair, interval=interval, from_ns=from_ns, to_ns=to_ns, page_size=count
        )
        return list((await self._made(self._stub.GetCandles, request)).candles)

    async def depth(
        self, pair: str, level_count: int = 20, interval_ms: int = 0
    ) -> AsyncGenerator[Book, None]:
        """Yield one book, kept up to date, each time it may have changed.

        It is the same object each time; `book.live` is False while data stand still. A gap, a
        checksum that differs or a lost connection leads to a new book, never to a wrong one.
        """
        book = Book()
        attempts = Attempts(self.retry)
        while True:
            request = market_data_pb2.StreamDepthRequest(
                pair=pair,
                level_count=level_count,
                interval_ms=interval_ms,
                held_epoch=book.epoch,
                held_sequence=book.sequence,
            )
            stream = self._stub.StreamDepth(request, metadata=self._metadata)
            try:
                async for answer in self._heard(stream, attempts):
                    if book.apply(answer):
                        yield book
            except Gap:
                # What is held leads nowhere: the next request asks for a snapshot.
                book.forget()
            finally:
                stream.cancel()
            book.stall()
            yield book

    async def trades(
        self, pair: str, from_trade_number: int = 0
    ) -> AsyncGenerator[market_data_pb2.Trade, None]:
        """Yield trades from a number on as far as the gateway has them; 0: from now on.

        A number that is not above the one before it says that the pair's data were made anew.
        """
        number, held_time_ns = from_trade_number, 0
        attempts = Attempts(self.retry)
        while True:
            request = market_data_pb2.StreamTradesRequest(
                pair=pair, from_trade_number=number, held_time_ns=held_time_ns
            )
            stream = self._stub.StreamTrades(request, metadata=self._metadata)
            async for answer in self._heard(stream, attempts):
                for trade in answer.trades.trades:
                    yield trade
                    number, held_time_ns = trade.trade_number + 1, trade.time_ns
                if answer.notice.next_trade_number:
                    number, held_time_ns = answer.notice.next_trade_number, 0

    async def ticker(
        self, pair: str, interval_ms: int = 0
    ) -> AsyncGenerator[market_data_pb2.Ticker, None]:
        """Yield the ticker each time it changed."""
        request = market_data_pb2.StreamTickerRequest(pair=pair, interval_ms=interval_ms)
        attempts = Attempts(self.retry)
        while True:
            stream = self._stub.StreamTicker(request, metadata=self._metadata)
            async for answer in self._heard(stream, attempts):
                if answer.WhichOneof("event") == "ticker":
                    yield answer.ticker

    async def candles(
        self, pair: str, interval: market_data_pb2.CandleInterval.ValueType
    ) -> AsyncGenerator[market_data_pb2.Candle, None]:
        """Yield the newest candles, then each that changed; one of the same start replaces it."""
        request = market_data_pb2.StreamCandlesRequest(pair=pair, interval=interval)
        attempts = Attempts(self.retry)
        while True:
            stream = self._stub.StreamCandles(request, metadata=self._metadata)
            async for answer in self._heard(stream, attempts):
                for candle in answer.candles.candles:
                    yield candle

    async def orders(self, pair: str) -> AsyncGenerator[OrderStep, None]:
        """Yield what happened to resting orders, command by command, and the book after each.

        `step.events` are those of one command, each told once; `step.book` is the same object each
        time. After a lost connection it goes on with the event after the last; if that is no longer
        kept, or the engine is another one, `step.kind` says so and the book is begun anew.
        """
        feed = OrderFeed()
        attempts = Attempts(self.retry)
        while True:
            epoch, position = feed.held()
            request = market_data_pb2.StreamOrdersRequest(
                pair=pair, held_epoch=epoch, held_position=position
            )
            stream = self._stub.StreamOrders(request, metadata=self._metadata)
            feed.begin_stream()
            try:
                async for answer in self._heard(stream, attempts):
                    for step in feed.take(answer):
                        yield step
            except Gap as gap:
                # What is held leads nowhere: the next request asks for a snapshot.
                for step in feed.forget(str(gap)):
                    yield step
            finally:
                stream.cancel()
            for step in feed.lose(_LOST):
                yield step

    async def get_status(self, pair: str) -> market_data_pb2.PairState:
        """Return what the pair accepts, how its engine is and how far the gateway is."""
        request = market_data_pb2.GetMarketStatusRequest(pair=pair)
        return (await self._made(self._stub.GetMarketStatus, request)).state

    async def status(self, pair: str) -> AsyncGenerator[MarketStatus, None]:
        """Yield the status at once, when it changes, and at each heartbeat of a silent stream.

        So something comes every second or two, or `retry.silence_s` after the gateway fell silent.
        """
        feed = StatusFeed()
        request = market_data_pb2.StreamMarketStatusRequest(pair=pair)
        attempts = Attempts(self.retry)
        while True:
            stream = self._stub.StreamMarketStatus(request, metadata=self._metadata)
            async for answer in self._heard(stream, attempts):
                status = feed.take(answer)
                if status is not None:
                    yield status
            yield feed.lose(_LOST)

    def _heard(self, stream: Any, attempts: Attempts) -> AsyncIterator[Any]:
        return until_lost(stream, attempts, self.retry.silence_s)

    async def _made(
        self, method: Callable[..., Awaitable[Message]], request: Any, retry: Retry | None = None
    ) -> Message:
        return await made(method, request, retry or self.retry, self._metadata)
