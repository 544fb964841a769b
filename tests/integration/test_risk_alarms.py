"""Alarms of the risk service when a real process falls silent, what they stop, and their end."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import risk_pb2
from tests.integration.risk_processes import BTC, DEADLINE_S, ETH, UNIT, Exchange, exchange

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ALICE = 1
QUOTE = enums.ASSET_QUOTE
LOOKS = 1_000_000
"""Bounds a hang; nothing is measured against it."""
FEED_STALE, SETTLEMENT_LATE = risk_pb2.RISK_ALARM_FEED_STALE, risk_pb2.RISK_ALARM_SETTLEMENT_LATE
UNCONFIRMED = risk_pb2.RISK_ALARM_SETTINGS_UNCONFIRMED


@pytest.fixture(scope="module")
def whole() -> Iterator[Exchange]:
    with exchange(riskd=("--stale", "2", "--settlement-late", "1")) as found:
        found.deposit(ALICE, "USDT", 100_000 * UNIT, 1)
        yield found


@contextmanager
def frozen(process: subprocess.Popen[bytes] | None) -> Iterator[None]:
    """Stop a process in the middle of whatever it does, and let it go on afterwards."""
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def alarms(whole: Exchange, pair: str) -> dict[int, risk_pb2.RaisedAlarm]:
    status = whole.risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=DEADLINE_S)
    (found,) = (item for item in status.pairs if item.pair == pair)
    return {int(item.alarm): item for item in found.alarms}


def raised(whole: Exchange, pair: str, alarm: int) -> risk_pb2.RaisedAlarm:
    """Return an alarm once it stands."""
    for _ in range(LOOKS):
        found = alarms(whole, pair).get(alarm)
        if found is not None:
            return found
    raise AssertionError(f"{pair}: alarm {alarm} was never raised")


def await_quiet(whole: Exchange) -> None:
    """Return once nothing is wrong with any pair."""
    assert any(not alarms(whole, BTC) and not alarms(whole, ETH) for _ in range(LOOKS))


def test_a_pair_that_is_not_heard_gets_no_money(whole: Exchange) -> None:
    await_quiet(whole)
    with frozen(whole.pairs[BTC].entry):
        found = raised(whole, BTC, FEED_STALE)
        assert found.message.startswith(f"nothing was heard of {BTC} for ")
        assert found.since_ns > 0
        refused = whole.request(ALICE, BTC, QUOTE, 100 * UNIT)
        assert refused.reason == risk_pb2.RISK_REASON_FEED_STALE
        # The other pair has nothing to do with it.
        assert FEED_STALE not in alarms(whole, ETH)
        assert whole.request(ALICE, ETH, QUOTE, 100 * UNIT).reason == 0
        assert raised(whole, BTC, FEED_STALE).since_ns == found.since_ns
    await_quiet(whole)
    assert whole.request(ALICE, BTC, QUOTE, 100 * UNIT).reason == 0
    log = whole.riskd.log()
    assert f"ERROR {BTC}: FEED_STALE nothing was heard of {BTC}" in log
    assert f"INFO {BTC}: FEED_STALE is over" in log


def test_money_waits_for_a_ledger_that_does_not_settle(whole: Exchange) -> None:
    await_quiet(whole)
    with frozen(whole.ledgerd.process):
        for pair in (BTC, ETH):
            found = raised(whole, pair, SETTLEMENT_LATE)
            assert found.message == f"the ledger says nothing of {pair}"
            refused = whole.request(ALICE, pair, QUOTE, 1_000 * UNIT)
            assert refused.reason == risk_pb2.RISK_REASON_SETTLEMENT_LATE
    await_quiet(whole)
    assert whole.request(ALICE, BTC, QUOTE, 1_000 * UNIT).reason == 0
    log = whole.riskd.log()
    assert f"ERROR {BTC}: SETTLEMENT_LATE the ledger says nothing of {BTC}" in log
    assert f"INFO {BTC}: SETTLEMENT_LATE is over" in log


def test_an_engine_that_does_not_know_a_limit_is_an_alarm(whole: Exchange) -> None:
    await_quiet(whole)
    assert whole.request(ALICE, BTC, QUOTE, 100 * UNIT).reason == 0
    key = risk_pb2.LimitKey(
        kind=risk_pb2.LIMIT_KIND_ORDER_LOTS,
        subject=risk_pb2.LIMIT_SUBJECT_ACCOUNT,
        subject_name=str(ALICE),
        place=risk_pb2.LIMIT_PLACE_PAIR,
        place_name=BTC,
    )
    change = risk_pb2.LimitChange(key=key, value=100)
    request = risk_pb2.ChangeLimitsRequest(changes=[change], actor="ann", note="test")
    # The engine alone: order entry is heard as before.
    with frozen(whole.pairs[BTC].engine):
        answer = whole.risk.ChangeLimits(request, timeout=DEADLINE_S)
        assert answer.unconfirmed_count == 1
        found = raised(whole, BTC, UNCONFIRMED)
        assert found.message == "1 settings are not confirmed by the engine"
        assert UNCONFIRMED not in alarms(whole, ETH)
        assert not effective(whole).confirmed
    await_quiet(whole)
    assert effective(whole).confirmed
    report = whole.order(ALICE, BTC, enums.SIDE_BUY, "50000", "0.00101")
    assert report.reason == enums.REASON_ORDER_SIZE_LIMIT


def effective(whole: Exchange) -> risk_pb2.GetEffectiveLimitsResponse:
    request = risk_pb2.GetEffectiveLimitsRequest(account=ALICE, pair=BTC)
    return whole.risk.GetEffectiveLimits(request, timeout=DEADLINE_S)
