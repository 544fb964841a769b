"""The single writer: takes commands from the inboxes and makes them facts, one batch at a time.

    drain -> number and stamp -> journal -> sync -> release the inboxes -> apply -> log -> ring

Nothing is visible to anyone before its command is durable, and an inbox gets its space back only
then. While a batch syncs the next one gathers in the inboxes: the slower the disk, the larger the
batch. ``step`` does a bounded piece of work and says how much; loop, clock and bells are wired in
``engine.__main__``.

When the disk takes no more, the batch already drained is kept and tried again: the engine says
JOURNAL_BLOCKED, acknowledges nothing, loses nothing and goes on when there is room.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from engine.durability.execution_log import ExecutionLogWriter, LogBlocked
from engine.durability.journal import Journal, JournalBlocked
from engine.state_machine import Engine
from engine.vault_layout import RESTING_COUNT, TIME_NS
from exchange import atomics
from exchange.book_layout import (
    DEPTH_EVENT_HEAD,
    ENGINE_STATE,
    EVENT_HEAD,
    STATE_JOURNAL_BLOCKED,
    STATE_READY,
)
from exchange.intake import CURSOR_STRIDE, INTAKE_SEQUENCE, INTAKE_STATE
from exchange.records import C_SOURCE, COMMAND_WORDS, SOURCE_SHIFT

Rows = npt.NDArray[np.int64]

BATCH_CAPACITY: Final = 8_192
"""Most commands of one batch: half a megabyte, so that batch and executions stay in the cache."""
EXECUTIONS_PER_COMMAND: Final = 4
"""Without the resting orders it removes, one command causes at most so many executions."""


class Inbox(Protocol):
    """Where commands come from: one producer's ring, read and released by this process alone."""

    ring: int

    def take(self, out: Rows) -> tuple[int, int]:
        """Copy waiting commands into ``out``; return (position of the first, count)."""
        ...

    def release(self, position: int) -> None:
        """Give everything before ``position`` back to the producer."""
        ...


class Listener(Protocol):
    """A follower of the execution log that may be asleep."""

    def ring_if_asleep(self) -> None:
        """Wake it."""
        ...


def chain(executions: Rows, before: int) -> int:
    """Return the hash of everything executed so far: XXH3 of the new rows, seeded with the old."""
    return xxh3_64_intdigest(executions.data, seed=before) if len(executions) else before


@dataclass(slots=True)
class Batch:
    """Commands on their way to the disk."""

    rows: Rows = field(default_factory=lambda: np.zeros((BATCH_CAPACITY, COMMAND_WORDS), np.int64))
    count: int = 0
    releases: list[tuple[Inbox, int]] = field(default_factory=list)


class Sequencer:
    """Owner of everything a pair's engine may write."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        log: ExecutionLogWriter,
        intake: Mapping[str, npt.NDArray[Any]],
        chain_hash: int,
    ) -> None:
        """Continue from a recovered engine; ``chain_hash`` covers all its executions."""
        self.engine = engine
        self.journal = journal
        self.log = log
        self.chain_hash = chain_hash
        self.inboxes: list[Inbox] = []
        self.listeners: list[Listener] = []
        self._able = STATE_READY
        self._control = intake["control"]
        self._public = engine.book["scalars"]
        self._scalars = engine.vault["scalars"]
        self._batch = Batch()
        self._address = self._batch.rows.ctypes.data
        self._turn = 0

    def set_state(self, state: int) -> None:
        """Tell order entry and readers what the engine is able to do."""
        if self._control[INTAKE_STATE] != state:
            atomics.store(self._control, INTAKE_STATE, state)
            self._public[ENGINE_STATE] = state

    def take(self, state: int) -> None:
        """Be in this state while commands are taken; as long as nothing is said, READY."""
        if self._control[INTAKE_STATE] == self._able:
            self.set_state(state)
        self._able = state

    def step(self, now_ns: int) -> int:
        """Carry one batch through; return how many commands it had, 0 when nothing could be done.

        Raises JournalLost when a sync failed: the process must end and recover.
        """
        batch = self._batch
        if batch.count == 0:
            self._drain()
            if batch.count == 0:
                self._idle()
                return 0
        time_ns = max(now_ns, int(self._scalars[TIME_NS]))
        try:
            self._make_durable(time_ns)
        except (JournalBlocked, LogBlocked):
            self.set_state(STATE_JOURNAL_BLOCKED)
            return 0
        self.set_state(self._able)
        self._apply(time_ns)
        count = batch.count
        batch.count = 0
        return count

    def _drain(self) -> None:
        """Fill the batch from the inboxes, another one first each time."""
        batch = self._batch
        batch.releases.clear()
        self._turn += 1
        for index in range(len(self.inboxes)):
            inbox = self.inboxes[(self._turn + index) % len(self.inboxes)]
            rows = batch.rows[batch.count :]
            position, count = inbox.take(rows)
            if count:
                # A producer is not believed about who it is.
                first = inbox.ring << SOURCE_SHIFT | position
                rows[:count, C_SOURCE] = np.arange(first, first + count)
                batch.count += count
                batch.releases.append((inbox, position + count))
            if batch.count == BATCH_CAPACITY:
                break

    def _make_durable(self, time_ns: int) -> None:
        """Journal the batch and wait for the disk; then the inboxes may be written over."""
        batch = self._batch
        resting = int(self._scalars[RESTING_COUNT])
        self.log.reserve(resting + EXECUTIONS_PER_COMMAND * batch.count)
        rows = batch.rows[: batch.count]
        self.journal.append(rows, self.engine.sequence + 1, time_ns, self.chain_hash)
        self.journal.sync()
        for inbox, position in batch.releases:
            inbox.release(position)

    def _apply(self, time_ns: int) -> None:
        """Decide the batch, say what happened, wake those who wait for it."""
        applied = 0
        while applied < self._batch.count:
            address = self._address + applied * COMMAND_WORDS * 8
            applied += self.engine.apply_at(address, self._batch.count - applied, time_ns)
            executions = self.engine.executions
            self.chain_hash = chain(executions, self.chain_hash)
            self.log.append(executions)
        self.log.commit()
        atomics.store(self._control, INTAKE_SEQUENCE, self.engine.sequence)
        for listener in self.listeners:
            listener.ring_if_asleep()

    def _idle(self) -> None:
        if self._public[EVENT_HEAD] != self._public[DEPTH_EVENT_HEAD]:
            self.engine.publish_idle()


def restore_cursors(engine: Engine, cursors: npt.NDArray[np.int64]) -> None:
    """Point every inbox's cursor behind the last command that was journaled from it."""
    for ring, position in enumerate(engine.vault["sources"]):
        atomics.store(cursors, ring * CURSOR_STRIDE, int(position))
