"""The tables of the books. What is posted is in rows that are only ever added.

    what is posted (INSERT and SELECT only)          what is derived (moves with each commit)
      assets, accounts, transfers, postings,           balances: one row an account
      pendings, resolutions, requests,                 streams: one row a producer of transfers
      instructions, seals, closes, snapshots, leaves

A transfer's id is its stream and its number there: ``stream << 44 | number``. Stream 0 is the
books' own, where the number counts transfers; any other belongs to a pair, where the number is
the execution's. So a settled trade can exist once, whoever posts it.

A posting carries the account's version (how many postings it has had) and the balance afterwards.
Both follow from the posting before, so a statement needs no sum and a gap shows. The key of
postings is (account, version); a block range index finds the postings of a transfer.

Amounts are BIGINT smallest units. There are no foreign keys below `accounts`: the update of
the balances, which must touch every account exactly once, already proves that they exist.
"""

from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, SmallInteger, text
from sqlalchemy.dialects.postgresql import BYTEA, UUID
from sqlmodel import Field, SQLModel

STREAM_SHIFT: Final = 44
NUMBER_MASK: Final = (1 << STREAM_SHIFT) - 1
BOOKS: Final = 0
"""The stream of everything that no engine says."""


def _key(kind: type = BigInteger) -> Column[int]:
    return Column(kind, primary_key=True, autoincrement=False)


def _int8() -> Column[int]:
    return Column(BigInteger, nullable=False)


def _int4() -> Column[int]:
    return Column(Integer, nullable=False)


def _int2() -> Column[int]:
    return Column(SmallInteger, nullable=False)


class Asset(SQLModel, table=True):
    """Something that can be owned, and how finely it divides."""

    __tablename__ = "assets"
    code: str = Field(primary_key=True)
    decimals: int = Field(sa_column=_int2())
    transfer_id: int = Field(sa_column=_int8())


class Account(SQLModel, table=True):
    """One owner's money of one asset for one purpose."""

    __tablename__ = "accounts"
    __table_args__ = (
        Index("accounts_name", "owner_kind", "owner_id", "purpose", "pair", "asset", unique=True),
        Index(
            "accounts_trader",
            "owner_id",
            "purpose",
            "pair",
            "asset",
            unique=True,
            postgresql_where=text("owner_kind IN (1, 2, 5)"),
        ),
        Index("accounts_transfer", "transfer_id"),
    )
    id: int = Field(sa_column=_key(Integer))
    owner_kind: int = Field(sa_column=_int2())
    owner_id: int = Field(sa_column=_int8())
    purpose: int = Field(sa_column=_int2())
    pair: str
    asset: str = Field(foreign_key="assets.code")
    transfer_id: int = Field(sa_column=_int8())


class Balance(SQLModel, table=True):
    """What an account holds now: derived, and the last guard against an overdraft."""

    __tablename__ = "balances"
    __table_args__ = (
        CheckConstraint("amount BETWEEN minimum AND maximum", name="balances_bounds"),
    )
    account_id: int = Field(sa_column=_key(Integer))
    amount: int = Field(sa_column=_int8())
    version: int = Field(sa_column=_int8())
    minimum: int = Field(sa_column=_int8())
    maximum: int = Field(sa_column=_int8())


class Stream(SQLModel, table=True):
    """A producer of transfers: how far it is posted, and the head of its chain."""

    __tablename__ = "streams"
    id: int = Field(sa_column=_key(Integer))
    pair: str = Field(unique=True)
    """Empty for the books' own, as its assets are."""
    base: str
    quote: str
    cursor: int = Field(sa_column=_int8())
    """The next number."""
    sequence: int = Field(sa_column=_int8())
    """Sequence of the last execution posted; 0 in the books' own."""
    transfer_id: int = Field(sa_column=_int8())
    """The entry that listed the pair."""
    posted_ns: int = Field(sa_column=_int8())
    head: bytes = Field(sa_column=Column(BYTEA, nullable=False))


class Transfer(SQLModel, table=True):
    """One entry: why, when, and a check over itself and its postings."""

    __tablename__ = "transfers"
    id: int = Field(sa_column=_key())
    time_ns: int = Field(sa_column=_int8())
    sequence: int = Field(sa_column=_int8())
    row_check: int = Field(sa_column=_int8())
    kind: int = Field(sa_column=_int2())
    phase: int = Field(sa_column=_int2())


class Posting(SQLModel, table=True):
    """What one transfer did to one account."""

    __tablename__ = "postings"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="postings_amount"),
        # Streams are written side by side, so that most pages have some of each: one interval for
        # all of them, which is what BRIN keeps by itself, would reach over every stream between.
        Index(
            "postings_transfer",
            "transfer_id",
            postgresql_using="brin",
            postgresql_ops={"transfer_id": "int8_minmax_multi_ops"},
        ),
        # What the books' own stream did to an account, such as sweeping its fees away: few rows
        # beside what engines post there.
        Index(
            "postings_own",
            "account_id",
            postgresql_include=["amount"],
            postgresql_where=text(f"transfer_id < {1 << STREAM_SHIFT}"),
        ),
    )
    account_id: int = Field(sa_column=_key(Integer))
    version: int = Field(sa_column=_key())
    transfer_id: int = Field(sa_column=_int8())
    amount: int = Field(sa_column=_int8())
    balance_after: int = Field(sa_column=_int8())
    leg: int = Field(sa_column=_int2())


class Pending(SQLModel, table=True):
    """What a pending transfer will do once it is resolved."""

    __tablename__ = "pendings"
    __table_args__ = (
        Index("pendings_hold", "hold_id"),
        # Looked at every second; most of what is pending never ends by itself.
        Index("pendings_expiring", "expires_ns", postgresql_where=text("expires_ns > 0")),
    )
    transfer_id: int = Field(sa_column=_key())
    source_id: int = Field(sa_column=_int4())
    hold_id: int = Field(sa_column=_int4())
    target_id: int = Field(sa_column=_int4())
    amount: int = Field(sa_column=_int8())
    expires_ns: int = Field(sa_column=_int8())
    """0: never by itself."""


class Resolution(SQLModel, table=True):
    """The one transfer that resolved a pending one."""

    __tablename__ = "resolutions"
    __table_args__ = (Index("resolutions_transfer", "transfer_id"),)
    pending_id: int = Field(sa_column=_key())
    transfer_id: int = Field(sa_column=_int8())


class Request(SQLModel, table=True):
    """Which caller's id a transfer answers, for ever."""

    __tablename__ = "requests"
    __table_args__ = (Index("requests_transfer", "transfer_id"),)
    id: str = Field(sa_column=Column(UUID(as_uuid=True), primary_key=True))
    transfer_id: int = Field(sa_column=_int8())
    digest: bytes = Field(sa_column=Column(BYTEA, nullable=False))
    actor: str
    note: str


class Instruction(SQLModel, table=True):
    """A numbered move of funds into or out of a pair's engine, as the engine is told it."""

    __tablename__ = "instructions"
    __table_args__ = (Index("instructions_transfer", "transfer_id"),)
    stream: int = Field(sa_column=_key(Integer))
    number: int = Field(sa_column=_key())
    transfer_id: int = Field(sa_column=_int8())
    kind: int = Field(sa_column=_int2())
    """TransferKind ALLOT or RELEASE."""
    owner_id: int = Field(sa_column=_int8())
    asset: int = Field(sa_column=_int2())
    """exchange.enums.Asset: base or quote."""
    amount: int = Field(sa_column=_int8())


class Seal(SQLModel, table=True):
    """One commit of one stream: everything it posted, hashed onto what was there before."""

    __tablename__ = "seals"
    __table_args__ = (
        Index("seals_posted", "stream", "posted_ns"),
        Index("seals_sequence", "stream", "sequence"),
    )
    stream: int = Field(sa_column=_key(Integer))
    cursor_to: int = Field(sa_column=_key())
    cursor_from: int = Field(sa_column=_int8())
    sequence: int = Field(sa_column=_int8())
    transfer_count: int = Field(sa_column=_int8())
    posting_count: int = Field(sa_column=_int8())
    posted_ns: int = Field(sa_column=_int8())
    previous: bytes = Field(sa_column=Column(BYTEA, nullable=False))
    hash: bytes = Field(sa_column=Column(BYTEA, nullable=False))


class Close(SQLModel, table=True):
    """The close of a day: one line an asset and purpose."""

    __tablename__ = "closes"
    __table_args__ = (Index("closes_transfer", "transfer_id"),)
    day: str = Field(primary_key=True)
    """UTC, such as 2026-01-31."""
    asset: str = Field(primary_key=True)
    purpose: int = Field(sa_column=_key(SmallInteger))
    amount: int = Field(sa_column=_int8())
    account_count: int = Field(sa_column=_int8())
    transfer_id: int = Field(sa_column=_int8())


class Snapshot(SQLModel, table=True):
    """The root of one asset's liabilities at one moment."""

    __tablename__ = "snapshots"
    __table_args__ = (Index("snapshots_transfer", "transfer_id"),)
    id: int = Field(sa_column=_key())
    asset: str
    time_ns: int = Field(sa_column=_int8())
    root: bytes = Field(sa_column=Column(BYTEA, nullable=False))
    total: int = Field(sa_column=_int8())
    leaf_count: int = Field(sa_column=_int8())
    transfer_id: int = Field(sa_column=_int8())


class Leaf(SQLModel, table=True):
    """What one owner was owed in a snapshot."""

    __tablename__ = "leaves"
    snapshot: int = Field(sa_column=_key())
    position: int = Field(sa_column=_key())
    owner_id: int = Field(sa_column=_int8())
    amount: int = Field(sa_column=_int8())
    nonce: bytes = Field(sa_column=Column(BYTEA, nullable=False))


POSTED: Final = (
    "assets",
    "accounts",
    "transfers",
    "postings",
    "pendings",
    "resolutions",
    "requests",
    "instructions",
    "seals",
    "closes",
    "snapshots",
    "leaves",
)
"""Tables whose rows never change: by grant, and by trigger for whoever has more than the grant."""
