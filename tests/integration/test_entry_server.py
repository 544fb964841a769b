"""Order entry with real processes: single commands, settings, refusals, strangers."""

from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import (
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from tests.integration.entry_clients import (
    CAROL,
    DEADLINE_S,
    SELL,
    Client,
    acks_of,
    client_order_ids,
    message,
    records,
    refused,
)
from tests.integration.exchange_processes import PAIR

pytestmark = pytest.mark.integration


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


def test_the_digest_tells_a_movement_of_money_and_no_hold(
    channel: grpc.Channel, alice: Client, bob: Client
) -> None:
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)

    def digest() -> pair_admin_pb2.DigestAccountsResponse:
        request = pair_admin_pb2.DigestAccountsRequest(pair=PAIR)
        return admin.DigestAccounts(request, timeout=DEADLINE_S)

    def told(one: pair_admin_pb2.DigestAccountsResponse) -> tuple[int, ...]:
        return (one.digest, one.account_count, one.base_units, one.quote_units, one.fee_units)

    first = digest()
    assert first.report.kind == enums.EXECUTION_KIND_DIGEST
    assert (first.report.order_id, first.report.client_order_id) == (0, 0)
    assert first.report.first_number == first.report.last_number
    alice.submit(side=SELL, price="59000", quantity="0.1")
    second = digest()
    assert told(second) == told(first)
    assert second.report.sequence > first.report.sequence
    traded = bob.submit(price="59000", quantity="0.1")
    assert traded.filled_lots == 10_000
    third = digest()
    assert third.digest != second.digest
    assert third.account_count == second.account_count
    assert third.base_units == second.base_units
    fees = third.fee_units - second.fee_units
    assert third.quote_units == second.quote_units - fees
    assert fees > 0
    request = pair_admin_pb2.DigestAccountsRequest(pair="ETH-EUR")
    _, info = refused(lambda: admin.DigestAccounts(request, timeout=DEADLINE_S))
    assert info.reason == "PAIR_UNKNOWN"


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
