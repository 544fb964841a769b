"""The client for programs without asyncio: the same calls, which wait for their answers.

All blocking clients of a program share one background thread with one event loop, in which
`holdfast.client.AsyncClient` does the work; so there is one implementation of retries, resuming
and books. Safe to use from several threads. Not to be used inside a running event loop.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from exchange.enums import Asset, Side
from exchange.v1 import execution_pb2, market_data_pb2, order_entry_pb2, pair_admin_pb2
from holdfast import packed
from holdfast.book import Book
from holdfast.client import ORDERS_TARGET, AsyncClient
from holdfast.market.client import MARKET_DATA_TARGET
from holdfast.retry import Retry
from holdfast.streams import AsyncBatches, AsyncSession

Value = TypeVar("Value")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _background() -> asyncio.AbstractEventLoop:
    """Return the program's background loop; it is started once and ends with the program."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="holdfast", daemon=True).start()
        return _loop


def _soon(work: Coroutine[Any, Any, Value]) -> "concurrent.futures.Future[Value]":
    return asyncio.run_coroutine_threadsafe(work, _background())


def _wait(work: Coroutine[Any, Any, Value]) -> Value:
    return _soon(work).result()


async def _next(values: AsyncIterator[Value]) -> tuple[Value, ...]:
    async for value in values:
        return (value,)
    return ()


def _iterate(values: AsyncIterator[Value]) -> Iterator[Value]:
    """Yield what an asynchronous generator yields; close it when the caller has enough."""
    try:
        while found := _wait(_next(values)):
            yield found[0]
    finally:
        _wait(_close(values))


async def _close(values: Any) -> None:
    await values.aclose()


async def _make(*given: Any, **named: Any) -> AsyncClient:
    # gRPC ties a channel to the loop that runs when it is made.
    return AsyncClient(*given, **named)


class Session:
    """A pipelined stream of commands. Use as a context manager.

    Methods return futures at once, so that many commands can be under way; `result()` waits.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def __enter__(self) -> Self:
        _wait(self._session.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _wait(self._session.__aexit__(kind, error, trace))

    def submit(
        self, side: Side, *, client_order_id: int = 0, **order: Any
    ) -> "concurrent.futures.Future[execution_pb2.CommandReport]":
        """Enter an order."""
        return _soon(self._session.submit(side, client_order_id=client_order_id, **order))

    def cancel(
        self, order_id: int = 0, client_order_id: int = 0
    ) -> "concurrent.futures.Future[execution_pb2.CommandReport]":
        """Cancel an order."""
        return _soon(self._session.cancel(order_id, client_order_id))

    def amend(
        self, order_id: int = 0, client_order_id: int = 0, *, price: str = "", quantity: str = ""
    ) -> "concurrent.futures.Future[execution_pb2.CommandReport]":
        """Change an order."""
        work = self._session.amend(order_id, client_order_id, price=price, quantity=quantity)
        return _soon(work)

    def cancel_all(
        self, side: Side = Side.UNSPECIFIED
    ) -> "concurrent.futures.Future[execution_pb2.CommandReport]":
        """Cancel all orders of a side, or of both."""
        return _soon(self._session.cancel_all(side))


class Batches:
    """A stream of packed batches. Use as a context manager."""

    def __init__(self, batches: AsyncBatches) -> None:
        self._batches = batches

    def __enter__(self) -> Self:
        _wait(self._batches.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _wait(self._batches.__aexit__(kind, error, trace))

    def submit(self, records: packed.Records) -> packed.Acks:
        """Send one batch, (n,) of RECORD_DTYPE; return its (n,) acknowledgements."""
        return _wait(self._batches.submit(records))

    def submit_soon(self, records: packed.Records) -> "concurrent.futures.Future[packed.Acks]":
        """Send one batch; return what becomes its acknowledgements."""
        return _soon(self._batches.submit(records))


class Client:
    """One account's, or an operator's, view of one pair. Use as a context manager.

    The methods are those of `AsyncClient`, where each is explained.
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
        self._client = _wait(
            _make(pair, account, target=target, market_data=market_data, retry=retry)
        )

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
        """End all calls and connections."""
        _wait(self._client.close())

    def submit(
        self, side: Side, *, client_order_id: int = 0, **order: Any
    ) -> execution_pb2.CommandReport:
        """Enter an order; return its report, whose kind may be REJECTED."""
        return _wait(self._client.submit(side, client_order_id=client_order_id, **order))

    def cancel(self, order_id: int = 0, client_order_id: int = 0) -> execution_pb2.CommandReport:
        """Cancel an order."""
        return _wait(self._client.cancel(order_id, client_order_id))

    def amend(
        self, order_id: int = 0, client_order_id: int = 0, *, price: str = "", quantity: str = ""
    ) -> execution_pb2.CommandReport:
        """Change an order's price (empty: as it is) and its whole quantity."""
        return _wait(self._client.amend(order_id, client_order_id, price=price, quantity=quantity))

    def cancel_all(self, side: Side = Side.UNSPECIFIED) -> execution_pb2.CommandReport:
        """Cancel all orders of a side, or of both."""
        return _wait(self._client.cancel_all(side))

    def order(self, order_id: int = 0, client_order_id: int = 0) -> order_entry_pb2.Order:
        """Return one order, open or lately ended. Raises NotFound."""
        return _wait(self._client.order(order_id, client_order_id))

    def open_orders(self) -> list[order_entry_pb2.Order]:
        """Return all resting orders of the account."""
        return _wait(self._client.open_orders())

    def session(self, *, cancel_on_disconnect: bool = False) -> Session:
        """Return a pipelined stream of commands, to be used in `with`."""
        return Session(self._client.session(cancel_on_disconnect=cancel_on_disconnect))

    def batches(self, *, window: int = 16) -> Batches:
        """Return a stream of packed batches, to be used in `with`."""
        return Batches(self._client.batches(window=window))

    def executions(self, from_number: int | None = None) -> Iterator[execution_pb2.Execution]:
        """Yield the account's executions from a log number on, for ever; None: from now on."""
        return _iterate(self._client.executions(from_number))

    def instruments(self) -> list[market_data_pb2.Instrument]:
        """Return all instruments that the gateway shows."""
        return _wait(self._client.instruments())

    def ticker(self) -> market_data_pb2.Ticker:
        """Return best prices, last trade and figures of the day."""
        return _wait(self._client.ticker())

    def depth(self, level_count: int = 20) -> market_data_pb2.Depth:
        """Return the best levels of both sides."""
        return _wait(self._client.depth(level_count))

    def watch_book(self, level_count: int = 20, interval_ms: int = 0) -> Iterator[Book]:
        """Yield one book each time it may have changed. Between two of them it stands still."""
        return _iterate(self._client.watch_book(level_count, interval_ms))

    def watch_trades(self, from_trade_number: int = 0) -> Iterator[market_data_pb2.Trade]:
        """Yield trades from a number on as far as the gateway has them; 0: from now on."""
        return _iterate(self._client.watch_trades(from_trade_number))

    def watch_ticker(self, interval_ms: int = 0) -> Iterator[market_data_pb2.Ticker]:
        """Yield the ticker each time it changed."""
        return _iterate(self._client.watch_ticker(interval_ms))

    def allot_funds(
        self, account: int, asset: Asset, amount: str, transfer_number: int
    ) -> execution_pb2.CommandReport:
        """Put funds of an account into the engine; a repeated number changes nothing."""
        return _wait(self._client.allot_funds(account, asset, amount, transfer_number))

    def status(self) -> pair_admin_pb2.GetStatusResponse:
        """Return what the engine is doing."""
        return _wait(self._client.status())
