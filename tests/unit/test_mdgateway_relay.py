"""A relay fed by hand with what another gateway says: what fits, what does not, and silence."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exchange.v1 import enums_pb2
from exchange.v1 import market_data_pb2 as of
from holdfast.book import Book
from mdgateway.book.reader import FeedState
from mdgateway.config import GatewayConfig
from mdgateway.feed.publisher import Publisher
from mdgateway.feed.records import FULL
from mdgateway.feed.subscriptions import DepthSubscription, Subscription
from mdgateway.relay.upstream import Lost
from tests.unit.market_data_desk import Client, Desk, depth
from tests.unit.market_data_line import Line
from tests.unit.market_data_writer import INSTRUMENT

DOWN = of.NOTICE_KIND_ENGINE_DOWN
RESTARTED = of.NOTICE_KIND_ENGINE_RESTARTED
CONFIG = GatewayConfig((INSTRUMENT.pair,), upstream="127.0.0.1:1", level_capacity=4_000)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.writer.close()


@pytest.fixture
def line(desk: Desk) -> Line:
    desk.level(1, 100, 5)
    desk.step()
    line = Line(desk, desk.publisher, CONFIG)
    line.connect()
    line.carry()
    return line


def test_what_is_carried_is_told_on(desk: Desk, line: Line) -> None:
    chance = random.Random(1)
    client = Client(depth(line.relay, 20))
    for _ in range(200):
        for _ in range(chance.randrange(4)):
            desk.level(chance.choice((1, 2)), chance.randrange(1, 60), chance.choice((0, 1, 2)))
        if chance.random() < 0.3:
            desk.writer.trade(1, 100, 2)
        desk.step()
        if chance.random() < 0.5:
            line.carry()
            client.read(desk)
            assert client.levels == desk.best(20)
            assert client.sequence <= line.relay.sequence <= desk.publisher.sequence
    # How far the engine is without a change of the book is said by heartbeats.
    desk.step(2_000)
    line.carry()
    client.read(desk)
    assert (client.snapshots, client.notices) == (1, [])
    assert line.relay.trade_log.newest == desk.writer.trade_count
    assert line.relay.ticker().figures == desk.publisher.ticker().figures
    mine, theirs = line.relay.ticker().touch, desk.publisher.ticker().touch
    assert mine == theirs._replace(version=0)
    state = desk.publisher.pair_state()
    assert line.relay.pair_state()._replace(time_ns=state.time_ns) == state


@pytest.mark.parametrize(("trouble", "price"), [("lose", 50), ("spoil", 300)])
def test_an_update_that_does_not_fit_ends_the_streams_and_is_not_told(
    desk: Desk, line: Line, trouble: str, price: int
) -> None:
    # A loss behind the ten levels that are summed is found by the chain alone.
    for filled in range(200, 220):
        desk.level(1, filled, 1)
    desk.step()
    line.carry()
    desk.level(1, price, 7)
    desk.step()
    line.carry(lose=trouble == "lose", spoil=trouble == "spoil")
    desk.level(1, 51, 7)
    desk.step()
    line.carry()
    desk.level(1, 52, 7)
    desk.step()
    line.carry()
    assert line.relay.upstream._abandoned.is_set()
    line.connect()
    line.carry()
    client = Client(depth(line.relay, 50))
    client.read(desk)
    assert client.levels == desk.best(50)


def test_a_lost_line_is_told_and_what_is_held_is_resumed(desk: Desk, line: Line) -> None:
    client = Client(depth(line.relay, 20))
    client.read(desk)
    line.relay.upstream.inbox.append(Lost("the line is cut"))
    line.relay.step(desk.now_ns, desk.time_ns)
    client.read(desk)
    assert [notice.kind for notice in client.notices] == [DOWN]
    assert "the line is cut" in client.notices[0].message
    assert line.relay.state is FeedState.STALE
    desk.level(2, 200, 3)
    desk.writer.trade(1, 100, 2)
    desk.step()
    line.connect()
    assert isinstance(line.streams[1][0], DepthSubscription)
    assert line.streams[1][0].follows()
    line.carry()
    client.read(desk)
    assert [notice.kind for notice in client.notices] == [DOWN, RESTARTED]
    assert client.levels == desk.best(20)
    assert line.relay.trade_log.newest == 1


def test_a_line_that_comes_back_without_news_is_live_with_the_first_heartbeat(
    desk: Desk, line: Line
) -> None:
    line.relay.upstream.inbox.append(Lost("the line is cut"))
    line.relay.step(desk.now_ns, desk.time_ns)
    line.connect()
    line.carry()
    desk.step(2_000)
    line.carry()
    assert line.relay.state is FeedState.LIVE
    client = Client(depth(line.relay, 20))
    client.read(desk)
    assert client.levels == desk.best(20)


def test_a_dead_engine_stays_dead_through_a_relay(desk: Desk, line: Line) -> None:
    client = Client(depth(line.relay, 20))
    client.read(desk)
    for _ in range(15):
        desk.step(100, alive=False)
        line.carry()
    client.read(desk)
    assert [notice.kind for notice in client.notices] == [DOWN]
    # The line breaks and comes back, the engine does not.
    line.relay.upstream.inbox.append(Lost("the line is cut"))
    line.connect()
    line.carry()
    desk.step(2_000, alive=False)
    line.carry()
    assert line.relay.state is FeedState.STALE
    assert line.relay.engine_state == 0
    desk.writer.restart()
    desk.level(1, 101, 6)
    desk.step()
    line.carry()
    client.read(desk)
    assert [notice.kind for notice in client.notices] == [DOWN, RESTARTED]
    assert client.levels == desk.best(20)
    assert client.epoch == desk.writer.owned.epoch


def state_of(line: Line) -> FeedState:
    """Return what the relay says of the engine now."""
    return line.relay.state


def waiting_desk(directory: Path) -> Desk:
    """Return a desk at which the gateway waits for an engine: its segment is elsewhere."""
    desk = Desk(directory)
    absent = directory / "absent"
    absent.mkdir()
    desk.publisher = Publisher(INSTRUMENT, replace(desk.config, segments=str(absent)))
    return desk


def let_come(desk: Desk) -> None:
    """Let the engine's segment appear where the gateway looks for it."""
    [segment] = [path for path in desk.writer.directory.iterdir() if path.is_file()]
    (desk.writer.directory / "absent" / segment.name).hardlink_to(segment)


def book_of(subscription: Subscription, desk: Desk, book: Book) -> Book:
    """Let the client's book take what there is."""
    while (message := subscription.take(desk.now_ns)) is not None:
        book.apply(of.StreamDepthResponse.FromString(message))
    return book


def test_a_relay_that_was_there_before_any_engine_lives_with_the_first(tmp_path: Path) -> None:
    desk = waiting_desk(tmp_path)
    lines = [Line(desk, desk.publisher, CONFIG)]
    lines.append(Line(desk, lines[0].relay, CONFIG))
    lasting = [(depth(line.relay, 20), Book()) for line in lines]
    for line in lines:
        line.connect()
    desk.step(2_000)
    for line in lines:
        line.carry()
        assert (line.relay.ready, line.relay.state) == (False, FeedState.WAITING)
    let_come(desk)
    desk.level(1, 100, 5)
    desk.step()
    for _ in range(3):
        for line in lines:
            line.carry()
            line.ask_for_orders()
    for line, (subscription, book) in zip(lines, lasting, strict=True):
        assert line.relay.ready
        assert (line.relay.state, line.relay.engine_state) == (FeedState.LIVE, 2)
        assert line.relay.present_notice() is None
        assert book_of(subscription, desk, book).live
        assert book.bids()[0][:2] == (100, 5)
    desk.writer.close()


def test_a_relay_that_was_there_before_a_dead_engines_book_says_that_it_is_dead(
    tmp_path: Path,
) -> None:
    desk = waiting_desk(tmp_path)
    line = Line(desk, desk.publisher, CONFIG)
    lasting = [(depth(source, 20), Book()) for source in (desk.publisher, line.relay)]
    line.connect()
    line.carry()
    desk.level(1, 100, 5)
    let_come(desk)
    for _ in range(2):
        desk.step(2_000, alive=False)
        line.carry()
        line.ask_for_orders()
    line.carry()
    assert line.relay.ready
    assert state_of(line) is FeedState.STALE
    assert line.relay.engine_state == 0
    for subscription, book in lasting:
        assert not book_of(subscription, desk, book).live
        assert book.bids()[0][:2] == (100, 5)
    desk.step()
    line.carry()
    for subscription, book in lasting:
        assert book_of(subscription, desk, book).live
    desk.writer.close()


def test_an_upstream_that_comes_back_before_the_engines_book_ends_the_standstill(
    desk: Desk, line: Line
) -> None:
    subscription, book = depth(line.relay, 20), Book()
    assert book_of(subscription, desk, book).live
    line.lose()
    # Another gateway in its place, which has not found the engine yet.
    absent = desk.writer.directory / "absent"
    absent.mkdir()
    line.source = desk.publisher = Publisher(INSTRUMENT, replace(desk.config, segments=str(absent)))
    line.connect()
    desk.step(2_000)
    line.carry()
    assert state_of(line) is FeedState.STALE
    assert not book_of(subscription, desk, book).live
    let_come(desk)
    desk.level(1, 101, 6)
    desk.step()
    line.carry()
    line.ask_for_orders()
    line.carry()
    assert state_of(line) is FeedState.LIVE
    assert book_of(subscription, desk, book).live
    assert book.bids()[0][:2] == (101, 6)


def test_who_comes_while_orders_are_awaited_is_not_told_that_this_engine_is_down(
    desk: Desk,
) -> None:
    desk.level(1, 100, 5)
    desk.step()
    line = Line(desk, desk.publisher, CONFIG)
    line.connect()
    orders = line.streams.pop()
    line.carry()
    assert (line.relay.ready, line.relay.state) == (False, FeedState.LIVE)
    subscription, book = depth(line.relay, 20), Book()
    assert not book_of(subscription, desk, book).live
    line.streams.append(orders)
    line.carry()
    assert book_of(subscription, desk, book).live


def test_any_notice_with_an_engines_state_says_that_it_is_back(desk: Desk, line: Line) -> None:
    """As the one that says that the gateway was overtaken, of a beat that came with a loss."""
    subscription, book = depth(line.relay, 20), Book()
    down, missed = (
        of.StreamDepthResponse(
            notice=of.Notice(kind=kind, epoch=line.relay.epoch, engine_state=state)
        )
        for kind, state in (
            (DOWN, enums_pb2.ENGINE_STATE_UNSPECIFIED),
            (of.NOTICE_KIND_MISSED, enums_pb2.ENGINE_STATE_READY),
        )
    )
    line.relay.upstream.inbox.append(down)
    line.step()
    assert state_of(line) is FeedState.STALE
    assert not book_of(subscription, desk, book).live
    line.relay.upstream.inbox.append(missed)
    line.streams[1] = (depth(desk.publisher, FULL), of.StreamDepthResponse)
    line.carry()
    assert state_of(line) is FeedState.LIVE
    assert book_of(subscription, desk, book).live


def test_a_gateway_that_counts_in_other_units_is_not_believed(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    line = Line(desk, desk.publisher, CONFIG)
    line.connect(base_units_per_lot=7)
    line.carry()
    assert not line.relay.ready
    assert "base_units_per_lot is 7" in line.relay.trouble
