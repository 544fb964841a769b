"""Withdrawals: from a request to the chain's word, once, through any crash.

Each change of state is one transaction: state, event, transfer. The custodian is spoken to between
two of them, by the withdrawal's own id, for which it pays once. So whoever finds a withdrawal in
any state can go on with it, and two processes at once do no harm: the second finds the state moved.

    requested           the owner's funding −, the owner's suspense +     (pending)
    CONFIRMED           suspense −, custody +                             (posted)
    given up, FAILED    suspense −, the owner's funding +                 (voided)
    RETURNED            custody −, the exchange's suspense +, loudly

The pending transfer has no expiry of its own: once the custodian may have been told, time alone
must not give the money back. Waiting for approvals expires here instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from exchange.refusal import Code, Refusal, Refused
from ledgerd.books.commit import Connection
from ledgerd.chart import EXCHANGE_OWNER, TRADERS, AccountName, OwnerKind, Phase, Purpose
from ledgerd.chart import TransferKind as Kind
from ledgerd.custody.adapter import Custody, CustodyUnavailable, Payout, PayoutState
from ledgerd.custody.deposits import custody_account, is_frozen
from ledgerd.custody.journal import (
    Change,
    MoneyBooks,
    Step,
    Subject,
    funding,
    log,
    text_refusal,
    transfer_id,
)
from ledgerd.custody.withdrawal_rules import (
    COUNTED,
    DAY_NS,
    EFFECTS,
    Asked,
    Effect,
    Facts,
    Limits,
    Policy,
    Standing,
    WithdrawalEvent,
    WithdrawalState,
    after,
    judge_amount,
    judge_approval,
    judge_event,
    judge_owner,
    judge_request,
)

BATCH: Final = 1_000
"""So many withdrawals are gone on with in one round."""
SERVICE_ACTOR: Final = "ledgerd"
_COLUMNS: Final = (
    "id, owner_kind, owner_id, asset, amount_units, address, requester, digest, state,"
    " approvals_needed, limits_version, requested_ns, expires_ns, changed_ns, transaction_id,"
    " reason"
)
_EVENTS_OF_PEOPLE: Final = (WithdrawalEvent.REJECT, WithdrawalEvent.CANCEL)


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


def _withdrawal(row: Sequence[Any]) -> Withdrawal:
    made, kind, owner, asset, amount, address, requester, digest, state = row[:9]
    asked = Asked(made, OwnerKind(kind), owner, asset, amount, address, requester)
    return Withdrawal(asked, bytes(digest), WithdrawalState(state), *row[9:])


def locked(step: Step, subject: UUID) -> Withdrawal:
    """Read a withdrawal for this transaction. Raises Refused if there is none, ContentChanged."""
    row = step.row(f"SELECT {_COLUMNS} FROM withdrawals WHERE id = %s FOR UPDATE", subject)
    if row is None:
        sentence = f"there is no withdrawal {subject}"
        raise Refused(Refusal(Code.NOT_FOUND, "WITHDRAWAL_UNKNOWN", sentence))
    found = _withdrawal(row)
    if found.asked.digest() != found.digest:
        raise ContentChanged(f"withdrawal {subject} is not what was asked for")
    return found


class Withdrawals:
    """The pipeline. `advance` and `expire` are called again and again by the service."""

    def __init__(self, books: MoneyBooks, custody: Custody, policy: Policy) -> None:
        self._books = books
        self._custody = custody
        self._policy = policy

    # What people do.

    def request(self, asked: Asked, limits: Limits) -> Withdrawal:
        """Set money aside to be paid out; the same request again is answered as it stands."""
        refusal = judge_amount(asked.amount_units) or judge_owner(asked.owner_kind, asked.owner_id)
        refusal = refusal or text_refusal("requester", asked.requester)
        if refusal is not None:
            raise Refused(refusal)
        carried = self._custody.carries(asked.asset)
        must_be = self._custody.address_fault(asked.asset, asked.address) if carried else None

        def work(step: Step) -> Withdrawal:
            query = f"SELECT {_COLUMNS} FROM withdrawals WHERE id = %s"
            known = step.row(query, asked.id)
            if known is not None:
                return _repeated(_withdrawal(known), asked)
            facts = replace(_facts(step, asked), asset_carried=carried, address_must_be=must_be)
            refused = judge_request(asked, facts, limits)
            if refused is not None:
                raise Refused(refused)
            return self._entered(step, asked, limits)

        return self._books.done(work)

    def _entered(self, step: Step, asked: Asked, limits: Limits) -> Withdrawal:
        target = custody_account(asked.asset)
        step.open(target)
        source = funding(asked.owner_kind, asked.owner_id, asked.asset)
        held = transfer_id(asked.id, "hold")
        step.hold(held, Kind.WITHDRAWAL, source, target, asked.amount_units)
        needed = self._policy.approvals_needed(asked.asset, asked.amount_units)
        waiting = self._policy.approval_expiry_ns
        expires_ns = step.now_ns + waiting if needed and waiting else 0
        state = WithdrawalState.AWAITING_APPROVAL if needed else WithdrawalState.APPROVED
        made = Withdrawal(
            asked, asked.digest(), state, needed, limits.version, step.now_ns, expires_ns,
            step.now_ns, "", "requested",
        )  # fmt: skip
        marks = ", ".join(["%s"] * 16)
        step.write(
            f"INSERT INTO withdrawals ({_COLUMNS}) VALUES ({marks})",
            *(asked.id, int(asked.owner_kind), asked.owner_id, asked.asset, asked.amount_units),
            *(asked.address, asked.requester, made.digest, int(state), needed, limits.version),
            *(step.now_ns, expires_ns, step.now_ns, "", "requested"),
        )
        told = (asked.requester, "requested", made.digest)
        step.record(Change(asked.id, Subject.WITHDRAWAL, 0, state, *told))
        return made

    def approve(self, subject: UUID, approver: str, digest: bytes | None = None) -> Withdrawal:
        """Consent to a withdrawal; with the last consent needed it is on its way."""
        refusal = text_refusal("approver", approver)
        if refusal is not None:
            raise Refused(refusal)

        def work(step: Step) -> Withdrawal:
            found = locked(step, subject)
            query = "SELECT 1 FROM withdrawal_approvals WHERE withdrawal_id = %s AND approver = %s"
            if step.row(query, subject, approver) is not None:
                return replace(found, repeated=True)
            refused = judge_approval(found.standing, approver, step.now_ns, digest)
            if refused is not None:
                raise Refused(refused)
            values = (subject, approver, found.digest, step.now_ns)
            step.write("INSERT INTO withdrawal_approvals VALUES (%s, %s, %s, %s)", *values)
            if _approvals(step, found) < found.approvals_needed:
                state = found.state
                told = (approver, "approved, more are needed", found.digest)
                step.record(Change(subject, Subject.WITHDRAWAL, state, state, *told))
                return found
            return happened(step, found, WithdrawalEvent.APPROVE, approver, "approved")

        return self._books.done(work)

    def reject(self, subject: UUID, actor: str, reason: str) -> Withdrawal:
        """Refuse a withdrawal before it is sent: the money goes back."""
        return self._given_up(subject, WithdrawalEvent.REJECT, actor, reason)

    def cancel(self, subject: UUID, actor: str, reason: str = "cancelled") -> Withdrawal:
        """Take a withdrawal back before it is sent: the money goes back."""
        return self._given_up(subject, WithdrawalEvent.CANCEL, actor, reason)

    def _given_up(
        self, subject: UUID, event: WithdrawalEvent, actor: str, reason: str
    ) -> Withdrawal:
        assert event in _EVENTS_OF_PEOPLE, event
        refusal = text_refusal("actor", actor) or text_refusal("reason", reason, 200)
        if refusal is not None:
            raise Refused(refusal)

        def work(step: Step) -> Withdrawal:
            found = locked(step, subject)
            refused = judge_event(found.standing, event)
            if refused is not None:
                raise Refused(refused)
            return happened(step, found, event, actor, reason)

        return self._books.done(work)

    # What the service does.

    def expire(self) -> int:
        """Give up what waited too long for its approvals; return how many."""
        condition = "state = 1 AND expires_ns BETWEEN 1 AND %s"
        count = 0
        for subject in self._ids(condition, self._books.clock()):
            moved = self._event(
                subject,
                WithdrawalState.AWAITING_APPROVAL,
                WithdrawalEvent.EXPIRE,
                "EXPIRED: no approval in time",
            )
            count += moved is not None
        return count

    def advance(self) -> int:
        """Take every withdrawal that can go on one step further; return how many did.

        A custodian that does not answer stops the round; the next one goes on.
        """
        since_ns = self._books.clock() - self._policy.watch_ns
        condition = "state IN (2, 3, 4) OR (state = 5 AND changed_ns >= %s)"
        count = 0
        for subject in self._ids(condition, since_ns):
            try:
                count += self.step(subject)
            except CustodyUnavailable as error:
                log.warning("withdrawals wait: %s", error)
                break
        return count

    def step(self, subject: UUID) -> bool:
        """Take one withdrawal one step further; say whether anything changed."""
        found = self.get(subject)
        if found is None:
            return False
        if found.state == WithdrawalState.APPROVED:
            return self._books.done(lambda step: self._leave(step, subject))
        if found.state == WithdrawalState.SENDING:
            return self._tell(found)
        if found.state in {WithdrawalState.SENT, WithdrawalState.CONFIRMED}:
            return self._ask(found)
        return False

    def _leave(self, step: Step, subject: UUID) -> bool:
        """Decide for the last time whether a withdrawal may leave."""
        found = locked(step, subject)
        if found.state != WithdrawalState.APPROVED or is_frozen(step, found.asked.owner_id):
            return False
        if _approvals(step, found) < found.approvals_needed:
            raise ContentChanged(f"withdrawal {subject} is approved without its approvals")
        if _facts(step, found.asked).usable_ns is None:
            reason = "ADDRESS_NOT_LISTED: it was removed meanwhile"
            happened(step, found, WithdrawalEvent.REJECT, SERVICE_ACTOR, reason)
            return True
        happened(step, found, WithdrawalEvent.SEND, SERVICE_ACTOR, "the custodian is being told")
        return True

    def _tell(self, found: Withdrawal) -> bool:
        if found.asked.digest() != found.digest:
            raise ContentChanged(f"withdrawal {found.id} is not what was asked for")
        asked = found.asked
        status = self._custody.broadcast(
            Payout(asked.id, asked.asset, asked.address, asked.amount_units)
        )
        if status.state == PayoutState.FAILED:
            return self._moved(found, WithdrawalEvent.FAIL, "the custodian cannot pay it")
        if status.state != PayoutState.ACCEPTED:
            return False
        return self._moved(
            found, WithdrawalEvent.ANSWER, "the custodian has it", status.transaction_id
        )

    def _ask(self, found: Withdrawal) -> bool:
        status = self._custody.payout(found.id)
        if found.state == WithdrawalState.CONFIRMED:
            if status.state != PayoutState.FAILED:
                return False
            reason = "the chain undid a payment that was confirmed"
            return self._moved(found, WithdrawalEvent.RETURN, reason)
        if status.state == PayoutState.FAILED:
            return self._moved(found, WithdrawalEvent.FAIL, "it was and will never be paid")
        needed = self._policy.confirmations_needed(found.asked.asset)
        if status.state == PayoutState.ACCEPTED and status.confirmations >= needed:
            reason = f"{status.confirmations} confirmations"
            return self._moved(found, WithdrawalEvent.CONFIRM, reason)
        return False

    def _moved(
        self, found: Withdrawal, event: WithdrawalEvent, reason: str, transaction_id: str = ""
    ) -> bool:
        return self._event(found.id, found.state, event, reason, transaction_id) is not None

    def _event(
        self,
        subject: UUID,
        expected: WithdrawalState,
        event: WithdrawalEvent,
        reason: str,
        transaction_id: str = "",
    ) -> Withdrawal | None:
        """Let an event happen if the withdrawal still stands where it was seen."""

        def work(step: Step) -> Withdrawal | None:
            found = locked(step, subject)
            if found.state != expected:
                return None
            return happened(step, found, event, SERVICE_ACTOR, reason, transaction_id)

        return self._books.done(work)

    # Reading.

    def _ids(self, condition: str, value: int) -> list[UUID]:
        query: Any = (
            f"SELECT id FROM withdrawals WHERE {condition} ORDER BY changed_ns LIMIT {BATCH}"
        )

        def work(connection: Connection) -> list[UUID]:
            return [row[0] for row in connection.execute(query, (value,))]

        return self._books.read(work)

    def get(self, subject: UUID) -> Withdrawal | None:
        """Return a withdrawal."""
        query = f"SELECT {_COLUMNS} FROM withdrawals WHERE id = %s"

        def work(connection: Connection) -> Withdrawal | None:
            row = connection.execute(query, (subject,)).fetchone()
            return None if row is None else _withdrawal(row)

        return self._books.read(work)

    def of_owner(self, owner_id: int, limit: int = 100) -> list[Withdrawal]:
        """Return an owner's newest withdrawals."""
        query = (
            f"SELECT {_COLUMNS} FROM withdrawals WHERE owner_id = %s"
            " ORDER BY requested_ns DESC LIMIT %s"
        )

        def work(connection: Connection) -> list[Withdrawal]:
            return [_withdrawal(row) for row in connection.execute(query, (owner_id, limit))]

        return self._books.read(work)

    def awaiting(self, limit: int = 100) -> list[Withdrawal]:
        """Return what waits for approvals, oldest first."""
        query = f"SELECT {_COLUMNS} FROM withdrawals WHERE state = 1 ORDER BY requested_ns LIMIT %s"

        def work(connection: Connection) -> list[Withdrawal]:
            return [_withdrawal(row) for row in connection.execute(query, (limit,))]

        return self._books.read(work)


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
    step.write(
        "UPDATE withdrawals SET state = %s, changed_ns = %s, transaction_id = %s, reason = %s"
        " WHERE id = %s",
        *(int(state), step.now_ns, known, reason, asked.id),
    )
    alarm = effect == Effect.SUSPENDED
    told = (actor, reason, found.digest)
    step.record(Change(asked.id, Subject.WITHDRAWAL, found.state, state, *told, alarm=alarm))
    return replace(found, state=state, changed_ns=step.now_ns, transaction_id=known, reason=reason)


def _repeated(known: Withdrawal, asked: Asked) -> Withdrawal:
    if known.digest != asked.digest():
        limit = "an id that was never used, or the content it was used with"
        raise Refused(Refusal.of_field("WITHDRAWAL_ID_REUSED", "id", asked.id, limit))
    return replace(known, repeated=True)


def _approvals(step: Step, found: Withdrawal) -> int:
    query = (
        "SELECT count(*) FROM withdrawal_approvals"
        " WHERE withdrawal_id = %s AND digest = %s AND approver <> %s"
    )
    row = step.row(query, found.id, found.digest, found.asked.requester)
    assert row is not None
    return int(row[0])


def _facts(step: Step, asked: Asked) -> Facts:
    """Read what a request is judged by."""
    since_ns = step.now_ns - DAY_NS
    name = funding(asked.owner_kind, asked.owner_id, asked.asset)
    listed = step.rows(
        "SELECT asset, usable_ns FROM withdrawal_addresses WHERE owner_id = %s"
        " AND owner_kind = %s AND address = %s AND removed_ns = 0 ORDER BY usable_ns",
        *(asked.owner_id, int(asked.owner_kind), asked.address),
    )
    usable = [int(usable_ns) for asset, usable_ns in listed if asset == asked.asset]
    others = [str(asset) for asset, _ in listed if asset != asked.asset]
    query = (
        "SELECT coalesce(sum(amount_units) FILTER (WHERE owner_id = %s), 0),"
        " coalesce(sum(amount_units), 0) FROM withdrawals"
        " WHERE asset = %s AND requested_ns > %s AND state = ANY(%s)"
    )
    counted = [int(state) for state in COUNTED]
    sums = step.row(query, asked.owner_id, asked.asset, since_ns, counted)
    assert sums is not None
    return Facts(
        now_ns=step.now_ns,
        asset_listed=step.row("SELECT 1 FROM assets WHERE code = %s", asked.asset) is not None,
        asset_carried=True,
        account_open=asked.owner_kind in TRADERS and name in step.entries.known([name]),
        usable_ns=min(usable, default=None),
        listed_for=", ".join(others),
        frozen=is_frozen(step, asked.owner_id),
        withdrawn_units=int(sums[0]),
        total_withdrawn_units=int(sums[1]),
    )
