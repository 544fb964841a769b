"""What is hashed of the books, and how. Pure.

A seal covers one commit of one stream: the previous seal's hash, the seal's own numbers, the
transfers by id, the postings by (account, version), and a line for each other row that the commit
added, sorted. Everything is int64 little-endian, so that anybody can compute it again.

A seal says that something in a commit was changed. The row check says which transfer: 64 bits over
a transfer and all its postings, computed for whole batches at once. It is no secret and no proof;
whoever forges a row and its check is still caught by the seal.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ledgerd.books.copying import (
    P_TRANSFER,
    T_CHECK,
    T_ID,
    Rows,
)

START: Final = b""
"""The head of a chain without seals."""
EXTRAS: Final = {
    "assets": ("code", "decimals", "transfer_id"),
    "accounts": ("id", "owner_kind", "owner_id", "purpose", "pair", "asset", "transfer_id"),
    "streams": ("id", "pair", "base", "quote", "transfer_id"),
    "pendings": ("transfer_id", "source_id", "hold_id", "target_id", "amount", "expires_ns"),
    "resolutions": ("pending_id", "transfer_id"),
    "requests": ("id", "transfer_id", "digest", "actor", "note"),
    "instructions": (
        "stream",
        "number",
        "transfer_id",
        "kind",
        "owner_id",
        "asset",
        "amount",
    ),
    "closes": ("day", "asset", "purpose", "amount", "account_count", "transfer_id"),
    "snapshots": ("id", "asset", "time_ns", "root", "total", "leaf_count", "transfer_id"),
    "money_tips": ("number", "hash", "transfer_id"),
}
"""The small tables, and which of their columns are sealed: each row with the transfer it names."""
_ODD: Final = (
    0x9E3779B97F4A7C15,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0xD6E8FEB86659FD93,
    0xA0761D6478BD642F,
    0xE7037ED1A0B428DB,
)
_SHIFT = np.uint64(29)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True, slots=True)
class SealedNumbers:
    """The numbers of a seal, in the order in which they are hashed."""

    stream: int
    cursor_from: int
    cursor_to: int
    sequence: int
    transfer_count: int
    posting_count: int
    posted_ns: int

    def in_bytes(self) -> bytes:
        """Return the numbers as int64 little-endian."""
        numbers = [getattr(self, name) for name in self.__slots__]
        return np.array(numbers, "<i8").tobytes()


def seal_hash(
    previous: bytes, numbers: SealedNumbers, transfers: Rows, postings: Rows, lines: Iterable[str]
) -> bytes:
    """Return the SHA-256 of a commit on top of what was there before.

    `transfers` (t, 6) sorted by id and `postings` (p, 6) sorted by account and version have the
    columns of `ledgerd.books.copying`; `lines` are the other rows, in any order.
    """
    digest = hashlib.sha256(len(previous).to_bytes(1, "little") + previous)
    digest.update(numbers.in_bytes())
    digest.update(np.ascontiguousarray(transfers, "<i8").data)
    digest.update(np.ascontiguousarray(postings, "<i8").data)
    for line in sorted(lines):
        digest.update(line.encode() + b"\n")
    return digest.digest()


def line(table: str, *values: object) -> str:
    """Return the line that stands for a row of one of the small tables."""
    shown = (value.hex() if isinstance(value, bytes) else str(value) for value in values)
    # Text is quoted, so that no tab or line end in it can pass for another value or row.
    return "\t".join((table, *map(repr, shown)))


def _mixed(rows: Rows, columns: Iterable[int]) -> Rows:
    """Return one well-mixed word a row over the columns; order of columns matters."""
    word = np.zeros(len(rows), np.uint64)
    for place, column in enumerate(columns):
        word ^= rows[:, column].astype(np.uint64)
        word *= np.uint64(_ODD[place])
        word ^= word >> _SHIFT
    word *= _MIX
    word ^= word >> _SHIFT
    return word.view(np.int64)


def row_checks(transfers: Rows, postings: Rows) -> Rows:
    """Return the check of each transfer over itself and its postings (n).

    Transfers are sorted by id and every posting belongs to one of them.
    """
    checks = _mixed(transfers, (column for column in range(6) if column != T_CHECK))
    places = np.searchsorted(transfers[:, T_ID], postings[:, P_TRANSFER])
    np.add.at(checks, places, _mixed(postings, range(6)))
    return checks
