"""The client side of a relay: five streams of another gateway, one inbox.

One task follows all streams of a pair; when one of them ends, fails, or is silent for longer than
heartbeats allow, all are given up and opened anew, with what is held to resume from. What arrives
is put into the inbox in the order of its stream; a full inbox stops reading, and then the upstream
conflates for us as for any slow subscriber. Nothing is judged here.

A gateway may have no orders to tell: it follows one that has none, or we may not have them. Then
the rest goes on without, and it is asked again from time to time. Once it has told orders, it must
go on doing so.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import grpc
from grpc import aio

from exchange.service import refusal_in
from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from mdgateway.feed.records import FULL
from mdgateway.keys.admission import GRPC_METADATA_KEY

INBOX_CAPACITY: Final = 4_096
SILENCE_S: Final = 5
"""Several heartbeats: a stream silent for so long is dead, whatever its connection says."""
FIRST_PAUSE_S: Final = 0.05
LAST_PAUSE_S: Final = 2.0
ORDERS_PAUSE_S: Final = 1.0
"""How long until a gateway without orders is asked for them again."""
RECEIVE_LIMIT_BYTES: Final = 64 << 20

log = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]


class Connected(NamedTuple):
    """The first thing put into the inbox for each new set of streams."""

    instrument: market_data_pb2.Instrument


class Lost(NamedTuple):
    """The streams ended; `reason` is a sentence for people."""

    reason: str


Item = (
    Connected
    | Lost
    | market_data_pb2.StreamDepthResponse
    | market_data_pb2.StreamTradesResponse
    | market_data_pb2.StreamTickerResponse
    | market_data_pb2.StreamMarketStatusResponse
    | market_data_pb2.StreamOrdersResponse
)


class Holder(Protocol):
    """Who says where to resume."""

    def held(self) -> tuple[int, int]:
        """Return epoch and sequence of the snapshot or update taken last; zeros: nothing."""

    def next_trade_number(self) -> int:
        """Return the number of the first trade wanted."""

    def held_time_ns(self) -> int:
        """Return the time of the trade before it; zero: it is not known."""

    def held_orders(self) -> tuple[int, int]:
        """Return epoch and position of the order batch taken last; zeros: nothing."""

    def tells_orders(self) -> bool:
        """Return whether orders were ever taken."""

    def do_without_orders(self) -> None:
        """Hear that there are no orders to be had for now."""

    def arrived(self) -> None:
        """Hear that there is something in the inbox."""


class Upstream:
    """Follows one pair of another gateway."""

    def __init__(
        self, address: str, pair: str, holder: Holder, key_file: Path | None = None
    ) -> None:
        self.address = address
        self.pair = pair
        self.inbox: deque[Item] = deque()
        self._holder = holder
        self._key_file = key_file
        self._metadata: Metadata = ()
        self._room = asyncio.Event()
        self._abandoned = asyncio.Event()
        self._reason = ""

    def take(self) -> Item | None:
        """Return the oldest item of the inbox, if there is one."""
        while self.inbox:
            item = self.inbox.popleft()
            if not self._abandoned.is_set() or isinstance(item, Connected | Lost):
                self._room.set()
                return item
        self._room.set()
        return None

    def give_up(self, reason: str) -> None:
        """Take nothing more from the present streams, and open new ones."""
        self._reason = reason
        self._abandoned.set()

    async def follow(self) -> None:
        """Keep the streams open until cancelled."""
        options = [
            ("grpc.max_receive_message_length", RECEIVE_LIMIT_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
        ]
        pause_s = FIRST_PAUSE_S
        async with aio.insecure_channel(self.address, options=options) as channel:
            stub = market_data_pb2_grpc.MarketDataServiceStub(channel)
            while True:
                try:
                    await self._connect(stub)
                    pause_s = FIRST_PAUSE_S
                    await self._read_all(stub)
                except* (grpc.RpcError, TimeoutError, _Ended) as errors:
                    reason = _reason(errors)
                log.info("%s from %s: %s", self.pair, self.address, reason)
                # What was not taken yet is asked for again: what is held is what was taken.
                self.inbox.clear()
                self.inbox.append(Lost(reason))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _connect(self, stub: Any) -> None:
        # Read each time: a key may be replaced while this process runs.
        self._metadata = _metadata_of(self._key_file)
        request = market_data_pb2.ListInstrumentsRequest()
        answer = await stub.ListInstruments(request, timeout=SILENCE_S, metadata=self._metadata)
        found = [one for one in answer.instruments if one.pair == self.pair]
        if not found:
            raise _Ended(f"the upstream gateway does not show {self.pair}")
        self._abandoned.clear()
        self.inbox.append(Connected(found[0]))

    async def _read_all(self, stub: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            for call in self._calls(stub):
                tasks.create_task(self._read(call))
            tasks.create_task(self._read_orders(stub))
            await self._abandoned.wait()
            raise _Ended(self._reason)

    def _calls(self, stub: Any) -> list[Any]:
        epoch, sequence = self._holder.held()
        depth = market_data_pb2.StreamDepthRequest(
            pair=self.pair, level_count=FULL, held_epoch=epoch, held_sequence=sequence
        )
        trades = market_data_pb2.StreamTradesRequest(
            pair=self.pair, from_trade_number=self._holder.next_trade_number()
        )
        status = market_data_pb2.StreamMarketStatusRequest(pair=self.pair)
        ticker = market_data_pb2.StreamTickerRequest(pair=self.pair)
        return [
            stub.StreamMarketStatus(status, metadata=self._metadata),
            stub.StreamDepth(depth, metadata=self._metadata),
            stub.StreamTrades(trades, metadata=self._metadata),
            stub.StreamTicker(ticker, metadata=self._metadata),
        ]

    async def _read_orders(self, stub: Any) -> None:
        while True:
            epoch, position = self._holder.held_orders()
            request = market_data_pb2.StreamOrdersRequest(
                pair=self.pair, held_epoch=epoch, held_position=position
            )
            try:
                await self._read(stub.StreamOrders(request, metadata=self._metadata))
            except grpc.RpcError as error:
                reason = _without_orders(error)
                if self._holder.tells_orders() or reason is None:
                    raise
                if reason == "BOOK_UNAVAILABLE":
                    # It does not know yet whether there will be orders.
                    await asyncio.sleep(FIRST_PAUSE_S)
                    continue
                self._holder.do_without_orders()
            await asyncio.sleep(ORDERS_PAUSE_S)

    async def _read(self, call: Any) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(call.cancel)
            async for item in _lively(call):
                self.inbox.append(item)
                self._holder.arrived()
                if item.HasField("goodbye"):
                    raise _Ended(f"the upstream gateway ends the stream: {item.goodbye.reason}")
                while len(self.inbox) >= INBOX_CAPACITY:
                    self._room.clear()
                    await self._room.wait()


class _Ended(Exception):
    """A stream ended in good order, or there is none to begin."""


def _metadata_of(key_file: Path | None) -> Metadata:
    """Return what shows the key of a file, if one is given."""
    if key_file is None:
        return ()
    try:
        return ((GRPC_METADATA_KEY, key_file.read_text(encoding="ascii").strip()),)
    except (OSError, UnicodeDecodeError) as error:
        raise _Ended(f"the key for the upstream gateway cannot be read: {error}") from None


async def _lively(call: Any) -> AsyncIterator[Any]:
    """Yield a stream's messages; raise TimeoutError when it is silent for too long."""
    messages = aiter(call)
    while True:
        async with asyncio.timeout(SILENCE_S):
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                raise _Ended("the upstream gateway ended a stream") from None
        yield message


def _without_orders(error: grpc.RpcError) -> str | None:
    """Return why a gateway tells no orders, if the other streams can go on without them."""
    info = refusal_in(error)
    if info is None:
        unknown = error.code() is grpc.StatusCode.UNIMPLEMENTED
        return "UNIMPLEMENTED" if unknown else None
    leaves_the_rest = {"BOOK_UNAVAILABLE", "ORDERS_UNAVAILABLE", "TIER_TOO_LOW"}
    return info.reason if info.reason in leaves_the_rest else None


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"the upstream gateway was silent for {SILENCE_S} s"
    if isinstance(error, grpc.RpcError):
        info = refusal_in(error)
        return f"the upstream gateway says {info.reason if info else error.code().name}"
    return str(error)
