"""The tables of the risk service, in a schema of their own: `risk`.

    what is kept for ever (INSERT and SELECT only)     what is as of now
      changes: who changed what and why                  profiles, targets, kills
      limit_history: every value a limit ever had        settings: what engines confirmed
                                                         withdrawals: what counts for daily limits
                                                         followed: how far feeds were read, and
                                                         what they said by then

The limits of a version are, for each key, the newest row of the history up to that version.
"""

from typing import Final
from uuid import UUID

from sqlalchemy import UUID as SQL_UUID
from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, SmallInteger, Text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

SCHEMA: Final = "risk"


class Table(SQLModel, registry=registry(metadata=MetaData(schema=SCHEMA))):
    """Base of the tables: their own metadata, so that no other service's migrations meet them."""


def _int8(*, key: bool = False) -> Column[int]:
    return Column(BigInteger, primary_key=key, nullable=False, autoincrement=False)


def _int2(*, key: bool = False) -> Column[int]:
    return Column(SmallInteger, primary_key=key, nullable=False, autoincrement=False)


class Change(Table, table=True):
    """One thing that somebody changed."""

    __tablename__ = "changes"
    id: int | None = Field(default=None, sa_column=Column(BigInteger, primary_key=True))
    time_ns: int = Field(sa_column=_int8())
    actor: str
    note: str
    subject: str
    """limits, profile, target or kill."""
    content: str = Field(sa_column=Column(Text, nullable=False))
    """Before and after, as JSON."""


class LimitValue(Table, table=True):
    """The value of one limit from one version on; no value: lifted."""

    __tablename__ = "limit_history"
    version: int = Field(sa_column=_int8(key=True))
    kind: int = Field(sa_column=_int2(key=True))
    subject: int = Field(sa_column=_int2(key=True))
    subject_name: str = Field(primary_key=True)
    place: int = Field(sa_column=_int2(key=True))
    place_name: str = Field(primary_key=True)
    value: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    change_id: int = Field(sa_column=_int8())


class Profile(Table, table=True):
    """What an account is."""

    __tablename__ = "profiles"
    account: int = Field(sa_column=_int8(key=True))
    tier: str
    role: int = Field(sa_column=_int2())
    """AccountRole: 1 trader, 2 market maker."""


class Target(Table, table=True):
    """What a market maker is to have in a pair."""

    __tablename__ = "targets"
    account: int = Field(sa_column=_int8(key=True))
    pair: str = Field(primary_key=True)
    asset: int = Field(sa_column=_int2(key=True))
    units: int = Field(sa_column=_int8())


class Kill(Table, table=True):
    """A kill switch that was ever set, and which pairs have confirmed its present state."""

    __tablename__ = "kills"
    scope: int = Field(sa_column=_int2(key=True))
    name: str = Field(primary_key=True)
    """The account number or the pair; empty for everything."""
    killed: bool
    change_id: int = Field(sa_column=_int8())
    confirmed: str
    """Pairs, separated by spaces."""


class Setting(Table, table=True):
    """What a pair's engine has confirmed of an account's limits; account 0: its price band."""

    __tablename__ = "settings"
    pair: str = Field(primary_key=True)
    account: int = Field(sa_column=_int8(key=True))
    largest_order_lots: int = Field(sa_column=_int8())
    """Account 0: the width of the price band."""
    largest_notional_units: int = Field(sa_column=_int8())
    most_open_orders: int = Field(sa_column=_int8())


class Withdrawal(Table, table=True):
    """A withdrawal that counts for the daily limits, unless it was released."""

    __tablename__ = "withdrawals"
    id: UUID = Field(sa_column=Column(SQL_UUID(as_uuid=True), primary_key=True))
    account: int = Field(sa_column=_int8())
    asset: str
    amount_units: int = Field(sa_column=_int8())
    time_ns: int = Field(sa_column=_int8())
    released: bool


class Followed(Table, table=True):
    """How far a pair's feed was read, and what its accounts had by then."""

    __tablename__ = "followed"
    pair: str = Field(primary_key=True)
    cursor: int = Field(sa_column=_int8())
    state: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
