"""The pure parts of the client: books from streams, packed forms, ids, errors, patience.

What needs an exchange on the other side is in tests/integration/test_client_exchange.py.
"""

import asyncio
import threading
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st

from engine.entry import batches
from exchange.enums import ExecutionKind, OrderType, Reason, SelfTradePrevention, Side, TimeInForce
from exchange.records import COMMAND_WORDS
from exchange.refusal import Code, Refusal
from exchange.service import STATUS_DETAILS, status_of
from exchange.v1 import enums_pb2, execution_pb2, market_data_pb2, stream_pb2
from holdfast import errors, packed, requests
from holdfast.book import Book, Gap, Level
from holdfast.errors import accepted, of_refusal, of_rpc_error
from holdfast.market.levels import checksum
from holdfast.retry import Attempts, Retry

# Books.

Side_ = dict[int, int]


def level(price: int, lots: int) -> market_data_pb2.Level:
    return market_data_pb2.Level(
        price=str(price), price_ticks=price, quantity=str(lots), quantity_lots=lots, order_count=1
    )


def snapshot(bids: Side_, asks: Side_, sequence: int, epoch: int = 1) -> Any:
    depth = market_data_pb2.Depth(
        epoch=epoch,
        sequence=sequence,
        bids=[level(price, bids[price]) for price in sorted(bids, reverse=True)],
        asks=[level(price, asks[price]) for price in sorted(asks)],
        checksum=checksum(*sides(bids, asks)),
    )
    return market_data_pb2.StreamDepthResponse(snapshot=depth)


def sides(bids: Side_, asks: Side_) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return both sides, best first."""
    return sorted(bids.items(), reverse=True), sorted(asks.items())


def update(
    bids: Side_, asks: Side_, previous: int, sequence: int, epoch: int = 1, proof: int = 0
) -> Any:
    found = market_data_pb2.DepthUpdate(
        epoch=epoch,
        previous_sequence=previous,
        sequence=sequence,
        bids=[level(price, lots) for price, lots in bids.items()],
        asks=[level(price, lots) for price, lots in asks.items()],
        checksum=proof,
    )
    return market_data_pb2.StreamDepthResponse(update=found)


def notice(kind: Any, epoch: int = 1, state: Any = 0) -> market_data_pb2.StreamDepthResponse:
    told = market_data_pb2.Notice(kind=kind, epoch=epoch, engine_state=state)
    return market_data_pb2.StreamDepthResponse(notice=told)


def heartbeat(position: int) -> market_data_pb2.StreamDepthResponse:
    return market_data_pb2.StreamDepthResponse(heartbeat=stream_pb2.Heartbeat(position=position))


LEVELS = st.dictionaries(st.integers(1, 20), st.integers(1, 9), max_size=8)
CHANGES = st.dictionaries(st.integers(1, 20), st.integers(0, 9), max_size=8)


@given(LEVELS, LEVELS, st.lists(st.tuples(CHANGES, CHANGES), max_size=8))
def test_a_book_is_what_the_messages_say(
    bids: Side_, asks: Side_, changes: list[tuple[Side_, Side_]]
) -> None:
    book = Book()
    book.apply(snapshot(bids, asks, 10))
    truth = dict(bids), dict(asks)
    for sequence, change in enumerate(changes, start=10):
        for side, changed in zip(truth, change, strict=True):
            side.update(changed)
            for price in [price for price, lots in side.items() if lots == 0]:
                del side[price]
        proof = checksum(*sides(*truth))
        assert book.apply(update(*change, sequence, sequence + 1, proof=proof))
    assert [(one.price_ticks, one.quantity_lots) for one in book.bids(99)] == sorted(
        truth[0].items(), reverse=True
    )
    assert [(one.price_ticks, one.quantity_lots) for one in book.asks(99)] == sorted(
        truth[1].items()
    )
    assert book.sequence == 10 + len(changes)
    assert book.bids(0) == []
    assert book.asks(1) == book.asks(99)[:1]


@pytest.mark.parametrize(("previous", "epoch"), [(9, 1), (11, 1), (10, 2)])
def test_an_update_that_does_not_follow_changes_nothing(previous: int, epoch: int) -> None:
    book = Book()
    book.apply(snapshot({5: 1}, {6: 1}, 10))
    with pytest.raises(Gap, match=f"follows sequence {previous} of epoch {epoch}"):
        book.apply(update({5: 7}, {}, previous, 20, epoch))
    assert book.bids() == [Level(5, 1, 1, "5", "1")]
    assert book.sequence == 10


def test_a_book_that_is_not_the_exchanges_is_not_gone_on_with() -> None:
    book = Book()
    book.apply(snapshot({5: 1}, {6: 1}, 10))
    with pytest.raises(Gap, match="the checksum at 20 is"):
        book.apply(update({5: 7}, {}, 10, 20, proof=checksum([(5, 8)], [(6, 1)])))
    book.forget()
    assert (book.live, book.epoch, book.sequence, book.bids()) == (False, 0, 0, [])


def test_a_heartbeat_revives_a_book_that_missed_nothing() -> None:
    book = Book()
    book.apply(snapshot({5: 1}, {6: 1}, 10))
    book.stall()
    down = notice(market_data_pb2.NOTICE_KIND_ENGINE_DOWN)
    seen = [
        (book.apply(message), book.live)
        for message in (heartbeat(11), heartbeat(10), down, heartbeat(10))
    ]
    assert seen == [(False, False), (True, True), (True, False), (False, False)]


def test_a_book_stands_still_while_the_engine_is_down() -> None:
    book = Book()
    seen = [book.live]
    for message in (
        snapshot({5: 1}, {}, 10),
        notice(market_data_pb2.NOTICE_KIND_PAIR_STATUS),
        notice(market_data_pb2.NOTICE_KIND_ENGINE_DOWN),
        notice(market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED),
        snapshot({5: 2}, {}, 3, epoch=2),
    ):
        book.apply(message)
        seen.append(book.live)
    assert seen == [False, True, True, False, False, True]
    assert (book.epoch, book.sequence, book.bids()[0].quantity_lots) == (2, 3, 2)


SAME = checksum([(5, 1)], [])
# What comes after "the engine is down", and whether the book is the present one then.
AFTER_DOWN: dict[str, tuple[list[Any], list[bool]]] = {
    "its last book": ([snapshot({5: 1}, {}, 10), heartbeat(10)], [False, False]),
    "its last change, held back by an interval": (
        [snapshot({5: 1}, {}, 10), update({}, {}, 10, 12, proof=SAME), heartbeat(12)],
        [False, False, False],
    ),
    "the same engine": (
        [
            snapshot({5: 1}, {}, 10),
            notice(market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED),
            snapshot({5: 1}, {}, 10),
        ],
        [False, False, True],
    ),
    "the same engine, quicker than the gateway": (
        [
            snapshot({5: 1}, {}, 10),
            notice(market_data_pb2.NOTICE_KIND_MISSED, 1, enums_pb2.ENGINE_STATE_READY),
            snapshot({5: 1}, {}, 90),
        ],
        [False, False, True],
    ),
    "the first engine of all": ([snapshot({5: 1}, {}, 3, epoch=2)], [True]),
}


@pytest.mark.parametrize("what", AFTER_DOWN)
def test_a_book_that_is_begun_while_the_engine_is_down_stands_still_until_it_is_back(
    what: str,
) -> None:
    messages, expected = AFTER_DOWN[what]
    book = Book()
    book.apply(notice(market_data_pb2.NOTICE_KIND_ENGINE_DOWN))
    seen = []
    for message in messages:
        book.apply(message)
        seen.append(book.live)
    assert (seen, book.bids()) == (expected, [Level(5, 1, 1, "5", "1")])


def test_a_lost_line_ends_what_was_said_of_the_engine() -> None:
    book = Book()
    book.apply(snapshot({5: 1}, {}, 10))
    book.apply(notice(market_data_pb2.NOTICE_KIND_ENGINE_DOWN))
    book.stall()
    # A stream that begins says so first if the engine is down still.
    assert (book.apply(update({}, {}, 10, 11, proof=SAME)), book.live) == (True, True)


# Packed forms.

NARROW = st.integers(0, 15)
COMMANDS = st.builds(
    lambda kind, side, order_type, force, prevention, flags, price, lots, given, order: [
        kind | side << 8 | order_type << 16 | force << 24 | 7 << 32,
        given,
        order,
        price | prevention << 32 | flags << 40,
        lots,
        0,
        0,
        0,
    ],
    st.integers(1, 4),
    NARROW,
    NARROW,
    NARROW,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
)


@given(st.lists(COMMANDS, min_size=1, max_size=5))
def test_records_say_everything_a_command_row_says(commands: list[list[int]]) -> None:
    rows = np.array(commands, np.int64)
    records = packed.records_of_commands(rows)
    words = records.view(np.int64).reshape(-1, 4)
    assert words[:, 0].tolist() == rows[:, 1].tolist()
    assert words[:, 1].tolist() == rows[:, 2].tolist()
    assert words[:, 2].tolist() == rows[:, 4].tolist()
    verb, price = rows[:, 0], rows[:, 3]
    narrow = (verb & 15) | ((verb >> 8) & 15) << 4 | ((verb >> 16) & 15) << 8
    narrow |= ((verb >> 24) & 15) << 12 | (price >> 32) << 16
    expected = (price & 0xFFFFFFFF) | narrow << 32
    assert words[:, 3].tolist() == expected.tolist()


def test_the_client_and_order_entry_mean_the_same_bytes() -> None:
    records = packed.new_orders([11, 12], [Side.BUY, Side.SELL], 64_000, [5, 6], post_only=True)
    ring = np.zeros((2, COMMAND_WORDS), np.int64)
    content = batches.records_of(packed.check_records(records))
    assert isinstance(content, np.ndarray)
    batches.expand_records(content, 9, 0, 0, ring)
    for row, given_id, side, lots in zip(ring.tolist(), (11, 12), (1, 2), (5, 6), strict=True):
        assert row[0] == 1 | side << 8 | OrderType.LIMIT << 16 | 1 << 24 | 9 << 32
        assert row[1] == given_id
        assert row[3] == 64_000 | SelfTradePrevention.CANCEL_NEWEST << 32 | 1 << 40
        assert row[4] == lots
    cancels = np.concatenate((packed.cancels([11]), packed.cancel_all(Side.SELL)))
    content = batches.records_of(packed.check_records(cancels))
    assert isinstance(content, np.ndarray)
    batches.expand_records(content, 9, 0, 0, ring)
    assert ring[0, :2].tolist() == [2 | 9 << 32, 11]
    assert ring[1, :2].tolist() == [4 | Side.SELL << 8 | 9 << 32, 0]


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([1, 2], "records are list; they must be an array of RECORD_DTYPE"),
        (np.zeros(3, np.int64), "records are int64; they must be an array of RECORD_DTYPE"),
        (np.zeros(0, packed.RECORD_DTYPE), r"records have shape \(0,\); it must be \(1 to 8192,\)"),
        (np.zeros(8_193, packed.RECORD_DTYPE), r"shape \(8193,\)"),
        (np.zeros((2, 2), packed.RECORD_DTYPE), r"shape \(2, 2\)"),
    ],
)
def test_an_array_that_is_no_batch_is_refused(records: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        packed.check_records(records)


# Ids and requests.


def test_client_order_ids_rise_and_never_repeat_across_threads_and_blocks() -> None:
    ids = requests.ClientOrderIds()
    found: list[list[int]] = []

    def take() -> None:
        found.append([ids() for _ in range(2_000)])

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    first = ids.block(1_000)
    for thread in threads:
        thread.join()
    block = [first + i * ids.step() for i in range(1_000)]
    every = [one for part in found for one in part] + block
    assert len(set(every)) == len(every)
    assert all(part == sorted(part) for part in found)
    assert min(every) > 0
    assert max(every) < 1 << 63
    assert ids() > max(every)


@pytest.mark.parametrize(
    ("order", "order_type", "force"),
    [
        ({"price": "1", "quantity": "2"}, OrderType.LIMIT, TimeInForce.GOOD_TILL_CANCELLED),
        ({"quantity": "2"}, OrderType.MARKET, TimeInForce.IMMEDIATE_OR_CANCEL),
        ({"amount": "2"}, OrderType.MARKET_BY_AMOUNT, TimeInForce.IMMEDIATE_OR_CANCEL),
        (
            {"price": "1", "quantity": "2", "time_in_force": TimeInForce.FILL_OR_KILL},
            OrderType.LIMIT,
            TimeInForce.FILL_OR_KILL,
        ),
    ],
)
def test_what_is_given_says_what_kind_of_order_it_is(
    order: dict[str, Any], order_type: OrderType, force: TimeInForce
) -> None:
    request = requests.submit_request("BTC-USDT", 5, Side.BUY, **order)
    assert (int(request.order_type), int(request.time_in_force)) == (order_type, force)
    assert (request.client_order_id, int(request.side)) == (5, Side.BUY)


# Errors.

REFUSALS = {
    Code.INVALID_ARGUMENT: errors.InvalidRequest,
    Code.DEADLINE_EXCEEDED: errors.OutcomeUnknown,
    Code.NOT_FOUND: errors.NotFound,
    Code.PERMISSION_DENIED: errors.NotPermitted,
    Code.RESOURCE_EXHAUSTED: errors.Full,
    Code.FAILED_PRECONDITION: errors.InvalidRequest,
    Code.OUT_OF_RANGE: errors.OutOfRange,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
    Code.INTERNAL: errors.CallFailed,
}
STATUS = {code.value[0]: code for code in grpc.StatusCode}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_keeps_its_reason_field_value_and_limit_at_the_end_of_a_call(code: Code) -> None:
    refusal = Refusal(code, "PRICE_OFF_GRID", "price is '1.001'", "price", "1.001", "two decimals")
    trailing = aio.Metadata((STATUS_DETAILS, status_of(refusal).SerializeToString()))
    error = of_rpc_error(
        aio.AioRpcError(STATUS[int(code)], aio.Metadata(), trailing, details=refusal.message)
    )
    assert type(error) is REFUSALS[code]
    assert (error.code, error.reason, error.message) == (code, refusal.reason, refusal.message)
    assert (error.field, error.value, error.limit) == ("price", "1.001", "two decimals")
    assert str(error) == "PRICE_OFF_GRID: price is '1.001'"
    again = {errors.Unavailable, errors.Full, errors.OutcomeUnknown}
    assert isinstance(error, errors.TryAgain) == (type(error) in again)


def test_a_refusal_inside_a_stream_is_the_same_error() -> None:
    refusal = execution_pb2.Refusal(
        code=8, reason="RING_FULL", message="full", field="inbox", value="9", limit="fewer"
    )
    error = of_refusal(refusal)
    assert type(error) is errors.Full
    assert (error.reason, error.field, error.value) == ("RING_FULL", "inbox", "9")


def test_a_lost_connection_has_no_reason_but_a_class() -> None:
    lost = aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), details="Socket closed"
    )
    error = of_rpc_error(lost)
    assert type(error) is errors.Unavailable
    assert (error.reason, str(error)) == ("", "Socket closed")


def test_a_rejected_order_is_an_error_only_for_who_wants_it() -> None:
    report = execution_pb2.CommandReport(
        kind=int(ExecutionKind.REJECTED),  # type: ignore[arg-type]
        reason=int(Reason.INSUFFICIENT_FUNDS),  # type: ignore[arg-type]
        message="not enough",
    )
    with pytest.raises(errors.OrderRejected, match="INSUFFICIENT_FUNDS: not enough") as caught:
        accepted(report)
    assert caught.value.reason is Reason.INSUFFICIENT_FUNDS
    taken = execution_pb2.CommandReport(kind=int(ExecutionKind.ACCEPTED))  # type: ignore[arg-type]
    assert accepted(taken) is taken


# Patience.


@pytest.mark.parametrize(
    "name", ["patience_s", "attempt_s", "first_pause_s", "longest_pause_s", "silence_s"]
)
@pytest.mark.parametrize("value", [0, -1, 3_601, float("nan")])
def test_a_patience_that_cannot_work_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Retry(**{name: value}).validate()


def test_an_attempt_never_takes_longer_than_the_patience_that_is_left() -> None:
    async def scenario() -> None:
        attempts = Attempts(Retry(patience_s=0.001, attempt_s=60, first_pause_s=0.001))
        assert attempts.attempt_s() <= 0.001
        assert attempts.spent()
        patient = Attempts(Retry(patience_s=100, attempt_s=1))
        assert patient.attempt_s() == 1
        assert not patient.spent()

    asyncio.run(scenario())
