"""Settling one pair: its execution feed, from the books' own cursor, into the books. Exactly once.

The cursor moves in the same transaction as what was posted, so a crash of either side, or of the
database, at any point costs nothing but time: whoever starts again begins where the books are.
What was committed although the answer was lost is recognised from the cursor.

Batches adapt: what arrives while one batch is being committed is the next one, up to a limit, so
that a pair in arrears settles in large commits and a quiet one at once. Executions that move no
money wait a little for company, because their commit would say nothing but the cursor.

Whenever something was settled, the pair is asked for a digest of all its accounts, one at a time.
It comes back through the feed, and the batch that holds it is compared with it: so every batch is
covered by a comparison soon, and a pair in which nothing moves is asked nothing. A question that is
not answered delays the comparison and nothing else.

Whatever cannot be explained stops this pair and no other: the engine contradicts the books, another
process settles it, or the books are older than what was once confirmed to the engine. A stop
is for good, loud, and says why in a sentence. A database or feed that is away is waited for.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import grpc
import numpy as np
import psycopg

from exchange import records
from exchange.enums import ExecutionKind
from exchange.feed import Chunk, ExecutionFeed, FeedBroken, FeedOutOfRange, FeedRefused, Rows
from exchange.identity import open_channel
from exchange.instrument import Instrument
from exchange.refusal import Refused
from exchange.v1 import pair_admin_pb2, pair_admin_pb2_grpc
from ledgerd.books.commit import BalancesLost, CursorMoved, Overdrawn
from ledgerd.database import GONE
from ledgerd.ledger import Ledger
from ledgerd.postings import FeedContradiction, moves_money

CONSUMER: Final = "ledger"
"""Our name at the execution feed."""
BATCH_LIMIT: Final = 10_000
"""Most executions of one commit: about a tenth of a second of work."""
QUEUE_LIMIT: Final = 4 * BATCH_LIMIT
"""Most executions waiting in memory; behind that the feed itself waits."""
QUIET_S: Final = 1.0
"""How long executions that move no money wait for company."""
GATHER_S: Final = 0.005
"""How long executions that move money do: what it costs to commit them alone, about."""
PAUSE_S: Final = 0.5
"""Between two attempts at a database or feed that is away."""
CONFIRM_S: Final = 1.0
"""Between two confirmations to the pair: they only let old files go."""
ASK_LIMIT_S: Final = 5.0
"""How long a pair may take to answer with a digest."""

log = logging.getLogger(__name__)


class State(IntEnum):
    """What settlement of a pair is doing; numbers as on the wire."""

    UNSPECIFIED = 0
    RUNNING = 1
    WAITING_FOR_FEED = 2
    WAITING_FOR_DATABASE = 3
    STOPPED = 4


class SettlementStopped(Exception):
    """Settlement of a pair ended for good; the sentence says why."""


@dataclass(slots=True)
class Status:
    """How far a pair is settled, for whoever watches."""

    pair: str
    state: State = State.WAITING_FOR_DATABASE
    sentence: str = ""
    cursor: int = 0
    committed_number: int = 0
    settled_count: int = 0
    posted_ns: int = 0
    batch_count: int = 0
    passed_ns: int = 0
    """Everything that the pair executed before this moment is settled."""
    checked_sequence: int = 0
    """The last command as of which books and engine were compared and found the same."""
    checked_number: int = 0
    """Its execution."""
    checked_ns: int = 0
    check_count: int = 0


_CONTRADICTIONS: Final = (FeedContradiction, Overdrawn, BalancesLost, FeedBroken, FeedRefused)


class PairFollower:
    """Settles one pair until cancelled or stopped."""

    def __init__(
        self, ledger: Ledger, instrument: Instrument, target: str, clock: Callable[[], int]
    ) -> None:
        self.status = Status(instrument.pair)
        self._ledger = ledger
        self._instrument = instrument
        self._target = target
        self._clock = clock
        self._waiting: deque[Chunk] = deque()
        self._waiting_rows = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._stopping = ""
        self._mark: tuple[int, int] | None = None
        """A moment, and how far the pair's log reached then."""
        self._unchecked = asyncio.Event()
        """Set while something is settled that no digest covers."""
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next change of the status."""
        await self._changed.wait()

    def _say(self, state: State, sentence: str = "") -> None:
        self.status.state, self.status.sentence = state, sentence
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self, sentence: str) -> None:
        """Stop for good, from any thread: before the next commit."""
        self._stopping = sentence

    async def run(self) -> None:
        """Settle. Returns only when stopped; then the status says why."""
        try:
            while True:
                try:
                    await self._follow()
                except GONE as error:
                    self._wait(State.WAITING_FOR_DATABASE, error)
                except (grpc.RpcError, FeedOutOfRange) as error:
                    # A log that is being rebuilt after a crash reaches us again by itself.
                    self._wait(State.WAITING_FOR_FEED, error)
                await asyncio.sleep(PAUSE_S)
        except (SettlementStopped, Refused, psycopg.Error, *_CONTRADICTIONS) as error:
            self._say(State.STOPPED, str(error))
            log.critical("settlement of %s stopped: %s", self.status.pair, error)

    def _wait(self, state: State, error: BaseException) -> None:
        text = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
        sentence = (text or type(error).__name__).strip().split("\n")[0]
        if (self.status.state, self.status.sentence) != (state, sentence):
            log.warning("settlement of %s: %s: %s", self.status.pair, state.name, sentence)
        self._say(state, sentence)

    async def _follow(self) -> None:
        pair = self.status.pair
        cursor = await asyncio.to_thread(self._ledger.cursor, pair)
        self.status.cursor = cursor
        self._waiting.clear()
        self._waiting_rows = 0
        self._mark = None
        async with ExecutionFeed(self._target, pair) as feed:
            await self._refuse_older(feed, cursor)
            reader = asyncio.create_task(self._read(feed, cursor))
            reader.add_done_callback(lambda _: self._arrived.set())
            beside = [asyncio.create_task(self._confirm(feed)), asyncio.create_task(self._ask())]
            # What was settled by an earlier process is compared once, too.
            self._unchecked.set()
            try:
                while True:
                    await self._settle(await self._gather(reader))
            finally:
                for task in (reader, *beside):
                    task.cancel()
                await asyncio.gather(reader, *beside, return_exceptions=True)

    async def _refuse_older(self, feed: ExecutionFeed, cursor: int) -> None:
        """Raise SettlementStopped if the engine was told of more than the books know."""
        confirmed = await feed.confirm(CONSUMER, 0)
        if confirmed > cursor:
            raise SettlementStopped(
                f"the books have settled {self.status.pair} up to execution {cursor}, but"
                f" {confirmed} were confirmed to the engine before: the database was restored from"
                " an older backup or replaced"
            )

    async def _read(self, feed: ExecutionFeed, cursor: int) -> None:
        async with contextlib.aclosing(feed.chunks(cursor)) as chunks:
            async for chunk in chunks:
                self.status.committed_number = chunk.committed_number
                self._mark = self._mark or (self._clock(), chunk.committed_number)
                self._pass()
                self._say(State.RUNNING)
                while self._waiting_rows >= QUEUE_LIMIT:
                    self._room.clear()
                    await self._room.wait()
                if len(chunk.rows):
                    self._waiting.append(chunk)
                    self._waiting_rows += len(chunk.rows)
                    self._arrived.set()

    async def _confirm(self, feed: ExecutionFeed) -> None:
        """Tell the pair now and then how far the books are; a failure only delays pruning."""
        confirmed = 0
        while True:
            await asyncio.sleep(CONFIRM_S)
            cursor = self.status.cursor
            if cursor > confirmed:
                with contextlib.suppress(grpc.RpcError):
                    await feed.confirm(CONSUMER, cursor)
                    confirmed = cursor

    async def _ask(self) -> None:
        """Ask for a digest whenever something is not covered by one, and wait until it came."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        request = pair_admin_pb2.DigestAccountsRequest(pair=self.status.pair)
        async with open_channel(self._target, options=options) as channel:
            stub = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
            while True:
                await self._unchecked.wait()
                try:
                    answer = await stub.DigestAccounts(request, timeout=ASK_LIMIT_S)
                except grpc.RpcError as error:
                    log.debug("%s gave no digest: %s", self.status.pair, error)
                    await asyncio.sleep(PAUSE_S)
                    continue
                if int(answer.report.kind) != ExecutionKind.DIGEST:
                    await asyncio.sleep(PAUSE_S)
                while self.status.cursor <= answer.report.last_number:
                    await self._changed.wait()

    async def _gather(self, reader: asyncio.Task[None]) -> Rows:
        """Return the executions of the next commit. Raises what ended the reader."""
        while not self._waiting:
            if reader.done():
                reader.result()
            self._arrived.clear()
            await self._arrived.wait()
        money = any(moves_money(chunk.rows) for chunk in self._waiting)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S if money else QUIET_S):
                while self._waiting_rows < BATCH_LIMIT and not reader.done():
                    self._arrived.clear()
                    await self._arrived.wait()
                    if not money and moves_money(self._waiting[-1].rows):
                        break
        return self._take()

    def _take(self) -> Rows:
        parts, room = [], BATCH_LIMIT
        while self._waiting and room:
            chunk = self._waiting.popleft()
            parts.append(chunk.rows[:room])
            if len(chunk.rows) > room:
                rest = Chunk(chunk.first_number + room, chunk.rows[room:], chunk.committed_number)
                self._waiting.appendleft(rest)
            room -= len(parts[-1])
        rows = np.concatenate(parts)
        self._waiting_rows -= len(rows)
        self._room.set()
        return rows

    async def _settle(self, rows: Rows) -> None:
        """Commit a batch, waiting for the database if need be. Raises SettlementStopped."""
        cursor_from, cursor_to = self.status.cursor, self.status.cursor + len(rows)
        while True:
            if self._stopping:
                raise SettlementStopped(self._stopping)
            try:
                await asyncio.to_thread(self._ledger.settle, self._instrument, rows, cursor_from)
            except GONE as error:
                self._wait(State.WAITING_FOR_DATABASE, error)
                await asyncio.sleep(PAUSE_S)
                continue
            except CursorMoved as moved:
                # The commit whose answer was lost was made after all.
                if moved.found != cursor_to:
                    raise SettlementStopped(
                        f"the books of {self.status.pair} stand at execution {moved.found}, not at"
                        f" {cursor_from}: somebody else settles the pair, or the database was"
                        " restored from an older backup"
                    ) from moved
            break
        self._note_digests(rows, cursor_from)
        self.status.cursor = cursor_to
        self._pass()
        self.status.settled_count += len(rows)
        self.status.batch_count += 1
        self.status.posted_ns = self._clock()
        self._say(State.RUNNING)

    def _pass(self) -> None:
        """Note the moment up to which all is settled, once what was due then is."""
        if self._mark is not None and self.status.cursor >= self._mark[1]:
            self.status.passed_ns, self._mark = self._mark[0], None

    def _note_digests(self, rows: Rows, cursor_from: int) -> None:
        """Keep what a batch was compared with, and whether more was settled after it."""
        digests = np.flatnonzero(records.kind_of(rows) == ExecutionKind.DIGEST)
        after = 0
        if len(digests):
            last = int(digests[-1])
            self.status.checked_sequence = int(rows[last, records.E_SEQUENCE])
            self.status.checked_number = cursor_from + last
            self.status.checked_ns = self._clock()
            self.status.check_count += len(digests)
            self._unchecked.clear()
            after = last + 1
        if moves_money(rows[after:]):
            self._unchecked.set()
