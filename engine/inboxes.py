"""The engine's view of the inboxes: borrow each order-entry process's ring, wake its owner.

An inbox may be missing, dead or made anew at any time; ``refresh`` notices. Nothing read from a
ring is believed: a tail that cannot be true puts the inbox aside until its owner returns.
"""

import logging

import numpy as np
import numpy.typing as npt

from exchange import atomics
from exchange.book_layout import segment_name
from exchange.config import RunFolder
from exchange.doorbell import Ringer
from exchange.intake import CURSOR_STRIDE, INBOX_JOURNAL, inbox_layout, inbox_purpose
from exchange.ownership import Borrowed, LayoutMismatch, SegmentMissing, Status
from exchange.ring import TAIL, RingConsumer, take_rows
from exchange.segment import HeaderWord

_log = logging.getLogger(__name__)

Words = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]

PRODUCER_ASLEEP = 8
"""Word of an inbox's control array: its owner, as a follower of the log, waits for its bell."""


class BorrowedInbox:
    """One order-entry process's ring, read in place."""

    def __init__(
        self, ring: int, folder: RunFolder, directory: str, cursors: Words, journal: int
    ) -> None:
        """Name the segment; ``refresh`` opens it when it exists.

        ``cursors`` are the engine's, ``journal`` is the number of the journal it continues.
        """
        self.ring = ring
        self.name = segment_name(folder.pair, inbox_purpose(ring))
        self._directory = directory
        self._cursors = cursors
        self._journal = journal
        self._index = ring * CURSOR_STRIDE
        self._ringer = Ringer(folder.entry_bell(ring))
        self._borrowed: Borrowed | None = None
        self._consumer: RingConsumer | None = None

    @property
    def tail_address(self) -> int:
        """Return the address of the tail word, or 0 while there is no inbox."""
        return self._borrowed.address("control") if self._borrowed and self._consumer else 0

    @property
    def cursor(self) -> int:
        """Return how many records of this ring were taken for good."""
        return atomics.load(self._cursors, self._index)

    @property
    def waiting(self) -> bool:
        """Say whether commands are in the ring that were not taken for good."""
        return self._consumer is not None and self._consumer.control[TAIL] != self.cursor

    def seen_after(self, moment_ns: int, now_ns: int) -> bool:
        """Say whether the owner, if there is a living one, looked around after a moment."""
        if self._borrowed is None:
            return True
        if atomics.load(self._borrowed.header, HeaderWord.HEARTBEAT_NS) > moment_ns:
            return True
        return self._borrowed.status(now_ns) in (Status.CLOSED, Status.DEAD)

    def refresh(self) -> bool:
        """Open the inbox if it has appeared or was made anew; say whether anything changed."""
        if self._borrowed is not None and not self._borrowed.replaced():
            return self._connect()
        self._close()
        try:
            self._borrowed = Borrowed.open(self.name, inbox_layout(), directory=self._directory)
        except SegmentMissing:
            return False
        except LayoutMismatch as error:
            _log.warning("inbox not taken: %s", error)
            return False
        return self._connect()

    def _connect(self) -> bool:
        """Start reading once the ring is one for this engine's journal."""
        borrowed = self._borrowed
        assert borrowed is not None
        ours = atomics.load(borrowed["control"], INBOX_JOURNAL) == self._journal
        if self._consumer is not None or not ours:
            return False
        self._consumer = RingConsumer(
            borrowed["control"], borrowed["records"], self._cursors, self._index
        )
        return True

    def _close(self) -> None:
        if self._borrowed is not None:
            self._consumer = None
            self._borrowed.close()
            self._borrowed = None

    def take(self, out: Rows) -> tuple[int, int]:
        """Copy waiting commands into ``out`` without releasing them; (position, count)."""
        ring = self._consumer
        if ring is None:
            return 0, 0
        position = self.cursor
        count = take_rows(ring.control, ring.records, position, ring.cache, out, len(out))
        if count < 0:
            _log.error("%s: its tail does not fit the cursor %d; put aside", self.name, position)
            self._consumer = None
            return position, 0
        return position, count

    def release(self, position: int) -> None:
        """Give everything before ``position`` back to the producer."""
        atomics.store(self._cursors, self._index, position)

    def ring_if_asleep(self) -> None:
        """Wake the owner when it waits for executions."""
        if self._borrowed is not None:
            self._ringer.ring_if_asleep(self._borrowed["control"], PRODUCER_ASLEEP)
