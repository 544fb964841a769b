"""One pair's book segment as a reader sees it: borrow, stable copies, events, borrow again.

A reader maps the segment read-only and writes nothing. All it hands out are copies, so nothing
dies with the mapping, and every copy is one that the writer published as a whole. What cannot be
had within a bounded number of tries is None; the caller asks again later. The judgement about
the owner (`state`) is the reader's; what to tell subscribers is not.
"""

import os
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from exchange import book_layout as layout
from exchange.atomics import load
from exchange.instrument import Instrument
from exchange.ownership import Borrowed, SegmentMissing, Status
from exchange.seqlock import read_stable
from mdgateway.book import stable
from mdgateway.book.depth import Snapshot

Rows = npt.NDArray[np.int64]

TOUCH_TRIES: Final = 1_000
"""A touch is written in tens of nanoseconds: so many tries outlast a whole burst of writes."""
DEPTH_TRIES: Final = 100
BOOK_TRIES: Final = 20
"""A whole copy takes as long as a batch does; it is tried again at the next step."""
EVENTS_PER_DRAIN: Final = 8_192


class FeedState(IntEnum):
    """What a reader knows about the engine behind its segment."""

    WAITING = 1
    """There is no segment yet, or no borrow of it."""
    LIVE = 2
    STARTING = 3
    """A new engine is preparing the content: it is not to be read."""
    STALE = 4
    """The engine is silent, dead, or giving the segment away; the content is what it left."""
    CLOSED = 5
    """The engine closed the segment in good order."""


_STATES: Final = {
    Status.LIVE: FeedState.LIVE,
    Status.STARTING: FeedState.STARTING,
    Status.STALE: FeedState.STALE,
    Status.DEAD: FeedState.STALE,
    Status.CLOSED: FeedState.CLOSED,
}


class Touch(NamedTuple):
    """Best prices, last trade and day figures as of one command; zero prices mean "none"."""

    version: int
    sequence: int
    bid_price_ticks: int
    bid_lots: int
    ask_price_ticks: int
    ask_lots: int
    last_price_ticks: int
    last_lots: int
    last_time_ns: int
    trade_count: int
    day_open_ticks: int
    day_high_ticks: int
    day_low_ticks: int
    day_lots: int
    day_quote_units: int
    status: int


class EventRun(NamedTuple):
    """A run of events without a hole; `rows` are the reader's own and live until the next drain."""

    rows: Rows
    position: int
    """Position of the first row."""
    next_position: int
    lost: int
    """Events that were overwritten before they could be read; the hole is before `position`."""
    caught_up: bool
    """Nothing more was there to read."""


class BookReader:
    """Reads one pair's book segment; `open` borrows it and may be called again at any time."""

    def __init__(
        self,
        instrument: Instrument,
        directory: str | os.PathLike[str] | None = None,
        *,
        level_capacity: int = 65_536,
        stale_after_ns: int = 1_000_000_000,
    ) -> None:
        self.instrument = instrument
        self.name = layout.segment_name(instrument.pair, "book")
        self._layout = layout.book_layout(instrument)
        self._directory = directory
        self._stale_after_ns = stale_after_ns
        self._borrowed: Borrowed | None = None
        self._touch_out = np.zeros(layout.TOUCH_WORDS, np.int64)
        depth_words = layout.DEPTH_HEADER_WORDS
        depth_words += 2 * instrument.depth_level_count * layout.DEPTH_LEVEL_WORDS
        self._depth_out = np.zeros(depth_words, np.int64)
        self._events_out = np.zeros((EVENTS_PER_DRAIN, layout.EVENT_WORDS), np.int64)
        self._sides_out = np.zeros((2, level_capacity, layout.DEPTH_LEVEL_WORDS), np.int64)
        self._result = np.zeros(stable.RESULT_WORDS, np.int64)

    @property
    def is_open(self) -> bool:
        """Whether there is a borrow to read from."""
        return self._borrowed is not None

    @property
    def epoch(self) -> int:
        """Epoch of the owner borrowed from; zero before the first borrow."""
        return self._borrowed.epoch if self._borrowed else 0

    def open(self) -> bool:
        """Borrow the segment if it is there, letting go of an older borrow; say whether it is.

        Raises LayoutMismatch when the segment is of another layout than this instrument's, and
        PermissionError when this user may not read it: no waiting mends either.
        """
        try:
            borrowed = Borrowed.open(
                self.name,
                self._layout,
                directory=self._directory,
                stale_after_ns=self._stale_after_ns,
            )
        except SegmentMissing:
            return False
        self.close()
        self._borrowed = borrowed
        return True

    def close(self) -> None:
        """Let go of the borrow; what was copied stays valid."""
        if self._borrowed is not None:
            self._borrowed.close()
            self._borrowed = None

    def follow(self, now_ns: int) -> tuple[FeedState, bool]:
        """Judge the owner and keep the borrow fresh; `now_ns` is of the monotonic clock.

        The second value says that the content is another owner's now (first borrow, restarted
        engine, replaced segment): whatever was derived from it has to be read anew.
        """
        if self._borrowed is None:
            return (self._judge(now_ns), True) if self.open() else (FeedState.WAITING, False)
        status = self._borrowed.status(now_ns)
        if status is Status.REPLACED:
            # A removed name leaves the old content readable until a new segment appears.
            return (self._judge(now_ns), True) if self.open() else (FeedState.STALE, False)
        if status is Status.MOVED:
            before = self._borrowed.epoch
            if self._borrowed.renew() == before:
                # On its way, so nobody writes: what its owner did last is still to be told.
                return self._judge(now_ns, Status.STALE), False
            return self._judge(now_ns), True
        return self._judge(now_ns, status), False

    def _judge(self, now_ns: int, status: Status | None = None) -> FeedState:
        assert self._borrowed is not None
        # An engine that recovers does not beat, and what it has written so far is no book yet.
        if self.engine_state() == layout.STATE_STARTING:
            return FeedState.STARTING
        return _STATES.get(status or self._borrowed.status(now_ns), FeedState.STARTING)

    def engine_state(self) -> int:
        """Return the engine's STATE_ of ``exchange.book_layout``."""
        return load(self._field("scalars"), layout.ENGINE_STATE)

    def event_head(self) -> int:
        """Return the position after the newest event."""
        return load(self._field("scalars"), layout.EVENT_HEAD)

    def oldest_event(self) -> int:
        """Return a position from which the ring can be read, however soon it is overwritten."""
        capacity = self.instrument.event_capacity
        return max(0, self.event_head() - capacity + (capacity >> 3))

    def touch(self) -> Touch | None:
        """Return best prices, last trade and day figures, or None if the writer never paused."""
        words = self._field("touch")
        out = self._touch_out
        if read_stable(words, layout.TOUCH_VERSION, words, out, TOUCH_TRIES):
            return Touch(*out.tolist())
        return None

    def touch_address(self) -> int:
        """Return where the touch's version lies; valid until the next `follow`."""
        return int(self._field("touch").ctypes.data) + 8 * layout.TOUCH_VERSION

    def depth_copy(self) -> Snapshot | None:
        """Return the newest complete depth copy, or None if there is none yet."""
        out = self._depth_out
        scalars, depth = self._field("scalars"), self._field("depth")
        if not stable.copy_depth(scalars, depth, out, DEPTH_TRIES):
            return None
        counts = int(out[layout.DEPTH_BID_COUNT]), int(out[layout.DEPTH_ASK_COUNT])
        levels = out[layout.DEPTH_HEADER_WORDS :].reshape(2, -1, layout.DEPTH_LEVEL_WORDS)
        return Snapshot(
            sequence=int(out[layout.DEPTH_SEQUENCE]),
            event_position=int(out[layout.DEPTH_EVENT]),
            bids=levels[0, : counts[0]].copy(),
            asks=levels[1, : counts[1]].copy(),
            bids_complete=counts[0] < self.instrument.depth_level_count,
            asks_complete=counts[1] < self.instrument.depth_level_count,
        )

    def book_copy(self) -> Snapshot | None:
        """Return the whole book as of one batch's end, or None if no pause was long enough.

        More levels a side than `level_capacity` are cut at the worse end and marked incomplete.
        """
        result = self._result
        bids, asks = self._sides_out
        if not stable.copy_book(
            self._field("scalars"),
            self._field("levels"),
            self._bits("bits3"),
            self._bits("bits2"),
            self._bits("bits1"),
            self._bits("bits0"),
            bids,
            asks,
            result,
            BOOK_TRIES,
        ):
            return None
        return Snapshot(
            sequence=int(result[stable.COPIED_SEQUENCE]),
            event_position=int(result[stable.COPIED_POSITION]),
            bids=bids[: result[stable.COPIED_BIDS]].copy(),
            asks=asks[: result[stable.COPIED_ASKS]].copy(),
            bids_complete=bool(result[stable.BIDS_COMPLETE]),
            asks_complete=bool(result[stable.ASKS_COMPLETE]),
        )

    def events(self, cursor: int, through_sequence: int) -> EventRun:
        """Return the events from position `cursor` on, of commands up to `through_sequence`.

        One call returns at most EVENTS_PER_DRAIN of them. A cursor ahead of the ring belongs to
        another life of the segment and is a programmer's error: `follow` says when to start anew.
        """
        result = self._result
        stable.drain_events(
            self._field("scalars"),
            self._field("events"),
            cursor,
            through_sequence,
            self._events_out,
            result,
        )
        drained = int(result[stable.DRAINED])
        next_position = int(result[stable.NEXT_POSITION])
        return EventRun(
            rows=self._events_out[:drained],
            position=next_position - drained,
            next_position=next_position,
            lost=int(result[stable.LOST]),
            caught_up=bool(result[stable.CAUGHT_UP]),
        )

    def _bits(self, name: str) -> stable.Bits:
        assert self._borrowed is not None, f"segment {self.name} is not borrowed"
        return self._borrowed[name]

    def _field(self, name: str) -> Rows:
        assert self._borrowed is not None, f"segment {self.name} is not borrowed"
        return self._borrowed[name]
