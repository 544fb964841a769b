"""The database: what the tables are, who may do what to them, and a server that comes and goes."""

import os
import signal
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlmodel import SQLModel

from exchange.enums import Asset
from ledgerd.audit import one_moment
from ledgerd.books.entries import HELD
from ledgerd.chart import Phase, Purpose
from ledgerd.custody import models as custody_models
from ledgerd.database import OWNER, SERVICE, SUPERUSER, EmbeddedPostgres, connect, migrate
from ledgerd.ledger import EXPIRED
from ledgerd.models import POSTED
from tests.books import PAIR, TestBooks, fresh_books, server, user


def filled(books: TestBooks) -> None:
    """Put a row into every table of what is posted."""
    books.open(2, PAIR)
    books.deposit(1, "BTC", 1_000)
    books.ledger.post(
        [
            books.transfer(
                (user(1, "BTC"), -100),
                (user(1, "BTC", Purpose.FUNDING), 100),
                phase=Phase.PENDING,
                expires_ns=books.clock.now_ns + 1_000,
            )
        ]
    )
    books.clock.now_ns += 2_000
    assert len(books.ledger.expire()) == 1
    books.ledger.allot(books.new_id(), PAIR.pair, 1, Asset.BASE, 50)
    books.ledger.take_snapshot("BTC", lambda: bytes(16))
    books.clock.now_ns += 2 * 86_400 * 10**9
    books.ledger.close_day(date(2026, 1, 1))


@pytest.mark.parametrize("role", [SERVICE, OWNER, SUPERUSER])
def test_what_is_posted_cannot_be_changed_by_anyone(role: str) -> None:
    with fresh_books() as books:
        filled(books)
        engine = books.as_role(role)
        for table in POSTED:
            with engine.connect() as connection:
                count = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar()
                column = connection.exec_driver_sql(
                    "SELECT column_name FROM information_schema.columns"
                    f" WHERE table_name = '{table}' LIMIT 1"
                ).scalar()
            assert count, f"the test put nothing into {table}"
            for statement in (
                f"UPDATE {table} SET {column} = {column}",
                f"DELETE FROM {table}",
                f"TRUNCATE {table} CASCADE",
            ):
                with engine.connect() as connection, pytest.raises(ProgrammingError) as caught:
                    connection.exec_driver_sql(statement)
                assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege)
        engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM balances",
        "UPDATE balances SET minimum = -1",
        "DELETE FROM streams",
        "UPDATE streams SET pair = 'X'",
        "DROP TABLE postings",
        "ALTER TABLE balances DROP CONSTRAINT balances_bounds",
        "ALTER TABLE transfers DISABLE TRIGGER ALL",
        "CREATE TABLE mine (id integer)",
        "SET ROLE holdfast_owner",
    ],
)
def test_the_service_has_no_more_rights_than_it_needs(statement: str) -> None:
    with fresh_books() as books, books.engine.connect() as connection:
        with pytest.raises(ProgrammingError) as caught:
            connection.exec_driver_sql(statement)
        assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege)


assert custody_models.MoneyEvent.metadata is SQLModel.metadata


def not_alembics(_item: Any, name: str, kind: str, *_: object) -> bool:
    return (kind, name) != ("table", "alembic_version")


def test_the_models_are_the_migrated_tables() -> None:
    with fresh_books() as books:
        engine = books.as_role(OWNER)
        with engine.connect() as connection:
            opts = {"compare_type": True, "include_object": not_alembics}
            context = MigrationContext.configure(connection, opts=opts)
            assert compare_metadata(context, SQLModel.metadata) == []
        migrate(books.url(OWNER))
        engine.dispose()


CATALOG = """
    SELECT table_name || '.' || column_name, data_type || ' ' || is_nullable
    FROM information_schema.columns WHERE table_schema = %(schema)s
    UNION ALL SELECT 'index ' || indexname, replace(indexdef, %(schema)s || '.', '')
    FROM pg_indexes WHERE schemaname = %(schema)s
    UNION ALL SELECT 'constraint ' || conname, pg_get_constraintdef(pg_constraint.oid)
    FROM pg_constraint JOIN pg_namespace ON pg_namespace.oid = connamespace
    WHERE nspname = %(schema)s
"""


def test_the_models_say_all_that_the_migrations_made() -> None:
    """Unlike a comparison of metadata this sees predicates, CHECKs and how an index is built."""
    with fresh_books() as books:
        engine = books.as_role(SUPERUSER)
        with engine.begin() as connection:

            def catalog(schema: str) -> dict[str, str]:
                rows = connection.exec_driver_sql(CATALOG, {"schema": schema})
                return {name: made for name, made in rows if "alembic_version" not in name}

            migrated = catalog("public")
            connection.exec_driver_sql("CREATE SCHEMA modelled")
            connection.exec_driver_sql("SET LOCAL search_path = modelled")
            SQLModel.metadata.create_all(connection, checkfirst=False)
            assert catalog("modelled") == migrated
        engine.dispose()
        assert len(migrated) > 200


def test_commits_are_synchronous_and_pages_have_checksums() -> None:
    with fresh_books() as books, books.engine.connect() as connection:
        for setting in ("synchronous_commit", "fsync", "full_page_writes", "data_checksums"):
            assert connection.exec_driver_sql(f"SHOW {setting}").scalar() == "on"
        assert connection.exec_driver_sql("SHOW listen_addresses").scalar() == ""


def test_a_server_left_behind_is_found_and_one_stopped_keeps_its_rows() -> None:
    folder = server().folder.parent / "second"
    first = EmbeddedPostgres(folder)
    try:
        assert first.start()
        first.create()
        migrate(first.url(OWNER))
        assert not EmbeddedPostgres(folder).start()
        first.stop("immediate")
        assert not first.running()
        assert first.start()
        engine = connect(first.url(SERVICE), 1)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM streams").scalar() == 1
        engine.dispose()
    finally:
        first.stop()
    assert not first.running()


def test_a_server_that_was_killed_starts_again() -> None:
    postgres = EmbeddedPostgres(server().folder.parent / "killed")
    try:
        postgres.start()
        number = int((postgres.data / "postmaster.pid").read_text().split()[0])
        os.kill(number, signal.SIGKILL)
        assert postgres.start()
        assert postgres.running()
    finally:
        postgres.stop()


def test_nobody_else_may_enter_the_servers_folder() -> None:
    for path in (server().data, server().socket):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_server_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    engine = connect(f"postgresql+psycopg://nobody@/none?host={tmp_path}", 1)
    with pytest.raises(OperationalError), engine.connect():
        pass


@pytest.mark.parametrize(
    ("query", "index"), [(HELD, "pendings_hold"), (EXPIRED, "pendings_expiring")]
)
def test_no_look_at_what_is_pending_reads_all_that_ever_was(query: str, index: str) -> None:
    with fresh_books() as books, one_moment(books.engine) as connection:
        # The table is small; what is asked is whether there is any other way than to read it all.
        connection.execute("SET LOCAL enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN {query % 1}").fetchall()
    text = "\n".join(line for (line,) in plan)
    assert "Seq Scan on pendings" not in text
    assert index in text
