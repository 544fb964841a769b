"""One number for all the money an engine keeps, computed alike by the engine and by the books.

    row digest   of (account, base units, quote units), 64 bits: starting from 0, each of the three
                 words w in this order turns h into mix((h + GAMMA) ^ w)
    digest       the sum modulo 2**64 of the row digests of all accounts that have anything, and,
                 if fees were taken, of the row (0, 0, fees in quote units)

`mix` is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014; its constants are Stafford's variant 13 of MurmurHash3's finaliser), and
GAMMA is SplitMix64's increment. All steps are invertible, so two rows that differ in one word never
have one digest; a sum does not depend on the order in which accounts are visited.

It finds faults, not forgeries: two different states have one digest with a chance of 2**-64, but
somebody who may choose balances can find such states. The plain sums stand beside it wherever it
is told, so that a difference can be read in units at once.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from exchange.compiled import inlined

GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR: Final = np.uint64(0x94D049BB133111EB)
_FIRST_SHIFT: Final = np.uint64(30)
_SECOND_SHIFT: Final = np.uint64(27)
_LAST_SHIFT: Final = np.uint64(31)

Words = npt.NDArray[np.uint64]
Units = npt.NDArray[np.int64]


def _mix(word: Any) -> Any:
    """Return SplitMix64's finaliser of uint64 words."""
    word = (word ^ (word >> _FIRST_SHIFT)) * _FIRST_FACTOR
    word = (word ^ (word >> _SECOND_SHIFT)) * _SECOND_FACTOR
    return word ^ (word >> _LAST_SHIFT)


mix = inlined(_mix)
"""The same inside compiled code: uint64 in, uint64 out."""


@inlined
def row_digest(account: Any, base_units: Any, quote_units: Any) -> Any:
    """Return the row digest of three uint64, inside compiled code."""
    digest = mix(GAMMA ^ account)
    digest = mix((digest + GAMMA) ^ base_units)
    return mix((digest + GAMMA) ^ quote_units)


def row_digests(accounts: Units, base_units: Units, quote_units: Units) -> Words:
    """Return the row digest of each account (n,), totals in smallest units, free and held."""
    digests: Words = np.zeros(len(accounts), np.uint64)
    for words in (accounts, base_units, quote_units):
        digests = _mix((digests + GAMMA) ^ np.asarray(words, np.int64).view(np.uint64))
    return digests


class AccountDigest(NamedTuple):
    """What a DIGEST execution says, or what the books say of the same accounts."""

    digest: int
    """The sum of row digests, as the signed word that the execution carries."""
    account_count: int
    """Accounts that have anything; the row of fees is not counted."""
    base_units: int
    """What all accounts have of the base asset, free and held."""
    quote_units: int
    """What all accounts have of the quote asset, free and held."""
    fee_units: int
    """Fees taken, in quote units, not part of any account."""


def digest_of(
    accounts: Units, base_units: Units, quote_units: Units, fee_units: int
) -> AccountDigest:
    """Return the digest of all accounts (n,) and the fees taken; each account stands in once.

    Accounts that have nothing may stand in or be left out.
    """
    base, quote = np.asarray(base_units, np.int64), np.asarray(quote_units, np.int64)
    filled = np.flatnonzero((base != 0) | (quote != 0))
    base, quote = base[filled], quote[filled]
    rows = row_digests(np.asarray(accounts, np.int64)[filled], base, quote)
    total = int(rows.sum(dtype=np.uint64))
    if fee_units != 0:
        zero = np.zeros(1, np.int64)
        total += int(row_digests(zero, zero, np.array([fee_units], np.int64))[0])
    total %= 1 << 64
    signed = total - (1 << 64) if total >> 63 else total
    return AccountDigest(signed, len(filled), int(base.sum()), int(quote.sum()), fee_units)
