"""When a withdrawal may be asked for, approved, sent, and what each event makes of it. Pure.

    AWAITING_APPROVAL ──approvals──► APPROVED ──► SENDING ──► SENT ──► CONFIRMED
      │ reject, cancel, expire         │ reject,    │           │          │
      ▼                                ▼ cancel     └─ fail ────┘          ▼ undone by the chain
    REJECTED, CANCELLED, EXPIRED (money back)         FAILED (money back) RETURNED (suspense)

SENDING is written before the custodian is told, so that a process that dies in between knows that
it may have told. From there on nobody can take the withdrawal back; only the custodian's word that
it will never be paid returns the money.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final
from uuid import UUID

from exchange.refusal import Code, Refusal
from ledgerd.chart import BOUND_UNITS, TRADERS, OwnerKind

DAY_NS: Final = 86_400_000_000_000
INT64_MAXIMUM: Final = (1 << 63) - 1


class WithdrawalState(IntEnum):
    """Where a withdrawal stands."""

    UNSPECIFIED = 0
    AWAITING_APPROVAL = 1
    APPROVED = 2
    SENDING = 3
    """The custodian may have been told."""
    SENT = 4
    """The custodian answered; not deep enough in the chain yet."""
    CONFIRMED = 5
    FAILED = 6
    CANCELLED = 7
    REJECTED = 8
    EXPIRED = 9
    RETURNED = 10
    """Confirmed, and then undone by the chain: the money is in the exchange's suspense."""


class WithdrawalEvent(IntEnum):
    """What can happen to a withdrawal."""

    UNSPECIFIED = 0
    APPROVE = 1
    REJECT = 2
    CANCEL = 3
    EXPIRE = 4
    SEND = 5
    ANSWER = 6
    CONFIRM = 7
    FAIL = 8
    RETURN = 9


class Effect(IntEnum):
    """What an event does to the money that was set aside."""

    NONE = 0
    PAID = 1
    """Out of the books, back into custody's debt."""
    REFUNDED = 2
    """Back in the owner's funding account."""
    SUSPENDED = 3
    """Out of custody again, into the exchange's suspense account."""


_S, _E = WithdrawalState, WithdrawalEvent
TRANSITIONS: Final[Mapping[tuple[WithdrawalState, WithdrawalEvent], WithdrawalState]] = {
    (_S.AWAITING_APPROVAL, _E.APPROVE): _S.APPROVED,
    (_S.AWAITING_APPROVAL, _E.REJECT): _S.REJECTED,
    (_S.AWAITING_APPROVAL, _E.CANCEL): _S.CANCELLED,
    (_S.AWAITING_APPROVAL, _E.EXPIRE): _S.EXPIRED,
    (_S.APPROVED, _E.REJECT): _S.REJECTED,
    (_S.APPROVED, _E.CANCEL): _S.CANCELLED,
    (_S.APPROVED, _E.SEND): _S.SENDING,
    (_S.SENDING, _E.ANSWER): _S.SENT,
    (_S.SENDING, _E.FAIL): _S.FAILED,
    (_S.SENT, _E.CONFIRM): _S.CONFIRMED,
    (_S.SENT, _E.FAIL): _S.FAILED,
    (_S.CONFIRMED, _E.RETURN): _S.RETURNED,
}
"""Every change there is."""
EFFECTS: Final = {
    _E.REJECT: Effect.REFUNDED,
    _E.CANCEL: Effect.REFUNDED,
    _E.EXPIRE: Effect.REFUNDED,
    _E.FAIL: Effect.REFUNDED,
    _E.CONFIRM: Effect.PAID,
    _E.RETURN: Effect.SUSPENDED,
}
HELD: Final = (_S.AWAITING_APPROVAL, _S.APPROVED, _S.SENDING, _S.SENT)
"""The money is set aside."""
PAID: Final = (_S.CONFIRMED, _S.RETURNED)
"""The money left."""
UNPAID: Final = (_S.FAILED, _S.CANCELLED, _S.REJECTED, _S.EXPIRED)
"""Over, and the money is back."""
COUNTED: Final = (*HELD, *PAID)
"""Counts against the limits."""


class ReservationState(IntEnum):
    """What is known of a count that riskd was asked for."""

    UNSPECIFIED = 0
    ASKED = 1
    """riskd may count it."""
    TAKEN = 2
    """Counted, and the money is set aside."""
    ENDED = 3
    """Not wanted any more: riskd is told until it answers."""
    RELEASED = 4
    """riskd does not count it."""
    KEPT = 5
    """The withdrawal was paid: riskd counts it until its time is over."""
    REFUSED = 6
    """riskd said that it is too much."""


def after(state: WithdrawalState, event: WithdrawalEvent) -> WithdrawalState | None:
    """Return the state after an event; None if it cannot happen in this state."""
    return TRANSITIONS.get((state, event))


@dataclass(frozen=True, slots=True)
class Limits:
    """What an owner may withdraw of an asset in any 24 hours, as riskd says; None: no limit."""

    daily_units: int | None
    total_daily_units: int | None = None
    """Of all owners together."""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """How careful withdrawals and deposits are."""

    address_waiting_ns: int = DAY_NS
    approval_expiry_ns: int = DAY_NS
    """How long a withdrawal waits for its approvals; 0: for ever."""
    watch_ns: int = 7 * DAY_NS
    """How long the chain is asked again about what was credited or confirmed."""
    confirmations: Mapping[str, int] = field(default_factory=dict)
    confirmations_else: int = 6
    """For an asset that is not named: about an hour of a slow chain."""
    approval_above_units: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """An approval for each of these amounts that a withdrawal is above."""

    def confirmations_needed(self, asset: str) -> int:
        """Return how deep a payment must lie to count."""
        return self.confirmations.get(asset, self.confirmations_else)

    def approvals_needed(self, asset: str, amount_units: int) -> int:
        """Return how many people must approve; one where nobody said otherwise."""
        bands = self.approval_above_units.get(asset, (0,))
        return sum(amount_units > above for above in bands)


@dataclass(frozen=True, slots=True)
class Asked:
    """A withdrawal as somebody asks for it."""

    id: UUID
    owner_kind: OwnerKind
    owner_id: int
    asset: str
    amount_units: int
    address: str
    requester: str

    def digest(self) -> bytes:
        """Return what is approved and paid: the same id with another digest is refused."""
        content = (str(self.id), int(self.owner_kind), self.owner_id, self.asset)
        rest = (self.amount_units, self.address, self.requester)
        return hashlib.sha256(json.dumps([*content, *rest]).encode()).digest()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a request is judged by, read in the transaction that writes it."""

    now_ns: int
    asset_listed: bool
    asset_carried: bool
    account_open: bool
    address_must_be: str | None = None
    """What the custodian wants an address to be, if this one is not."""
    usable_ns: int | None = None
    """When the address may be used; None: it is not listed for this asset."""
    listed_for: str = ""
    """Another asset that the owner listed the address for."""
    frozen: bool = False
    withdrawn_units: int = 0
    """By the owner, of the asset, in the 24 hours before now."""
    total_withdrawn_units: int = 0


def judge_amount(amount_units: int) -> Refusal | None:
    """Return what is wrong with an amount: first zero, then negative, then too large."""
    if amount_units == 0:
        return Refusal.of_field("AMOUNT_ZERO", "amount_units", 0, "at least 1")
    if amount_units < 0:
        return Refusal.of_field("AMOUNT_NEGATIVE", "amount_units", amount_units, "at least 1")
    if amount_units > INT64_MAXIMUM:
        limit = f"at most {BOUND_UNITS}, and {INT64_MAXIMUM} is the largest 64-bit integer"
        return Refusal.of_field("AMOUNT_BEYOND_INT64", "amount_units", amount_units, limit)
    if amount_units > BOUND_UNITS:
        limit = f"at most {BOUND_UNITS}"
        return Refusal.of_field("AMOUNT_OUT_OF_RANGE", "amount_units", amount_units, limit)
    return None


def judge_owner(kind: OwnerKind, owner_id: int) -> Refusal | None:
    """Return what is wrong with an owner in itself: only traders deposit and withdraw."""
    if kind not in TRADERS:
        limit = "USER, SUB_ACCOUNT or MARKET_MAKER"
        return Refusal.of_field("ACCOUNT_UNKNOWN", "owner_kind", kind.name, limit)
    if not 1 <= owner_id < 1 << 31:
        limit = f"from 1 to {(1 << 31) - 1}"
        return Refusal.of_field("ACCOUNT_UNKNOWN", "owner_id", owner_id, limit)
    return None


def judge_request(asked: Asked, facts: Facts, limits: Limits) -> Refusal | None:
    """Return the first reason to refuse a request, in this order; None when there is none.

    amount, owner, asset, account, address, frozen owner, the owner's limit, everybody's limit.
    That there is enough money is checked last, by the books.
    """
    found = judge_amount(asked.amount_units) or judge_owner(asked.owner_kind, asked.owner_id)
    if found is not None:
        return found
    if not facts.asset_listed:
        limit = "an asset that is listed"
        return Refusal.of_field("ASSET_UNKNOWN", "asset", asked.asset, limit)
    if not facts.asset_carried:
        limit = "an asset that the custodian keeps"
        return Refusal.of_field("ASSET_NOT_CARRIED", "asset", asked.asset, limit)
    if not facts.account_open:
        limit = f"an owner with a funding account in {asked.asset}"
        return Refusal.of_field("ACCOUNT_UNKNOWN", "owner_id", asked.owner_id, limit)
    return _judge_address(asked, facts) or _judge_limits(asked, facts, limits)


def _judge_address(asked: Asked, facts: Facts) -> Refusal | None:
    if facts.address_must_be is not None:
        limit = facts.address_must_be
        return Refusal.of_field("ADDRESS_INVALID", "address", asked.address, limit)
    if facts.usable_ns is None and facts.listed_for:
        limit = f"listed for {asked.asset}; the owner listed it for {facts.listed_for}"
        return Refusal.of_field("ADDRESS_OTHER_ASSET", "address", asked.address, limit)
    if facts.usable_ns is None:
        limit = "on the owner's list of addresses"
        return Refusal.of_field("ADDRESS_NOT_LISTED", "address", asked.address, limit)
    if facts.usable_ns > facts.now_ns:
        seconds = -((facts.now_ns - facts.usable_ns) // 1_000_000_000)
        sentence = f"address {asked.address} is listed and can be used in {seconds} s"
        return Refusal(Code.FAILED_PRECONDITION, "ADDRESS_TOO_FRESH", sentence)
    return None


def _judge_limits(asked: Asked, facts: Facts, limits: Limits) -> Refusal | None:
    if facts.frozen:
        sentence = (
            "a deposit of the owner was undone by the chain; nothing leaves until it is clear"
        )
        return Refusal(Code.FAILED_PRECONDITION, "OWNER_FROZEN", sentence)
    for reason, who, limit, before in (
        ("DAILY_WITHDRAWAL_LIMIT", "the owner", limits.daily_units, facts.withdrawn_units),
        (
            "TOTAL_WITHDRAWAL_LIMIT",
            "everybody",
            limits.total_daily_units,
            facts.total_withdrawn_units,
        ),
    ):
        if limit is not None and before + asked.amount_units > limit:
            sentence = (
                f"{who} would withdraw {before + asked.amount_units} {asked.asset} units in"
                f" 24 hours; the limit is {limit}, and {max(0, limit - before)} are left"
            )
            return Refusal(Code.FAILED_PRECONDITION, reason, sentence)
    return None


@dataclass(frozen=True, slots=True)
class Standing:
    """A withdrawal as it stands, for whoever decides about it."""

    id: UUID
    state: WithdrawalState
    requester: str
    expires_ns: int
    digest: bytes


def judge_event(standing: Standing, event: WithdrawalEvent) -> Refusal | None:
    """Return why an event cannot happen to a withdrawal now; None if it can."""
    if after(standing.state, event) is None:
        sentence = (
            f"withdrawal {standing.id} is {standing.state.name}; {event.name} is not possible then"
        )
        return Refusal(Code.FAILED_PRECONDITION, "WITHDRAWAL_STATE", sentence)
    return None


def judge_approval(
    standing: Standing, approver: str, now_ns: int, digest: bytes | None = None
) -> Refusal | None:
    """Return the first reason to refuse an approval; None when there is none.

    `digest`, if given, is what the approver saw: it has to be what would be paid.
    """
    if approver == standing.requester:
        sentence = f"{approver!r} asked for withdrawal {standing.id}; somebody else has to approve"
        return Refusal(Code.PERMISSION_DENIED, "APPROVER_IS_REQUESTER", sentence)
    if digest is not None and digest != standing.digest:
        limit = "the digest of the withdrawal as it stands"
        return Refusal.of_field("CONTENT_CHANGED", "digest", digest.hex(), limit)
    if standing.state == WithdrawalState.EXPIRED or (
        standing.state == WithdrawalState.AWAITING_APPROVAL and 0 < standing.expires_ns <= now_ns
    ):
        sentence = f"withdrawal {standing.id} waited too long for its approvals"
        return Refusal(Code.FAILED_PRECONDITION, "WITHDRAWAL_EXPIRED", sentence)
    return judge_event(standing, WithdrawalEvent.APPROVE)
