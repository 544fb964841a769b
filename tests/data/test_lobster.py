"""An hour of NASDAQ orders in AAPL through the kernel: the book after every message."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from exchange.enums import Side
from exchange.records import Rows
from holdfast.replay import lobster
from holdfast.replay.formats import Recording, RecordingError, fills_of, read_lines
from tests.data.drivers import Level, Venue, by_message

FOLDER = "lobster-aapl50"
MESSAGES = "message_50_full_hour.csv.xz"
TOPS = "orderbook_top1_full_hour.csv.xz"
DEPTHS = "orderbook_50_first672.csv.xz"
DEPTH = 50
EXECUTION = "4"


@dataclass
class Replay:
    recording: Recording
    executions: Rows
    tops: list[tuple[int, int, int, int]]
    """After each message: ask ticks, ask lots, bid ticks, bid lots."""
    depths: list[tuple[list[Level], list[Level]]] = field(default_factory=list)
    """After each of the first messages: bids and asks."""


def states(venue: Venue, recording: Recording, messages: Path) -> Iterator[tuple[int, list[Rows]]]:
    """Apply the recording; yield, after each message, its number and executions so far unseen."""
    commands = dict(by_message(recording.message_index))
    for number in range(recording.message_count):
        part = commands.get(number)
        yield number, [] if part is None else [venue.apply(recording.commands[part])]


@pytest.fixture(scope="module")
def replay(recorded_data: Callable[[str], Path]) -> Replay:
    path = recorded_data(FOLDER) / MESSAGES
    recording = lobster.read(path)
    venue = Venue(recording.instrument)
    result = Replay(recording, np.empty((0, 16), np.int64), [])
    executions: list[Rows] = []
    depth_count = sum(1 for _ in read_lines(recorded_data(FOLDER) / DEPTHS))
    held_back = HeldBack()
    for (number, applied), line in zip(
        states(venue, recording, path), read_lines(path), strict=True
    ):
        executions.extend(applied)
        _, kind, _, lots, _, side = line.split(",")
        if kind == EXECUTION and not applied:
            held_back.add(venue, lobster.SIDES[side], int(lots))
        elif kind in lobster.VISIBLE_KINDS:
            held_back = HeldBack()
        bids, asks = list(held_back.bids), list(held_back.asks)
        if not held_back.lots:
            bid, ask = venue.top()
            assert bid is not None
            assert ask is not None
            bids, asks = [bid], [ask]
        result.tops.append((asks[0][0], asks[0][1], bids[0][0], bids[0][1]))
        if number < depth_count:
            result.depths.append((bids, asks) if held_back.lots else venue.depth())
    result.executions = np.concatenate(executions)
    venue.engine.check()
    return result


@dataclass
class HeldBack:
    """The book within a run of executions, which one incoming order brings about at its end."""

    lots: int = 0
    bids: list[Level] = field(default_factory=list)
    asks: list[Level] = field(default_factory=list)

    def add(self, venue: Venue, side: Side, lots: int) -> None:
        if self.lots == 0:
            self.bids, self.asks = venue.depth()
        self.lots += lots
        levels = self.bids if side == Side.BUY else self.asks
        while lots:
            price, there, orders = levels[0]
            levels[0:1] = [(price, there - lots, orders)] if there > lots else []
            lots -= min(there, lots)


def test_top_of_book_after_every_message(
    replay: Replay, recorded_data: Callable[[str], Path]
) -> None:
    lines = read_lines(recorded_data(FOLDER) / TOPS)
    unit = lobster.PRICE_UNITS_PER_TICK
    differing = []
    for number, (top, line) in enumerate(zip(replay.tops, lines, strict=True)):
        ask, ask_lots, bid, bid_lots = top
        if f"{ask * unit},{ask_lots},{bid * unit},{bid_lots}" != line:
            differing.append(number)
    rows = len(replay.tops)
    print(f"top of book equal in {rows - len(differing):,} of {rows:,} rows")
    assert rows == 91_997
    # One delete lies outside the recorded levels; these are the rows until the book turned over.
    assert len(differing) == 90
    assert (rows - len(differing)) * 1000 >= rows * 999


def test_fifty_levels_of_the_first_messages(
    replay: Replay, recorded_data: Callable[[str], Path]
) -> None:
    """Every recorded level equals ours, but those that came into view from below the fiftieth.

    No message tells of an order beyond the fifty recorded levels, so what stood there already is
    seen for the first time when it becomes the last of them.
    """
    unit = lobster.PRICE_UNITS_PER_TICK
    came_into_view: set[int] = set()
    compared = 0
    for number, line in enumerate(read_lines(recorded_data(FOLDER) / DEPTHS)):
        words = [int(word) for word in line.split(",")]
        bids, asks = replay.depths[number]
        for offset, levels in ((0, asks), (2, bids)):
            pairs = zip(words[offset::4], words[offset + 1 :: 4], strict=True)
            recorded = [pair for pair in pairs if pair[1] > 0]
            ours = [(price * unit, lots) for price, lots, _ in levels]
            if len(recorded) == DEPTH and recorded[-1] not in ours:
                came_into_view.add(recorded[-1][0])
            known = [pair for pair in recorded if pair[0] not in came_into_view]
            assert ours[: len(known)] == known, f"message {number}"
            compared += len(known)
    print(f"{compared:,} levels equal; {len(came_into_view)} came into view from outside")
    assert compared > 65_000
    assert len(came_into_view) == 1


def test_recorded_makers_are_hit(replay: Replay) -> None:
    comparison = replay.recording.compare(replay.executions)
    print(comparison, *comparison.notes)
    expected: dict[int, set[int]] = defaultdict(set)
    got: dict[int, set[int]] = defaultdict(set)
    for fills, into in ((replay.recording.fills, expected), (fills_of(replay.executions), got)):
        for maker, taker, *_ in fills.tolist():
            into[taker].add(maker)
    hit = sum(got[taker] == makers for taker, makers in expected.items())
    print(f"{hit:,} of {len(expected):,} incoming orders met exactly the recorded makers")
    assert len(expected) == 3_290
    assert hit >= 3_236


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "message.csv"
    path.write_text("34200.1,1,16113575,18,5853350,1\n")
    with pytest.raises(RecordingError, match=r"message\.csv line 1 is '34200\.1,1"):
        lobster.read(path)
