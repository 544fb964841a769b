"""A relay's orders, told by hand: what does not follow is not taken, and a gap is noticed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from exchange.refusal import Refused
from exchange.v1 import market_data_pb2 as of
from exchange.v1.stream_pb2 import Goodbye
from mdgateway.config import GatewayConfig
from mdgateway.feed.order_log import OrderLog
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.requests import with_orders
from mdgateway.feed.subscriptions import OrderSubscription
from mdgateway.relay.orders import ToldOrders
from mdgateway.relay.relay import Relay
from tests.unit.market_data_desk import Desk
from tests.unit.market_data_line import Line
from tests.unit.market_data_writer import INSTRUMENT

ADD, REDUCE, DELETE, EXECUTE = range(1, 5)


@pytest.fixture
def told() -> ToldOrders:
    """Order 7 of 5 lots behind two unknown ones of 9 lots, at one price, at position 100."""
    told = ToldOrders(OrderLog(64), 10)
    resting = of.RestingOrder(order_number=7, side=1, price_ticks=50, quantity_lots=5)  # type: ignore[arg-type]
    unknown = of.UnknownOrders(side=1, price_ticks=50, quantity_lots=9, order_count=2)  # type: ignore[arg-type]
    first = of.OrderSnapshot(epoch=3, sequence=40, position=100, orders=[resting])
    last = of.OrderSnapshot(epoch=3, sequence=40, position=100, part=1, unknown=[unknown])
    last.is_last = True
    for part in first, last:
        assert not told.take_part(part)
    return told


def event(
    action: int, number: int, lots: int, *, gone: bool = False, at: int = 100
) -> of.OrderEvent:
    return of.OrderEvent(
        action=action,  # type: ignore[arg-type]
        order_number=number,
        side=1,  # type: ignore[arg-type]
        price_ticks=50,
        quantity_lots=lots,
        sequence=41,
        is_gone=gone,
        position=at,
    )


def batch(*events: of.OrderEvent, **fields: int) -> of.OrderBatch:
    given = {"epoch": 3, "previous_position": 100, "position": 110} | fields
    return of.OrderBatch(events=events, **given)  # type: ignore[arg-type]


def test_a_snapshot_and_its_events_are_told_on(told: ToldOrders) -> None:
    assert told.held() == (3, 100)
    # The first unknown order has something left, so there is one still.
    events = event(EXECUTE, 1, 3), event(DELETE, 2, 5, gone=True, at=103), event(ADD, 9, 1, at=104)
    assert not told.take_batch(batch(*events))
    assert (told.held(), told.log.sequence) == ((3, 110), 41)
    orders, unknown = told.orders_now()
    assert orders[:, :4].tolist() == [[7, 1, 50, 5], [9, 1, 50, 1]]
    assert unknown.tolist() == [[1, 50, 1, 1]]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (batch(epoch=4), "do not follow"),
        (batch(previous_position=99), "do not follow"),
        (batch(event(REDUCE, 7, 1, at=99)), "do not rise"),
        (batch(event(REDUCE, 7, 1, at=110)), "do not rise"),
        (batch(event(REDUCE, 7, 1), event(REDUCE, 7, 1)), "do not rise"),
        (batch(position=99), "do not rise"),
        (batch(event(ADD, 7, 1)), "contradict"),
        (batch(event(REDUCE, 7, 5)), "contradict"),
        (batch(event(DELETE, 7, 4, gone=True)), "contradict"),
        (batch(event(EXECUTE, 1, 10)), "contradict"),
        (batch(event(EXECUTE, 1, 9, gone=True)), "contradict"),
    ],
)
def test_a_batch_that_does_not_fit_is_not_taken(
    told: ToldOrders, wrong: of.OrderBatch, reason: str
) -> None:
    assert reason in told.take_batch(wrong)
    assert told.log.next_index == 0, "it was told on"
    # After a contradiction nothing that was held is true, so nothing is resumed.
    assert told.held() == ((0, 0) if reason == "contradict" else (3, 100))
    assert told.log.contradiction_count == (reason == "contradict")


def test_a_part_too_few_is_noticed(told: ToldOrders) -> None:
    assert not told.take_part(of.OrderSnapshot(epoch=3, position=200, part=0))
    assert "part 2" in told.take_part(of.OrderSnapshot(epoch=3, position=200, part=2, is_last=True))
    assert told.held() == (3, 100)
    # A line that is cut between two parts begins with the first one again.
    told.begin_stream()
    assert not told.take_part(of.OrderSnapshot(epoch=3, position=200, part=0, is_last=True))
    assert told.held() == (3, 200)


def test_only_the_best_levels_are_told(told: ToldOrders) -> None:
    events = [event(ADD, 20 + one, 1, at=101 + one) for one in range(20)]
    for one, added in enumerate(events):
        added.price_ticks = 40 - one
    assert not told.take_batch(batch(*events, position=200))
    orders, unknown = told.orders_now()
    assert sorted(set(orders[:, 2].tolist())) == [*range(32, 41), 50]
    assert len(unknown) == 1


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    desk.level(1, 100, 5)
    desk.step()
    yield desk
    desk.writer.close()


def state_of(relay: Relay) -> tuple[bool, str]:
    """Return whether a relay is ready, and why it refuses orders."""
    try:
        with_orders(relay)
    except Refused as refused:
        return relay.ready, refused.refusal.reason
    return relay.ready, ""


def test_a_relay_is_ready_when_it_knows_whether_there_are_orders(desk: Desk) -> None:
    config = GatewayConfig((INSTRUMENT.pair,), upstream="127.0.0.1:1", level_capacity=4_000)
    line = Line(desk, desk.publisher, config)
    orders, desk.publisher.orders = desk.publisher.orders, None
    line.connect()
    line.carry()
    assert state_of(line.relay) == (False, "BOOK_UNAVAILABLE")
    line.relay.do_without_orders()
    assert state_of(line.relay) == (True, "ORDERS_UNAVAILABLE")
    # The upstream may come to have orders later.
    desk.publisher.orders = orders
    line.heal()
    line.carry()
    assert state_of(line.relay) == (True, "")


def test_a_client_of_a_quicker_gateway_is_waited_for(desk: Desk) -> None:
    config = GatewayConfig((INSTRUMENT.pair,), upstream="127.0.0.1:1", level_capacity=4_000)
    line = Line(desk, desk.publisher, config)
    line.connect()
    line.carry()
    desk.writer.add_order(1, 1, 90, 3)
    desk.step()
    log = desk.publisher.orders
    assert log is not None
    held = log.epoch, log.position
    hopped = OrderSubscription(line.relay, ProtobufEncoder, held=held)
    far = OrderSubscription(line.relay, ProtobufEncoder, held=(held[0], held[1] + log.capacity))
    hopped.heartbeat_ns = far.heartbeat_ns = 0
    assert hopped.take(desk.now_ns) is None
    assert (
        hopped.goodbye("DRAINING")
        == of.StreamOrdersResponse(
            goodbye=Goodbye(reason="DRAINING", resume_from=held[1])
        ).SerializeToString()
    ), "what was held is not lost by waiting"
    assert of.StreamOrdersResponse.FromString(far.take(desk.now_ns) or b"").HasField("snapshot")
    line.carry()
    desk.writer.add_order(2, 1, 91, 3)
    desk.step()
    line.carry()
    message = of.StreamOrdersResponse.FromString(hopped.take(desk.now_ns) or b"")
    assert message.events.previous_position == held[1]
    assert [event.order_number for event in message.events.events] == [2]
