"""The asyncio client of one pair: orders, market data, and what operators do.

Every call is retried while nobody answers, or while too much is under way, within one patience;
an order is retried with the same client order id, so it is never executed twice. Streams of
facts (executions, trades, depth, ticker) heal: after a lost connection they go on where they
stopped. Answers are the messages of the contract; errors are those of `holdfast.errors`.

`holdfast.blocking.Client` is the same for programs without asyncio.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from exchange.enums import Asset, Side
from exchange.identity import open_channel
from exchange.v1 import (
    execution_feed_pb2,
    execution_feed_pb2_grpc,
    execution_pb2,
    market_data_pb2,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from holdfast import requests
from holdfast.book import Book
from holdfast.calls import CHANNEL_OPTIONS, Closing, Metadata, made, until_lost
from holdfast.market.client import MARKET_DATA_TARGET, AsyncMarketData
from holdfast.retry import Attempts, Retry
from holdfast.streams import AsyncBatches, AsyncSession

ORDERS_TARGET: Final = "127.0.0.1:8850"

Message = TypeVar("Message")


class AsyncClient(Closing):
    """One account's, or an operator's, view of one pair. Use as an async context manager.

    `account` is needed for orders, not for market data. `target` is order entry, `market_data` the
    gateway; both are connected to when first used.
    """

    def __init__(
        self,
        pair: str,
        account: int = 0,
        *,
        target: str = ORDERS_TARGET,
        market_data: str = MARKET_DATA_TARGET,
        retry: Retry | None = None,
    ) -> None:
        self.pair = pair
        self.account = account
        self.retry = (retry or Retry()).validate()
        self.next_client_order_id = requests.ClientOrderIds()
        self._metadata: Metadata = ((requests.ACCOUNT_KEY, str(account)),)
        self._orders_channel = open_channel(target, options=CHANNEL_OPTIONS)
        self._orders = order_entry_pb2_grpc.OrderEntryServiceStub(self._orders_channel)
        self._feed = execution_feed_pb2_grpc.ExecutionFeedServiceStub(self._orders_channel)
        self._admin = pair_admin_pb2_grpc.PairAdminServiceStub(self._orders_channel)
        self.market = AsyncMarketData(market_data, retry=retry)

    async def close(self) -> None:
        """End all calls and connections."""
        await self._orders_channel.close()
        await self.market.close()

    async def _call(
        self, method: Callable[..., Awaitable[Message]], request: Any, retry: Retry | None = None
    ) -> Message:
        return await made(method, request, retry or self.retry, self._metadata)

    # Orders.

    async def submit(
        self, side: Side, *, client_order_id: int = 0, **order: Any
    ) -> execution_pb2.CommandReport:
        """Enter an order; return its report, whose kind may be REJECTED, or REPLAYED after a retry.

        Takes what `requests.submit_request` takes: price, quantity or amount as decimal text,
        time_in_force, self_trade_prevention, post_only. Without a client order id one is made.
        """
        given = client_order_id or self.next_client_order_id()
        request = requests.submit_request(self.pair, given, side, **order)
        return (await self._call(self._orders.SubmitOrder, request)).report

    async def cancel(
        self, order_id: int = 0, client_order_id: int = 0
    ) -> execution_pb2.CommandReport:
        """Cancel an order. After a retry ORDER_UNKNOWN can mean that the first attempt did it."""
        request = requests.cancel_request(self.pair, order_id, client_order_id)
        return (await self._call(self._orders.CancelOrder, request)).report

    async def amend(
        self, order_id: int = 0, client_order_id: int = 0, *, price: str = "", quantity: str = ""
    ) -> execution_pb2.CommandReport:
        """Change an order's price (empty: as it is) and its whole quantity."""
        request = requests.amend_request(
            self.pair, order_id, client_order_id, price=price, quantity=quantity
        )
        return (await self._call(self._orders.AmendOrder, request)).report

    async def cancel_all(self, side: Side = Side.UNSPECIFIED) -> execution_pb2.CommandReport:
        """Cancel all orders of a side, or of both."""
        request = requests.cancel_all_request(self.pair, side)
        return (await self._call(self._orders.CancelAllOrders, request)).report

    async def order(self, order_id: int = 0, client_order_id: int = 0) -> order_entry_pb2.Order:
        """Return one order, open or lately ended. Raises NotFound."""
        request = order_entry_pb2.GetOrderRequest(
            pair=self.pair, order_id=order_id, client_order_id=client_order_id
        )
        return (await self._call(self._orders.GetOrder, request)).order

    async def open_orders(self) -> list[order_entry_pb2.Order]:
        """Return all resting orders of the account."""
        found: list[order_entry_pb2.Order] = []
        token = ""
        while True:
            request = order_entry_pb2.ListOpenOrdersRequest(
                pair=self.pair, page_size=1_000, page_token=token
            )
            answer = await self._call(self._orders.ListOpenOrders, request)
            found.extend(answer.orders)
            token = answer.next_page_token
            if not token:
                return found

    def session(self, *, cancel_on_disconnect: bool = False) -> AsyncSession:
        """Return a pipelined stream of commands, to be used in `async with`."""
        return AsyncSession(
            self._orders,
            self.pair,
            self._metadata,
            self.next_client_order_id,
            cancel_on_disconnect=cancel_on_disconnect,
        )

    def batches(self, *, window: int = 16) -> AsyncBatches:
        """Return a stream of packed batches, to be used in `async with`."""
        return AsyncBatches(self._orders, self.pair, self._metadata, self.retry, window=window)

    async def executions(
        self, from_number: int | None = None
    ) -> AsyncIterator[execution_pb2.Execution]:
        """Yield the account's executions from a log number on, for ever; None: from now on.

        Goes on where it stopped after a lost connection. To go on in another process, start from
        the number of the last one that was worked off, plus one. Raises OutOfRange if the log does
        not reach back so far.
        """
        number = from_number
        if number is None:
            request = order_entry_pb2.ListOpenOrdersRequest(pair=self.pair, page_size=1)
            number = (await self._call(self._orders.ListOpenOrders, request)).as_of_number
        attempts = Attempts(self.retry)
        while True:
            request_from = order_entry_pb2.StreamExecutionsRequest(
                pair=self.pair, from_number=number
            )
            stream = self._orders.StreamExecutions(request_from, metadata=self._metadata)
            async for answer in until_lost(stream, attempts):
                for execution in answer.executions:
                    yield execution
                number = answer.next_number

    # Market data.

    async def instruments(self) -> list[market_data_pb2.Instrument]:
        """Return all instruments that the gateway shows."""
        return await self.market.instruments()

    async def ticker(self, retry: Retry | None = None) -> market_data_pb2.Ticker:
        """Return best prices, last trade and figures of the day."""
        return await self.market.get_ticker(self.pair, retry)

    async def depth(self, level_count: int = 20) -> market_data_pb2.Depth:
        """Return the best levels of both sides."""
        return await self.market.get_depth(self.pair, level_count)

    def watch_book(self, level_count: int = 20, interval_ms: int = 0) -> AsyncGenerator[Book, None]:
        """Yield one book, kept up to date, each time it may have changed."""
        return self.market.depth(self.pair, level_count, interval_ms)

    def watch_trades(
        self, from_trade_number: int = 0
    ) -> AsyncGenerator[market_data_pb2.Trade, None]:
        """Yield trades from a number on as far as the gateway has them; 0: from now on."""
        return self.market.trades(self.pair, from_trade_number)

    def watch_ticker(self, interval_ms: int = 0) -> AsyncGenerator[market_data_pb2.Ticker, None]:
        """Yield the ticker each time it changed."""
        return self.market.ticker(self.pair, interval_ms)

    # What operators and the exchange's own services do.

    async def allot_funds(
        self, account: int, asset: Asset, amount: str, transfer_number: int
    ) -> execution_pb2.CommandReport:
        """Put funds of an account into the engine; a repeated number changes nothing."""
        asset_number: Any = int(asset)
        request = pair_admin_pb2.AllotFundsRequest(
            pair=self.pair,
            account=account,
            asset=asset_number,
            amount=amount,
            transfer_number=transfer_number,
        )
        return (await self._call(self._admin.AllotFunds, request)).report

    async def status(self, retry: Retry | None = None) -> pair_admin_pb2.GetStatusResponse:
        """Return what the engine is doing."""
        request = pair_admin_pb2.GetStatusRequest(pair=self.pair)
        return await self._call(self._admin.GetStatus, request, retry)

    async def follow(
        self, from_number: int
    ) -> AsyncGenerator[execution_feed_pb2.FollowExecutionsResponse, None]:
        """Yield the whole pair's execution log in raw records of 128 bytes, and heartbeats."""
        number = from_number
        attempts = Attempts(self.retry)
        while True:
            request = execution_feed_pb2.FollowExecutionsRequest(
                pair=self.pair, from_number=number, record_version=1
            )
            async for answer in until_lost(self._feed.FollowExecutions(request), attempts):
                if answer.records:
                    number = answer.first_number + len(answer.records) // 128
                yield answer
