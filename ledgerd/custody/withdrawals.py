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

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar
from uuid import UUID

from exchange.refusal import Code, Refusal, Refused
from ledgerd.books.commit import Connection
from ledgerd.chart import TransferKind as Kind
from ledgerd.custody.adapter import Custody, Payout, PayoutState
from ledgerd.custody.bookings import (
    SERVICE_ACTOR,
    WITHDRAWAL_COLUMNS,
    ContentChanged,
    Withdrawal,
    approvals_of,
    custody_account,
    facts_of,
    happened,
    is_frozen,
    locked,
    usable_since,
    withdrawal_of,
)
from ledgerd.custody.journal import (
    Change,
    MoneyBooks,
    Step,
    Subject,
    funding,
    text_refusal,
    transfer_id,
)
from ledgerd.custody.rounds import Rows
from ledgerd.custody.withdrawal_rules import (
    HELD,
    Asked,
    Limits,
    Policy,
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
"""So many withdrawals that move are gone on with in one round, and so many that are watched."""
_EVENTS_OF_PEOPLE: Final = (WithdrawalEvent.REJECT, WithdrawalEvent.CANCEL)
_MOVING: Final = [int(state) for state in HELD if state != WithdrawalState.AWAITING_APPROVAL]
T = TypeVar("T")


class Withdrawals:
    """The pipeline. `advance` and `expire` are called again and again by the service."""

    def __init__(self, books: MoneyBooks, custody: Custody, policy: Policy) -> None:
        self._books = books
        self._custody = custody
        self._policy = policy
        self.waiting = Rows("withdrawal")
        self.moving = Rows("withdrawal")
        self.watched = Rows("withdrawal")

    # What people do.

    def request(
        self, asked: Asked, limits: Limits, also: Callable[[Step], None] | None = None
    ) -> Withdrawal:
        """Set money aside to be paid out; the same request again is answered as it stands.

        `also` is written in the same transaction, and may refuse.
        """
        return self._judged(asked, limits, lambda step: self._entered(step, asked, limits, also))

    def judge(self, asked: Asked, limits: Limits, also: Callable[[Step], None]) -> bool:
        """Refuse what `request` would refuse now; return False if it was asked for before.

        Nothing is set aside. `also` is written if there is nothing to refuse.
        """

        def work(step: Step) -> None:
            source = funding(asked.owner_kind, asked.owner_id, asked.asset)
            there = step.balance(source)
            if there < asked.amount_units:
                sentence = (
                    f"owner {asked.owner_id} has {there} {asked.asset} units in funding,"
                    f" {asked.amount_units} are asked for"
                )
                raise Refused(Refusal(Code.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS", sentence))
            also(step)

        return self._judged(asked, limits, work) is None

    def _judged(self, asked: Asked, limits: Limits, act: Callable[[Step], T]) -> Withdrawal | T:
        """Act unless there is something to refuse; the withdrawal if it was asked for before."""
        refusal = judge_amount(asked.amount_units) or judge_owner(asked.owner_kind, asked.owner_id)
        refusal = refusal or text_refusal("requester", asked.requester)
        if refusal is None and not asked.address.isprintable():
            # A database cannot even be asked about every text.
            limit = "printable characters"
            refusal = Refusal.of_field("ADDRESS_INVALID", "address", asked.address, limit)
        if refusal is not None:
            raise Refused(refusal)
        carried = self._custody.carries(asked.asset)
        must_be = self._custody.address_fault(asked.asset, asked.address) if carried else None

        def work(step: Step) -> Withdrawal | T:
            query = f"SELECT {WITHDRAWAL_COLUMNS} FROM withdrawals WHERE id = %s"
            known = step.row(query, asked.id)
            if known is not None:
                return _repeated(withdrawal_of(known), asked)
            facts = facts_of(step, asked, limits)
            facts = replace(facts, asset_carried=carried, address_must_be=must_be)
            refused = judge_request(asked, facts, limits)
            if refused is not None:
                raise Refused(refused)
            return act(step)

        return self._books.done(work)

    def _entered(
        self, step: Step, asked: Asked, limits: Limits, also: Callable[[Step], None] | None
    ) -> Withdrawal:
        if also is not None:
            also(step)
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
        step.insert(
            "withdrawals",
            {"id": asked.id},
            {
                "owner_kind": asked.owner_kind,
                "owner_id": asked.owner_id,
                "asset": asked.asset,
                "amount_units": asked.amount_units,
                "address": asked.address,
                "requester": asked.requester,
                "digest": made.digest,
                "state": made.state,
                "approvals_needed": made.approvals_needed,
                "limits_version": made.limits_version,
                "requested_ns": made.requested_ns,
                "expires_ns": made.expires_ns,
                "changed_ns": made.changed_ns,
                "transaction_id": made.transaction_id,
                "reason": made.reason,
            },
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
            key = {"withdrawal_id": subject, "approver": approver}
            values = {"digest": found.digest, "time_ns": step.now_ns}
            step.insert("withdrawal_approvals", key, values)
            if approvals_of(step, found) < found.approvals_needed:
                state = found.state
                told = (approver, "approved, more are needed", found.digest)
                step.record(Change(subject, Subject.WITHDRAWAL, state, state, *told))
                return found
            return happened(step, found, WithdrawalEvent.APPROVE, approver, "approved")

        return self._books.done(work)

    def reject(self, subject: UUID, actor: str, reason: str) -> Withdrawal:
        """Refuse a withdrawal before it is sent: the money goes back. Safe to repeat."""
        return self._given_up(subject, WithdrawalEvent.REJECT, actor, reason)

    def cancel(self, subject: UUID, actor: str, reason: str = "cancelled") -> Withdrawal:
        """Take a withdrawal back before it is sent: the money goes back. Safe to repeat."""
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
            if found.state == after(WithdrawalState.APPROVED, event):
                # Whoever did not hear the answer asks again.
                return replace(found, repeated=True)
            refused = judge_event(found.standing, event)
            if refused is not None:
                raise Refused(refused)
            return happened(step, found, event, actor, reason)

        return self._books.done(work)

    # What the service does.

    def expire(self) -> int:
        """Give up what waited too long for its approvals; return how many."""
        condition = "state = 1 AND expires_ns BETWEEN 1 AND %s"
        late = self._page(self.waiting, condition, (self._books.clock(),))
        reason = "EXPIRED: no approval in time"
        return self.waiting.each(
            late, _id_of, lambda found: self._moved(found, WithdrawalEvent.EXPIRE, reason)
        )

    def advance(self, *, sending: bool = True) -> int:
        """Take every withdrawal that can go on one step further; return how many did.

        Without `sending` nothing is sent, and neither when any row that would be sent is not
        what was asked for: whoever changed one row may have changed more. What was sent is asked
        about all the same. Raises CustodyUnavailable; the next round goes on behind the row.
        """
        moving = self._page(self.moving, "state = ANY(%s)", (_MOVING,))
        for found in moving:
            if found.asked.digest() != found.digest:
                sending = False
                error = ContentChanged(f"withdrawal {found.id} is not what was asked for")
                self.moving.failed(found.id, error)
        going = [found for found in moving if sending or found.state == WithdrawalState.SENT]
        count = self.moving.each(going, _id_of, self._further)
        since_ns = self._books.clock() - self._policy.watch_ns
        confirmed = (int(WithdrawalState.CONFIRMED), since_ns)
        watched = self._page(self.watched, "state = %s AND changed_ns >= %s", confirmed)
        return count + self.watched.each(watched, _id_of, self._further)

    def about_to_send(self) -> bool:
        """Say whether any withdrawal would be sent in the next round."""
        query = "SELECT 1 FROM withdrawals WHERE state IN (2, 3) LIMIT 1"
        return self._books.read(lambda connection: connection.execute(query).fetchone() is not None)

    def step(self, subject: UUID) -> bool:
        """Take one withdrawal one step further; say whether anything changed."""
        found = self.get(subject)
        return found is not None and self._further(found)

    def _further(self, found: Withdrawal) -> bool:
        if found.state == WithdrawalState.APPROVED:
            return self._books.done(lambda step: self._leave(step, found.id))
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
        if approvals_of(step, found) < found.approvals_needed:
            raise ContentChanged(f"withdrawal {subject} is approved without its approvals")
        if usable_since(step, found.asked)[0] is None:
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

    def _page(self, rows: Rows, condition: str, values: tuple[object, ...]) -> list[Withdrawal]:
        query = f"SELECT {WITHDRAWAL_COLUMNS} FROM withdrawals WHERE {condition}"
        found = self._books.read(lambda connection: rows.page(connection, query, values, BATCH))
        return [withdrawal_of(row) for row in found]

    def get(self, subject: UUID) -> Withdrawal | None:
        """Return a withdrawal."""
        query = f"SELECT {WITHDRAWAL_COLUMNS} FROM withdrawals WHERE id = %s"

        def work(connection: Connection) -> Withdrawal | None:
            row = connection.execute(query, (subject,)).fetchone()
            return None if row is None else withdrawal_of(row)

        return self._books.read(work)

    def of_owner(
        self, owner_id: int, limit: int = 100, before: tuple[int, UUID] | None = None
    ) -> list[Withdrawal]:
        """Return an owner's newest withdrawals, or those before a time and id."""
        query = (
            f"SELECT {WITHDRAWAL_COLUMNS} FROM withdrawals WHERE owner_id = %s"
            " AND (%s::bigint IS NULL OR (requested_ns, id) < (%s, %s))"
            " ORDER BY requested_ns DESC, id DESC LIMIT %s"
        )
        return self._listed(query, (owner_id, *_place(before), limit))

    def awaiting(
        self, limit: int = 100, after: tuple[int, UUID] | None = None, owner_id: int = 0
    ) -> list[Withdrawal]:
        """Return what waits for approvals, oldest first; owner 0: everybody's."""
        query = (
            f"SELECT {WITHDRAWAL_COLUMNS} FROM withdrawals WHERE state = 1"
            " AND (%s = 0 OR owner_id = %s)"
            " AND (%s::bigint IS NULL OR (requested_ns, id) > (%s, %s))"
            " ORDER BY requested_ns, id LIMIT %s"
        )
        return self._listed(query, (owner_id, owner_id, *_place(after), limit))

    def _listed(self, query: str, values: tuple[object, ...]) -> list[Withdrawal]:
        given: Any = query

        def work(connection: Connection) -> list[Withdrawal]:
            return [withdrawal_of(row) for row in connection.execute(given, values)]

        return self._books.read(work)


def _place(place: tuple[int, UUID] | None) -> tuple[int | None, int | None, UUID | None]:
    time_ns, made = place or (None, None)
    return time_ns, time_ns, made


def _id_of(found: Withdrawal) -> UUID:
    return found.id


def _repeated(known: Withdrawal, asked: Asked) -> Withdrawal:
    if known.digest != asked.digest():
        limit = "an id that was never used, or the content it was used with"
        raise Refused(Refusal.of_field("WITHDRAWAL_ID_REUSED", "id", asked.id, limit))
    return replace(known, repeated=True)
