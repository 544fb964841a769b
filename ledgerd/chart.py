"""The chart of accounts: who may own what, for which purpose, and within which bounds.

Pure. Amounts are int64 smallest units; what the exchange owes is positive, what custodians hold
for it is negative, so that all balances of an asset sum to zero. Numbers of the enumerations are
the numbers in the database and on the wire: append only.

Users, sub-accounts and market makers share one series of owner numbers, which is also the series
of account numbers in the engines: an owner number names one owner, whatever its kind.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

BOUND_UNITS: Final = 1 << 62
"""No balance leaves ±this: two balances still add up in an int64."""
EXCHANGE_OWNER: Final = 0
"""Owner number of the exchange itself."""
OWNER_LIMIT: Final = 1 << 31
NAME_CHARACTERS: Final = 32
"""Longest name of an asset or a pair."""


class OwnerKind(IntEnum):
    """Who owns an account."""

    UNSPECIFIED = 0
    USER = 1
    SUB_ACCOUNT = 2
    EXCHANGE = 3
    CUSTODIAN = 4
    MARKET_MAKER = 5


class Purpose(IntEnum):
    """What the money in an account is for."""

    UNSPECIFIED = 0
    FUNDING = 1
    TRADING = 2
    ALLOTTED = 3
    """Spendable by one pair's engine and by nobody else; has a pair."""
    FEES = 4
    """Has a pair while it stands where the pair's engine earned it."""
    CUSTODY = 5
    SUSPENSE = 6
    """In flight between two others. With a pair: on its way to that pair's engine."""
    INSURANCE = 7
    STAKING = 8
    THIRD_PARTY = 9


class TransferKind(IntEnum):
    """Why money moved, or what else an entry of the books says."""

    UNSPECIFIED = 0
    ASSET_LISTED = 1
    ACCOUNTS_OPENED = 2
    PAIR_LISTED = 3
    DEPOSIT = 4
    WITHDRAWAL = 5
    INTERNAL = 6
    """Between two accounts of one owner, at the owner's wish."""
    ALLOT = 7
    RELEASE = 8
    TRADE = 9
    FEE_SWEEP = 10
    CORRECTION = 11
    STAKE = 12
    CLOSE = 13
    """The close of a day: moves nothing."""
    SNAPSHOT = 14
    """The root of an asset's liabilities: moves nothing."""
    JOURNAL = 15
    """Something was decided about money that enters or leaves: moves nothing."""


class Phase(IntEnum):
    """Where a transfer stands between intention and fact."""

    UNSPECIFIED = 0
    SINGLE = 1
    """Done at once."""
    PENDING = 2
    """Set aside: taken from the source, not yet with the target."""
    POSTED = 3
    """Resolves a pending one: with the target."""
    VOIDED = 4
    """Resolves a pending one: back with the source."""


TRADERS: Final = (OwnerKind.USER, OwnerKind.SUB_ACCOUNT, OwnerKind.MARKET_MAKER)
PAIRED: Final = frozenset({Purpose.ALLOTTED})
"""Purposes that need a pair."""
PAIRED_OR_NOT: Final = frozenset({Purpose.FEES, Purpose.SUSPENSE})
OF_THE_EXCHANGE: Final = frozenset({Purpose.FEES, Purpose.INSURANCE})


def bounds_of(purpose: int) -> tuple[int, int]:
    """Return the least and the greatest balance of an account for a purpose, inclusive."""
    return (-BOUND_UNITS, 0) if purpose == Purpose.CUSTODY else (0, BOUND_UNITS)


@dataclass(frozen=True, slots=True)
class AccountName:
    """What an account is called by: there is one account for each."""

    owner_kind: OwnerKind
    owner_id: int
    purpose: Purpose
    asset: str
    pair: str = ""

    def __str__(self) -> str:
        pair = f":{self.pair}" if self.pair else ""
        owner = f"{self.owner_kind.name.lower()} {self.owner_id}"
        return f"{self.purpose.name.lower()}{pair} {self.asset} of {owner}"

    def fault(self) -> tuple[str, object, str] | None:
        """Return field, value and limit of what is wrong with the name; None if nothing is."""
        if self.owner_kind == OwnerKind.UNSPECIFIED:
            return "owner_kind", self.owner_kind.name, "one of the named kinds"
        low, high = (1, OWNER_LIMIT - 1) if self.owner_kind in TRADERS else (0, OWNER_LIMIT - 1)
        if not low <= self.owner_id <= high:
            return "owner_id", self.owner_id, f"from {low} to {high}"
        if self.purpose == Purpose.UNSPECIFIED:
            return "purpose", self.purpose.name, "one of the named purposes"
        exchange = self.owner_kind == OwnerKind.EXCHANGE
        if self.purpose in OF_THE_EXCHANGE and not exchange:
            return "owner_kind", self.owner_kind.name, f"EXCHANGE for {self.purpose.name}"
        custody = self.owner_kind in {OwnerKind.CUSTODIAN, OwnerKind.EXCHANGE}
        if self.purpose == Purpose.CUSTODY and not custody:
            return "owner_kind", self.owner_kind.name, "CUSTODIAN or EXCHANGE for CUSTODY"
        if not 0 < len(self.asset) <= NAME_CHARACTERS:
            return "asset", self.asset, f"1 to {NAME_CHARACTERS} characters"
        if self.purpose in PAIRED and not self.pair:
            return "pair", self.pair, f"given for {self.purpose.name}"
        if self.pair and self.purpose not in PAIRED | PAIRED_OR_NOT:
            return "pair", self.pair, f"empty for {self.purpose.name}"
        if len(self.pair) > NAME_CHARACTERS:
            return "pair", self.pair, f"at most {NAME_CHARACTERS} characters"
        return None

    @property
    def bounds(self) -> tuple[int, int]:
        """Return the least and the greatest balance, inclusive."""
        return bounds_of(self.purpose)

    @property
    def owned_by_engine(self) -> bool:
        """Say whether only settlement and allotment may move this account's money."""
        paired = self.purpose in {Purpose.ALLOTTED, Purpose.SUSPENSE}
        return paired and bool(self.pair)


def allotted(owner_kind: OwnerKind, owner_id: int, asset: str, pair: str) -> AccountName:
    """Name what a pair's engine may spend for an owner."""
    return AccountName(owner_kind, owner_id, Purpose.ALLOTTED, asset, pair)


def in_flight(owner_kind: OwnerKind, owner_id: int, asset: str, pair: str) -> AccountName:
    """Name what is on its way from an owner to a pair's engine."""
    return AccountName(owner_kind, owner_id, Purpose.SUSPENSE, asset, pair)


def trading(owner_kind: OwnerKind, owner_id: int, asset: str) -> AccountName:
    """Name what an owner may have allotted."""
    return AccountName(owner_kind, owner_id, Purpose.TRADING, asset)


def fees(asset: str, pair: str = "") -> AccountName:
    """Name what the exchange earned, in a pair or swept together."""
    return AccountName(OwnerKind.EXCHANGE, EXCHANGE_OWNER, Purpose.FEES, asset, pair)
