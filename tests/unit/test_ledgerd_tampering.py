"""No stored value is beyond an auditor: every column of every table, every row, every extra row.

The tables and columns are read from the database itself, so that whoever adds one adds what finds
it changed, or says here why nothing has to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from exchange.refusal import Refusal
from ledgerd.audit import verify
from ledgerd.custody.journal import Change, Subject, event_hash
from ledgerd.custody.models import REPLAYED
from ledgerd.custody.proof import verify_money
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody
from ledgerd.trail import verifying
from ledgerd.trail.replay import Event, Replay, Written, plain_row, told
from tests.books import TestBooks, fresh_books, superuser
from tests.custody import NO_LIMITS, Desk, fresh_desk
from tests.funds import FundsDoor, door_over
from tests.unit.test_ledgerd_audit import busy

EXEMPT = {
    "alembic_version": "which migrations were made: alembic's own, and no statement about money",
}
OF_CUSTODY = {str(model.__tablename__) for model in REPLAYED}
OTHER_VALUES = {
    "smallint": ("{c} + 1", "{c} - 1"),
    "integer": ("{c} + 1", "{c} - 1"),
    "bigint": ("{c} + 1", "{c} - 1"),
    "character varying": ("{c} || 'x'",),
    "bytea": (r"{c} || '\x00'::bytea",),
    "uuid": ("md5({c}::text)::uuid",),
    "boolean": ("NOT {c}",),
}
"""By type of a column: what may stand there instead, the first that the table's CHECKs allow."""
NEW_VALUES = {"character varying": "{c} || 'x'", "uuid": "md5({c}::text)::uuid"}
COLUMNS = """
    SELECT table_name, column_name, data_type FROM information_schema.columns
    WHERE table_schema = 'public' ORDER BY table_name, ordinal_position
"""
UNIQUE = """
    SELECT indrelid::regclass::text, attname, indisprimary,
        attnum = indkey[indnkeyatts - 1] AS is_last
    FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
    WHERE indisunique AND indrelid::regclass::text = ANY(%s)
    ORDER BY 1, array_position(indkey, attnum)
"""


class Generous:
    """riskd, as far as it counts and refuses nothing."""

    def reserve(self, made: UUID, account: int, asset: str, amount_units: int) -> Refusal | None:
        return None

    def release(self, made: UUID) -> None:
        return


@dataclass
class Thief:
    """Every right in the database, and a copy of all that was there."""

    books: TestBooks
    engine: Engine
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    """By table: each column's type."""
    keys: dict[str, list[str]] = field(default_factory=dict)
    lasts: dict[str, set[str]] = field(default_factory=dict)
    """By table: the last column of each unique index; another value makes another row."""

    def __post_init__(self) -> None:
        with self.connected() as connection:
            for table, column, kind in connection.exec_driver_sql(COLUMNS).fetchall():
                if table not in EXEMPT:
                    self.columns.setdefault(table, {})[column] = kind
            given = (list(self.columns),)
            for table, column, primary, last in connection.exec_driver_sql(UNIQUE, given):
                if primary:
                    self.keys.setdefault(table, []).append(column)
                if last:
                    self.lasts.setdefault(table, set()).add(column)
            connection.exec_driver_sql("CREATE SCHEMA saved")
            for table in self.columns:
                statement = f"CREATE TABLE saved.{table} AS SELECT * FROM {table}"
                connection.exec_driver_sql(statement)

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            # Triggers and foreign keys are off for whoever may say so.
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            yield connection

    def row(self, table: str, order: str) -> str:
        """Return a condition on one row: the first or the last by key."""
        key = ", ".join(self.keys[table])
        by = ", ".join(f"{column} {order}" for column in self.keys[table])
        return f"({key}) = (SELECT {key} FROM saved.{table} ORDER BY {by} LIMIT 1)"

    def complaints(self, table: str, statement: str) -> list[str]:
        """Return what an audit says after a statement; put the table right again."""
        with self.connected() as connection:
            assert connection.exec_driver_sql(statement).rowcount == 1, statement
        try:
            return [*verify(self.books.engine).complaints, *verify_money(self.books.engine)]
        finally:
            with self.connected() as connection:
                connection.exec_driver_sql(f"DELETE FROM {table}")
                connection.exec_driver_sql(f"INSERT INTO {table} SELECT * FROM saved.{table}")

    def changed(self, table: str, column: str, order: str) -> list[str]:
        """Change one value; return what an audit says."""
        for value in OTHER_VALUES[self.columns[table][column]]:
            new = value.format(c=column)
            statement = f"UPDATE {table} SET {column} = {new} WHERE {self.row(table, order)}"
            try:
                return self.complaints(table, statement)
            except IntegrityError:
                continue
        raise AssertionError(f"no other value for {table}.{column} is allowed")

    def copied(self, table: str, order: str) -> list[str]:
        """Add a copy of a row under another key; return what an audit says."""
        parts = []
        for column, kind in self.columns[table].items():
            new = NEW_VALUES.get(kind, f"(SELECT max({column}) + 1 FROM {table})")
            parts.append(new.format(c=column) if column in self.lasts[table] else column)
        # PostgreSQL takes a smallint from an integer that fits.
        statement = f"INSERT INTO {table} SELECT {', '.join(parts)} FROM {table}"
        return self.complaints(table, f"{statement} WHERE {self.row(table, order)}")


def eventful(door: FundsDoor) -> None:
    """Put rows of every sort into the tables of custody."""
    door.funded(1, "10")
    door.listed(1)
    door.listed(1, "outside2")
    paid = door.answer("RequestWithdrawal", **door.wanted(1, amount="0.1")).withdrawal
    large = door.answer("RequestWithdrawal", **door.wanted(1, amount="7")).withdrawal
    door.answer("ApproveWithdrawal", id=large.id, approver="bob", digest=large.digest)
    door.rounds(8)
    assert door.state(paid.id) == "CONFIRMED"
    assert door.state(large.id) == "AWAITING_APPROVAL"


@pytest.fixture(scope="module")
def thief() -> Iterator[Thief]:
    with TemporaryDirectory(prefix="holdfast-chain-") as folder, fresh_books() as books:
        busy(books)
        custody = SimulatedCustody(Path(folder) / "chain.log", 1, ["BTC", "USDT"], CALM)
        with door_over(books, custody, limiter=Generous()) as door:
            eventful(door)
        engine = superuser(books)
        yield Thief(books, engine)
        assert verify(books.engine).complaints == verify_money(books.engine) == []
        engine.dispose()


def test_the_books_have_rows_in_every_table_and_are_sound(thief: Thief) -> None:
    with thief.connected() as connection:
        for table in thief.columns:
            count = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar()
            assert count, f"the test put nothing into {table}"
    assert verify(thief.books.engine).complaints == verify_money(thief.books.engine) == []
    assert thief.columns.keys() >= OF_CUSTODY


@pytest.mark.parametrize("order", ["ASC", "DESC"])
def test_every_changed_value_is_found_and_named(thief: Thief, order: str) -> None:
    missed = []
    for table, columns in thief.columns.items():
        for column in columns:
            found = thief.changed(table, column, order)
            if column in thief.keys[table] or table not in OF_CUSTODY:
                named = bool(found)
            else:
                named = any(f"{table} " in said and f": {column} is" in said for said in found)
            if not named:
                missed.append((table, column, found))
    assert missed == []


@pytest.mark.parametrize("order", ["ASC", "DESC"])
def test_every_removed_row_is_missed_and_named(thief: Thief, order: str) -> None:
    missed = []
    for table in thief.columns:
        statement = f"DELETE FROM {table} WHERE {thief.row(table, order)}"
        found = thief.complaints(table, statement)
        if not any(f"{table} " in said or table not in OF_CUSTODY for said in found):
            missed.append((table, found))
    assert missed == []


@pytest.mark.parametrize("order", ["ASC", "DESC"])
def test_every_invented_row_is_found_and_named(thief: Thief, order: str) -> None:
    missed = []
    for table in thief.columns:
        found = thief.copied(table, order)
        if not any(f"{table} " in said or table not in OF_CUSTODY for said in found):
            missed.append((table, found))
    assert missed == []


# Beyond single rows.


def said_of(desk: Desk) -> list[str]:
    return [*verify(desk.books.engine).complaints, *verify_money(desk.books.engine)]


def test_what_a_step_found_changed_is_not_believed_for_having_been_written_again() -> None:
    with fresh_desk() as desk:
        desk.funded(1, 5_000)
        desk.listed(1)
        asked = desk.asked(1, 500)
        desk.withdrawals.request(asked, NO_LIMITS)
        while desk.state(asked.id) != "SENT":
            desk.withdrawals.advance()
        thief = superuser(desk.books)
        with thief.begin() as connection:
            connection.exec_driver_sql("UPDATE withdrawals SET transaction_id = 'mine'")
        thief.dispose()
        assert desk.paid_out(asked.id).state.name == "CONFIRMED"
        (said,) = said_of(desk)
        assert f"withdrawals {asked.id} had transaction_id 'mine' before that" in said


def test_a_forged_event_with_right_hashes_is_not_what_was_sealed() -> None:
    with fresh_desk() as desk:
        made = desk.listed(1)
        with desk.books.engine.begin() as connection:
            query = "SELECT number, hash FROM money_events ORDER BY number DESC LIMIT 1"
            number, head = connection.exec_driver_sql(query).one()
            forged = replace(made, id=desk.books.new_id(), address="thief")
            values = plain_row(
                {field.name: getattr(forged, field.name) for field in fields(forged)}
            )
            wrote = told([Written("withdrawal_addresses", {"id": values.pop("id")}, {}, values)])
            change = Change(forged.id, Subject.ADDRESS, 0, 1, "user 1", "listed", forged.content)
            hashed = event_hash(bytes(head), number + 1, change, 1, wrote)
            row = [number + 1, forged.id, 3, 0, 1, "user 1", "listed", 1, False, forged.content]
            marks = ", ".join(["%s"] * 13)
            statement = f"INSERT INTO money_events VALUES ({marks})"
            connection.exec_driver_sql(statement, (*row, bytes(head), hashed, wrote))
            statement = f"INSERT INTO withdrawal_addresses VALUES ({marks[: 9 * 4 - 2]})"
            connection.exec_driver_sql(statement, (str(forged.id), *values.values()))
        sentence = (
            f"the journal of money ends with event {number + 1}; what is sealed says {number}"
        )
        assert said_of(desk) == [sentence]


def test_a_long_journal_is_played_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    with fresh_desk() as desk:
        for owner in (1, 2, 3):
            desk.funded(owner, 5_000)
            desk.listed(owner, f"outside{owner}")
        for page_events in (1, 2, 5):
            monkeypatch.setattr(verifying, "PAGE_EVENTS", page_events)
            assert said_of(desk) == []
        thief = superuser(desk.books)
        with thief.begin() as connection:
            connection.exec_driver_sql("UPDATE deposits SET owner_id = 9 WHERE owner_id = 2")
            connection.exec_driver_sql("UPDATE withdrawal_addresses SET usable_ns = 1")
        thief.dispose()
        assert len(said_of(desk)) == 4


@pytest.mark.parametrize("wrote", ["x", "[1]", '[["deposits",{},{},{}]]', '[["deposits",1,2,3]]'])
def test_what_no_event_ever_told_is_a_complaint_and_no_crash(wrote: str) -> None:
    said: list[str] = []
    Replay(said.append).take(Event(7, UUID(int=1), int(Subject.DEPOSIT), 0, 1, b"", wrote))
    assert said == ["event 7 tells no rows that can be read"]
