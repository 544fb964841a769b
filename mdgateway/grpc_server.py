"""MarketDataService over gRPC, and the loop that keeps its publishers moving.

One task steps every pair each tick and wakes its subscribers; each stream is a generator that
takes what its subscription has to say and waits for the next waking. Streams carry bytes that were
encoded once for all, so they are registered without a serialiser. A stream whose client does not
read stands still in one write and holds a few numbers; nothing is queued for it.

The service knows no accounts and takes no credentials: everything it shows is public.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from exchange.instrument import Instrument
from exchange.refusal import Code, Refusal, Refused
from exchange.service import Context, GrpcService, ServerOptions
from exchange.v1 import market_data_pb2
from mdgateway.config import GatewayConfig
from mdgateway.feed.publisher import Publisher
from mdgateway.feed.subscriptions import (
    DepthSubscription,
    Lagging,
    Subscription,
    TickerSubscription,
    TradeSubscription,
)

SERVICE: Final = "exchange.v1.MarketDataService"
HEALTH_NAME: Final = "marketdata"
DEFAULT_LEVEL_COUNT: Final = 20
INTERVAL_LIMIT_MS: Final = 60_000
WAKE_AT_LEAST_EVERY_MS: Final = 50
"""Subscribers with an interval or a heartbeat due are woken so often without news."""
GOODBYE_S: Final = 2
"""How long a drain waits for streams to take their last message."""

log = logging.getLogger(__name__)

Answers = AsyncIterator[bytes]


class MarketDataServer:
    """The calls of MarketDataService for some pairs, and what keeps them fresh."""

    def __init__(self, instruments: Iterable[Instrument], config: GatewayConfig) -> None:
        self.config = config
        self.publishers = {one.pair: Publisher(one, config) for one in instruments}
        self._wakings = {pair: asyncio.Event() for pair in self.publishers}
        self._subscriber_counts = dict.fromkeys(self.publishers, 0)
        self._stopping = False

    # The loop.

    async def run(self, service: GrpcService) -> None:
        """Step every pair each tick until the service stops; say when all have a book."""
        serving = False
        while not self._stopping:
            started_ns = time.monotonic_ns()
            for pair in self.publishers:
                self.step(pair)
            ready = all(publisher.ready for publisher in self.publishers.values())
            if ready and not serving and not self._stopping:
                serving = True
                await service.set_serving(True)
            spent_ms = (time.monotonic_ns() - started_ns) // 1_000_000
            await asyncio.sleep(max(1, self.config.tick_ms - spent_ms) / 1_000)

    def step(self, pair: str) -> None:
        """Step one pair and wake its subscribers if there may be something for them."""
        publisher = self.publishers[pair]
        before, trouble = publisher.revision, publisher.trouble
        now_ns = time.monotonic_ns()
        publisher.step(now_ns, time.time_ns())
        if publisher.trouble and publisher.trouble != trouble:
            log.warning("%s cannot be read: %s", pair, publisher.trouble)
        every = WAKE_AT_LEAST_EVERY_MS * 1_000_000
        tick_ns = self.config.tick_ms * 1_000_000
        if publisher.revision != before or now_ns % every < tick_ns:
            self._wake(pair)

    def _wake(self, pair: str) -> None:
        # Whoever waits now is woken by the set; whoever comes after waits for the next one.
        self._wakings[pair].set()
        self._wakings[pair].clear()

    async def goodbye(self) -> None:
        """End every stream with a goodbye; wait a moment for those that read."""
        self._stopping = True
        deadline_ns = time.monotonic_ns() + GOODBYE_S * 1_000_000_000
        while any(self._subscriber_counts.values()) and time.monotonic_ns() < deadline_ns:
            for pair in self._wakings:
                self._wake(pair)
            await asyncio.sleep(self.config.tick_ms / 1_000)

    # The calls.

    async def list_instruments(
        self, request: market_data_pb2.ListInstrumentsRequest, context: Context
    ) -> market_data_pb2.ListInstrumentsResponse:
        """List the instruments."""
        return market_data_pb2.ListInstrumentsResponse(
            instruments=[
                publisher.encoder.instrument_message(publisher.pair_status)
                for _, publisher in sorted(self.publishers.items())
            ]
        )

    async def get_ticker(
        self, request: market_data_pb2.GetTickerRequest, context: Context
    ) -> market_data_pb2.GetTickerResponse:
        """Return the ticker."""
        publisher = self._ready(request.pair)
        return market_data_pb2.GetTickerResponse(ticker=publisher.ticker(time.time_ns()))

    async def get_depth(self, request: market_data_pb2.GetDepthRequest, context: Context) -> bytes:
        """Return the best levels; encoded once for all who ask between two changes."""
        level_count = self._level_count(request.level_count)
        return self._ready(request.pair).encoded_depth(level_count)

    def stream_depth(self, content: bytes, context: Context) -> Answers:
        """Stream a snapshot, then updates."""

        def subscribe(publisher: Publisher, request: Any) -> Subscription:
            level_count = self._level_count(request.level_count)
            return DepthSubscription(publisher, level_count, _interval_ns(request.interval_ms))

        return self._stream(market_data_pb2.StreamDepthRequest, content, subscribe)

    def stream_trades(self, content: bytes, context: Context) -> Answers:
        """Stream trades."""

        def subscribe(publisher: Publisher, request: Any) -> Subscription:
            return TradeSubscription(publisher, _trade_number(request.from_trade_number))

        return self._stream(market_data_pb2.StreamTradesRequest, content, subscribe)

    def stream_ticker(self, content: bytes, context: Context) -> Answers:
        """Stream the ticker."""

        def subscribe(publisher: Publisher, request: Any) -> Subscription:
            return TickerSubscription(publisher, _interval_ns(request.interval_ms))

        return self._stream(market_data_pb2.StreamTickerRequest, content, subscribe)

    async def _stream(
        self, kind: Any, content: bytes, subscribe: Callable[[Publisher, Any], Subscription]
    ) -> AsyncIterator[bytes]:
        request = _parsed(kind, content)
        pair = request.pair
        publisher = self._publisher(pair)
        self._admit(pair)
        subscription = subscribe(publisher, request)
        self._subscriber_counts[pair] += 1
        try:
            while not self._stopping:
                message = subscription.take(time.monotonic_ns(), time.time_ns())
                if message is None:
                    await self._wakings[pair].wait()
                else:
                    yield message
            yield subscription.goodbye("DRAINING")
        except Lagging as lagging:
            yield subscription.goodbye("LAGGING")
            raise Refused(_lagging(lagging)) from None
        finally:
            self._subscriber_counts[pair] -= 1
            subscription.close()

    # What is refused.

    def _publisher(self, pair: str) -> Publisher:
        if pair not in self.publishers:
            known = ", ".join(sorted(self.publishers))
            raise Refused(Refusal.of_field("PAIR_UNKNOWN", "pair", pair, f"one of {known}"))
        return self.publishers[pair]

    def _ready(self, pair: str) -> Publisher:
        publisher = self._publisher(pair)
        if not publisher.ready or publisher.touch is None:
            why = publisher.trouble or "the book is not there yet: its engine has not started"
            raise Refused(Refusal(Code.UNAVAILABLE, "BOOK_UNAVAILABLE", why, "pair", pair))
        return publisher

    def _admit(self, pair: str) -> None:
        limit = self.config.subscriber_limit
        if self._subscriber_counts[pair] >= limit:
            raise Refused(
                Refusal(
                    Code.RESOURCE_EXHAUSTED,
                    "SUBSCRIBER_LIMIT",
                    f"{pair} has {limit} open streams, as many as this server takes",
                    "pair",
                    pair,
                    str(limit),
                )
            )

    def _level_count(self, asked: int) -> int:
        limit = self.config.depth_limit
        if not 0 <= asked <= limit:
            raise Refused(
                Refusal.of_field(
                    "LEVEL_COUNT_OUT_OF_RANGE", "level_count", asked, f"from 0 to {limit}"
                )
            )
        return asked or min(DEFAULT_LEVEL_COUNT, limit)


def _parsed(kind: Any, content: bytes) -> Any:
    try:
        return kind.FromString(content)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        message = f"{len(content)} bytes that are no {name}"
        raise Refused(Refusal(Code.INVALID_ARGUMENT, "MESSAGE_UNREADABLE", message)) from None


def _trade_number(asked: int) -> int:
    if asked < 0:
        limit = "0 (from now on) or the number of a trade"
        raise Refused(
            Refusal.of_field("TRADE_NUMBER_OUT_OF_RANGE", "from_trade_number", asked, limit)
        )
    return asked


def _interval_ns(asked_ms: int) -> int:
    if not 0 <= asked_ms <= INTERVAL_LIMIT_MS:
        limit = f"from 0 to {INTERVAL_LIMIT_MS}"
        raise Refused(Refusal.of_field("INTERVAL_OUT_OF_RANGE", "interval_ms", asked_ms, limit))
    return asked_ms * 1_000_000


def _lagging(lagging: Lagging) -> Refusal:
    if lagging.resume_from > lagging.oldest:
        return Refusal(
            Code.OUT_OF_RANGE,
            "TRADE_NUMBER_OUT_OF_RANGE",
            f"trade {lagging.resume_from} has not happened yet",
            "from_trade_number",
            str(lagging.resume_from),
        )
    return Refusal(
        Code.RESOURCE_EXHAUSTED,
        "LAGGING",
        f"too slow: trade {lagging.resume_from} is gone, the oldest kept is {lagging.oldest};"
        " subscribe again with from_trade_number",
        "resume_from",
        str(lagging.resume_from),
        str(lagging.oldest),
    )


def handlers(server: MarketDataServer) -> grpc.GenericRpcHandler:
    """Return the handlers of the service.

    Requests are parsed here, so that bytes that are no message are refused like any other wrong
    request; the answers of streams pass through as they are.
    """

    def unary(behaviour: Any, request: Any, response: Any) -> Any:
        async def call(content: bytes, context: Context) -> Any:
            return await behaviour(_parsed(request, content), context)

        return grpc.unary_unary_rpc_method_handler(
            call, response_serializer=response and response.SerializeToString
        )

    of = market_data_pb2
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "ListInstruments": unary(
                server.list_instruments, of.ListInstrumentsRequest, of.ListInstrumentsResponse
            ),
            "GetTicker": unary(server.get_ticker, of.GetTickerRequest, of.GetTickerResponse),
            "GetDepth": unary(server.get_depth, of.GetDepthRequest, None),
            "StreamDepth": grpc.unary_stream_rpc_method_handler(server.stream_depth),
            "StreamTrades": grpc.unary_stream_rpc_method_handler(server.stream_trades),
            "StreamTicker": grpc.unary_stream_rpc_method_handler(server.stream_ticker),
        },
    )


def service_of(server: MarketDataServer) -> GrpcService:
    """Return the gRPC service around a market data server; its port is never shared."""
    options = ServerOptions(host=server.config.host, port=server.config.port, share_port=False)
    service = GrpcService(options, [SERVICE], [HEALTH_NAME])
    service.server.add_generic_rpc_handlers((handlers(server),))
    service.goodbyes.append(server.goodbye)
    return service
