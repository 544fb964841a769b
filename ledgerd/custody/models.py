"""The tables of money that enters and leaves: what custodians said, and what was decided.

    rows that stay as they are (INSERT and SELECT only)      rows that move from state to state
      deposit_addresses, withdrawal_approvals,                 deposits, withdrawals,
      money_events, money_tips                                 withdrawal_addresses (removed once),
                                                               withdrawal_reservations,
                                                               custody_cursors

Each change is one row of `money_events`, in the same transaction, hashed onto the row before: who,
when, from which state to which, why, and what was written to which row. So everything in the tables
of `REPLAYED` follows from the events, and what does not is found (`ledgerd.custody.proof`).

Amounts are BIGINT smallest units; ids are the callers' own or are made from what they stand for,
so that the same thing never gets two.
"""

from typing import Final
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, SmallInteger, text
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.dialects.postgresql import UUID as UUID_COLUMN
from sqlmodel import Field, SQLModel


def _id() -> Column[UUID]:
    return Column(UUID_COLUMN(as_uuid=True), primary_key=True)


def _int8(*, key: bool = False) -> Column[int]:
    return Column(BigInteger, nullable=False, primary_key=key, autoincrement=False)


def _int2() -> Column[int]:
    return Column(SmallInteger, nullable=False)


def _uuid() -> Column[UUID]:
    return Column(UUID_COLUMN(as_uuid=True), nullable=False)


def _bytes() -> Column[bytes]:
    return Column(BYTEA, nullable=False)


class DepositAddress(SQLModel, table=True):
    """Whose an address of ours is."""

    __tablename__ = "deposit_addresses"
    __table_args__ = (
        Index("deposit_addresses_owner", "owner_kind", "owner_id", "asset", unique=True),
    )
    address: str = Field(primary_key=True)
    asset: str
    owner_kind: int = Field(sa_column=_int2())
    owner_id: int = Field(sa_column=_int8())
    created_ns: int = Field(sa_column=_int8())


class Deposit(SQLModel, table=True):
    """A payment to one of our addresses."""

    __tablename__ = "deposits"
    __table_args__ = (
        Index("deposits_payment", "transaction_id", "output_index", unique=True),
        Index("deposits_owner", "owner_id", "asset", "seen_ns"),
        Index("deposits_state", "state"),
        CheckConstraint("amount_units > 0", name="deposits_amount"),
        CheckConstraint(
            "withheld_units >= 0 AND shortfall_units >= 0"
            " AND withheld_units + shortfall_units <= amount_units",
            name="deposits_withheld",
        ),
    )
    id: UUID = Field(sa_column=_id())
    transaction_id: str
    output_index: int = Field(sa_column=_int8())
    asset: str
    address: str
    owner_kind: int = Field(sa_column=_int2())
    owner_id: int = Field(sa_column=_int8())
    amount_units: int = Field(sa_column=_int8())
    state: int = Field(sa_column=_int2())
    """ledgerd.custody.deposit_rules.DepositState."""
    attempt: int = Field(sa_column=_int8())
    """How often its money was set aside; each has transfers of its own."""
    withheld_units: int = Field(sa_column=_int8())
    """REVERSED: taken from the owner's funding account into suspense."""
    shortfall_units: int = Field(sa_column=_int8())
    """REVERSED: what the owner no longer had."""
    seen_ns: int = Field(sa_column=_int8())
    changed_ns: int = Field(sa_column=_int8())


class WithdrawalAddress(SQLModel, table=True):
    """An address that an owner may withdraw to, once it has waited."""

    __tablename__ = "withdrawal_addresses"
    __table_args__ = (Index("withdrawal_addresses_owner", "owner_id", "asset", "address"),)
    id: UUID = Field(sa_column=_id())
    owner_kind: int = Field(sa_column=_int2())
    owner_id: int = Field(sa_column=_int8())
    asset: str
    address: str
    actor: str
    added_ns: int = Field(sa_column=_int8())
    usable_ns: int = Field(sa_column=_int8())
    removed_ns: int = Field(sa_column=_int8())
    """0: it is listed. An address listed again is another row, and waits again."""


class Withdrawal(SQLModel, table=True):
    """A request to pay somebody outside, from the moment its money was set aside."""

    __tablename__ = "withdrawals"
    __table_args__ = (
        Index("withdrawals_owner", "owner_id", "asset", "requested_ns"),
        Index("withdrawals_asset", "asset", "requested_ns"),
        Index("withdrawals_state", "state", "changed_ns"),
        CheckConstraint("amount_units > 0", name="withdrawals_amount"),
    )
    id: UUID = Field(sa_column=_id())
    owner_kind: int = Field(sa_column=_int2())
    owner_id: int = Field(sa_column=_int8())
    asset: str
    amount_units: int = Field(sa_column=_int8())
    address: str
    requester: str
    digest: bytes = Field(sa_column=_bytes())
    """Of all of the above: what is approved, and what is paid."""
    state: int = Field(sa_column=_int2())
    """ledgerd.custody.withdrawal_rules.WithdrawalState."""
    approvals_needed: int = Field(sa_column=_int2())
    limits_version: int = Field(sa_column=_int8())
    requested_ns: int = Field(sa_column=_int8())
    expires_ns: int = Field(sa_column=_int8())
    """Without its approvals by then it is given up; 0: never."""
    changed_ns: int = Field(sa_column=_int8())
    transaction_id: str
    """The custodian's; empty before it answered."""
    reason: str
    """Of the last change of state."""


class WithdrawalApproval(SQLModel, table=True):
    """One person's consent to one withdrawal's content."""

    __tablename__ = "withdrawal_approvals"
    withdrawal_id: UUID = Field(sa_column=_id())
    approver: str = Field(primary_key=True)
    digest: bytes = Field(sa_column=_bytes())
    time_ns: int = Field(sa_column=_int8())


class WithdrawalReservation(SQLModel, table=True):
    """One time that riskd was asked to count a withdrawal against the daily limits."""

    __tablename__ = "withdrawal_reservations"
    __table_args__ = (
        Index("withdrawal_reservations_withdrawal", "withdrawal_id"),
        Index("withdrawal_reservations_state", "state", "changed_ns"),
    )
    id: UUID = Field(sa_column=_id())
    """What riskd knows it by: the withdrawal's own id the first time."""
    withdrawal_id: UUID = Field(sa_column=_uuid())
    owner_id: int = Field(sa_column=_int8())
    asset: str
    amount_units: int = Field(sa_column=_int8())
    state: int = Field(sa_column=_int2())
    """ledgerd.custody.reservations.ReservationState."""
    changed_ns: int = Field(sa_column=_int8())


class CustodyCursor(SQLModel, table=True):
    """How many of the custodian's notices were looked at."""

    __tablename__ = "custody_cursors"
    name: str = Field(primary_key=True)
    cursor: int = Field(sa_column=_int8())


class MoneyEvent(SQLModel, table=True):
    """One change of state, hashed onto the one before."""

    __tablename__ = "money_events"
    __table_args__ = (
        Index("money_events_subject", "subject", "number"),
        Index("money_events_alarm", "number", postgresql_where=text("alarm")),
    )
    number: int = Field(sa_column=_int8(key=True))
    subject: UUID = Field(sa_column=_uuid())
    kind: int = Field(sa_column=_int2())
    """ledgerd.custody.journal.Subject."""
    state_from: int = Field(sa_column=_int2())
    state_to: int = Field(sa_column=_int2())
    actor: str
    reason: str
    time_ns: int = Field(sa_column=_int8())
    alarm: bool
    """Somebody has to look at it."""
    content: bytes = Field(sa_column=_bytes())
    """Digest of what the subject was then, beside its state."""
    previous: bytes = Field(sa_column=_bytes())
    hash: bytes = Field(sa_column=_bytes())
    wrote: str
    """The rows that were written, as `ledgerd.trail.replay` tells them; covered by the hash."""


class MoneyTip(SQLModel, table=True):
    """The last event that a commit of the books' own stream knew: sealed with its postings."""

    __tablename__ = "money_tips"
    __table_args__ = (Index("money_tips_transfer", "transfer_id"),)
    number: int = Field(sa_column=_int8(key=True))
    hash: bytes = Field(sa_column=_bytes())
    transfer_id: int = Field(sa_column=_int8())


STAYING: Final = ("deposit_addresses", "withdrawal_approvals", "money_events", "money_tips")
"""Tables whose rows never change: by grant, and by trigger for whoever has more than the grant."""
REPLAYED: Final[tuple[type[SQLModel], ...]] = (
    DepositAddress,
    Deposit,
    WithdrawalAddress,
    Withdrawal,
    WithdrawalApproval,
    WithdrawalReservation,
    CustodyCursor,
)
"""Tables whose rows follow from events alone."""
