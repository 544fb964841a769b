"""The picture and the lines of a running exchange, from facts alone."""

from collections.abc import Iterable

import pytest
from rich.console import Console

from exchange.v1 import enums_pb2, ledger_pb2, market_data_pb2, pair_admin_pb2, risk_pb2
from holdfast.running.live_view import TURN_NS, ProcessLine, Screen
from holdfast.running.money_view import MoneyScreen, Settled
from holdfast.running.pair_view import PairScreen, Rate

SECOND_NS = 1_000_000_000
DECIMALS = {"BTC": 8, "ETH": 8, "USDT": 8}


def shown(screen: Screen, now_ns: int = 0, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(screen.picture(now_ns, width, height))
    return captured.get().splitlines()


def settlement(cursor: int, committed: int, **more: object) -> ledger_pb2.Settlement:
    given = {"state": ledger_pb2.SETTLEMENT_STATE_RUNNING} | more
    return ledger_pb2.Settlement(
        pair="BTC-USDT",
        cursor=cursor,
        committed_number=committed,
        **given,  # type: ignore[arg-type]
    )


def balance(asset: str, purpose: int, units: int) -> ledger_pb2.AccountBalance:
    name = ledger_pb2.AccountName(asset=asset, purpose=purpose)  # type: ignore[arg-type]
    return ledger_pb2.AccountBalance(name=name, amount_units=units)


def processes() -> Iterable[ProcessLine]:
    yield ProcessLine("ledgerd", "", 11, "running", 5, 0)
    for place, pair in enumerate(("BTC-USDT", "ETH-USDT")):
        yield ProcessLine("engine", pair, 100 + place, "running", 5, 2 * place)
        yield ProcessLine("entry-0", pair, 0, "restarting", 0, 1)


@pytest.fixture
def screen() -> Screen:
    money = MoneyScreen(decimals=DECIMALS)
    money.owners["visitor 100"] = [
        balance("BTC", ledger_pb2.ACCOUNT_PURPOSE_TRADING, 950_000_000),
        balance("BTC", ledger_pb2.ACCOUNT_PURPOSE_ALLOTTED, 50_000_000),
        balance("USDT", ledger_pb2.ACCOUNT_PURPOSE_FUNDING, 123_456_789_999_999),
    ]
    money.owners["maker 1"] = []
    for pair in ("BTC-USDT", "ETH-USDT"):
        money.settled[pair] = Settled()
        money.settled[pair].see(0, settlement(1_000, 1_000, checked_sequence=1_234))
    money.trial = ledger_pb2.GetTrialBalanceResponse(balanced=True)
    money.risk = risk_pb2.GetRiskStatusResponse()
    pairs = [PairScreen("BTC-USDT"), PairScreen("ETH-USDT")]
    for one in pairs:
        status = pair_admin_pb2.GetStatusResponse(
            engine_state=enums_pb2.ENGINE_STATE_READY, engine_epoch=3, sequence=4_000
        )
        one.see_status(0, status)
        last = market_data_pb2.Trade(price="64000.00")
        one.see_ticker(0, market_data_pb2.Ticker(last_trade=last, trade_count=7))
    return Screen(pairs, money, list(processes()))


@pytest.mark.parametrize("width", [80, 120, 160, 200])
@pytest.mark.parametrize("height", [24, 30, 40, 50, 80])
def test_the_picture_fits_the_terminal_and_holds_what_matters(
    screen: Screen, width: int, height: int
) -> None:
    lines = shown(screen, width=width, height=height)
    assert len(lines) < height, "a picture that is too high scrolls the terminal"
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert "ledger = engine at sequence 1,234" in text
    assert "trial balance zero  no alarms" in text
    assert ("10.0000" in text) != ("9.5000" in text)
    assert "engine 101 2×" in text


def test_pairs_take_turns_where_there_is_no_room_and_stand_together_where_there_is(
    screen: Screen,
) -> None:
    def headlines(now_ns: int, width: int, height: int) -> list[str]:
        text = "\n".join(shown(screen, now_ns, width, height))
        return [pair for pair in ("BTC-USDT", "ETH-USDT") if f"{pair}  ready" in text]

    assert headlines(0, 80, 24) == ["BTC-USDT"]
    assert headlines(TURN_NS, 80, 24) == ["ETH-USDT"]
    assert headlines(0, 160, 24) == ["BTC-USDT", "ETH-USDT"]
    assert headlines(0, 80, 60) == ["BTC-USDT", "ETH-USDT"]


def test_balances_are_told_by_purpose_where_there_is_room(screen: Screen) -> None:
    wholly = "\n".join(shown(screen, height=60))
    assert "1,234,567.8999" in wholly, "amounts are cut, never rounded up"
    for words in ("funding", "trading", "in pairs", "on the way", "9.5000", "0.5000"):
        assert words in wholly
    assert "in all" in "\n".join(shown(screen, height=24))


def test_lines_say_the_same(screen: Screen) -> None:
    first, second, shared = screen.lines()
    assert first.startswith("BTC-USDT | ready epoch 3 sequence 4,000 | last 64000.00 | ")
    assert first.endswith("| engine 100 entry-0 restarting (1 restarts)")
    assert "engine 101 (2 restarts)" in second
    assert shared.startswith("exchange | visitor 100 has 10.0000 BTC, 0.0000 ETH, 1,234,567.8999")
    assert "BTC-USDT 0 behind, 0 ms; ledger = engine at sequence 1,234; settled to 1,000" in shared
    assert shared.endswith("| trial balance zero | no alarms | ledgerd 11")


def test_what_is_wrong_is_said_loudly(screen: Screen) -> None:
    assert screen.money.risk is not None
    alarm = risk_pb2.RaisedAlarm(alarm=risk_pb2.RISK_ALARM_FEED_STALE, message="silent for 9 s")
    pair = risk_pb2.PairRiskStatus(pair="ETH-USDT", alarms=[alarm])
    screen.money.risk.pairs.append(pair)
    screen.money.trial = ledger_pb2.GetTrialBalanceResponse(balanced=False)
    stopped = settlement(
        5, 9, state=ledger_pb2.SETTLEMENT_STATE_STOPPED, sentence="books and engine differ"
    )
    screen.money.settled["BTC-USDT"].see(SECOND_NS, stopped)
    line = screen.lines()[-1]
    assert "BTC-USDT settlement stopped: books and engine differ" in line
    assert "TRIAL BALANCE NOT ZERO | ETH-USDT FEED_STALE: silent for 9 s" in line
    screen.money.risk, screen.pairs[0].status = None, None
    screen.money.settled["BTC-USDT"].settlement = None
    lines = screen.lines()
    assert "engine not reached" in lines[0]
    assert "BTC-USDT the books are not reached" in lines[-1]
    assert "riskd not reached" in lines[-1]


def test_lag_counts_from_the_last_commit_or_from_when_an_execution_was_seen() -> None:
    one = Settled()
    one.see(10 * SECOND_NS, settlement(100, 100, posted_ns=10 * SECOND_NS))
    assert (one.behind_count(), one.late_ms) == (0, 0)
    one.see(11 * SECOND_NS, settlement(100, 140, posted_ns=10_900_000_000))
    assert (one.behind_count(), one.late_ms) == (40, 100)
    # A backlog: commits are made, and what was seen at second 11 still waits.
    one.see(14 * SECOND_NS, settlement(120, 900, posted_ns=13_999_000_000))
    assert (one.behind_count(), one.late_ms) == (780, 3_000)
    one.see(15 * SECOND_NS, settlement(900, 900, posted_ns=15 * SECOND_NS))
    assert (one.behind_count(), one.late_ms) == (0, 0)


def test_a_rate_starts_anew_when_its_counter_falls() -> None:
    rate = Rate()
    assert rate.per_second() == 0
    for second, count in enumerate((0, 100, 300)):
        rate.see(second * SECOND_NS, count)
    assert rate.per_second() == 150
    rate.see(3 * SECOND_NS, 5)
    assert rate.per_second() == 0
