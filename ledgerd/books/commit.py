"""One commit of one stream: balances, transfers, postings, the small rows, the seal, the cursor.

Everything that is ever posted goes through `Commit`, inside one transaction at READ COMMITTED:

    lock the stream and compare its cursor → move all balances with one statement → running
    balances by array arithmetic, overdrafts found → COPY → seal → cursor

A transaction that dies anywhere before its end has done nothing. The balances' CHECK and the keys
of transfers, requests, resolutions and instructions are the last guards below all this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import psycopg
from psycopg import sql

from ledgerd.books import chain
from ledgerd.books.copying import (
    P_ACCOUNT,
    P_BALANCE,
    P_TRANSFER,
    POSTINGS,
    T_CHECK,
    TRANSFERS,
    Rows,
)
from ledgerd.models import NUMBER_MASK
from ledgerd.postings import Changes, changes, with_balances

Connection = psycopg.Connection[Any]

_MOVE: Final = """
WITH moved AS (
    UPDATE balances SET amount = amount + delta, version = version + moves
    FROM unnest(%s, %s, %s) AS given (account_id, delta, moves)
    WHERE balances.account_id = given.account_id
    RETURNING balances.account_id::int8 AS account_id, amount, version, minimum, maximum
)
SELECT array_agg(account_id), array_agg(amount), array_agg(version), array_agg(minimum),
    array_agg(maximum)
FROM moved
"""
_SEAL: Final = """
WITH sealed AS (
    INSERT INTO seals (stream, cursor_to, cursor_from, sequence, transfer_count, posting_count,
        posted_ns, previous, hash)
    VALUES (%(stream)s, %(cursor_to)s, %(cursor_from)s, %(sequence)s, %(transfer_count)s,
        %(posting_count)s, %(posted_ns)s, %(previous)s, %(hash)s)
)
UPDATE streams SET cursor = %(cursor_to)s, sequence = %(sequence)s, posted_ns = %(posted_ns)s,
    head = %(hash)s
WHERE id = %(stream)s AND cursor = %(cursor_from)s
"""


class CursorMoved(Exception):
    """The stream is not where its writer believed: somebody else posts it, or it was restored."""

    def __init__(self, stream: int, expected: int, found: int) -> None:
        super().__init__(f"stream {stream} is posted up to {found}, not {expected}")
        self.expected = expected
        self.found = found


class Overdrawn(Exception):
    """A transfer takes what is not there. Nothing of its commit was posted."""

    def __init__(self, account_id: int, transfer_id: int, balance: int) -> None:
        stream, number = transfer_id >> 44, transfer_id & NUMBER_MASK
        super().__init__(
            f"transfer {number} of stream {stream} would leave account {account_id} with {balance}"
        )
        self.account_id = account_id
        self.transfer_id = transfer_id


class BalancesLost(Exception):
    """The balances do not cover the accounts of a commit: the database is not what it was."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where a stream stands, read under its lock."""

    id: int
    cursor: int
    sequence: int
    posted_ns: int
    head: bytes


def lock_stream(connection: Connection, stream: int, cursor: int | None = None) -> StreamState:
    """Take a stream for this transaction. Raises CursorMoved if it is not at `cursor`."""
    found = connection.execute(
        "SELECT cursor, sequence, posted_ns, head FROM streams WHERE id = %s FOR UPDATE",
        (stream,),
        prepare=True,
    ).fetchone()
    if found is None:
        raise CursorMoved(stream, cursor or 0, -1)
    if cursor is not None and found[0] != cursor:
        raise CursorMoved(stream, cursor, found[0])
    return StreamState(stream, found[0], found[1], found[2], bytes(found[3]))


class Commit:
    """What one transaction posts to one stream, gathered and then written."""

    def __init__(self, connection: Connection, state: StreamState) -> None:
        self.connection = connection
        self.state = state
        self._lines: list[str] = []

    def add(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        """Insert rows of one of the small tables, all sealed columns in the order of the chain."""
        if not rows:
            return
        columns = chain.EXTRAS[table]
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(sql.Placeholder() * len(columns)),
        )
        with self.connection.cursor() as cursor:
            cursor.executemany(statement, rows)
        self._lines += [chain.line(table, *row) for row in rows]

    def write(
        self,
        transfers: Rows,
        postings: Rows,
        cursor_to: int,
        sequence: int,
        clock: Callable[[], int],
    ) -> Rows:
        """Move the balances, copy the rows, seal, move the cursor; return the finished postings.

        Raises Overdrawn, BalancesLost, CursorMoved.
        """
        net = changes(postings)
        done = self._moved(postings, net)
        transfers[:, T_CHECK] = chain.row_checks(transfers, done)
        # The clock is read while the balances are locked, so that an account's postings are never
        # stamped in another order than that of their versions.
        posted_ns = max(clock(), self.state.posted_ns)
        numbers = chain.SealedNumbers(
            self.state.id,
            self.state.cursor,
            cursor_to,
            sequence,
            len(transfers),
            len(done),
            posted_ns,
        )
        if len(transfers):
            self._copy(TRANSFERS.copy_in, TRANSFERS.pack(list(transfers.T)))
        if len(done):
            self._copy(POSTINGS.copy_in, POSTINGS.pack(list(done.T)))
        self._seal(numbers, chain.seal_hash(self.state.head, numbers, transfers, done, self._lines))
        return done

    def _copy(self, statement: str, data: bytes) -> None:
        with self.connection.cursor() as cursor, cursor.copy(cast(Any, statement)) as copy:
            copy.write(data)

    def _moved(self, postings: Rows, net: Changes) -> Rows:
        if not len(net.accounts):
            return postings
        try:
            found = self._move(net)
        except psycopg.errors.CheckViolation as error:
            raise self._overdrawn(net) from error
        if len(found) != len(net.accounts):
            missing = sorted(set(net.accounts.tolist()) - set(found[:, 0].tolist()))
            raise BalancesLost(f"account {missing[0]} has no balance")
        found = found[np.argsort(found[:, 0])]
        done = with_balances(postings, net, found[:, 1], found[:, 2])
        low, high = np.repeat(found[:, 3], net.counts), np.repeat(found[:, 4], net.counts)
        outside = np.flatnonzero((done[:, P_BALANCE] < low) | (done[:, P_BALANCE] > high))
        if len(outside):
            first = done[outside[np.argmin(done[outside, P_TRANSFER])]]
            raise Overdrawn(int(first[P_ACCOUNT]), int(first[P_TRANSFER]), int(first[P_BALANCE]))
        return done

    def _move(self, net: Changes) -> Rows:
        """Return account, amount, version, minimum, maximum of each account, in any order."""
        with self.connection.cursor(binary=True) as cursor:
            cursor.execute(_MOVE, (net.accounts, net.deltas, net.counts), prepare=True)
            result = cursor.pgresult
            assert result is not None
            columns = [_int8_array(result.get_value(0, place)) for place in range(5)]
        return np.stack(columns, axis=1)

    def _overdrawn(self, net: Changes) -> Overdrawn:
        """Find whom the CHECK of the balances meant: the transaction is over, so ask anew."""
        self.connection.rollback()
        query = """
            SELECT balances.account_id, amount + delta
            FROM balances JOIN unnest(%s, %s) AS given (account_id, delta)
                ON given.account_id = balances.account_id
            WHERE amount + delta NOT BETWEEN minimum AND maximum ORDER BY 1 LIMIT 1
        """
        found = self.connection.execute(query, (net.accounts, net.deltas)).fetchone()
        account, balance = found or (int(net.accounts[0]), 0)
        return Overdrawn(account, (self.state.id << 44) | self.state.cursor, balance)

    def _seal(self, numbers: chain.SealedNumbers, hashed: bytes) -> None:
        values: dict[str, Any] = {name: getattr(numbers, name) for name in numbers.__slots__}
        values |= {"previous": self.state.head, "hash": hashed}
        moved = self.connection.execute(_SEAL, values, prepare=True)
        if moved.rowcount != 1:
            raise CursorMoved(self.state.id, self.state.cursor, -1)


_ELEMENT = np.dtype([("size", ">i4"), ("value", ">i8")])
_ARRAY_HEAD_BYTES: Final = 20


def _int8_array(data: bytes | None) -> Rows:
    """Return an int8[] value from its binary form; NULL is the empty array."""
    if data is None:
        return np.zeros(0, np.int64)
    return np.frombuffer(data, _ELEMENT, offset=_ARRAY_HEAD_BYTES)["value"].astype(np.int64)
