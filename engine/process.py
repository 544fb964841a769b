"""An engine process: segments, recovery, the loop around the sequencer, snapshots, stop.

The loop never polls a clock for its own sake: it spins for a bounded time on the inboxes' tails,
then sleeps until one of their owners rings. Twenty times a second it looks after the rest.
"""

import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np

from engine.closing import Closing
from engine.config import EngineConfig
from engine.durability.snapshot import Capture, SnapshotFailed, sequences, write
from engine.inboxes import BorrowedInbox
from engine.recovery import Recovered, own_fresh, recover, reserve_pages, take_snapshot
from engine.sequencer import Sequencer, restore_cursors
from engine.vault_layout import vault_layout
from exchange.book_layout import (
    STATE_DRAINING,
    STATE_JOURNAL_BLOCKED,
    STATE_READY,
    book_layout,
    segment_name,
)
from exchange.doorbell import Doorbell, Sleeper
from exchange.intake import (
    INTAKE_ASLEEP,
    INTAKE_JOURNAL,
    INTAKE_SEQUENCE,
    INTAKE_STATE,
    intake_layout,
)
from exchange.ownership import Owned

_log = logging.getLogger(__name__)

CARE_NS: Final = 50_000_000
"""How often heartbeats and new inboxes are looked after."""


class EngineProcess:
    """Everything one pair's engine owns, from claim to close."""

    def __init__(self, config: EngineConfig) -> None:
        """Claim the segments, recover, and stand ready; raises what recovery raises."""
        self.config = config
        pair = config.instrument.pair
        config.folder.bells.mkdir(parents=True, exist_ok=True)
        self.bell = Doorbell.listen(config.folder.engine_bell())
        self.vault = own_fresh(
            segment_name(pair, "vault"),
            vault_layout(config.instrument),
            mode=0o600,
            directory=config.vault_segments,
            group=None,
        )
        self.book = own_fresh(
            segment_name(pair, "book"),
            book_layout(config.instrument),
            mode=0o644 if config.group is None else 0o640,
            directory=config.segments,
            group=config.group,
        )
        reserve_pages(self.vault, self.book)
        started_ns = time.monotonic_ns()
        self.recovered = self._recover()
        self.intake = Owned.claim(
            segment_name(pair, "intake"),
            intake_layout(),
            mode=0o644 if config.group is None else 0o640,
            directory=config.segments,
            group=config.group,
            prepare=self._prepare_intake,
        )
        self.sequencer = self._make_sequencer()
        self._snapshot: Future[None] | None = None
        self._snapshot_sequence = self.sequencer.engine.sequence
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._stopping = False
        self._watch_open_inboxes()
        self._closing = Closing(self.sequencer, self.inboxes)
        self._cared_ns = 0
        self.sequencer.set_state(STATE_READY)
        _log.info(
            "%s ready at sequence %d, %d commands replayed in %.3f s",
            pair,
            self.sequencer.engine.sequence,
            self.recovered.replayed_count,
            (time.monotonic_ns() - started_ns) / 1e9,
        )

    def _recover(self) -> Recovered:
        config = self.config
        return recover(
            config.folder, config.instrument, config.durability, self.vault.arrays, self.book.arrays
        )

    def _prepare_intake(self, intake: Owned) -> None:
        restore_cursors(self.recovered.engine, intake["cursors"])
        intake["control"][:] = 0
        intake["control"][INTAKE_JOURNAL] = self.recovered.journal_number
        intake["control"][INTAKE_SEQUENCE] = self.recovered.engine.sequence

    def _make_sequencer(self) -> Sequencer:
        found = self.recovered
        sequencer = Sequencer(
            found.engine, found.journal, found.log, self.intake.arrays, found.chain_hash
        )
        self.inboxes = [
            BorrowedInbox(
                ring,
                self.config.folder,
                self.config.segments,
                self.intake["cursors"],
                found.journal_number,
            )
            for ring in range(self.config.inbox_count)
        ]
        sequencer.listeners = list(self.inboxes)
        self._sleeper = Sleeper(
            self.bell, self.intake["control"], INTAKE_ASLEEP, spins=self.config.spins
        )
        return sequencer

    def stop(self) -> None:
        """Ask the loop to finish what was taken and end; safe from a signal handler."""
        self._stopping = True

    def close_doors(self) -> None:
        """Ask for no more orders from traders while the rest goes on; for a signal handler."""
        self._closing.ask()

    def run(self) -> None:
        """Work until ``stop``; then drain the inboxes, take a snapshot and close."""
        while not self._stopping:
            self._turn()
        self.sequencer.set_state(STATE_DRAINING)
        while self.sequencer.step(time.time_ns()):
            pass
        self._finish()

    def _turn(self) -> None:
        count = self.sequencer.step(time.time_ns())
        now_ns = time.monotonic_ns()
        if now_ns - self._cared_ns >= CARE_NS:
            self._care(now_ns)
        if count == 0:
            self._wait()

    def _wait(self) -> None:
        if self.intake["control"][INTAKE_STATE] == STATE_JOURNAL_BLOCKED:
            self.bell.wait(CARE_NS / 1e9)
            return
        for index, inbox in enumerate(self._open):
            self._seen[index] = inbox.cursor
        self._sleeper.wait(self._tails, self._seen, CARE_NS / 1e9)

    def _watch_open_inboxes(self) -> None:
        """Prepare what a wait looks at; only open inboxes are drained and watched."""
        self._open = [inbox for inbox in self.inboxes if inbox.tail_address]
        self._tails = np.array([inbox.tail_address for inbox in self._open], np.int64)
        self._seen = np.zeros(len(self._open), np.int64)
        self.sequencer.inboxes = list(self._open)

    def _care(self, now_ns: int) -> None:
        self._cared_ns = now_ns
        for owned in (self.vault, self.book, self.intake):
            owned.heartbeat(now_ns)
        for inbox in self.inboxes:
            if inbox.refresh():
                _log.info("inbox %d is open", inbox.ring)
        if sum(inbox.tail_address for inbox in self.inboxes) != self._tails.sum():
            self._watch_open_inboxes()
        self._closing.look(now_ns)
        self._care_for_snapshot()

    def _care_for_snapshot(self) -> None:
        """Start a snapshot when one is due, and let go of what the finished one replaces."""
        if self._snapshot is not None:
            if not self._snapshot.done():
                return
            self._collect_snapshot()
        sequence = self.sequencer.engine.sequence
        if sequence - self._snapshot_sequence >= self.config.snapshot_commands:
            self._snapshot_sequence = sequence
            self._snapshot = self._writer.submit(self._write_snapshot, self._capture())

    def _capture(self) -> Capture:
        sequencer = self.sequencer
        return take_snapshot(sequencer.engine, sequencer.chain_hash, self.vault, self.book)

    def _write_snapshot(self, captured: Capture) -> None:
        # A snapshot stands for the executions before it: they must be on disk first.
        self.sequencer.log.sync()
        write(self.config.folder.journal, captured)

    def _collect_snapshot(self) -> None:
        finished, self._snapshot = self._snapshot, None
        assert finished is not None
        try:
            finished.result()
        except SnapshotFailed as error:
            _log.warning("%s", error)
            return
        kept = sequences(self.config.folder.journal)
        if len(kept) > 1:
            # The journal must reach back to the older one: the newer may turn out damaged.
            self.sequencer.journal.retain_from(kept[-2] + 1)
        self.sequencer.log.prune()

    def _finish(self) -> None:
        """Leave a state that the next start finds at once."""
        if self._snapshot is not None:
            self._snapshot.exception()
            self._collect_snapshot()
        if self.sequencer.engine.sequence > self._snapshot_sequence:
            self._snapshot = self._writer.submit(self._write_snapshot, self._capture())
            self._snapshot.exception()
            self._collect_snapshot()
        self._writer.shutdown()
        _log.info("stopped at sequence %d", self.sequencer.engine.sequence)
        self.close()

    def close(self) -> None:
        """Let go of everything; segments stay for readers, who see that they are closed."""
        self.recovered.journal.close()
        self.recovered.log.close()
        for owned in (self.intake, self.book, self.vault):
            owned.close()
        self.bell.close()


def describe(config: EngineConfig) -> str:
    """Return the settings as one line for the log."""
    folder = config.folder.folder
    return f"{config.instrument.pair}: pid {os.getpid()}, {config.durability} journal in {folder}"
