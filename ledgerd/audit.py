"""Proving the books: the chain computed again, row by row, and balances at any moment.

An auditor reads and writes nothing, in one transaction that sees one moment (REPEATABLE READ).
`verify` computes every seal, row check, running balance and version again and compares the
derived tables; each complaint names the row. `trial_balance` sums postings, not balances, so it
does not believe what it checks.

It cannot know that the newest commits were cut off together with everything that refers to them;
that is found by comparing with whoever has seen them: the engines, and the head kept beside the
run (`ledgerd.follower`, `ledgerd.heads`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
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
    TRANSFERS,
    RowForm,
    Rows,
)
from ledgerd.chart import Purpose, bounds_of
from ledgerd.models import NUMBER_MASK, STREAM_SHIFT
from ledgerd.reserves.merkle import Leaf, tree

COMPLAINT_LIMIT: Final = 100
"""So many complaints are spelt out; a book that is all wrong need not fill the memory."""
CHUNK_SEALS: Final = 4_096
CHUNK_POSTINGS: Final = 500_000
"""Seals verified at a time, and about how many postings they may cover: some fifty MiB of rows.
Each time all postings of that age are looked through, so many small commits must go together."""
_SEAL_COLUMNS: Final = (
    "cursor_from, cursor_to, sequence, transfer_count, posting_count, posted_ns, previous, hash"
)
_STREAM_COLUMNS: Final = "id, cursor, sequence, posted_ns, head"


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


def verify(engine: Engine) -> Report:
    """Compute all seals, checks and balances again; return what was found."""
    report = Report()
    with one_moment(engine) as connection:
        streams = connection.execute(
            f"SELECT {_STREAM_COLUMNS} FROM streams ORDER BY id"
        ).fetchall()
        for stream, cursor, sequence, posted_ns, head in streams:
            _verify_stream(connection, stream, (cursor, sequence, posted_ns, bytes(head)), report)
        _verify_strays(connection, report)
        _verify_books_stream(connection, report)
        ends = _verify_accounts(connection, report)
        _sum_up_engines(connection, ends, report)
        _verify_balances(connection, report)
        _verify_held(connection, report)
        _verify_snapshots(connection, report)
    return report


def _name(transfer_id: int) -> str:
    return f"transfer {transfer_id & NUMBER_MASK} of stream {transfer_id >> STREAM_SHIFT}"


def copied(connection: Connection, form: RowForm, condition: str) -> Rows:
    """Read rows of integers through COPY, as an array (n, columns)."""
    with connection.cursor() as cursor:
        # The condition is made of our own words and integers.
        statement: Any = form.copy_out(condition)
        with cursor.copy(statement) as copy:
            return form.unpack(b"".join(bytes(part) for part in copy))


def _verify_stream(
    connection: Connection, stream: int, claimed: tuple[int, int, int, bytes], report: Report
) -> None:
    expected, last, sequence, posted_ns = 0, chain.START, 0, 0
    while True:
        seals = connection.execute(
            f"SELECT {_SEAL_COLUMNS} FROM seals WHERE stream = %s AND cursor_to > %s"
            " ORDER BY cursor_to LIMIT %s",
            (stream, expected, CHUNK_SEALS),
        ).fetchall()
        if not seals:
            break
        seals = _as_many_as_fit(seals)
        low, high = (stream << STREAM_SHIFT) | expected, (stream << STREAM_SHIFT) | seals[-1][1]
        between = f"BETWEEN {low} AND {high - 1}"
        transfers = copied(connection, TRANSFERS, f"WHERE id {between} ORDER BY id")
        postings = copied(
            connection, POSTINGS, f"WHERE transfer_id {between} ORDER BY account_id, version"
        )
        lines = _lines(connection, between)
        _verify_rows(transfers, postings, report)
        for seal in seals:
            if seal[0] != expected:
                report.complain(
                    f"seal {seal[1]} of stream {stream} begins at {seal[0]}, not {expected}"
                )
            _verify_seal(stream, seal, last, transfers, postings, lines, report)
            expected, last, sequence, posted_ns = seal[1], bytes(seal[7]), seal[2], seal[5]
    names = ("cursor", "sequence", "posted_ns", "head")
    for name, said, sealed in zip(
        names, claimed, (expected, sequence, posted_ns, last), strict=True
    ):
        if said != sealed:
            shown = [one.hex()[:16] if isinstance(one, bytes) else one for one in (said, sealed)]
            report.complain(
                f"stream {stream} claims {name} {shown[0]}; its last seal says {shown[1]}"
            )
    report.heads[stream] = last


def _as_many_as_fit(seals: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the first seals, at least one, that cover no more than CHUNK_POSTINGS."""
    covered = 0
    for place, seal in enumerate(seals):
        covered += seal[4]
        if covered > CHUNK_POSTINGS:
            return seals[: max(1, place)]
    return seals


def _verify_seal(
    stream: int,
    seal: tuple[Any, ...],
    last: bytes,
    transfers: Rows,
    postings: Rows,
    lines: dict[str, list[tuple[int, str]]],
    report: Report,
) -> None:
    cursor_from, cursor_to, sequence, transfer_count, posting_count, posted_ns = seal[:6]
    numbers = chain.SealedNumbers(
        stream, cursor_from, cursor_to, sequence, transfer_count, posting_count, posted_ns
    )
    low, high = (stream << STREAM_SHIFT) | cursor_from, (stream << STREAM_SHIFT) | cursor_to
    own = transfers[(transfers[:, T_ID] >= low) & (transfers[:, T_ID] < high)]
    moves = postings[(postings[:, P_TRANSFER] >= low) & (postings[:, P_TRANSFER] < high)]
    extras = [text for rows in lines.values() for at, text in rows if low <= at < high]
    report.seal_count += 1
    report.transfer_count += len(own)
    report.posting_count += len(moves)
    where = f"seal {cursor_to} of stream {stream}"
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


def _lines(connection: Connection, between: str) -> dict[str, list[tuple[int, str]]]:
    """Return the sealed lines of the small tables' rows, with the transfer each one names."""
    found: dict[str, list[tuple[int, str]]] = {}
    for table, columns in chain.EXTRAS.items():
        place = columns.index("transfer_id")
        statement: Any = f"SELECT {', '.join(columns)} FROM {table} WHERE transfer_id {between}"
        rows = connection.execute(statement).fetchall()
        found[table] = [(row[place], chain.line(table, *row)) for row in rows]
    return found


def _verify_strays(connection: Connection, report: Report) -> None:
    """Find rows that no seal could cover, because they name a transfer beyond every cursor."""
    for table, column in (
        ("transfers", "id"),
        ("postings", "transfer_id"),
        *((table, "transfer_id") for table in chain.EXTRAS),
    ):
        exempt = "AND id <> 0" if table == "streams" else ""
        statement: Any = f"""
            SELECT {column} FROM {table} WHERE NOT EXISTS (
                SELECT FROM streams AS s WHERE s.id = {table}.{column} >> {STREAM_SHIFT}
                    AND {table}.{column} & {NUMBER_MASK} < s.cursor) {exempt} LIMIT 10
        """
        for row in connection.execute(statement):
            report.complain(f"{table}: {_name(row[0])} is beyond what its stream has posted")

    # No stream's walk comes to a seal that ends before its first number.
    query = "SELECT stream, cursor_to FROM seals WHERE cursor_to <= 0 OR stream NOT IN"
    for row in connection.execute(f"{query} (SELECT id FROM streams) LIMIT 10"):
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


def _verify_accounts(connection: Connection, report: Report) -> dict[int, tuple[int, int]]:
    """Follow each account's running balance and version over all its postings; return the last."""
    ends: dict[int, tuple[int, int]] = {}
    last_account, last_version, last_balance = -1, 0, 0
    condition = "WHERE (account_id, version) > ({}, {}) ORDER BY account_id, version LIMIT 500000"
    while True:
        rows = copied(connection, POSTINGS, condition.format(last_account, last_version))
        if not len(rows):
            break
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
    query = """
        SELECT coalesce(account_id, id), amount, version, account_id, id, purpose, minimum, maximum
        FROM balances FULL JOIN accounts ON id = account_id
    """
    for account, amount, version, balance, opened, purpose, *bounds in connection.execute(query):
        report.account_count += 1
        if opened is not None and balance is not None and tuple(bounds) != bounds_of(purpose):
            report.complain(
                f"the balance of account {account} may be from {bounds[0]} to {bounds[1]}; by its"
                f" purpose that is from {bounds_of(purpose)[0]} to {bounds_of(purpose)[1]}"
            )
        if balance is None or opened is None:
            report.complain(f"account {account} has a balance or a name, not both")
        elif ends.get(account, (0, 0)) != (amount, version):
            report.complain(
                f"the balance of account {account} says {amount} after {version} postings; its"
                f" postings say {ends.get(account, (0, 0))[0]} after {ends.get(account, (0, 0))[1]}"
            )
    known = {row[0] for row in connection.execute("SELECT id FROM accounts")}
    for account in sorted(ends.keys() - known):
        report.complain(f"account {account} has postings and no name")
    return ends


def _sum_up_engines(
    connection: Connection, ends: dict[int, tuple[int, int]], report: Report
) -> None:
    """Compute what each engine must hold, from postings alone."""
    query = """
        SELECT id, owner_id, asset = %s FROM accounts
        WHERE pair = %s AND purpose = %s AND owner_kind IN (1, 2, 5)
    """
    taken = """
        SELECT coalesce(sum(amount), 0) FROM postings JOIN accounts ON id = account_id
        WHERE pair = %s AND purpose = %s AND postings.transfer_id >= %s
    """
    streams = connection.execute(
        "SELECT pair, cursor, base FROM streams WHERE id <> 0 ORDER BY pair"
    ).fetchall()
    for pair, cursor, base in streams:
        held: dict[int, list[int]] = {}
        found = connection.execute(query, (base, pair, int(Purpose.ALLOTTED)))
        for account, owner, is_base in found:
            held.setdefault(owner, [0, 0])[0 if is_base else 1] = ends.get(account, (0, 0))[0]
        fees = connection.execute(taken, (pair, int(Purpose.FEES), 1 << STREAM_SHIFT)).fetchone()
        assert fees is not None
        units = np.array(list(held.values()), np.int64).reshape(-1, 2)
        owners = np.array(list(held), np.int64)
        report.engines[pair] = (
            int(cursor),
            digest_of(owners, units[:, 0], units[:, 1], int(fees[0])),
        )


def _verify_balances(connection: Connection, report: Report) -> None:
    query = "SELECT asset, sum(amount) FROM balances JOIN accounts ON id = account_id GROUP BY 1"
    for asset, total in connection.execute(query):
        if total:
            report.complain(f"the balances of {asset} sum to {total}, not to zero")


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
