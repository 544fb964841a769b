"""The digest of accounts, from the page: plain integers cut to 64 bits after each step."""

from collections.abc import Iterable

from exchange.enums import Asset
from tests.reference.accounts import Account

WORD = 1 << 64
GAMMA = 0x9E3779B97F4A7C15


def mixed(word: int) -> int:
    """Return SplitMix64's finaliser."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


def row_digest(*words: int) -> int:
    """Return the digest of a row of words."""
    digest = 0
    for word in words:
        digest = mixed((digest + GAMMA) % WORD ^ word % WORD)
    return digest


def signed(word: int) -> int:
    """Return a sum as the signed 64-bit word it becomes."""
    return (word + WORD // 2) % WORD - WORD // 2


def digest_of(accounts: Iterable[Account], fees: int) -> tuple[int, int, int, int]:
    """Return digest, number of accounts that have anything, and what all have of each asset."""
    rows = [
        (one.number, *(one.free[asset] + one.held[asset] for asset in (Asset.BASE, Asset.QUOTE)))
        for one in accounts
    ]
    filled = [row for row in rows if any(row[1:])]
    fee_rows = [(0, 0, fees)] if fees else []
    digest = sum(row_digest(*row) for row in filled + fee_rows)
    return signed(digest), len(filled), sum(row[1] for row in rows), sum(row[2] for row in rows)
