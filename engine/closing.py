"""Closing a pair for orders while everything else goes on, so that its books can be settled first.

    READY -> CLOSING -> CLOSED

Whoever stops a whole exchange wants a last trade: after it the books are settled, and only then
are processes stopped. A pair that is asked to close says CLOSING, and from then on order entry
refuses what may trade. Cancels, funds, limits and digests are taken as before.

Invariant: after CLOSED no command of a trader that may trade is applied. Order entry looks at the
state before each command it writes, and one process does both on one thread; so once the heartbeat
of each living process is later than the state is old, whatever it wrote before lies in its ring,
and CLOSED is said when all rings are empty. A process that lives and does not beat keeps the pair
in CLOSING.

Closing is not journaled: an engine that starts again is open.
"""

from collections.abc import Sequence
from typing import Final

from engine.inboxes import BorrowedInbox
from engine.sequencer import Sequencer
from exchange.book_layout import STATE_CLOSED, STATE_CLOSING

VISIBLE_NS: Final = 1_000_000
"""The state is in everybody's sight by then, however late the processor stored it."""


class Closing:
    """How far the closing of one pair is. `look` belongs to the engine's thread."""

    def __init__(self, sequencer: Sequencer, inboxes: Sequence[BorrowedInbox]) -> None:
        self._sequencer = sequencer
        self._inboxes = inboxes
        self._asked = False
        self._closing_ns = 0
        """When everybody could see that the pair closes; 0: it does not."""

    def ask(self) -> None:
        """Begin at the next look; safe from a signal handler, and may be repeated."""
        self._asked = True

    def look(self, now_ns: int) -> None:
        """Go a step further if it can be done; called now and then, between two batches."""
        if not self._asked:
            return
        if not self._closing_ns:
            self._sequencer.take(STATE_CLOSING)
            self._closing_ns = now_ns + VISIBLE_NS
        elif self._nobody_writes(now_ns) and not any(one.waiting for one in self._inboxes):
            self._sequencer.take(STATE_CLOSED)

    def _nobody_writes(self, now_ns: int) -> bool:
        return all(inbox.seen_after(self._closing_ns, now_ns) for inbox in self._inboxes)
