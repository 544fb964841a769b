"""What a caller may post: which kind takes from and gives to which accounts. Pure.

`RULES` is all of it; docs/ledger.md shows it as a table. What is not in it is moved by the books
themselves: engines' money by settlement and allotment, what enters and leaves by the pipelines of
`ledgerd.custody`, suspense by the resolution of the pending transfer whose money it is.

So whatever callers post, money that was set aside stays there until that is decided, nobody's
money becomes another's but by a CORRECTION, and with a custodian the books never hold more than
came in. CORRECTION is an operator's: it may move any owner's money, and take from the exchange's
suspense what no pending transfer holds (`Entries` looks), such as a withdrawal that came back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from exchange.refusal import Refusal
from ledgerd.chart import OwnerKind, Phase, Purpose, TransferKind
from ledgerd.transfers import Leg, NewTransfer

_P = Purpose
OF_CUSTODY: Final = (TransferKind.DEPOSIT, TransferKind.WITHDRAWAL)
"""Kinds that only the custody pipelines make: each stands for something outside."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a kind may do. Suspense and custody have a condition each, beside the purpose."""

    takes: frozenset[Purpose]
    """May be debited. SUSPENSE: the exchange's, as far as no pending transfer holds it."""
    gives: frozenset[Purpose]
    """May be credited. CUSTODY, either way: only while no custodian holds coins."""
    one_owner: bool
    """All its accounts are one owner's."""
    may_wait: bool
    """It may be pending, and what is pending of it may be resolved."""


_OWN: Final = frozenset({_P.FUNDING, _P.TRADING})
_INVESTED: Final = frozenset({_P.STAKING, _P.THIRD_PARTY})
_EARNED: Final = frozenset({_P.FEES, _P.INSURANCE})
_ANY: Final = _OWN | _INVESTED | _EARNED | {_P.CUSTODY}
RULES: Final[Mapping[TransferKind, Rule]] = {
    TransferKind.INTERNAL: Rule(_OWN, _OWN, one_owner=True, may_wait=True),
    TransferKind.STAKE: Rule(_OWN | _INVESTED, _OWN | _INVESTED, one_owner=True, may_wait=True),
    TransferKind.FEE_SWEEP: Rule(frozenset({_P.FEES}), _EARNED, one_owner=True, may_wait=False),
    TransferKind.CORRECTION: Rule(_ANY | {_P.SUSPENSE}, _ANY, one_owner=False, may_wait=False),
}
"""Every transfer that a caller may post."""


def not_permitted(transfers: Iterable[NewTransfer], *, custodian: bool) -> Refusal | None:
    """Return the first refusal of what a caller asked for; None if all of it is permitted.

    `custodian`: somebody holds coins, and what enters and leaves is booked as that party says.
    """
    refusals = (_refusal(transfer, custodian=custodian) for transfer in transfers)
    return next((refusal for refusal in refusals if refusal is not None), None)


def _refusal(transfer: NewTransfer, *, custodian: bool) -> Refusal | None:
    kind, phase = transfer.kind, transfer.phase
    if kind in OF_CUSTODY:
        limit = "a kind that no deposit or withdrawal is booked as"
        return Refusal.of_field("KIND_OF_CUSTODY", "kind", kind.name, limit)
    rule = RULES[kind]
    if phase != Phase.SINGLE and not rule.may_wait:
        limit = f"SINGLE: a {kind.name} is done at once"
        return Refusal.of_field("PHASE_INVALID", "phase", phase.name, limit)
    owners = {(leg.account.owner_kind, leg.account.owner_id) for leg in transfer.legs}
    for leg in transfer.legs:
        refusal = _leg_refusal(kind, rule, leg, custodian=custodian)
        if refusal is not None:
            return refusal
    if rule.one_owner and len(owners) > 1:
        told = ", ".join(sorted(f"{owner.name.lower()} {number}" for owner, number in owners))
        limit = f"accounts of one owner for {kind.name}"
        return Refusal.of_field("OWNERS_DIFFER", "legs", told, limit)
    return None


def _leg_refusal(kind: TransferKind, rule: Rule, leg: Leg, *, custodian: bool) -> Refusal | None:
    account, purpose = leg.account, leg.account.purpose
    allowed = rule.takes if leg.amount < 0 else rule.gives
    if account.owned_by_engine:
        limit = "an account that no engine owns"
        return Refusal.of_field("ACCOUNT_OF_ENGINE", "account", account, limit)
    if purpose == Purpose.SUSPENSE and (
        purpose not in allowed or account.owner_kind != OwnerKind.EXCHANGE
    ):
        limit = "an account that pending transfers do not set money aside in"
        return Refusal.of_field("ACCOUNT_OF_PENDING", "account", account, limit)
    if purpose == Purpose.CUSTODY and (custodian or purpose not in allowed):
        limit = "an account inside the exchange"
        if not custodian:
            limit += ", unless this is a CORRECTION"
        return Refusal.of_field("ACCOUNT_OF_CUSTODY", "account", account, limit)
    if purpose not in allowed:
        names = ", ".join(sorted(one.name for one in allowed))
        limit = f"{kind.name} {'takes from' if leg.amount < 0 else 'gives to'} {names}"
        return Refusal.of_field("PURPOSE_NOT_OF_KIND", "account", account, limit)
    return None
