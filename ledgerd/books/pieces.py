"""A part of a stream as it lies in the tables: what the seals of some commits cover."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

from ledgerd.books import chain
from ledgerd.books.commit import Connection
from ledgerd.books.copying import P_TRANSFER, POSTINGS, T_ID, TRANSFERS, RowForm, Rows


def copied(connection: Connection, form: RowForm, condition: str) -> Rows:
    """Read rows of integers through COPY, as an array (n, columns)."""
    with connection.cursor() as cursor:
        # The condition is made of our own words and integers.
        statement: Any = form.copy_out(condition)
        with cursor.copy(statement) as copy:
            return form.unpack(b"".join(bytes(part) for part in copy))


@dataclass(frozen=True, slots=True)
class Piece:
    """All that some commits of a stream, one after the other, added."""

    transfers: Rows
    """By id."""
    postings: Rows
    """By account and version."""
    transfer_ids: Rows
    posting_order: Rows
    """Places of the postings by transfer."""
    posting_ids: Rows
    """Their transfers, in that order."""
    lines: list[tuple[int, str]]
    """The sealed lines of the small tables' rows, by the transfer each one names."""

    def between(self, low: int, high: int) -> tuple[Rows, Rows, list[str]]:
        """Return transfers, postings and lines of the transfers from one id to below another."""
        first, end = np.searchsorted(self.transfer_ids, (low, high))
        start, stop = np.searchsorted(self.posting_ids, (low, high))
        begin, behind = (bisect_left(self.lines, (place, "")) for place in (low, high))
        own = self.postings[np.sort(self.posting_order[start:stop])]
        return self.transfers[first:end], own, [text for _, text in self.lines[begin:behind]]


def read_piece(connection: Connection, low: int, high: int) -> Piece:
    """Return what the transfers from one id to below another added."""
    between = f"BETWEEN {low} AND {high - 1}"
    transfers = copied(connection, TRANSFERS, f"WHERE id {between} ORDER BY id")
    postings = copied(
        connection, POSTINGS, f"WHERE transfer_id {between} ORDER BY account_id, version"
    )
    order = np.argsort(postings[:, P_TRANSFER], kind="stable")
    return Piece(
        transfers,
        postings,
        transfers[:, T_ID].copy(),
        order,
        postings[order, P_TRANSFER],
        _lines(connection, between),
    )


def _lines(connection: Connection, between: str) -> list[tuple[int, str]]:
    """Return the sealed lines of the small tables' rows, by the transfer each one names."""
    found: list[tuple[int, str]] = []
    for table, columns in chain.EXTRAS.items():
        place = columns.index("transfer_id")
        statement: Any = f"SELECT {', '.join(columns)} FROM {table} WHERE transfer_id {between}"
        rows = connection.execute(statement).fetchall()
        found += [(row[place], chain.line(table, *row)) for row in rows]
    return sorted(found)
