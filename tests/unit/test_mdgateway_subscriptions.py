"""What subscribers of one publication are told: resuming, formats side by side, status, bounds."""

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.instrument import Instrument
from exchange.refusal import Refused
from exchange.units import lots_to_quantity, ticks_to_price
from exchange.v1 import market_data_pb2
from mdgateway.book.checksum import checked_text, depth_checksum
from mdgateway.config import GatewayConfig
from mdgateway.feed import publication as publications
from mdgateway.feed import requests
from mdgateway.feed.market import Market
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.records import FULL, Record, Texts, Topic
from mdgateway.feed.subscriptions import DepthSubscription, StatusSubscription, Subscription
from tests.unit.market_data_desk import Client, Desk, depth, trades
from tests.unit.market_data_writer import INSTRUMENT

CONFIG = GatewayConfig(("A",))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.writer.close()


def resumed(desk: Desk, client: Client, level_count: int = 5) -> DepthSubscription:
    """Subscribe anew with what a client holds."""
    held = (client.epoch, client.sequence)
    return DepthSubscription(desk.publisher, ProtobufEncoder, level_count, held=held)


def test_the_checksum_of_the_documentation() -> None:
    bids = np.array([[6_400_010, 50_000, 3], [6_400_005, 120, 1]])
    asks = np.array([[6_400_020, 25_000, 1]])
    assert checked_text(bids, asks) == "6400010:50000,6400005:120|6400020:25000"
    assert depth_checksum(bids, asks) == 1_234_247_811
    assert depth_checksum(bids[:0], asks[:0]) == zlib.crc32(b"|")


def test_the_checksum_covers_ten_levels_of_each_side() -> None:
    levels = np.array([[price, 7, 1] for price in range(30, 10, -1)])
    assert checked_text(levels, levels[:10]).count(":") == 20
    other = levels.copy()
    other[10, 1] = 8
    assert depth_checksum(other, levels) == depth_checksum(levels, levels)
    other[9, 1] = 8
    assert depth_checksum(other, levels) != depth_checksum(levels, levels)


def test_a_subscriber_that_returns_goes_on_where_it_left(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    client.subscription.close()
    for lots in range(6, 20):
        desk.level(1, 100 + lots % 3, lots)
        desk.step()
    client.subscription = resumed(desk, client)
    client.read(desk)
    assert (client.snapshots, client.updates, client.merged) == (1, 1, 14)
    assert client.levels == desk.best(5)


def test_a_subscriber_that_holds_what_nobody_told_gets_a_snapshot(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    desk.level(1, 101, 6)
    desk.level(1, 102, 7)
    desk.step()
    # A sequence between two tellings: a level may have come and gone that only its holder knows.
    client.sequence += 1
    client.subscription = resumed(desk, client)
    client.read(desk)
    assert (client.snapshots, client.updates) == (2, 0)
    client.epoch += 1
    client.subscription = resumed(desk, client)
    client.read(desk)
    assert client.snapshots == 3
    assert client.levels == desk.best(5)


def test_a_view_nobody_came_back_to_is_forgotten(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    client.subscription.close()
    desk.level(1, 100, 6)
    for _ in range(4):
        desk.step(desk.config.resume_ms // 3)
    client.subscription = resumed(desk, client)
    client.read(desk)
    assert (client.snapshots, client.updates) == (2, 0)
    assert client.levels == desk.best(5)


@settings(max_examples=40)
@given(
    steps=st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(0, 2)), max_size=4
            ),
            st.sampled_from(["read", "leave", "nothing"]),
        ),
        max_size=25,
    )
)
def test_leaving_and_returning_at_any_moment_is_never_noticed(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[list[tuple[int, int, int]], str]],
) -> None:
    desk = Desk(tmp_path_factory.mktemp("segments"))
    try:
        desk.step()
        client = Client(depth(desk.publisher, 3))
        client.read(desk)
        for operations, what in steps:
            for side, price, lots in operations:
                desk.level(side, price, lots)
            desk.step()
            if what == "leave":
                client.subscription.close()
                client.subscription = resumed(desk, client, 3)
            if what != "nothing":
                client.read(desk)
                assert client.levels == desk.best(3)
        assert client.snapshots == 1
    finally:
        desk.writer.close()


def test_only_snapshots_when_asked_for(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    subscription = DepthSubscription(desk.publisher, ProtobufEncoder, 5, only_snapshots=True)
    client = Client(subscription)
    client.read(desk)
    for lots in range(6, 10):
        desk.level(1, 100, lots)
        desk.step()
        client.read(desk)
        assert client.levels == desk.best(5)
    assert (client.snapshots, client.updates) == (5, 0)


def test_every_level_is_told_up_to_the_limit(desk: Desk) -> None:
    limit = desk.config.full_level_count
    for price in range(1, limit + 50):
        desk.level(1, price, 1)
        if price % 500 == 0:
            desk.step()
    desk.step()
    client = Client(depth(desk.publisher, FULL))
    client.read(desk)
    assert client.levels == desk.best(limit)
    desk.level(1, limit + 60, 2)
    desk.step()
    client.read(desk)
    assert client.levels == desk.best(limit)
    assert (client.snapshots, client.updates) == (1, 1)


def test_newcomers_to_every_level_share_a_snapshot_and_hear_what_changed_since(desk: Desk) -> None:
    for price in range(1, 50):
        desk.level(1, price, 1)
    desk.step()
    first = DepthSubscription(desk.publisher, ProtobufEncoder, FULL)
    snapshot = first.take(desk.now_ns)
    clients = []
    for lots in range(2, 90):
        desk.level(1, 1 + lots % 49, lots)
        desk.step()
        clients.append(Client(DepthSubscription(desk.publisher, ProtobufEncoder, FULL)))
        given = clients[-1].subscription.take(desk.now_ns)
        assert given is not None
        assert (given is snapshot) == (lots < 51), "for half a second"
        clients[-1].take(market_data_pb2.StreamDepthResponse.FromString(given))
        clients[-1].read(desk)
        assert clients[-1].levels == desk.best(100)
    for client in clients:
        client.read(desk)
        assert client.levels == desk.best(100)
        assert (client.snapshots, client.notices) == (1, [])


def test_a_kept_snapshot_is_of_no_use_after_a_restart(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    Client(depth(desk.publisher, FULL)).read(desk)
    desk.writer.restart()
    desk.level(1, 101, 6)
    desk.step()
    client = Client(depth(desk.publisher, FULL))
    client.read(desk)
    assert (client.epoch, client.levels) == (desk.writer.owned.epoch, desk.best(5))


@given(
    tick=st.integers(1, 10**6),
    lot=st.integers(1, 10**6),
    decimals=st.integers(0, 8),
    count=st.integers(0, 1 << 40),
)
def test_texts_are_those_of_the_units(tick: int, lot: int, decimals: int, count: int) -> None:
    instrument = Instrument(
        base_decimals=decimals,
        quote_decimals=decimals,
        tick_quote_units=tick,
        base_units_per_lot=lot,
    )
    texts = Texts(instrument)
    assert texts.price(count) == ticks_to_price(instrument, count)
    assert texts.quantity(count) == lots_to_quantity(instrument, count)


class Text:
    """A format of the test's: each record as Python would print it."""

    made = 0

    def __init__(self, instrument: Instrument) -> None:
        self.pair = instrument.pair

    def encode(self, topic: Topic, record: Record) -> bytes:
        """Return the record's type and how many were encoded."""
        Text.made += 1
        return f"{self.pair} {topic.channel} {type(record).__name__} {Text.made}".encode()


def test_formats_live_side_by_side_and_each_record_is_encoded_once(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    Text.made = 0
    texts: list[Subscription] = [DepthSubscription(desk.publisher, Text, 5) for _ in range(50)]
    client = Client(depth(desk.publisher, 5))
    told = {subscription.take(desk.now_ns) for subscription in texts}
    assert told == {b"TEST-USDT depth DepthSnapshot 1"}
    client.read(desk)
    assert client.levels == desk.best(5)
    desk.level(1, 100, 6)
    desk.step()
    told = {subscription.take(desk.now_ns) for subscription in texts}
    assert told == {b"TEST-USDT depth DepthUpdate 2"}
    desk.step(2_000)
    told = {subscription.take(desk.now_ns) for subscription in texts}
    assert told == {b"TEST-USDT depth Heartbeat 3"}
    desk.writer.status(2)
    desk.step()
    told = {subscription.take(desk.now_ns) for subscription in texts}
    assert told == {b"TEST-USDT depth Notice 4"}


def test_the_status_is_told_at_once_and_when_it_changes(desk: Desk) -> None:
    desk.writer.status(1)
    desk.step()
    subscription = StatusSubscription(desk.publisher, ProtobufEncoder)

    def told() -> list[tuple[int, int]]:
        states: list[tuple[int, int]] = []
        while (message := subscription.take(desk.now_ns)) is not None:
            answer = market_data_pb2.StreamMarketStatusResponse.FromString(message)
            if answer.HasField("state"):
                states.append((answer.state.status, answer.state.engine_state))
        return states

    assert told() == [(1, 2)]
    desk.level(1, 100, 5)
    desk.step()
    assert told() == []
    desk.writer.status(3)
    desk.step()
    assert told() == [(3, 2)]
    for _ in range(15):
        desk.step(100, alive=False)
    assert told() == [(3, 0)]


def test_encodings_for_stragglers_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publications, "ENCODED_LIMIT_BYTES", 4_096)
    desk.step()
    stragglers = []
    for lots in range(1, 60):
        stragglers.append(Client(depth(desk.publisher, 100)))
        stragglers[-1].read(desk)
        desk.level(1, 100 + lots, lots)
        desk.step()
    for client in stragglers:
        client.read(desk)
        assert client.levels == desk.best(100)
        held = sum(map(sys.getsizeof, desk.publisher._encoded.values()))
        assert held <= 4_096 + 8_192


def test_a_subscription_beyond_the_limit_is_refused_and_room_is_given_back(desk: Desk) -> None:
    desk.step()
    config = GatewayConfig(pairs=(INSTRUMENT.pair,), subscriber_limit=3)
    market = Market([desk.publisher], config)
    opened = [market.open(INSTRUMENT.pair, trades) for _ in range(3)]
    with pytest.raises(Refused) as caught:
        market.open(INSTRUMENT.pair, trades)
    assert caught.value.refusal.reason == "SUBSCRIBER_LIMIT"
    market.close(opened[0])
    assert market.open(INSTRUMENT.pair, trades) is not None
    with pytest.raises(Refused) as caught:
        market.open("NO-PAIR", trades)
    assert caught.value.refusal.reason == "PAIR_UNKNOWN"


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda: requests.stream_levels(CONFIG, 7), "LEVEL_COUNT_OUT_OF_RANGE"),
        (
            lambda: requests.stream_levels(CONFIG, 1 << 30),
            "LEVEL_COUNT_OUT_OF_RANGE",
        ),
        (lambda: requests.snapshot_levels(CONFIG, -2), "LEVEL_COUNT_OUT_OF_RANGE"),
        (
            lambda: requests.snapshot_levels(CONFIG, 1_001),
            "LEVEL_COUNT_OUT_OF_RANGE",
        ),
        (lambda: requests.interval_ns(-1), "INTERVAL_OUT_OF_RANGE"),
        (lambda: requests.interval_ns(60_001), "INTERVAL_OUT_OF_RANGE"),
        (lambda: requests.trade_number("before", -1), "TRADE_NUMBER_OUT_OF_RANGE"),
        (lambda: requests.page_size(1_001), "PAGE_SIZE_OUT_OF_RANGE"),
        (lambda: requests.candle_interval(9), "INTERVAL_OUT_OF_RANGE"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_limit(ask: object, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        ask()  # type: ignore[operator]
    assert caught.value.refusal.reason == reason
    assert caught.value.refusal.limit


def test_what_can_be_asked() -> None:
    assert [requests.stream_levels(CONFIG, asked) for asked in (0, 5, FULL)] == [20, 5, FULL]
    assert [requests.snapshot_levels(CONFIG, asked) for asked in (0, 7, FULL)] == [20, 7, FULL]
    assert requests.candle_interval(0).text == "1m"
