"""What each step of a deposit or withdrawal reads and writes: state, event, transfers.

Called within one transaction (`ledgerd.custody.journal.Step`); decides nothing. Which step is next
is `deposit_rules` and `withdrawal_rules`; when it is taken is `deposits` and `withdrawals`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from exchange.refusal import Code, Refusal, Refused
from ledgerd.chart import EXCHANGE_OWNER, TRADERS, AccountName, OwnerKind, Phase, Purpose
from ledgerd.chart import TransferKind as Kind
from ledgerd.custody.deposit_rules import DepositState, DepositStep
from ledgerd.custody.journal import Change, Step, Subject, digest_of, funding, transfer_id
from ledgerd.custody.withdrawal_rules import (
    COUNTED,
    DAY_NS,
    EFFECTS,
    Asked,
    Effect,
    Facts,
    Limits,
    Standing,
    WithdrawalEvent,
    WithdrawalState,
    after,
)

SERVICE_ACTOR: Final = "ledgerd"
DEPOSIT_COLUMNS: Final = (
    "id, transaction_id, output_index, asset, address, owner_kind, owner_id, amount_units, state,"
    " attempt, withheld_units, shortfall_units, seen_ns, changed_ns"
)
WITHDRAWAL_COLUMNS: Final = (
    "id, owner_kind, owner_id, asset, amount_units, address, requester, digest, state,"
    " approvals_needed, limits_version, requested_ns, expires_ns, changed_ns, transaction_id,"
    " reason"
)


@dataclass(frozen=True, slots=True)
class Deposit:
    """A deposit as the books have it."""

    id: UUID
    transaction_id: str
    output_index: int
    asset: str
    address: str
    owner_kind: OwnerKind
    owner_id: int
    amount_units: int
    state: DepositState
    attempt: int = 0
    withheld_units: int = 0
    shortfall_units: int = 0
    seen_ns: int = 0
    changed_ns: int = 0

    @property
    def content(self) -> bytes:
        """Return the digest of what never changes."""
        return digest_of(
            *(self.id, self.transaction_id, self.output_index, self.asset, self.address),
            *(int(self.owner_kind), self.owner_id, self.amount_units),
        )

    @property
    def holding(self) -> UUID:
        """Return the id of the pending transfer of the current attempt."""
        return transfer_id(self.id, f"hold {self.attempt}")

    @property
    def resolving(self) -> UUID:
        """Return the id of the transfer that resolves the current attempt."""
        return transfer_id(self.id, f"resolve {self.attempt}")


def deposit_of(row: Sequence[Any]) -> Deposit:
    """Return the deposit that a row of DEPOSIT_COLUMNS is."""
    made, transaction, index, asset, address, kind, owner, amount, state, *rest = row
    payment = made, transaction, index, asset, address
    return Deposit(*payment, OwnerKind(kind), owner, amount, DepositState(state), *rest)


def custody_account(asset: str) -> AccountName:
    """Name what the custodian holds for us, as a debt: at or below zero."""
    return AccountName(OwnerKind.EXCHANGE, EXCHANGE_OWNER, Purpose.CUSTODY, asset)


def is_frozen(step: Step, owner_id: int) -> bool:
    """Say whether a deposit of an owner stands reversed."""
    query = "SELECT 1 FROM deposits WHERE owner_id = %s AND state = %s LIMIT 1"
    return step.row(query, owner_id, int(DepositState.REVERSED)) is not None


def alarm_once(step: Step, subject: UUID, reason: str, content: bytes) -> None:
    """Tell of a payment that cannot become a deposit, once."""
    query = "SELECT 1 FROM money_events WHERE subject = %s AND reason = %s"
    if step.row(query, subject, reason[:200]) is None:
        step.record(
            Change(subject, Subject.NOTICE, 0, 0, SERVICE_ACTOR, reason[:200], content, alarm=True)
        )


def insert(step: Step, deposit: Deposit) -> None:
    """Write a deposit that was never seen before."""
    step.insert(
        "deposits",
        {"id": deposit.id},
        {
            "transaction_id": deposit.transaction_id,
            "output_index": deposit.output_index,
            "asset": deposit.asset,
            "address": deposit.address,
            "owner_kind": deposit.owner_kind,
            "owner_id": deposit.owner_id,
            "amount_units": deposit.amount_units,
            "state": deposit.state,
            "attempt": 0,
            "withheld_units": 0,
            "shortfall_units": 0,
            "seen_ns": deposit.seen_ns,
            "changed_ns": deposit.changed_ns,
        },
    )


def _changed(
    step: Step,
    deposit: Deposit,
    state: DepositState,
    reason: str,
    *,
    actor: str = SERVICE_ACTOR,
    alarm: bool = False,
    withheld: tuple[int, int] = (0, 0),
    attempt: int | None = None,
) -> Deposit:
    number = deposit.attempt if attempt is None else attempt
    values = {
        "state": state,
        "attempt": number,
        "withheld_units": withheld[0],
        "shortfall_units": withheld[1],
        "changed_ns": step.now_ns,
    }
    step.update("deposits", {"id": deposit.id}, values)
    kind, content = Subject.DEPOSIT, deposit.content
    step.record(Change(deposit.id, kind, deposit.state, state, actor, reason, content, alarm=alarm))
    row = step.row(f"SELECT {DEPOSIT_COLUMNS} FROM deposits WHERE id = %s", deposit.id)
    assert row is not None
    return deposit_of(row)


def _target(deposit: Deposit) -> AccountName:
    return funding(deposit.owner_kind, deposit.owner_id, deposit.asset)


def _hold(step: Step, deposit: Deposit, confirmations: int) -> Deposit:
    source, target = custody_account(deposit.asset), _target(deposit)
    step.open(source, target)
    attempt = deposit.attempt + 1
    held = transfer_id(deposit.id, f"hold {attempt}")
    step.hold(held, Kind.DEPOSIT, source, target, deposit.amount_units)
    reason = f"in a block, {confirmations} confirmations"
    again = deposit.state == DepositState.LOST
    return _changed(step, deposit, DepositState.SEEN, reason, attempt=attempt, alarm=again)


def _credited(step: Step, deposit: Deposit, confirmations: int) -> Deposit:
    step.resolve(deposit.resolving, deposit.holding, Kind.DEPOSIT, Phase.POSTED)
    return _changed(step, deposit, DepositState.CREDITED, f"{confirmations} confirmations")


def claimed(step: Step, deposit: Deposit, actor: str) -> Deposit:
    """Credit what a person claims."""
    step.resolve(deposit.resolving, deposit.holding, Kind.DEPOSIT, Phase.POSTED)
    return _changed(step, deposit, DepositState.CREDITED, "claimed", actor=actor)


def _void(step: Step, deposit: Deposit, _confirmations: int) -> Deposit:
    step.resolve(deposit.resolving, deposit.holding, Kind.DEPOSIT, Phase.VOIDED)
    return _changed(step, deposit, DepositState.VOIDED, "no longer in a block")


def _reverse(step: Step, deposit: Deposit, confirmations: int) -> Deposit:
    source = _target(deposit)
    withheld = min(step.balance(source), deposit.amount_units)
    shortfall = deposit.amount_units - withheld
    attempt = deposit.attempt + 1
    if withheld:
        held = transfer_id(deposit.id, f"hold {attempt}")
        step.hold(held, Kind.CORRECTION, source, custody_account(deposit.asset), withheld)
    return _changed(
        step,
        deposit,
        DepositState.REVERSED,
        f"credited, and now with {confirmations} confirmations: {withheld} withheld, {shortfall}"
        " no longer there",
        alarm=True,
        withheld=(withheld, shortfall),
        attempt=attempt,
    )


def _restore(step: Step, deposit: Deposit, confirmations: int) -> Deposit:
    if deposit.withheld_units:
        step.resolve(deposit.resolving, deposit.holding, Kind.CORRECTION, Phase.VOIDED)
    reason = f"back with {confirmations} confirmations"
    return _changed(step, deposit, DepositState.CREDITED, reason)


def lost(step: Step, deposit: Deposit, actor: str) -> Deposit:
    """Take what a person writes off out of the books."""
    custody = custody_account(deposit.asset)
    if deposit.withheld_units:
        step.resolve(deposit.resolving, deposit.holding, Kind.CORRECTION, Phase.POSTED)
    if deposit.shortfall_units:
        insurance = AccountName(
            OwnerKind.EXCHANGE, EXCHANGE_OWNER, Purpose.INSURANCE, deposit.asset
        )
        made = transfer_id(deposit.id, f"insurance {deposit.attempt}")
        step.open(insurance)
        step.move(made, Kind.CORRECTION, insurance, custody, deposit.shortfall_units)
    units = f"{deposit.withheld_units} from the owner, {deposit.shortfall_units} from insurance"
    return _changed(step, deposit, DepositState.LOST, f"written off: {units}", actor=actor)


def _unclaim(step: Step, deposit: Deposit, _confirmations: int) -> Deposit:
    reason = f"ASSET_WRONG: {deposit.asset} sent to an address of another asset"
    return _changed(step, deposit, DepositState.UNCLAIMED, reason, alarm=True)


STEPS: Final[dict[DepositStep, Callable[[Step, Deposit, int], Deposit]]] = {
    DepositStep.HOLD: _hold,
    DepositStep.CREDIT: _credited,
    DepositStep.VOID: _void,
    DepositStep.REVERSE: _reverse,
    DepositStep.RESTORE: _restore,
    DepositStep.UNCLAIM: _unclaim,
}


class ContentChanged(RuntimeError):
    """What would be paid is not what was asked for and approved: the row was tampered with."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A withdrawal as the books have it."""

    asked: Asked
    digest: bytes
    state: WithdrawalState
    approvals_needed: int
    limits_version: int
    requested_ns: int
    expires_ns: int
    changed_ns: int
    transaction_id: str
    reason: str
    repeated: bool = False
    """The answer to a request or approval that had been given before."""

    @property
    def id(self) -> UUID:
        """Return the withdrawal's id, which is the payout's as well."""
        return self.asked.id

    @property
    def holding(self) -> UUID:
        """Return the id of the pending transfer."""
        return transfer_id(self.id, "hold")

    @property
    def resolving(self) -> UUID:
        """Return the id of the transfer that resolves it."""
        return transfer_id(self.id, "resolve")

    @property
    def standing(self) -> Standing:
        """Return what decisions are made on."""
        requester = self.asked.requester
        return Standing(self.id, self.state, requester, self.expires_ns, self.digest)


def withdrawal_of(row: Sequence[Any]) -> Withdrawal:
    """Return the withdrawal that a row of WITHDRAWAL_COLUMNS is."""
    made, kind, owner, asset, amount, address, requester, digest, state = row[:9]
    asked = Asked(made, OwnerKind(kind), owner, asset, amount, address, requester)
    return Withdrawal(asked, bytes(digest), WithdrawalState(state), *row[9:])


def locked(step: Step, subject: UUID) -> Withdrawal:
    """Read a withdrawal for this transaction. Raises Refused if there is none, ContentChanged."""
    row = step.row(
        f"SELECT {WITHDRAWAL_COLUMNS} FROM withdrawals WHERE id = %s FOR UPDATE", subject
    )
    if row is None:
        sentence = f"there is no withdrawal {subject}"
        raise Refused(Refusal(Code.NOT_FOUND, "WITHDRAWAL_UNKNOWN", sentence))
    found = withdrawal_of(row)
    if found.asked.digest() != found.digest:
        raise ContentChanged(f"withdrawal {subject} is not what was asked for")
    return found


def happened(
    step: Step,
    found: Withdrawal,
    event: WithdrawalEvent,
    actor: str,
    reason: str,
    payment: str = "",
) -> Withdrawal:
    """Let an event happen: state, money, journal."""
    state = after(found.state, event)
    assert state is not None, (found.state, event)
    asked, effect = found.asked, EFFECTS.get(event, Effect.NONE)
    if effect in {Effect.PAID, Effect.REFUNDED}:
        phase = Phase.POSTED if effect == Effect.PAID else Phase.VOIDED
        step.resolve(found.resolving, found.holding, Kind.WITHDRAWAL, phase)
    elif effect == Effect.SUSPENDED:
        suspense = AccountName(OwnerKind.EXCHANGE, EXCHANGE_OWNER, Purpose.SUSPENSE, asked.asset)
        step.open(suspense)
        source, made = custody_account(asked.asset), transfer_id(found.id, "returned")
        step.move(made, Kind.CORRECTION, source, suspense, asked.amount_units)
    known = payment or found.transaction_id
    values = {
        "state": state,
        "changed_ns": step.now_ns,
        "transaction_id": known,
        "reason": reason,
    }
    step.update("withdrawals", {"id": asked.id}, values)
    alarm = effect == Effect.SUSPENDED
    told = (actor, reason, found.digest)
    step.record(Change(asked.id, Subject.WITHDRAWAL, found.state, state, *told, alarm=alarm))
    return replace(found, state=state, changed_ns=step.now_ns, transaction_id=known, reason=reason)


def approvals_of(step: Step, found: Withdrawal) -> int:
    """Return how many people consented to a withdrawal as it is."""
    query = (
        "SELECT count(*) FROM withdrawal_approvals"
        " WHERE withdrawal_id = %s AND digest = %s AND approver <> %s"
    )
    row = step.row(query, found.id, found.digest, found.asked.requester)
    assert row is not None
    return int(row[0])


def usable_since(step: Step, asked: Asked) -> tuple[int | None, str]:
    """Return from when on an address may be used (None: not listed), and for what else it is."""
    listed = step.rows(
        "SELECT asset, usable_ns FROM withdrawal_addresses WHERE owner_id = %s"
        " AND owner_kind = %s AND address = %s AND removed_ns = 0 ORDER BY usable_ns",
        *(asked.owner_id, int(asked.owner_kind), asked.address),
    )
    usable = [int(usable_ns) for asset, usable_ns in listed if asset == asked.asset]
    others = [str(asset) for asset, _ in listed if asset != asked.asset]
    return min(usable, default=None), ", ".join(others)


def _withdrawn(step: Step, asked: Asked, limits: Limits) -> tuple[int, int]:
    """Return what the owner and everybody withdrew in 24 hours; nothing where nothing limits it.

    All of a day's withdrawals of the asset are read for it, which most ask for in vain: riskd
    counts them where there is one.
    """
    if limits.daily_units is None and limits.total_daily_units is None:
        return 0, 0
    query = (
        "SELECT coalesce(sum(amount_units) FILTER (WHERE owner_id = %s), 0),"
        " coalesce(sum(amount_units), 0) FROM withdrawals"
        " WHERE asset = %s AND requested_ns > %s AND state = ANY(%s)"
    )
    counted = [int(state) for state in COUNTED]
    sums = step.row(query, asked.owner_id, asked.asset, step.now_ns - DAY_NS, counted)
    assert sums is not None
    return int(sums[0]), int(sums[1])


def facts_of(step: Step, asked: Asked, limits: Limits) -> Facts:
    """Read what a request is judged by."""
    name = funding(asked.owner_kind, asked.owner_id, asked.asset)
    usable_ns, listed_for = usable_since(step, asked)
    withdrawn, total = _withdrawn(step, asked, limits)
    return Facts(
        now_ns=step.now_ns,
        asset_listed=step.row("SELECT 1 FROM assets WHERE code = %s", asked.asset) is not None,
        asset_carried=True,
        account_open=asked.owner_kind in TRADERS and name in step.entries.known([name]),
        usable_ns=usable_ns,
        listed_for=listed_for,
        frozen=is_frozen(step, asked.owner_id),
        withdrawn_units=withdrawn,
        total_withdrawn_units=total,
    )
