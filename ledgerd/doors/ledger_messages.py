"""What LedgerService takes and gives, to and from what the books know."""

from collections.abc import Mapping
from datetime import date
from uuid import UUID

from exchange.enums import Asset
from exchange.refusal import Refusal, Refused
from exchange.units import format_decimal
from exchange.v1 import ledger_pb2
from ledgerd.audit import Sum
from ledgerd.chart import AccountName, OwnerKind, Phase, Purpose, TransferKind
from ledgerd.days.close import DayClose
from ledgerd.doors.answers import enumerated, identity
from ledgerd.transfers import Leg, NewTransfer


def account_name(message: ledger_pb2.AccountName) -> AccountName:
    """Return the account that a name stands for. Raises Refused."""
    return AccountName(
        enumerated(OwnerKind, "owner_kind", message.owner_kind),
        message.owner_id,
        enumerated(Purpose, "purpose", message.purpose),
        message.asset,
        message.pair,
    )


def name_message(name: AccountName) -> ledger_pb2.AccountName:
    """Return a name as it is told."""
    return ledger_pb2.AccountName(
        owner_kind=int(name.owner_kind),  # type: ignore[arg-type]
        owner_id=name.owner_id,
        purpose=int(name.purpose),  # type: ignore[arg-type]
        asset=name.asset,
        pair=name.pair,
    )


def new_transfer(message: ledger_pb2.NewTransfer) -> NewTransfer:
    """Return a transfer asked for. Raises Refused."""
    pending = identity("pending_id", message.pending_id) if message.pending_id else None
    legs = tuple(Leg(account_name(leg.name), leg.amount_units) for leg in message.legs)
    return NewTransfer(
        identity("id", message.id),
        enumerated(TransferKind, "kind", message.kind),
        legs,
        enumerated(Phase, "phase", message.phase),
        pending,
        message.amount_units,
        message.expires_ns,
        message.actor,
        message.note,
    )


def day_of(field: str, text: str) -> date:
    """Return a UTC day that a caller gave. Raises Refused."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if day.isoformat() != text:
        raise Refused(Refusal.of_field("DAY_INVALID", field, text, "a day such as 2026-01-31"))
    return day


def balance_line(line: Sum, shown: Mapping[str, int]) -> ledger_pb2.TrialBalanceLine:
    """Return a line of a trial balance as it is told; `shown` gives the decimals of each asset."""
    places = shown[line.asset]
    return ledger_pb2.TrialBalanceLine(
        asset=line.asset,
        purpose=int(line.purpose),  # type: ignore[arg-type]
        amount_units=line.amount,
        amount=format_decimal(line.amount, places, places),
        account_count=line.account_count,
    )


def close_message(close: DayClose, shown: Mapping[str, int]) -> ledger_pb2.DayClose:
    """Return a closed day as it is told; `shown` gives the decimals of each asset."""
    message = ledger_pb2.DayClose(
        day=close.day.isoformat(), closed_ns=close.closed_ns, transfer_id=close.transfer_id
    )
    message.lines.extend(balance_line(line, shown) for line in close.sums)
    for sweep in close.sweeps:
        places = shown[sweep.asset]
        message.sweeps.add(
            transfer_id=sweep.transfer_id,
            pair=sweep.pair,
            asset=sweep.asset,
            amount_units=sweep.amount,
            amount=format_decimal(sweep.amount, places, places),
        )
    return message


def instruction(
    request: ledger_pb2.AllotTradingFundsRequest | ledger_pb2.RecallTradingFundsRequest,
) -> tuple[UUID, str, int, Asset, int, str]:
    """Return what an instruction asks for. Raises Refused."""
    asset = enumerated(Asset, "asset", request.asset)
    asked = identity("id", request.id)
    return asked, request.pair, request.owner_id, asset, request.amount_units, request.actor
