"""The flash1 flow through the kernel: the contest's report text, byte for byte."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exchange.enums import Side
from exchange.records import Rows
from holdfast.replay import flash1
from holdfast.replay.formats import read_lines
from tests.data.drivers import Level, Venue

FLOW = "flash1-normal/normal_first500k.orders.csv.xz"
CHECKPOINTS = "flash1-normal/normal.checkpoints.json"
REPORTS = "flash1-normal/normal.reports_first100000.txt.xz"
MESSAGES = 500_000


@pytest.fixture(scope="module")
def flow(recorded_data: Callable[[str], Path]) -> flash1.Flash1Recording:
    return flash1.read(recorded_data(FLOW))


@pytest.fixture(scope="module")
def replayed(flow: flash1.Flash1Recording) -> tuple[Venue, Rows]:
    venue = Venue(flow.instrument)
    return venue, venue.apply(flow.commands)


def test_report_hash_at_every_checkpoint(
    flow: flash1.Flash1Recording, replayed: tuple[Venue, Rows]
) -> None:
    assert flow.message_count == MESSAGES
    assert max(flow.checkpoints) == MESSAGES
    lines, messages = flow.report_lines(replayed[1])
    for count, expected in flow.checkpoints.items():
        assert flash1.hash_after(lines, messages, count) == expected, f"after {count} messages"
    comparison = flow.compare(replayed[1])
    assert comparison.matched_count == comparison.expected_count == len(flow.checkpoints)


def test_report_text_of_the_first_hundred_thousand(
    flow: flash1.Flash1Recording,
    replayed: tuple[Venue, Rows],
    recorded_data: Callable[[str], Path],
) -> None:
    lines, _ = flow.report_lines(replayed[1])
    count = 0
    for number, expected in enumerate(read_lines(recorded_data(REPORTS))):
        assert lines[number] == expected, f"report line {number + 1}"
        count += 1
    assert count > 100_000


def test_a_changed_fill_changes_the_hash(
    flow: flash1.Flash1Recording, replayed: tuple[Venue, Rows]
) -> None:
    executions = replayed[1].copy()
    executions[-1, 4] += 1
    comparison = flow.compare(executions)
    assert comparison.matched_count == comparison.expected_count - 1


def _stops(flow: flash1.Flash1Recording, counts: list[int]) -> Iterator[tuple[int, slice]]:
    start = 0
    for count in counts:
        end = int(flow.message_index.searchsorted(count))
        yield count, slice(start, end)
        start = end


def test_book_at_every_checkpoint(
    flow: flash1.Flash1Recording, recorded_data: Callable[[str], Path]
) -> None:
    expected = json.loads(recorded_data(CHECKPOINTS).read_text())["top10_after"]
    venue = Venue(flow.instrument)
    for count, part in _stops(flow, sorted(map(int, expected))):
        venue.apply(flow.commands[part])
        venue.engine.check()
        bids, asks = venue.depth()
        state = expected[str(count)]
        assert [list(level) for level in bids[:10]] == state["bids"]
        assert [list(level) for level in asks[:10]] == state["asks"]
        assert len(venue.open_orders()) == state["resting_orders"]


def lines_of(tmp_path: Path, messages: str) -> tuple[flash1.Flash1Recording, list[str], Venue]:
    path = tmp_path / "flow.csv"
    path.write_text("\n".join(messages.split()))
    recording = flash1.read(path)
    venue = Venue(recording.instrument)
    lines, _ = recording.report_lines(venue.apply(recording.commands))
    return recording, lines, venue


def test_modify_to_the_same_or_less_goes_to_the_tail(tmp_path: Path) -> None:
    recording, lines, venue = lines_of(
        tmp_path, "N,0,B,100,5,0 N,1,B,100,5,0 M,0,B,100,5 M,1,B,100,3 N,2,S,100,6,1"
    )
    assert len(recording.commands) == 7
    assert lines == [
        "0,0,0,0,100,5",
        "0,1,0,1,100,5",
        "3,2,0,0,100,5",
        "3,3,0,1,100,3",
        "0,4,1,2,100,6",
        "1,4,100,5,0,2",
        "1,4,100,1,1,2",
    ]
    assert venue.depth()[0] == [level(100, 2, 1)]


def test_modify_of_a_gone_order_is_refused_once(tmp_path: Path) -> None:
    _, lines, venue = lines_of(
        tmp_path, "N,0,B,100,5,0 N,1,S,100,5,1 M,0,B,100,5 C,0 C,7 M,7,S,1,1"
    )
    assert lines == [
        "0,0,0,0,100,5",
        "0,1,1,1,100,5",
        "1,1,100,5,0,1",
        "5,2,0",
        "4,3,0",
        "4,4,7",
        "5,5,7",
    ]
    assert venue.level_lots(Side.BUY) == {}


def test_modify_may_trade_and_its_trades_come_before_its_ack(tmp_path: Path) -> None:
    _, lines, _ = lines_of(tmp_path, "N,0,S,101,5,0 N,1,B,100,5,0 M,1,B,101,7")
    assert lines[2:] == ["1,2,101,5,0,1", "3,2,0,1,101,7"]


def level(price: int, lots: int, orders: int) -> Level:
    return price, lots, orders
