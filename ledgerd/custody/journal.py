"""One transaction of money that enters or leaves: state, event and transfers, or none of them.

Each `Step` holds the lock of the books' own stream from its first line to its commit. So what it
reads (a state, a sum of what was withdrawn, the last event) stays true until it is written, and a
process that dies anywhere before the commit has done nothing. A step never talks to a custodian:
what happens outside lies between two steps.

`ledgerd.custody.proof` computes all events again and holds every state against its last event and
against the books.
"""

import hashlib
import json
import logging
from collections.abc import Callable
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

    def row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row of a query."""
        statement: Any = query
        return self.connection.execute(statement, values).fetchone()

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        statement: Any = query
        return self.connection.execute(statement, values).fetchall()

    def write(self, statement: str, *values: object) -> int:
        """Write; return how many rows that concerned."""
        given: Any = statement
        return self.connection.execute(given, values).rowcount

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
        """Add a change of state to the journal."""
        last = self.row("SELECT number, hash FROM money_events ORDER BY number DESC LIMIT 1")
        number, previous = (int(last[0]) + 1, bytes(last[1])) if last else (1, START)
        hashed = event_hash(previous, number, change, self.now_ns)
        self.write(
            "INSERT INTO money_events VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            *(number, change.subject, int(change.kind), change.state_from, change.state_to),
            *(change.actor, change.reason, self.now_ns, change.alarm),
            *(change.content, previous, hashed),
        )
        if change.alarm:
            self.alarms.append(change)


def event_hash(previous: bytes, number: int, change: Change, time_ns: int) -> bytes:
    """Return the hash of an event."""
    told = (number, change.subject, int(change.kind), change.state_from, change.state_to)
    rest = (change.actor, change.reason, time_ns, change.alarm, change.content.hex())
    return hashlib.sha256(previous + digest_of(*told, *rest)).digest()


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
            step.entries.write(self.clock)
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
