"""One transaction of money that enters or leaves: state, event and transfers, or none of them.

Each `Step` holds the lock of the books' own stream from its first line to its commit. So what it
reads (a state, a sum of what was withdrawn, the last event) stays true until it is written, and a
process that dies anywhere before the commit has done nothing. A step never talks to a custodian:
what happens outside lies between two steps.

Rows of custody are written by `Step.insert` and `Step.update` only, and the event that follows
carries what they wrote. So `ledgerd.custody.proof` can play all events again and name every row and
column that is not what they made. Where the journal ends is sealed in the books' own stream, in the
same transaction (`money_tips`).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar
from uuid import UUID, uuid5

import psycopg
from sqlalchemy import Engine

from exchange.refusal import Refusal, Refused
from ledgerd.books.commit import Connection, Overdrawn
from ledgerd.books.entries import Entries, insufficient
from ledgerd.chart import AccountName, OwnerKind, Phase, Purpose, TransferKind
from ledgerd.ledger import at_connection
from ledgerd.trail.replay import Written, plain_row, told
from ledgerd.transfers import Leg, NewTransfer

DEADLOCK_RETRIES: Final = 8
START: Final = bytes(32)
"""What the first event is hashed onto."""
TRANSFERS: Final = UUID("6b6f6c64-6661-7374-8000-637573746f64")
"""Namespace of the ids of transfers that are made here."""
T = TypeVar("T")
log = logging.getLogger("ledgerd.custody")


class Subject(IntEnum):
    """What an event is about."""

    UNSPECIFIED = 0
    DEPOSIT = 1
    WITHDRAWAL = 2
    ADDRESS = 3
    NOTICE = 4
    """A payment that could not become a deposit."""
    DEPOSIT_ADDRESS = 5
    """Whose an address of ours is."""
    RESERVATION = 6
    """What riskd was asked to count."""
    CURSOR = 7
    """How many of the custodian's notices were looked at."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state, as it is told to the journal."""

    subject: UUID
    kind: Subject
    state_from: int
    state_to: int
    actor: str
    reason: str
    content: bytes
    alarm: bool = False


def digest_of(*content: object) -> bytes:
    """Return the digest of a content made of texts and integers."""
    return hashlib.sha256(json.dumps([str(part) for part in content]).encode()).digest()


def transfer_id(subject: UUID, step: str) -> UUID:
    """Return the id of the transfer that books one step of one subject."""
    return uuid5(TRANSFERS, f"{subject} {step}")


class Step:
    """One transaction while it is put together."""

    def __init__(self, connection: Connection, clock: Callable[[], int]) -> None:
        self.connection = connection
        self.entries = Entries(connection)
        self.now_ns = clock()
        self.alarms: list[Change] = []
        self._written: list[Written] = []
        """What no event tells yet."""
        self._tip: tuple[int, bytes] | None = None
        """Number and hash of the last event, once this step has recorded one."""

    def row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row of a query."""
        statement: Any = query
        return self.connection.execute(statement, values).fetchone()

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        statement: Any = query
        return self.connection.execute(statement, values).fetchall()

    def insert(self, table: str, key: Mapping[str, object], values: Mapping[str, object]) -> None:
        """Add a row of custody: all its columns, in two parts. The next event tells it."""
        columns = {**key, **values}
        marks = ", ".join(["%s"] * len(columns))
        self._write(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", [*columns.values()]
        )
        self._written.append(Written(table, plain_row(key), {}, plain_row(values)))

    def update(self, table: str, key: Mapping[str, object], values: Mapping[str, object]) -> None:
        """Change columns of a row of custody that there is. The next event tells it."""
        where = " AND ".join(f"{name} = %s" for name in key)
        before = self.row(
            f"SELECT {', '.join(values)} FROM {table} WHERE {where} FOR UPDATE", *key.values()
        )
        assert before is not None, f"{table} has no {key}"
        sets = ", ".join(f"{name} = %s" for name in values)
        self._write(f"UPDATE {table} SET {sets} WHERE {where}", [*values.values(), *key.values()])
        found = plain_row(dict(zip(values, before, strict=True)))
        self._written.append(Written(table, plain_row(key), found, plain_row(values)))

    def _write(self, statement: str, values: Sequence[object]) -> None:
        given: Any = statement
        self.connection.execute(given, values)

    def open(self, *names: AccountName) -> None:
        """Open the accounts that are not open yet."""
        self.entries.opened(names, self.now_ns)

    def balance(self, name: AccountName) -> int:
        """Return what an account holds; 0 if it is not open."""
        account = self.entries.known([name]).get(name)
        row = self.row("SELECT amount FROM balances WHERE account_id = %s", account)
        return 0 if row is None else int(row[0])

    def hold(
        self, made: UUID, kind: TransferKind, source: AccountName, target: AccountName, amount: int
    ) -> None:
        """Set money aside on its way from source to target."""
        legs = (Leg(source, -amount), Leg(target, amount))
        self.entries.posted(NewTransfer(made, kind, legs, Phase.PENDING), self.now_ns)

    def resolve(self, made: UUID, held: UUID, kind: TransferKind, phase: Phase) -> None:
        """Post or void what was set aside."""
        transfer = NewTransfer(made, kind, phase=phase, pending_id=held)
        self.entries.posted(transfer, self.now_ns)

    def move(
        self, made: UUID, kind: TransferKind, source: AccountName, target: AccountName, amount: int
    ) -> None:
        """Move money at once."""
        legs = (Leg(source, -amount), Leg(target, amount))
        self.entries.posted(NewTransfer(made, kind, legs), self.now_ns)

    def record(self, change: Change) -> None:
        """Add a change of state to the journal, with the rows that were written for it."""
        number, previous = self._tip or self._last()
        wrote = told(self._written)
        self._written = []
        self._tip = number + 1, event_hash(previous, number + 1, change, self.now_ns, wrote)
        self._write(
            "INSERT INTO money_events (number, subject, kind, state_from, state_to, actor, reason,"
            " time_ns, alarm, content, previous, hash, wrote)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                *(number + 1, change.subject, int(change.kind), change.state_from),
                *(change.state_to, change.actor, change.reason, self.now_ns, change.alarm),
                *(change.content, previous, self._tip[1], wrote),
            ],
        )
        if change.alarm:
            self.alarms.append(change)

    def _last(self) -> tuple[int, bytes]:
        last = self.row("SELECT number, hash FROM money_events ORDER BY number DESC LIMIT 1")
        return (int(last[0]), bytes(last[1])) if last else (0, START)

    def finish(self, clock: Callable[[], int]) -> None:
        """Seal where the journal ends now, and write what was booked."""
        assert not self._written, f"no event tells {self._written}"
        if self._tip is not None:
            entry = self.entries.mark(TransferKind.JOURNAL, self.now_ns)
            self.entries.commit.add("money_tips", [(*self._tip, entry)])
        self.entries.write(clock)


def event_hash(
    previous: bytes, number: int, change: Change, time_ns: int, wrote: str = ""
) -> bytes:
    """Return the hash of an event. Those from before events told rows have none to tell."""
    subject = (number, change.subject, int(change.kind), change.state_from, change.state_to)
    rest = (change.actor, change.reason, time_ns, change.alarm, change.content.hex())
    rows = (wrote,) if wrote else ()
    return hashlib.sha256(previous + digest_of(*subject, *rest, *rows)).digest()


class MoneyBooks:
    """The writer's side of money that enters or leaves, over a pool of connections."""

    def __init__(self, engine: Engine, clock: Callable[[], int]) -> None:
        self._engine = engine
        self.clock = clock
        at_connection(engine)

    def done(self, work: Callable[[Step], T]) -> T:
        """Run one step, again when the database broke a deadlock at its cost.

        Raises Refused; and whatever the database raises, when nothing was done.
        """
        for attempt in range(DEADLOCK_RETRIES + 1):
            try:
                return self._once(work)
            except psycopg.errors.DeadlockDetected:
                if attempt == DEADLOCK_RETRIES:
                    raise
        raise AssertionError("unreachable")

    def _once(self, work: Callable[[Step], T]) -> T:
        pooled = self._engine.raw_connection()
        connection = pooled.driver_connection
        assert isinstance(connection, psycopg.Connection)
        try:
            step = Step(connection, self.clock)
            result = work(step)
            step.finish(self.clock)
            connection.commit()
        except Overdrawn as error:
            raise Refused(insufficient(error)) from error
        except psycopg.OperationalError:
            if connection.closed or connection.broken:
                pooled.invalidate()
            raise
        finally:
            pooled.close()
        for change in step.alarms:
            log.critical("%s %s: %s", change.kind.name.lower(), change.subject, change.reason)
        return result

    def read(self, work: Callable[[Connection], T]) -> T:
        """Read without taking the books' lock."""
        pooled = self._engine.raw_connection()
        connection = pooled.driver_connection
        assert isinstance(connection, psycopg.Connection)
        try:
            return work(connection)
        except psycopg.OperationalError:
            if connection.closed or connection.broken:
                pooled.invalidate()
            raise
        finally:
            pooled.close()


def funding(kind: OwnerKind, owner_id: int, asset: str) -> AccountName:
    """Name where an owner's deposits arrive and withdrawals start."""
    return AccountName(kind, owner_id, Purpose.FUNDING, asset)


def text_refusal(field: str, text: str, characters: int = 100) -> Refusal | None:
    """Return what is wrong with the name of a person or thing."""
    if not 0 < len(text) <= characters or not text.isprintable():
        limit = f"1 to {characters} printable characters"
        return Refusal.of_field("TEXT_INVALID", field, text, limit)
    return None
