"""Which payments the chain undid after the books were done with them: a difference gets a name.

A payout that is CONFIRMED and a deposit that is CREDITED are what sums rest on, and neither is
looked at for ever: a reorganisation deeper than was waited for, later than payments are watched,
shows as coins too many or too few and as nothing else. Every payment of an asset is asked about
here, which takes as many questions as there are payments; so only once an asset's coins differ.
"""

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine

from ledgerd.audit import one_moment
from ledgerd.custody.adapter import Custody, Incoming, PayoutState, PayoutStatus
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.withdrawal_rules import WithdrawalState
from ledgerd.trail.progress import Progress

BATCH: Final = 1_000
"""Payments read at a time; no transaction is open while the custodian is asked about them."""
_FIRST: Final = UUID(int=0)
"""Below every id."""
_DEPOSITS: Final = (
    "SELECT id, amount_units, transaction_id, output_index FROM deposits"
    " WHERE asset = %s AND state = %s AND id > %s ORDER BY id LIMIT %s"
)
_WITHDRAWALS: Final = (
    "SELECT id, amount_units FROM withdrawals"
    " WHERE asset = %s AND state = %s AND id > %s ORDER BY id LIMIT %s"
)


def undone_payments(
    engine: Engine, custody: Custody, asset: str, progress: Progress
) -> Iterator[str]:
    """Yield a sentence for each payment of an asset that the books call final and is in no block.

    Raises CustodyUnavailable and Abandoned.
    """
    deposits = _rows(engine, _DEPOSITS, asset, DepositState.CREDITED)
    for count, (made, units, name, index) in enumerate(deposits):
        progress.at(f"deposits of {asset} asked about: {count:,}")
        says = _missing(custody.incoming(name, index))
        if says:
            yield (
                f"deposit {made} of {units} {asset} units is CREDITED, and the chain has it no"
                f" more: {says} (transaction {name}, output {index})"
            )
    withdrawals = _rows(engine, _WITHDRAWALS, asset, WithdrawalState.CONFIRMED)
    for count, (made, units) in enumerate(withdrawals):
        progress.at(f"withdrawals of {asset} asked about: {count:,}")
        says = _unpaid(custody.payout(made))
        if says:
            yield (
                f"withdrawal {made} of {units} {asset} units is CONFIRMED, and the chain has it no"
                f" more: {says}"
            )


def _missing(incoming: Incoming | None) -> str:
    """Return what the custodian says of a payment to us that is in no block; nothing if it is."""
    if incoming is None:
        return "the custodian knows no such payment"
    return "" if incoming.confirmations else "the payment is in no block"


def _unpaid(status: PayoutStatus) -> str:
    """Return what the custodian says of a payout in no block; nothing if it is in one.

    A payout that it was never asked for is a complaint of its own, whatever the coins are.
    """
    if status.state == PayoutState.FAILED:
        return f"it was and will never be paid (transaction {status.transaction_id})"
    if status.state == PayoutState.ACCEPTED and not status.confirmations:
        return f"the payout is in no block (transaction {status.transaction_id})"
    return ""


def _rows(engine: Engine, query: str, asset: str, state: int) -> Iterator[tuple[Any, ...]]:
    last, full, given = _FIRST, True, (asset, int(state))
    while full:
        with one_moment(engine) as connection:
            rows = connection.execute(query, (*given, last, BATCH)).fetchall()
        yield from rows
        full = len(rows) == BATCH
        last = rows[-1][0] if rows else last
