"""What the risk service remembers, in PostgreSQL. Every write of the service is a method here.

Each method is one transaction. Changes of limits, profiles, targets and kill switches are made one
at a time (an advisory lock) and leave a row that nobody can alter. What is only derived from feeds
is written together with how far they were read.

Nothing about moves of money is kept: the ledger's instructions are their record.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, create_engine, func, make_url, text
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, col, select

from exchange.enums import Asset
from exchange.refusal import Code, Refusal, Refused
from riskd.limits import (
    DAY_NS,
    EngineLimits,
    LimitKind,
    LimitPlace,
    LimitSubject,
    RiskReason,
    RuleBook,
    RuleKey,
)
from riskd.limits import Change as LimitChange
from riskd.storage import models
from riskd.storage.head import NOTHING, Head

GONE: Final = (OperationalError, InterfaceError, PoolTimeout)
"""The database does not answer; the next call may find it again."""
_WRITERS: Final = 4851900103
_WITHDRAWALS: Final = 4851900104

Account = int
Pair = str


def _driven(url: str) -> URL:
    given = make_url(url)
    return given.set(drivername="postgresql+psycopg") if given.drivername == "postgresql" else given


def connect(url: str, pool_size: int = 4) -> Engine:
    """Return a pool of connections at READ COMMITTED. Nothing is connected yet."""
    return create_engine(
        _driven(url),
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "riskd",
            "options": "-c lock_timeout=10s -c statement_timeout=30s",
        },
    )


def migrate(url: str, revision: str = "head") -> None:
    """Bring the tables to a revision, as a role that may make the schema.

    Where they are at the newest one already, any role will do that may read.
    """
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    settings.attributes["url"] = _driven(url)
    if revision != "head" or not _newest_revision(url, settings):
        command.upgrade(settings, revision)


def _newest_revision(url: str, settings: Config) -> bool:
    engine = connect(url, 1)
    try:
        with engine.connect() as connection:
            options = {"version_table_schema": models.SCHEMA}
            found = MigrationContext.configure(connection, opts=options).get_current_revision()
    finally:
        engine.dispose()
    return found == ScriptDirectory.from_config(settings).get_current_head()


@dataclass(frozen=True, slots=True)
class KillState:
    """A kill switch as it is stored."""

    killed: bool
    change: int
    confirmed: frozenset[Pair]


@dataclass(slots=True)
class Stored:
    """Everything a starting service reads."""

    rules: RuleBook
    profiles: dict[Account, tuple[str, int]] = field(default_factory=dict)
    targets: dict[tuple[Account, Pair, Asset], int] = field(default_factory=dict)
    kills: dict[tuple[int, str], KillState] = field(default_factory=dict)
    settings: dict[tuple[Pair, Account], EngineLimits] = field(default_factory=dict)
    followed: dict[Pair, bytes] = field(default_factory=dict)
    head: Head = NOTHING


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the audit trail."""

    id: int
    time_ns: int
    actor: str
    note: str
    subject: str
    content: str


class Store:
    """The tables, over a pool of connections."""

    def __init__(self, engine: Engine, clock: Callable[[], int]) -> None:
        self._engine = engine
        self._clock = clock

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with Session(self._engine) as session, session.begin():
            session.connection().execute(text(f"SELECT pg_advisory_xact_lock({_WRITERS})"))
            yield session

    # Reading.

    def head(self) -> Head:
        """Return how much was decided so far."""
        with Session(self._engine) as session:
            return _head(session)

    def load(self) -> Stored:
        """Return everything as it is now."""
        with Session(self._engine) as session:
            stored = Stored(_rules(session, None), head=_head(session))
            for profile in session.exec(select(models.Profile)):
                stored.profiles[profile.account] = (profile.tier, profile.role)
            for target in session.exec(select(models.Target)):
                stored.targets[target.account, target.pair, Asset(target.asset)] = target.units
            for kill in session.exec(select(models.Kill)):
                confirmed = frozenset(kill.confirmed.split())
                state = KillState(kill.killed, kill.change_id, confirmed)
                stored.kills[kill.scope, kill.name] = state
            for item in session.exec(select(models.Setting)):
                stored.settings[item.pair, item.account] = EngineLimits(
                    item.largest_order_lots, item.largest_notional_units, item.most_open_orders
                )
            for read in session.exec(select(models.Followed)):
                stored.followed[read.pair] = read.state
        return stored

    def limits_at(self, version: int) -> RuleBook:
        """Return the limits of a version. Raises Refused when there is none such yet."""
        with Session(self._engine) as session:
            newest = _newest(session)
            if not 0 <= version <= newest:
                limit = f"from 0 to {newest}"
                raise Refused(Refusal.of_field("VERSION_UNKNOWN", "version", version, limit))
            return _rules(session, version)

    def changes(self, before: int, count: int) -> list[Change]:
        """Return changes, the newest first, below a number (0: all)."""
        query = select(models.Change).order_by(col(models.Change.id).desc()).limit(count)
        if before:
            query = query.where(col(models.Change.id) < before)
        with Session(self._engine) as session:
            return [
                Change(row.id or 0, row.time_ns, row.actor, row.note, row.subject, row.content)
                for row in session.exec(query)
            ]

    # Changes.

    def _changed(self, session: Session, who: tuple[str, str], subject: str, content: Any) -> int:
        actor, note = who
        row = models.Change(
            time_ns=self._clock(),
            actor=actor,
            note=note,
            subject=subject,
            content=json.dumps(content, sort_keys=True),
        )
        session.add(row)
        session.flush()
        assert row.id is not None
        return row.id

    def change_limits(
        self, changes: Iterable[LimitChange], expected_version: int, actor: str, note: str
    ) -> RuleBook:
        """Make one new version. Raises Refused when the present one is not the expected one."""
        with self._writing() as session:
            before = _rules(session, None)
            if expected_version not in {0, before.version}:
                raise Refused(
                    Refusal(
                        Code.FAILED_PRECONDITION,
                        "VERSION_MOVED",
                        f"the limits are at version {before.version} by now, not"
                        f" {expected_version}: look again",
                        "expected_version",
                        str(expected_version),
                        str(before.version),
                    )
                )
            wanted = list(changes)
            after = before.changed(wanted)
            content = {
                "version": after.version,
                "changes": [
                    [*_plain(item.key), before.values.get(item.key), item.value] for item in wanted
                ],
            }
            change_id = self._changed(session, (actor, note), "limits", content)
            for item in wanted:
                key = _columns(item.key)
                row = models.LimitValue(
                    version=after.version, value=item.value, change_id=change_id, **key
                )
                session.add(row)
        return after

    def set_profile(self, account: int, tier: str, role: int, actor: str, note: str) -> int:
        """Give an account a tier and a role; return the number of the change."""
        with self._writing() as session:
            row = session.get(models.Profile, account)
            before = [row.tier, row.role] if row else None
            content = {"account": account, "before": before, "after": [tier, role]}
            session.merge(models.Profile(account=account, tier=tier, role=role))
            return self._changed(session, (actor, note), "profile", content)

    def set_target(
        self, account: int, pair: str, asset: Asset, units: int, actor: str, note: str
    ) -> int:
        """Promise a market maker money in a pair; return the number of the change."""
        with self._writing() as session:
            row = session.get(models.Target, (account, pair, int(asset)))
            content = {
                "account": account,
                "pair": pair,
                "asset": int(asset),
                "before": row.units if row else 0,
                "after": units,
            }
            if units:
                session.merge(
                    models.Target(account=account, pair=pair, asset=int(asset), units=units)
                )
            elif row is not None:
                session.delete(row)
            return self._changed(session, (actor, note), "target", content)

    def set_kill(self, scope: int, name: str, killed: bool, actor: str, note: str) -> int:
        """Set or lift a kill switch, confirmed by nobody yet; return the number of the change."""
        with self._writing() as session:
            row = session.get(models.Kill, (scope, name))
            before = row.killed if row else False
            content = {"scope": scope, "name": name, "before": before, "after": killed}
            change_id = self._changed(session, (actor, note), "kill", content)
            session.merge(
                models.Kill(
                    scope=scope, name=name, killed=killed, change_id=change_id, confirmed=""
                )
            )
            return change_id

    def confirm_kill(self, scope: int, name: str, change_id: int, pair: str) -> None:
        """Note that a pair's engine has done a kill, unless it was changed again meanwhile."""
        with self._writing() as session:
            row = session.get(models.Kill, (scope, name))
            if row is not None and row.change_id == change_id:
                row.confirmed = " ".join(sorted({*row.confirmed.split(), pair}))
                session.add(row)

    def confirm_setting(self, pair: str, account: int, limits: EngineLimits) -> None:
        """Note what a pair's engine confirmed (account 0: the width of its price band)."""
        with Session(self._engine) as session, session.begin():
            session.merge(models.Setting(pair=pair, account=account, **limits._asdict()))

    def keep_holdings(self, pair: str, cursor: int, state: bytes) -> None:
        """Keep what a feed said up to a number; never go back behind what is kept."""
        given = {"pair": pair, "cursor": cursor, "state": state}
        statement = insert(models.Followed).values(given)
        newer = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=["pair"],
            set_={"cursor": newer.cursor, "state": newer.state},
            where=col(models.Followed.cursor) < newer.cursor,
        )
        with Session(self._engine) as session, session.begin():
            session.connection().execute(statement)

    # Withdrawals.

    def withdrawn(self, asset: str, account: int = 0) -> int:
        """Return what was withdrawn of an asset in the last 24 hours, by one account or all."""
        with Session(self._engine) as session:
            return self._withdrawn(session, asset, account)

    def _withdrawn(self, session: Session, asset: str, account: int) -> int:
        query = select(func.coalesce(func.sum(models.Withdrawal.amount_units), 0)).where(
            models.Withdrawal.asset == asset,
            models.Withdrawal.time_ns > self._clock() - DAY_NS,
            col(models.Withdrawal.released).is_(False),
        )
        if account:
            query = query.where(models.Withdrawal.account == account)
        return int(session.exec(query).one())

    def reserve_withdrawal(
        self,
        request: UUID,
        account: int,
        asset: str,
        amount_units: int,
        judge: Callable[[int, int], RiskReason],
    ) -> RiskReason:
        """Count a withdrawal if `judge(withdrawn by the account, by all)` has no reason not to.

        One at a time, so that two cannot pass by each other. The same id again is answered as
        counted; with other content, or after a release, it is refused.
        """
        with Session(self._engine) as session, session.begin():
            session.connection().execute(text(f"SELECT pg_advisory_xact_lock({_WITHDRAWALS})"))
            known = session.get(models.Withdrawal, request)
            if known is not None:
                same = (known.account, known.asset, known.amount_units) == (
                    account,
                    asset,
                    amount_units,
                )
                counted = same and not known.released
                return RiskReason.UNSPECIFIED if counted else RiskReason.WITHDRAWAL_REUSED
            reason = judge(
                self._withdrawn(session, asset, account), self._withdrawn(session, asset, 0)
            )
            if reason == RiskReason.UNSPECIFIED:
                session.add(
                    models.Withdrawal(
                        id=request,
                        account=account,
                        asset=asset,
                        amount_units=amount_units,
                        time_ns=self._clock(),
                        released=False,
                    )
                )
            return reason

    def release_withdrawal(self, request: UUID) -> bool:
        """Count a withdrawal no longer; return False when it did not count."""
        with Session(self._engine) as session, session.begin():
            known = session.get(models.Withdrawal, request)
            if known is None or known.released:
                return False
            known.released = True
            session.add(known)
            return True


def _plain(key: RuleKey) -> list[int | str]:
    return [int(key.kind), int(key.subject), key.subject_name, int(key.place), key.place_name]


def _columns(key: RuleKey) -> dict[str, Any]:
    names = ("kind", "subject", "subject_name", "place", "place_name")
    return dict(zip(names, _plain(key), strict=True))


def _head(session: Session) -> Head:
    changes = session.exec(select(func.max(models.Change.id))).one() or 0
    withdrawals = session.exec(select(func.count(col(models.Withdrawal.id)))).one()
    return Head(changes, withdrawals)


def _newest(session: Session) -> int:
    return int(session.exec(select(func.coalesce(func.max(models.LimitValue.version), 0))).one())


def _rules(session: Session, version: int | None) -> RuleBook:
    newest = _newest(session) if version is None else version
    row = models.LimitValue
    keys = [
        col(column)
        for column in (row.kind, row.subject, row.subject_name, row.place, row.place_name)
    ]
    query = (
        select(row)
        .where(col(row.version) <= newest)
        .order_by(*keys, col(row.version).desc())
        .ext(distinct_on(*keys))
    )
    values = {
        RuleKey(
            LimitKind(found.kind),
            LimitSubject(found.subject),
            found.subject_name,
            LimitPlace(found.place),
            found.place_name,
        ): found.value
        for found in session.exec(query)
        if found.value is not None
    }
    return RuleBook(newest, values)
