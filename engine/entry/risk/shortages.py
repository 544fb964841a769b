"""Orders that the engine refused for lack of funds: ask for money, enter them again, answer once.

    refused ──> waiting ──> asked ──> entered again ──> answered
                   │          │             │
                   └──────────┴─────────────┴─────────> answered with the refusal, and why

Orders of one account that lack the same asset form a *line*. One question at a time is asked for a
line: for all that wait in it together, and if that is too much, for the first half of them, and so
on, so that what there is goes to whoever came first and a thousand orders cost a few questions.
What arrives meanwhile is asked for next.

Invariants: a caller is answered exactly once; an order is entered again only while its caller still
waits, at most `TRIES` times, and never after a cancel of its account that would have hit it
(`engine.entry.risk.withdrawn`), which is looked at in the same step in which it is written. An
order refused by the engine does not use up its client order id, and one that was accepted is
answered REPLAYED, so nothing here can execute an order twice, whatever a client or a crash repeats.
What waits is bounded: beyond `WAITING_LIMIT` orders or `LINE_LIMIT` lines a refusal stands at once.

Not here: what an order needs (`needs`), the wire (`link`), anything of an order that lacks nothing.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np

from engine.durability.execution_reader import ExecutionsPruned
from engine.entry.answers import Answer, Follower
from engine.entry.risk.link import RiskLink, Verdict
from engine.entry.risk.needs import (
    MARKETS,
    Book,
    Need,
    Record,
    need_of,
    terms_of,
)
from engine.entry.risk.withdrawn import Pending, Withdrawals
from exchange.enums import Asset, CommandKind, ExecutionKind, Reason
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.packed import ACK_LAST_NUMBER, ACK_VERB
from exchange.records import Rows
from exchange.refusal import Code, Refusal

WAIT_ROUNDS: Final = 4
"""An order waits for so many questions at most: 2 s, which is well within the deadline of a call
that brings none."""
WAITING_LIMIT: Final = 16_384
"""Most orders that wait in one process: two whole batches."""
LINE_LIMIT: Final = 1_024
"""Most lines: so many questions are under way at once at most."""
TRIES: Final = 2
"""How often an order is entered again. A second time is needed when another process's order took
the money first."""
PART: Final = 256
"""So many orders are looked at before others get their turn."""
ROOM_S: Final = 0.05
"""Between two looks whether the ring has room again."""
SCAN_ROWS: Final = 16_384

_SHORT: Final = (
    int(ExecutionKind.REJECTED) | int(Reason.INSUFFICIENT_FUNDS) << 8,
    int(ExecutionKind.REJECTED) | int(Reason.ACCOUNT_UNKNOWN) << 8,
)
_MUCH: Final = Verdict(False, "no account can have so much", by_amount=True)
_DECIDED: Final = Verdict(True)
_FULL: Final = Verdict(False, "too many orders wait for money already")
_LATE: Final = Verdict(False, "the risk service takes too long")
_WITHDRAWN: Final = Verdict(False, "it was cancelled while it waited for money")
_STOPPING: Final = Verdict(False, "order entry is stopping")
_UNREADABLE: Final = Verdict(False, "the execution log was pruned while it waited for money")
_AGAIN: Final = Verdict(False, "the money that came was taken by other orders")
_BROKEN: Final = Verdict(False, "order entry failed to ask for money; its log says why")

log = logging.getLogger(__name__)


class Door(Protocol):
    """What this needs of the process that it is a part of."""

    instrument: Instrument

    @property
    def follower(self) -> Follower:
        """The reading end."""

    def enter_again(self, records: Rows, account: int) -> "asyncio.Future[Answer] | Refusal":
        """Write records into the ring now, or say why not."""

    def leaves(self, account: int) -> bool:
        """Say whether a lost session's cancel of the account's orders is still to be written."""

    def book(self) -> Book:
        """Return what the book shows."""


@dataclass(eq=False, slots=True)
class Unit:
    """One answer that is held back because of some of its orders."""

    account: int
    acks: Rows
    future: "asyncio.Future[Answer]"
    open_count: int
    sentence: str = ""

    def settle(self, sentence: str) -> None:
        """Take one order off the list; the last one gives the answer."""
        self.open_count -= 1
        self.sentence = sentence or self.sentence
        if self.open_count == 0 and not self.future.done():
            self.future.set_result(Answer(self.acks, self.sentence))


@dataclass(eq=False, slots=True)
class Claim:
    """One order that waits."""

    unit: Unit
    index: int
    record: Record
    need: Need
    number: int
    """Number of its last refusal in the log."""
    until_ns: int
    tries: int = 0
    settled: bool = False


class Key(NamedTuple):
    """Whose money of which asset."""

    account: int
    asset: Asset


@dataclass(eq=False, slots=True)
class Line:
    """What waits for one account's money of one asset."""

    key: Key
    first_number: int
    """Where the log was first looked at for cancels."""
    withdrawals: Withdrawals
    claims: deque[Claim] = field(default_factory=deque)
    number: int = -1
    """The newest execution that told of a shortage here."""


class Shortages:
    """All lines of one process. Belongs to one event loop."""

    def __init__(self, door: Door, link: RiskLink) -> None:
        self._door = door
        self._link = link
        self._instrument = door.instrument
        self._wait_ns = WAIT_ROUNDS * link.patience_ms * 1_000_000
        self._lines: dict[Key, Line] = {}
        self._waiting_count = 0
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Ask for nothing more; the orders that wait are answered as they were."""
        self._stopping = True

    # Coming in.

    def take(
        self, records: Rows, account: int, acks: Rows, future: "asyncio.Future[Answer]"
    ) -> None:
        """Take over an answer, some of whose orders were refused for lack of funds.

        Called by the follower: here it is only decided whether there is room.
        """
        short = np.flatnonzero(np.isin(acks[:, ACK_VERB] & 0xFFFF, _SHORT)).tolist()
        full = self._waiting_count + len(short) > WAITING_LIMIT
        if self._stopping or full:
            verdict = _STOPPING if self._stopping else _FULL
            future.set_result(Answer(acks, verdict.sentence))
            return
        self._waiting_count += len(short)
        self._spawn(self._sort(Unit(account, acks, future, len(short)), records, short))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sort(self, unit: Unit, records: Rows, short: list[int]) -> None:
        """Put each refused order into its line."""
        until_ns = time.monotonic_ns() + self._wait_ns
        left = len(short)
        try:
            for index in short:
                record = cast(Record, tuple(records[index].tolist()))
                number = int(unit.acks[index, ACK_LAST_NUMBER])
                need = self._need(unit.account, record, number)
                left -= 1
                if need is None:
                    self._close(unit, "")
                else:
                    self._place(Claim(unit, index, record, need, number, until_ns))
                if left % PART == 1:
                    await asyncio.sleep(0)
        except Exception:
            log.exception("an order that lacks money could not be looked at")
            for _ in range(left):
                self._close(unit, _BROKEN.sentence)

    def _need(self, account: int, record: Record, number: int) -> Need | None:
        """Return what an order needs that execution `number` refused.

        None if money would not help it, or if the log was pruned past that execution.
        """
        if account >= self._instrument.account_capacity:
            return None
        try:
            (refused,) = self._door.follower.reader.read(number, 1).tolist()
        except ExecutionsPruned:
            return None
        terms = terms_of(record)
        book = self._door.book() if terms.order_type in MARKETS else Book()
        return need_of(self._instrument, terms, refused, book)

    def _place(self, claim: Claim) -> None:
        key = Key(claim.unit.account, claim.need.asset)
        line = self._lines.get(key)
        if line is None and len(self._lines) >= LINE_LIMIT:
            self._settle([claim], _FULL)
            return
        if line is None:
            first = claim.number + 1
            line = self._lines[key] = Line(key, first, Withdrawals(key.account, first))
            self._spawn(self._serve(line))
        elif claim.number < line.first_number:
            # A large batch is sorted in parts, and others come between.
            line.first_number = claim.number + 1
            line.withdrawals = Withdrawals(key.account, line.first_number)
        line.claims.append(claim)
        line.number = max(line.number, claim.number)

    # Going out.

    def _close(self, unit: Unit, sentence: str) -> None:
        self._waiting_count -= 1
        unit.settle(sentence)

    def _settle(self, claims: Iterable[Claim], verdict: Verdict) -> None:
        for claim in claims:
            if not claim.settled:
                claim.settled = True
                self._close(claim.unit, verdict.sentence)

    def _alive(self, claims: list[Claim]) -> list[Claim]:
        """Return whose caller still waits and has time; settle the others."""
        now_ns = time.monotonic_ns()
        self._settle([claim for claim in claims if claim.until_ns <= now_ns], _LATE)
        self._settle([claim for claim in claims if claim.unit.future.done()], _LATE)
        return [claim for claim in claims if not claim.settled]

    # Asking.

    async def _serve(self, line: Line) -> None:
        """Ask for a line until nobody waits in it."""
        claims: list[Claim] = []
        try:
            while line.claims:
                claims = list(line.claims)
                line.claims.clear()
                await self._round(line, claims)
        except Exception:
            log.exception("account %d: money could not be asked for", line.key.account)
            self._settle((*claims, *line.claims), _BROKEN)
        finally:
            del self._lines[line.key]

    async def _round(self, line: Line, claims: list[Claim]) -> None:
        """Get money for everybody who waits, or for as many as there is money for."""
        parts, least_units, refusal = [claims], AMOUNT_LIMIT_UNITS + 1, _MUCH
        while parts:
            part = self._alive(parts.pop())
            if not part:
                continue
            units = _units(part)
            if units < least_units:
                verdict = await self._asked(line, units)
                if verdict.granted:
                    await self._enter(line, part)
                    continue
                refusal = verdict
                if not refusal.by_amount:
                    # Whatever it is, it stands in the way of the others, too.
                    self._settle((*part, *(claim for rest in parts for claim in rest)), refusal)
                    return
                least_units = units
            # What was too much before is too much still: nobody is asked for it again.
            if len(part) == 1:
                self._settle(part, refusal)
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]

    async def _asked(self, line: Line, units: int) -> Verdict:
        if self._stopping:
            return _STOPPING
        need = Need(line.key.asset, units)
        return await self._link.allotment(line.key.account, need, line.number)

    # Entering again.

    async def _enter(self, line: Line, claims: list[Claim]) -> None:
        """Enter orders again, those that are still wanted, and take in what became of them."""
        while True:
            await self._read_on(line)
            claims = self._wanted(line, self._alive(claims))
            if not claims:
                return
            rows = np.array([claim.record for claim in claims], np.int64)
            entered = self._door.enter_again(rows, line.key.account)
            if not isinstance(entered, Refusal):
                break
            if entered.code != Code.RESOURCE_EXHAUSTED:
                self._settle(claims, Verdict(False, entered.message))
                return
            follower = self._door.follower
            await follower.grown(follower.number, ROOM_S)
        self._answered(line, claims, (await entered).acks)

    async def _read_on(self, line: Line) -> None:
        """Look through most of what was logged since, letting others run in between."""
        reader = self._door.follower.reader
        while reader.committed() - line.withdrawals.number > SCAN_ROWS:
            if not self._scan(line, SCAN_ROWS):
                return
            await asyncio.sleep(0)

    def _scan(self, line: Line, limit: int) -> bool:
        """Look at up to so many executions; say whether the log still has them."""
        withdrawals, reader = line.withdrawals, self._door.follower.reader
        try:
            rows = reader.read(withdrawals.number, limit)
        except ExecutionsPruned:
            return False
        withdrawals.follow(rows)
        return bool(len(rows))

    def _wanted(self, line: Line, claims: list[Claim]) -> list[Claim]:
        """Return the orders that nobody has taken back up to this instant; settle the others."""
        follower, withdrawals = self._door.follower, line.withdrawals
        goal = follower.reader.committed()
        while withdrawals.number < goal:
            if not self._scan(line, goal - withdrawals.number):
                self._settle(claims, _UNREADABLE)
                return []
        pending = Pending(follower.unanswered(line.key.account))
        leaves = self._door.leaves(line.key.account)

        def taken_back(claim: Claim) -> bool:
            terms = terms_of(claim.record)
            if terms.kind != CommandKind.NEW_ORDER:
                return False  # An amendment of an order that is gone is refused.
            named = terms.client_order_id, terms.side
            return leaves or withdrawals.since(claim.number, *named) or pending.takes(*named)

        self._settle([claim for claim in claims if taken_back(claim)], _WITHDRAWN)
        return [claim for claim in claims if not claim.settled]

    def _answered(self, line: Line, claims: list[Claim], acks: Rows) -> None:
        """Take in what became of orders that were entered again."""
        for claim, ack in zip(claims, acks, strict=True):
            claim.unit.acks[claim.index] = ack
            claim.number = int(ack[ACK_LAST_NUMBER])
            claim.tries += 1
            if int(ack[ACK_VERB]) & 0xFFFF not in _SHORT:
                self._settle([claim], _DECIDED)
                continue
            line.number = max(line.number, claim.number)
            need = None
            if claim.tries < TRIES:
                need = self._need(claim.unit.account, claim.record, claim.number)
            if need is None or need.asset != line.key.asset:
                self._settle([claim], _AGAIN)
            else:
                claim.need = need
                line.claims.append(claim)


def _units(claims: Iterable[Claim]) -> int:
    """Return what orders need together; one that was sent twice needs it once."""
    needs: dict[tuple[int, int], int] = {}
    for claim in claims:
        name = claim.record[0], claim.record[1]
        needs[name] = max(needs.get(name, 0), claim.need.units)
    return sum(needs.values())
