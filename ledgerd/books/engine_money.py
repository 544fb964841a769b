"""What a pair's engine must hold according to the books: kept beside settlement, never asked for.

Read in full once, from the balances of `allotted:<pair>`; from then on every settled batch changes
what it changed. So the digest of all accounts (`exchange.account_digest`) at any execution costs
no more than the accounts of its batch, and can be held against what the engine says of itself.

The engine counts the fees it has ever taken; the books have swept some of them away. What the
pair's own stream posted to the fee account is that account's balance less what the books' stream
posted there, which is a few rows with an index of their own.

Not in the database: whatever is wrong here is gone after a restart, what is wrong in the balances
is not.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from exchange.account_digest import AccountDigest, digest_of
from ledgerd.books.copying import P_ACCOUNT, P_AMOUNT, P_BALANCE, P_TRANSFER, Rows
from ledgerd.postings import PairAccounts

_WORDS: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Step:
    """What a batch does to the money of an engine, before it is certain that it was posted."""

    cursor_to: int
    owners: Rows
    units: Rows
    """(k, 2): what these owners have afterwards."""
    digest: AccountDigest
    """Of all accounts, afterwards."""
    told: list[AccountDigest]
    """The same at each place that was asked for."""


class EngineMoney:
    """All accounts of one pair's engine at the cursor of its stream."""

    def __init__(self, accounts: PairAccounts, units: Rows, fee_units: int, cursor: int) -> None:
        """Take what every owner (n, 2) has of base and quote, and the fees ever taken."""
        self.cursor = cursor
        self.units = units
        self.digest = digest_of(np.arange(len(units)), units[:, 0], units[:, 1], fee_units)
        self._fees = accounts.fees
        size = 1 + int(max(accounts.allotted.max(initial=0), accounts.fees))
        self._place_of = np.full(size, -1, np.int64)
        """Owner and asset of each account id, as one number; -1 of those that are no engine's."""
        self._place_of[accounts.allotted.ravel()] = np.arange(accounts.allotted.size)
        # Where there is no account, the table of accounts says 0.
        self._place_of[0] = -1

    def step(self, done: Rows, asked: list[int], cursor_to: int) -> Step:
        """Return what finished postings (n, 6), sorted by account and version, do.

        `asked` are ids of executions, rising: the digest is told as of each of them.
        """
        ids, accounts = done[:, P_TRANSFER], np.ascontiguousarray(done[:, P_ACCOUNT])
        # Each account's postings stand together, in the order of their transfers.
        ends = np.flatnonzero(np.append(accounts[1:] != accounts[:-1], True)[: len(accounts)]) + 1
        starts = np.append(0, ends[:-1])[: len(ends)]
        fees = slice(*np.searchsorted(accounts, (self._fees, self._fees + 1)))
        known = accounts[starts]
        places = self._place_of[np.where(known < len(self._place_of), known, 0)]
        mine = np.flatnonzero(places >= 0)
        starts, ends, places = starts[mine], ends[mine], places[mine]
        owners, where = _distinct(places >> 1, len(self.units))
        units = self.units[owners]
        others = _added(self.digest, _negative(_of(owners, units)))

        def as_of(high: int) -> AccountDigest:
            before = np.append(0, np.cumsum(ids < high))
            counts = before[ends] - before[starts]
            moved = np.flatnonzero(counts)
            last = done[starts[moved] + counts[moved] - 1, P_BALANCE]
            units[where[moved], places[moved] & 1] = last
            paid = int(done[fees, P_AMOUNT][ids[fees] < high].sum())
            return _with_fees(_added(others, _of(owners, units)), paid)

        told = [as_of(high) for high in asked]
        end = int(ids.max(initial=0)) + 1
        if not asked or asked[-1] < end:
            return Step(cursor_to, owners, units, as_of(end), told)
        return Step(cursor_to, owners, units, told[-1], told)

    def take(self, step: Step) -> None:
        """Go one step further, once the batch is posted."""
        self.units[step.owners] = step.units
        self.digest, self.cursor = step.digest, step.cursor_to


def _distinct(owners: Rows, size: int) -> tuple[Rows, Rows]:
    """Return the distinct numbers below a size, rising, and each given one's place among them."""
    seen = np.zeros(size, np.bool_)
    seen[owners] = True
    distinct = np.flatnonzero(seen)
    places = np.zeros(size, np.int64)
    places[distinct] = np.arange(len(distinct))
    return distinct, places[owners]


def _of(owners: Rows, units: Rows) -> AccountDigest:
    return digest_of(owners, units[:, 0], units[:, 1], 0)


def _negative(one: AccountDigest) -> AccountDigest:
    return AccountDigest(*(-value for value in one))


def _signed(word: int) -> int:
    word %= _WORDS
    return word - _WORDS if word >> 63 else word


def _added(one: AccountDigest, other: AccountDigest) -> AccountDigest:
    digest, *sums = (a + b for a, b in zip(one, other, strict=True))
    return AccountDigest(_signed(digest), *sums)


def _with_fees(one: AccountDigest, paid: int) -> AccountDigest:
    """Return the digest after more fees were paid: their row is another one then."""
    none = np.zeros(0, np.int64)
    before = digest_of(none, none, none, one.fee_units)
    after = digest_of(none, none, none, one.fee_units + paid)
    return _added(_added(one, _negative(before)), after)
