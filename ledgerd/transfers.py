"""Transfers as somebody asks for them: what they may say, and what they mean. Pure.

A transfer asked for has an id of its own, made by whoever asks. The same id with the same content
is the same transfer, for ever; with other content it is refused.

A pending transfer sets money aside: from the source to the source owner's suspense account. It is
posted, wholly or in part (the rest returns), or voided, once.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from exchange.refusal import Code, Refusal
from ledgerd.chart import BOUND_UNITS, AccountName, Phase, Purpose, TransferKind

LEG_LIMIT: Final = 64
TEXT_CHARACTERS: Final = 200
"""Longest actor or note."""
ASKED_FOR: Final = frozenset(
    {
        TransferKind.DEPOSIT,
        TransferKind.WITHDRAWAL,
        TransferKind.INTERNAL,
        TransferKind.FEE_SWEEP,
        TransferKind.CORRECTION,
        TransferKind.STAKE,
    }
)
"""The kinds that can be asked for; every other kind is the books' own or the engines' to say."""


@dataclass(frozen=True, slots=True)
class Leg:
    """What a transfer does to one account; negative takes."""

    account: AccountName
    amount: int


@dataclass(frozen=True, slots=True)
class NewTransfer:
    """A transfer asked for."""

    id: UUID
    kind: TransferKind
    legs: tuple[Leg, ...] = ()
    """SINGLE: two or more, summing to zero per asset. PENDING: the source, then the target."""
    phase: Phase = Phase.SINGLE
    pending_id: UUID | None = None
    """POSTED, VOIDED: the pending transfer that this resolves."""
    amount: int = 0
    """POSTED: so much of it; 0: all."""
    expires_ns: int = 0
    """PENDING: voided by itself at this time; 0: never."""
    actor: str = ""
    note: str = ""

    def digest(self) -> bytes:
        """Return what tells two contents under one id apart."""
        legs = [[str(leg.account), int(leg.account.owner_kind), leg.amount] for leg in self.legs]
        pending = None if self.pending_id is None else str(self.pending_id)
        content = [int(self.kind), legs, int(self.phase), pending, self.amount, self.expires_ns]
        return hashlib.sha256(json.dumps([*content, self.actor, self.note]).encode()).digest()

    def refusal(self) -> Refusal | None:
        """Return what is wrong with the transfer in itself; None if nothing is."""
        if self.kind not in ASKED_FOR:
            names = ", ".join(sorted(kind.name for kind in ASKED_FOR))
            return _of("KIND_INVALID", "kind", self.kind.name, f"one of {names}")
        for field in ("actor", "note"):
            text = getattr(self, field)
            if len(text) > TEXT_CHARACTERS:
                return _of("TEXT_TOO_LONG", field, text, f"at most {TEXT_CHARACTERS} characters")
            if "\0" in text:
                return _of("TEXT_INVALID", field, text, "without a zero character")
        if self.phase in {Phase.POSTED, Phase.VOIDED}:
            return self._resolving_refusal()
        if self.phase not in {Phase.SINGLE, Phase.PENDING}:
            return _of("PHASE_INVALID", "phase", self.phase.name, "one of the named phases")
        if self.pending_id is not None:
            return _of("PENDING_ID_INVALID", "pending_id", self.pending_id, "empty")
        return self._legs_refusal()

    def _resolving_refusal(self) -> Refusal | None:
        if self.pending_id is None:
            return _of("PENDING_ID_INVALID", "pending_id", "", "the pending transfer to resolve")
        if self.legs:
            return _of("LEGS_INVALID", "legs", len(self.legs), "empty: the pending one has them")
        if not 0 <= self.amount <= BOUND_UNITS:
            return _of("AMOUNT_OUT_OF_RANGE", "amount", self.amount, f"from 0 to {BOUND_UNITS}")
        return None

    def _legs_refusal(self) -> Refusal | None:
        count = len(self.legs)
        pending = self.phase == Phase.PENDING
        if not 2 <= count <= (2 if pending else LEG_LIMIT):
            limit = "the source, then the target" if pending else f"2 to {LEG_LIMIT} legs"
            return _of("LEGS_INVALID", "legs", count, limit)
        sums: dict[str, int] = {}
        for leg in self.legs:
            fault = leg.account.fault()
            if fault is not None:
                return _of("ACCOUNT_INVALID", *fault)
            if leg.amount == 0 or abs(leg.amount) > BOUND_UNITS:
                limit = f"not zero and within {BOUND_UNITS}"
                return _of("AMOUNT_OUT_OF_RANGE", "amount", leg.amount, limit)
            sums[leg.account.asset] = sums.get(leg.account.asset, 0) + leg.amount
        for asset, total in sums.items():
            if total:
                return _of("UNBALANCED", "legs", f"{total} {asset}", "a sum of zero per asset")
        if pending and self.legs[0].amount > 0:
            return _of("LEGS_INVALID", "legs", self.legs[0].amount, "first the source, negative")
        return None

    @property
    def hold(self) -> AccountName:
        """Name the account where a pending transfer's money waits."""
        source = self.legs[0].account
        return AccountName(source.owner_kind, source.owner_id, Purpose.SUSPENSE, source.asset)


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of a transfer asked for."""

    id: UUID
    transfer_id: int
    repeated: bool
    """True if it had been posted before, by an earlier call with the same id and content."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A pending transfer as the books have it."""

    transfer_id: int
    source_id: int
    hold_id: int
    target_id: int
    amount: int
    expires_ns: int
    kind: int
    resolved: bool

    def resolved_by(self, phase: Phase, amount: int) -> list[tuple[int, int]]:
        """Return the legs (account id, amount) of its resolution."""
        forward = 0 if phase == Phase.VOIDED else amount or self.amount
        back = self.amount - forward
        legs = ((self.hold_id, -self.amount), (self.target_id, forward), (self.source_id, back))
        return [(account, units) for account, units in legs if units]


def refused(code: Code, reason: str, message: str) -> Refusal:
    """Return a refusal that concerns no single field."""
    return Refusal(code, reason, message)


def _of(reason: str, field: str, value: object, limit: str) -> Refusal:
    return Refusal.of_field(reason, field, value, limit)


def first_refusal(transfers: Iterable[NewTransfer]) -> Refusal | None:
    """Return the first refusal among transfers asked for together."""
    seen: set[UUID] = set()
    for transfer in transfers:
        refusal = transfer.refusal()
        if refusal is not None:
            return refusal
        if transfer.id in seen:
            return _of("TRANSFER_ID_REUSED", "id", transfer.id, "given once in one call")
        seen.add(transfer.id)
    return None
