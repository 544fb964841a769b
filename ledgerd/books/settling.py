"""Settling executions of one pair inside a transaction, and what is remembered between two.

    lock the pair's stream → postings of the batch → commit → compare with what the engine says

The comparison is made before the transaction ends: a batch in which books and engine differ is
not posted at all. ALLOTTED and RELEASED say what the engine holds of one account and asset; a
DIGEST says it of all accounts at once, as of its own place among the executions.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from exchange import records
from exchange.account_digest import AccountDigest
from exchange.enums import Asset, ExecutionKind
from exchange.instrument import Instrument
from exchange.refusal import Refused
from ledgerd import chart
from ledgerd.books.commit import Commit, Connection, lock_stream
from ledgerd.books.copying import P_ACCOUNT, P_BALANCE, P_TRANSFER, Rows
from ledgerd.books.engine_money import EngineMoney, Step
from ledgerd.books.entries import unknown_pair
from ledgerd.chart import Purpose, TransferKind
from ledgerd.models import BOOKS, NUMBER_MASK, STREAM_SHIFT
from ledgerd.postings import Batch, FeedContradiction, PairAccounts, Told, settled


class BooksDiffer(FeedContradiction):
    """An engine holds other money than the books say at the same execution."""


_POSTED_BY_THE_PAIR: Final = f"""
    SELECT amount - (
        SELECT coalesce(sum(amount), 0) FROM postings
        WHERE account_id = %(fees)s AND transfer_id < {(BOOKS + 1) << STREAM_SHIFT})
    FROM balances WHERE account_id = %(fees)s
"""
"""What executions ever posted to a fee account: its balance less what the books' stream did."""


class SettledPair:
    """One pair as settlement knows it: its accounts, and the money its engine must hold."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.alone = threading.Lock()
        """Held by whoever settles or compares: one at a time."""
        self.accounts: PairAccounts | None = None
        self.money: EngineMoney | None = None

    def read(self, connection: Connection) -> None:
        """Read accounts and money in full, under the lock of the pair's stream."""
        self.accounts, self.money = read_pair(connection, self.instrument)

    def difference(self, connection: Connection) -> str:
        """Read the money in full and say how it differs from what is kept; empty if it does not."""
        kept, now = self.money, read_pair(connection, self.instrument)[1]
        # What is kept of another moment is read again before it is used.
        if kept is None or kept.cursor != now.cursor or kept.digest == now.digest:
            return ""
        return (
            f"{self.instrument.pair}: at execution {now.cursor} the balances say"
            f" {shown(now.digest, self.instrument)}; settlement went by"
            f" {shown(kept.digest, self.instrument)}"
        )

    def settle(
        self, connection: Connection, rows: Rows, cursor_from: int, clock: Callable[[], int]
    ) -> Step:
        """Post a batch; return the step to take once the transaction has ended.

        Raises CursorMoved, FeedContradiction, Overdrawn.
        """
        accounts, money = self.accounts, self.money
        assert accounts is not None, "settled before it was read"
        assert money is not None, "settled before it was read"
        state = lock_stream(connection, accounts.stream, cursor_from)
        sequences = rows[:, records.E_SEQUENCE]
        if sequences[0] < state.sequence or (np.diff(sequences) < 0).any():
            raise FeedContradiction(
                f"executions from {cursor_from} on go back behind command {state.sequence}"
            )

        def told(numbers: list[int]) -> Mapping[int, Told]:
            return _told(connection, accounts.stream, numbers)

        batch = settled(self.instrument, accounts, rows, cursor_from, told)
        commit = Commit(connection, state)
        commit.add("resolutions", batch.resolved)
        cursor_to = cursor_from + len(rows)
        done = commit.write(batch.transfers, batch.postings, cursor_to, int(sequences[-1]), clock)
        _compare(batch, done, cursor_from)
        places = np.flatnonzero(records.kind_of(rows) == ExecutionKind.DIGEST)
        asked = ((accounts.stream << STREAM_SHIFT) | (cursor_from + places)).tolist()
        step = money.step(done, asked, cursor_to)
        for place, ours in zip(places.tolist(), step.told, strict=True):
            _compare_all(self.instrument, rows[place], cursor_from + place, ours)
        return step


def digest_in(row: Rows) -> AccountDigest:
    """Return what a DIGEST execution (16,) says."""
    words = (
        records.E_DIGEST,
        records.E_ACCOUNT_COUNT,
        records.E_BASE_TOTAL,
        records.E_QUOTE_TOTAL,
        records.E_FEES_TAKEN,
    )
    return AccountDigest(*(int(row[word]) for word in words))


def shown(digest: AccountDigest, instrument: Instrument) -> str:
    """Return a digest and its sums for people."""
    return (
        f"{digest.digest % (1 << 64):016x} over {digest.account_count} accounts with"
        f" {digest.base_units} {instrument.base_asset} and {digest.quote_units}"
        f" {instrument.quote_asset} units, fees {digest.fee_units}"
    )


def _compare_all(instrument: Instrument, row: Rows, number: int, books: AccountDigest) -> None:
    """Compare all accounts with what the engine holds. Raises BooksDiffer."""
    engine = digest_in(row)
    if engine != books:
        raise BooksDiffer(
            f"books and engine of {instrument.pair} differ at execution {number} of command"
            f" {int(row[records.E_SEQUENCE])}: the engine holds {shown(engine, instrument)}; the"
            f" books say {shown(books, instrument)}"
        )


def _compare(batch: Batch, done: Rows, cursor_from: int) -> None:
    """Compare the books with what the engine said it holds of single accounts."""
    if not len(batch.claims):
        return
    asked = done[np.isin(done[:, P_TRANSFER], batch.claims[:, 1])]
    found = {(int(row[P_ACCOUNT]), int(row[P_TRANSFER])): int(row[P_BALANCE]) for row in asked}
    for account, transfer_id, held in batch.claims.tolist():
        balance = found[account, transfer_id]
        if balance != held:
            raise BooksDiffer(
                f"after execution {transfer_id & NUMBER_MASK} (batch from {cursor_from}) the engine"
                f" holds {held} and the books {balance} in account {account}"
            )


def _told(connection: Connection, stream: int, numbers: list[int]) -> dict[int, Told]:
    query = """
        SELECT number, kind, owner_id, asset, amount, instructions.transfer_id,
            pending_id IS NOT NULL
        FROM instructions LEFT JOIN resolutions ON pending_id = instructions.transfer_id
        WHERE stream = %s AND number = ANY(%s)
    """
    return {
        number: Told(TransferKind(kind), owner, Asset(asset), amount, transfer_id, resolved)
        for number, kind, owner, asset, amount, transfer_id, resolved in connection.execute(
            query, (stream, np.array(numbers, np.int64))
        )
    }


def read_pair(connection: Connection, instrument: Instrument) -> tuple[PairAccounts, EngineMoney]:
    """Read which accounts a pair moves, and what its engine must hold at the stream's cursor.

    Holds the stream until the transaction ends, so that all of it is of one moment.
    """
    query = "SELECT id, cursor FROM streams WHERE pair = %s FOR UPDATE"
    stream = connection.execute(query, (instrument.pair,)).fetchone()
    if stream is None:
        raise Refused(unknown_pair(instrument.pair))
    query = """
        SELECT id, owner_kind, owner_id, purpose, asset, amount
        FROM accounts JOIN balances ON account_id = id
        WHERE owner_id < %(capacity)s
            AND (pair = %(pair)s OR (purpose = %(trading)s AND asset IN (%(base)s, %(quote)s)))
    """
    given = {
        # Nobody beyond can be given money there, and the tables stay as small as the engine's.
        "capacity": instrument.account_capacity,
        "pair": instrument.pair,
        "trading": Purpose.TRADING.value,
        "base": instrument.base_asset,
        "quote": instrument.quote_asset,
    }
    found = connection.execute(query, given).fetchall()
    size = 1 + max((row[2] for row in found), default=0)
    tables = {
        purpose: np.zeros((size, 2), np.int64)
        for purpose in (Purpose.ALLOTTED, Purpose.TRADING, Purpose.SUSPENSE)
    }
    units, fees = np.zeros((size, 2), np.int64), 0
    for account, kind, owner, purpose, asset, amount in found:
        if purpose == Purpose.FEES and asset == instrument.quote_asset:
            fees = account
        elif kind in chart.TRADERS and purpose in tables:
            place = Asset.BASE if asset == instrument.base_asset else Asset.QUOTE
            tables[Purpose(purpose)][owner, place - 1] = account
            if purpose == Purpose.ALLOTTED:
                units[owner, place - 1] = amount
    allotted, trading = tables[Purpose.ALLOTTED], tables[Purpose.TRADING]
    accounts = PairAccounts(int(stream[0]), allotted, trading, tables[Purpose.SUSPENSE], fees)
    taken = connection.execute(_POSTED_BY_THE_PAIR, {"fees": fees}).fetchone()
    assert taken is not None, f"{instrument.pair} has no fee account"
    return accounts, EngineMoney(accounts, units, int(taken[0]), int(stream[1]))
