"""The close of one UTC day: its trial balance, kept for ever, and its fees gathered.

A day's balance counts what pairs executed before its end, by the engines' time, and everything
else that was posted before its end. It is computed from all postings, without a lock, so that
settlement goes on meanwhile; then it is kept together with the sweep of each pair's fees, which
takes what that account had at the end of the day, in one commit of the books' own stream.

What is here runs inside somebody's transaction and decides no time: `ledgerd.ledger` closes,
`ledgerd.days.schedule` knows when.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from ledgerd import chart
from ledgerd.audit import Sum, cuts_at, trial_balance_in
from ledgerd.books.commit import Connection
from ledgerd.books.entries import Entries
from ledgerd.chart import Purpose, TransferKind
from ledgerd.models import BOOKS, NUMBER_MASK, STREAM_SHIFT


@dataclass(frozen=True, slots=True)
class Earned:
    """What a pair's fee account had at the end of a day."""

    pair: str
    asset: str
    account_id: int
    amount: int


@dataclass(frozen=True, slots=True)
class DayEnd:
    """The books as they were at the end of a day."""

    sums: list[Sum]
    earned: list[Earned]

    def unbalanced(self) -> str:
        """Name the assets that do not sum to zero; empty in sound books."""
        totals: dict[str, int] = {}
        for line in self.sums:
            totals[line.asset] = totals.get(line.asset, 0) + line.amount
        return ", ".join(f"{asset} sums to {total}" for asset, total in totals.items() if total)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Fees of a pair that went to the exchange's common account."""

    transfer_id: int
    pair: str
    asset: str
    amount: int


@dataclass(frozen=True, slots=True)
class DayClose:
    """A day as it was closed."""

    day: date
    closed_ns: int
    transfer_id: int
    sums: list[Sum]
    sweeps: list[Sweep]


def end_ns_of(day: date) -> int:
    """Return the end of a UTC day, exclusive."""
    end = datetime.combine(day, datetime.min.time(), UTC) + timedelta(days=1)
    return int(end.timestamp()) * 1_000_000_000


def let_them_end(connection: Connection) -> None:
    """Wait for whoever holds a stream: it may be about to commit with a stamp of the day."""
    connection.execute("SELECT FROM streams ORDER BY id FOR UPDATE")


_LATER: Final = """
    SELECT max(id) FROM transfers
    WHERE id >= %s AND id < %s AND time_ns < %s
"""
_AS_OF: Final = """
    SELECT balance_after FROM postings
    WHERE account_id = %s AND version <= %s ORDER BY version DESC LIMIT 1
"""


def day_end(connection: Connection, end_ns: int) -> DayEnd:
    """Return the books as of the end of a day, as a transaction of one moment sees them."""
    cuts = cuts_at(connection, end_ns - 1)
    streams = connection.execute("SELECT id FROM streams WHERE id <> %s", (BOOKS,)).fetchall()
    for (stream,) in streams:
        # What was executed in time and settled a little late belongs to the day.
        low = (stream << STREAM_SHIFT) + cuts.get(stream, 0)
        high = (stream + 1) << STREAM_SHIFT
        found = connection.execute(_LATER, (low, high, end_ns)).fetchone()
        if found is not None and found[0] is not None:
            cuts[stream] = (int(found[0]) & NUMBER_MASK) + 1
    query = """
        SELECT id, pair, asset, version FROM accounts JOIN balances ON account_id = id
        WHERE purpose = %s AND pair <> '' ORDER BY pair, asset
    """
    earned = []
    for account, pair, asset, version in connection.execute(query, (int(Purpose.FEES),)).fetchall():
        amount = _balance_before(connection, account, version, cuts)
        earned.append(Earned(pair, asset, account, amount))
    return DayEnd(trial_balance_in(connection, cuts), earned)


def _balance_before(
    connection: Connection, account: int, version: int, cuts: dict[int, int]
) -> int:
    """Return an account's balance before the cuts, found by halving its versions."""
    low, high = 0, version
    while low < high:
        middle = (low + high + 1) // 2
        query = "SELECT transfer_id FROM postings WHERE account_id = %s AND version = %s"
        row = connection.execute(query, (account, middle), prepare=True).fetchone()
        assert row is not None, f"account {account} has no posting {middle}"
        if row[0] & NUMBER_MASK < cuts.get(row[0] >> STREAM_SHIFT, 0):
            low = middle
        else:
            high = middle - 1
    row = connection.execute(_AS_OF, (account, low)).fetchone() if low else None
    return 0 if row is None else int(row[0])


def add_close(books: Entries, day: date, end: DayEnd, now_ns: int) -> None:
    """Add the close of a day and its sweeps to a commit of the books' stream."""
    entry = books.entry(TransferKind.CLOSE, now_ns)
    rows = [(day.isoformat(), *_values(line), entry) for line in end.sums]
    books.commit.add("closes", rows)
    for earned in end.earned:
        target = chart.fees(earned.asset)
        # A sweep by hand, or of a day that is closed late, may have been there before.
        amount = min(earned.amount, books.balance(earned.account_id))
        if amount > 0:
            common = books.opened([target], now_ns)[target]
            legs = ((earned.account_id, -amount), (common, amount))
            books.entry(TransferKind.FEE_SWEEP, now_ns, legs)


def _values(line: Sum) -> tuple[str, int, int, int]:
    return line.asset, int(line.purpose), line.amount, line.account_count


def close_of(connection: Connection, day: date) -> DayClose | None:
    """Return a day's close, or None if it is not closed."""
    query = """
        SELECT asset, purpose, amount, account_count, transfer_id FROM closes WHERE day = %s
        ORDER BY 1, 2
    """
    rows = connection.execute(query, (day.isoformat(),)).fetchall()
    if not rows:
        return None
    entry = int(rows[0][4])
    found: Any = connection.execute("SELECT time_ns FROM transfers WHERE id = %s", (entry,))
    sums = [Sum(asset, Purpose(purpose), *rest) for asset, purpose, *rest, _ in rows]
    return DayClose(day, int(found.fetchone()[0]), entry, sums, _sweeps(connection, entry))


def _sweeps(connection: Connection, entry: int) -> list[Sweep]:
    """Return the sweeps of the commit that a close is in."""
    query = "SELECT min(cursor_to) FROM seals WHERE stream = %s AND cursor_to > %s"
    sealed: Any = connection.execute(query, (BOOKS, entry)).fetchone()
    query = """
        SELECT transfers.id, pair, asset, -amount
        FROM transfers JOIN postings ON postings.transfer_id = transfers.id
            JOIN accounts ON accounts.id = account_id
        WHERE kind = %(kind)s AND amount < 0 AND transfers.id > %(low)s AND transfers.id < %(high)s
            AND postings.transfer_id > %(low)s AND postings.transfer_id < %(high)s
        ORDER BY 1
    """
    given = {"kind": int(TransferKind.FEE_SWEEP), "low": entry, "high": sealed[0]}
    return [Sweep(*row) for row in connection.execute(query, given)]


def closed_days(connection: Connection, first: date, limit: int) -> list[date]:
    """Return the days that are closed, from one on."""
    query = "SELECT DISTINCT day FROM closes WHERE day >= %s ORDER BY 1 LIMIT %s"
    rows = connection.execute(query, (first.isoformat(), limit)).fetchall()
    return [date.fromisoformat(row[0]) for row in rows]


def next_day(connection: Connection) -> date | None:
    """Return the day to close next: after the last one, or that of the first commit."""
    last = connection.execute("SELECT max(day) FROM closes").fetchone()
    if last is not None and last[0] is not None:
        return date.fromisoformat(last[0]) + timedelta(days=1)
    # Whatever else happens, an asset is listed first.
    query = "SELECT min(posted_ns) FROM seals WHERE stream = %s"
    first = connection.execute(query, (BOOKS,)).fetchone()
    if first is None or first[0] is None:
        return None
    return datetime.fromtimestamp(first[0] // 1_000_000_000, UTC).date()
