"""The client's book of orders against the twin, through cut lines, lapped gateways and late starts.

The kernel writes into segments, the gateway's publication reads them, and what its subscription
says is cut into smaller messages, so that lines break within snapshots and within commands.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange import book_layout as layout
from exchange.v1 import enums_pb2
from exchange.v1 import market_data_pb2 as of
from exchange.v1.stream_pb2 import Heartbeat
from holdfast.book import Gap
from holdfast.market.order_feed import OrderFeed, OrderStep, StepKind
from holdfast.market.orders import OrderBook
from mdgateway.book.orders import EVENT_POSITION, order_events
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.subscriptions import Lagging, OrderSubscription
from tests.property.drawing import Stream, effort, streams
from tests.property.test_order_stream import Key, Venue, venue_of

Message = of.StreamOrdersResponse
Queues = dict[Key, list[tuple[int, int]]]


def pieces(message: Message, size: int) -> Iterator[Message]:
    """Yield what another gateway would say in smaller messages."""
    if message.WhichOneof("event") != "events" or len(message.events.events) <= size:
        yield message
        return
    batch, previous = message.events, message.events.previous_position
    for start in range(0, len(batch.events), size):
        events = batch.events[start : start + size]
        is_last = start + size >= len(batch.events)
        position = batch.position if is_last else events[-1].position + 1
        more = batch.more_follows or not is_last
        yield Message(
            events=of.OrderBatch(
                epoch=batch.epoch,
                previous_position=previous,
                position=position,
                events=events,
                more_follows=more,
            )
        )
        previous = position


class Subscriber:
    """Reads a publication through the client's feed over a line that can be cut."""

    def __init__(self, venue: Venue, size: int) -> None:
        self.venue, self.size = venue, size
        self.feed = OrderFeed()
        self.steps: list[OrderStep] = []
        self.truth: dict[int, Queues] = {}
        """The twin's queues as of each sequence."""
        self.subscribe()

    def subscribe(self) -> None:
        epoch, position = self.feed.held()
        held = (epoch, position) if epoch else None
        self.feed.begin_stream()
        self.subscription = OrderSubscription(self.venue.publisher, ProtobufEncoder, held=held)

    def cut(self) -> None:
        self.see(self.feed.lose("cut"))
        self.subscribe()

    def read(self, most: int = 1 << 30) -> None:
        """Read at most so many messages; the rest is on the line that is cut then."""
        try:
            while (content := self.subscription.take(self.venue.now_ns)) is not None:
                for message in pieces(Message.FromString(content), self.size):
                    if most == 0:
                        self.cut()
                        return
                    most -= 1
                    self.see(self.feed.take(message))
        except Lagging:
            self.cut()
            self.read()

    def see(self, steps: Iterator[OrderStep]) -> None:
        for step in steps:
            self.steps.append(step)
            if step.book.live:
                compare(step.book, self.truth[step.book.sequence])


def compare(book: OrderBook, truth: Queues) -> None:
    """Compare with the twin: known orders in their turn, the unknown before them."""
    told = {
        (side, queue.price_ticks): queue
        for side, queues in enumerate((book.bids(1 << 30), book.asks(1 << 30)), start=1)
        for queue in queues
    }
    assert told.keys() == truth.keys()
    for key, wanted in truth.items():
        queue = told[key]
        known = [(one.number, one.quantity_lots) for one in queue.orders]
        older = wanted[: queue.unknown_count]
        assert wanted[queue.unknown_count :] == known, key
        assert queue.unknown_lots == sum(lots for _, lots in older)
        assert queue.quantity_lots == sum(lots for _, lots in wanted)
        assert queue.order_count == len(wanted)
        ahead = queue.unknown_lots
        for one in queue.orders:
            assert book.order(one.number) == one
            assert book.lots_ahead(one.number) == ahead
            ahead += one.quantity_lots


def sequence_of(venue: Venue) -> int:
    return int(venue.book["scalars"][layout.BOOK_SEQUENCE])


@given(streams(), st.data())
@effort(50)
def test_the_book_is_the_engines_after_every_command_it_tells(
    stream: Stream, data: st.DataObject
) -> None:
    # Small rings, so that a gateway that does not step for long is lapped and subscribers lag.
    with venue_of(replace(stream.universe.instrument, event_capacity=64)) as venue:
        subscribers: list[Subscriber] = []
        truth = {sequence_of(venue): venue.queues()}
        for command, time_ns in stream:
            venue.apply(command, time_ns)
            truth[sequence_of(venue)] = venue.queues()
            what = data.draw(st.sampled_from(["apply", "apply", "step", "read", "come", "cut"]))
            if what == "apply":
                continue
            venue.step()
            if what == "come" and len(subscribers) < 4:
                subscribers.append(Subscriber(venue, data.draw(st.integers(1, 3))))
            for one in subscribers:
                one.truth = truth
                if what == "cut":
                    one.read(data.draw(st.integers(0, 4)))
                elif what != "step":
                    one.read()
                    compare(one.feed.book, venue.queues())
        for one in subscribers:
            check_order(one.steps)
            assert all(step.kind is not StepKind.CONTRADICTED for step in one.steps)


def check_order(steps: list[OrderStep]) -> None:
    """Check that the steps hold whole commands, each event once, in order."""
    positions = [event.position for step in steps for event in step.events]
    assert positions == sorted(set(positions))
    for step in steps:
        assert (step.kind is StepKind.EVENTS) == bool(step.events)
        assert len({event.sequence for event in step.events}) <= 1
    commands = [step.events[0].sequence for step in steps if step.events]
    assert commands == sorted(set(commands))


@given(streams(), st.data())
@effort(30)
def test_no_event_is_missing_however_often_the_line_is_cut(
    stream: Stream, data: st.DataObject
) -> None:
    with venue_of(replace(stream.universe.instrument, event_capacity=4_096)) as venue:
        venue.step()
        one = Subscriber(venue, data.draw(st.integers(1, 3)))
        one.truth[sequence_of(venue)] = venue.queues()
        one.read()
        for command, time_ns in stream:
            venue.apply(command, time_ns)
            one.truth[sequence_of(venue)] = venue.queues()
            venue.step()
            one.read(data.draw(st.integers(0, 9)))
        one.read()
        head = int(venue.book["scalars"][layout.EVENT_HEAD])
        happened = order_events(venue.book["events"][:head], 0)[:, EVENT_POSITION].tolist()
        told = [event.position for step in one.steps for event in step.events]
        anew = [step for step in one.steps if step.kind is StepKind.MISSED]
        assert told == happened or anew
        check_order(one.steps)


# What does not fit.


def snapshot(epoch: int = 1, position: int = 10, sequence: int = 5) -> Message:
    """Return a bid at 100: three unknown lots, then order 7 with 5 lots and order 8 with 2."""
    orders = [
        of.RestingOrder(order_number=7, side=1, price_ticks=100, quantity_lots=5),  # type: ignore[arg-type]
        of.RestingOrder(order_number=8, side=1, price_ticks=100, quantity_lots=2),  # type: ignore[arg-type]
    ]
    rest = of.UnknownOrders(side=1, price_ticks=100, quantity_lots=3, order_count=1)  # type: ignore[arg-type]
    whole = of.OrderSnapshot(is_last=True, orders=orders, unknown=[rest])
    whole.epoch, whole.position, whole.sequence = epoch, position, sequence
    return Message(snapshot=whole)


def event(position: int, action: int, number: int, lots: int, **more: int) -> of.OrderEvent:
    fields = {"side": 1, "price_ticks": 100, "sequence": 6} | more
    return of.OrderEvent(
        position=position,
        action=action,  # type: ignore[arg-type]
        order_number=number,
        quantity_lots=lots,
        **fields,  # type: ignore[arg-type]
    )


def batch(
    *events: of.OrderEvent, previous: int = 10, position: int = 20, epoch: int = 1
) -> Message:
    return Message(
        events=of.OrderBatch(
            epoch=epoch, previous_position=previous, position=position, events=events
        )
    )


def notice(kind: int, epoch: int, engine_state: int = 0) -> Message:
    return Message(
        notice=of.Notice(kind=kind, epoch=epoch, engine_state=engine_state)  # type: ignore[arg-type]
    )


ADD, REDUCE, DELETE, EXECUTE = 1, 2, 3, 4
GONE = {"is_gone": 1}
WRONG = {
    "another epoch": batch(epoch=2),
    "a hole": batch(previous=11),
    "positions that fall": batch(event(12, REDUCE, 7, 1), event(11, REDUCE, 7, 1)),
    "a position that was told": batch(event(9, REDUCE, 7, 1)),
    "a position beyond the batch": batch(event(20, REDUCE, 7, 1)),
    "an order twice": batch(event(11, ADD, 7, 1)),
    "an order of nothing": batch(event(11, ADD, 9, 0)),
    "an order of no side": batch(event(11, ADD, 9, 1, side=0)),
    "another price": batch(event(11, REDUCE, 7, 1, price_ticks=99)),
    "another side": batch(event(11, REDUCE, 7, 1, side=2)),
    "more than there is": batch(event(11, REDUCE, 7, 6)),
    "gone with something left": batch(event(11, DELETE, 7, 4, **GONE)),
    "there with nothing left": batch(event(11, REDUCE, 7, 5)),
    "a trade before the unknown": batch(event(11, EXECUTE, 7, 1)),
    "a trade out of turn": batch(event(11, EXECUTE, 4, 3, **GONE), event(12, EXECUTE, 8, 1)),
    "more unknown than there are": batch(event(11, DELETE, 4, 4, **GONE)),
    "unknown orders of nothing": batch(event(11, DELETE, 4, 2, **GONE)),
    "a command of the past": batch(event(11, REDUCE, 7, 1, sequence=4)),
    "parts in another order": Message(snapshot=of.OrderSnapshot(part=1, is_last=True)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_begins_the_book_anew(what: str) -> None:
    feed = OrderFeed()
    list(feed.take(snapshot()))
    with pytest.raises(Gap):
        list(feed.take(WRONG[what]))
    kinds = [step.kind for step in feed.forget("it does not fit")]
    assert (feed.held(), len(feed.book), feed.book.live) == ((0, 0), 0, False)
    kinds += [step.kind for step in feed.take(snapshot(position=30))]
    assert kinds == [StepKind.STANDSTILL, StepKind.CONTRADICTED]
    assert (feed.held(), len(feed.book), feed.book.live) == ((1, 30), 2, True)


def test_a_command_that_goes_on_is_told_when_it_is_whole_also_over_a_lost_line() -> None:
    feed = OrderFeed()
    list(feed.take(snapshot()))
    first = batch(event(11, EXECUTE, 4, 3, **GONE), position=12)
    first.events.more_follows = True
    assert list(feed.take(first)) == []
    assert feed.held() == (1, 12)
    assert [step.kind for step in feed.lose("cut")] == [StepKind.STANDSTILL]
    feed.begin_stream()
    steps = list(feed.take(batch(event(12, EXECUTE, 7, 2), previous=12)))
    assert [step.kind for step in steps] == [StepKind.RESUMED, StepKind.EVENTS]
    assert [one.position for one in steps[1].events] == [11, 12]
    assert feed.book.bids()[0].orders[0].quantity_lots == 3


def test_a_book_stands_still_while_the_engine_is_down_and_says_which_one_came() -> None:
    feed = OrderFeed()
    ready = enums_pb2.ENGINE_STATE_READY
    beat = Message(heartbeat=Heartbeat(position=9))
    told = []
    for message in (
        notice(of.NOTICE_KIND_ENGINE_DOWN, 1),
        snapshot(),  # The last book of an engine that is down: it is told, and stands still.
        beat,
        notice(of.NOTICE_KIND_ENGINE_RESTARTED, 1, ready),
        beat,
        notice(of.NOTICE_KIND_ENGINE_DOWN, 1),
        notice(of.NOTICE_KIND_ENGINE_RESTARTED, 2, ready),
        beat,  # Of the new engine, whose orders are still to come.
        snapshot(epoch=2, position=1),
        notice(of.NOTICE_KIND_MISSED, 2, ready),
        snapshot(epoch=2, position=90),
    ):
        told += [(step.kind, feed.book.live) for step in feed.take(message)]
    assert told == [
        (StepKind.BEGUN, False),
        (StepKind.RESUMED, True),
        (StepKind.STANDSTILL, False),
        (StepKind.ENGINE_RESTARTED, True),
        (StepKind.MISSED, True),
    ]
