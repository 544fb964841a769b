"""Reading the books for whoever asks: accounts, statements, transfers, instructions, seals, proofs.

Every function takes a session that sees one moment and cannot write (`reading`). A statement needs
no sum, because postings carry the balance; the balance at an earlier moment is found by
searching the account's versions, which rise with time, in a few steps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Engine, func
from sqlmodel import Session, col, select

from exchange.refusal import Code, Refusal, Refused
from ledgerd.books.entries import unknown_pair
from ledgerd.chart import AccountName, OwnerKind, Purpose
from ledgerd.models import (
    NUMBER_MASK,
    STREAM_SHIFT,
    Account,
    Asset,
    Balance,
    Instruction,
    Leaf,
    Posting,
    Request,
    Resolution,
    Seal,
    Snapshot,
    Stream,
    Transfer,
)
from ledgerd.reserves import merkle

PAGE_LIMIT: Final = 1_000


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Give a session that sees the books as they were when it began, and cannot write."""
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with (
        engine.connect().execution_options(**options) as connection,
        Session(connection) as session,
    ):
        yield session


def page(size: int, default: int = PAGE_LIMIT) -> int:
    """Return the size of a page. Raises Refused."""
    if not 0 <= size <= PAGE_LIMIT:
        limit = f"from 0 to {PAGE_LIMIT}"
        raise Refused(Refusal.of_field("PAGE_SIZE_OUT_OF_RANGE", "page_size", size, limit))
    return size or default


def decimals(session: Session) -> dict[str, int]:
    """Return how finely each asset divides."""
    return {asset.code: asset.decimals for asset in session.exec(select(Asset))}


def name_of(account: Account) -> AccountName:
    """Return an account's name."""
    kind, purpose = OwnerKind(account.owner_kind), Purpose(account.purpose)
    return AccountName(kind, account.owner_id, purpose, account.asset, account.pair)


def account_of(session: Session, name: AccountName) -> Account:
    """Return the account of a name. Raises Refused."""
    found = session.exec(
        select(Account).where(
            Account.owner_kind == int(name.owner_kind),
            Account.owner_id == name.owner_id,
            Account.purpose == int(name.purpose),
            Account.asset == name.asset,
            Account.pair == name.pair,
        )
    ).first()
    if found is None:
        sentence = f"there is no account {name}"
        raise Refused(Refusal(Code.NOT_FOUND, "ACCOUNT_UNKNOWN", sentence, "name", str(name)))
    return found


def stream_of(session: Session, pair: str) -> Stream:
    """Return the stream of a pair; an empty pair is the books' own. Raises Refused."""
    found = session.exec(select(Stream).where(Stream.pair == pair)).first()
    if found is None:
        raise Refused(unknown_pair(pair))
    return found


def balances(session: Session, kind: OwnerKind, owner_id: int) -> list[tuple[Account, int, int]]:
    """Return an owner's accounts with balance and version."""
    rows = session.exec(
        select(Account, Balance.amount, Balance.version)
        .join(Balance, col(Balance.account_id) == Account.id)
        .where(Account.owner_kind == int(kind), Account.owner_id == owner_id)
        .order_by(Account.asset, col(Account.purpose), Account.pair)
    )
    return list(rows)


Posted = Callable[[int], bool]
"""Says of a transfer's id whether it had been posted at the moment asked for."""


def posted_at(session: Session, time_ns: int) -> Posted:
    """Return what had been posted by the commits stamped with a time or an earlier one."""
    rows = session.exec(
        select(Seal.stream, func.max(Seal.cursor_to))
        .where(Seal.posted_ns <= time_ns)
        .group_by(col(Seal.stream))
    )
    cuts = {stream: int(cut) for stream, cut in rows}
    return lambda transfer_id: transfer_id & NUMBER_MASK < cuts.get(transfer_id >> STREAM_SHIFT, 0)


def posted_after(session: Session, pair: str, sequence: int) -> Posted:
    """Return what a pair's stream had posted after a command. Raises Refused if it is not there."""
    stream = stream_of(session, pair)
    if not 0 <= sequence <= stream.sequence:
        limit = f"from 0 to {stream.sequence}, what is settled"
        sentence = f"sequence is {sequence}; it must be {limit}"
        raise Refused(Refusal(Code.OUT_OF_RANGE, "SEQUENCE_OUT_OF_RANGE", sentence, "sequence"))
    seal = session.exec(
        select(Seal)
        .where(Seal.stream == stream.id, Seal.sequence > sequence)
        .order_by(col(Seal.sequence), col(Seal.cursor_to))
        .limit(1)
    ).first()
    low = stream.id << STREAM_SHIFT
    if seal is None:
        last = low + stream.cursor - 1
    else:
        found = session.exec(
            select(func.max(Transfer.id)).where(
                Transfer.id >= low + seal.cursor_from,
                Transfer.id < low + seal.cursor_to,
                Transfer.sequence <= sequence,
            )
        ).one()
        last = low + seal.cursor_from - 1 if found is None else int(found)
    return lambda transfer_id: transfer_id <= last


def balance_as_of(
    session: Session, account_id: int, version: int, posted: Posted
) -> Posting | None:
    """Return an account's last posting that had been posted; None if there was none."""
    low, high = 0, version
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        posting = session.get(Posting, (account_id, middle))
        assert posting is not None, f"account {account_id} has no posting {middle}"
        if posted(posting.transfer_id):
            low, best = middle, posting
        else:
            high = middle - 1
    return best


def statement(
    session: Session, account: Account, below: int | None, size: int
) -> list[tuple[Posting, Transfer]]:
    """Return an account's postings below a version, newest first."""
    query = (
        select(Posting, Transfer)
        .join(Transfer, col(Transfer.id) == Posting.transfer_id)
        .where(Posting.account_id == account.id)
        .order_by(col(Posting.version).desc())
        .limit(size)
    )
    if below is not None:
        query = query.where(Posting.version < below)
    return list(session.exec(query))


@dataclass(frozen=True, slots=True)
class WholeTransfer:
    """A transfer with everything that belongs to it."""

    transfer: Transfer
    postings: Sequence[tuple[Posting, Account]]
    pair: str
    resolved_by: int
    seal: Seal


def whole_transfer(session: Session, transfer_id: int, request: UUID | None) -> WholeTransfer:
    """Return a transfer by the books' id or the caller's. Raises Refused."""
    if request is not None:
        asked = session.get(Request, request)
        transfer_id = -1 if asked is None else asked.transfer_id
    transfer = session.get(Transfer, transfer_id)
    if transfer is None:
        sentence = f"there is no transfer {request or transfer_id}"
        raise Refused(Refusal(Code.NOT_FOUND, "TRANSFER_UNKNOWN", sentence))
    postings = session.exec(
        select(Posting, Account)
        .join(Account, col(Account.id) == Posting.account_id)
        .where(Posting.transfer_id == transfer_id)
        .order_by(col(Posting.leg))
    ).all()
    stream, number = transfer_id >> STREAM_SHIFT, transfer_id & NUMBER_MASK
    seal = session.exec(
        select(Seal)
        .where(Seal.stream == stream, Seal.cursor_to > number)
        .order_by(col(Seal.cursor_to))
        .limit(1)
    ).one()
    pair = session.exec(select(Stream.pair).where(Stream.id == stream)).one()
    resolution = session.get(Resolution, transfer_id)
    by = 0 if resolution is None else resolution.transfer_id
    return WholeTransfer(transfer, postings, pair, by, seal)


def instructions(
    session: Session, pair: str, first: int, size: int
) -> list[tuple[Instruction, bool]]:
    """Return a pair's instructions from a number on (0: the first open one), and if resolved."""
    stream = stream_of(session, pair)
    query = (
        select(Instruction, Resolution.pending_id)
        .join(Resolution, col(Resolution.pending_id) == Instruction.transfer_id, isouter=True)
        .where(Instruction.stream == stream.id)
        .order_by(col(Instruction.number))
        .limit(size)
    )
    if first:
        query = query.where(Instruction.number >= first)
    else:
        open_one = (
            select(func.min(Instruction.number))
            .join(Resolution, col(Resolution.pending_id) == Instruction.transfer_id, isouter=True)
            .where(Instruction.stream == stream.id, col(Resolution.pending_id).is_(None))
        )
        query = query.where(Instruction.number >= open_one.scalar_subquery())
    return [(instruction, pending is not None) for instruction, pending in session.exec(query)]


def seals(session: Session, stream: Stream, first: int, size: int) -> Sequence[Seal]:
    """Return a stream's seals that cover a number or a later one."""
    return session.exec(
        select(Seal)
        .where(Seal.stream == stream.id, Seal.cursor_to > first)
        .order_by(col(Seal.cursor_to))
        .limit(size)
    ).all()


@dataclass(frozen=True, slots=True)
class LiabilityProof:
    """What an owner needs to compute a snapshot's root."""

    leaf: merkle.Leaf
    steps: Sequence[merkle.Step]
    root: merkle.Node


def snapshot(session: Session, number: int) -> Snapshot:
    """Return a snapshot's root. Raises Refused."""
    found = session.get(Snapshot, number)
    if found is None:
        sentence = f"there is no snapshot {number}"
        raise Refused(Refusal(Code.NOT_FOUND, "SNAPSHOT_UNKNOWN", sentence, "snapshot"))
    return found


def liability_proof(session: Session, number: int, owner_id: int) -> LiabilityProof:
    """Return the proof of an owner in a snapshot. Raises Refused."""
    kept = snapshot(session, number)
    rows = session.exec(
        select(Leaf).where(Leaf.snapshot == number).order_by(col(Leaf.position))
    ).all()
    places = [row.position for row in rows if row.owner_id == owner_id]
    if not places:
        sentence = f"owner {owner_id} is not in snapshot {number}"
        raise Refused(Refusal(Code.NOT_FOUND, "OWNER_UNKNOWN", sentence, "owner_id"))
    leaves = [merkle.Leaf(row.owner_id, row.amount, row.nonce) for row in rows]
    steps = merkle.proof(merkle.tree(leaves), places[0])
    root = merkle.Node(kept.root, kept.total)
    return LiabilityProof(leaves[places[0]], steps, root)
