"""The follower of the execution log in an order-entry process: who asked gets its answer.

One pass over new rows folds them into acknowledgements by ring position and brings the order
index up to date; then the callers whose positions are answered are woken. A caller is a range of
positions, so a batch of a thousand orders costs one waiter, not a thousand.

Invariants: positions are answered in order, because a ring is read in order and executions of one
command stand together, the last with FLAG_LAST; acknowledgements are copied to their caller before
their row is used again; private streams keep no queue here, they read the log themselves at their
own pace and are only told that it has grown. So nothing here grows with a slow client.

Not here: sleeping and bells (see `engine.entry.process`), the network.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from engine.durability.execution_reader import ExecutionLogReader
from engine.entry.batches import (
    FOLD_ACKED,
    FOLD_OPEN,
    FOLD_WORDS,
    NO_POSITION,
    copy_acks,
    fold_acks,
    record_of,
)
from engine.entry.order_index import OrderIndex
from engine.order_entry import Command
from exchange.intake import INBOX_CAPACITY
from exchange.packed import ACK_WORDS
from exchange.records import Rows

ACK_CAPACITY: Final = 2 * INBOX_CAPACITY
"""Rows of acknowledgements: more than commands can be unanswered at a time."""
STEP_ROWS: Final = 16_384
"""Most executions of one step: a millisecond or so, then others get their turn."""


class Answer(NamedTuple):
    """What became of the commands of one caller."""

    acks: Rows
    """(n, 6), layout in `exchange.packed`."""
    sentence: str = ""
    """What else there is to say about a refusal."""


@dataclass(slots=True)
class _Waiter:
    first: int
    count: int
    future: "asyncio.Future[Answer]"
    account: int
    asked: Command | Rows | None
    """A trader's command, or records (n, 4); None for everybody else's."""


Shortage = Callable[[Rows, int, Rows, "asyncio.Future[Answer]"], None]
"""Called with records, account, acknowledgements and the future that is to have the answer."""


class Follower:
    """Follows the log for one inbox ring. Belongs to one event loop."""

    def __init__(
        self, reader: ExecutionLogReader, ring: int, index: OrderIndex, acked: int
    ) -> None:
        self.reader = reader
        self.ring = ring
        self.index = index
        self._acks = np.zeros((ACK_CAPACITY, ACK_WORDS), np.int64)
        self._state = np.zeros(FOLD_WORDS, np.int64)
        self._state[FOLD_ACKED] = acked
        self._state[FOLD_OPEN] = NO_POSITION
        self._waiters: deque[_Waiter] = deque()
        self._growth: asyncio.Future[None] | None = None
        self.on_wait: Callable[[], None] = lambda: None
        """Called whenever somebody begins to wait for the log to grow."""
        self.on_shortage: Shortage | None = None
        """Takes over the answers to traders that say that funds are lacking."""

    @property
    def acked(self) -> int:
        """Every position of the ring below this one is answered."""
        return int(self._state[FOLD_ACKED])

    @property
    def number(self) -> int:
        """The first log number that was not followed yet."""
        return self.index.number

    @property
    def awaited(self) -> bool:
        """True while somebody waits for the log to grow."""
        return bool(self._waiters) or self._growth is not None

    def behind(self) -> int:
        """Return how many executions wait to be followed."""
        return self.reader.committed() - self.index.number

    def expect(
        self, first: int, count: int, account: int = 0, asked: Command | Rows | None = None
    ) -> "asyncio.Future[Answer]":
        """Return what becomes the acknowledgements (count, 6) of positions from `first` on.

        `asked` is what a trader's `account` entered there. Must be called in the order of
        positions. Cancelling the future forgets the caller, not the commands.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiters.append(_Waiter(first, count, future, account, asked))
        self.on_wait()
        return future

    def unanswered(self, account: int) -> Iterator[Rows]:
        """Walk the records (n, 4) of what an account entered here and was not answered yet."""
        for waiter in self._waiters:
            if waiter.account == account and waiter.asked is not None:
                asked = waiter.asked
                yield record_of(asked) if isinstance(asked, Command) else asked

    def step(self) -> int:
        """Follow up to `STEP_ROWS` executions and wake who is answered; return how many."""
        wanted = min(self.behind(), STEP_ROWS)
        if wanted <= 0:
            return 0
        first_number = self.index.number
        rows = self.reader.read(first_number, wanted)
        fold_acks(rows, first_number, self.ring, self._state, self._acks)
        self.index.apply(rows)
        self._wake()
        return len(rows)

    def catch_up(self) -> None:
        """Follow everything that is committed now: what anybody was told is then known here."""
        goal = self.reader.committed()
        while self.index.number < goal:
            self.step()

    def _wake(self) -> None:
        acked = self.acked
        waiters = self._waiters
        while waiters and waiters[0].first + waiters[0].count <= acked:
            waiter = waiters.popleft()
            if not waiter.future.done():
                out = np.empty((waiter.count, ACK_WORDS), np.int64)
                short = copy_acks(self._acks, waiter.first, out)
                if short and waiter.asked is not None and self.on_shortage is not None:
                    asked = waiter.asked
                    records = record_of(asked) if isinstance(asked, Command) else asked
                    self.on_shortage(records, waiter.account, out, waiter.future)
                else:
                    waiter.future.set_result(Answer(out))
        self.nudge()

    def nudge(self) -> None:
        """Wake everybody who waits for the log to grow, so that they look around."""
        if self._growth is not None:
            self._growth.set_result(None)
            self._growth = None

    def read(self, number: int, count: int) -> Rows:
        """Return `count` followed rows from `number` on, also across files of the log.

        Raises ExecutionsPruned.
        """
        rows = self.reader.read(number, count)
        if len(rows) == count:
            return rows
        parts = [rows]
        while (missing := count - sum(map(len, parts))) > 0:
            parts.append(self.reader.read(number + count - missing, missing))
            assert len(parts[-1]), f"executions {number} to {number + count} are not all there"
        return np.concatenate(parts)

    async def grown(self, number: int, timeout_s: float) -> bool:
        """Wait until the log was followed beyond `number`; say whether it was within the time."""
        if self.index.number > number:
            return True
        growth = self._growth
        if growth is None:
            # Beginning to wait may itself follow the log and answer at once.
            growth = self._growth = asyncio.get_running_loop().create_future()
            self.on_wait()
        done, _ = await asyncio.wait((growth,), timeout=timeout_s)
        return bool(done)
