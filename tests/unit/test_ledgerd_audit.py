"""An auditor finds and names every changed row; proofs of what is owed hold, or do not."""

import itertools
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.enums import Asset
from ledgerd import __main__ as ledgerd_main
from ledgerd.audit import one_moment, trial_balance, verify
from ledgerd.books.chain import EXTRAS, row_checks
from ledgerd.books.copying import POSTINGS, TRANSFERS
from ledgerd.books.pieces import copied
from ledgerd.books.queries import liability_proof, reading
from ledgerd.chart import Phase, Purpose, TransferKind
from ledgerd.custody.simulated_chain import SimulatedCustody
from ledgerd.heads import BooksAreOlder, Heads
from ledgerd.reserves.merkle import Leaf, Node, Step, proof, proven, tree
from ledgerd.reserves.proof import prove
from ledgerd.trail.progress import Abandoned, Progress
from ledgerd.transfers import NewTransfer
from tests.books import PAIR, TestBooks, custody, fresh_books, superuser, user
from tests.custody import NEEDED, fresh_desk
from tests.unit.test_ledgerd_ledger import funded, rows_of, trade

DAY_NS = 86_400 * 10**9


def busy(books: TestBooks) -> None:
    """Put rows of every sort into the books, in several commits of two streams."""
    cursor = funded(books)
    for step in range(3):
        rows = rows_of(*(trade(1, 2, 9 + 3 * step + n) for n in range(3)))
        cursor = books.ledger.settle(PAIR, rows, cursor)
    pending = books.transfer(
        (user(1, "BTC"), -7), (user(1, "BTC", Purpose.FUNDING), 7), phase=Phase.PENDING
    )
    books.ledger.post([pending])
    books.ledger.post([books.transfer(phase=Phase.POSTED, pending_id=pending.id)])
    books.ledger.recall(books.new_id(), PAIR.pair, 1, Asset.BASE, 5)
    nonces = itertools.count(1)
    books.ledger.take_snapshot("BTC", lambda: next(nonces).to_bytes(16, "big"))
    books.clock.now_ns += DAY_NS
    books.ledger.close_day(date(2026, 1, 1))


@pytest.mark.parametrize("postings", [7, 500_000])
def test_sound_books_are_found_sound_in_pieces_of_any_size(
    monkeypatch: pytest.MonkeyPatch, postings: int
) -> None:
    monkeypatch.setattr("ledgerd.audit.CHUNK_POSTINGS", postings)
    with fresh_books() as books:
        busy(books)
        report = verify(books.engine)
        assert report.complaints == []
        assert report.posting_count > 40
        assert set(report.heads) == {0, 1}


def test_settlement_goes_on_while_the_books_are_proved_as_they_were() -> None:
    held = """
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND backend_type = 'client backend' AND backend_xmin IS NOT NULL
            AND pid <> pg_backend_pid()
    """
    with fresh_books() as books:
        busy(books)
        before, pieces, thief = verify(books.engine), itertools.count(), superuser(books)

        def goes_on() -> bool:
            with thief.connect() as connection:
                count = connection.exec_driver_sql(held).scalar_one()
            assert count == 0, "no piece is read in the transaction of another"
            owner = 100 + next(pieces)
            books.ledger.open_accounts([user(owner, "BTC")])
            books.ledger.post([books.transfer((user(1, "BTC"), -1), (user(owner, "BTC"), 1))])
            return True

        during = verify(books.engine, Progress(wanted=goes_on))
        thief.dispose()
        assert during == before
        assert next(pieces) > 3
        after = verify(books.engine)
        assert after.complaints == []
        assert after.seal_count > before.seal_count


def test_an_audit_that_nobody_waits_for_ends() -> None:
    with fresh_books() as books, pytest.raises(Abandoned):
        verify(books.engine, Progress(wanted=lambda: False))


CHANGES = [
    ("transfers", "time_ns", "time_ns + 1", "transfer {id}"),
    ("transfers", "sequence", "sequence + 1", "transfer {id}"),
    ("transfers", "row_check", "row_check + 1", "transfer {id}"),
    ("transfers", "kind", "kind + 1", "transfer {id}"),
    ("transfers", "phase", "phase + 1", "transfer {id}"),
    ("postings", "amount", "amount * 2", "transfer {id}"),
    ("postings", "balance_after", "balance_after + 1", "transfer {id}"),
    ("postings", "leg", "leg + 1", "transfer {id}"),
    ("postings", "version", "version + 1000", "transfer {id}"),
    ("balances", "amount", "amount + 1", "the balance of account"),
    ("balances", "version", "version + 1", "the balance of account"),
    ("accounts", "owner_id", "owner_id + 70", "seal"),
    ("accounts", "purpose", "8", "seal"),
    ("seals", "posted_ns", "posted_ns + 1", "seal"),
    ("seals", "hash", r"'\x00'::bytea", "seal"),
    ("seals", "previous", r"'\x00'::bytea", "seal"),
    ("seals", "sequence", "sequence + 1", "seal"),
    ("streams", "cursor", "cursor - 1", "stream"),
    ("streams", "head", r"'\x00'::bytea", "stream"),
    ("streams", "base", "'X'", "seal"),
    ("requests", "actor", "'somebody else'", "seal"),
    ("requests", "digest", r"'\x00'::bytea", "seal"),
    ("pendings", "amount", "amount + 1", "seal"),
    ("pendings", "target_id", "source_id", "seal"),
    ("resolutions", "transfer_id", "transfer_id - 1", "seal"),
    ("instructions", "amount", "amount + 1", "seal"),
    ("instructions", "owner_id", "owner_id + 1", "seal"),
    ("closes", "amount", "amount + 1", "seal"),
    ("snapshots", "total", "total + 1", "snapshot 1"),
    ("leaves", "amount", "amount + 1", "snapshot 1"),
    ("leaves", "nonce", r"'\x00'::bytea", "snapshot 1"),
    ("assets", "decimals", "decimals + 1", "seal"),
]


@pytest.mark.parametrize(("table", "column", "value", "named"), CHANGES)
def test_a_changed_row_is_found_and_named(table: str, column: str, value: str, named: str) -> None:
    with fresh_books() as books:
        busy(books)
        thief = superuser(books)
        key = {"postings": "transfer_id", "transfers": "id"}.get(table)
        with thief.begin() as connection:
            connection.exec_driver_sql("SET session_replication_role = replica")
            where = "ORDER BY ctid DESC LIMIT 1" if table != "streams" else "WHERE id = 1"
            ctid = connection.exec_driver_sql(f"SELECT ctid FROM {table} {where}").scalar()
            shown = 0
            if key is not None:
                query = f"SELECT {key} FROM {table} WHERE ctid = '{ctid}'"
                shown = int(connection.exec_driver_sql(query).scalar() or 0)
            done = connection.exec_driver_sql(
                f"UPDATE {table} SET {column} = {value} WHERE ctid = '{ctid}'"
            )
            assert done.rowcount == 1
        thief.dispose()
        complaints = verify(books.engine).complaints
        assert complaints
        wanted = named.format(id=shown & ((1 << 44) - 1))
        assert any(wanted in complaint for complaint in complaints), complaints


# What custody seals is tampered with in test_ledgerd_tampering.
@pytest.mark.parametrize(
    "table", ["transfers", "postings", "seals", "leaves", *sorted(EXTRAS.keys() - {"money_tips"})]
)
def test_a_removed_row_is_missed(table: str) -> None:
    with fresh_books() as books:
        busy(books)
        thief = superuser(books)
        with thief.begin() as connection:
            connection.exec_driver_sql("SET session_replication_role = replica")
            where = f"ctid = (SELECT max(ctid) FROM {table})"
            assert connection.exec_driver_sql(f"DELETE FROM {table} WHERE {where}").rowcount == 1
        thief.dispose()
        assert verify(books.engine).complaints


def test_an_invented_row_is_noticed() -> None:
    with fresh_books() as books:
        busy(books)
        with books.engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO transfers VALUES (999999, 1, 0, 0, 4, 1)")
        assert any("beyond" in complaint for complaint in verify(books.engine).complaints)


def test_a_forged_commit_with_right_checks_is_still_caught_by_the_seal() -> None:
    with fresh_books() as books:
        busy(books)
        with one_moment(books.engine) as moment:
            number = (1 << 44) + 5
            transfers = copied(moment, TRANSFERS, f"WHERE id = {number}")
            postings = copied(moment, POSTINGS, f"WHERE transfer_id = {number}")
        transfers[0, 1] += 1
        check = int(row_checks(transfers, postings)[0])
        thief = superuser(books)
        with thief.begin() as connection:
            connection.exec_driver_sql("SET session_replication_role = replica")
            connection.exec_driver_sql(
                "UPDATE transfers SET time_ns = time_ns + 1, row_check = %s WHERE id = %s",
                (check, number),
            )
        thief.dispose()
        complaints = verify(books.engine).complaints
        assert [text for text in complaints if "does not hold" in text] == complaints != []


def test_the_trial_balance_at_an_earlier_time_is_what_it_was() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 100)
        then, before = books.clock.now_ns, trial_balance(books.engine)
        books.deposit(1, "BTC", 11)
        assert trial_balance(books.engine, then) == before
        assert trial_balance(books.engine) != before
        assert sum(line.amount for line in trial_balance(books.engine, 0)) == 0


def test_a_database_older_than_its_kept_head_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.heads"
    with fresh_books() as books:
        cursor = funded(books)
        Heads(path).check(books.engine)
        books.ledger.settle(PAIR, rows_of(trade(1, 2, 9)), cursor)
        heads = Heads(path)
        heads.check(books.engine)
        kept = path.read_text()
        with fresh_books() as restored:
            funded(restored)
            said: list[str] = []
            older = Heads(path, said.append)
            for _ in range(2):
                with pytest.raises(BooksAreOlder, match="older than these books"):
                    older.check(restored.engine)
            assert len(said) == 1
            assert path.read_text() == kept
            # An auditor says so, too, and leaves the file as it is.
            assert verify(restored.engine).sound
            (sentence,) = prove(restored.engine, Heads(path), None).complaints
            assert "older than these books" in sentence
        assert prove(books.engine, Heads(path), None).complaints == []
        books.ledger.settle(PAIR, rows_of(trade(1, 2, 10)), cursor + 1)
        assert prove(books.engine, Heads(path), None).complaints == []
        assert path.read_text() == kept


LEAVES = st.lists(
    st.builds(
        Leaf,
        owner_id=st.integers(0, 1 << 40),
        amount=st.integers(0, 1 << 50),
        nonce=st.binary(min_size=16, max_size=16),
    ),
    min_size=1,
    max_size=40,
)


@given(leaves=LEAVES)
def test_every_leaf_is_proven_and_the_root_is_their_sum(leaves: list[Leaf]) -> None:
    levels = tree(leaves)
    root = levels[-1][0]
    assert root.total == sum(leaf.amount for leaf in leaves)
    for place, leaf in enumerate(leaves):
        assert proven(leaf, proof(levels, place), root)


@given(leaves=LEAVES, data=st.data())
def test_nothing_else_is_proven(leaves: list[Leaf], data: st.DataObject) -> None:
    levels = tree(leaves)
    root = levels[-1][0]
    place = data.draw(st.integers(0, len(leaves) - 1))
    leaf, steps = leaves[place], proof(levels, place)
    assert not proven(replace(leaf, amount=leaf.amount + 1), steps, root)
    assert not proven(replace(leaf, owner_id=leaf.owner_id + 1), steps, root)
    assert not proven(leaf, steps, Node(root.hash, root.total + 1))
    assert not proven(replace(leaf, amount=-1), steps, root)
    if steps:
        step = data.draw(st.integers(0, len(steps) - 1))
        cheaper = Node(steps[step].sibling.hash, steps[step].sibling.total + 1)
        forged = [*steps[:step], Step(cheaper, steps[step].left), *steps[step + 1 :]]
        assert not proven(leaf, forged, root)
        assert not proven(leaf, steps[:-1], root)


def test_a_negative_leaf_is_no_leaf() -> None:
    with pytest.raises(ValueError, match="no leaf"):
        tree([Leaf(1, -5, bytes(16))])
    with pytest.raises(ValueError, match="claim"):
        tree([Leaf(1, (1 << 62) - 1, bytes(16)), Leaf(2, 1, bytes(16))])


def test_an_owner_can_prove_what_the_exchange_owes_it() -> None:
    with fresh_books() as books:
        funded(books)
        random = np.random.default_rng(5)
        number = books.ledger.take_snapshot("BTC", lambda: random.bytes(16))
        books.ledger.post(
            [
                NewTransfer(
                    books.new_id(),
                    TransferKind.CORRECTION,
                    books.transfer((custody("BTC"), -1), (user(1, "BTC"), 1)).legs,
                )
            ]
        )
        with reading(books.engine) as session:
            proofs = [liability_proof(session, number, owner) for owner in (1, 2)]
        for one in proofs:
            assert one.leaf.amount == 10**9
            assert one.root.total == 2 * 10**9
            assert proven(one.leaf, one.steps, one.root)


class _Watched(Progress):
    """Keeps every sentence, said or not; gives up at one that begins so."""

    def __init__(self, last: str = "nothing begins so") -> None:
        super().__init__()
        self.sentences: list[str] = []
        self._last = last

    def at(self, sentence: str) -> None:
        self.sentences.append(sentence)
        if sentence.startswith(self._last):
            raise Abandoned


def test_a_proof_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ledgerd.audit.CHUNK_SEALS", 1)
    monkeypatch.setattr("ledgerd.audit.CHUNK_POSTINGS", 10)
    # A custodian that carries nothing: there are no coins of which the books would say otherwise.
    nobody, watched = SimulatedCustody(tmp_path / "chain", 1, ()), _Watched()
    with fresh_books() as books:
        busy(books)
        report = prove(books.engine, Heads(tmp_path / "heads"), nobody, watched)
    said = watched.sentences
    kinds = [sentence.partition(":")[0].partition(",")[0] for sentence in said]
    assert list(dict.fromkeys(kinds)) == [
        "seals of the books themselves",
        "seals of BTC-USDT",
        "running balances",
        "what engines hold",
        "journal of money",
        "deposits and withdrawals against the books",
        "payouts of the custodian",
        "coins against books",
    ]
    ends = [sentence for sentence in said if sentence.startswith("seals of BTC-USDT")]
    assert ends[0].startswith("seals of BTC-USDT: 0 of 13 numbers, ")
    assert (
        ends[-1] == f"seals of BTC-USDT: 13 of 13 numbers, {report.posting_count} postings so far"
    )
    assert f"running balances: 10 of {report.posting_count} postings" in said


@pytest.mark.parametrize(
    "stage",
    [
        "seals of",
        "running balances",
        "what engines hold",
        "journal of money: 0 events",
        "journal of money: 0 events played again",
        "deposits and withdrawals against",
        "payouts",
        "coins against",
        "deposits of BTC asked about: 0",
    ],
)
def test_a_proof_that_nobody_waits_for_ends_at_every_stage(
    stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ledgerd.reserves.proof.PAUSE_S", 0)
    with fresh_desk() as desk:
        # Gone from the chain, so that payments are asked about one by one.
        desk.custody.reorganise(NEEDED + 1, [desk.funded(1, 1_000)])
        with pytest.raises(Abandoned):
            prove(desk.books.engine, Heads(tmp_path / "heads"), desk.custody, _Watched(stage))


def test_progress_is_said_every_few_seconds_and_not_at_once() -> None:
    said: list[str] = []
    now_s = [100.0]
    progress = Progress(said.append, clock=lambda: now_s[0])
    for second in range(12):
        now_s[0] = 100.0 + second
        progress.at(f"second {second}")
    assert said == ["second 5", "second 10"]


def test_what_verify_prints_for_programs_is_the_same_with_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with fresh_books() as books:
        busy(books)
        heads = Heads(tmp_path / "heads")
        assert ledgerd_main._verify(books.engine, heads, None) == 0
        silent = capsys.readouterr()
        assert silent.err == ""
        monkeypatch.setattr("ledgerd.trail.progress.EVERY_S", 0)
        assert ledgerd_main._verify(books.engine, heads, None) == 0
        told = capsys.readouterr()
    assert told.out == silent.out
    assert told.err.startswith("ledgerd: seals of the books themselves: 0 of ")
    assert "\nledgerd: running balances: " in told.err
