"""What the way in and out answers: deposits, withdrawals, listed addresses, and how it stands.

Words and amounts are as in `holdfast.money.answers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

SEEN = "seen"
CREDITED = "credited"
AWAITING_APPROVAL = "awaiting-approval"
UNDER_WAY = frozenset({AWAITING_APPROVAL, "approved", "sending", "sent"})
"""States of a withdrawal that are not its last; `confirmed` is, unless the chain undoes it."""
CONFIRMED = "confirmed"


@dataclass(frozen=True, slots=True)
class DepositAddress:
    """Where an owner deposits an asset."""

    asset: str
    address: str
    confirmations_needed: int


@dataclass(frozen=True, slots=True)
class Deposit:
    """A payment to one of our addresses."""

    id: UUID
    owner_id: int
    asset: str
    amount: Decimal
    address: str
    transaction_id: str
    output_index: int
    state: str
    confirmations: int | None
    """None when that no longer matters, or the custodian is away."""
    confirmations_needed: int
    withheld: Decimal
    """Reversed: so much is withheld from the owner."""
    shortfall: Decimal
    """Reversed: so much the owner no longer had."""
    seen_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class ListedAddress:
    """An address that an owner may withdraw to."""

    id: UUID
    owner_id: int
    asset: str
    address: str
    actor: str
    added_ns: int
    usable_ns: int
    removed_ns: int
    """0: it is listed."""


@dataclass(frozen=True, slots=True)
class AddressList:
    """The addresses of an owner, oldest first, and the service's time to compare with."""

    addresses: tuple[ListedAddress, ...]
    now_ns: int


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Money on its way out, as it stands."""

    id: UUID
    owner_id: int
    asset: str
    amount: Decimal
    address: str
    requester: str
    digest: bytes
    """SHA-256 of what is paid to whom: an approval names what it approves by it."""
    state: str
    approvals_needed: int
    approvers: tuple[str, ...]
    requested_ns: int
    expires_ns: int
    """Without its approvals it is given up then; 0: never."""
    changed_ns: int
    transaction_id: str
    confirmations: int | None
    confirmations_needed: int
    reason: str
    """One sentence on why it is in its state."""
    repeated: bool = False
    """True if the same id had asked for it, or the same person approved it, before."""

    @property
    def under_way(self) -> bool:
        """Say whether its state is going to change."""
        return self.state in UNDER_WAY


@dataclass(frozen=True, slots=True)
class WithdrawalPage:
    """A part of a list of withdrawals."""

    withdrawals: tuple[Withdrawal, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class DepositPage:
    """A part of a list of deposits, newest first."""

    deposits: tuple[Deposit, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class FundsEvent:
    """One change of state, as it is kept for ever."""

    number: int
    subject: UUID
    kind: str
    state: str
    """The state afterwards; empty where there is none."""
    actor: str
    reason: str
    time_ns: int
    alarm: bool


@dataclass(frozen=True, slots=True)
class CarriedAsset:
    """An asset the custodian keeps, and the rules for it."""

    asset: str
    decimals: int
    confirmations_needed: int
    approval_above: tuple[Decimal, ...]
    """One more person has to approve a withdrawal above each of these amounts."""
    holdings: Decimal | None
    """What the custodian has in blocks; None when it is away."""
    booked: Decimal
    """What the books say it has, with what is set aside for deposits."""


@dataclass(frozen=True, slots=True)
class FundsStatus:
    """How the way in and out stands."""

    custodian_reachable: bool
    waiting_for: str
    simulated: bool
    unexplained_payouts: tuple[str, ...]
    alarm_count: int
    undecided_count: int
    counts: Mapping[str, int]
    """By kind and state, such as `withdrawal sent`; states without any are left out."""
    assets: tuple[CarriedAsset, ...]
    address_wait_ns: int
    approval_expiry_ns: int
