"""What a custodian must be able to do, and what may be believed of what it says.

Two rules make every custodian safe to work with:

* A notice is a hint and nothing more. It may come twice, late, in any order, or from a block that
  is gone; it only says which payment to ask about. What counts is the answer to `incoming`.
* A payout is known by its id. Asked to broadcast the same id again, the custodian broadcasts
  nothing new and answers with the transaction that it made the first time; the same id with other
  content is an error. FAILED is final: the custodian knows that this id will never be paid.

A custodian that cannot be reached raises `CustodyUnavailable`: then nothing is known, nothing is
assumed, and the question is asked again later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn, Protocol
from uuid import UUID


class Unanswered(RuntimeError):
    """Somebody else's service gave no answer: nothing is known, and the question is asked again."""


class CustodyUnavailable(Unanswered):
    """The custodian gave no answer; whether it did what was asked is not known."""


class PayoutConflict(RuntimeError):
    """A payout id was used before with other content: two payments would share one id."""


class PayoutState(IntEnum):
    """Where a payout stands, as the custodian sees it now."""

    UNSPECIFIED = 0
    UNKNOWN = 1
    """The custodian was never asked to pay it."""
    ACCEPTED = 2
    """It will be, or is, in a block; `confirmations` says how deep."""
    FAILED = 3
    """It was not and never will be paid."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A hint that something about a payment may have changed."""

    number: int
    """Position in the custodian's list of notices, from 0."""
    transaction_id: str
    output_index: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """A payment to one of our addresses as the chain has it now."""

    transaction_id: str
    output_index: int
    asset: str
    address: str
    amount_units: int
    confirmations: int
    """Blocks from the one it is in to the newest, both counted; 0: in no block now."""


@dataclass(frozen=True, slots=True)
class Payout:
    """A payment that a custodian is asked to make."""

    id: UUID
    asset: str
    address: str
    amount_units: int


@dataclass(frozen=True, slots=True)
class PayoutStatus:
    """What became of a payout."""

    state: PayoutState
    transaction_id: str = ""
    confirmations: int = 0


class Custody(Protocol):
    """Whoever keeps the coins. Every method may raise CustodyUnavailable."""

    def carries(self, asset: str) -> bool:
        """Say whether the custodian keeps this asset."""

    def new_address(self, asset: str, key: str) -> str:
        """Return the address for a key: the same one whenever asked."""

    def address_fault(self, asset: str, address: str) -> str | None:
        """Return what is wrong with an address to pay to; None if it can be paid to."""

    def notices(self, start: int, limit: int) -> Sequence[Notice]:
        """Return at most `limit` notices numbered from `start` on."""

    def incoming(self, transaction_id: str, output_index: int) -> Incoming | None:
        """Return a payment as the chain has it now; None if it never was one of ours."""

    def broadcast(self, payout: Payout) -> PayoutStatus:
        """Pay, once for each id. Raises PayoutConflict when the id had other content."""

    def payout(self, payout_id: UUID) -> PayoutStatus:
        """Return what became of a payout."""

    def payouts(self) -> Sequence[Payout]:
        """Return all payouts that it was ever asked to make, oldest first."""

    def holdings_units(self, asset: str) -> int:
        """Return the coins that are on the chain and under our keys now."""


class NoCustodian:
    """What stands where no custodian was given: it never answers."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        """Return a method that says so."""

        def unanswered(*_: object) -> NoReturn:
            raise CustodyUnavailable("ledgerd was started without a custodian: see --custodian")

        return unanswered
