"""Order entry with real processes: every door, every refusal, restarts of either side, drain."""

import contextlib
import itertools
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from engine.durability.execution_reader import ExecutionLogReader
from engine.durability.journal import Journal
from engine.entry.batches import ACK_DTYPE, BATCH_LIMIT, RECORD_DTYPE
from engine.entry.inbox import SINGLE_ROOM
from exchange.intake import INBOX_CAPACITY
from exchange.records import C_SOURCE, E_SOURCE, EXECUTION_WORDS, SOURCE_SHIFT
from exchange.segment import hash_of
from exchange.service import refusal_in
from exchange.v1 import enums_pb2 as enums
from exchange.v1 import (
    execution_feed_pb2,
    execution_feed_pb2_grpc,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from tests.integration.exchange_processes import PAIR, PairProcesses, pair_processes

pytestmark = pytest.mark.integration

ALICE, BOB, CAROL = 1, 2, 3
BUY, SELL = enums.SIDE_BUY, enums.SIDE_SELL
LIMIT = enums.ORDER_TYPE_LIMIT
GTC = enums.TIME_IN_FORCE_GOOD_TILL_CANCELLED
IOC = enums.TIME_IN_FORCE_IMMEDIATE_OR_CANCEL
DEADLINE_S = 60
"""Bounds a hang; nothing is measured against it."""

Running = tuple[PairProcesses, grpc.Channel]

client_order_ids = itertools.count(1)


def identity(account: int) -> tuple[tuple[str, str], ...]:
    return (("holdfast-account", str(account)),)


class Client:
    """One account's blocking client."""

    def __init__(self, channel: grpc.Channel, account: int) -> None:
        self.account = account
        self.metadata = identity(account)
        self.stub = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
        self.calls: dict[str, Any] = {"metadata": self.metadata, "timeout": DEADLINE_S}

    def order(self, **changes: Any) -> order_entry_pb2.SubmitOrderRequest:
        fields: dict[str, Any] = {
            "pair": PAIR,
            "client_order_id": next(client_order_ids),
            "side": BUY,
            "order_type": LIMIT,
            "time_in_force": GTC,
            "price": "60000",
            "quantity": "0.01",
        }
        return order_entry_pb2.SubmitOrderRequest(**(fields | changes))

    def submit(self, **changes: Any) -> Any:
        return self.stub.SubmitOrder(self.order(**changes), **self.calls).report

    def cancel_all(self) -> Any:
        request = order_entry_pb2.CancelAllOrdersRequest(pair=PAIR)
        return self.stub.CancelAllOrders(request, **self.calls).report

    def open_orders(self) -> list[Any]:
        request = order_entry_pb2.ListOpenOrdersRequest(pair=PAIR, page_size=2)
        found: list[Any] = []
        while True:
            page = self.stub.ListOpenOrders(request, **self.calls)
            found += page.orders
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def batches(self, requests: Any) -> Any:
        return self.stub.SubmitBatches(requests, metadata=self.metadata, timeout=DEADLINE_S)


def records(count: int, **fields: Any) -> np.ndarray:
    batch = np.zeros(count, RECORD_DTYPE)
    batch["client_order_id"] = [next(client_order_ids) for _ in range(count)]
    batch["kind_side"] = 1 | BUY << 4
    batch["order_type_time_in_force"] = LIMIT | GTC << 4
    batch["price_ticks"] = 6_000_000
    batch["quantity_lots"] = 1_000
    for name, value in fields.items():
        batch[name] = value
    return batch


def message(batch: np.ndarray, number: int = 1) -> order_entry_pb2.SubmitBatchesRequest:
    return order_entry_pb2.SubmitBatchesRequest(
        pair=PAIR, record_version=1, batch_number=number, records=batch.tobytes()
    )


def acks_of(answer: Any) -> np.ndarray:
    return np.frombuffer(answer.acks, ACK_DTYPE)


def fund(channel: grpc.Channel) -> None:
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
    number = 0
    for account in (ALICE, BOB, CAROL):
        for asset, amount in ((enums.ASSET_BASE, "1000"), (enums.ASSET_QUOTE, "900000000")):
            number += 1
            request = pair_admin_pb2.AllotFundsRequest(
                pair=PAIR, account=account, asset=asset, amount=amount, transfer_number=number
            )
            report = admin.AllotFunds(request, timeout=DEADLINE_S).report
            assert report.kind == enums.EXECUTION_KIND_ALLOTTED, report


def start_entry(pair: PairProcesses, name: str) -> "subprocess.Popen[bytes]":
    """Start an order-entry process for ring 1 on the pair's port."""
    port = str(pair.port)
    return pair._start(name, "engine.entry_server", "--ring", "1", "--port", port)


@contextlib.contextmanager
def running(run: Path) -> Iterator[Running]:
    """Give a funded pair that serves, with one order-entry process."""
    with pair_processes(run, "os") as pair:
        pair.start_engine("--inboxes", "2")
        pair.start_entry()
        pair.await_health()
        with grpc.insecure_channel(pair.target) as channel:
            fund(channel)
            yield pair, channel


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("run")) as both:
        yield both


@pytest.fixture
def channel(shared: Running) -> Iterator[grpc.Channel]:
    """Give the channel of a pair with an empty book."""
    yield shared[1]
    for account in (ALICE, BOB, CAROL):
        Client(shared[1], account).cancel_all()


@pytest.fixture
def alice(channel: grpc.Channel) -> Client:
    return Client(channel, ALICE)


@pytest.fixture
def bob(channel: grpc.Channel) -> Client:
    return Client(channel, BOB)


def refused(call: Any) -> tuple[grpc.StatusCode, Any]:
    """Return status and ErrorInfo of a call that has to fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    info = refusal_in(caught.value)
    assert info is not None, caught.value
    assert info.domain == "holdfast"
    return caught.value.code(), info


# Readable doors.


def test_an_order_rests_trades_and_is_cancelled(alice: Client, bob: Client) -> None:
    resting = alice.submit(side=SELL, price="60000.10", quantity="0.5")
    assert resting.kind == enums.EXECUTION_KIND_ACCEPTED
    assert (resting.leaves, resting.filled) == ("0.50000", "0.00000")
    taken = bob.submit(price="60001", quantity="0.2")
    assert [one.kind for one in taken.executions] == [
        enums.EXECUTION_KIND_ACCEPTED,
        enums.EXECUTION_KIND_TRADE,
    ]
    assert taken.executions[1].price == "60000.10"
    assert taken.filled == "0.20000"
    assert taken.sequence > resting.sequence
    (left,) = alice.open_orders()
    assert (left.order_id, left.leaves) == (resting.order_id, "0.30000")
    found = bob.stub.GetOrder(
        order_entry_pb2.GetOrderRequest(pair=PAIR, order_id=taken.order_id), **bob.calls
    )
    assert found.order.status == order_entry_pb2.ORDER_STATUS_FILLED
    cancel = order_entry_pb2.CancelOrderRequest(pair=PAIR, order_id=resting.order_id)
    assert bob.stub.CancelOrder(cancel, **bob.calls).report.reason == enums.REASON_ORDER_UNKNOWN
    assert alice.stub.CancelOrder(cancel, **alice.calls).report.kind == (
        enums.EXECUTION_KIND_CANCELLED
    )
    assert alice.open_orders() == []


def test_a_retry_is_answered_with_the_first_outcome(alice: Client) -> None:
    request = alice.order()
    first = alice.stub.SubmitOrder(request, **alice.calls).report
    again = alice.stub.SubmitOrder(request, **alice.calls).report
    assert again.kind == enums.EXECUTION_KIND_REPLAYED
    assert again.order_id == first.order_id
    assert again.executions[0].first_number == first.first_number
    request.quantity = "0.02"
    other = alice.stub.SubmitOrder(request, **alice.calls).report
    assert other.reason == enums.REASON_CLIENT_ORDER_ID_REUSED
    assert str(request.client_order_id) in other.message


def test_a_lower_quantity_keeps_the_place_in_the_queue(alice: Client, bob: Client) -> None:
    first = alice.submit(side=SELL, quantity="0.5")
    Client.submit(bob, side=SELL, quantity="0.5")
    amend = order_entry_pb2.AmendOrderRequest(pair=PAIR, order_id=first.order_id, quantity="0.3")
    assert alice.stub.AmendOrder(amend, **alice.calls).report.leaves == "0.30000"
    amend.price = "60000.001"
    code, info = refused(lambda: alice.stub.AmendOrder(amend, **alice.calls))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert info.metadata["field"] == "price"


def test_cancel_all_takes_one_side_or_both(alice: Client) -> None:
    for index in range(5):
        alice.submit(price=str(50_000 + index))
    alice.submit(side=SELL, price="70000")
    request = order_entry_pb2.CancelAllOrdersRequest(pair=PAIR, side=SELL)
    report = alice.stub.CancelAllOrders(request, **alice.calls).report
    assert report.kind == enums.EXECUTION_KIND_ALL_CANCELLED
    assert [one.kind for one in report.executions] == [
        enums.EXECUTION_KIND_CANCELLED,
        enums.EXECUTION_KIND_ALL_CANCELLED,
    ]
    assert len(alice.open_orders()) == 5
    assert len(alice.cancel_all().executions) == 6


def test_an_answer_with_very_many_executions_is_cut_and_says_so(alice: Client) -> None:
    (answer,) = alice.batches(iter([message(records(1_500))]))
    assert (acks_of(answer)["kind"] == enums.EXECUTION_KIND_ACCEPTED).all()
    report = alice.cancel_all()
    assert len(report.executions) == 1_000
    assert report.truncated
    assert report.last_number - report.first_number == 1_500


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"pair": ""}, "FIELD_MISSING", "pair"),
        ({"pair": "DOGE-EUR"}, "PAIR_UNKNOWN", "pair"),
        ({"price": ""}, "FIELD_MISSING", "price"),
        ({"price": "60000.001"}, "PRICE_INVALID", "price"),
        ({"quantity": "1.000001"}, "QUANTITY_INVALID", "quantity"),
        ({"quantity": "9" * 39}, "QUANTITY_INVALID", "quantity"),
        ({"amount": "1"}, "FIELD_UNWANTED", "amount"),
    ],
)
def test_wrong_messages_are_refused_by_field_value_and_limit(
    alice: Client, changes: dict[str, str], reason: str, field: str
) -> None:
    code, info = refused(lambda: alice.submit(**changes))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert info.metadata["field"] == field
    assert info.metadata["limit"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"price": "0"}, enums.REASON_PRICE_OUT_OF_RANGE),
        ({"price": "335544.32"}, enums.REASON_PRICE_OUT_OF_RANGE),
        ({"quantity": "0"}, enums.REASON_QUANTITY_OUT_OF_RANGE),
        ({"quantity": "90000000000000"}, enums.REASON_QUANTITY_OUT_OF_RANGE),
        ({"quantity": "0.00001"}, enums.REASON_NOTIONAL_BELOW_MINIMUM),
        ({"quantity": "20000"}, enums.REASON_INSUFFICIENT_FUNDS),
        ({"client_order_id": 0}, enums.REASON_CLIENT_ORDER_ID_INVALID),
        ({"client_order_id": -5}, enums.REASON_CLIENT_ORDER_ID_INVALID),
        ({"side": 0}, enums.REASON_SIDE_INVALID),
        ({"side": -1}, enums.REASON_SIDE_INVALID),
        ({"order_type": 2_000_000_000}, enums.REASON_ORDER_TYPE_INVALID),
        ({"time_in_force": 0}, enums.REASON_TIME_IN_FORCE_INVALID),
        ({"self_trade_prevention": 77}, enums.REASON_SELF_TRADE_PREVENTION_INVALID),
    ],
)
def test_a_refused_order_is_an_answer_with_a_reason(
    alice: Client, changes: dict[str, Any], reason: int
) -> None:
    report = alice.submit(**changes)
    assert report.kind == enums.EXECUTION_KIND_REJECTED
    assert report.reason == reason
    assert report.message


def test_callers_have_to_name_an_account_that_exists(channel: grpc.Channel) -> None:
    stub = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
    request = order_entry_pb2.ListOpenOrdersRequest(pair=PAIR)
    for metadata in ((), (("holdfast-account", "one"),), (("holdfast-account", "0"),)):
        code, info = refused(
            lambda given=metadata: stub.ListOpenOrders(request, metadata=given, timeout=DEADLINE_S)
        )
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert info.metadata["field"] == "holdfast-account"
    unknown = Client(channel, 60_000).submit()
    assert unknown.reason == enums.REASON_ACCOUNT_UNKNOWN


def test_looking_for_nothing_is_an_answer_too(alice: Client) -> None:
    request = order_entry_pb2.GetOrderRequest(pair=PAIR, client_order_id=1 << 60)
    code, info = refused(lambda: alice.stub.GetOrder(request, **alice.calls))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "ORDER_UNKNOWN")
    pages: list[dict[str, Any]] = [{"page_size": -1}, {"page_token": "x"}, {"page_token": "-3"}]
    for page in pages:
        listing = order_entry_pb2.ListOpenOrdersRequest(pair=PAIR, **page)
        code, info = refused(lambda given=listing: alice.stub.ListOpenOrders(given, **alice.calls))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert info.metadata["field"] in page


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


class Session:
    """A session that sends one message at a time."""

    def __init__(self, client: Client) -> None:
        self.queue: list[Any] = []
        self.ready = threading.Semaphore(0)
        self.call = client.stub.Session(
            self._requests(), metadata=client.metadata, timeout=DEADLINE_S
        )

    def _requests(self) -> Iterator[Any]:
        while True:
            self.ready.acquire()
            if self.queue[0] is None:
                return
            yield self.queue.pop(0)

    def send(self, request_id: int, **command: Any) -> None:
        self.queue.append(order_entry_pb2.SessionRequest(request_id=request_id, **command))
        self.ready.release()

    def end(self) -> None:
        self.queue.append(None)
        self.ready.release()


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


# Settings.


def test_settings_change_what_an_account_may_do(channel: grpc.Channel) -> None:
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
    carol = Client(channel, CAROL)
    base: dict[str, Any] = {"pair": PAIR, "account": CAROL}
    limits = pair_admin_pb2.SetLimitsRequest(**base, largest_order_lots=500)
    assert admin.SetLimits(limits).report.kind == enums.EXECUTION_KIND_ACCOUNT_SET
    assert carol.submit().reason == enums.REASON_ORDER_SIZE_LIMIT
    admin.SetLimits(pair_admin_pb2.SetLimitsRequest(**base))
    fees = pair_admin_pb2.SetFeesRequest(**base, taker_fee_ppm=1)
    assert admin.SetFees(fees).report.reason == enums.REASON_FEE_RATE_OUT_OF_RANGE
    carol.submit()
    killed = admin.SetKillSwitch(pair_admin_pb2.SetKillSwitchRequest(**base, killed=True)).report
    assert [one.kind for one in killed.executions] == [
        enums.EXECUTION_KIND_ACCOUNT_SET,
        enums.EXECUTION_KIND_CANCELLED,
    ]
    assert carol.submit().reason == enums.REASON_ACCOUNT_KILLED
    admin.SetKillSwitch(pair_admin_pb2.SetKillSwitchRequest(**base))
    repeated = pair_admin_pb2.AllotFundsRequest(
        **base, asset=enums.ASSET_BASE, amount="1", transfer_number=1
    )
    assert admin.AllotFunds(repeated).report.reason == enums.REASON_TRANSFER_REPEATED


def test_a_halted_pair_takes_nothing_and_says_so(channel: grpc.Channel, alice: Client) -> None:
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)

    def set_status(status: Any) -> Any:
        request = pair_admin_pb2.SetPairStatusRequest(pair=PAIR, status=status)
        return admin.SetPairStatus(request, timeout=DEADLINE_S).report

    assert set_status(enums.PAIR_STATUS_HALTED).kind == enums.EXECUTION_KIND_PAIR_SET
    try:
        assert alice.submit().reason == enums.REASON_PAIR_HALTED
        status = admin.GetStatus(pair_admin_pb2.GetStatusRequest(pair=PAIR), timeout=DEADLINE_S)
        assert status.pair_status == enums.PAIR_STATUS_HALTED
        assert status.engine_state == enums.ENGINE_STATE_READY
        assert status.engine_epoch >= 1
    finally:
        set_status(enums.PAIR_STATUS_OPEN)
    assert set_status(enums.PAIR_STATUS_UNSPECIFIED).reason == enums.REASON_PAIR_STATUS_INVALID
    assert alice.submit().kind == enums.EXECUTION_KIND_ACCEPTED


# Strangers.


def test_a_stranger_finds_the_services_and_places_an_order_by_decimal_text(
    channel: grpc.Channel, alice: Client
) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    names = set(database.get_services())
    assert {
        "exchange.v1.OrderEntryService",
        "exchange.v1.ExecutionFeedService",
        "exchange.v1.PairAdminService",
        "grpc.health.v1.Health",
    } <= names
    pool = DescriptorPool(database)
    method = pool.FindServiceByName("exchange.v1.OrderEntryService").FindMethodByName("SubmitOrder")
    request = message_factory.GetMessageClass(method.input_type)(
        pair=PAIR,
        client_order_id=next(client_order_ids),
        side=1,
        order_type=1,
        time_in_force=1,
        price="60000.10",
        quantity="0.01",
    )
    answer_class = message_factory.GetMessageClass(method.output_type)
    call: Any = channel.unary_unary(
        "/exchange.v1.OrderEntryService/SubmitOrder",
        request_serializer=lambda given: given.SerializeToString(),
        response_deserializer=answer_class.FromString,
    )
    answer = call(request, metadata=alice.metadata, timeout=DEADLINE_S)
    assert answer.report.executions[0].price == "60000.10"


# Both doors.


def test_both_doors_give_the_same_journal(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        batch = records(40)
        generator = np.random.Generator(np.random.PCG64(7))
        batch["price_ticks"] = generator.integers(5_990_000, 6_010_000, 40)
        batch["quantity_lots"] = generator.integers(100, 5_000, 40)
        batch["kind_side"] = 1 | generator.integers(1, 3, 40) << 4
        batch["order_type_time_in_force"] = LIMIT | generator.integers(1, 4, 40) << 4
        batch["prevention"] = generator.integers(0, 6, 40)
        for one in batch:
            ticks, lots = int(one["price_ticks"]), int(one["quantity_lots"])
            alice.submit(
                client_order_id=int(one["client_order_id"]),
                price=f"{ticks // 100}.{ticks % 100:02}",
                quantity=f"0.{lots:05}",
                side=int(one["kind_side"]) >> 4,
                time_in_force=int(one["order_type_time_in_force"]) >> 4,
                self_trade_prevention=int(one["prevention"]),
            )
        (answer,) = alice.batches(iter([message(batch)]))
        assert len(acks_of(answer)) == 40
        pair.stop()
        journal = Journal.open(pair.run / PAIR.lower() / "journal", identity=hash_of(PAIR))
        # A copy, because the rows are views of files that are about to be closed.
        rows = np.concatenate([frame.commands for frame in journal.replay(0)])
        journal.close()
    orders = rows[rows[:, 0] & 0xFF == 1]
    assert len(orders) == 80
    content = np.delete(orders, C_SOURCE, axis=1)
    np.testing.assert_array_equal(content[:40], content[40:])
    assert len(set(orders[:, C_SOURCE].tolist())) == 80


# Restarts and drain.


def test_calls_wait_for_an_engine_that_comes_back(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        before = alice.submit()
        pair.kill(pair.engine)
        waiting = [alice.stub.SubmitOrder.future(alice.order(), **alice.calls) for _ in range(20)]
        pair.start_engine("--inboxes", "2")
        reports = [call.result().report for call in waiting]
        assert {report.kind for report in reports} == {enums.EXECUTION_KIND_ACCEPTED}
        sequences = sorted(report.sequence for report in reports)
        assert sequences == list(range(before.sequence + 1, before.sequence + 21))
        pair.await_health()
        assert len(alice.open_orders()) == 21
        pair.stop()


def test_a_killed_entry_process_finds_its_ring_and_its_orders_again(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        ids = [alice.submit().order_id for _ in range(5)]
        pair.kill(pair.entry)
        pair.start_entry()
        pair.await_health()
        assert [order.order_id for order in alice.open_orders()] == ids
        assert alice.submit().kind == enums.EXECUTION_KIND_ACCEPTED
        assert pair.entry is not None
        pair.entry.terminate()
        assert pair.entry.wait(DEADLINE_S) == 0
        snapshots = pair.run / PAIR.lower() / "entry"
        assert [path.name for path in snapshots.iterdir()] == ["orders-0.npz"]
        pair.start_entry()
        pair.await_health()
        assert len(alice.open_orders()) == 6
        pair.stop()


def test_a_full_ring_is_refused_and_heals(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
        ioc = LIMIT | IOC << 4

        def await_pending(count: int) -> None:
            request = pair_admin_pb2.GetStatusRequest(pair=PAIR)
            while admin.GetStatus(request, timeout=DEADLINE_S).pending_count != count:
                pass

        assert pair.engine is not None
        os.kill(pair.engine.pid, signal.SIGSTOP)
        try:
            sizes = [*[BATCH_LIMIT] * 3, INBOX_CAPACITY - SINGLE_ROOM - 3 * BATCH_LIMIT]
            full = [message(records(size, order_type_time_in_force=ioc)) for size in sizes]
            large = alice.batches(iter(full))
            await_pending(INBOX_CAPACITY - SINGLE_ROOM)
            (late,) = alice.batches(iter([message(records(1), 9)]))
            assert (late.batch_number, late.acks) == (9, b"")
            assert late.refusal.reason == "RING_FULL"
            assert late.refusal.limit
            singles = [
                order_entry_pb2.SessionRequest(request_id=i, submit=alice.order(time_in_force=IOC))
                for i in range(SINGLE_ROOM)
            ]
            session = alice.stub.Session(iter(singles), metadata=alice.metadata, timeout=DEADLINE_S)
            await_pending(INBOX_CAPACITY)
            code, info = refused(alice.submit)
            assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RING_FULL")
            assert info.metadata["limit"]
        finally:
            os.kill(pair.engine.pid, signal.SIGCONT)
        assert [len(acks_of(answer)) for answer in large] == sizes
        assert [answer.request_id for answer in session] == list(range(SINGLE_ROOM))
        assert alice.submit().kind == enums.EXECUTION_KIND_ACCEPTED
        pair.stop()


def test_two_processes_share_a_port_and_a_ring_has_one_owner(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, _):
        second = start_entry(pair, "entry-1")
        rings: set[int] = set()
        try:
            request = pair_admin_pb2.GetStatusRequest(pair=PAIR)
            # A connection of its own each time, so that the kernel spreads them.
            options = [("grpc.use_local_subchannel_pool", 1)]
            while rings != {0, 1}:
                assert second.poll() is None, pair.logs()
                with grpc.insecure_channel(pair.target, options=options) as channel:
                    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
                    with contextlib.suppress(grpc.RpcError):
                        rings.add(admin.GetStatus(request, timeout=DEADLINE_S).ring)
            third = start_entry(pair, "entry-2")
            assert third.wait(DEADLINE_S) == 1
            assert f"is owned by process {second.pid}" in (pair.run / "entry-2.log").read_text()
        finally:
            second.terminate()
            assert second.wait(DEADLINE_S) == 0
        pair.stop()


def test_a_drain_says_not_serving_then_goodbye_then_exits(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        session = Session(alice)
        session.send(1, submit=alice.order())
        assert next(session.call).report.kind == enums.EXECUTION_KIND_ACCEPTED
        stream = alice.stub.StreamExecutions(
            order_entry_pb2.StreamExecutionsRequest(pair=PAIR, from_number=0),
            metadata=alice.metadata,
            timeout=DEADLINE_S,
        )
        next(stream)
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="orders"), timeout=DEADLINE_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert pair.entry is not None
        pair.entry.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert [answer.goodbye.reason for answer in session.call] == ["DRAINING"]
        last = list(stream)[-1]
        assert last.goodbye.reason == "DRAINING"
        assert last.goodbye.resume_from == last.next_number > 0
        assert pair.entry.wait(DEADLINE_S) == 0
        pair.start_entry()
        pair.await_health()
        assert len(alice.open_orders()) == 1
        pair.stop()


def test_without_an_engine_the_process_lives_but_does_not_serve(tmp_path: Path) -> None:
    with pair_processes(tmp_path, "os") as pair:
        pair.start_entry()
        pair.await_health("alive")
        with grpc.insecure_channel(pair.target) as channel:
            check = health_pb2.HealthCheckRequest(service="orders")
            answer = health_pb2_grpc.HealthStub(channel).Check(check)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            code, info = refused(Client(channel, ALICE).submit)
            assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_NOT_READY")
            pair.start_engine()
            pair.await_health()
            fund(channel)
            assert Client(channel, ALICE).submit().kind == enums.EXECUTION_KIND_ACCEPTED
        pair.stop()


def test_sources_in_the_log_count_up_by_one(shared: Running) -> None:
    reader = ExecutionLogReader.open(shared[0].run / PAIR.lower() / "executions")
    rows = reader.read(0, reader.committed())
    assert (rows[:, E_SOURCE] >> SOURCE_SHIFT == 0).all()
    steps = np.diff(rows[:, E_SOURCE])
    assert set(steps.tolist()) <= {0, 1}
