"""The public events, order by order, against the twin's book: none is named, none is missing."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange import book_layout as layout
from exchange.enums import CommandKind, OrderType, SelfTradePrevention, Side, TimeInForce
from exchange.instrument import Instrument
from exchange.records import ORDER_SLOT_BITS, command_price, command_verb
from tests.golden.notation import small_instrument
from tests.property.drawing import Stream, effort, streams
from tests.reference.drivers import Kernel, Twin
from tests.reference.order_follower import Key, OrderFollower

GTC, LIMIT = TimeInForce.GOOD_TILL_CANCELLED, OrderType.LIMIT


def roomy(pair: Instrument) -> Instrument:
    """Return the pair with a ring that no single command can lap."""
    return replace(pair, event_capacity=4096)


class Ring:
    """The events of a kernel, each once."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.head = 0

    def events(self) -> Iterator[list[int]]:
        """Yield what was published since the last call."""
        book = self.kernel.engine.book
        head = int(book["scalars"][layout.EVENT_HEAD])
        assert head - self.head <= len(book["events"])
        for position in range(self.head, head):
            event = book["events"][position % len(book["events"])].tolist()
            assert event[layout.EVENT_COMMIT] == position + 1
            yield event
        self.head = head


def queues_of(twin: Twin) -> dict[Key, list[tuple[int, int]]]:
    """Return (public number, lots) of all resting orders by side and price, first in turn first."""
    return {
        (int(side), price): [
            (order.order_id >> ORDER_SLOT_BITS, order.leaves) for order in queue.values()
        ]
        for side, prices in twin.engine.market.book.levels.items()
        for price, queue in prices.items()
    }


def levels_of(twin: Twin) -> dict[Key, tuple[int, int]]:
    """Return lots and order count of all levels."""
    return {
        (int(side), price): (lots, orders)
        for side, depth in twin.depth().items()
        for price, lots, orders in depth
    }


def queues_told(follower: OrderFollower) -> dict[Key, list[tuple[int, int]]]:
    """Return the same as a follower has it."""
    return {
        key: [(order.number, order.lots) for order in queue]
        for key, queue in follower.queues.items()
        if queue
    }


@given(streams())
@effort(300)
def test_a_follower_from_the_start_has_every_order_in_its_turn(stream: Stream) -> None:
    pair = roomy(stream.universe.instrument)
    kernel, twin, follower = Kernel(pair), Twin(pair), OrderFollower()
    ring = Ring(kernel)
    for command, time_ns in stream:
        kernel.apply(command, time_ns)
        twin.apply(command, time_ns)
        for event in ring.events():
            follower.take(event)
        assert queues_told(follower) == queues_of(twin), command
        assert follower.levels == levels_of(twin), command


@given(streams(), st.data())
@effort(200)
def test_a_late_follower_knows_who_came_after_it(stream: Stream, data: st.DataObject) -> None:
    pair = roomy(stream.universe.instrument)
    kernel, twin = Kernel(pair), Twin(pair)
    ring = Ring(kernel)
    start = data.draw(st.integers(0, len(stream.commands)))
    follower = OrderFollower()
    for place, (command, time_ns) in enumerate(stream):
        if place == start:
            follower = OrderFollower(levels_of(twin))
        kernel.apply(command, time_ns)
        twin.apply(command, time_ns)
        for event in ring.events():
            follower.take(event)
        if place < start:
            continue
        told, resting = queues_told(follower), queues_of(twin)
        for key, queue in resting.items():
            known = told.pop(key, [])
            older = queue[: len(queue) - len(known)]
            assert queue[len(older) :] == known, command
            assert follower.unknown(key) == (sum(lots for _, lots in older), len(older))
        assert told == {}


def order(account: int, client_order_id: int, side: Side, lots: int, price: int) -> list[int]:
    """Return a limit order that would rather shrink than trade with itself."""
    verb = command_verb(CommandKind.NEW_ORDER, account, side, LIMIT, GTC)
    price_word = command_price(price, SelfTradePrevention.DECREMENT)
    return [verb, client_order_id, 0, price_word, lots, 0, 0, 0]


def allotment(number: int, account: int, asset: int) -> list[int]:
    """Return funds for an account."""
    return [command_verb(CommandKind.ALLOT_FUNDS, account), number, 0, asset, 10_000, 0, 0, 0]


def change(kind: CommandKind, client_order_id: int, lots: int = 0) -> list[int]:
    """Return a cancel or an amendment of an order of account 1."""
    return [command_verb(kind, 1), client_order_id, 0, 0, lots, 0, 0, 0]


def said(event: list[int]) -> tuple[int, ...]:
    """Return kind, side, action, lots of the order, price, lots, count, public number."""
    verb = event[layout.EVENT_VERB]
    action = verb >> layout.EVENT_ACTION_SHIFT & 0xF
    whose = verb >> layout.EVENT_ORDER_LOTS_SHIFT
    return (verb & 0xFF, verb >> 8 & 0xFF, action, whose, event[2], event[3], event[6], event[7])


BUY, SELL = int(Side.BUY), int(Side.SELL)
L, T = layout.EVENT_LEVEL, layout.EVENT_TRADE
NONE, ADDED = layout.ACTION_NONE, layout.ACTION_ADDED
REDUCED, DELETED = layout.ACTION_REDUCED, layout.ACTION_DELETED
CASES: list[tuple[str, list[int], list[tuple[int, ...]]]] = [
    ("an order rests", order(1, 1, Side.BUY, 5, 100), [(L, BUY, ADDED, 5, 100, 5, 1, 1)]),
    ("another behind it", order(1, 2, Side.BUY, 7, 100), [(L, BUY, ADDED, 7, 100, 12, 2, 2)]),
    ("it shrinks", change(CommandKind.AMEND_ORDER, 2, 4), [(L, BUY, REDUCED, 3, 100, 9, 2, 2)]),
    (
        "a taker eats one and a part",
        order(2, 1, Side.SELL, 6, 100),
        [
            (T, SELL, DELETED, 0, 100, 5, 1, 1),
            (T, SELL, REDUCED, 0, 100, 1, 2, 2),
            (L, BUY, NONE, 0, 100, 3, 1, 0),
        ],
    ),
    (
        "it grows, so it leaves and comes again with the same number",
        change(CommandKind.AMEND_ORDER, 2, 9),
        [(L, BUY, DELETED, 3, 100, 0, 0, 2), (L, BUY, ADDED, 8, 100, 8, 1, 2)],
    ),
    (
        "its owner sells to himself: both shrink",
        order(1, 3, Side.SELL, 2, 100),
        [(L, BUY, REDUCED, 2, 100, 6, 1, 2), (L, BUY, NONE, 0, 100, 6, 1, 0)],
    ),
    ("it is cancelled", change(CommandKind.CANCEL_ORDER, 2), [(L, BUY, DELETED, 6, 100, 0, 0, 2)]),
    ("an unknown one is not", change(CommandKind.CANCEL_ORDER, 9), []),
]


@pytest.mark.parametrize("upto", range(len(CASES)), ids=[name for name, _, _ in CASES])
def test_each_event_says_what_the_page_says(upto: int) -> None:
    kernel = Kernel(small_instrument())
    ring = Ring(kernel)
    for number, (account, asset) in enumerate(((1, 1), (1, 2), (2, 1), (2, 2)), 1):
        kernel.apply(allotment(number, account, asset))
    events: list[tuple[int, ...]] = []
    for _, command, _ in CASES[: upto + 1]:
        kernel.apply(command)
        events = [said(event) for event in ring.events()]
    assert events == CASES[upto][2]
