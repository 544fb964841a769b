"""The streams of order entry: batches, sessions, private executions, the feed."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from engine.durability.execution_reader import ExecutionLogReader
from exchange.packed import BATCH_LIMIT
from exchange.records import EXECUTION_WORDS
from exchange.v1 import enums_pb2 as enums
from exchange.v1 import (
    execution_feed_pb2,
    execution_feed_pb2_grpc,
    order_entry_pb2,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from tests.integration.entry_clients import (
    ALICE,
    DEADLINE_S,
    IOC,
    LIMIT,
    SELL,
    Client,
    Running,
    Session,
    acks_of,
    client_order_ids,
    message,
    records,
    refused,
)
from tests.integration.exchange_processes import PAIR

pytestmark = pytest.mark.integration


# Packed doors.


def test_a_batch_answers_each_record_in_order(alice: Client, bob: Client) -> None:
    alice.submit(side=SELL, quantity="0.015")
    batch = records(5)
    batch["kind_side"][2] = 15 | 15 << 4
    batch["quantity_lots"][3] = -1
    batch["price_ticks"][4] = 0
    (answer,) = bob.batches(iter([message(batch, 42)]))
    assert answer.batch_number == 42
    acks = acks_of(answer)
    assert acks["kind"].tolist() == [1, 1, 2, 2, 2]
    assert acks["client_order_id"].tolist()[:2] == batch["client_order_id"].tolist()[:2]
    assert acks["filled_lots"].tolist() == [1_000, 500, 0, 0, 0]
    assert acks["leaves_lots"].tolist() == [0, 500, 0, 0, 0]
    assert acks["trade_count"].tolist() == [1, 1, 0, 0, 0]
    assert acks["reason"].tolist()[2:] == [
        enums.REASON_COMMAND_KIND_INVALID,
        enums.REASON_QUANTITY_OUT_OF_RANGE,
        enums.REASON_PRICE_OUT_OF_RANGE,
    ]
    assert (np.diff(acks["last_number"]) > 0).all()


def test_no_trader_gives_itself_money(alice: Client, shared: Any) -> None:
    batch = records(16, quantity_lots=1 << 40, price_ticks=2)
    batch["kind_side"] = np.arange(16)
    (answer,) = alice.batches(iter([message(batch)]))
    kinds = set(acks_of(answer)["kind"].tolist())
    money = {enums.EXECUTION_KIND_ALLOTTED, enums.EXECUTION_KIND_RELEASED}
    settings = {enums.EXECUTION_KIND_ACCOUNT_SET, enums.EXECUTION_KIND_PAIR_SET}
    assert not kinds & (money | settings)


@pytest.mark.parametrize(
    ("wrong", "reason", "field"),
    [
        ({"records": bytes(33)}, "BATCH_LENGTH", "records"),
        ({"records": bytes(32 * (BATCH_LIMIT + 1))}, "BATCH_LENGTH", "records"),
        ({"records": b""}, "BATCH_LENGTH", "records"),
        ({"record_version": 2, "records": bytes(32)}, "RECORD_VERSION", "record_version"),
        ({"pair": "X", "records": bytes(32)}, "PAIR_UNKNOWN", "pair"),
        ({}, "FIELD_MISSING", "content"),
        (
            {"columns": order_entry_pb2.CommandColumns(kinds=[1, 1], sides=[1])},
            "COLUMN_LENGTH",
            "sides",
        ),
    ],
)
def test_a_malformed_batch_ends_the_stream_after_the_answers_before_it(
    alice: Client, wrong: dict[str, Any], reason: str, field: str
) -> None:
    fields: dict[str, Any] = {"pair": PAIR, "record_version": 1}
    bad = order_entry_pb2.SubmitBatchesRequest(**(fields | wrong))
    call = alice.batches(iter([message(records(3), 1), bad, message(records(3), 3)]))
    assert len(acks_of(next(call))) == 3
    code, info = refused(lambda: next(call))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert info.metadata["field"] == field


def test_columns_are_taken_like_records(alice: Client) -> None:
    columns = order_entry_pb2.CommandColumns(
        kinds=[1, 1],
        sides=[1, 2],
        order_types=[1, 1],
        times_in_force=[1, 9],
        prices_ticks=[6_000_000, 6_500_000],
        quantities_lots=[1_000, 1_000],
        client_order_ids=[next(client_order_ids), next(client_order_ids)],
    )
    request = order_entry_pb2.SubmitBatchesRequest(pair=PAIR, record_version=1, columns=columns)
    (answer,) = alice.batches(iter([request]))
    acks = acks_of(answer)
    assert acks["kind"].tolist() == [1, 2]
    assert acks["reason"].tolist() == [0, enums.REASON_TIME_IN_FORCE_INVALID]


def test_a_batch_client_that_never_reads_is_bounded_and_blocks_nobody(
    channel: grpc.Channel, alice: Client, bob: Client
) -> None:
    size, sent = 1_000, itertools.count(1)
    stop = threading.Event()

    def endless() -> Iterator[order_entry_pb2.SubmitBatchesRequest]:
        while not stop.is_set():
            yield message(records(size, order_type_time_in_force=LIMIT | IOC << 4), next(sent))

    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
    status = pair_admin_pb2.GetStatusRequest(pair=PAIR)
    before = admin.GetStatus(status, timeout=DEADLINE_S).sequence
    call = alice.batches(endless())
    # It stands still once its answers, and what gRPC holds of them, are full: then others have
    # been served hundreds of times without it moving.
    moved, quiet = before, 0
    while quiet < 300:
        assert bob.submit(time_in_force=IOC).kind == enums.EXECUTION_KIND_ACCEPTED
        now = admin.GetStatus(status, timeout=DEADLINE_S).sequence
        quiet = quiet + 1 if now - moved <= 2 else 0
        moved = now
    assert moved - before < 500 * size
    stop.set()
    call.cancel()


def test_a_client_that_dies_in_mid_stream_leaves_its_orders_decided(alice: Client) -> None:
    hold = threading.Event()

    def requests() -> Iterator[order_entry_pb2.SubmitBatchesRequest]:
        yield message(records(100))
        hold.wait(DEADLINE_S)

    call = alice.batches(requests())
    next(call)
    call.cancel()
    hold.set()
    assert len(alice.open_orders()) == 100


# Sessions.


def test_a_session_answers_in_order_and_survives_what_is_wrong(alice: Client) -> None:
    session = Session(alice)
    session.send(1, options=order_entry_pb2.SessionOptions(pair=PAIR))
    session.send(2, submit=alice.order(pair=""))
    session.send(3, submit=alice.order(price="1.001"))
    session.send(4, submit=alice.order(quantity="0"))
    session.send(5)
    session.send(6, cancel=order_entry_pb2.CancelOrderRequest(order_id=1))
    session.send(7, cancel_all=order_entry_pb2.CancelAllOrdersRequest(pair="OTHER"))
    session.send(8, cancel_all=order_entry_pb2.CancelAllOrdersRequest())
    session.end()
    answers = list(session.call)
    assert [answer.request_id for answer in answers] == list(range(1, 9))
    forms = [answer.WhichOneof("answer") for answer in answers]
    assert forms == [
        *("options", "report", "refusal", "report", "refusal", "report", "refusal", "report"),
    ]
    assert answers[1].report.kind == enums.EXECUTION_KIND_ACCEPTED
    assert (answers[2].refusal.reason, answers[2].refusal.field) == ("PRICE_INVALID", "price")
    assert answers[3].report.reason == enums.REASON_QUANTITY_OUT_OF_RANGE
    assert answers[4].refusal.field == "command"
    assert answers[5].report.reason == enums.REASON_ORDER_UNKNOWN
    assert answers[6].refusal.reason == "PAIR_UNKNOWN"
    assert answers[7].report.executions[-1].quantity_lots == 1


@pytest.mark.parametrize("ending", ["cancel", "end"])
@pytest.mark.parametrize("wanted", [True, False])
def test_cancel_on_disconnect_happens_when_asked_for(
    alice: Client, ending: str, wanted: bool
) -> None:
    start = alice.stub.StreamExecutions(
        order_entry_pb2.StreamExecutionsRequest(pair=PAIR, from_number=-1),
        metadata=alice.metadata,
        timeout=DEADLINE_S,
    )
    session = Session(alice)
    options = order_entry_pb2.SessionOptions(pair=PAIR, cancel_on_disconnect=wanted)
    session.send(1, options=options)
    session.send(2, submit=alice.order())
    answers = [next(session.call), next(session.call)]
    assert answers[1].report.kind == enums.EXECUTION_KIND_ACCEPTED
    if ending == "cancel":
        session.call.cancel()
    else:
        session.end()
        assert list(session.call) == []
    if wanted:
        seen = (one for answer in start for one in answer.executions)
        cancelled = next(one for one in seen if one.kind == enums.EXECUTION_KIND_CANCELLED)
        assert cancelled.reason == enums.REASON_DISCONNECTED
        assert alice.open_orders() == []
    else:
        assert len(alice.open_orders()) == 1
    start.cancel()


# Streams of executions.


def test_the_private_stream_shows_the_own_account_only_and_resumes(
    alice: Client, bob: Client
) -> None:
    first = alice.submit(side=SELL, quantity="0.03")
    bob.submit(price="60001", quantity="0.01")
    bob.submit(price="60001", quantity="0.01")

    def stream(from_number: int) -> Iterator[Any]:
        call = alice.stub.StreamExecutions(
            order_entry_pb2.StreamExecutionsRequest(pair=PAIR, from_number=from_number),
            metadata=alice.metadata,
            timeout=DEADLINE_S,
        )
        for answer in call:
            yield from answer.executions
        call.cancel()

    mine = list(itertools.islice(stream(first.first_number), 3))
    assert [one.kind for one in mine] == [1, 3, 3]
    assert {one.account for one in mine} == {ALICE}
    assert [one.maker for one in mine] == [False, True, True]
    again = next(stream(mine[1].number + 1))
    assert again == mine[2]


def test_a_silent_stream_beats(alice: Client) -> None:
    call = alice.stub.StreamExecutions(
        order_entry_pb2.StreamExecutionsRequest(pair=PAIR, from_number=-1),
        metadata=alice.metadata,
        timeout=DEADLINE_S,
    )
    assert next(call).HasField("heartbeat")
    call.cancel()


def test_numbers_that_are_not_there_are_out_of_range(alice: Client) -> None:
    for number in (-2, 1 << 40):
        request = order_entry_pb2.StreamExecutionsRequest(pair=PAIR, from_number=number)
        call = alice.stub.StreamExecutions(request, metadata=alice.metadata, timeout=DEADLINE_S)
        code, info = refused(lambda given=call: next(given))
        assert (code, info.reason) == (grpc.StatusCode.OUT_OF_RANGE, "NUMBER_OUT_OF_RANGE")


def test_the_feed_is_the_log_byte_for_byte(shared: Running, alice: Client) -> None:
    alice.submit()
    pair, channel = shared
    feed = execution_feed_pb2_grpc.ExecutionFeedServiceStub(channel)
    reader = ExecutionLogReader.open(pair.run / PAIR.lower() / "executions")
    wanted = reader.committed()
    request = execution_feed_pb2.FollowExecutionsRequest(pair=PAIR, from_number=0, record_version=1)
    call = feed.FollowExecutions(request, timeout=DEADLINE_S)
    number, parts = 0, []
    while number < wanted:
        answer = next(call)
        assert answer.first_number == number
        parts.append(np.frombuffer(answer.records, np.int64).reshape(-1, EXECUTION_WORDS))
        number += len(parts[-1])
    call.cancel()
    np.testing.assert_array_equal(np.concatenate(parts)[:wanted], reader.read(0, wanted))
    request.record_version = 9
    code, _ = refused(lambda: next(feed.FollowExecutions(request, timeout=DEADLINE_S)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


def test_consumers_confirm_and_never_fall_back(channel: grpc.Channel) -> None:
    feed = execution_feed_pb2_grpc.ExecutionFeedServiceStub(channel)

    def confirm(consumer: str, number: int) -> int:
        request = execution_feed_pb2.ConfirmExecutionsRequest(
            pair=PAIR, consumer=consumer, number=number
        )
        return feed.ConfirmExecutions(request, timeout=DEADLINE_S).number

    assert confirm("ledger", 4) == 4
    assert confirm("ledger", 2) == 4
    for consumer, number in (
        ("", 1),
        ("../up", 1),
        ("x" * 33, 1),
        ("order-entry", 1),
        ("a", 1 << 40),
    ):
        code, _ = refused(lambda name=consumer, at=number: confirm(name, at))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
