"""One order-entry process behind its doors: inbox, follower, bell, and the rhythm that drives them.

The process connects when an engine has prepared its segments, follows the log until it has caught
up, and only then takes commands. It sleeps on its own bell, which the engine rings when the
process has said that it sleeps; a slow tick is the safety net and looks after everything that
changes rarely: the engine's state and epoch, the heartbeat, snapshots of the order index, cancels
owed to lost sessions.

Invariants: nothing here waits longer than a tick without noticing an engine's restart; calls
entered before it are answered by the engine that comes back, because their commands are still in
the ring; the number of unanswered commands never exceeds the ring.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from engine.durability.execution_reader import ExecutionLogReader, LogMissing, confirm, consumers
from engine.entry.answers import Answer, Follower
from engine.entry.config import EntryConfig
from engine.entry.inbox import Inbox
from engine.entry.order_index import OrderIndex, newest_index, write_snapshot
from engine.entry.reports import report_of
from engine.entry.risk.book_view import read_book
from engine.entry.risk.link import RiskLink
from engine.entry.risk.message_rates import MessageRates
from engine.entry.risk.needs import Book
from engine.entry.risk.shortages import Shortages
from engine.entry.warm_up import warm_up
from engine.order_entry import EXECUTIONS_LIMIT, Command, disconnect_command
from exchange.book_layout import STATE_READY
from exchange.doorbell import Doorbell, fall_asleep, wake_up
from exchange.enums import CommandKind
from exchange.ownership import SegmentMissing
from exchange.packed import ACK_LAST_NUMBER, ACK_VERB
from exchange.records import Rows
from exchange.refusal import Code, Refusal, Refused
from exchange.ring import PRODUCER_ASLEEP
from exchange.v1 import execution_pb2

TICK_S: Final = 0.05
"""The safety net's rhythm; the bell is what makes answers quick."""
PATIENCE_S: Final = 5
"""How long a batch waits for room in a full ring before it is refused."""
BOOK_S: Final = 0.01
"""What the book shows is read anew after this time."""

_CONSUMER: Final = "order-entry"
"""All processes of a pair are one consumer of the log: any of them may start from the newest
snapshot of the index, so the log is needed from there on."""

_NOT_CONNECTED: Final = Refusal(
    Code.UNAVAILABLE, "ENGINE_NOT_READY", "no engine of this pair has been seen yet"
)
_CATCHING_UP: Final = Refusal(
    Code.UNAVAILABLE, "ENTRY_NOT_READY", "this process is still reading the execution log"
)

log = logging.getLogger(__name__)


class EntryProcess:
    """What the doors of one process share. Belongs to one event loop."""

    def __init__(self, config: EntryConfig) -> None:
        self.config = config
        self.instrument = config.instrument
        self.index_complete = True
        """False if orders accepted before the log's first record may be missing in the index."""
        self.draining = False
        self._inbox: Inbox | None = None
        self._follower: Follower | None = None
        self._bell: Doorbell | None = None
        self._caught_up = False
        self._pumping = False
        self._listening = False
        self._owed: set[int] = set()
        self._snapshot_number = 0
        self._snapshot: asyncio.Task[None] | None = None
        self._link: RiskLink | None = None
        self._shortages: Shortages | None = None
        self._rates: MessageRates | None = None
        self._asking: asyncio.Task[None] | None = None
        self._book: tuple[float, Book] = (0, Book())

    @property
    def inbox(self) -> Inbox:
        """The writing end. Raises Refused before the process is connected."""
        if self._inbox is None:
            raise Refused(_NOT_CONNECTED)
        return self._inbox

    @property
    def follower(self) -> Follower:
        """The reading end. Raises Refused before the process is connected."""
        if self._follower is None:
            raise Refused(_NOT_CONNECTED)
        return self._follower

    @property
    def serving(self) -> bool:
        """True while commands are taken."""
        return (
            self._caught_up
            and not self.draining
            and self._inbox is not None
            and self._inbox.engine_state == STATE_READY
        )

    def pair_refusal(self, pair: str) -> Refusal | None:
        """Say that a request is not for this pair; None if it is."""
        if pair == self.instrument.pair:
            return None
        reason = "PAIR_UNKNOWN" if pair else "FIELD_MISSING"
        return Refusal.of_field(reason, "pair", pair, f"{self.instrument.pair}, served here")

    # The rhythm.

    async def run(self, tell: Callable[[bool], Awaitable[None]]) -> None:
        """Connect, then follow until cancelled; `tell` hears whether commands are taken."""
        warm_up()
        # Files appear without telling anybody.
        while not self._connect():  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)
        assert self._bell is not None
        self._link_up()
        asyncio.get_running_loop().add_reader(self._bell.fileno(), self._rung)
        told = False
        while True:
            self._tick()
            if self.serving != told:
                told = self.serving
                await tell(told)
            await asyncio.sleep(TICK_S)

    def _connect(self) -> bool:
        """Open everything the engine prepares; say whether it was there."""
        config = self.config
        try:
            reader = ExecutionLogReader.open(config.run.executions)
            self._inbox = Inbox(config.run, config.ring)
        except (SegmentMissing, LogMissing):
            return False
        config.run.bells.mkdir(parents=True, exist_ok=True)
        self._bell = Doorbell.listen(config.run.entry_bell(config.ring))
        pair, capacity = config.instrument.pair, config.instrument.order_capacity
        first, committed = reader.first(), reader.committed()
        index = newest_index(pair, capacity, config.index_folder, first, committed)
        if index is None:
            self.index_complete = False
            log.warning("the log begins at %d and no snapshot reaches it", first)
            index = OrderIndex(pair, capacity)
            index.number = first
        self._snapshot_number = index.number
        if _CONSUMER not in consumers(config.run.executions):
            confirm(config.run.executions, _CONSUMER, index.number)
        acked = self._inbox.engine_cursor()
        self._follower = Follower(reader, config.ring, index, acked)
        self._follower.on_wait = self._listen
        return True

    def _link_up(self) -> None:
        """Begin to ask the risk service, if there is one."""
        config = self.config
        if not config.risk:
            return
        self._link = RiskLink(config.risk, config.instrument.pair, config.risk_patience_ms)
        self._shortages = Shortages(self, self._link)
        self.follower.on_shortage = self._shortages.take
        capacity = config.instrument.account_capacity
        self._rates = MessageRates(self._link, capacity, config.ring, config.processes)
        self._asking = asyncio.create_task(self._rates.run())

    def _rung(self) -> None:
        assert self._bell is not None
        self._bell.drain()
        self._pump()

    def _tick(self) -> None:
        self.inbox.check_engine()
        self.inbox.heartbeat(time.monotonic_ns())
        for account in tuple(self._owed):
            self.cancel_on_disconnect(account)
        grown = self.follower.number - self._snapshot_number
        if grown >= self.config.snapshot_executions and self._snapshot is None:
            self._start_snapshot()
        self._pump()

    def _pump(self) -> None:
        """Follow the log; ask to be rung only when, after saying so, there is nothing new.

        While nobody waits here the engine need not ring: every process of the pair follows the
        whole log, and a wake-up for each batch would cost more than following it at each tick.
        """
        if self._pumping:
            return
        control = self.inbox.control
        wake_up(control, PRODUCER_ASLEEP)
        self._listening = False
        if self.follower.step() == 0:
            self._caught_up = True
            if not self.follower.awaited:
                return
            fall_asleep(control, PRODUCER_ASLEEP)
            if self.follower.behind() <= 0:
                self._listening = True
                return
            wake_up(control, PRODUCER_ASLEEP)
        self._pumping = True
        asyncio.get_running_loop().call_soon(self._pump_on)

    def _pump_on(self) -> None:
        self._pumping = False
        self._pump()

    def _listen(self) -> None:
        """Somebody begins to wait: be rung from now on."""
        if not self._listening:
            self._pump()

    def _start_snapshot(self) -> None:
        """Write the index elsewhere, from a copy taken at a boundary between commands."""
        if self.follower.behind() > 0 or not self.index_complete:
            return
        number, content = self.follower.number, self.follower.index.content()
        self._snapshot_number = number
        self._snapshot = asyncio.create_task(self._write_snapshot(number, content))

    async def _write_snapshot(self, number: int, content: dict[str, Any]) -> None:
        folder = self.config.run.executions
        try:
            await asyncio.to_thread(write_snapshot, content, self.config.index_snapshot)
            if number > consumers(folder).get(_CONSUMER, 0):
                confirm(folder, _CONSUMER, number)
        except OSError as error:
            log.error("%s could not be written: %s", self.config.index_snapshot, error)
        finally:
            self._snapshot = None

    # Commands.

    def rate_refusal(self, account: int, count: int) -> Refusal | None:
        """Count commands of a trader; say why they may not be entered, None if they may."""
        return None if self._rates is None else self._rates.refusal(account, count)

    def enter(self, command: Command) -> "asyncio.Future[Answer] | Refusal":
        """Write a command; return what becomes its acknowledgement, or why not."""
        if not self._caught_up:
            return _NOT_CONNECTED if self._inbox is None else _CATCHING_UP
        position = self.inbox.write(command, self.follower.acked)
        if isinstance(position, Refusal):
            return position
        trading = command.verb & 0xFF <= CommandKind.CANCEL_ALL
        asked = command if trading else None
        return self.follower.expect(position, 1, command.verb >> 32, asked)

    def enter_again(self, records: Rows, account: int) -> "asyncio.Future[Answer] | Refusal":
        """Write orders once more that lacked money; return their acknowledgements to be."""
        position = self.inbox.write_records(records, account, self.follower.acked)
        if isinstance(position, Refusal):
            return position
        return self.follower.expect(position, len(records))

    async def enter_records(
        self, records: Rows, account: int
    ) -> "asyncio.Future[Answer] | Refusal":
        """Write a batch, waiting for room for a while; return its acknowledgements to be."""
        if not self._caught_up:
            return _NOT_CONNECTED if self._inbox is None else _CATCHING_UP
        loop = asyncio.get_running_loop()
        patience_ends = loop.time() + PATIENCE_S
        while True:
            number = self.follower.number
            position = self.inbox.write_records(records, account, self.follower.acked)
            if not isinstance(position, Refusal):
                return self.follower.expect(position, len(records), account, records)
            left_s = patience_ends - loop.time()
            if position.code != Code.RESOURCE_EXHAUSTED or left_s <= 0:
                return position
            await self.follower.grown(number, min(left_s, TICK_S))

    async def report(self, command: Command, account: int) -> execution_pb2.CommandReport:
        """Write a command and return the report of what became of it. Raises Refused."""
        entered = self.enter(command)
        if isinstance(entered, Refusal):
            raise Refused(entered)
        return self.report_of(await entered, account)

    def report_of(self, answer: Answer, account: int) -> execution_pb2.CommandReport:
        """Return the report of one answered command, reading its executions from the log."""
        ack: list[int] = answer.acks[0].tolist()
        count = (ack[ACK_VERB] >> 32) & 0xFFFFFFFF
        first = ack[ACK_LAST_NUMBER] - count + 1
        rows = self.follower.read(first, min(count, EXECUTIONS_LIMIT))
        report = report_of(self.instrument, ack, rows, account, EXECUTIONS_LIMIT)
        if answer.sentence:
            report.message += f"; {answer.sentence}"
        return report

    def book(self) -> Book:
        """Return what the book shows, a moment old at most."""
        now_s = time.monotonic()
        if now_s - self._book[0] >= BOOK_S:
            self._book = now_s, read_book(self.instrument)
        return self._book[1]

    def leaves(self, account: int) -> bool:
        """Say whether a lost session's cancel of the account's orders is still to be written."""
        return account in self._owed

    def cancel_on_disconnect(self, account: int) -> None:
        """Cancel all orders of a lost session's account, now or as soon as there is room."""
        self._owed.add(account)
        if self._inbox is None or self._follower is None:
            return
        command = disconnect_command(account)
        written = self._inbox.write(command, self._follower.acked)
        if not isinstance(written, Refusal):
            self._owed.discard(account)
            self._follower.expect(written, 1, account, command)

    def drain(self) -> None:
        """Take no more from streams; their handlers wake and say goodbye."""
        self.draining = True
        if self._shortages is not None:
            self._shortages.stop()
        if self._follower is not None:
            self._follower.nudge()

    async def close(self) -> None:
        """Leave everything so that the next process of this ring starts quickly."""
        if self._follower is None or self._inbox is None:
            return
        if self._asking is not None and self._link is not None:
            self._asking.cancel()
            await self._link.close()
        if self._snapshot is not None:
            await self._snapshot
        if self.follower.behind() == 0 and self.index_complete:
            await self._write_snapshot(self.follower.number, self.follower.index.content())
        if self._bell is not None:
            asyncio.get_running_loop().remove_reader(self._bell.fileno())
            self._bell.close()
        self._inbox.close()
