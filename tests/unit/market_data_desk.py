"""A writer, a publisher and subscribers on one desk, with a clock that moves by hand."""

import zlib
from collections.abc import Iterable
from pathlib import Path

from exchange.v1 import market_data_pb2
from mdgateway.config import GatewayConfig
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.publication import Publication
from mdgateway.feed.publisher import Publisher
from mdgateway.feed.subscriptions import (
    DepthSubscription,
    Subscription,
    TickerSubscription,
)
from mdgateway.feed.trade_subscription import TradeSubscription
from tests.unit.market_data_writer import INSTRUMENT, Writer


def depth(publication: Publication, level_count: int, interval_ns: int = 0) -> Subscription:
    """Subscribe to depth as gRPC does."""
    return DepthSubscription(publication, ProtobufEncoder, level_count, interval_ns)


def trades(publication: Publication, from_trade_number: int = 0) -> Subscription:
    """Subscribe to trades as gRPC does."""
    return TradeSubscription(publication, ProtobufEncoder, from_trade_number)


def ticker(publication: Publication) -> Subscription:
    """Subscribe to the ticker as gRPC does."""
    return TickerSubscription(publication, ProtobufEncoder)


class Client:
    """A depth subscriber that believes nothing: it checks the chain of every message."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.levels: dict[tuple[int, int], tuple[int, int]] = {}
        self.epoch = self.sequence = self.merged = 0
        self.snapshots = self.updates = self.heartbeats = 0
        self.notices: list[market_data_pb2.Notice] = []

    def read(self, desk: "Desk") -> None:
        while (message := self.subscription.take(desk.now_ns)) is not None:
            self.take(market_data_pb2.StreamDepthResponse.FromString(message))

    def take(self, message: market_data_pb2.StreamDepthResponse) -> None:
        match message.WhichOneof("event"):
            case "snapshot":
                self.snapshots += 1
                self.levels.clear()
                self._put(message.snapshot.bids, message.snapshot.asks)
                self.epoch, self.sequence = message.snapshot.epoch, message.snapshot.sequence
                assert message.snapshot.checksum == self.checksum()
            case "update":
                self.updates += 1
                assert message.update.epoch == self.epoch
                assert message.update.previous_sequence == self.sequence
                assert message.update.sequence >= self.sequence
                self._put(message.update.bids, message.update.asks)
                self.sequence = message.update.sequence
                self.merged += message.update.merged_count
                assert message.update.checksum == self.checksum()
            case "notice":
                self.notices.append(message.notice)
            case "heartbeat":
                self.heartbeats += 1

    def checksum(self) -> int:
        """Compute the checksum from what is held, as the documentation says it."""
        sides = []
        for side in 1, 2:
            prices = sorted((price for of, price in self.levels if of == side), reverse=side == 1)
            best = [f"{price}:{self.levels[side, price][0]}" for price in prices[:10]]
            sides.append(",".join(best))
        return zlib.crc32("|".join(sides).encode())

    def _put(self, *sides: Iterable[market_data_pb2.Level]) -> None:
        for side, levels in enumerate(sides, start=1):
            for level in levels:
                if level.quantity_lots:
                    key = (side, level.price_ticks)
                    self.levels[key] = (level.quantity_lots, level.order_count)
                else:
                    # It may have come and gone between two looks of a slow client.
                    self.levels.pop((side, level.price_ticks), None)


class Desk:
    """A writer, a publisher and a clock that moves by hand."""

    def __init__(self, directory: Path, trade_capacity: int = 1 << 10) -> None:
        self.writer = Writer(directory)
        self.config = GatewayConfig(
            pairs=(INSTRUMENT.pair,),
            segments=str(directory),
            level_capacity=4_000,
            full_depth_limit=2_000,
            trade_capacity=trade_capacity,
            depth_limit=1_000,
        ).validate()
        self.publisher = Publisher(INSTRUMENT, self.config)
        self.now_ns = int(self.writer.owned.header[16])
        self.time_ns = self.writer.time_ns
        self.truth: dict[tuple[int, int], tuple[int, int]] = {}

    def step(self, milliseconds: int = 10, *, alive: bool = True) -> int:
        self.now_ns += milliseconds * 1_000_000
        self.time_ns += milliseconds * 1_000_000
        self.writer.time_ns = self.time_ns
        if alive:
            self.writer.heartbeat(self.now_ns)
        return self.publisher.step(self.now_ns, self.time_ns)

    def level(self, side: int, price: int, lots: int, orders: int = 1) -> None:
        self.writer.level(side, price, lots, orders)
        self.truth.pop((side, price), None)
        if lots:
            self.truth[side, price] = (lots, orders)

    def best(self, count: int) -> dict[tuple[int, int], tuple[int, int]]:
        prices = [
            sorted((price for of, price in self.truth if of == side), reverse=side == 1)
            for side in (1, 2)
        ]
        return {
            (side, price): self.truth[side, price]
            for side in (1, 2)
            for price in prices[side - 1][:count]
        }
