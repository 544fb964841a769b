"""Drives the machine of `riskd.allotments`: takes its steps, lets it hear feeds and ledger.

One event loop. Every step is a task of its own; one that was not answered is given back after a
pause, so that a ledger or an engine that is away is asked now and then and not in a circle.
Holdings are kept in the database once a second, and only then may the pair's log go.

A pair whose feed contradicts itself is no longer followed and says so; the others go on.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc

from exchange.enums import Asset, ExecutionKind, Reason
from exchange.feed import FeedBroken, FeedOutOfRange, FeedRefused
from exchange.v1 import ledger_pb2
from riskd.alarms import SECOND_NS, Alarm, Alarms, Lateness, Silences
from riskd.allotments import Allotments
from riskd.funds.holdings import Certainty, FeedTrouble, packed
from riskd.funds.moves import Instruct, Learn, Move, ReadTrading, Send, Step, Want
from riskd.limits import RiskReason
from riskd.links import LEDGER, LedgerLink, PairLink, Unanswered
from riskd.storage.store import GONE, Store

CONSUMER: Final = "riskd"
TICK_S: Final = 0.05
PAUSE_S: Final = 0.2
"""Before an unanswered step is given back."""
KEEP_S: Final = 1
SETTLED_S: Final = 0.02
"""Between two looks at the ledger's settlement while money is on its way back."""
SETTLED_IDLE_S: Final = 0.5
RECALL_TRIES: Final = 4
_EXPECTED: Final = (
    Reason.UNSPECIFIED,
    Reason.TRANSFER_REPEATED,
    Reason.TRANSFER_GAP,
    Reason.BALANCE_OVERFLOW,
    Reason.INSUFFICIENT_FUNDS,
)
"""What an engine may say of a numbered move; anything else leaves its number unused."""

log = logging.getLogger(__name__)


class Heard:
    """What was heard of a pair, and when."""

    def __init__(self, settlement_late_s: int) -> None:
        self.at_s = time.monotonic()
        self.committed_number = 0
        self.settled_number = 0
        self.request_count = 0
        """Requests for money in the pair."""
        self.lateness = Lateness(settlement_late_s * SECOND_NS)


class Desk:
    """Machine, wires and alarms of one process."""

    def __init__(
        self,
        machine: Allotments,
        links: dict[str, PairLink],
        ledger: LedgerLink,
        store: Store,
        stale_s: int,
        settlement_late_s: int,
    ) -> None:
        self.machine = machine
        self.links = links
        self.ledger = ledger
        self.alarms = Alarms()
        self.heard = {pair: Heard(settlement_late_s) for pair in links}
        self._store = store
        self._silences = Silences()
        self._stale_s = stale_s
        self._kept = {pair: item.cursor for pair, item in machine.holdings.items()}
        self._work = asyncio.Event()
        self._changed = asyncio.Event()
        self._returning = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None

    # Running.

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for link in self.links.values():
                group.create_task(self._follow(link))
            group.create_task(self._drive())
            group.create_task(self._watch_settlement())
            group.create_task(self._keep())

    async def close(self) -> None:
        """Keep what was followed, close the wires."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._keep_all(confirm=False)
        for link in self.links.values():
            await link.close()
        await self.ledger.close()

    async def _drive(self) -> None:
        while True:
            if self._broken is not None:
                raise RuntimeError("a step of a move of money failed") from self._broken
            now_ns = time.time_ns()
            for step in self.machine.steps(now_ns):
                self._spawn(self._take(step))
            self.machine.finished.clear()
            self._tell()
            self._watch_feeds(now_ns)
            for whom, silent_ns in self._silences.over(time.monotonic_ns()):
                log.info("%s answers again, after %d s", whom, silent_ns // SECOND_NS)
            self._work.clear()
            try:
                async with asyncio.timeout(TICK_S):
                    await self._work.wait()
            except TimeoutError:
                continue

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Not foreseen: better to end and start again from what is known than to go on.
            self._broken = task.exception()
            self.wake()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Let the machine's next steps be taken soon."""
        self._work.set()

    async def until(self, condition: Callable[[], bool], deadline_s: float) -> bool:
        """Wait until something holds, looking whenever anything changed; False if it did not."""
        try:
            async with asyncio.timeout_at(deadline_s):
                while not condition():
                    changed = self._changed
                    self.wake()
                    await changed.wait()
        except TimeoutError:
            return condition()
        return True

    # Steps.

    async def _take(self, step: Step) -> None:
        try:
            if isinstance(step, ReadTrading):
                units = await self.ledger.trading(step.key.account, step.key.asset_name)
                self.machine.trading_is(step, units)
            elif isinstance(step, Learn):
                found = await self.ledger.instructions(step.pair, step.from_number)
                self.machine.learned(step, found)
            elif isinstance(step, Instruct):
                answer = await self.ledger.instruct(step.move)
                if isinstance(answer, RiskReason):
                    self.machine.refused(step, answer)
                else:
                    self.machine.numbered(step, answer)
            else:
                await self._send(step)
        except Unanswered as error:
            self.unanswered(error)
            await asyncio.sleep(PAUSE_S)
            self.machine.failed(step)
        else:
            self.answered(step.move.pair if isinstance(step, Send) else LEDGER)
        self.wake()

    async def _send(self, step: Send) -> None:
        move = step.move
        reason = await self.links[move.pair].move(move)
        sentence = ""
        if reason == Reason.TRANSFER_GAP:
            self.machine.gap(step)
        elif reason not in _EXPECTED:
            sentence = (
                f"the engine refuses transfer {move.number} of account {move.account}:"
                f" {reason.name}; later ones wait behind it"
            )
        self.raise_alarm(move.pair, Alarm.MOVES_BLOCKED, sentence)

    # Hearing.

    async def _follow(self, link: PairLink) -> None:
        heard, item = self.heard[link.pair], self.machine.holdings[link.pair]
        try:
            async with link.feed:
                async for chunk in link.feed.chunks(item.cursor):
                    heard.at_s = time.monotonic()
                    heard.committed_number = chunk.committed_number
                    if len(chunk.rows):
                        self.machine.facts(link.pair, chunk.first_number, chunk.rows)
                        self.wake()
                        if self.machine.returning:
                            self._returning.set()
        except (FeedBroken, FeedOutOfRange, FeedRefused, FeedTrouble) as error:
            self.raise_alarm(link.pair, Alarm.FEED_BROKEN, str(error))

    def _watch_feeds(self, now_ns: int) -> None:
        now_s = time.monotonic()
        for pair, heard in self.heard.items():
            silent_s = int(now_s - heard.at_s)
            sentence = f"nothing was heard of {pair} for {silent_s} s"
            stale = now_s - heard.at_s > self._stale_s
            self.raise_alarm(pair, Alarm.FEED_STALE, sentence if stale else "", now_ns)

    async def _watch_settlement(self) -> None:
        while True:
            self._returning.clear()
            try:
                found = await self.ledger.settlements()
            except Unanswered as error:
                found = {}
                self.unanswered(error)
            else:
                self.answered(LEDGER)
            for pair, heard in self.heard.items():
                self._settlement(pair, heard, found.get(pair))
            if self.machine.returning and found:
                await asyncio.sleep(SETTLED_S)
                continue
            try:
                async with asyncio.timeout(SETTLED_IDLE_S):
                    await self._returning.wait()
            except TimeoutError:
                continue

    def _settlement(
        self, pair: str, heard: Heard, settlement: ledger_pb2.Settlement | None
    ) -> None:
        now_ns = time.time_ns()
        reached = None if settlement is None else settlement.cursor
        late = heard.lateness.late(reached, heard.committed_number, now_ns)
        sentence = ""
        if settlement is None:
            sentence = f"the ledger says nothing of {pair}" if late else ""
        else:
            heard.settled_number = settlement.cursor
            self.machine.settled(pair, settlement.cursor)
            stopped = settlement.state == ledger_pb2.SETTLEMENT_STATE_STOPPED
            if stopped:
                sentence = f"the ledger stopped settling {pair}: {settlement.sentence}"
            elif late:
                behind = heard.committed_number - settlement.cursor
                sentence = f"the ledger is {behind} executions behind {pair}"
            if self.machine.returning or not late:
                self.wake()
        self.raise_alarm(pair, Alarm.SETTLEMENT_LATE, sentence, now_ns)

    def unanswered(self, error: Unanswered) -> None:
        """Log who does not answer when it begins, and seldom while it lasts."""
        if self._silences.failed(error.whom, time.monotonic_ns()):
            log.warning("%s", error)

    def answered(self, whom: str) -> None:
        """Note that somebody answers, which is logged if it did not for a while."""
        self._silences.answered(whom)

    def raise_alarm(self, pair: str, alarm: Alarm, sentence: str, now_ns: int = 0) -> None:
        """Raise an alarm, or end it with an empty sentence."""
        if self.alarms.set(pair, alarm, sentence, now_ns or time.time_ns()):
            level = logging.ERROR if sentence else logging.INFO
            log.log(level, "%s: %s %s", pair, alarm.name, sentence or "is over")

    # Keeping.

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            await self._keep_all()

    async def _keep_all(self, confirm: bool = True) -> None:
        for pair, item in self.machine.holdings.items():
            cursor = item.cursor
            if cursor == self._kept[pair]:
                continue
            # Taken at once, packed elsewhere: the loop has other things to do.
            taken = item.taken()
            try:
                state = await asyncio.to_thread(packed, *taken)
                await asyncio.to_thread(self._store.keep_holdings, pair, cursor, state)
                self._kept[pair] = cursor
                if confirm:
                    await self.links[pair].feed.confirm(CONSUMER, cursor)
            except GONE as error:
                log.warning("the database does not answer: %s", str(error).split("\n")[0])
            except grpc.RpcError as error:
                log.debug("%s: the position was not confirmed: %s", pair, error)

    # What is asked of the desk.

    async def caught_up(self, pair: str, number: int, patience_s: float) -> None:
        """Hear a pair's feed beyond an execution, or for as long as patience lasts."""
        item, deadline_s = self.machine.holdings[pair], asyncio.get_running_loop().time()
        if item.cursor <= number:
            await self.until(lambda: item.cursor > number, deadline_s + patience_s)

    async def allotted(
        self,
        account: int,
        pair: str,
        asset: Asset,
        units: int,
        patience_s: float,
        most_units: int,
        after_number: int,
    ) -> RiskReason:
        """Have money free in a pair; return when it is, or why not."""
        now_ns = time.time_ns()
        until_ns = now_ns + int(patience_s * SECOND_NS)
        want = self.machine.want(
            account, pair, asset, units, now_ns, until_ns, most_units, after_number
        )
        return await self._satisfied(want, patience_s)

    async def back_in_trading(
        self, account: int, asset_name: str, units: int, patience_s: float
    ) -> RiskReason:
        """Have money in trading, from wherever it is free and not promised."""
        now_ns = time.time_ns()
        until_ns = now_ns + int(patience_s * SECOND_NS)
        want = self.machine.want(account, "", asset_name, units, now_ns, until_ns)
        return await self._satisfied(want, patience_s)

    async def _satisfied(self, want: Want, patience_s: float) -> RiskReason:
        deadline_s = asyncio.get_running_loop().time() + patience_s
        if not await self.until(lambda: want.done, deadline_s):
            return RiskReason.TIMED_OUT
        return want.reason

    async def recalled(
        self, account: int, pair: str, asset: Asset, units: int, patience_s: float
    ) -> tuple[RiskReason, int]:
        """Take back what is free in a pair, up to an amount; return the reason and the units."""
        deadline_s = asyncio.get_running_loop().time() + patience_s
        item, released = self.machine.holdings[pair], 0
        for _ in range(RECALL_TRIES):
            left = units - released
            unsure = item.certainty[account, asset - 1] == Certainty.REFUSED
            move = self.machine.recall(account, pair, asset, 1 if unsure else left)
            if move is None:
                break
            reason = await self._returned(move, deadline_s)
            if reason == RiskReason.TIMED_OUT:
                return reason, released
            if move.outcome == ExecutionKind.RELEASED:
                released += move.amount_units
            if released >= units:
                break
        return (RiskReason.UNSPECIFIED if released else RiskReason.INSUFFICIENT_FUNDS), released

    async def _returned(self, move: Move, deadline_s: float) -> RiskReason:
        """Wait until a release is over and the ledger has settled it."""
        if not await self.until(lambda: move.done, deadline_s):
            return RiskReason.TIMED_OUT
        cursor, heard = self.machine.holdings[move.pair].cursor, self.heard[move.pair]
        released = move.outcome == ExecutionKind.RELEASED
        settled = not released or await self.until(
            lambda: heard.settled_number >= cursor, deadline_s
        )
        return RiskReason.UNSPECIFIED if settled else RiskReason.TIMED_OUT
