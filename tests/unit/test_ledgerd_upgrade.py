"""A database from before events told rows: upgraded with its data; nothing is made true by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from ledgerd.audit import verify
from ledgerd.custody import journal
from ledgerd.custody.journal import Change, Step, Subject, event_hash
from ledgerd.custody.proof import verify_money
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody
from ledgerd.database import OWNER, SERVICE, connect, migrate
from ledgerd.ledger import Ledger
from tests.books import PAIR, Clock, TestBooks, server, superuser
from tests.custody import NO_LIMITS, Desk, desk_over

NAME = "books_of_0004"


class OldStep(Step):
    """A step as it was recorded at revision 0004: what was decided, and no rows."""

    def record(self, change: Change) -> None:
        self._written = []
        if change.kind > Subject.NOTICE:
            return
        number, previous = self._last()
        hashed = event_hash(previous, number + 1, change, self.now_ns)
        marks = ", ".join(["%s"] * 12)
        self._write(
            f"INSERT INTO money_events VALUES ({marks})",
            [
                *(number + 1, change.subject, int(change.kind), change.state_from),
                *(change.state_to, change.actor, change.reason, self.now_ns, change.alarm),
                *(change.content, previous, hashed),
            ],
        )


@contextmanager
def old_desk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Desk, UUID]]:
    """Give a desk over a database of revision 0004, and a withdrawal that waits there."""
    postgres = server()
    postgres.create(NAME)
    migrate(postgres.url(OWNER, NAME), "0004")
    engine, clock = connect(postgres.url(SERVICE, NAME), 4), Clock()
    books = TestBooks(NAME, engine, Ledger(engine, clock), clock)
    try:
        books.ledger.list_pair(PAIR)
        custody = SimulatedCustody(folder / "chain.log", 1, ["BTC", "USDT"], CALM)
        desk = desk_over(books, custody)
        with monkeypatch.context() as patched:
            patched.setattr(journal, "Step", OldStep)
            desk.funded(1, 5_000)
            desk.deposits.follow()
            desk.listed(1)
            gone = desk.listed(1, "outside2")
            desk.addresses.remove(gone.id, "alice")
            small, large = desk.asked(1, 400), desk.asked(1, 2_000)
            for asked in (small, large):
                desk.withdrawals.request(asked, NO_LIMITS)
            desk.paid_out(small.id)
            desk.withdrawals.approve(large.id, "bob")
        yield desk, large.id
    finally:
        engine.dispose()
        postgres.drop(NAME)


def said_of(books: TestBooks) -> list[str]:
    return [*verify(books.engine).complaints, *verify_money(books.engine)]


def test_rows_from_before_are_told_and_life_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with old_desk(tmp_path, monkeypatch) as (desk, waiting):
        migrate(desk.books.url(OWNER))
        assert said_of(desk.books) == []
        with desk.books.engine.connect() as connection:
            query = "SELECT count(*) FROM money_events WHERE reason = 'imported'"
            # An address and a deposit to it, the cursor, two listed, two withdrawals, an approval.
            assert connection.exec_driver_sql(query).scalar() == 8
        assert desk.paid_out(waiting).state.name == "CONFIRMED"
        desk.funded(1, 700)
        assert said_of(desk.books) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE deposits SET amount_units = amount_units + 1", "is not what was decided on"),
        ("UPDATE withdrawals SET address = 'mine'", "is not what was decided on"),
        ("UPDATE withdrawal_addresses SET address = 'mine'", "is not what was decided on"),
        ("UPDATE deposits SET state = 3", "from a state that it was not in"),
    ],
)
def test_an_upgrade_does_not_make_true_what_was_changed_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, named: str
) -> None:
    with old_desk(tmp_path, monkeypatch) as (desk, _):
        thief = superuser(desk.books)
        with thief.begin() as connection:
            connection.exec_driver_sql(change)
        thief.dispose()
        migrate(desk.books.url(OWNER))
        assert any(named in said for said in said_of(desk.books))


def test_an_upgrade_of_books_without_custody_leaves_their_chain_alone() -> None:
    postgres = server()
    postgres.create(NAME)
    try:
        migrate(postgres.url(OWNER, NAME), "0004")
        migrate(postgres.url(OWNER, NAME))
        engine = connect(postgres.url(SERVICE, NAME), 1)
        report = verify(engine)
        assert (report.complaints, report.seal_count) == ([], 0)
        engine.dispose()
    finally:
        postgres.drop(NAME)
