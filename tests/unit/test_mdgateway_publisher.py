"""One pair's publisher and its depth subscribers, over a segment that a test writes."""

import random
import socket as sockets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange import book_layout as layout
from exchange.book_layout import EVENT_LEVEL
from exchange.v1 import market_data_pb2
from mdgateway.book.reader import FeedState
from mdgateway.config import GatewayConfig, InvalidSetting, surroundings
from mdgateway.feed.publisher import COPIES_REFUSED, Publisher
from tests.unit.market_data_desk import Client, Desk, depth, trades
from tests.unit.market_data_writer import INSTRUMENT, Writer

SECOND = 1_000_000_000
DOWN = market_data_pb2.NOTICE_KIND_ENGINE_DOWN
RESTARTED = market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
STATUS = market_data_pb2.NOTICE_KIND_PAIR_STATUS
MISSED = market_data_pb2.NOTICE_KIND_MISSED


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.writer.close()


def test_there_is_life_before_the_engine(tmp_path: Path) -> None:
    config = GatewayConfig(pairs=(INSTRUMENT.pair,), segments=str(tmp_path))
    publisher = Publisher(INSTRUMENT, config)
    client = Client(depth(publisher, 5))
    assert publisher.step(0, 0) == 0
    assert (publisher.ready, publisher.state) == (False, FeedState.WAITING)
    message = client.subscription.take(1)
    assert message is not None
    client.take(market_data_pb2.StreamDepthResponse.FromString(message))
    assert [notice.kind for notice in client.notices] == [DOWN]
    writer = Writer(tmp_path)
    try:
        writer.level(1, 100, 5)
        now_ns = int(writer.owned.header[16])
        assert publisher.step(now_ns, 2) > 0
        message = client.subscription.take(now_ns)
        assert message is not None
        client.take(market_data_pb2.StreamDepthResponse.FromString(message))
        assert client.levels == {(1, 100): (5, 1)}
        assert client.epoch == writer.owned.epoch
    finally:
        writer.close()


def test_a_snapshot_then_updates(desk: Desk) -> None:
    desk.level(1, 100, 5, 2)
    desk.step()
    client = Client(depth(desk.publisher, 3))
    client.read(desk)
    assert (client.snapshots, client.updates) == (1, 0)
    desk.level(2, 103, 7)
    desk.level(1, 100, 4)
    desk.level(1, 100, 0)
    desk.step()
    client.read(desk)
    assert client.levels == {(2, 103): (7, 1)}
    assert (client.snapshots, client.updates, client.sequence) == (1, 1, 4)
    desk.step()
    client.read(desk)
    assert client.updates == 1, "silence when nothing changed"


def test_equal_subscribers_share_the_same_bytes(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    both = [depth(desk.publisher, 3) for _ in range(2)]
    first = [subscription.take(desk.now_ns) for subscription in both]
    assert first[0] is first[1]
    desk.level(1, 101, 5)
    desk.step()
    second = [subscription.take(desk.now_ns) for subscription in both]
    assert second[0] is second[1]
    for subscription in both:
        subscription.close()


def test_nothing_is_told_of_half_a_command(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 3))
    client.read(desk)
    # The engine dies with the events of a command in the ring and the command not complete.
    touch = desk.writer.arrays["touch"].copy()
    desk.level(1, 100, 6)
    desk.writer.arrays["touch"][:] = touch
    desk.step()
    client.read(desk)
    assert client.levels == {(1, 100): (5, 1)}
    desk.level(1, 101, 1)
    desk.step()
    client.read(desk)
    assert client.levels == {(1, 100): (6, 1), (1, 101): (1, 1)}


@pytest.mark.parametrize("seed", range(5))
def test_clients_of_every_speed_and_depth_hold_the_engines_book(desk: Desk, seed: int) -> None:
    chance = random.Random(seed)
    clients: list[tuple[int, Client]] = []
    for _ in range(300):
        for _ in range(chance.randrange(40)):
            side, lots = chance.choice((1, 2)), chance.choice((0, 0, 1, 2, 3))
            desk.level(side, chance.randrange(1, 120), lots, chance.randrange(1, 4))
        desk.step()
        if len(clients) < 12 and chance.random() < 0.2:
            count = chance.choice((1, 2, 5, 20, 100))
            clients.append((count, Client(depth(desk.publisher, count))))
        for count, client in clients:
            if chance.random() < 0.3:
                client.read(desk)
                assert client.levels == desk.best(count)
    assert any(client.updates for _, client in clients)


def test_a_slow_client_gets_a_snapshot_when_updates_would_be_more(desk: Desk) -> None:
    desk.step()
    client = Client(depth(desk.publisher, 2))
    client.read(desk)
    for price in range(1, 500):
        desk.level(1, price, 1)
        desk.step()
    client.read(desk)
    assert client.levels == desk.best(2)
    assert (client.snapshots, client.updates) == (2, 0)
    assert not client.notices


def test_an_interval_holds_updates_back_and_conflates_them(desk: Desk) -> None:
    desk.step()
    client = Client(depth(desk.publisher, 2, 100_000_000))
    client.read(desk)
    for lots in range(1, 31):
        desk.level(1, 50, lots)
        desk.step(10)
        client.read(desk)
    assert client.updates == 3
    assert client.levels[1, 50][0] == client.sequence


def test_silence_is_filled_with_heartbeats(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 3))
    client.read(desk)
    for _ in range(35):
        desk.step(100)
        client.read(desk)
    assert client.heartbeats == 3


def test_a_loss_is_told_and_healed(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    for number in range(3 * INSTRUMENT.event_capacity):
        desk.level(1 + number % 2, 100 + number % 7, number + 1)
    desk.step()
    client.read(desk)
    assert [notice.kind for notice in client.notices] == [MISSED]
    assert client.notices[0].missed_count > 2 * INSTRUMENT.event_capacity
    assert client.snapshots == 2
    assert client.levels == desk.best(5)


def test_a_book_that_never_rests_is_taken_from_a_depth_copy(desk: Desk) -> None:
    for price in range(100, 140):
        desk.level(1, price, 5)
    desk.writer.depth()
    desk.level(1, 139, 6)
    desk.level(1, 150, 1)
    desk.writer.arrays["scalars"][layout.BOOK_VERSION] += 1
    client = Client(depth(desk.publisher, 30))
    for _ in range(COPIES_REFUSED - 1):
        desk.step()
        client.read(desk)
        assert client.levels == {}, "an engine that rests soon is worth waiting for"
    desk.step()
    client.read(desk)
    # Sixteen levels of the copy and one new one: certain, though not all there is.
    assert client.levels == desk.best(17)
    desk.writer.arrays["scalars"][layout.BOOK_VERSION] += 1
    desk.step()
    client.read(desk)
    assert client.levels == desk.best(30)
    assert (client.snapshots, client.updates) == (1, 1)
    assert [notice.message for notice in client.notices] == ["there is no engine yet"]


def test_an_engine_that_dies_and_comes_back_is_told(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    for _ in range(15):
        desk.step(100, alive=False)
        client.read(desk)
    assert [notice.kind for notice in client.notices] == [DOWN]
    assert client.notices[0].engine_state == 0
    late = Client(depth(desk.publisher, 5))
    late.read(desk)
    assert [notice.kind for notice in late.notices] == [DOWN]
    assert late.levels == desk.best(5), "what is known stays served"

    desk.writer.restart()
    desk.level(1, 101, 6)
    desk.step()
    for one in client, late:
        one.read(desk)
        assert [notice.kind for notice in one.notices] == [DOWN, RESTARTED]
        assert one.notices[1].epoch == desk.writer.owned.epoch == one.epoch
        assert one.snapshots == 2
        assert one.levels == desk.best(5)


def test_the_last_of_an_owner_is_told_after_it_gave_the_segment_away(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    giver, taker = sockets.socketpair()
    with giver, taker:
        desk.level(1, 101, 7)
        desk.writer.owned.move_to(giver)
        desk.step(alive=False)
        client.read(desk)
    assert [notice.kind for notice in client.notices] == [DOWN]
    assert client.levels == desk.best(5)


def test_nothing_of_a_starting_engine_is_told(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    desk.writer.restart()
    scalars = desk.writer.arrays["scalars"]
    scalars[layout.ENGINE_STATE] = layout.STATE_STARTING
    # Recovery replays commands; the book passes through states that were told long ago.
    desk.level(1, 100, 1)
    desk.step()
    client.read(desk)
    assert [notice.kind for notice in client.notices] == [DOWN]
    assert client.levels == {(1, 100): (5, 1)}
    late = Client(depth(desk.publisher, 5))
    late.read(desk)
    assert late.levels == client.levels, "what is known stays served while an engine recovers"
    assert late.epoch == client.epoch
    desk.level(1, 100, 5)
    scalars[layout.ENGINE_STATE] = layout.STATE_READY
    desk.step()
    client.read(desk)
    assert [notice.kind for notice in client.notices] == [DOWN, RESTARTED]
    assert client.levels == {(1, 100): (5, 1)}


def test_a_replaced_segment_starts_another_history(desk: Desk) -> None:
    for _ in range(5):
        desk.writer.trade(1, 100, 3)
    desk.level(1, 100, 5)
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    followed = trades(desk.publisher, 0)
    assert followed.take(desk.now_ns) is not None  # a heartbeat: it has just come
    desk.writer.close()
    directory = desk.writer.directory
    desk.writer = Writer(directory)
    desk.now_ns = int(desk.writer.owned.header[16]) + 2 * SECOND
    desk.truth.clear()
    desk.writer.trade(2, 90, 1)
    desk.level(2, 200, 9)
    desk.step()
    client.read(desk)
    assert client.levels == {(2, 200): (9, 1)}
    assert desk.publisher.trade_log.newest == 1


def test_a_change_of_status_is_told_once(desk: Desk) -> None:
    desk.step()
    client = Client(depth(desk.publisher, 5))
    client.read(desk)
    desk.writer.status(3)
    desk.step()
    client.read(desk)
    assert [(notice.kind, notice.status) for notice in client.notices] == [(STATUS, 3)]


def test_a_flood_of_notices_is_bounded(desk: Desk) -> None:
    desk.step()
    client = Client(depth(desk.publisher, 5))
    for number in range(500):
        desk.writer.status(1 + number % 3)
        desk.step()
    client.read(desk)
    assert len(client.notices) == 64
    assert client.notices[-1].status == 1 + 499 % 3


def test_a_step_without_news_does_nothing(desk: Desk) -> None:
    desk.level(1, 100, 5)
    assert desk.step() > 0
    assert desk.step() == 0
    revision = desk.publisher.revision
    assert desk.step() == 0
    assert desk.publisher.revision == revision


@pytest.mark.parametrize(
    ("setting", "value"),
    [("port", 70_000), ("tick_ms", 0), ("depth_limit", 0), ("level_capacity", 10)],
)
def test_a_setting_that_cannot_work_is_refused(setting: str, value: int) -> None:
    with pytest.raises(InvalidSetting, match=rf"{setting} is {value}"):
        GatewayConfig(pairs=("A",), **{setting: value}).validate()  # type: ignore[arg-type]


def test_the_environment_gives_what_the_command_line_does_not() -> None:
    given = surroundings(
        {"HOLDFAST_PAIR": "A-B,C-D", "HOLDFAST_MARKET_DATA_ADDRESS": "0.0.0.0:7102"}
    )
    assert (given.pairs, given.host, given.port) == (("A-B", "C-D"), "0.0.0.0", 7102)
    assert surroundings({}).host == "127.0.0.1"
    with pytest.raises(InvalidSetting, match="host:port"):
        surroundings({"HOLDFAST_MARKET_DATA_ADDRESS": "7102"})


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 30), st.integers(0, 3)), max_size=40))
def test_one_command_of_many_levels_is_one_update(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[int, int, int]]
) -> None:
    desk = Desk(tmp_path_factory.mktemp("segments"))
    try:
        desk.step()
        client = Client(depth(desk.publisher, 50))
        client.read(desk)
        rows = [(EVENT_LEVEL, *place, 1 if place[2] else 0, 0) for place in operations]
        desk.writer.batch(rows)
        for side, price, lots in operations:
            desk.truth.pop((side, price), None)
            if lots:
                desk.truth[side, price] = (lots, 1)
        desk.step()
        client.read(desk)
        assert client.levels == desk.truth
        assert client.updates <= 1
    finally:
        desk.writer.close()
