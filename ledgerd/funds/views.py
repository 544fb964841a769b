"""Reading what was decided about money that enters and leaves, for whoever asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from ledgerd.books.commit import Connection
from ledgerd.chart import EXCHANGE_OWNER, TRADERS, OwnerKind, Purpose
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.journal import Subject
from ledgerd.custody.withdrawal_rules import WithdrawalState

LISTED: Final = Subject.NOTICE
"""The last kind of event that is shown to people."""
_ADDRESS_STATES: Final = {1: "LISTED", 2: "REMOVED"}


@dataclass(frozen=True, slots=True)
class Event:
    """One change of state."""

    number: int
    subject: UUID
    kind: Subject
    state_from: int
    state_to: int
    actor: str
    reason: str
    time_ns: int
    alarm: bool
    hash: bytes


def state_name(kind: Subject, state: int) -> str:
    """Return a state in words; empty where there is none."""
    if kind == Subject.DEPOSIT:
        return DepositState(state).name
    if kind == Subject.WITHDRAWAL:
        return WithdrawalState(state).name
    return _ADDRESS_STATES.get(state, "") if kind == Subject.ADDRESS else ""


def events(
    connection: Connection, subject: UUID | None, *, alarms: bool, below: int, limit: int
) -> list[Event]:
    """Return events, newest first: of one subject or all, alarms only or all.

    Those beyond `LISTED` keep the trail of rows whole and tell nobody anything.
    """
    conditions, values = ["kind <= %s"], list[object]([int(LISTED)])
    if subject is not None:
        conditions.append("subject = %s")
        values.append(subject)
    if alarms:
        conditions.append("alarm")
    if below:
        conditions.append("number < %s")
        values.append(below)
    query: Any = (
        "SELECT number, subject, kind, state_from, state_to, actor, reason, time_ns, alarm, hash"
        f" FROM money_events WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT %s"
    )
    rows = connection.execute(query, (*values, limit)).fetchall()
    return [
        Event(
            number, made, Subject(kind), before, after, actor, reason, at_ns, alarm, bytes(hashed)
        )
        for number, made, kind, before, after, actor, reason, at_ns, alarm, hashed in rows
    ]


def counts(connection: Connection) -> list[tuple[Subject, str, int]]:
    """Return how many deposits and withdrawals are in each state."""
    found = []
    for kind, table in ((Subject.DEPOSIT, "deposits"), (Subject.WITHDRAWAL, "withdrawals")):
        query: Any = f"SELECT state, count(*) FROM {table} GROUP BY state ORDER BY state"
        for state, count in connection.execute(query):
            found.append((kind, state_name(kind, state), int(count)))
    return found


def alarm_count(connection: Connection) -> int:
    """Return how many alarms there ever were."""
    row = connection.execute("SELECT count(*) FROM money_events WHERE alarm").fetchone()
    assert row is not None
    return int(row[0])


def owner_kind(connection: Connection, owner_id: int) -> OwnerKind:
    """Return what the books know an owner number as; a user if they do not know it."""
    query = "SELECT owner_kind FROM accounts WHERE owner_id = %s AND owner_kind = ANY(%s) LIMIT 1"
    kinds = [int(kind) for kind in TRADERS]
    row = connection.execute(query, (owner_id, kinds)).fetchone()
    return OwnerKind.USER if row is None else OwnerKind(row[0])


def decimals(connection: Connection) -> dict[str, int]:
    """Return how finely each asset divides."""
    rows = connection.execute("SELECT code, decimals FROM assets ORDER BY code")
    return {str(code): int(places) for code, places in rows}


def booked_units(connection: Connection) -> dict[str, int]:
    """Return what the books say that the custodian holds, by asset."""
    query = (
        "SELECT asset, -amount FROM balances JOIN accounts ON id = account_id"
        " WHERE owner_kind = %s AND owner_id = %s AND purpose = %s"
    )
    given = (int(OwnerKind.EXCHANGE), EXCHANGE_OWNER, int(Purpose.CUSTODY))
    return {str(asset): int(units) for asset, units in connection.execute(query, given)}


def approvals(connection: Connection, made: Sequence[UUID]) -> dict[UUID, list[tuple[str, int]]]:
    """Return who approved each withdrawal as it is, and when."""
    query = (
        "SELECT withdrawal_id, approver, time_ns FROM withdrawal_approvals"
        " JOIN withdrawals ON id = withdrawal_id AND withdrawals.digest = "
        "withdrawal_approvals.digest WHERE withdrawal_id = ANY(%s) ORDER BY time_ns, approver"
    )
    found: dict[UUID, list[tuple[str, int]]] = {}
    for withdrawal, approver, time_ns in connection.execute(query, (list(made),)):
        found.setdefault(withdrawal, []).append((str(approver), int(time_ns)))
    return found
