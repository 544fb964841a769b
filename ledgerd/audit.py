"""Proving the books: the chain computed again, row by row, and balances at any moment.

An auditor writes nothing. `verify` computes every seal, row check, running balance and version
again and compares the derived tables; each complaint names the row. `trial_balance` sums postings,
not balances, so it does not believe what it checks.

`verify` proves the books as they were at one moment: how far each stream was posted, and what each
account had, is read in one short transaction (REPEATABLE READ). What was posted before never
changes, so all that lies below is then read in pieces, each in a transaction of its own: one that
lasted as long as the whole would keep the database from clearing away what settlement, which goes
on, rewrites a thousand times a second.

It cannot know that the newest commits were cut off together with everything that refers to them;
that is found by comparing with whoever has seen them: the engines, and the head kept beside the
run (`ledgerd.follower`, `ledgerd.heads`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
from sqlalchemy import Engine

from exchange.account_digest import AccountDigest, digest_of
from ledgerd.books import chain
from ledgerd.books.commit import Connection
from ledgerd.books.copying import (
    P_ACCOUNT,
    P_AMOUNT,
    P_BALANCE,
    P_TRANSFER,
    P_VERSION,
    POSTINGS,
    T_CHECK,
    T_ID,
    Rows,
)
from ledgerd.books.pieces import Piece, copied, read_piece
from ledgerd.chart import Purpose, bounds_of
from ledgerd.models import NUMBER_MASK, STREAM_SHIFT
from ledgerd.reserves.merkle import Leaf, tree
from ledgerd.trail.progress import Progress

COMPLAINT_LIMIT: Final = 100
"""So many complaints are spelt out; a book that is all wrong need not fill the memory."""
CHUNK_SEALS: Final = 4_096
CHUNK_POSTINGS: Final = 500_000
"""Seals verified at a time, and about how many postings they may cover: some fifty MiB of rows."""
_SEAL_COLUMNS: Final = (
    "cursor_from, cursor_to, sequence, transfer_count, posting_count, posted_ns, previous, hash"
)


@dataclass(slots=True)
class Report:
    """What an audit found."""

    seal_count: int = 0
    transfer_count: int = 0
    posting_count: int = 0
    account_count: int = 0
    heads: dict[int, bytes] = field(default_factory=dict)
    """The last hash of each stream."""
    engines: dict[str, tuple[int, AccountDigest]] = field(default_factory=dict)
    """By pair: a cursor, and what its engine must hold before that execution."""
    complaints: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Say whether nothing was found."""
        return not self.complaints

    def complain(self, sentence: str) -> None:
        """Add a complaint, up to the limit."""
        if len(self.complaints) < COMPLAINT_LIMIT:
            self.complaints.append(sentence)


@dataclass(frozen=True, slots=True)
class Sum:
    """One line of a trial balance."""

    asset: str
    purpose: Purpose
    amount: int
    account_count: int


@contextmanager
def one_moment(engine: Engine) -> Iterator[Connection]:
    """Give a connection that sees the books as they were when it was taken, and cannot write."""
    pooled = engine.raw_connection()
    connection = pooled.driver_connection
    assert isinstance(connection, psycopg.Connection)
    try:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute("SET LOCAL statement_timeout = 0")
        yield connection
    except psycopg.OperationalError:
        if connection.closed or connection.broken:
            pooled.invalidate()
        raise
    finally:
        pooled.close()


@dataclass(frozen=True, slots=True)
class _Stream:
    """How far a stream was posted."""

    id: int
    cursor: int
    sequence: int
    posted_ns: int
    head: bytes
    pair: str
    base: str

    @property
    def first(self) -> int:
        """The id of its first transfer."""
        return self.id << STREAM_SHIFT

    @property
    def end(self) -> int:
        """The first id that was not posted."""
        return self.first | self.cursor


@dataclass(frozen=True, slots=True)
class _Auditor:
    """Reads pieces of the books of one moment."""

    engine: Engine
    progress: Progress
    streams: tuple[_Stream, ...]
    """By id."""

    @contextmanager
    def piece(self, sentence: str) -> Iterator[Connection]:
        """Give a connection for one piece of the work. Raises Abandoned.

        The sentence says how far the work is.
        """
        self.progress.at(sentence)
        with one_moment(self.engine) as connection:
            yield connection

    def posted(self, transfer_ids: Rows) -> npt.NDArray[np.bool_]:
        """Say of each transfer whether it was posted by then."""
        first = np.array([stream.first for stream in self.streams], np.int64)
        end = np.array([stream.end for stream in self.streams], np.int64)
        place = np.searchsorted(first, transfer_ids, side="right") - 1
        return (place >= 0) & (transfer_ids < end[place])


def verify(engine: Engine, progress: Progress | None = None) -> Report:
    """Compute all seals, checks and balances again; return what was found. Raises Abandoned."""
    report = Report()
    with one_moment(engine) as connection:
        query = "SELECT id, cursor, sequence, posted_ns, head, pair, base FROM streams ORDER BY id"
        streams = tuple(
            _Stream(number, cursor, sequence, posted_ns, bytes(head), pair, base)
            for number, cursor, sequence, posted_ns, head, pair, base in connection.execute(query)
        )
        balances = _balances(connection, report)
        _verify_held(connection, report)
        _verify_strays(connection, streams, report)
        _verify_books_stream(connection, report)
    auditor = _Auditor(engine, progress or Progress(), streams)
    for stream in streams:
        _verify_stream(auditor, stream, report)
    ends = _verify_accounts(auditor, report)
    _compare_balances(balances, ends, report)
    with auditor.piece("what engines hold, and snapshots") as connection:
        _sum_up_engines(connection, streams, ends, report)
        _verify_snapshots(connection, report)
    return report


def _name(transfer_id: int) -> str:
    return f"transfer {transfer_id & NUMBER_MASK} of stream {transfer_id >> STREAM_SHIFT}"


def _verify_stream(auditor: _Auditor, stream: _Stream, report: Report) -> None:
    expected, last, sequence, posted_ns = 0, chain.START, 0, 0
    query = (
        f"SELECT {_SEAL_COLUMNS} FROM seals WHERE stream = %s AND cursor_to > %s"
        " AND cursor_to <= %s ORDER BY cursor_to LIMIT %s"
    )
    while True:
        reached = (
            f"seals of {stream.pair or 'the books themselves'}: {expected:,} of"
            f" {stream.cursor:,} numbers, {report.posting_count:,} postings so far"
        )
        with auditor.piece(reached) as connection:
            given = (stream.id, expected, stream.cursor, CHUNK_SEALS)
            seals = _as_many_as_fit(connection.execute(query, given).fetchall())
            if not seals:
                break
            piece = read_piece(connection, stream.first | expected, stream.first | seals[-1][1])
        _verify_rows(piece.transfers, piece.postings, report)
        for seal in seals:
            if seal[0] != expected:
                report.complain(
                    f"seal {seal[1]} of stream {stream.id} begins at {seal[0]}, not {expected}"
                )
            _verify_seal(stream, seal, last, piece, report)
            expected, last, sequence, posted_ns = seal[1], bytes(seal[7]), seal[2], seal[5]
    for name, said, sealed in (
        ("cursor", stream.cursor, expected),
        ("sequence", stream.sequence, sequence),
        ("posted_ns", stream.posted_ns, posted_ns),
        ("head", stream.head, last),
    ):
        if said != sealed:
            shown = [one.hex()[:16] if isinstance(one, bytes) else one for one in (said, sealed)]
            report.complain(
                f"stream {stream.id} claims {name} {shown[0]}; its last seal says {shown[1]}"
            )
    report.heads[stream.id] = last


def _as_many_as_fit(seals: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the first seals, at least one, that cover no more than CHUNK_POSTINGS."""
    covered = 0
    for place, seal in enumerate(seals):
        covered += seal[4]
        if covered > CHUNK_POSTINGS:
            return seals[: max(1, place)]
    return seals


def _verify_seal(
    stream: _Stream, seal: tuple[Any, ...], last: bytes, piece: Piece, report: Report
) -> None:
    cursor_from, cursor_to, sequence, transfer_count, posting_count, posted_ns = seal[:6]
    numbers = chain.SealedNumbers(
        stream.id, cursor_from, cursor_to, sequence, transfer_count, posting_count, posted_ns
    )
    own, moves, extras = piece.between(stream.first | cursor_from, stream.first | cursor_to)
    report.seal_count += 1
    report.transfer_count += len(own)
    report.posting_count += len(moves)
    where = f"seal {cursor_to} of stream {stream.id}"
    if bytes(seal[6]) != last:
        report.complain(f"{where} does not follow the seal before it")
    if (len(own), len(moves)) != (transfer_count, posting_count):
        report.complain(
            f"{where} covers {transfer_count} transfers and {posting_count} postings;"
            f" there are {len(own)} and {len(moves)}"
        )
    if chain.seal_hash(bytes(seal[6]), numbers, own, moves, extras) != bytes(seal[7]):
        report.complain(
            f"{where} does not hold: something in numbers {cursor_from} to {cursor_to - 1} of the"
            " stream, or the seal itself, is not what was posted"
        )


def _verify_rows(transfers: Rows, postings: Rows, report: Report) -> None:
    """Compare the row checks, and find postings without a transfer."""
    known = np.isin(postings[:, P_TRANSFER], transfers[:, T_ID])
    for transfer_id in np.unique(postings[~known, P_TRANSFER]).tolist():
        report.complain(f"{_name(transfer_id)} has postings and no row")
    checks = chain.row_checks(transfers, postings[known])
    for place in np.flatnonzero(checks != transfers[:, T_CHECK]).tolist():
        report.complain(f"{_name(int(transfers[place, T_ID]))} or a posting of it was changed")


def _verify_strays(connection: Connection, streams: tuple[_Stream, ...], report: Report) -> None:
    """Find rows that no seal could cover, because they name a transfer beyond every cursor."""
    ends = [f"{{0}} >= {stream.end}" for stream in streams]
    starts = [f"{{0}} < {stream.first}" for stream in streams]
    # Below the first stream, from the end of each to the start of the next, behind the last.
    unposted = [*starts[:1], *map(" AND ".join, zip(ends, starts[1:], strict=False)), *ends[-1:]]
    for table, column in (
        ("transfers", "id"),
        ("postings", "transfer_id"),
        *((table, "transfer_id") for table in chain.EXTRAS),
    ):
        exempt = "AND id <> 0" if table == "streams" else ""
        gaps = " OR ".join(f"({gap.format(column)})" for gap in unposted)
        statement: Any = f"SELECT {column} FROM {table} WHERE ({gaps}) {exempt} LIMIT 10"
        for row in connection.execute(statement):
            report.complain(f"{table}: {_name(row[0])} is beyond what its stream has posted")

    # No stream's walk comes to a seal that ends before its first number, or behind its last.
    query = """
        SELECT stream, cursor_to FROM seals LEFT JOIN streams ON id = stream
        WHERE id IS NULL OR cursor_to <= 0 OR cursor_to > cursor LIMIT 10
    """
    for row in connection.execute(query):
        report.complain(f"seals: seal {row[1]} of stream {row[0]} is of nothing that was posted")
    query = "SELECT DISTINCT snapshot FROM leaves WHERE snapshot NOT IN (SELECT id FROM snapshots)"
    for row in connection.execute(f"{query} LIMIT 10"):
        report.complain(f"leaves: there are some of snapshot {row[0]}, which was never taken")


def _verify_books_stream(connection: Connection, report: Report) -> None:
    """Compare the row that no commit added: it is there from the first, the same in all books."""
    query = "SELECT pair, base, quote, transfer_id FROM streams WHERE id = 0"
    row = connection.execute(query).fetchone()
    if row != ("", "", "", -1):
        report.complain(f"the row of stream 0 is {row}, not that of the books' own")


def _verify_accounts(auditor: _Auditor, report: Report) -> dict[int, tuple[int, int]]:
    """Follow each account's running balance and version over all its postings; return the last."""
    ends: dict[int, tuple[int, int]] = {}
    last_account, last_version, last_balance = -1, 0, 0
    reached, followed = (-1, 0), 0
    condition = (
        f"WHERE (account_id, version) > ({{}}, {{}}) ORDER BY account_id, version"
        f" LIMIT {CHUNK_POSTINGS}"
    )
    full = True
    while full:
        sentence = f"running balances: {followed:,} of {report.posting_count:,} postings"
        with auditor.piece(sentence) as connection:
            rows = copied(connection, POSTINGS, condition.format(*reached))
        # A piece that is not full had all there was; what was posted meanwhile is not looked at.
        full = len(rows) == CHUNK_POSTINGS
        if not len(rows):
            break
        reached = (int(rows[-1, P_ACCOUNT]), int(rows[-1, P_VERSION]))
        rows = rows[auditor.posted(rows[:, P_TRANSFER])]
        followed += len(rows)
        if not len(rows):
            continue
        before = np.empty((len(rows), 3), np.int64)
        before[0] = last_account, last_version, last_balance
        before[1:] = rows[:-1][:, [P_ACCOUNT, P_VERSION, P_BALANCE]]
        before[before[:, 0] != rows[:, P_ACCOUNT], 1:] = 0
        wrong = rows[:, P_VERSION] != before[:, 1] + 1
        wrong |= rows[:, P_BALANCE] != before[:, 2] + rows[:, P_AMOUNT]
        for row in rows[wrong].tolist():
            report.complain(
                f"posting {row[P_VERSION]} of account {row[P_ACCOUNT]} ({_name(row[P_TRANSFER])})"
                " does not follow from the one before"
            )
        for row in rows[np.append(rows[1:, P_ACCOUNT] != rows[:-1, P_ACCOUNT], True)].tolist():
            ends[row[P_ACCOUNT]] = (row[P_BALANCE], row[P_VERSION])
        last_account, last_version, last_balance = (
            int(rows[-1, column]) for column in (P_ACCOUNT, P_VERSION, P_BALANCE)
        )
    return ends


def _balances(connection: Connection, report: Report) -> dict[int, tuple[int, int]]:
    """Return what each account has, and after how many postings; look at them as such."""
    query = """
        SELECT coalesce(account_id, id), amount, version, account_id, id, purpose, minimum, maximum
        FROM balances FULL JOIN accounts ON id = account_id
    """
    found: dict[int, tuple[int, int]] = {}
    for account, amount, version, balance, opened, purpose, *bounds in connection.execute(query):
        report.account_count += 1
        if opened is not None and balance is not None and tuple(bounds) != bounds_of(purpose):
            report.complain(
                f"the balance of account {account} may be from {bounds[0]} to {bounds[1]}; by its"
                f" purpose that is from {bounds_of(purpose)[0]} to {bounds_of(purpose)[1]}"
            )
        if balance is None or opened is None:
            report.complain(f"account {account} has a balance or a name, not both")
        else:
            found[account] = (amount, version)
    query = "SELECT asset, sum(amount) FROM balances JOIN accounts ON id = account_id GROUP BY 1"
    for asset, total in connection.execute(query):
        if total:
            report.complain(f"the balances of {asset} sum to {total}, not to zero")
    return found


def _compare_balances(
    balances: dict[int, tuple[int, int]], ends: dict[int, tuple[int, int]], report: Report
) -> None:
    """Hold each balance against the account's last posting."""
    for account, (amount, version) in balances.items():
        if (amount, version) != ends.get(account, (0, 0)):
            report.complain(
                f"the balance of account {account} says {amount} after {version} postings; its"
                f" postings say {ends.get(account, (0, 0))[0]} after {ends.get(account, (0, 0))[1]}"
            )
    for account in sorted(ends.keys() - balances.keys()):
        report.complain(f"account {account} has postings, and not both a name and a balance")


def _sum_up_engines(
    connection: Connection,
    streams: tuple[_Stream, ...],
    ends: dict[int, tuple[int, int]],
    report: Report,
) -> None:
    """Compute what each engine must hold, from postings alone."""
    query = """
        SELECT id, owner_id, asset = %s FROM accounts
        WHERE pair = %s AND purpose = %s AND owner_kind IN (1, 2, 5)
    """
    taken = """
        SELECT coalesce(sum(amount), 0) FROM postings JOIN accounts ON id = account_id
        WHERE pair = %s AND purpose = %s AND postings.transfer_id >= %s
            AND postings.transfer_id < %s
    """
    for stream in sorted(streams, key=lambda one: one.pair):
        if stream.id == 0:
            continue
        pair, held = stream.pair, dict[int, list[int]]()
        found = connection.execute(query, (stream.base, pair, int(Purpose.ALLOTTED)))
        for account, owner, is_base in found:
            held.setdefault(owner, [0, 0])[0 if is_base else 1] = ends.get(account, (0, 0))[0]
        given = (pair, int(Purpose.FEES), stream.first, stream.end)
        fees = connection.execute(taken, given).fetchone()
        assert fees is not None
        units = np.array(list(held.values()), np.int64).reshape(-1, 2)
        owners = np.array(list(held), np.int64)
        report.engines[pair] = (
            stream.cursor,
            digest_of(owners, units[:, 0], units[:, 1], int(fees[0])),
        )


def _verify_held(connection: Connection, report: Report) -> None:
    """Find accounts that have less than what pending transfers set aside there."""
    query = """
        SELECT account_id, balances.amount, held FROM balances
        JOIN accounts ON accounts.id = account_id AND purpose = %s
        JOIN (
            SELECT hold_id, sum(amount) AS held FROM pendings
            WHERE NOT EXISTS (SELECT FROM resolutions WHERE pending_id = pendings.transfer_id)
            GROUP BY hold_id
        ) AS open ON hold_id = account_id
        WHERE balances.amount < held ORDER BY account_id
    """
    for account, amount, held in connection.execute(query, (int(Purpose.SUSPENSE),)):
        report.complain(f"account {account} has {amount} units, and {held} are set aside there")


def _verify_snapshots(connection: Connection, report: Report) -> None:
    snapshots = connection.execute("SELECT id, root, total FROM snapshots ORDER BY id").fetchall()
    for number, root, total in snapshots:
        query = (
            "SELECT owner_id, amount, nonce, position FROM leaves"
            " WHERE snapshot = %s ORDER BY position"
        )
        rows = connection.execute(query, (number,)).fetchall()
        leaves = [Leaf(owner, amount, bytes(nonce)) for owner, amount, nonce, _ in rows]
        places = [place for *_, place in rows] == list(range(len(rows)))
        if not places or not leaves or any(not leaf.sound for leaf in leaves):
            report.complain(f"snapshot {number} has leaves that cannot be")
            continue
        top = tree(leaves)[-1][0]
        if (top.hash, top.total) != (bytes(root), total):
            report.complain(f"the leaves of snapshot {number} do not give its root")


def trial_balance(engine: Engine, time_ns: int | None = None) -> list[Sum]:
    """Return the sum of all postings by asset and purpose, now or as of a time.

    As of a time: what the commits stamped with that time or an earlier one had posted. The sum
    over an asset is zero in sound books.
    """
    with one_moment(engine) as connection:
        cuts = None if time_ns is None else cuts_at(connection, time_ns)
        return trial_balance_in(connection, cuts)


def cuts_at(connection: Connection, time_ns: int) -> dict[int, int]:
    """Return how far each stream was posted by commits stamped with a time or an earlier one."""
    query = "SELECT stream, max(cursor_to) FROM seals WHERE posted_ns <= %s GROUP BY 1"
    return {int(stream): int(cut) for stream, cut in connection.execute(query, (time_ns,))}


def trial_balance_in(connection: Connection, cuts: Mapping[int, int] | None = None) -> list[Sum]:
    """Return the trial balance as one transaction sees it: all postings, or those before cuts."""
    posted = "postings"
    if cuts is not None:
        posted = f"""(
            SELECT postings.* FROM postings JOIN
                unnest(%(streams)s::int8[], %(cuts)s::int8[]) AS cuts (stream, cut)
            ON transfer_id >> {STREAM_SHIFT} = stream AND transfer_id & {NUMBER_MASK} < cut)"""
    statement: Any = f"""
        SELECT asset, purpose, coalesce(sum(total), 0), count(*)
        FROM accounts LEFT JOIN (
            SELECT account_id, sum(amount) AS total FROM {posted} AS p GROUP BY 1
        ) AS sums ON account_id = accounts.id
        GROUP BY 1, 2 ORDER BY 1, 2
    """
    given = {} if cuts is None else {"streams": list(cuts), "cuts": list(cuts.values())}
    return [
        Sum(asset, Purpose(purpose), int(total), count)
        for asset, purpose, total, count in connection.execute(statement, given)
    ]
