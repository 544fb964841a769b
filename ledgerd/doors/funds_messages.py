"""Deposits, withdrawals and addresses as messages of the contract."""

from collections.abc import Sequence
from typing import Any

from exchange.units import units_to_amount
from exchange.v1 import funds_pb2
from ledgerd.custody.addresses import Address
from ledgerd.custody.bookings import Deposit, Withdrawal
from ledgerd.funds.views import Event, state_name


def deposit_message(
    found: Deposit, decimals: int, confirmations: int | None, needed: int
) -> funds_pb2.Deposit:
    """Return a deposit; `confirmations` is None when they do not matter or are not known."""
    message = funds_pb2.Deposit(
        id=found.id.bytes,
        owner_kind=enum_number(found.owner_kind),
        owner_id=found.owner_id,
        asset=found.asset,
        amount_units=found.amount_units,
        amount=units_to_amount(decimals, found.amount_units),
        address=found.address,
        transaction_id=found.transaction_id,
        output_index=found.output_index,
        state=enum_number(found.state),
        confirmations_needed=needed,
        withheld_units=found.withheld_units,
        shortfall_units=found.shortfall_units,
        seen_ns=found.seen_ns,
        changed_ns=found.changed_ns,
    )
    if confirmations is not None:
        message.confirmations = confirmations
    return message


def withdrawal_message(
    found: Withdrawal,
    decimals: int,
    approvals: Sequence[tuple[str, int]],
    confirmations: int | None,
    needed: int,
) -> funds_pb2.Withdrawal:
    """Return a withdrawal; `approvals` are people and times."""
    asked = found.asked
    message = funds_pb2.Withdrawal(
        id=found.id.bytes,
        owner_kind=enum_number(asked.owner_kind),
        owner_id=asked.owner_id,
        asset=asked.asset,
        amount_units=asked.amount_units,
        amount=units_to_amount(decimals, asked.amount_units),
        address=asked.address,
        requester=asked.requester,
        digest=found.digest,
        state=enum_number(found.state),
        approvals_needed=found.approvals_needed,
        approvals=[
            funds_pb2.WithdrawalApproval(approver=approver, time_ns=time_ns)
            for approver, time_ns in approvals
        ],
        requested_ns=found.requested_ns,
        expires_ns=found.expires_ns,
        changed_ns=found.changed_ns,
        transaction_id=found.transaction_id,
        confirmations_needed=needed,
        reason=found.reason,
    )
    if confirmations is not None:
        message.confirmations = confirmations
    return message


def address_message(found: Address) -> funds_pb2.WithdrawalAddress:
    """Return an address of a list."""
    return funds_pb2.WithdrawalAddress(
        id=found.id.bytes,
        owner_kind=enum_number(found.owner_kind),
        owner_id=found.owner_id,
        asset=found.asset,
        address=found.address,
        actor=found.actor,
        added_ns=found.added_ns,
        usable_ns=found.usable_ns,
        removed_ns=found.removed_ns,
    )


def event_message(found: Event) -> funds_pb2.FundsEvent:
    """Return an event of the journal."""
    return funds_pb2.FundsEvent(
        number=found.number,
        subject=found.subject.bytes,
        kind=enum_number(found.kind),
        state_from=found.state_from,
        state_to=found.state_to,
        state_name=state_name(found.kind, found.state_to),
        actor=found.actor,
        reason=found.reason,
        time_ns=found.time_ns,
        alarm=found.alarm,
        hash=found.hash,
    )


def enum_number(value: int) -> Any:
    """Return an enumeration's number as the generated code's types want it."""
    return int(value)
