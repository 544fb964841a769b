"""Orders that lack money, through every door: real engines, books, risk service and order entry."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import order_entry_pb2, risk_pb2
from tests.integration.entry_clients import Client, acks_of
from tests.integration.risk_processes import (
    BTC,
    DEADLINE_S,
    ETH,
    UNIT,
    Exchange,
    client_order_ids,
    exchange,
)

pytestmark = pytest.mark.integration

QUOTE, BASE = enums.ASSET_QUOTE, enums.ASSET_BASE
BUY, SELL = enums.SIDE_BUY, enums.SIDE_SELL
ACCEPTED, REJECTED = enums.EXECUTION_KIND_ACCEPTED, enums.EXECUTION_KIND_REJECTED
SHORT, UNKNOWN = enums.REASON_INSUFFICIENT_FUNDS, enums.REASON_ACCOUNT_UNKNOWN
LIMIT, GTC = enums.ORDER_TYPE_LIMIT, enums.TIME_IN_FORCE_GOOD_TILL_CANCELLED

deposits = iter(range(1, 1 << 30))
accounts = iter(range(1, 1_000))


@pytest.fixture(scope="module")
def whole() -> Iterator[Exchange]:
    with exchange(asks=True, headroom=100) as found:
        yield found


def owner(whole: Exchange, **units: int) -> int:
    """Return a new account with whole units of some assets in trading."""
    account = next(accounts)
    for asset, amount in units.items():
        whole.deposit(account, asset, amount * UNIT, next(deposits))
    return account


def calls(whole: Exchange, pair: str = BTC) -> int:
    """Return how often the risk service was asked for money in a pair."""
    status = whole.risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=DEADLINE_S)
    return {item.pair: item.allotment_request_count for item in status.pairs}[pair]


def client(whole: Exchange, account: int, pair: str = BTC) -> Client:
    return Client(whole.channels[pair], account)


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


def records(count: int, **fields: Any) -> np.ndarray:
    from tests.integration.entry_clients import records as plain

    return plain(
        count, **({"client_order_id": [next(client_order_ids) for _ in range(count)]} | fields)
    )


def message(batch: np.ndarray, number: int = 1) -> order_entry_pb2.SubmitBatchesRequest:
    return order_entry_pb2.SubmitBatchesRequest(
        pair=BTC, record_version=1, batch_number=number, records=batch.tobytes()
    )
