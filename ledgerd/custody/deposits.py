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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid5

from exchange.refusal import Code, Refusal, Refused
from ledgerd.books.commit import Connection
from ledgerd.chart import BOUND_UNITS, EXCHANGE_OWNER, AccountName, OwnerKind, Phase, Purpose
from ledgerd.chart import TransferKind as Kind
from ledgerd.custody.adapter import Custody, Incoming
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
    transfer_id,
)
from ledgerd.custody.withdrawal_rules import Policy, judge_owner

NOTICE_BATCH: Final = 500
LOOK_LIMIT: Final = 10_000
"""So many open deposits are asked about in one sweep."""
STEP_LIMIT: Final = 8
"""More steps than a look can need: hold and credit, or reverse and restore."""
SERVICE_ACTOR: Final = "ledgerd"
_COLUMNS: Final = (
    "id, transaction_id, output_index, asset, address, owner_kind, owner_id, amount_units, state,"
    " attempt, withheld_units, shortfall_units, seen_ns, changed_ns"
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


def deposit_id(custodian: str, transaction_id: str, output_index: int) -> UUID:
    """Return the id of the deposit that a payment is."""
    return uuid5(TRANSFERS, f"deposit {custodian} {transaction_id} {output_index}")


def _deposit(row: Sequence[Any]) -> Deposit:
    made, transaction, index, asset, address, kind, owner, amount, state, *rest = row
    payment = made, transaction, index, asset, address
    return Deposit(*payment, OwnerKind(kind), owner, amount, DepositState(state), *rest)


class Deposits:
    """Addresses for owners, and what arrives there."""

    def __init__(
        self, books: MoneyBooks, custody: Custody, policy: Policy, custodian: str = "main"
    ) -> None:
        self._books = books
        self._custody = custody
        self._policy = policy
        self._custodian = custodian

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

        def work(step: Step) -> None:
            step.open(name)
            step.write(
                "INSERT INTO deposit_addresses VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                *(made, asset, int(kind), owner_id, step.now_ns),
            )

        self._books.done(work)
        return made

    # Looking.

    def follow(self) -> int:
        """Look at what the custodian announced since the last time; return how many notices.

        The cursor moves after the looks: a crash in between looks again.
        """

        def cursor(connection: Connection) -> int:
            query = "SELECT cursor FROM custody_cursors WHERE name = %s"
            row = connection.execute(query, (self._custodian,)).fetchone()
            return 0 if row is None else int(row[0])

        start = self._books.read(cursor)
        notices = self._custody.notices(start, NOTICE_BATCH)
        for payment in dict.fromkeys((one.transaction_id, one.output_index) for one in notices):
            self.look(*payment)
        if notices:
            end = max(one.number for one in notices) + 1
            self._books.done(
                lambda step: step.write(
                    "INSERT INTO custody_cursors VALUES (%s, %s) ON CONFLICT (name)"
                    " DO UPDATE SET cursor = greatest(custody_cursors.cursor, excluded.cursor)",
                    *(self._custodian, end),
                )
            )
        return len(notices)

    def sweep(self) -> int:
        """Look at every deposit that may still change, told or not; return how many."""
        since_ns = self._books.clock() - self._policy.watch_ns

        def work(connection: Connection) -> list[tuple[str, int]]:
            query = (
                "SELECT transaction_id, output_index FROM deposits"
                " WHERE state = ANY(%s) OR changed_ns >= %s ORDER BY changed_ns LIMIT %s"
            )
            moving = [DepositState.SEEN, DepositState.REVERSED, DepositState.UNCLAIMED]
            given = ([int(state) for state in moving], since_ns, LOOK_LIMIT)
            return [(str(row[0]), int(row[1])) for row in connection.execute(query, given)]

        open_ones = self._books.read(work)
        for payment in open_ones:
            self.look(*payment)
        return len(open_ones)

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
            row = step.row(f"SELECT {_COLUMNS} FROM deposits WHERE id = %s FOR UPDATE", made)
            deposit = self._new(step, incoming, made) if row is None else _deposit(row)
            if deposit is None:
                return False, None
            said = (incoming.asset, incoming.address, incoming.amount_units)
            if said != (deposit.asset, deposit.address, deposit.amount_units):
                reason = f"the custodian now says {said} of a payment that was something else"
                _alarm_once(step, deposit.id, reason, deposit.content)
                return False, deposit
            fits = self._fits(step, deposit)
            todo = next_step(deposit.state, incoming.confirmations, needed, asset_fits=fits)
            if todo == DepositStep.NONE:
                return False, None if deposit.state == DepositState.UNSPECIFIED else deposit
            if row is None:
                _insert(step, deposit)
            return True, _STEPS[todo](step, deposit, incoming.confirmations)

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
            _alarm_once(step, made, fault, digest_of(made, incoming.transaction_id))
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
        return self._decided(subject, actor, DepositState.UNCLAIMED, _credit)

    def write_off(self, subject: UUID, actor: str) -> Deposit:
        """Take a reversed deposit out of the books; what is missing comes from insurance."""
        return self._decided(subject, actor, DepositState.REVERSED, _lose)

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
            row = step.row(f"SELECT {_COLUMNS} FROM deposits WHERE id = %s FOR UPDATE", subject)
            if row is None:
                sentence = f"there is no deposit {subject}"
                raise Refused(Refusal(Code.NOT_FOUND, "DEPOSIT_UNKNOWN", sentence))
            deposit = _deposit(row)
            if deposit.state != expected:
                sentence = f"deposit {subject} is {deposit.state.name}, not {expected.name}"
                raise Refused(Refusal(Code.FAILED_PRECONDITION, "DEPOSIT_STATE", sentence))
            return act(step, deposit, actor)

        return self._books.done(work)

    # Reading.

    def get(self, subject: UUID) -> Deposit | None:
        """Return a deposit."""
        query = f"SELECT {_COLUMNS} FROM deposits WHERE id = %s"

        def work(connection: Connection) -> Deposit | None:
            row = connection.execute(query, (subject,)).fetchone()
            return None if row is None else _deposit(row)

        return self._books.read(work)

    def of_owner(self, owner_id: int, limit: int = 100) -> list[Deposit]:
        """Return an owner's newest deposits."""
        query = (
            f"SELECT {_COLUMNS} FROM deposits WHERE owner_id = %s ORDER BY seen_ns DESC LIMIT %s"
        )

        def work(connection: Connection) -> list[Deposit]:
            return [_deposit(row) for row in connection.execute(query, (owner_id, limit))]

        return self._books.read(work)


def custody_account(asset: str) -> AccountName:
    """Name what the custodian holds for us, as a debt: at or below zero."""
    return AccountName(OwnerKind.EXCHANGE, EXCHANGE_OWNER, Purpose.CUSTODY, asset)


def is_frozen(step: Step, owner_id: int) -> bool:
    """Say whether a deposit of an owner stands reversed."""
    query = "SELECT 1 FROM deposits WHERE owner_id = %s AND state = %s LIMIT 1"
    return step.row(query, owner_id, int(DepositState.REVERSED)) is not None


def _alarm_once(step: Step, subject: UUID, reason: str, content: bytes) -> None:
    query = "SELECT 1 FROM money_events WHERE subject = %s AND reason = %s"
    if step.row(query, subject, reason[:200]) is None:
        step.record(
            Change(subject, Subject.NOTICE, 0, 0, SERVICE_ACTOR, reason[:200], content, alarm=True)
        )


def _insert(step: Step, deposit: Deposit) -> None:
    marks = ", ".join(["%s"] * 14)
    step.write(
        f"INSERT INTO deposits ({_COLUMNS}) VALUES ({marks})",
        *(deposit.id, deposit.transaction_id, deposit.output_index, deposit.asset),
        *(deposit.address, int(deposit.owner_kind), deposit.owner_id, deposit.amount_units),
        *(int(deposit.state), 0, 0, 0, deposit.seen_ns, deposit.changed_ns),
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
    step.write(
        "UPDATE deposits SET state = %s, attempt = %s, withheld_units = %s, shortfall_units = %s,"
        " changed_ns = %s WHERE id = %s",
        *(int(state), number, *withheld, step.now_ns, deposit.id),
    )
    kind, content = Subject.DEPOSIT, deposit.content
    step.record(Change(deposit.id, kind, deposit.state, state, actor, reason, content, alarm=alarm))
    row = step.row(f"SELECT {_COLUMNS} FROM deposits WHERE id = %s", deposit.id)
    assert row is not None
    return _deposit(row)


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


def _credit(step: Step, deposit: Deposit, actor: str) -> Deposit:
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


def _lose(step: Step, deposit: Deposit, actor: str) -> Deposit:
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


_STEPS: Final[dict[DepositStep, Callable[[Step, Deposit, int], Deposit]]] = {
    DepositStep.HOLD: _hold,
    DepositStep.CREDIT: _credited,
    DepositStep.VOID: _void,
    DepositStep.REVERSE: _reverse,
    DepositStep.RESTORE: _restore,
    DepositStep.UNCLAIM: _unclaim,
}
