"""Events that say what was written to which row, and a sealed note of where they end.

Rows from before get an event of their own that says what they hold at the upgrade.
"""

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
from alembic import op

from ledgerd.books.entries import Entries
from ledgerd.chart import TransferKind
from ledgerd.custody.journal import START, Change, Subject, event_hash
from ledgerd.trail.replay import Written, plain_row, subject_of, told

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    # A default for the rows there are; those to come have to say it.
    "ALTER TABLE money_events ADD COLUMN wrote varchar NOT NULL DEFAULT ''",
    "ALTER TABLE money_events ALTER COLUMN wrote DROP DEFAULT",
    """CREATE TABLE money_tips (
        number bigint PRIMARY KEY, hash bytea NOT NULL, transfer_id bigint NOT NULL)""",
    "CREATE INDEX money_tips_transfer ON money_tips (transfer_id)",
    """CREATE TRIGGER money_tips_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON money_tips
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()""",
    "GRANT SELECT, INSERT ON money_tips TO holdfast_service",
)
TABLES = {
    "deposit_addresses": (Subject.DEPOSIT_ADDRESS, ("address",), "0", "1"),
    "deposits": (Subject.DEPOSIT, ("id",), "state", "state"),
    "withdrawal_addresses": (
        Subject.ADDRESS,
        ("id",),
        "1 + sign(removed_ns)::int",
        "1 + sign(removed_ns)::int",
    ),
    "withdrawals": (Subject.WITHDRAWAL, ("id",), "state", "state"),
    "withdrawal_approvals": (
        Subject.WITHDRAWAL,
        ("withdrawal_id", "approver"),
        "(SELECT state FROM withdrawals WHERE id = withdrawal_id)",
        "(SELECT state FROM withdrawals WHERE id = withdrawal_id)",
    ),
    "withdrawal_reservations": (Subject.RESERVATION, ("id",), "0", "state"),
    "custody_cursors": (Subject.CURSOR, ("name",), "0", "0"),
}
"""By table: kind of its events, its key, and the states before and after, as SQL."""
CONTENT = "SELECT content FROM money_events WHERE subject = %s AND kind = %s ORDER BY number DESC"
EVENT = (
    "INSERT INTO money_events (number, subject, kind, state_from, state_to, actor, reason, time_ns,"
    " alarm, content, previous, hash, wrote)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)


def upgrade() -> None:
    """Make room; tell the rows there are; seal the end of the journal."""
    for statement in STATEMENTS:
        op.execute(statement)
    connection = op.get_bind().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    row = connection.execute(
        "SELECT number, hash FROM money_events ORDER BY number DESC LIMIT 1"
    ).fetchone()
    number, head = (0, START) if row is None else (int(row[0]), bytes(row[1]))
    now_ns = time.time_ns()
    for change, wrote in _imported(connection):
        number, previous = number + 1, head
        head = event_hash(previous, number, change, now_ns, wrote)
        values = (change.state_from, change.state_to, change.actor, change.reason, now_ns, False)
        rest = (change.content, previous, head, wrote)
        connection.execute(EVENT, (number, change.subject, int(change.kind), *values, *rest))
    if number:
        entries = Entries(connection)
        entry = entries.entry(TransferKind.JOURNAL, now_ns)
        entries.commit.add("money_tips", [(number, head, entry)])
        entries.write(time.time_ns)


def _imported(connection: psycopg.Connection[Any]) -> Iterator[tuple[Change, str]]:
    """Give an event for each row, with what it holds. The content stays what it last was.

    So a row that was tampered with before the upgrade is not made true by it.
    """
    for table, (kind, names, state_from, state_to) in TABLES.items():
        query: Any = f"SELECT {state_from}, {state_to}, {table}.* FROM {table} ORDER BY 3"
        with connection.cursor(name=f"imported_{table}") as cursor:
            cursor.execute(query)
            columns = [column.name for column in cursor.description or ()][2:]
            for before, after, *values in cursor:
                row = plain_row(dict(zip(columns, values, strict=True)))
                key = {name: row.pop(name) for name in names}
                subject = subject_of(tuple(key.values()))
                told_row = told([Written(table, key, {}, row)])
                content = _content(connection, subject, kind)
                # An approval of a withdrawal that is gone is of none, and is found as such.
                states = before or 0, after or 0
                yield Change(subject, kind, *states, "migration", "imported", content), told_row


def _content(connection: psycopg.Connection[Any], subject: UUID, kind: Subject) -> bytes:
    row = connection.execute(CONTENT, (subject, int(kind))).fetchone()
    return b"" if row is None else bytes(row[0])
