"""MarketDataService over gRPC: the calls, and streams that take what their subscription has to say.

Streams carry bytes that were encoded once for all, so they are registered without a serialiser. A
stream whose client does not read stands still in one write and holds a few numbers; nothing is
queued for it.

The service knows no accounts: everything it shows is public. A gate stands before every call
(``mdgateway.keys.gate``): what callers may ask for is the same at every door.
"""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from exchange.refusal import Code, Refusal, Refused
from exchange.service import Context, GrpcService, ServerOptions
from exchange.v1 import market_data_pb2
from mdgateway.feed import requests
from mdgateway.feed.market import Market
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.publication import Publication
from mdgateway.feed.records import Channel, Topic
from mdgateway.feed.subscriptions import (
    CandleSubscription,
    DepthSubscription,
    Lagging,
    OrderSubscription,
    StatusSubscription,
    Subscription,
    TickerSubscription,
)
from mdgateway.feed.trade_subscription import TradeSubscription
from mdgateway.keys.gate import GrpcGate

SERVICE: Final = "exchange.v1.MarketDataService"
HEALTH_NAME: Final = "marketdata"

Answers = AsyncIterator[bytes]
of = market_data_pb2


class MarketDataServer:
    """The calls of MarketDataService for the pairs of a market."""

    def __init__(self, market: Market) -> None:
        self.market = market

    # What is asked once.

    async def list_instruments(
        self, request: of.ListInstrumentsRequest, context: Context
    ) -> of.ListInstrumentsResponse:
        """List the instruments."""
        return of.ListInstrumentsResponse(
            instruments=[
                _encoder(one).instrument_message(one.pair_status)
                for _, one in sorted(self.market.publications.items())
            ]
        )

    async def get_ticker(
        self, request: of.GetTickerRequest, context: Context
    ) -> of.GetTickerResponse:
        """Return the ticker."""
        publication = self._with_book(request.pair)
        return of.GetTickerResponse(ticker=_encoder(publication).ticker(publication.ticker()))

    async def get_depth(self, request: of.GetDepthRequest, context: Context) -> bytes:
        """Return the best levels; encoded once for all who ask between two steps."""
        level_count = requests.snapshot_levels(self.market.config, request.level_count)
        publication = self._with_book(request.pair)
        topic = Topic(Channel.DEPTH, publication.pair, level_count)
        return publication.kept_answer(
            DepthAnswer, topic, lambda: publication.snapshot(level_count)
        )

    async def get_market_status(
        self, request: of.GetMarketStatusRequest, context: Context
    ) -> of.GetMarketStatusResponse:
        """Return the status."""
        publication = self.market.publication(request.pair)
        state = _encoder(publication).pair_state(publication.pair_state())
        return of.GetMarketStatusResponse(state=state)

    async def list_trades(
        self, request: of.ListTradesRequest, context: Context
    ) -> of.ListTradesResponse:
        """Return one page of trades."""
        count = requests.page_size(request.page_size)
        first = requests.trade_number("from_trade_number", request.from_trade_number)
        publication = self._with_book(request.pair)
        log = publication.trade_log
        held_ns = requests.held_time_ns(first, request.held_time_ns)
        if held_ns and publication.is_of_another_history(first - 1, held_ns):
            raise Refused(requests.begun_anew(first, log.oldest))
        if not first:
            first = log.newest - count + 1
        elif first > log.newest + log.capacity:
            raise Refused(requests.lagging(Lagging(first, log.oldest)))
        first = max(first, log.oldest)
        rows = log.since(min(first, log.newest + 1), count)
        return of.ListTradesResponse(
            trades=_encoder(publication).trades(rows),
            epoch=publication.epoch,
            next_trade_number=first + len(rows),
            oldest_trade_number=log.oldest,
            newest_trade_number=log.newest,
        )

    async def get_candles(
        self, request: of.GetCandlesRequest, context: Context
    ) -> of.GetCandlesResponse:
        """Return a span of candles."""
        count = requests.page_size(request.page_size)
        interval = requests.candle_interval(request.interval)
        publication = self._with_book(request.pair)
        candles = requests.candles_of(publication)
        to_ns = request.to_ns or time.time_ns() + 1
        page = await candles.page(interval, request.from_ns, to_ns, count)
        return of.GetCandlesResponse(
            candles=_encoder(publication).candles(page.candles), next_to_ns=page.next_to_ns
        )

    # What is followed.

    def stream_depth(self, content: bytes, context: Context) -> Answers:
        """Stream a snapshot, then updates."""

        def subscribe(publication: Publication, request: Any) -> Subscription:
            level_count = requests.stream_levels(self.market.config, request.level_count)
            return DepthSubscription(
                publication,
                ProtobufEncoder,
                level_count,
                requests.interval_ns(request.interval_ms),
                held=(request.held_epoch, request.held_sequence) if request.held_epoch else None,
                only_snapshots=request.only_snapshots,
            )

        return self._stream(of.StreamDepthRequest, content, subscribe)

    def stream_trades(self, content: bytes, context: Context) -> Answers:
        """Stream trades."""

        def subscribe(publication: Publication, request: Any) -> Subscription:
            first = requests.trade_number("from_trade_number", request.from_trade_number)
            held_ns = requests.held_time_ns(first, request.held_time_ns)
            return TradeSubscription(publication, ProtobufEncoder, first, held_ns)

        return self._stream(of.StreamTradesRequest, content, subscribe)

    def stream_ticker(self, content: bytes, context: Context) -> Answers:
        """Stream the ticker."""

        def subscribe(publication: Publication, request: Any) -> Subscription:
            interval_ns = requests.interval_ns(request.interval_ms)
            return TickerSubscription(publication, ProtobufEncoder, interval_ns)

        return self._stream(of.StreamTickerRequest, content, subscribe)

    def stream_market_status(self, content: bytes, context: Context) -> Answers:
        """Stream the status."""

        def subscribe(publication: Publication, _request: Any) -> Subscription:
            return StatusSubscription(publication, ProtobufEncoder)

        return self._stream(of.StreamMarketStatusRequest, content, subscribe)

    def stream_candles(self, content: bytes, context: Context) -> Answers:
        """Stream candles."""

        def subscribe(publication: Publication, request: Any) -> Subscription:
            requests.candles_of(publication)
            return CandleSubscription(
                publication,
                ProtobufEncoder,
                requests.candle_interval(request.interval),
                requests.interval_ns(request.interval_ms),
                from_ns=request.from_ns,
            )

        return self._stream(of.StreamCandlesRequest, content, subscribe)

    def stream_orders(self, content: bytes, context: Context) -> Answers:
        """Stream all orders, then every event of one."""

        def subscribe(publication: Publication, request: Any) -> Subscription:
            held = (request.held_epoch, request.held_position) if request.held_epoch else None
            known = requests.with_orders(publication)
            return OrderSubscription(known, ProtobufEncoder, held=held)

        return self._stream(of.StreamOrdersRequest, content, subscribe)

    async def _stream(
        self, kind: Any, content: bytes, subscribe: Callable[[Publication, Any], Subscription]
    ) -> AsyncIterator[bytes]:
        request, market = _parsed(kind, content), self.market
        pair = request.pair
        subscription = market.open(pair, lambda publication: subscribe(publication, request))
        try:
            while not market.stopping:
                message = subscription.take(time.monotonic_ns())
                if message is None:
                    await market.waking(pair)
                else:
                    yield message
            yield subscription.goodbye("DRAINING")
        except Lagging as lagging:
            yield subscription.goodbye("LAGGING")
            raise Refused(requests.lagging(lagging)) from None
        finally:
            market.close(subscription)

    def _with_book(self, pair: str) -> Publication:
        return requests.with_book(self.market.publication(pair))


class DepthAnswer(ProtobufEncoder):
    """The format of the answer to GetDepth."""

    def encode(self, topic: Topic, record: Any) -> bytes:
        """Return a snapshot as a whole answer."""
        return of.GetDepthResponse(depth=self.depth(record)).SerializeToString()


def _encoder(publication: Publication) -> ProtobufEncoder:
    encoder = publication.encoder(ProtobufEncoder)
    assert isinstance(encoder, ProtobufEncoder)
    return encoder


def _parsed(kind: Any, content: bytes) -> Any:
    try:
        return kind.FromString(content)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        message = f"{len(content)} bytes that are no {name}"
        raise Refused(Refusal(Code.INVALID_ARGUMENT, "MESSAGE_UNREADABLE", message)) from None


def handlers(server: MarketDataServer, gate: GrpcGate) -> grpc.GenericRpcHandler:
    """Return the handlers of the service, behind a gate.

    Requests are parsed here, so that bytes that are no message are refused like any other wrong
    request; the answers of streams pass through as they are.
    """

    def unary(behaviour: Any, request: Any, response: Any) -> Any:
        async def call(content: bytes, context: Context) -> Any:
            parsed = _parsed(request, content)
            gate.fit(gate.admit(context), Channel.DEPTH, parsed)
            return await behaviour(parsed, context)

        return grpc.unary_unary_rpc_method_handler(
            call, response_serializer=response and response.SerializeToString
        )

    def stream(behaviour: Any, request: Any, channel: Channel) -> Any:
        def guarded(content: bytes, context: Context) -> Answers:
            return gate.guarded(channel, _parsed(request, content), context, behaviour)

        return grpc.unary_stream_rpc_method_handler(guarded)

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "ListInstruments": unary(
                server.list_instruments, of.ListInstrumentsRequest, of.ListInstrumentsResponse
            ),
            "GetTicker": unary(server.get_ticker, of.GetTickerRequest, of.GetTickerResponse),
            "GetDepth": unary(server.get_depth, of.GetDepthRequest, None),
            "GetMarketStatus": unary(
                server.get_market_status, of.GetMarketStatusRequest, of.GetMarketStatusResponse
            ),
            "ListTrades": unary(server.list_trades, of.ListTradesRequest, of.ListTradesResponse),
            "GetCandles": unary(server.get_candles, of.GetCandlesRequest, of.GetCandlesResponse),
            "StreamDepth": stream(server.stream_depth, of.StreamDepthRequest, Channel.DEPTH),
            "StreamTrades": stream(server.stream_trades, of.StreamTradesRequest, Channel.TRADES),
            "StreamTicker": stream(server.stream_ticker, of.StreamTickerRequest, Channel.TICKER),
            "StreamMarketStatus": stream(
                server.stream_market_status, of.StreamMarketStatusRequest, Channel.STATUS
            ),
            "StreamOrders": stream(server.stream_orders, of.StreamOrdersRequest, Channel.ORDERS),
            "StreamCandles": stream(
                server.stream_candles, of.StreamCandlesRequest, Channel.CANDLES
            ),
        },
    )


def service_of(market: Market, gate: GrpcGate) -> GrpcService:
    """Return the gRPC service of a market, behind a gate; its port is never shared."""
    config = market.config
    options = ServerOptions(host=config.host, port=config.port, share_port=False, everybody=True)
    service = GrpcService(options, [SERVICE], [HEALTH_NAME])
    service.server.add_generic_rpc_handlers((handlers(MarketDataServer(market), gate),))
    service.goodbyes.append(market.goodbye)
    return service
