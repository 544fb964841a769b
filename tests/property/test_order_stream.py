"""The order-by-order stream: a client that reads only the messages has the engine's queues.

The kernel writes into segments, the gateway's publication reads them, the client knows nothing but
protobuf messages, and the twin says what is right.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.state_machine import Engine
from engine.vault_layout import vault_layout
from exchange import book_layout as layout
from exchange.book_layout import book_layout, segment_name
from exchange.enums import CommandKind, Side
from exchange.instrument import Instrument
from exchange.ownership import Owned
from exchange.records import ORDER_SLOT_BITS
from exchange.v1 import market_data_pb2 as of
from mdgateway.config import GatewayConfig
from mdgateway.feed.order_log import SNAPSHOT_LIFE_NS
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.publication import Publication
from mdgateway.feed.publisher import Publisher
from mdgateway.feed.subscriptions import Lagging, OrderSubscription
from tests.golden.notation import small_instrument
from tests.property.drawing import Stream, effort, streams
from tests.property.test_order_events import allotment, change, order
from tests.reference.drivers import TIME_NS, Twin

Key = tuple[int, int]
"""Side and price."""
MILLISECOND_NS = 1_000_000


class Venue:
    """An engine over segments, its twin, and a gateway's publication of the pair."""

    def __init__(self, folder: Path, instrument: Instrument) -> None:
        pair, name = instrument, instrument.pair
        self.vault = Owned.claim(segment_name(name, "vault"), vault_layout(pair), directory=folder)
        self.book = Owned.claim(segment_name(name, "book"), book_layout(pair), directory=folder)
        self.engine = Engine(pair, self.vault.arrays, self.book.arrays)
        self.book["scalars"][layout.ENGINE_STATE] = layout.STATE_READY
        self.twin = Twin(pair)
        config = GatewayConfig((name,), segments=str(folder), level_capacity=4_096)
        self.publisher = Publisher(pair, replace(config, order_event_capacity=64))
        self.now_ns = int(self.book.header[16])

    @property
    def time_ns(self) -> int:
        """The wall clock: the same as the other one."""
        return self.now_ns

    def apply(self, command: list[int], time_ns: int) -> None:
        self.engine.apply(np.array([command], np.int64), time_ns)
        self.twin.apply(command, time_ns)

    def step(self) -> None:
        self.now_ns += 10 * MILLISECOND_NS
        self.book.heartbeat(self.now_ns)
        self.publisher.step(self.now_ns, self.now_ns)

    def queues(self) -> dict[Key, list[tuple[int, int]]]:
        """Return (public number, lots) of all resting orders of the twin, first in turn first."""
        return {
            (int(side), price): [
                (order.order_id >> ORDER_SLOT_BITS, order.leaves) for order in queue.values()
            ]
            for side, prices in self.twin.engine.market.book.levels.items()
            for price, queue in prices.items()
            if queue
        }


@contextmanager
def venue_of(instrument: Instrument) -> Iterator[Venue]:
    """Open a venue in a folder of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        venue = Venue(Path(folder), instrument)
        try:
            yield venue
            assert venue.publisher.orders is not None
            assert venue.publisher.orders.contradiction_count == 0
        finally:
            venue.publisher.close()
            for owned in (venue.vault, venue.book):
                owned.close(unlink=True)


class Client:
    """Follows the stream as its documentation says."""

    def __init__(self, venue: Venue, source: Publication | None = None) -> None:
        self.venue = venue
        self.source = source or venue.publisher
        self.orders: dict[int, Key] = {}
        self.queues: dict[Key, dict[int, int]] = {}
        self.unknown: dict[Key, list[int]] = {}
        self.epoch = self.position = 0
        self.snapshot_count = self.event_count = 0
        self.whole = self.settled = False
        self.told: dict[int, of.OrderEvent] = {}
        """Every event by its position; each is told once after a snapshot."""
        self.subscribe()

    def subscribe(self) -> None:
        held = (self.epoch, self.position) if self.whole else None
        self.subscription = OrderSubscription(self.source, ProtobufEncoder, held=held)

    def read(self) -> None:
        try:
            while (content := self.subscription.take(self.venue.now_ns)) is not None:
                self.take(of.StreamOrdersResponse.FromString(content))
        except Lagging:
            self.whole = False
            self.subscribe()
            self.read()

    def take(self, message: of.StreamOrdersResponse) -> None:
        match message.WhichOneof("event"):
            case "snapshot":
                self.take_snapshot(message.snapshot)
            case "events":
                assert (message.events.epoch, self.whole) == (self.epoch, True)
                assert message.events.previous_position == self.position
                for event in message.events.events:
                    assert self.position <= event.position < message.events.position
                    self.position = event.position + 1
                    self.told[event.position] = event
                    self.take_event(event)
                self.position = message.events.position
                self.settled = not message.events.more_follows

    def take_snapshot(self, part: of.OrderSnapshot) -> None:
        if part.part == 0:
            self.snapshot_count += 1
            self.orders, self.queues, self.unknown = {}, {}, {}
        for one in part.orders:
            key = (one.side, one.price_ticks)
            self.orders[one.order_number] = key
            self.queues.setdefault(key, {})[one.order_number] = one.quantity_lots
        for rest in part.unknown:
            self.unknown[rest.side, rest.price_ticks] = [rest.quantity_lots, rest.order_count]
        self.epoch, self.position, self.whole = part.epoch, part.position, part.is_last
        self.settled = part.is_last

    def take_event(self, event: of.OrderEvent) -> None:
        self.event_count += 1
        number, key, lots = event.order_number, (event.side, event.price_ticks), event.quantity_lots
        if event.action == of.ORDER_ACTION_ADD:
            assert number not in self.orders
            self.orders[number] = key
            self.queues.setdefault(key, {})[number] = lots
            return
        assert event.action != of.ORDER_ACTION_EXECUTE or event.trade_number > 0
        if number not in self.orders:
            rest = self.unknown[key]
            rest[0] -= lots
            rest[1] -= event.is_gone
            assert min(rest) >= 0
            return
        assert self.orders[number] == key
        queue = self.queues[key]
        queue[number] -= lots
        assert (queue[number] == 0) == event.is_gone
        if event.is_gone:
            del queue[number], self.orders[number]

    def compare(self, queues: dict[Key, list[tuple[int, int]]]) -> None:
        """Compare with the twin: known orders in their turn, the unknown before them."""
        told = {key: list(queue.items()) for key, queue in self.queues.items() if queue}
        rests = {key: tuple(rest) for key, rest in self.unknown.items() if rest[1]}
        for key, queue in queues.items():
            known = told.pop(key, [])
            older = queue[: len(queue) - len(known)]
            assert queue[len(older) :] == known, key
            wanted = (sum(lots for _, lots in older), len(older))
            assert rests.pop(key, (0, 0)) == wanted, key
        assert (told, rests) == ({}, {})


def newcomer(venue: Venue) -> Client:
    """Return a client that is told a snapshot of this very moment."""
    venue.now_ns += 2 * SNAPSHOT_LIFE_NS
    venue.step()
    client = Client(venue)
    client.read()
    client.compare(venue.queues())
    return client


@given(streams(), st.data())
@effort(50)
def test_clients_that_come_late_leave_and_return_have_the_engines_queues(
    stream: Stream, data: st.DataObject
) -> None:
    # Small rings, so that a gateway that does not step for long is lapped and clients lag.
    with venue_of(replace(stream.universe.instrument, event_capacity=64)) as venue:
        clients: list[Client] = []
        for command, time_ns in stream:
            venue.apply(command, time_ns)
            what = data.draw(st.sampled_from(["apply", "apply", "step", "read", "come", "return"]))
            if what == "apply":
                continue
            venue.step()
            if what == "come" and len(clients) < 4:
                clients.append(Client(venue))
            for client in clients:
                if what == "return":
                    client.subscribe()
                if what != "step":
                    client.read()
                    client.compare(venue.queues())
        newcomer(venue)


@given(streams())
@effort(30)
def test_a_client_from_the_start_is_told_everything_once(stream: Stream) -> None:
    with venue_of(replace(stream.universe.instrument, event_capacity=4_096)) as venue:
        venue.step()
        client = Client(venue)
        for command, time_ns in stream:
            venue.apply(command, time_ns)
            venue.step()
            client.read()
            client.compare(venue.queues())
        assert client.snapshot_count == 1
        for one in client, newcomer(venue):
            assert not any(rest[1] for rest in one.unknown.values())


def test_a_lapped_gateway_forgets_its_orders_and_begins_anew() -> None:
    with venue_of(small_instrument(event_capacity=64)) as venue:
        for number, (account, asset) in enumerate(((1, 1), (1, 2), (2, 1), (2, 2)), 1):
            venue.apply(allotment(number, account, asset), TIME_NS)
        for number in (1, 2):
            venue.apply(order(1, number, Side.BUY, 5, 100), TIME_NS)
        venue.step()
        client = Client(venue)
        client.read()
        assert client.queues == {(1, 100): {1: 5, 2: 5}}
        # The first order leaves and nobody hears of it.
        venue.apply(change(CommandKind.CANCEL_ORDER, 1), TIME_NS)
        for number in range(3, 83, 2):
            venue.apply(order(1, number, Side.BUY, 1, 90), TIME_NS)
            venue.apply(change(CommandKind.CANCEL_ORDER, number), TIME_NS)
        venue.step()
        client.read()
        client.compare(venue.queues())
        assert client.snapshot_count == 2
        assert client.unknown == {(1, 100): [5, 1]}
        assert client.orders == {}
