"""Settings that cannot work, alarms and lateness, and numbers that stand on two sides."""

from enum import IntEnum
from typing import Any

import pytest

from exchange.service import NotLoopback
from exchange.v1 import risk_pb2
from riskd.__main__ import main
from riskd.alarms import SECOND_NS, Alarm, Alarms, Lateness, Silences
from riskd.config import DEFAULT_LEDGER, DEFAULT_PORT, InvalidSetting, parse
from riskd.limits import LimitKind, LimitPlace, LimitSubject, RiskReason
from riskd.settings import MARKET_MAKER, TRADER, Scope

GOOD = ["--follow", "BTC-USDT=127.0.0.1:1", "--database-url", "postgresql:///risk"]


def test_the_least_that_is_needed() -> None:
    config = parse(GOOD, {})
    assert config.pairs == (("BTC-USDT", "127.0.0.1:1"),)
    assert (config.ledger, config.port, config.run) == (DEFAULT_LEDGER, DEFAULT_PORT, None)


def test_arguments_come_before_the_environment() -> None:
    environment = {
        "HOLDFAST_RISK_DATABASE_URL": "postgresql:///from-environment",
        "HOLDFAST_RISK_PORT": "7",
        "HOLDFAST_RISK_LEDGER": "127.0.0.1:8",
    }
    config = parse(GOOD, environment)
    assert (config.database_url, config.port, config.ledger) == (
        "postgresql:///risk",
        7,
        "127.0.0.1:8",
    )
    assert parse(GOOD[:2], environment).database_url == "postgresql:///from-environment"
    listed = environment | {"HOLDFAST_FOLLOW": "A-B=127.0.0.1:1\nC-D=127.0.0.1:2"}
    assert parse([], listed).pairs == (("A-B", "127.0.0.1:1"), ("C-D", "127.0.0.1:2"))
    assert parse(GOOD, listed).pairs == (("BTC-USDT", "127.0.0.1:1"),)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (GOOD[2:], "follow is"),
        ([*GOOD, "--follow", "BTC-USDT=127.0.0.1:2"], "each pair once"),
        ([*GOOD, "--follow", "ETH-USDT"], "PAIR=HOST:PORT"),
        ([*GOOD, "--follow", "=127.0.0.1:2"], "PAIR=HOST:PORT"),
        (GOOD[:2], "database_url is ''"),
        ([*GOOD, "--ledger", ""], "ledger is ''"),
        ([*GOOD, "--port", "65536"], "port is 65536; it must be from 0 to 65535"),
        ([*GOOD, "--stale", "1"], "stale_s is 1; it must be from 2"),
        ([*GOOD, "--settlement-late", "0"], "settlement_late_s is 0"),
        ([*GOOD, "--sticky", "-1"], "sticky_ms is -1"),
        ([*GOOD, "--headroom", "10001"], "headroom_percent is 10001"),
    ],
)
def test_a_setting_that_cannot_work_is_named(arguments: list[str], sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=sentence):
        parse(arguments, {})


def test_the_world_is_not_let_in() -> None:
    with pytest.raises(NotLoopback):
        parse([*GOOD, "--host", "0.0.0.0"], {})


class AccountRole(IntEnum):
    UNSPECIFIED = 0
    TRADER = TRADER
    MARKET_MAKER = MARKET_MAKER


@pytest.mark.parametrize(
    ("ours", "wire", "prefix"),
    [
        (LimitKind, risk_pb2.LimitKind, "LIMIT_KIND_"),
        (LimitSubject, risk_pb2.LimitSubject, "LIMIT_SUBJECT_"),
        (LimitPlace, risk_pb2.LimitPlace, "LIMIT_PLACE_"),
        (RiskReason, risk_pb2.RiskReason, "RISK_REASON_"),
        (Scope, risk_pb2.KillScope, "KILL_SCOPE_"),
        (Alarm, risk_pb2.RiskAlarm, "RISK_ALARM_"),
        (AccountRole, risk_pb2.AccountRole, "ACCOUNT_ROLE_"),
    ],
)
def test_numbers_are_the_same_on_the_wire(ours: type[IntEnum], wire: Any, prefix: str) -> None:
    told = {name.removeprefix(prefix): number for name, number in wire.items()}
    assert told == {item.name: item.value for item in ours}


def test_an_alarm_keeps_its_time_and_takes_the_newest_sentence() -> None:
    alarms = Alarms()
    assert alarms.set("A", Alarm.FEED_STALE, "one", 10)
    assert not alarms.set("A", Alarm.FEED_STALE, "two", 20)
    alarms.set("A", Alarm.FEED_BROKEN, "three", 30)
    found = alarms.of("A")
    assert [(item.alarm, item.sentence, item.since_ns) for item in found] == [
        (Alarm.FEED_STALE, "two", 10),
        (Alarm.FEED_BROKEN, "three", 30),
    ]
    assert alarms.has("A", Alarm.MOVES_BLOCKED, Alarm.FEED_BROKEN)
    assert not alarms.has("B", Alarm.FEED_BROKEN)
    assert alarms.set("A", Alarm.FEED_STALE, "", 40)
    assert not alarms.set("A", Alarm.FEED_STALE, "", 40)
    assert alarms.set("A", Alarm.FEED_STALE, "again", 50)
    assert alarms.of("A")[0].since_ns == 50


def test_a_follower_is_late_when_it_does_not_get_to_where_others_were() -> None:
    lateness = Lateness(10)
    assert not lateness.late(0, 100, now_ns=0)
    # Always behind and always moving: on time.
    assert not lateness.late(90, 200, now_ns=9)
    assert not lateness.late(100, 300, now_ns=10)
    assert not lateness.late(299, 400, now_ns=20)
    assert lateness.late(299, 500, now_ns=21)
    assert not lateness.late(300, 500, now_ns=22)
    assert not lateness.late(500, 500, now_ns=40)


def test_silence_is_lateness_in_the_end() -> None:
    lateness = Lateness(10)
    assert not lateness.late(None, 0, now_ns=0)
    assert not lateness.late(None, 0, now_ns=10)
    assert lateness.late(None, 0, now_ns=11)
    assert not lateness.late(0, 0, now_ns=12)
    assert not lateness.late(0, 0, now_ns=100)
    assert lateness.late(None, 0, now_ns=111)


def test_silence_is_spoken_of_when_it_begins_seldom_while_it_lasts_and_at_its_end() -> None:
    silences = Silences()
    assert silences.failed("A", 0)
    said_ns = [ns for ns in range(1, 130 * SECOND_NS, SECOND_NS // 5) if silences.failed("A", ns)]
    assert [round(ns / SECOND_NS) for ns in said_ns] == [60, 120]
    assert silences.failed("B", 5)
    assert silences.over(200 * SECOND_NS) == []
    silences.answered("A")
    assert silences.over(132 * SECOND_NS) == []
    ((whom, silent_ns),) = silences.over(136 * SECOND_NS)
    assert (whom, silent_ns // SECOND_NS) == ("A", 129)
    assert silences.over(200 * SECOND_NS) == []
    assert silences.failed("A", 201 * SECOND_NS)


def test_one_question_that_fails_among_others_that_do_not_is_no_end() -> None:
    silences = Silences()
    said = 0
    for ns in range(0, 59 * SECOND_NS, SECOND_NS // 5):
        said += silences.failed("A", ns)
        silences.answered("A")
        assert silences.over(ns + 1) == []
    assert said == 1
    silences.answered("nobody")
    assert silences.over(0) == []


def test_a_start_that_cannot_work_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(GOOD[2:]) == 2
    assert "riskd: follow is" in capsys.readouterr().err
    assert main(["--follow", "XRP-EUR=127.0.0.1:1", "--database-url", "postgresql:///x"]) in {1, 2}
    nowhere = "postgresql://nobody@127.0.0.1:1/risk"
    assert main([*GOOD[:2], "--database-url", nowhere]) == 1
    assert "riskd: the database does not answer" in capsys.readouterr().err
