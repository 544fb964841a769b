"""Orders that lack money, through every door: real engines, books, risk service and order entry."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import order_entry_pb2, pair_admin_pb2, pair_admin_pb2_grpc, risk_pb2
from tests.integration.entry_clients import Client, Session, acks_of, message, records
from tests.integration.risk_processes import (
    BTC,
    DEADLINE_S,
    ETH,
    UNIT,
    Exchange,
    exchange,
)

pytestmark = pytest.mark.integration

QUOTE, BASE = enums.ASSET_QUOTE, enums.ASSET_BASE
BUY, SELL = enums.SIDE_BUY, enums.SIDE_SELL
ACCEPTED, REJECTED = enums.EXECUTION_KIND_ACCEPTED, enums.EXECUTION_KIND_REJECTED
SHORT, UNKNOWN = enums.REASON_INSUFFICIENT_FUNDS, enums.REASON_ACCOUNT_UNKNOWN
IOC = enums.TIME_IN_FORCE_IMMEDIATE_OR_CANCEL
CANCEL, CANCEL_ALL = 2, 4

deposits = iter(range(1, 1 << 30))
accounts = iter(range(1, 1_000))
used: list[int] = []


@pytest.fixture(scope="module")
def whole() -> Iterator[Exchange]:
    with exchange(asks=True, headroom=100) as found:
        yield found


@pytest.fixture(autouse=True)
def empty_books(whole: Exchange) -> Iterator[None]:
    """Leave no order of a test in the way of the next one."""
    yield
    while used:
        account = used.pop()
        for pair, channel in whole.channels.items():
            request = order_entry_pb2.CancelAllOrdersRequest(pair=pair)
            one = Client(channel, account)
            one.stub.CancelAllOrders(request, **one.calls)


def owner(whole: Exchange, **units: int) -> int:
    """Return a new account with whole units of some assets in trading."""
    account = next(accounts)
    used.append(account)
    for asset, amount in units.items():
        whole.deposit(account, asset, amount * UNIT, next(deposits))
    return account


def calls(whole: Exchange, pair: str = BTC) -> int:
    """Return how often the risk service was asked for money in a pair."""
    status = whole.risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=DEADLINE_S)
    return {item.pair: item.allotment_request_count for item in status.pairs}[pair]


def client(whole: Exchange, account: int) -> Client:
    return Client(whole.channels[BTC], account)


def test_an_order_that_needs_money_trades_and_the_next_one_asks_nobody(whole: Exchange) -> None:
    alice, bob = owner(whole, USDT=200_000), owner(whole, BTC=3)
    before = calls(whole)
    assert whole.order(bob, BTC, SELL, "60000", "1").kind == ACCEPTED
    report = whole.order(alice, BTC, BUY, "60000", "1")
    assert (report.kind, report.filled_lots, report.reason) == (ACCEPTED, 100_000, 0)
    assert calls(whole) == before + 2
    # As much again came along.
    assert whole.order(alice, BTC, BUY, "59000", "1").kind == ACCEPTED
    assert whole.order(bob, BTC, SELL, "61000", "1").kind == ACCEPTED
    assert calls(whole) == before + 2
    whole.await_settled()
    assert whole.balances(alice)["ALLOTTED", "BTC", BTC] == UNIT


def test_money_comes_from_a_pair_where_it_is_idle(whole: Exchange) -> None:
    alice = owner(whole, USDT=60_100)
    assert whole.order(alice, BTC, BUY, "60000", "1").kind == ACCEPTED
    client(whole, alice).cancel_all()
    report = whole.order(alice, ETH, BUY, "3000", "20")
    assert report.kind == ACCEPTED, report
    whole.await_settled()
    there = whole.balances(alice)["ALLOTTED", "USDT", ETH]
    assert there >= 60_060 * UNIT
    refused = whole.order(alice, BTC, BUY, "60000", "1")
    assert (refused.kind, refused.reason) == (REJECTED, SHORT)
    assert "account" in refused.message
    assert "INSUFFICIENT_FUNDS" in refused.message


def test_an_account_without_money_is_told_so_and_stays_unknown(whole: Exchange) -> None:
    report = whole.order(owner(whole), BTC, BUY, "60000", "1")
    assert (report.kind, report.reason) == (REJECTED, UNKNOWN)
    assert "the risk service gives no more: INSUFFICIENT_FUNDS" in report.message


def test_what_money_does_not_help_asks_nobody(whole: Exchange) -> None:
    alice, before = owner(whole, USDT=1_000), calls(whole)
    assert whole.order(alice, BTC, BUY, "60000", "0").kind == REJECTED
    assert whole.order(alice, BTC, 0, "60000", "1").reason == UNKNOWN
    assert client(whole, alice).cancel_all().reason == UNKNOWN
    assert whole.order(1 << 17, BTC, BUY, "60000", "1").reason == UNKNOWN
    assert calls(whole) == before


def test_fifty_orders_at_once_cost_a_few_calls(whole: Exchange) -> None:
    alice, before = owner(whole, USDT=50 * 602), calls(whole)
    one = client(whole, alice)
    futures = [
        one.stub.SubmitOrder.future(one.order(price=str(50_000 + n)), **one.calls)
        for n in range(50)
    ]
    assert [future.result().report.kind for future in futures] == [ACCEPTED] * 50
    assert calls(whole) - before <= 10
    assert len(one.open_orders()) == 50


def test_what_there_is_goes_to_whoever_comes_first(whole: Exchange) -> None:
    alice, before = owner(whole, USDT=10_011), calls(whole)
    batch = records(30, quantity_lots=1_000, price_ticks=5_000_000)  # 500.5 each, fee included.
    (answer,) = client(whole, alice).batches(iter([message(batch)]))
    acks = acks_of(answer)
    assert acks["kind"].tolist() == [ACCEPTED] * 20 + [REJECTED] * 10
    assert set(acks["reason"][20:].tolist()) <= {SHORT, UNKNOWN}
    assert acks["client_order_id"].tolist() == batch["client_order_id"].tolist()
    assert calls(whole) - before <= 20


# What was taken back stays away.


@pytest.mark.parametrize("kind", [CANCEL, CANCEL_ALL])
def test_an_order_cancelled_behind_its_refusal_does_not_come_back(
    whole: Exchange, kind: int
) -> None:
    alice = owner(whole, USDT=2_000)
    batch = records(3, quantity_lots=100)
    batch["client_order_id"][1] = batch["client_order_id"][0]
    batch["kind_side"][1] = kind
    (answer,) = client(whole, alice).batches(iter([message(batch)]))
    kinds = acks_of(answer)["kind"].tolist()
    # The third came after the cancel and is a new wish.
    assert kinds == [REJECTED, REJECTED, ACCEPTED]
    (left,) = client(whole, alice).open_orders()
    assert left.client_order_id == batch["client_order_id"][2]


def stop_ledger(whole: Exchange) -> None:
    assert whole.ledgerd.process is not None
    whole.ledgerd.process.send_signal(signal.SIGSTOP)


def resume_ledger(whole: Exchange) -> None:
    assert whole.ledgerd.process is not None
    whole.ledgerd.process.send_signal(signal.SIGCONT)


def await_question(whole: Exchange, before: int) -> None:
    while calls(whole) == before:
        continue


def test_a_cancel_finds_what_waits_for_money(whole: Exchange) -> None:
    alice, before = client(whole, owner(whole, USDT=2_000)), calls(whole)
    stop_ledger(whole)
    try:
        waiting = alice.stub.SubmitOrder.future(alice.order(), **alice.calls)
        await_question(whole, before)
        alice.cancel_all()
    finally:
        resume_ledger(whole)
    report = waiting.result().report
    assert report.kind == REJECTED
    # On a slow machine the risk service gives up before the books go on.
    assert "cancelled while it waited" in report.message or "TIMED_OUT" in report.message
    assert alice.open_orders() == []


def test_a_lost_session_leaves_nothing_behind_that_waited(whole: Exchange) -> None:
    alice, before = client(whole, owner(whole, USDT=5_000)), calls(whole)
    session = Session(alice)
    options = order_entry_pb2.SessionOptions(pair=BTC, cancel_on_disconnect=True)
    session.send(1, options=options)
    assert next(session.call).request_id == 1
    follow = order_entry_pb2.StreamExecutionsRequest(pair=BTC, from_number=-1)
    executions = alice.stub.StreamExecutions(follow, metadata=alice.metadata, timeout=DEADLINE_S)
    next(executions)
    stop_ledger(whole)
    try:
        for number in (2, 3, 4):
            session.send(number, submit=alice.order())
        await_question(whole, before)
        session.call.cancel()
        # The cancel that ends it names no order.
        while all(row.client_order_id for row in next(executions).executions):
            continue
    finally:
        resume_ledger(whole)
    whole.await_settled()
    # Whatever was on its way is decided before what comes now.
    assert alice.submit(quantity="0.001").kind == ACCEPTED
    (left,) = alice.open_orders()
    assert left.quantity == "0.00100"


# Every door, every kind of order.


def test_a_session_asks_for_all_of_its_orders_together(whole: Exchange) -> None:
    alice, before = client(whole, owner(whole, USDT=50 * 602)), calls(whole)
    session = Session(alice)
    for number in range(50):
        session.send(number, submit=alice.order())
    session.end()
    answers = list(session.call)
    assert [answer.request_id for answer in answers] == list(range(50))
    assert {answer.report.kind for answer in answers} == {ACCEPTED}
    assert calls(whole) - before <= 10


def test_a_batch_without_money_is_answered_whole(whole: Exchange) -> None:
    alice, before = client(whole, owner(whole)), calls(whole)
    batches = [message(records(8_192), number) for number in (1, 2)]
    first, second = alice.batches(iter(batches))
    assert (first.batch_number, second.batch_number) == (1, 2)
    assert (acks_of(first)["kind"] == REJECTED).all()
    assert (acks_of(second)["kind"] == REJECTED).all()
    assert calls(whole) - before <= 40


def test_both_assets_in_one_batch(whole: Exchange) -> None:
    alice = client(whole, owner(whole, USDT=50_000, BTC=2))
    batch = records(200, quantity_lots=100)
    batch["kind_side"][::2] = 1 | SELL << 4
    batch["price_ticks"][::2] = 7_000_000
    (answer,) = alice.batches(iter([message(batch)]))
    acks = acks_of(answer)
    assert (acks["kind"] == ACCEPTED).all()
    assert acks["client_order_id"].tolist() == batch["client_order_id"].tolist()
    assert len(alice.open_orders()) == 200


def test_an_amendment_gets_what_it_needs_more(whole: Exchange) -> None:
    alice = client(whole, owner(whole, USDT=2_000))
    order = alice.submit(price="50000", quantity="0.01")
    amend = order_entry_pb2.AmendOrderRequest(
        pair=BTC, order_id=order.order_id, price="51000", quantity="0.039"
    )
    report = alice.stub.AmendOrder(amend, **alice.calls).report
    assert (report.kind, report.leaves) == (enums.EXECUTION_KIND_AMENDED, "0.03900")
    amend.quantity = "0.04"
    report = alice.stub.AmendOrder(amend, **alice.calls).report
    assert (report.kind, report.reason) == (REJECTED, SHORT)
    assert "INSUFFICIENT_FUNDS" in report.message


@pytest.mark.parametrize("taker_fee_ppm", [100, 500, 90_000])
def test_money_that_just_suffices_is_enough_whatever_fees_an_account_pays(
    whole: Exchange, taker_fee_ppm: int
) -> None:
    bob = client(whole, owner(whole, BTC=1))
    assert bob.submit(side=SELL, price="60000", quantity="0.1").kind == ACCEPTED
    alice = client(whole, owner(whole))
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(whole.channels[BTC])
    fees = pair_admin_pb2.SetFeesRequest(
        pair=BTC, account=alice.account, taker_fee_ppm=taker_fee_ppm
    )
    set_fees = admin.SetFees(fees, timeout=DEADLINE_S).report
    assert set_fees.kind == enums.EXECUTION_KIND_ACCOUNT_SET

    def bring(worth: int) -> None:
        units = worth * UNIT * (1_000_000 + taker_fee_ppm) // 1_000_000
        whole.deposit(alice.account, "USDT", units, next(deposits))

    before = calls(whole)
    bring(3_000)
    bought = alice.submit(price="60000", quantity="0.05")
    assert (bought.kind, bought.filled) == (ACCEPTED, "0.05000"), bought.message
    bring(1_200)
    market: dict[str, Any] = {"order_type": enums.ORDER_TYPE_MARKET, "time_in_force": IOC}
    bought = alice.submit(price="", quantity="0.02", **market)
    assert (bought.kind, bought.filled) == (ACCEPTED, "0.02000"), bought.message
    bring(500)
    resting = alice.submit(price="50000", quantity="0.01")
    assert resting.kind == ACCEPTED, resting.message
    bring(500)
    amended = alice.amend(order_id=resting.order_id, quantity="0.02")
    assert amended.kind == enums.EXECUTION_KIND_AMENDED, amended.message
    assert calls(whole) == before + 4
    whole.await_settled()
    assert ("TRADING", "USDT", "") not in whole.balances(alice.account)


def test_market_orders_get_what_the_book_asks_for(whole: Exchange) -> None:
    bob = client(whole, owner(whole, BTC=2, USDT=20_000))
    for price in ("60001", "60002"):
        assert bob.submit(side=SELL, price=price, quantity="0.5").kind == ACCEPTED
    market, amount = enums.ORDER_TYPE_MARKET, enums.ORDER_TYPE_MARKET_BY_AMOUNT
    shape: dict[str, Any] = {"time_in_force": IOC, "price": ""}
    # Exactly what a whole coin costs at the two prices, fee included.
    alice = client(whole, owner(whole, USDT=60_062))
    bought = alice.submit(order_type=market, quantity="1", **shape)
    assert (bought.kind, bought.filled) == (ACCEPTED, "1.00000")
    assert bob.submit(price="55000", quantity="0.5").kind == ACCEPTED
    carol = client(whole, owner(whole, BTC=1))
    sold = carol.submit(side=SELL, order_type=amount, quantity="", amount="11000", **shape)
    assert (sold.kind, sold.filled) == (ACCEPTED, "0.20000")
    dave = client(whole, owner(whole, BTC=1))
    sold = dave.submit(side=SELL, order_type=market, quantity="0.3", **shape)
    assert (sold.kind, sold.filled) == (ACCEPTED, "0.30000")


def test_a_retry_while_the_first_one_waits_is_executed_once(whole: Exchange) -> None:
    alice = client(whole, owner(whole, USDT=3_000))
    request = alice.order()
    futures = [alice.stub.SubmitOrder.future(request, **alice.calls) for _ in range(5)]
    kinds = sorted(future.result().report.kind for future in futures)
    assert kinds == [ACCEPTED] + [enums.EXECUTION_KIND_REPLAYED] * 4
    (left,) = alice.open_orders()
    assert left.leaves == "0.01000"
