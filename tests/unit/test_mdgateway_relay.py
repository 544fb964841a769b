"""A relay fed by hand with what another gateway says: what fits, what does not, and silence."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from exchange.v1 import market_data_pb2 as of
from mdgateway.book.reader import FeedState
from mdgateway.config import GatewayConfig
from mdgateway.feed.subscriptions import DepthSubscription
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


def test_a_gateway_that_counts_in_other_units_is_not_believed(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.step()
    line = Line(desk, desk.publisher, CONFIG)
    line.connect(base_units_per_lot=7)
    line.carry()
    assert not line.relay.ready
    assert "base_units_per_lot is 7" in line.relay.trouble
