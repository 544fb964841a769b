"""Deposits: from a custodian's hints to money in a funding account, once.

A deposit is known by the payment it is (transaction and output). Each look at it reads the chain,
decides the one next step by `deposit_rules`, and takes it in one transaction together with its
transfer; repeated until state and chain agree. A look that finds nothing to do writes nothing, so
looking twice, late, or after a crash is free of harm.

    SEEN      custody −, the exchange's suspense +      (pending)
    CREDITED  suspense −, the owner's funding +         (posted)
    VOIDED    suspense −, custody +                     (voided)
    REVERSED  the owner's funding −, the owner's suspense +, as far as there is money (pending)
    LOST      suspense −, custody +; what is missing comes from insurance

A reversed deposit freezes its owner's withdrawals until the chain has it again or a person has
decided. It is told with CRITICAL and as an alarm in the journal.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final
from uuid import UUID, uuid5

from exchange.refusal import Code, Refusal, Refused
from ledgerd.books.commit import Connection
from ledgerd.chart import BOUND_UNITS, OwnerKind
from ledgerd.custody.adapter import Custody, Incoming
from ledgerd.custody.bookings import (
    DEPOSIT_COLUMNS,
    SERVICE_ACTOR,
    STEPS,
    Deposit,
    alarm_once,
    claimed,
    deposit_of,
    insert,
    lost,
)
from ledgerd.custody.deposit_rules import DepositState, DepositStep, next_step
from ledgerd.custody.journal import (
    TRANSFERS,
    Change,
    MoneyBooks,
    Step,
    Subject,
    digest_of,
    funding,
    text_refusal,
)
from ledgerd.custody.rounds import Rows
from ledgerd.custody.withdrawal_rules import Policy, judge_owner
from ledgerd.trail.replay import text_id

NOTICE_BATCH: Final = 500
RETRY_LIMIT: Final = 1_000
"""So many notices may wait to be looked at again; then no more are read."""
LOOK_LIMIT: Final = 1_000
"""So many open deposits are asked about in one sweep, and so many that are only watched."""
_MOVING: Final = (DepositState.SEEN, DepositState.REVERSED, DepositState.UNCLAIMED)
_CURSOR: Final = "SELECT cursor FROM custody_cursors WHERE name = %s"
STEP_LIMIT: Final = 8
"""More steps than a look can need: hold and credit, or reverse and restore."""


def deposit_id(custodian: str, transaction_id: str, output_index: int) -> UUID:
    """Return the id of the deposit that a payment is."""
    return uuid5(TRANSFERS, f"deposit {custodian} {transaction_id} {output_index}")


class Deposits:
    """Addresses for owners, and what arrives there."""

    def __init__(
        self, books: MoneyBooks, custody: Custody, policy: Policy, custodian: str = "main"
    ) -> None:
        self._books = books
        self._custody = custody
        self._policy = policy
        self._custodian = custodian
        self.notices = Rows("the payment of deposit")
        self.open = Rows("deposit")
        self.watched = Rows("deposit")
        self._ahead = -1
        """The next notice to read; what is before it and was not looked at is in `_again`."""
        self._again: dict[int, tuple[str, int]] = {}

    # Addresses.

    def address(self, kind: OwnerKind, owner_id: int, asset: str) -> str:
        """Return where an owner deposits an asset: the same address whenever asked."""
        refusal = judge_owner(kind, owner_id)
        if refusal is None and not self._custody.carries(asset):
            limit = "an asset that the custodian keeps"
            refusal = Refusal.of_field("ASSET_NOT_CARRIED", "asset", asset, limit)
        if refusal is not None:
            raise Refused(refusal)
        name = funding(kind, owner_id, asset)

        def known(connection: Connection) -> str:
            query = (
                "SELECT address FROM deposit_addresses"
                " WHERE owner_kind = %s AND owner_id = %s AND asset = %s"
            )
            row = connection.execute(query, (int(kind), owner_id, asset)).fetchone()
            return "" if row is None else str(row[0])

        found = self._books.read(known)
        if found:
            return found
        made = self._custody.new_address(asset, f"{kind.name} {owner_id}")

        def work(step: Step) -> str:
            given = known(step.connection)
            if given:
                return given
            step.open(name)
            owner = {"asset": asset, "owner_kind": kind, "owner_id": owner_id}
            step.insert("deposit_addresses", {"address": made}, owner | {"created_ns": step.now_ns})
            told = (SERVICE_ACTOR, f"given to {name}", digest_of(made))
            step.record(Change(text_id(made), Subject.DEPOSIT_ADDRESS, 0, 1, *told))
            return made

        return self._books.done(work)

    # Looking.

    def follow(self) -> int:
        """Look at what the custodian announced since the last time; return how many notices.

        The cursor that is kept never passes a notice whose look failed: it is tried again, and
        by whoever starts next. A crash before the cursor moved looks again, which does no harm.
        """
        if self._ahead < 0:
            self._ahead = self._books.read(self._cursor)
        waiting = list(self._again.items())
        room = RETRY_LIMIT - len(waiting)
        notices = self._custody.notices(self._ahead, min(NOTICE_BATCH, room)) if room > 0 else ()
        # A payment is announced with every block; its last notice stands for those before.
        numbers = {(one.transaction_id, one.output_index): one.number for one in notices}
        waiting += [(number, payment) for payment, number in numbers.items()]
        known = self._known([self._id(payment) for _, payment in waiting])
        self._again = {
            number: payment for number, payment in waiting if not self._looked(payment, known)
        }
        self._ahead = max((one.number + 1 for one in notices), default=self._ahead)
        self._keep(min(self._again, default=self._ahead))
        return len(notices)

    def _id(self, payment: tuple[str, int]) -> UUID:
        return deposit_id(self._custodian, *payment)

    def _known(self, made: list[UUID]) -> dict[UUID, Deposit]:
        query = f"SELECT {DEPOSIT_COLUMNS} FROM deposits WHERE id = ANY(%s)"

        def work(connection: Connection) -> dict[UUID, Deposit]:
            return {row[0]: deposit_of(row) for row in connection.execute(query, (made,))}

        return self._books.read(work) if made else {}

    def _looked(self, payment: tuple[str, int], known: Mapping[UUID, Deposit]) -> bool:
        """Look at an announced payment; say whether that succeeded."""
        made = self._id(payment)

        def look(_: UUID) -> bool:
            deposit = known.get(made)
            if deposit is not None:
                return self._moved(deposit)
            return self.look(*payment) is not None

        self.notices.each([made], lambda _: made, look)
        return made not in self.notices.troubles

    def _cursor(self, connection: Connection) -> int:
        row = connection.execute(_CURSOR, (self._custodian,)).fetchone()
        return 0 if row is None else int(row[0])

    def _keep(self, cursor: int) -> None:
        if cursor <= self._books.read(self._cursor):
            return

        def work(step: Step) -> None:
            row = step.row(_CURSOR, self._custodian)
            if row is not None and cursor <= row[0]:
                return
            put = step.insert if row is None else step.update
            put("custody_cursors", {"name": self._custodian}, {"cursor": cursor})
            told = (SERVICE_ACTOR, f"looked at {cursor} notices", digest_of(self._custodian))
            step.record(Change(text_id(self._custodian), Subject.CURSOR, 0, 0, *told))

        self._books.done(work)

    def sweep(self) -> int:
        """Look at deposits that may still change, told or not; return how many did.

        Those that move have a turn of their own beside those that are only watched for a
        reorganisation, so that a week of credited deposits does not delay a new one.
        """
        since_ns = self._books.clock() - self._policy.watch_ns
        moving = [int(state) for state in _MOVING]
        resting = [int(state) for state in DepositState if state not in _MOVING]
        given: list[tuple[Rows, str, tuple[object, ...]]] = [
            (self.open, "state = ANY(%s)", (moving,)),
            (self.watched, "state = ANY(%s) AND changed_ns >= %s", (resting, since_ns)),
        ]
        count = 0
        for rows, condition, values in given:
            query = f"SELECT {DEPOSIT_COLUMNS} FROM deposits WHERE {condition}"
            page = partial(rows.page, query=query, values=values, limit=LOOK_LIMIT)
            found = self._books.read(page)
            deposits = [deposit_of(row) for row in found]
            count += rows.each(deposits, lambda deposit: deposit.id, self._moved)
        return count

    def _moved(self, deposit: Deposit) -> bool:
        """Take a deposit further if the chain says so; ask that first, without the books' lock."""
        incoming = self._custody.incoming(deposit.transaction_id, deposit.output_index)
        if incoming is None:
            return False
        said = (incoming.asset, incoming.address, incoming.amount_units)
        needed = self._policy.confirmations_needed(deposit.asset)
        todo = next_step(deposit.state, incoming.confirmations, needed, asset_fits=True)
        if todo == DepositStep.NONE and said == (
            deposit.asset,
            deposit.address,
            deposit.amount_units,
        ):
            return False
        self.look(deposit.transaction_id, deposit.output_index)
        return todo != DepositStep.NONE

    def look(self, transaction_id: str, output_index: int) -> Deposit | None:
        """Bring one deposit to where the chain says it is; None if it is no deposit of ours."""
        for _ in range(STEP_LIMIT):
            incoming = self._custody.incoming(transaction_id, output_index)
            if incoming is None:
                return None
            moved, deposit = self._books.done(self._stepping(incoming))
            if not moved:
                return deposit
        return deposit

    def _stepping(self, incoming: Incoming) -> Callable[[Step], tuple[bool, Deposit | None]]:
        needed = self._policy.confirmations_needed(incoming.asset)
        made = deposit_id(self._custodian, incoming.transaction_id, incoming.output_index)

        def work(step: Step) -> tuple[bool, Deposit | None]:
            row = step.row(f"SELECT {DEPOSIT_COLUMNS} FROM deposits WHERE id = %s FOR UPDATE", made)
            deposit = self._new(step, incoming, made) if row is None else deposit_of(row)
            if deposit is None:
                return False, None
            said = (incoming.asset, incoming.address, incoming.amount_units)
            if said != (deposit.asset, deposit.address, deposit.amount_units):
                reason = f"the custodian now says {said} of a payment that was something else"
                alarm_once(step, deposit.id, reason, deposit.content)
                return False, deposit
            fits = self._fits(step, deposit)
            todo = next_step(deposit.state, incoming.confirmations, needed, asset_fits=fits)
            if todo == DepositStep.NONE:
                return False, None if deposit.state == DepositState.UNSPECIFIED else deposit
            if row is None:
                insert(step, deposit)
            return True, STEPS[todo](step, deposit, incoming.confirmations)

        return work

    @staticmethod
    def _fits(step: Step, deposit: Deposit) -> bool:
        query = "SELECT asset FROM deposit_addresses WHERE address = %s"
        row = step.row(query, deposit.address)
        return row is not None and row[0] == deposit.asset

    @staticmethod
    def _new(step: Step, incoming: Incoming, made: UUID) -> Deposit | None:
        """Return the deposit that a payment is to become; alarm and None if it cannot be one."""
        query = "SELECT owner_kind, owner_id FROM deposit_addresses WHERE address = %s"
        owner = step.row(query, incoming.address)
        listed = step.row("SELECT 1 FROM assets WHERE code = %s", incoming.asset)
        fault = ""
        if owner is None:
            fault = f"ACCOUNT_UNKNOWN: nobody was given address {incoming.address}"
        elif listed is None:
            fault = f"ASSET_UNKNOWN: {incoming.asset} is not listed"
        elif not 0 < incoming.amount_units <= BOUND_UNITS // 2:
            fault = f"AMOUNT_OUT_OF_RANGE: {incoming.amount_units} units"
        if fault or owner is None:
            alarm_once(step, made, fault, digest_of(made, incoming.transaction_id))
            return None
        return Deposit(
            id=made,
            transaction_id=incoming.transaction_id,
            output_index=incoming.output_index,
            asset=incoming.asset,
            address=incoming.address,
            owner_kind=OwnerKind(owner[0]),
            owner_id=int(owner[1]),
            amount_units=incoming.amount_units,
            state=DepositState.UNSPECIFIED,
            seen_ns=step.now_ns,
            changed_ns=step.now_ns,
        )

    # What a person decides.

    def claim(self, subject: UUID, actor: str) -> Deposit:
        """Credit a deposit of another asset than its address was given for."""
        return self._decided(subject, actor, DepositState.UNCLAIMED, claimed)

    def write_off(self, subject: UUID, actor: str) -> Deposit:
        """Take a reversed deposit out of the books; what is missing comes from insurance."""
        return self._decided(subject, actor, DepositState.REVERSED, lost)

    def _decided(
        self,
        subject: UUID,
        actor: str,
        expected: DepositState,
        act: Callable[[Step, Deposit, str], Deposit],
    ) -> Deposit:
        refusal = text_refusal("actor", actor)
        if refusal is not None:
            raise Refused(refusal)

        def work(step: Step) -> Deposit:
            row = step.row(
                f"SELECT {DEPOSIT_COLUMNS} FROM deposits WHERE id = %s FOR UPDATE", subject
            )
            if row is None:
                sentence = f"there is no deposit {subject}"
                raise Refused(Refusal(Code.NOT_FOUND, "DEPOSIT_UNKNOWN", sentence))
            deposit = deposit_of(row)
            if deposit.state != expected:
                sentence = f"deposit {subject} is {deposit.state.name}, not {expected.name}"
                raise Refused(Refusal(Code.FAILED_PRECONDITION, "DEPOSIT_STATE", sentence))
            return act(step, deposit, actor)

        return self._books.done(work)

    # Reading.

    def get(self, subject: UUID) -> Deposit | None:
        """Return a deposit."""
        query = f"SELECT {DEPOSIT_COLUMNS} FROM deposits WHERE id = %s"

        def work(connection: Connection) -> Deposit | None:
            row = connection.execute(query, (subject,)).fetchone()
            return None if row is None else deposit_of(row)

        return self._books.read(work)

    def of_owner(
        self, owner_id: int, limit: int = 100, before: tuple[int, UUID] | None = None
    ) -> list[Deposit]:
        """Return an owner's newest deposits, or those before a time and id."""
        query = (
            f"SELECT {DEPOSIT_COLUMNS} FROM deposits WHERE owner_id = %s"
            " AND (%s::bigint IS NULL OR (seen_ns, id) < (%s, %s))"
            " ORDER BY seen_ns DESC, id DESC LIMIT %s"
        )
        time_ns, made = before or (None, None)

        def work(connection: Connection) -> list[Deposit]:
            given = (owner_id, time_ns, time_ns, made, limit)
            return [deposit_of(row) for row in connection.execute(query, given)]

        return self._books.read(work)
