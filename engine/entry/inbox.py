"""The writing end of one order-entry process: commands into its ring, a ring of the engine's bell.

Invariants: a command whose answer was not seen in the execution log is still in the ring, so an
engine that restarts finds everything that its journal does not have; positions go up by one per
command and never repeat while the segment lives; refusals name what is full or not ready, and a
refused command was not written at all.

Not here: what a command means, and who waits for its answer.
"""

from typing import Final

from engine.entry.batches import expand_records
from engine.order_entry import Command
from exchange import atomics
from exchange.book_layout import (
    STATE_CLOSED,
    STATE_CLOSING,
    STATE_DRAINING,
    STATE_JOURNAL_BLOCKED,
    STATE_READY,
    segment_name,
)
from exchange.config import RunFolder, segment_folder
from exchange.doorbell import Ringer
from exchange.enums import CommandKind
from exchange.intake import (
    CURSOR_STRIDE,
    INBOX_CAPACITY,
    INBOX_JOURNAL,
    INTAKE_ASLEEP,
    INTAKE_JOURNAL,
    INTAKE_SEQUENCE,
    INTAKE_STATE,
    inbox_layout,
    inbox_purpose,
    intake_layout,
)
from exchange.ownership import Borrowed, Owned, SegmentMissing
from exchange.records import SOURCE_SHIFT, Rows, source
from exchange.refusal import Code, Refusal
from exchange.ring import TAIL, RingProducer

SINGLE_ROOM: Final = 1_024
"""Places of the ring that batches leave to single commands."""

_STATES: Final = {
    STATE_JOURNAL_BLOCKED: Refusal(
        Code.UNAVAILABLE,
        "JOURNAL_BLOCKED",
        "the engine cannot write its journal; it has lost nothing and resumes when it can",
    ),
    STATE_DRAINING: Refusal(Code.UNAVAILABLE, "ENGINE_NOT_READY", "the engine is stopping"),
}
_CLOSING: Final = (STATE_CLOSING, STATE_CLOSED)
_CLOSED: Final = Refusal(
    Code.UNAVAILABLE, "ENGINE_NOT_READY", "the pair is closing; it takes cancels and no orders"
)
_ORDERS: Final = (CommandKind.NEW_ORDER, CommandKind.AMEND_ORDER)
"""What a pair that is closing takes no more of: what may trade."""
_NOT_READY: Final = Refusal(Code.UNAVAILABLE, "ENGINE_NOT_READY", "the engine is starting")
_RING_FULL: Final = Refusal(
    Code.RESOURCE_EXHAUSTED,
    "RING_FULL",
    f"{INBOX_CAPACITY} commands of this process are not answered yet; try again",
    "inbox",
    str(INBOX_CAPACITY),
    f"fewer than {INBOX_CAPACITY} unanswered commands",
)


class OtherJournal(Exception):
    """The engine was started on other data: this process must start anew, too."""


class Inbox:
    """One process's ring and its view of the engine's intake. Belongs to one thread.

    Raises AlreadyOwned if another process serves this ring, SegmentMissing if no engine has ever
    run here.
    """

    def __init__(self, run: RunFolder, ring: int) -> None:
        self.ring = ring
        self._pair = run.pair
        self._intake = self._borrow_intake()
        self._owned = Owned.claim(
            segment_name(run.pair, inbox_purpose(ring)),
            inbox_layout(),
            # The engine may run as another user of the same group; nobody else has any business.
            mode=0o640,
            directory=segment_folder(),
            prepare=self._prepare,
        )
        self.control = self._owned["control"]
        self._ringer = Ringer(run.engine_bell())
        self._producer = self._connect()

    def _borrow_intake(self) -> Borrowed:
        name = segment_name(self._pair, "intake")
        return Borrowed.open(name, intake_layout(), directory=segment_folder())

    def _prepare(self, owned: Owned) -> None:
        """Start a new ring where the engine's cursor stands; keep an old one's tail.

        A ring written for another journal is as good as new: its commands are not this one's.
        """
        control = owned["control"]
        if owned.created or control[INBOX_JOURNAL] != self._journal():
            control[TAIL] = self.engine_cursor()
            atomics.store(control, INBOX_JOURNAL, self._journal())

    def _connect(self) -> RingProducer:
        return RingProducer(
            self._owned["control"],
            self._owned["records"],
            self._intake["cursors"],
            self.ring * CURSOR_STRIDE,
        )

    def _journal(self) -> int:
        """Return the number of the journal that the engine continues."""
        return int(self._intake["control"][INTAKE_JOURNAL])

    def engine_cursor(self) -> int:
        """Return how many commands of this ring the engine has taken."""
        return int(self._intake["cursors"][self.ring * CURSOR_STRIDE])

    @property
    def tail(self) -> int:
        """The position of the next command."""
        return self._producer.tail

    @property
    def engine_state(self) -> int:
        """The engine's STATE_ of `exchange.book_layout`."""
        return int(self._intake["control"][INTAKE_STATE])

    @property
    def engine_sequence(self) -> int:
        """Sequence of the last command the engine applied."""
        return int(self._intake["control"][INTAKE_SEQUENCE])

    @property
    def engine_epoch(self) -> int:
        """The epoch of the intake segment that was last seen."""
        return self._intake.epoch

    def check_engine(self) -> None:
        """Follow the intake segment to a new owner, or to a new file of the same name."""
        if not self._intake.replaced():
            self._intake.renew()
            return
        try:
            fresh = self._borrow_intake()
        except SegmentMissing:
            return  # Removed, or being made anew: the next look will find it.
        self._intake.close()
        self._intake = fresh
        if self._journal() != self.control[INBOX_JOURNAL]:
            raise OtherJournal(f"the engine of {self._pair} continues another journal now")
        self._producer = self._connect()

    def refusal(
        self, acked: int, count: int, spare: int = 0, *, orders: bool = True
    ) -> Refusal | None:
        """Say why `count` commands, with orders among them or not, cannot be written now."""
        state = self.engine_state
        if state in _CLOSING:
            if orders:
                return _CLOSED
        elif state != STATE_READY:
            return _STATES.get(state, _NOT_READY)
        room = INBOX_CAPACITY - spare - (self.tail - acked)
        if count > room or self._producer.reserve(count)[1] < count:
            return _RING_FULL
        return None

    def write(self, command: Command, acked: int) -> int | Refusal:
        """Write one command and return its position, or say why not."""
        refusal = self.refusal(acked, 1, orders=command.verb & 0xFF in _ORDERS)
        if refusal is not None:
            return refusal
        position = self._producer.tail
        row = self._owned["records"][position & (INBOX_CAPACITY - 1)]
        row[:] = command.words(source(self.ring, position))
        self._publish(position + 1)
        return position

    def write_records(self, records: Rows, account: int, acked: int) -> int | Refusal:
        """Write a batch (n, 4), all of it, and return its first position, or say why not."""
        refusal = self.refusal(acked, len(records), SINGLE_ROOM)
        if refusal is not None:
            return refusal
        position = self._producer.tail
        expand_records(
            records, account, self.ring << SOURCE_SHIFT, position, self._owned["records"]
        )
        self._publish(position + len(records))
        return position

    def _publish(self, position: int) -> None:
        self._producer.commit(position)
        self._ringer.ring_if_asleep(self._intake["control"], INTAKE_ASLEEP)

    def heartbeat(self, now_ns: int) -> None:
        """Say that this process lives."""
        self._owned.heartbeat(now_ns)

    def close(self) -> None:
        """Give the ring up in good order; its tail stays for the next process."""
        self._ringer.close()
        self._owned.close()
        self._intake.close()
