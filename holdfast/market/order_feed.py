"""Steps of a book of orders from the messages of an order stream, through lost lines; pure.

Each command's events are told once, in order, with the book after all of them: what came of a
command that may go on waits for the message that ends it, also over a lost line. What does not
follow what is held raises `Gap`: the stream is then to be begun anew, with a snapshot.
"""

from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from exchange.v1 import market_data_pb2 as of
from holdfast.book import Gap
from holdfast.market.orders import OrderBook
from holdfast.market.presence import Presence


class StepKind(Enum):
    """What a step of an order stream is."""

    EVENTS = "events"
    """One command: its events, and the book after it."""
    BEGUN = "begun"
    """The first snapshot: the book is there."""
    MISSED = "missed"
    """Begun anew with a snapshot: events between the step before and this one are not told."""
    ENGINE_RESTARTED = "engine restarted"
    """Begun anew with a snapshot of another engine: what the one before did last is not told."""
    CONTRADICTED = "contradicted"
    """Begun anew with a snapshot: what came did not fit the book."""
    STANDSTILL = "standstill"
    """The line is lost or the engine is down: the book may no longer be the present one."""
    RESUMED = "resumed"
    """Live again after a standstill, and nothing was missed."""


class OrderStep(NamedTuple):
    """What happened, and the book after it; the book is the same object each time."""

    kind: StepKind
    book: OrderBook
    events: tuple[of.OrderEvent, ...] = ()
    message: str = ""
    """One sentence for people, where there is more to say than the kind does."""


class OrderFeed:
    """The book of one subscriber and what it holds of the stream."""

    def __init__(self) -> None:
        self.book = OrderBook()
        self._position = 0
        """Events below this position were taken."""
        self._whole = True
        """Whether the events taken end with a command."""
        self._pending: list[of.OrderEvent] = []
        """Events of a command that may go on; they are not in the book yet."""
        self._parts: list[of.OrderSnapshot] = []
        self._presence = Presence()
        self._awaits_snapshot = True
        self._anew = StepKind.BEGUN
        """What the next snapshot is, unless it is of another engine."""
        self._last_epoch = 0

    def held(self) -> tuple[int, int]:
        """Return epoch and position to resume with; zeros: nothing is held."""
        return (self.book.epoch, self._position) if self.book.epoch else (0, 0)

    def begin_stream(self) -> None:
        """Note that what comes next is the beginning of a stream."""
        self._parts = []
        self._presence.begin_stream()

    def lose(self, message: str) -> Iterator[OrderStep]:
        """Note that the line is lost."""
        yield from self._stand_still(message)

    def forget(self, message: str) -> Iterator[OrderStep]:
        """Hold nothing any more, because of what does not fit."""
        self._anew = StepKind.CONTRADICTED
        self._pending, self._position = [], 0
        was_live = self.book.live
        self.book.forget()
        if was_live:
            yield OrderStep(StepKind.STANDSTILL, self.book, message=message)

    def take(self, message: of.StreamOrdersResponse) -> Iterator[OrderStep]:
        """Take one message and yield the steps it makes. Raises Gap."""
        match message.WhichOneof("event"):
            case "snapshot":
                yield from self._take_part(message.snapshot)
            case "events":
                yield from self._take_batch(message.events)
            case "heartbeat":
                yield from self._take_heartbeat(message.heartbeat.position)
            case "notice":
                yield from self._take_notice(message.notice)

    def _take_part(self, part: of.OrderSnapshot) -> Iterator[OrderStep]:
        if part.part == 0:
            self._parts = []
        if part.part != len(self._parts):
            raise Gap(f"part {part.part} of the orders came after {len(self._parts)} parts")
        self._parts.append(part)
        if not part.is_last:
            return
        parts, self._parts = self._parts, []
        kind, self._anew = self._anew, StepKind.MISSED
        if self._last_epoch not in (0, part.epoch):
            kind = StepKind.ENGINE_RESTARTED
        self.book.begin(parts)
        self._last_epoch, self._position = part.epoch, part.position
        self._pending, self._whole, self._awaits_snapshot = [], True, False
        self.book.live = self._presence.is_up(part.epoch)
        yield OrderStep(kind, self.book)

    def _take_batch(self, batch: of.OrderBatch) -> Iterator[OrderStep]:
        if (batch.epoch, batch.previous_position) != self.held():
            raise Gap(
                f"events follow {batch.previous_position} of epoch {batch.epoch};"
                f" the book is at {self._position} of epoch {self.book.epoch}"
            )
        places = [self._position - 1, *(one.position for one in batch.events), batch.position]
        if any(later <= earlier for earlier, later in pairwise(places)):
            raise Gap(f"positions of events do not rise to {batch.position}")
        self._position, self._whole = batch.position, not batch.more_follows
        self._awaits_snapshot = False
        events, self._pending = [*self._pending, *batch.events], []
        yield from self._revive()
        first = 0
        for place, event in enumerate(events):
            if event.sequence != events[first].sequence:
                # Those behind are kept while somebody looks at these.
                self._pending = events[place:]
                yield self._command(events[first:place])
                first = place
        self._pending = events[first:]
        if self._pending and self._whole:
            command, self._pending = self._pending, []
            yield self._command(command)

    def _command(self, events: list[of.OrderEvent]) -> OrderStep:
        if events[0].sequence < self.book.sequence:
            raise Gap(f"command {events[0].sequence} follows command {self.book.sequence}")
        for event in events:
            self.book.apply(event)
        return OrderStep(StepKind.EVENTS, self.book, tuple(events))

    def _take_heartbeat(self, position: int) -> Iterator[OrderStep]:
        told = not self._awaits_snapshot and self._whole and position >= self.book.sequence
        if told and self._presence.is_up(self.book.epoch):
            # Silence, and nothing missed: the book is that of this sequence as well.
            self.book.sequence = position
            yield from self._revive()

    def _take_notice(self, notice: of.Notice) -> Iterator[OrderStep]:
        self._presence.heed(notice)
        missed = notice.kind == of.NOTICE_KIND_MISSED
        restarted = notice.kind == of.NOTICE_KIND_ENGINE_RESTARTED
        if missed or (restarted and notice.epoch != self.book.epoch):
            self._awaits_snapshot = True
        if restarted or notice.kind == of.NOTICE_KIND_ENGINE_DOWN:
            yield from self._stand_still(notice.message)

    def _revive(self) -> Iterator[OrderStep]:
        if not self.book.live and self._presence.is_up(self.book.epoch):
            self.book.live = True
            yield OrderStep(StepKind.RESUMED, self.book)

    def _stand_still(self, message: str) -> Iterator[OrderStep]:
        if self.book.live:
            self.book.live = False
            yield OrderStep(StepKind.STANDSTILL, self.book, message=message)
