"""Money across two real pairs: shortage, recall, limits, kill switch, and kill -9 of everybody."""

from collections.abc import Iterator

import grpc
import pytest

from exchange.service import refusal_in
from exchange.v1 import enums_pb2 as enums
from exchange.v1 import ledger_pb2, risk_pb2
from tests.integration.risk_processes import BTC, DEADLINE_S, ETH, UNIT, Exchange, exchange

pytestmark = pytest.mark.integration

ALICE, BOB, CAROL = 1, 2, 3
BASE, QUOTE = enums.ASSET_BASE, enums.ASSET_QUOTE
BUY, SELL = enums.SIDE_BUY, enums.SIDE_SELL
ACCEPTED, REJECTED = enums.EXECUTION_KIND_ACCEPTED, enums.EXECUTION_KIND_REJECTED


@pytest.fixture(scope="module")
def whole() -> Iterator[Exchange]:
    with exchange() as found:
        number = 0
        for owner in (ALICE, BOB, CAROL):
            for asset, units in (("USDT", 100_000 * UNIT), ("BTC", 10 * UNIT), ("ETH", 10 * UNIT)):
                number += 1
                found.deposit(owner, asset, units, number)
        yield found


def test_a_shortage_a_trade_and_a_recall(whole: Exchange) -> None:
    # Nothing is in any engine, so the order is refused; after one call it is taken.
    assert whole.order(ALICE, BTC, BUY, "60000", "1").kind == REJECTED
    answer = whole.request(ALICE, BTC, QUOTE, 60_061 * UNIT)
    assert (answer.reason, answer.message) == (0, "")
    assert whole.order(ALICE, BTC, BUY, "60000", "1").kind == ACCEPTED
    assert whole.request(BOB, BTC, BASE, 1 * UNIT).reason == 0
    report = whole.order(BOB, BTC, SELL, "60000", "1")
    assert report.filled_lots == 100_000
    # All her money is wanted in the other pair: what is free comes over, in one call.
    assert whole.request(ALICE, ETH, QUOTE, 39_950 * UNIT).reason == 0
    assert whole.order(ALICE, ETH, BUY, "3000", "13").kind == ACCEPTED
    refused = whole.request(ALICE, ETH, QUOTE, 45_000 * UNIT)
    assert refused.reason == risk_pb2.RISK_REASON_INSUFFICIENT_FUNDS
    whole.await_settled()
    balances = whole.balances(ALICE)
    assert balances["ALLOTTED", "BTC", BTC] == 1 * UNIT
    assert not any(purpose == "SUSPENSE" for purpose, _, _ in balances)
    # What is free comes back; what the order holds does not.
    assert whole.recall(ALICE, "BTC", 5 * UNIT, BTC).released_units == 1 * UNIT
    assert whole.balances(ALICE)["TRADING", "BTC", ""] == 11 * UNIT
    assert whole.recall(BOB, "USDT", 150_000 * UNIT).reason == 0
    assert whole.balances(BOB)["TRADING", "USDT", ""] >= 150_000 * UNIT


def test_where_the_money_is(whole: Exchange) -> None:
    whole.request(CAROL, BTC, QUOTE, 1_000 * UNIT)
    shown = whole.risk.GetExposure(risk_pb2.GetExposureRequest(account=CAROL), timeout=DEADLINE_S)
    (place,) = shown.pairs
    assert (place.pair, place.asset) == (BTC, "USDT")
    assert (place.total_units, place.free_units, place.free_exact) == (
        1_000 * UNIT,
        1_000 * UNIT,
        True,
    )


def limit(kind: int, value: int | None, place: tuple[int, str], account: int) -> object:
    key = risk_pb2.LimitKey(
        kind=kind,  # type: ignore[arg-type]
        subject=risk_pb2.LIMIT_SUBJECT_ACCOUNT,
        subject_name=str(account),
        place=place[0],  # type: ignore[arg-type]
        place_name=place[1],
    )
    change = risk_pb2.LimitChange(key=key)
    if value is not None:
        change.value = value
    return change


def change(whole: Exchange, *changes: object) -> risk_pb2.ChangeLimitsResponse:
    request = risk_pb2.ChangeLimitsRequest(changes=changes, actor="ann", note="test")  # type: ignore[arg-type]
    return whole.risk.ChangeLimits(request, timeout=DEADLINE_S)


def test_limits_reach_the_engines_and_the_requests(whole: Exchange) -> None:
    pair, usdt = (risk_pb2.LIMIT_PLACE_PAIR, BTC), (risk_pb2.LIMIT_PLACE_ASSET, "USDT")
    answer = change(
        whole,
        limit(risk_pb2.LIMIT_KIND_ORDER_LOTS, 100, pair, CAROL),
        limit(risk_pb2.LIMIT_KIND_EXPOSURE, 5_000 * UNIT, usdt, CAROL),
    )
    assert answer.unconfirmed_count == 0
    assert whole.request(CAROL, BTC, QUOTE, 4_000 * UNIT).reason == 0
    report = whole.order(CAROL, BTC, BUY, "50000", "0.00101")
    assert report.reason == enums.REASON_ORDER_SIZE_LIMIT
    assert whole.order(CAROL, BTC, BUY, "50000", "0.001").kind == ACCEPTED
    refused = whole.request(CAROL, ETH, QUOTE, 1_001 * UNIT)
    assert refused.reason == risk_pb2.RISK_REASON_EXPOSURE_LIMIT
    assert whole.request(CAROL, ETH, QUOTE, 1_000 * UNIT).reason == 0
    effective = whole.risk.GetEffectiveLimits(
        risk_pb2.GetEffectiveLimitsRequest(account=CAROL, pair=BTC), timeout=DEADLINE_S
    )
    assert effective.confirmed
    assert [item.value for item in effective.limits] == [100, 5_000 * UNIT]
    (newest,) = whole.risk.ListRiskChanges(
        risk_pb2.ListRiskChangesRequest(page_size=1), timeout=DEADLINE_S
    ).changes
    assert (newest.actor, newest.subject) == ("ann", "limits")
    change(whole, limit(risk_pb2.LIMIT_KIND_ORDER_LOTS, None, pair, CAROL))
    assert whole.order(CAROL, BTC, BUY, "50000", "0.002").kind == ACCEPTED


def kill(whole: Exchange, scope: int, killed: bool, **named: object) -> risk_pb2.KillSwitchResponse:
    request = risk_pb2.KillSwitchRequest(
        scope=scope,  # type: ignore[arg-type]
        killed=killed,
        actor="eve",
        note="test",
        **named,  # type: ignore[arg-type]
    )
    answer = whole.risk.KillSwitch(request, timeout=DEADLINE_S)
    assert all(item.confirmed for item in answer.confirmations), answer
    # After its answer nothing more gets through: the command is in the pair's order.
    assert all(item.sequence > 0 for item in answer.confirmations)
    return answer


def test_the_kill_switch_of_an_account_a_pair_and_everything(whole: Exchange) -> None:
    whole.request(BOB, BTC, QUOTE, 1_000 * UNIT)
    assert whole.order(BOB, BTC, BUY, "50000", "0.001").kind == ACCEPTED
    account, pair = risk_pb2.KILL_SCOPE_ACCOUNT, risk_pb2.KILL_SCOPE_PAIR
    everything = risk_pb2.KILL_SCOPE_EVERYTHING
    kill(whole, account, True, account=BOB)
    report = whole.order(BOB, BTC, BUY, "50000", "0.001")
    assert report.reason == enums.REASON_ACCOUNT_KILLED
    asked = whole.request(BOB, BTC, QUOTE, 99_000 * UNIT)
    assert asked.reason == risk_pb2.RISK_REASON_ACCOUNT_KILLED
    kill(whole, account, False, account=BOB)
    kill(whole, pair, True, pair=BTC)
    report = whole.order(BOB, BTC, BUY, "50000", "0.001")
    assert report.reason == enums.REASON_PAIR_HALTED
    kill(whole, everything, True)
    kill(whole, pair, False, pair=BTC)
    # The pair is free again, and everything is not.
    report = whole.order(BOB, BTC, BUY, "50000", "0.001")
    assert report.reason == enums.REASON_PAIR_HALTED
    kill(whole, everything, False)
    assert whole.order(BOB, BTC, BUY, "50000", "0.001").kind == ACCEPTED


def test_withdrawals_are_counted_once_and_up_to_the_limit(whole: Exchange) -> None:
    usdt = (risk_pb2.LIMIT_PLACE_ASSET, "USDT")
    change(whole, limit(risk_pb2.LIMIT_KIND_DAILY_WITHDRAWAL, 100, usdt, BOB))

    def reserve(number: int, units: int) -> int:
        request = risk_pb2.ReserveWithdrawalRequest(
            id=number.to_bytes(16, "big"), account=BOB, asset="USDT", amount_units=units
        )
        return int(whole.risk.ReserveWithdrawal(request, timeout=DEADLINE_S).reason)

    assert reserve(1, 60) == reserve(1, 60) == 0
    assert reserve(2, 41) == risk_pb2.RISK_REASON_DAILY_WITHDRAWAL_LIMIT
    assert reserve(1, 61) == risk_pb2.RISK_REASON_WITHDRAWAL_REUSED
    request = risk_pb2.ReleaseWithdrawalRequest(id=(1).to_bytes(16, "big"))
    assert whole.risk.ReleaseWithdrawal(request, timeout=DEADLINE_S).released
    assert reserve(2, 41) == 0


def test_requests_that_mean_nothing(whole: Exchange) -> None:
    assert whole.request(0, BTC, QUOTE, 1).reason == risk_pb2.RISK_REASON_ACCOUNT_INVALID
    assert whole.request(1 << 16, BTC, QUOTE, 1).reason == risk_pb2.RISK_REASON_ACCOUNT_INVALID
    assert whole.request(ALICE, "XRP-EUR", QUOTE, 1).reason == risk_pb2.RISK_REASON_PAIR_UNKNOWN
    assert whole.request(ALICE, BTC, 0, 1).reason == risk_pb2.RISK_REASON_ASSET_UNKNOWN
    assert whole.request(ALICE, BTC, QUOTE, 0).reason == risk_pb2.RISK_REASON_AMOUNT_OUT_OF_RANGE
    with pytest.raises(grpc.RpcError) as caught:
        change(whole, limit(risk_pb2.LIMIT_KIND_ORDER_LOTS, 5, (1, ""), CAROL))
    info = refusal_in(caught.value)
    assert info is not None
    assert info.reason == "LIMIT_PLACE_INVALID"
    with pytest.raises(grpc.RpcError) as caught:
        whole.risk.KillSwitch(risk_pb2.KillSwitchRequest(scope=3), timeout=DEADLINE_S)  # type: ignore[arg-type]
    info = refusal_in(caught.value)
    assert info is not None
    assert (info.reason, info.metadata["field"]) == ("FIELD_MISSING", "actor")


@pytest.mark.parametrize("account", [0, 1 << 16, 999_999_999])
def test_an_account_that_no_pair_has_cannot_be_stopped(whole: Exchange, account: int) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        kill(whole, risk_pb2.KILL_SCOPE_ACCOUNT, True, account=account)
    info = refusal_in(caught.value)
    assert info is not None
    assert info.reason == "ACCOUNT_INVALID"
    named = {key: info.metadata[key] for key in ("field", "value", "limit")}
    assert named == {"field": "account", "value": str(account), "limit": "from 1 to 65535"}
    status = whole.risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=DEADLINE_S)
    assert not status.killed_accounts


def test_a_kill_does_not_wait_for_the_database(whole: Exchange) -> None:
    whole.request(CAROL, BTC, QUOTE, 100 * UNIT)
    whole.postgres.stop("immediate")
    answer = kill(whole, risk_pb2.KILL_SCOPE_ACCOUNT, True, account=CAROL)
    assert answer.change < 0
    report = whole.order(CAROL, BTC, BUY, "50000", "0.001")
    assert report.reason == enums.REASON_ACCOUNT_KILLED
    with pytest.raises(grpc.RpcError) as caught:
        change(whole, limit(2, 5, (risk_pb2.LIMIT_PLACE_PAIR, BTC), CAROL))
    info = refusal_in(caught.value)
    assert info is not None
    assert info.reason == "DATABASE_UNAVAILABLE"
    whole.postgres.start()
    while True:
        request = risk_pb2.ListRiskChangesRequest(page_size=1)
        try:
            (newest,) = whole.risk.ListRiskChanges(request, timeout=DEADLINE_S).changes
        except grpc.RpcError:
            continue
        if newest.subject == "kill" and '"after": true' in newest.content:
            break
    assert (newest.actor, newest.note) == ("eve", "test")
    assert kill(whole, risk_pb2.KILL_SCOPE_ACCOUNT, False, account=CAROL).change > newest.change


def test_a_stop_in_good_order_is_resumed(whole: Exchange) -> None:
    def status() -> risk_pb2.GetRiskStatusResponse:
        return whole.risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=DEADLINE_S)

    whole.await_settled()
    before = status()
    asked = risk_pb2.GetExposureRequest(account=CAROL)
    exposed = whole.risk.GetExposure(asked, timeout=DEADLINE_S)
    assert whole.riskd.stop() == 0
    whole.start_riskd()
    after = status()
    assert [(item.cursor, item.transfer_number) for item in after.pairs] == [
        (item.cursor, item.transfer_number) for item in before.pairs
    ]
    assert after.limits_version == before.limits_version
    assert whole.risk.GetExposure(asked, timeout=DEADLINE_S) == exposed


VICTIMS = ("riskd", "ledgerd", "engine", "entry")


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


@pytest.mark.slow
def test_everybody_is_killed_in_turn_and_every_unit_is_where_it_was_told_to_be() -> None:
    with exchange() as whole:
        for number, asset in enumerate(("USDT", "BTC", "ETH"), start=1):
            whole.deposit(ALICE, asset, 1_000 * UNIT, number)
        served = 0
        for turn in range(12):
            pair = (BTC, ETH)[turn % 2]
            # The answer is of no interest: the asker's call may die with the one it asked.
            future = whole.risk.RequestAllotment.future(
                risk_pb2.RequestAllotmentRequest(
                    account=ALICE, pair=pair, asset=QUOTE, amount_units=700 * UNIT
                ),
                timeout=DEADLINE_S,
            )
            restart(whole, VICTIMS[turn % len(VICTIMS)])
            try:
                served += future.result().reason == 0
            except grpc.RpcError:
                continue
        whole.ledgerd.await_health("ledger")
        whole.riskd.await_health("exchange.v1.RiskService")
        answer = whole.request(ALICE, BTC, QUOTE, 900 * UNIT)
        assert answer.reason == 0, whole.riskd.log()
        whole.await_settled()
        balances = whole.balances(ALICE)
        usdt = {key: units for key, units in balances.items() if key[1] == "USDT"}
        assert sum(usdt.values()) == 1_000 * UNIT
        assert usdt["ALLOTTED", "USDT", BTC] >= 900 * UNIT
        assert not any(purpose == "SUSPENSE" for purpose, _, _ in usdt)
        verdict = whole.books.VerifyBooks(ledger_pb2.VerifyBooksRequest(), timeout=DEADLINE_S)
        assert verdict.sound, list(verdict.complaints)
        status = whole.risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=DEADLINE_S)
        assert [list(item.alarms) for item in status.pairs] == [[], []]
