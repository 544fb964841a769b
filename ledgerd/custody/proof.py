"""Proving what was decided: every event again, every row against its events, states against books.

Every row of the tables of custody must be what its events made it, column by column
(`ledgerd.trail`), and every event must be the one that was sealed.

What may stand in the books of a deposit or withdrawal follows from its state: pending and not
resolved, posted, or voided. A row that says one thing while the books say another, a state that no
event explains, a changed event, a payout that no withdrawal explains: each is named.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql import UUID as UUID_COLUMN
from sqlmodel import SQLModel

from ledgerd.audit import one_moment
from ledgerd.books.commit import Connection
from ledgerd.chart import Phase
from ledgerd.custody.adapter import Custody, PayoutState
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.journal import START, Change, Subject, digest_of, event_hash, transfer_id
from ledgerd.custody.models import REPLAYED
from ledgerd.custody.withdrawal_rules import COUNTED, Asked, ReservationState, WithdrawalState
from ledgerd.ledger import at_connection
from ledgerd.trail.progress import Progress
from ledgerd.trail.verifying import Table, verify_rows, verify_tips

COMPLAINT_LIMIT: Final = 100
CHUNK: Final = 5_000
NOT_PAID: Final = (
    WithdrawalState.AWAITING_APPROVAL,
    WithdrawalState.APPROVED,
    WithdrawalState.CANCELLED,
    WithdrawalState.REJECTED,
    WithdrawalState.EXPIRED,
)
"""The custodian must know nothing of a withdrawal in one of these states."""
_DEPOSITS: Final[Mapping[int, Phase]] = {
    DepositState.SEEN: Phase.PENDING,
    DepositState.UNCLAIMED: Phase.PENDING,
    DepositState.VOIDED: Phase.VOIDED,
}
_WITHDRAWALS: Final[Mapping[int, Phase]] = {
    WithdrawalState.AWAITING_APPROVAL: Phase.PENDING,
    WithdrawalState.APPROVED: Phase.PENDING,
    WithdrawalState.SENDING: Phase.PENDING,
    WithdrawalState.SENT: Phase.PENDING,
    WithdrawalState.CONFIRMED: Phase.POSTED,
    WithdrawalState.RETURNED: Phase.POSTED,
    WithdrawalState.FAILED: Phase.VOIDED,
    WithdrawalState.CANCELLED: Phase.VOIDED,
    WithdrawalState.REJECTED: Phase.VOIDED,
    WithdrawalState.EXPIRED: Phase.VOIDED,
}


_CONTENTS: Final[Mapping[str, tuple[Subject, Callable[[tuple[Any, ...]], bytes]]]] = {
    "deposits": (Subject.DEPOSIT, lambda row: digest_of(*row[:8])),
    "withdrawal_addresses": (Subject.ADDRESS, lambda row: digest_of(*row[:6])),
    "withdrawals": (Subject.WITHDRAWAL, lambda row: Asked(*row[:7]).digest()),
}
"""The content that events have, from a row's columns that never change: they are its first."""


def _replayed(model: type[SQLModel]) -> Table:
    made = SQLModel.metadata.tables[str(model.__tablename__)]
    keys = list(made.primary_key.columns)
    first = keys[0]
    subject = first.name if isinstance(first.type, UUID_COLUMN) else f"md5({first.name})::uuid"
    names = [column.name for column in keys], [column.name for column in made.columns]
    return Table(made.name, *names, subject, *_CONTENTS.get(made.name, ()))


TABLES: Final = tuple(_replayed(model) for model in REPLAYED)


def verify_money(engine: Engine, progress: Progress | None = None) -> list[str]:
    """Return what is wrong with deposits, withdrawals and their journal; nothing if all is well.

    Raises Abandoned.
    """
    progress = progress or Progress()
    at_connection(engine)
    found: list[str] = []

    def complain(sentence: str) -> None:
        if len(found) < COMPLAINT_LIMIT:
            found.append(sentence)

    with one_moment(engine) as connection:
        verify_tips(connection, _verify_chain(connection, complain, progress), complain)
        verify_rows(connection, TABLES, complain, progress)
        progress.at("deposits and withdrawals against the books")
        _verify_deposits(connection, complain)
        _verify_withdrawals(connection, complain)
        _verify_reservations(connection, complain)
    return found


def _verify_chain(
    connection: Connection, complain: Callable[[str], None], progress: Progress
) -> int:
    """Compute the hashes of all events again; return the number of the last."""
    expected, head = 1, START
    while True:
        progress.at(f"journal of money: {expected - 1:,} events")
        query = (
            "SELECT number, subject, kind, state_from, state_to, actor, reason, time_ns, alarm,"
            " content, previous, hash, wrote FROM money_events WHERE number >= %s"
            " ORDER BY number LIMIT %s"
        )
        rows = connection.execute(query, (expected, CHUNK)).fetchall()
        if not rows:
            return expected - 1
        for row in rows:
            number, subject, kind, state_from, state_to, actor, reason, time_ns, alarm = row[:9]
            content, previous, hashed = (bytes(part) for part in row[9:12])
            change = Change(subject, kind, state_from, state_to, actor, reason, content, alarm)
            if number != expected or previous != head:
                complain(f"event {number} does not follow event {expected - 1}")
            if event_hash(previous, number, change, time_ns, row[12]) != hashed:
                complain(f"event {number}, of {subject}, was changed")
            expected, head = number + 1, hashed


def _phases(connection: Connection, held: list[UUID]) -> dict[UUID, Phase]:
    """Return what became of pending transfers, by their ids."""
    query = """
        SELECT requests.id, phase FROM requests
        JOIN pendings ON pendings.transfer_id = requests.transfer_id
        LEFT JOIN resolutions ON pending_id = pendings.transfer_id
        LEFT JOIN transfers ON transfers.id = resolutions.transfer_id
        WHERE requests.id = ANY(%s)
    """
    return {
        made: Phase.PENDING if phase is None else Phase(phase)
        for made, phase in connection.execute(query, (held,))
    }


def _verify_deposits(connection: Connection, complain: Callable[[str], None]) -> None:
    query = "SELECT id, state, attempt FROM deposits ORDER BY id"
    rows = connection.execute(query).fetchall()
    held = {made: transfer_id(made, f"hold {attempt}") for made, _, attempt in rows}
    phases = _phases(connection, list(held.values()))
    for made, state, _ in rows:
        expected = _DEPOSITS.get(state)
        if expected is not None and phases.get(held[made]) != expected:
            complain(f"deposit {made} is {DepositState(state).name} and the books disagree")


def _verify_withdrawals(connection: Connection, complain: Callable[[str], None]) -> None:
    rows = connection.execute("SELECT id, state FROM withdrawals ORDER BY id").fetchall()
    phases = _phases(connection, [transfer_id(made, "hold") for made, _ in rows])
    for made, state in rows:
        expected = _WITHDRAWALS.get(state)
        if expected is None:
            complain(f"withdrawal {made} is in state {state}, which there is not")
        elif phases.get(transfer_id(made, "hold")) != expected:
            complain(f"withdrawal {made} is {WithdrawalState(state).name} and the books disagree")


def _verify_reservations(connection: Connection, complain: Callable[[str], None]) -> None:
    """Hold what riskd was asked to count against what was set aside.

    A withdrawal without any reservation was asked for while ledgerd had no riskd to ask.
    """
    query: Any = (
        "SELECT kept.withdrawal_id, count(*) FILTER (WHERE kept.state = ANY(%s)),"
        " bool_and(kept.state <> ALL(%s) OR (withdrawals.id IS NOT NULL"
        " AND withdrawals.owner_id = kept.owner_id AND withdrawals.asset = kept.asset"
        " AND withdrawals.amount_units = kept.amount_units)),"
        " coalesce(bool_or(withdrawals.state = ANY(%s)), false)"
        " FROM withdrawal_reservations AS kept"
        " LEFT JOIN withdrawals ON withdrawals.id = kept.withdrawal_id"
        " GROUP BY kept.withdrawal_id ORDER BY kept.withdrawal_id"
    )
    taken = [int(ReservationState.TAKEN), int(ReservationState.KEPT)]
    given = (taken, taken, [int(state) for state in COUNTED])
    for made, count, same, counts in connection.execute(query, given):
        if not same:
            complain(f"withdrawal {made} is counted at riskd as something else")
        elif count > 1 or (counts and not count):
            complain(f"withdrawal {made} is counted at riskd {count} times")


def unexplained_payouts(engine: Engine, custody: Custody) -> list[str]:
    """Return payouts that the custodian has and the books cannot explain.

    There are some after a database was restored from an older backup. Nothing may be sent then.
    """
    payouts = custody.payouts()
    with one_moment(engine) as connection:
        query = "SELECT id, state, asset, address, amount_units FROM withdrawals WHERE id = ANY(%s)"
        rows = connection.execute(query, ([payout.id for payout in payouts],)).fetchall()
    known = {made: (state, content) for made, state, *content in rows}
    found = []
    for payout in payouts:
        made, paid = payout.id, [payout.asset, payout.address, payout.amount_units]
        state, content = known.get(made, (0, paid))
        if state == WithdrawalState.UNSPECIFIED:
            found.append(f"the custodian has payout {made}, which the books do not know")
        elif state in NOT_PAID:
            name = WithdrawalState(state).name
            found.append(f"the custodian has payout {made}, which the books have as {name}")
        elif state == WithdrawalState.FAILED and custody.payout(made).state != PayoutState.FAILED:
            found.append(f"payout {made} was refunded and the custodian still pays it")
        elif content != paid:
            found.append(f"payout {made} is {paid} at the custodian, and {content} in the books")
    return found
