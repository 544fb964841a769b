"""The reader of a book segment: stable copies under a racing writer, losses, new owners."""

import socket as sockets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from exchange import book_layout as layout
from exchange.book_layout import EVENT_LEVEL
from exchange.ownership import LayoutMismatch, Owned
from mdgateway.book import stable
from mdgateway.book.reader import EVENTS_PER_DRAIN, BookReader, FeedState
from tests.unit.market_data_writer import INSTRUMENT, Writer

EVERYTHING = 1 << 62


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path)
    yield writer
    writer.close()


@pytest.fixture
def reader(writer: Writer) -> Iterator[BookReader]:
    reader = BookReader(INSTRUMENT, writer.directory, level_capacity=64)
    assert reader.open()
    yield reader
    reader.close()


def now_ns(writer: Writer) -> int:
    """Return the writer's last heartbeat: a moment at which it certainly lived."""
    return int(writer.owned.header[16])


def test_there_is_nothing_to_read_before_the_engine_exists(tmp_path: Path) -> None:
    reader = BookReader(INSTRUMENT, tmp_path)
    assert not reader.open()
    assert reader.follow(0) == (FeedState.WAITING, False)
    assert reader.epoch == 0


def test_a_segment_of_other_capacities_is_refused(tmp_path: Path, writer: Writer) -> None:
    import dataclasses

    other = dataclasses.replace(INSTRUMENT, event_capacity=1 << 11)
    with pytest.raises(LayoutMismatch, match="other fields or capacities"):
        BookReader(other, tmp_path).open()


def test_what_is_read_cannot_be_written(reader: BookReader) -> None:
    with pytest.raises(ValueError, match="read-only"):
        reader._field("levels")[0, 0] = 1


def test_touch_is_what_was_published(writer: Writer, reader: BookReader) -> None:
    writer.level(1, 100, 5)
    writer.level(2, 103, 7, 2)
    writer.trade(1, 103, 2)
    touch = reader.touch()
    assert touch is not None
    assert (touch.bid_price_ticks, touch.bid_lots) == (100, 5)
    assert (touch.ask_price_ticks, touch.ask_lots) == (103, 7)
    assert (touch.last_price_ticks, touch.last_lots, touch.trade_count) == (103, 2, 1)
    assert touch.sequence == 3


def test_a_touch_left_odd_by_a_dead_writer_is_not_read(writer: Writer, reader: BookReader) -> None:
    writer.level(1, 100, 5)
    writer.arrays["touch"][layout.TOUCH_VERSION] |= 1
    assert reader.touch() is None
    writer.level(1, 101, 5)
    touch = reader.touch()
    assert touch is not None
    assert touch.bid_price_ticks == 101


def test_the_whole_book_is_copied_best_first(writer: Writer, reader: BookReader) -> None:
    prices = [1, 63, 64, 65, 4_095, 4_096, 40_000, 65_535]
    for price in prices:
        writer.level(1, price, price + 1, 3)
    writer.level(2, 7, 70, 2)
    writer.level(1, 4_096, 0)
    copy = reader.book_copy()
    assert copy is not None
    kept = [price for price in reversed(prices) if price != 4_096]
    assert copy.bids.tolist() == [[price, price + 1, 3] for price in kept]
    assert copy.asks.tolist() == [[7, 70, 2]]
    assert copy.bids_complete
    assert copy.asks_complete
    assert copy.sequence == len(prices) + 2
    assert copy.event_position == len(prices) + 2


@pytest.mark.parametrize(("levels", "complete"), [(63, True), (64, True), (65, False)])
def test_more_levels_than_wanted_are_cut_at_the_worse_end(
    writer: Writer, reader: BookReader, levels: int, complete: bool
) -> None:
    for price in range(1_000, 1_000 + levels):
        writer.level(2, price, 1)
    copy = reader.book_copy()
    assert copy is not None
    assert copy.asks[:, 0].tolist() == list(range(1_000, 1_000 + min(levels, 64)))
    assert copy.asks_complete is complete


def test_a_book_in_the_middle_of_a_batch_is_not_copied(writer: Writer, reader: BookReader) -> None:
    writer.level(1, 100, 5)
    writer.arrays["scalars"][layout.BOOK_VERSION] += 1
    assert reader.book_copy() is None
    writer.level(1, 100, 6)
    copy = reader.book_copy()
    assert copy is not None
    assert copy.bids.tolist() == [[100, 6, 1]]


def test_a_depth_copy_is_the_newest_complete_one(writer: Writer, reader: BookReader) -> None:
    assert reader.depth_copy() is None
    for price in range(100, 120):
        writer.level(1, price, 1)
    writer.level(2, 200, 4)
    writer.depth()
    writer.level(1, 119, 9)
    copy = reader.depth_copy()
    assert copy is not None
    assert copy.bids[:, 0].tolist() == list(range(119, 103, -1))
    assert copy.asks.tolist() == [[200, 4, 1]]
    assert (copy.bids_complete, copy.asks_complete) == (False, True)
    assert (copy.sequence, copy.event_position) == (21, 21)


def test_a_half_written_depth_copy_is_not_read(writer: Writer, reader: BookReader) -> None:
    writer.level(1, 100, 5)
    writer.depth()
    row = writer.arrays["depth"][1 % INSTRUMENT.depth_copy_count]
    row[layout.DEPTH_COMMIT] = -1
    assert reader.depth_copy() is None


def test_counts_in_a_depth_copy_are_not_trusted(writer: Writer, reader: BookReader) -> None:
    writer.level(1, 100, 5)
    writer.depth()
    writer.arrays["depth"][1, layout.DEPTH_BID_COUNT] = 1 << 40
    copy = reader.depth_copy()
    assert copy is not None
    assert len(copy.bids) == INSTRUMENT.depth_level_count


def test_events_come_in_order_and_once(writer: Writer, reader: BookReader) -> None:
    for lots in range(1, 11):
        writer.level(1, 100, lots)
    first = reader.events(0, 4)
    assert (first.position, first.next_position, first.lost) == (0, 4, 0)
    assert first.caught_up
    assert first.rows[:, layout.EVENT_LOTS].tolist() == [1, 2, 3, 4]
    rest = reader.events(first.next_position, EVERYTHING)
    assert rest.rows[:, layout.EVENT_LOTS].tolist() == [5, 6, 7, 8, 9, 10]
    assert len(reader.events(rest.next_position, EVERYTHING).rows) == 0


def test_an_event_being_written_is_waited_for(writer: Writer, reader: BookReader) -> None:
    writer.level(1, 100, 1)
    writer.arrays["scalars"][layout.EVENT_HEAD] += 1
    writer.arrays["events"][1, layout.EVENT_COMMIT] = -1
    run = reader.events(0, EVERYTHING)
    assert (len(run.rows), run.next_position, run.lost) == (1, 1, 0)


def test_a_lapped_reader_is_told_exactly_what_it_lost(writer: Writer, reader: BookReader) -> None:
    capacity = INSTRUMENT.event_capacity
    for number in range(1, capacity + 101):
        writer.level(1, 100, number)
    run = reader.events(50, EVERYTHING)
    assert run.lost == run.position - 50
    assert run.rows[:, layout.EVENT_LOTS].tolist() == list(range(run.position + 1, capacity + 101))
    assert run.position >= 100
    assert run.lost + len(run.rows) == capacity + 100 - 50


def test_a_reader_on_the_edge_of_being_lapped_is_not(writer: Writer, reader: BookReader) -> None:
    for number in range(1, INSTRUMENT.event_capacity + 1):
        writer.level(1, 100, number)
    run = reader.events(0, EVERYTHING)
    assert (run.lost, len(run.rows)) == (0, INSTRUMENT.event_capacity)


def test_state_follows_the_owner(writer: Writer, reader: BookReader) -> None:
    start = now_ns(writer)
    assert reader.follow(start) == (FeedState.LIVE, False)
    assert reader.follow(start + 2_000_000_000) == (FeedState.STALE, False)
    writer.heartbeat(start + 2_000_000_000)
    assert reader.follow(start + 2_000_000_000) == (FeedState.LIVE, False)
    epoch = reader.epoch
    writer.restart()
    assert reader.follow(now_ns(writer)) == (FeedState.LIVE, True)
    assert reader.epoch == epoch + 1
    assert reader.follow(now_ns(writer)) == (FeedState.LIVE, False)


def test_a_new_owner_is_not_read_before_it_is_ready(writer: Writer, reader: BookReader) -> None:
    writer.arrays["scalars"][layout.ENGINE_STATE] = layout.STATE_STARTING
    assert reader.follow(now_ns(writer)) == (FeedState.STARTING, False)
    assert reader.follow(now_ns(writer) + 60_000_000_000) == (FeedState.STARTING, False)
    writer.arrays["scalars"][layout.ENGINE_STATE] = layout.STATE_READY
    assert reader.follow(now_ns(writer)) == (FeedState.LIVE, False)


def test_what_is_on_its_way_to_another_owner_stays_as_it_was_left(
    writer: Writer, reader: BookReader
) -> None:
    start = now_ns(writer)
    giver, taker = sockets.socketpair()
    with giver, taker:
        writer.owned.move_to(giver)
        assert reader.follow(start) == (FeedState.STALE, False)
        heir = Owned.receive(taker, writer.owned.layout)
        assert reader.follow(start) == (FeedState.LIVE, True)
        heir.close()


def test_an_owner_that_closed_is_said_to_have_closed(writer: Writer, reader: BookReader) -> None:
    start = now_ns(writer)
    writer.owned.close()
    assert reader.follow(start) == (FeedState.CLOSED, False)


def test_a_replaced_segment_is_borrowed_anew(writer: Writer, reader: BookReader) -> None:
    writer.level(1, 100, 5)
    writer.close()
    late = now_ns_after_silence()
    assert reader.follow(late) == (FeedState.STALE, False)
    assert reader.touch() is not None, "the old content stays readable"
    fresh = Writer(writer.directory)
    try:
        assert reader.follow(now_ns(fresh)) == (FeedState.LIVE, True)
        touch = reader.touch()
        assert touch is not None
        assert touch.bid_price_ticks == 0
    finally:
        fresh.close()


def now_ns_after_silence() -> int:
    """Return a moment long after any heartbeat of this machine's uptime."""
    return 1 << 60


def test_a_run_is_bounded(writer: Writer, reader: BookReader) -> None:
    out = np.zeros((10, layout.EVENT_WORDS), np.int64)
    result = np.zeros(stable.RESULT_WORDS, np.int64)
    for lots in range(1, 26):
        writer.batch([(EVENT_LEVEL, 1, 100, lots, 1, 0)])
    stable.drain_events(
        reader._field("scalars"), reader._field("events"), 0, EVERYTHING, out, result
    )
    assert result[: stable.CAUGHT_UP + 1].tolist() == [10, 10, 0, 0]
    assert INSTRUMENT.event_capacity <= EVENTS_PER_DRAIN
