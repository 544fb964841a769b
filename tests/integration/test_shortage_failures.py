"""Orders that lack money while somebody dies, message rates, and requests that mean nothing."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import (
    ledger_pb2,
    order_entry_pb2,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
    risk_pb2,
)
from tests.integration.entry_clients import (
    Client,
    Session,
    acks_of,
    message,
    records,
    refused,
)
from tests.integration.risk_processes import BTC, DEADLINE_S, ETH, UNIT, Exchange, exchange

pytestmark = pytest.mark.integration

ALICE, BOB, CAROL, DAVE, EVE = range(1, 6)
QUOTE = enums.ASSET_QUOTE
ACCEPTED, REJECTED = enums.EXECUTION_KIND_ACCEPTED, enums.EXECUTION_KIND_REJECTED
REPLAYED = enums.EXECUTION_KIND_REPLAYED
RISK = "exchange.v1.RiskService"


@pytest.fixture(scope="module")
def whole() -> Iterator[Exchange]:
    with exchange(asks=True) as found:
        for number, account in enumerate((ALICE, BOB, CAROL, DAVE, EVE), start=1):
            found.deposit(account, "USDT", 100_000 * UNIT, number)
        yield found


def client(whole: Exchange, account: int) -> Client:
    return Client(whole.channels[BTC], account)


# Nobody there.


def test_orders_are_refused_while_the_risk_service_is_away_and_taken_when_it_is_back(
    whole: Exchange,
) -> None:
    alice = client(whole, ALICE)
    assert alice.submit(quantity="0.001").kind == ACCEPTED
    whole.riskd.kill()
    report = alice.submit()
    assert (report.kind, report.reason) == (REJECTED, enums.REASON_INSUFFICIENT_FUNDS)
    assert "the risk service does not answer" in report.message
    # What the engine has goes on trading.
    assert alice.cancel_all().kind == enums.EXECUTION_KIND_ALL_CANCELLED
    assert alice.submit(quantity="0.001").kind == ACCEPTED
    (answer,) = alice.batches(iter([message(records(100))]))
    assert (acks_of(answer)["kind"] == REJECTED).all()
    whole.start_riskd()
    while alice.submit().kind != ACCEPTED:
        continue
    alice.cancel_all()


def test_a_shortage_while_the_books_are_away_is_told_and_goes_on_later(whole: Exchange) -> None:
    bob = client(whole, BOB)
    whole.ledgerd.kill()
    report = bob.submit()
    assert report.kind == REJECTED
    assert "the risk service" in report.message
    whole.ledgerd.start()
    whole.ledgerd.await_health("ledger")
    while bob.submit().kind != ACCEPTED:
        continue
    bob.cancel_all()


# How many at a time.


def limit_rate(whole: Exchange, account: int, value: int | None) -> None:
    key = risk_pb2.LimitKey(
        kind=risk_pb2.LIMIT_KIND_MESSAGE_RATE,
        subject=risk_pb2.LIMIT_SUBJECT_ACCOUNT,
        subject_name=str(account),
        place=risk_pb2.LIMIT_PLACE_PAIR,
        place_name=BTC,
    )
    change = risk_pb2.LimitChange(key=key)
    if value is not None:
        change.value = value
    request = risk_pb2.ChangeLimitsRequest(changes=[change], actor="ann", note="test")
    whole.risk.ChangeLimits(request, timeout=DEADLINE_S)


def sequence(whole: Exchange) -> int:
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(whole.channels[BTC])
    request = pair_admin_pb2.GetStatusRequest(pair=BTC)
    return int(admin.GetStatus(request, timeout=DEADLINE_S).sequence)


def await_limit(one: Client) -> None:
    """Return once order entry refuses an account's commands."""
    for _ in range(50_000):
        try:
            one.cancel_all()
        except grpc.RpcError:
            return
    raise AssertionError("no command was refused")


def test_a_message_rate_holds_at_every_door_and_nothing_becomes_a_command(
    whole: Exchange,
) -> None:
    dave = client(whole, DAVE)
    limit_rate(whole, DAVE, 0)
    await_limit(dave)
    before = sequence(whole)
    code, info = refused(dave.submit)
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_RATE")
    assert info.metadata["field"] == "commands"
    assert info.metadata["value"] == "1"
    assert info.metadata["limit"].startswith("at most 0 commands a second")
    cancel = order_entry_pb2.CancelOrderRequest(pair=BTC, order_id=5)
    assert refused(lambda: dave.stub.CancelOrder(cancel, **dave.calls))[1].reason == "MESSAGE_RATE"
    amend = order_entry_pb2.AmendOrderRequest(pair=BTC, order_id=5, quantity="1")
    assert refused(lambda: dave.stub.AmendOrder(amend, **dave.calls))[1].reason == "MESSAGE_RATE"
    session = Session(dave)
    session.send(1, submit=dave.order())
    session.send(2, submit=dave.order(price="bad"))
    session.send(3, cancel_all=order_entry_pb2.CancelAllOrdersRequest(pair=BTC))
    session.end()
    reasons = [answer.refusal.reason for answer in session.call]
    assert reasons == ["MESSAGE_RATE", "PRICE_INVALID", "MESSAGE_RATE"]
    answers = list(dave.batches(iter([message(records(3), 1), message(records(2), 2)])))
    assert [answer.refusal.value for answer in answers] == ["3", "2"]
    assert {answer.refusal.reason for answer in answers} == {"MESSAGE_RATE"}
    assert sequence(whole) == before
    # Looking is no command, and others have limits of their own.
    assert dave.open_orders() == []
    client(whole, ALICE).cancel_all()
    # What was heard last holds while nobody says otherwise.
    whole.riskd.kill()
    assert refused(dave.submit)[1].reason == "MESSAGE_RATE"
    whole.start_riskd()
    limit_rate(whole, DAVE, None)
    while True:
        try:
            assert dave.submit().kind == ACCEPTED
            break
        except grpc.RpcError:
            continue


def test_a_batch_counts_with_all_its_records(whole: Exchange) -> None:
    eve = client(whole, EVE)
    limit_rate(whole, EVE, 1_000)
    many = message(records(1_001, quantity_lots=0))
    (answer,) = eve.batches(iter([many]))
    while answer.acks:
        (answer,) = eve.batches(iter([many]))
    assert answer.refusal.limit == "at most 1000 commands a second; never so many at once"
    while True:
        (answer,) = eve.batches(iter([message(records(900, quantity_lots=100))]))
        if answer.acks:
            break
        assert "; again in " in answer.refusal.limit
    assert (acks_of(answer)["kind"] == ACCEPTED).all()
    limit_rate(whole, EVE, None)


# Requests that mean nothing.


@pytest.mark.parametrize("number", [-1, -(1 << 63), (1 << 63) - 1])
def test_an_execution_that_never_was_holds_nobody_up_for_ever(whole: Exchange, number: int) -> None:
    answer = whole.request(EVE, ETH, QUOTE, 1 * UNIT, execution_number=number)
    assert answer.reason == 0
    unknown = whole.request(EVE, "XRP-EUR", QUOTE, 1, execution_number=number)
    assert unknown.reason == risk_pb2.RISK_REASON_PAIR_UNKNOWN


def test_money_that_is_there_already_is_not_counted_twice_against_a_limit(whole: Exchange) -> None:
    key = risk_pb2.LimitKey(
        kind=risk_pb2.LIMIT_KIND_EXPOSURE,
        subject=risk_pb2.LIMIT_SUBJECT_ACCOUNT,
        subject_name=str(BOB),
        place=risk_pb2.LIMIT_PLACE_ASSET,
        place_name="USDT",
    )
    there = whole.risk.GetExposure(risk_pb2.GetExposureRequest(account=BOB), timeout=DEADLINE_S)
    elsewhere = sum(item.total_units for item in there.pairs if item.asset == "USDT")
    change = risk_pb2.LimitChange(key=key, value=elsewhere + 1_000 * UNIT)
    request = risk_pb2.ChangeLimitsRequest(changes=[change], actor="ann", note="test")
    whole.risk.ChangeLimits(request, timeout=DEADLINE_S)
    assert whole.request(BOB, ETH, QUOTE, 900 * UNIT).reason == 0
    assert whole.request(BOB, ETH, QUOTE, 1_000 * UNIT).reason == 0
    more = whole.request(BOB, ETH, QUOTE, 1_000 * UNIT + 1)
    assert more.reason == risk_pb2.RISK_REASON_EXPOSURE_LIMIT


@pytest.mark.parametrize("patience_ms", [-1, 4_001, (1 << 63) - 1])
def test_a_patience_out_of_range_is_refused(whole: Exchange, patience_ms: int) -> None:
    _, info = refused(lambda: whole.request(EVE, BTC, QUOTE, 1, patience_ms=patience_ms))
    assert (info.reason, info.metadata["field"]) == ("PATIENCE_OUT_OF_RANGE", "patience_ms")


# Kill -9 between any two steps.

VICTIMS = ("entry", "riskd", "ledgerd", "engine")


def restart(whole: Exchange, victim: str) -> None:
    """Kill a process in the middle of whatever it does, and start it again."""
    if victim in {"riskd", "ledgerd"}:
        service = getattr(whole, victim)
        service.kill()
        service.start()
        return
    pair = whole.pairs[BTC]
    pair.kill(getattr(pair, victim))
    getattr(pair, f"start_{victim}")()
    pair.await_health()


def insist(one: Client, request: order_entry_pb2.SubmitOrderRequest) -> Any:
    """Repeat an order until it is taken, as a client does that hears nothing or a refusal."""
    while True:
        try:
            report = one.stub.SubmitOrder(request, **one.calls).report
        except grpc.RpcError:
            continue
        if report.kind in {ACCEPTED, REPLAYED}:
            return report


@pytest.mark.slow
def test_everybody_dies_in_turn_and_every_order_is_there_once() -> None:
    with exchange(asks=True) as whole:
        whole.deposit(ALICE, "USDT", 10_000 * UNIT, 1)
        alice = client(whole, ALICE)
        for turn in range(12):
            request = alice.order(price=str(60_000 + turn))
            future = alice.stub.SubmitOrder.future(request, **alice.calls)
            # Somewhere between the refusal and the second entry, a little later each time.
            for _ in range(turn // len(VICTIMS)):
                whole.risk.GetRiskStatus(
                    risk_pb2.GetRiskStatusRequest(), timeout=DEADLINE_S, wait_for_ready=True
                )
            restart(whole, VICTIMS[turn % len(VICTIMS)])
            assert insist(alice, request).leaves == "0.01000"
            future.exception()
        orders = alice.open_orders()
        assert sorted(order.price for order in orders) == [f"{60_000 + n}.00" for n in range(12)]
        assert {order.leaves for order in orders} == {"0.01000"}
        whole.ledgerd.await_health("ledger")
        whole.riskd.await_health(RISK)
        whole.await_settled()
        usdt = {key: units for key, units in whole.balances(ALICE).items() if key[1] == "USDT"}
        assert sum(usdt.values()) == 10_000 * UNIT
        assert not any(purpose == "SUSPENSE" for purpose, _, _ in usdt)
        verdict = whole.books.VerifyBooks(ledger_pb2.VerifyBooksRequest(), timeout=DEADLINE_S)
        assert verdict.sound, list(verdict.complaints)
