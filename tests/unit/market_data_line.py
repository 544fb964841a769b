"""Carries what one publication tells to a relay that follows it, message by message, by hand."""

from typing import Protocol

from exchange.v1 import market_data_pb2 as of
from mdgateway.config import GatewayConfig
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.publication import Publication
from mdgateway.feed.records import FULL
from mdgateway.feed.subscriptions import (
    DepthSubscription,
    Lagging,
    OrderSubscription,
    StatusSubscription,
    Subscription,
    TickerSubscription,
)
from mdgateway.feed.trade_subscription import TradeSubscription
from mdgateway.relay.relay import Relay
from mdgateway.relay.upstream import Connected, Lost


class Clock(Protocol):
    """Who moves the time."""

    @property
    def now_ns(self) -> int:
        """The monotonic clock."""

    @property
    def time_ns(self) -> int:
        """The wall clock."""


class Line:
    """A relay and the streams that it would have of its upstream."""

    def __init__(self, clock: Clock, source: Publication, config: GatewayConfig) -> None:
        self.clock = clock
        self.source = source
        self.relay = Relay(source.instrument, config.validate())
        self.streams: list[tuple[Subscription, type]] = []

    def connect(self, **units: int) -> None:
        """Open the streams with what the relay holds."""
        source, relay = self.source, self.relay
        instrument = ProtobufEncoder(source.instrument).instrument_message(0)
        for name, value in units.items():
            setattr(instrument, name, value)
        depth = relay.held()
        relay.upstream._abandoned.clear()
        relay.upstream.inbox.append(Connected(instrument))
        self.streams = [
            (StatusSubscription(source, ProtobufEncoder), of.StreamMarketStatusResponse),
            (
                DepthSubscription(source, ProtobufEncoder, FULL, held=depth if depth[0] else None),
                of.StreamDepthResponse,
            ),
            (
                TradeSubscription(source, ProtobufEncoder, relay.next_trade_number()),
                of.StreamTradesResponse,
            ),
            (TickerSubscription(source, ProtobufEncoder), of.StreamTickerResponse),
        ]
        self.ask_for_orders()

    def ask_for_orders(self) -> None:
        """Open the stream of orders if there is none and the upstream has orders to tell."""
        epoch, position = self.relay.held_orders()
        if self.source.orders is not None and self.streams[-1][1] is not of.StreamOrdersResponse:
            held = (epoch, position) if epoch else None
            made = OrderSubscription(self.source, ProtobufEncoder, held=held)
            self.streams.append((made, of.StreamOrdersResponse))

    def lose(self, reason: str = "the line is cut") -> None:
        """Cut the line."""
        self.streams = []
        self.relay.upstream.inbox.clear()
        self.relay.upstream.inbox.append(Lost(reason))
        self.step()

    def step(self) -> None:
        """Let the relay take what it was told."""
        self.relay.step(self.clock.now_ns, self.clock.time_ns)

    def carry(self, *, lose: bool = False, spoil: bool = False) -> None:
        """Carry what there is; lose the depth of it, or spoil its first level."""
        for message in self.messages():
            if isinstance(message, of.StreamDepthResponse):
                if lose:
                    continue
                if spoil:
                    message.update.bids[0].quantity_lots += 1
            self.relay.upstream.inbox.append(message)
        self.step()

    def heal(self) -> None:
        """Do what the streams' reader does when they end or do not fit: begin them anew."""
        if self.relay.upstream._abandoned.is_set() or not self.streams:
            self.lose()
            self.connect()
        self.ask_for_orders()

    def messages(self) -> list[of.StreamDepthResponse | of.StreamOrdersResponse]:
        """Return what the upstream has to say, of all streams; a lagging one ends them all."""
        found = []
        try:
            for subscription, kind in self.streams:
                while (content := subscription.take(self.clock.now_ns)) is not None:
                    found.append(kind.FromString(content))  # type: ignore[attr-defined]
        except Lagging:
            self.streams = []
        return found
