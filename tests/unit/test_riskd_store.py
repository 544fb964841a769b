"""What the risk service remembers: versions, the audit trail, daily withdrawals, kept holdings."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from exchange.enums import Asset
from exchange.refusal import Refused
from ledgerd.database import OWNER, RISK_OWNER, RISK_SERVICE, SERVICE
from riskd.limits import (
    DAY_NS,
    Change,
    EngineLimits,
    LimitKind,
    LimitPlace,
    LimitSubject,
    RiskReason,
    RuleKey,
)
from riskd.storage.head import DatabaseIsOlder, Head, HeadFile
from riskd.storage.store import KillState, Store, connect, migrate
from tests.books import START_NS, TEMPLATE, Clock, make_risk, server

_names = itertools.count(1)
OPEN_ORDERS = RuleKey(LimitKind.OPEN_ORDERS, LimitSubject.ACCOUNT, "7", LimitPlace.EVERYWHERE, "")
EXPOSURE = RuleKey(LimitKind.EXPOSURE, LimitSubject.EVERYONE, "", LimitPlace.ASSET, "USDT")
YES = lambda mine, total: RiskReason.UNSPECIFIED  # noqa: E731


class Kept:
    """A store over a database of its own."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self.engine = name, engine
        self.clock = Clock()
        self.store = Store(engine, self.clock)


def address(role: str, name: str) -> str:
    return server().url(role, name).render_as_string(hide_password=False)


@pytest.fixture
def kept() -> Iterator[Kept]:
    name = f"risk_{next(_names)}"
    make_risk(server(), name)
    migrate(address(RISK_OWNER, name))
    engine = connect(address(RISK_SERVICE, name))
    try:
        yield Kept(name, engine)
    finally:
        engine.dispose()
        server().drop(name)


def test_a_second_migration_changes_nothing(kept: Kept) -> None:
    kept.store.change_limits([Change(OPEN_ORDERS, 5)], 0, "ann", "first")
    for role in (RISK_OWNER, RISK_SERVICE):
        migrate(address(role, kept.name))
    assert kept.store.load().rules.values == {OPEN_ORDERS: 5}


def test_every_version_stays_readable(kept: Kept) -> None:
    store = kept.store
    assert store.load().rules.version == 0
    first = store.change_limits([Change(OPEN_ORDERS, 5), Change(EXPOSURE, 0)], 0, "ann", "start")
    second = store.change_limits([Change(OPEN_ORDERS, 9)], first.version, "bob", "more")
    third = store.change_limits([Change(OPEN_ORDERS, None)], second.version, "bob", "all")
    assert [book.version for book in (first, second, third)] == [1, 2, 3]
    assert store.limits_at(0).values == {}
    assert store.limits_at(1).values == {OPEN_ORDERS: 5, EXPOSURE: 0}
    assert store.limits_at(2).values == {OPEN_ORDERS: 9, EXPOSURE: 0}
    assert store.limits_at(3).values == {EXPOSURE: 0} == store.load().rules.values
    for version in (-1, 4):
        with pytest.raises(Refused, match="version is"):
            store.limits_at(version)


def test_changes_made_for_another_version_are_refused(kept: Kept) -> None:
    kept.store.change_limits([Change(OPEN_ORDERS, 5)], 0, "ann", "")
    with pytest.raises(Refused, match="at version 1 by now, not 7") as refused:
        kept.store.change_limits([Change(OPEN_ORDERS, 6)], 7, "ann", "")
    assert refused.value.refusal.reason == "VERSION_MOVED"
    assert kept.store.load().rules.values == {OPEN_ORDERS: 5}
    assert len(kept.store.changes(0, 10)) == 1


def test_of_two_changes_at_once_both_become_versions(kept: Kept) -> None:
    def change(value: int) -> None:
        kept.store.change_limits([Change(OPEN_ORDERS, value)], 0, f"actor {value}", "")

    threads = [threading.Thread(target=change, args=(value,)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.store.load().rules.version == 4
    actors = [f"actor {kept.store.limits_at(n).values[OPEN_ORDERS]}" for n in (4, 3, 2, 1)]
    assert [change.actor for change in kept.store.changes(0, 10)] == actors


def test_every_change_leaves_a_row_newest_first(kept: Kept) -> None:
    store = kept.store
    store.change_limits([Change(OPEN_ORDERS, 5)], 0, "ann", "why")
    store.set_profile(7, "vip", 2, "bob", "agreed")
    store.set_profile(7, "retail", 1, "bob", "ended")
    store.set_target(7, "BTC-USDT", Asset.QUOTE, 900, "bob", "")
    last = store.set_kill(1, "7", True, "eve", "looks odd")
    rows = store.changes(0, 10)
    assert [row.subject for row in rows] == ["kill", "target", "profile", "profile", "limits"]
    assert rows[0].id == last
    assert (rows[0].actor, rows[0].note) == ("eve", "looks odd")
    assert rows[2].content == '{"account": 7, "after": ["retail", 1], "before": ["vip", 2]}'
    assert rows[4].content == '{"changes": [[3, 3, "7", 1, "", null, 5]], "version": 1}'
    assert all(START_NS < row.time_ns < START_NS + 100 for row in rows)
    assert [row.id for row in store.changes(rows[2].id, 1)] == [rows[3].id]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE risk.changes SET actor = 'nobody'",
        "DELETE FROM risk.changes",
        "TRUNCATE risk.changes CASCADE",
        "UPDATE risk.limit_history SET value = 1",
        "DELETE FROM risk.limit_history",
        "TRUNCATE risk.limit_history",
    ],
)
def test_what_was_changed_stays_on_record(kept: Kept, statement: str) -> None:
    kept.store.change_limits([Change(OPEN_ORDERS, 5)], 0, "ann", "")
    with kept.engine.connect() as connection, pytest.raises(DBAPIError, match="permission denied"):
        connection.execute(text(statement))
    owner = connect(address(RISK_OWNER, kept.name), 1)
    with owner.connect() as connection, pytest.raises(DBAPIError, match="kept as they are"):
        connection.execute(text(statement))
    owner.dispose()


def test_the_service_may_not_put_the_guard_away(kept: Kept) -> None:
    with kept.engine.connect() as connection, pytest.raises(DBAPIError, match="must be owner"):
        connection.execute(text("ALTER TABLE risk.changes DISABLE TRIGGER kept"))
    store, request = kept.store, UUID(int=1)
    assert not store.reserve_withdrawal(request, 7, "BTC", 5, YES)
    for statement in (
        "UPDATE risk.withdrawals SET amount_units = 1",
        "DELETE FROM risk.withdrawals",
    ):
        with kept.engine.connect() as connection, pytest.raises(DBAPIError, match="denied"):
            connection.execute(text(statement))
    assert store.release_withdrawal(request)


@pytest.mark.parametrize(
    ("role", "of"), [(RISK_OWNER, ""), (RISK_SERVICE, ""), (OWNER, "risk"), (SERVICE, "risk")]
)
def test_neither_service_enters_the_others_database(kept: Kept, role: str, of: str) -> None:
    entered = connect(address(role, kept.name if of else TEMPLATE), 1)
    with pytest.raises(DBAPIError, match="CONNECT privilege"):
        entered.connect()
    entered.dispose()


def test_a_database_that_forgot_something_is_told_from_one_that_grew(
    kept: Kept, tmp_path: Path
) -> None:
    HeadFile(tmp_path).check(kept.store.head())
    kept.store.set_kill(3, "", True, "ann", "")
    first = kept.store.head()
    kept.store.reserve_withdrawal(UUID(int=2), 7, "BTC", 5, YES)
    second = kept.store.head()
    assert (first, second) == (Head(1, 0), Head(1, 1))
    HeadFile(tmp_path).keep(first)
    HeadFile(tmp_path).check(second)
    HeadFile(tmp_path).keep(second)
    HeadFile(tmp_path).check(second)
    for older in (first, Head(0, 1)):
        with pytest.raises(DatabaseIsOlder, match="had reached change 1 with 1;"):
            HeadFile(tmp_path).check(older)


def test_everything_is_found_again_at_a_start(kept: Kept) -> None:
    store = kept.store
    store.set_profile(7, "vip", 2, "ann", "")
    store.set_target(7, "BTC-USDT", Asset.QUOTE, 900, "ann", "")
    store.set_target(7, "BTC-USDT", Asset.BASE, 5, "ann", "")
    store.set_target(7, "BTC-USDT", Asset.BASE, 0, "ann", "")
    first = store.set_kill(2, "BTC-USDT", True, "ann", "")
    store.confirm_kill(2, "BTC-USDT", first, "BTC-USDT")
    everything = store.set_kill(3, "", True, "ann", "")
    store.confirm_kill(3, "", everything, "ETH-USDT")
    store.confirm_kill(3, "", everything, "BTC-USDT")
    second = store.set_kill(2, "BTC-USDT", False, "ann", "")
    # What was confirmed belongs to the switch as it was then.
    store.confirm_kill(2, "BTC-USDT", first, "BTC-USDT")
    store.confirm_setting("BTC-USDT", 7, EngineLimits(1, 2, 3))
    store.confirm_setting("BTC-USDT", 7, EngineLimits(4, 5, 6))
    stored = store.load()
    assert stored.profiles == {7: ("vip", 2)}
    assert stored.targets == {(7, "BTC-USDT", Asset.QUOTE): 900}
    assert stored.kills == {
        (2, "BTC-USDT"): KillState(False, second, frozenset()),
        (3, ""): KillState(True, everything, frozenset({"BTC-USDT", "ETH-USDT"})),
    }
    assert stored.settings == {("BTC-USDT", 7): EngineLimits(4, 5, 6)}


def test_kept_holdings_never_go_back(kept: Kept) -> None:
    kept.store.keep_holdings("BTC-USDT", 10, b"ten")
    kept.store.keep_holdings("BTC-USDT", 5, b"five")
    assert kept.store.load().followed == {"BTC-USDT": b"ten"}
    kept.store.keep_holdings("BTC-USDT", 11, b"eleven")
    assert kept.store.load().followed == {"BTC-USDT": b"eleven"}


def test_a_withdrawal_counts_for_a_day_and_once(kept: Kept) -> None:
    store, clock = kept.store, kept.clock
    one, two = UUID(int=1), UUID(int=2)
    assert store.reserve_withdrawal(one, 7, "USDT", 60, YES) == RiskReason.UNSPECIFIED
    assert store.reserve_withdrawal(one, 7, "USDT", 60, YES) == RiskReason.UNSPECIFIED
    assert store.reserve_withdrawal(two, 8, "USDT", 30, YES) == RiskReason.UNSPECIFIED
    assert (store.withdrawn("USDT", 7), store.withdrawn("USDT"), store.withdrawn("BTC")) == (
        60,
        90,
        0,
    )
    clock.now_ns += DAY_NS - 1_000
    assert store.withdrawn("USDT", 7) == 60
    clock.now_ns += 1_000
    assert store.withdrawn("USDT") == 0


def test_an_id_stands_for_one_withdrawal(kept: Kept) -> None:
    store, one = kept.store, UUID(int=1)
    store.reserve_withdrawal(one, 7, "USDT", 60, YES)
    for account, asset, units in ((8, "USDT", 60), (7, "BTC", 60), (7, "USDT", 61)):
        reason = store.reserve_withdrawal(one, account, asset, units, YES)
        assert reason == RiskReason.WITHDRAWAL_REUSED
    assert store.release_withdrawal(one)
    assert not store.release_withdrawal(one)
    assert not store.release_withdrawal(UUID(int=9))
    assert store.withdrawn("USDT", 7) == 0
    assert store.reserve_withdrawal(one, 7, "USDT", 60, YES) == RiskReason.WITHDRAWAL_REUSED


def test_two_withdrawals_at_once_cannot_pass_by_each_other(kept: Kept) -> None:
    reasons: list[RiskReason] = []

    def judge(mine: int, total: int) -> RiskReason:
        assert mine == total
        broken = mine + 60 > 100
        return RiskReason.DAILY_WITHDRAWAL_LIMIT if broken else RiskReason.UNSPECIFIED

    def withdraw(number: int) -> None:
        reasons.append(kept.store.reserve_withdrawal(UUID(int=number), 7, "USDT", 60, judge))

    threads = [threading.Thread(target=withdraw, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reasons) == [RiskReason.UNSPECIFIED] + [RiskReason.DAILY_WITHDRAWAL_LIMIT] * 3
    assert kept.store.withdrawn("USDT", 7) == 60
