"""The books, for whoever may write them. Every write of the service is a method of `Ledger`.

Each method is one transaction, posted wholly or not at all, and safe to call again: a request by
its id, an engine's executions by their numbers. What cannot be done is `Refused` with a sentence;
what must not have happened (an engine that contradicts the books) is an exception of its own.

It decides nothing about who may ask: that is the door's business.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
from sqlalchemy import Engine, event

from exchange.enums import Asset
from exchange.instrument import Instrument
from exchange.refusal import Code, Refusal, Refused
from ledgerd import chart
from ledgerd.audit import one_moment
from ledgerd.books.commit import Connection, Overdrawn
from ledgerd.books.copying import Int8ArrayDumper, Rows
from ledgerd.books.engine_money import Step
from ledgerd.books.entries import Entries, Instructed, insufficient, unknown_pair
from ledgerd.books.permitted import not_permitted
from ledgerd.books.settling import SettledPair
from ledgerd.chart import AccountName, Phase, TransferKind
from ledgerd.days.close import (
    DayClose,
    add_close,
    close_of,
    day_end,
    end_ns_of,
    let_them_end,
    next_day,
)
from ledgerd.postings import AccountMissing, Told
from ledgerd.reserves.merkle import Leaf, tree
from ledgerd.transfers import NewTransfer, Posted, first_refusal

DEADLOCK_RETRIES: Final = 8
"""Two streams that return money to the same owners may lock them crosswise; one has to retry."""

EXPIRED: Final = """
    SELECT transfer_id FROM pendings
    WHERE expires_ns BETWEEN 1 AND %s AND NOT EXISTS (
        SELECT FROM resolutions WHERE pending_id = pendings.transfer_id)
    ORDER BY transfer_id LIMIT 1000
"""
"""Pending transfers whose time is over. Asked every second, while nobody else may post."""


class BooksUnbalanced(Exception):
    """An asset's postings do not sum to zero: the books are not sound."""


def at_connection(engine: Engine) -> None:
    """Teach every connection of a pool to send integer arrays."""

    @event.listens_for(engine, "connect")
    def _taught(connection: Any, _record: Any) -> None:
        connection.adapters.register_dumper(np.ndarray, Int8ArrayDumper)


class Ledger:
    """The writer's side of the books, over a pool of connections as the service's role."""

    def __init__(
        self, engine: Engine, clock: Callable[[], int], *, custodian: bool = False
    ) -> None:
        """`custodian`: somebody holds coins; then callers move no custody account."""
        self._engine = engine
        self._clock = clock
        self._custodian = custodian
        self._pairs: dict[str, SettledPair] = {}
        self._instruments: dict[str, Instrument] = {}
        """The pairs that this process listed."""
        at_connection(engine)

    # Transactions.

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        pooled = self._engine.raw_connection()
        connection = pooled.driver_connection
        assert isinstance(connection, psycopg.Connection)
        try:
            yield connection
            connection.commit()
        except psycopg.OperationalError:
            # Of a dead connection nothing more can be asked; the pool makes a new one.
            if connection.closed or connection.broken:
                pooled.invalidate()
            raise
        finally:
            # Giving it back rolls back whatever was not committed.
            pooled.close()

    def _done(self, work: Callable[[Connection], Any]) -> Any:
        """Run a transaction, again when the database broke a deadlock at its cost."""
        for _ in range(DEADLOCK_RETRIES):
            try:
                with self._transaction() as connection:
                    return work(connection)
            except psycopg.errors.DeadlockDetected:
                continue
        with self._transaction() as connection:
            return work(connection)

    # What there is: assets, pairs, accounts.

    def list_asset(self, code: str, decimals: int) -> None:
        """Enter an asset, once; the same code with other decimals is refused."""
        if not 0 < len(code) <= chart.NAME_CHARACTERS or not 0 <= decimals <= 18:
            limit = f"a code of 1 to {chart.NAME_CHARACTERS} characters and 0 to 18 decimals"
            raise Refused(Refusal.of_field("ASSET_INVALID", "asset", f"{code} {decimals}", limit))

        def work(connection: Connection) -> None:
            books = Entries(connection)
            query = "SELECT decimals FROM assets WHERE code = %s"
            known = connection.execute(query, (code,)).fetchone()
            if known is not None and known[0] != decimals:
                limit = f"{known[0]}, as it was listed"
                raise Refused(Refusal.of_field("ASSET_LISTED", "decimals", decimals, limit))
            if known is None:
                entry = books.entry(TransferKind.ASSET_LISTED, self._clock())
                books.commit.add("assets", [(code, decimals, entry)])
                books.write(self._clock)

        self._done(work)

    def list_pair(self, instrument: Instrument) -> int:
        """Enter a pair and its fee account, once; return the number of its stream.

        Only pairs that were listed with this object, too, are given money.
        """
        self.list_asset(instrument.base_asset, instrument.base_decimals)
        self.list_asset(instrument.quote_asset, instrument.quote_decimals)

        def work(connection: Connection) -> int:
            books = Entries(connection)
            query = "SELECT id FROM streams WHERE pair = %s"
            known = connection.execute(query, (instrument.pair,)).fetchone()
            if known is not None:
                return int(known[0])
            last = connection.execute("SELECT max(id) FROM streams").fetchone()
            assert last is not None
            stream = int(last[0]) + 1
            entry = books.entry(TransferKind.PAIR_LISTED, self._clock())
            books.commit.add(
                "streams",
                [(stream, instrument.pair, instrument.base_asset, instrument.quote_asset, entry)],
            )
            books.opened([chart.fees(instrument.quote_asset, instrument.pair)], self._clock())
            books.write(self._clock)
            return stream

        stream = int(self._done(work))
        self._instruments[instrument.pair] = instrument
        return stream

    def open_accounts(self, names: Sequence[AccountName]) -> list[int]:
        """Open what is not open yet; return the accounts' ids in the order of the names."""
        for name in names:
            fault = name.fault()
            if fault is not None:
                raise Refused(Refusal.of_field("ACCOUNT_INVALID", *fault))

        def work(connection: Connection) -> list[int]:
            books = Entries(connection)
            ids = books.opened(names, self._clock())
            books.write(self._clock)
            return [ids[name] for name in names]

        found: list[int] = self._done(work)
        return found

    # Transfers asked for.

    def post(self, transfers: Sequence[NewTransfer]) -> list[Posted]:
        """Post transfers in one commit: all of them or, with a refusal, none.

        They are what callers ask for: `ledgerd.books.permitted` says what that may be. One that
        was posted before with the same content is answered as it was then.
        """
        refusal = first_refusal(transfers) or not_permitted(transfers, custodian=self._custodian)
        if refusal is not None:
            raise Refused(refusal)

        def work(connection: Connection) -> list[Posted]:
            books = Entries(connection)
            answers = [books.posted(transfer, self._clock()) for transfer in transfers]
            books.write(self._clock)
            return answers

        try:
            answers: list[Posted] = self._done(work)
        except Overdrawn as error:
            raise Refused(insufficient(error)) from error
        return answers

    def expire(self) -> list[int]:
        """Void the pending transfers whose time is over; return their ids."""

        def work(connection: Connection) -> list[int]:
            books = Entries(connection)
            now_ns = self._clock()
            over = [int(row[0]) for row in connection.execute(EXPIRED, (now_ns,))]
            for pending_id in over:
                books.resolve(books.pending(pending_id), Phase.VOIDED, 0, now_ns)
            books.write(self._clock)
            return over

        voided: list[int] = self._done(work)
        return voided

    # What is kept for ever about the books as a whole.

    def close_day(self, day: date, passed_ns: int | None = None) -> DayClose:
        """Close a UTC day, once: keep its trial balance, gather its fees; return what was kept.

        `passed_ns` is the moment before which all executions are settled, where that is known.
        Days are closed one after the other. Raises Refused before the day is over or its turn has
        come, BooksUnbalanced when an asset does not sum to zero.
        """
        with self._transaction() as connection:
            kept, following = close_of(connection, day), next_day(connection)
        if kept is not None:
            return kept
        if day != following:
            limit = "of no day yet" if following is None else f"{following}, the next one"
            raise Refused(Refusal.of_field("DAY_NOT_NEXT", "day", day, limit))
        end_ns = end_ns_of(day)
        if self._clock() < end_ns:
            raise Refused(Refusal.of_field("DAY_NOT_OVER", "day", day, "a day that is over"))
        if passed_ns is not None and passed_ns < end_ns:
            sentence = f"settlement of some pair has not passed the end of {day}"
            raise Refused(Refusal(Code.FAILED_PRECONDITION, "DAY_NOT_SETTLED", sentence))
        self._done(let_them_end)
        with one_moment(self._engine) as connection:
            end = day_end(connection, end_ns)
        unbalanced = end.unbalanced()
        if unbalanced:
            raise BooksUnbalanced(f"at the end of {day} {unbalanced}")

        def work(connection: Connection) -> None:
            books = Entries(connection)
            if close_of(connection, day) is None:
                add_close(books, day, end, self._clock())
                books.write(self._clock)

        self._done(work)
        with self._transaction() as connection:
            kept = close_of(connection, day)
        assert kept is not None, f"the books know no close of {day} that was just committed"
        return kept

    def next_day(self) -> date | None:
        """Return the day to close next; None while nothing was ever posted."""
        with self._transaction() as connection:
            return next_day(connection)

    def take_snapshot(self, asset: str, nonce: Callable[[], bytes]) -> int:
        """Keep a Merkle sum tree of what every trader is owed of an asset; return its number.

        `nonce` gives 16 random bytes a call: they hide the leaves from each other and order them.
        """

        def work(connection: Connection) -> int:
            books = Entries(connection)
            query = """
                SELECT owner_id, sum(amount)::int8 FROM balances JOIN accounts ON id = account_id
                WHERE asset = %s AND owner_kind IN (1, 2, 5) GROUP BY 1
            """
            owed = connection.execute(query, (asset,)).fetchall()
            if not owed:
                limit = "an asset that somebody has an account for"
                raise Refused(Refusal.of_field("ASSET_UNKNOWN", "asset", asset, limit))
            leaves = [Leaf(owner, amount, nonce()) for owner, amount in owed]
            leaves.sort(key=lambda leaf: leaf.nonce)
            root = tree(leaves)[-1][0]
            last = connection.execute("SELECT coalesce(max(id), 0) FROM snapshots").fetchone()
            assert last is not None
            number, now_ns = int(last[0]) + 1, self._clock()
            entry = books.entry(TransferKind.SNAPSHOT, now_ns)
            row = (number, asset, now_ns, root.hash, root.total, len(leaves), entry)
            books.commit.add("snapshots", [row])
            with connection.cursor() as cursor:
                rows = [
                    (number, place, leaf.owner_id, leaf.amount, leaf.nonce)
                    for place, leaf in enumerate(leaves)
                ]
                cursor.executemany("INSERT INTO leaves VALUES (%s, %s, %s, %s, %s)", rows)
            books.write(self._clock)
            return number

        return int(self._done(work))

    # Money for engines.

    def allot(
        self, request: UUID, pair: str, owner_id: int, asset: Asset, amount: int, actor: str = ""
    ) -> Instructed:
        """Set trading money aside for a pair's engine, as a numbered instruction.

        The money is in flight until the engine's feed says that it arrived, or was refused.
        """
        return self._instruct(request, TransferKind.ALLOT, pair, owner_id, asset, amount, actor)

    def recall(
        self, request: UUID, pair: str, owner_id: int, asset: Asset, amount: int, actor: str = ""
    ) -> Instructed:
        """Ask a pair's engine for free money back, as a numbered instruction.

        No money moves until the engine's feed says that it was released.
        """
        return self._instruct(request, TransferKind.RELEASE, pair, owner_id, asset, amount, actor)

    def _instruct(
        self,
        request: UUID,
        kind: TransferKind,
        pair: str,
        owner_id: int,
        asset: Asset,
        amount: int,
        actor: str,
    ) -> Instructed:
        if not 0 < amount <= chart.BOUND_UNITS // 2:
            limit = f"from 1 to {chart.BOUND_UNITS // 2}"
            raise Refused(Refusal.of_field("AMOUNT_OUT_OF_RANGE", "amount", amount, limit))
        if asset not in {Asset.BASE, Asset.QUOTE}:
            raise Refused(Refusal.of_field("ASSET_INVALID", "asset", asset, "base or quote"))
        instrument = self._instruments.get(pair)
        if instrument is None:
            raise Refused(unknown_pair(pair))
        told, capacity = Told(kind, owner_id, asset, amount, 0), instrument.account_capacity

        def work(connection: Connection) -> Instructed:
            books = Entries(connection)
            done = books.instructed(request, pair, told, actor, self._clock(), capacity)
            books.write(self._clock)
            return done

        try:
            done: Instructed = self._done(work)
        except Overdrawn as error:
            raise Refused(insufficient(error)) from error
        return done

    # What engines say.

    def cursor(self, pair: str) -> int:
        """Return the number of the next execution of a pair to settle."""
        with self._transaction() as connection:
            query = "SELECT cursor FROM streams WHERE pair = %s"
            found = connection.execute(query, (pair,)).fetchone()
        if found is None:
            raise Refused(unknown_pair(pair))
        return int(found[0])

    def settle(self, instrument: Instrument, rows: Rows, cursor_from: int) -> int:
        """Post what executions (n, 16), numbered from `cursor_from`, did; return the new cursor.

        Raises CursorMoved when the books are elsewhere (settled already, by this process or
        another, or restored), FeedContradiction or Overdrawn when the engine says what cannot be,
        BooksDiffer when it holds other money than the books say.
        """
        assert len(rows), "nothing to settle"
        pair = self._pair_of(instrument)

        def work(connection: Connection) -> Step:
            return pair.settle(connection, rows, cursor_from, self._clock)

        with pair.alone:
            if pair.money is None or pair.money.cursor != cursor_from:
                self._done(pair.read)
            try:
                step: Step = self._done(work)
            except AccountMissing:
                self._done(pair.read)
                step = self._done(work)
            assert pair.money is not None, "settled before it was read"
            pair.money.take(step)
        return step.cursor_to

    def _pair_of(self, instrument: Instrument) -> SettledPair:
        return self._pairs.setdefault(instrument.pair, SettledPair(instrument))

    def differences(self) -> list[str]:
        """Read the money of each settled pair in full; name what differs from what was kept."""
        found = []
        for pair in list(self._pairs.values()):
            with pair.alone:
                found.append(self._done(pair.difference))
        return [sentence for sentence in found if sentence]
