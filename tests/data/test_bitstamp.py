"""Half an hour of Bitstamp's BTC/USD orders through the kernel: the recorded maker fills."""

from collections.abc import Callable
from pathlib import Path

import pytest

from exchange.enums import Reason
from exchange.records import Rows, reason_of
from holdfast.replay import bitstamp
from holdfast.replay.formats import Recording, RecordingError
from tests.data.drivers import Venue

EVENTS = "bitstamp-l3-2026/orders.csv.xz"
GHOSTS = "2002347646152704, 2002347642003458"
"""Orders that rested in the recorded start book although the exchange had none such any more."""


@pytest.fixture(scope="module")
def recording(recorded_data: Callable[[str], Path]) -> Recording:
    return bitstamp.read(recorded_data(EVENTS))


@pytest.fixture(scope="module")
def executions(recording: Recording) -> Rows:
    venue = Venue(recording.instrument)
    executions = venue.apply(recording.commands)
    venue.engine.check()
    return executions


def test_maker_fills(recording: Recording, executions: Rows) -> None:
    comparison = recording.compare(executions)
    print(comparison, *comparison.notes)
    assert comparison.expected_count == 284
    assert comparison.matched_count == 284
    assert not any("not recorded" in note for note in comparison.notes)


def test_only_the_two_known_ghosts_are_dropped(recording: Recording) -> None:
    dropped = [note for note in recording.notes if note.startswith("Dropped")]
    assert dropped == [f"Dropped when traded past, because they were gone already: {GHOSTS}."]


def test_nothing_is_refused_but_post_only_orders_and_their_cancels(executions: Rows) -> None:
    reasons = set(reason_of(executions).tolist()) - {Reason.UNSPECIFIED}
    assert reasons == {
        Reason.POST_ONLY_WOULD_TRADE,
        Reason.ORDER_UNKNOWN,
        Reason.CANCEL_REQUESTED,
    }


def test_without_the_cancels_of_the_ghosts_fills_differ(recording: Recording) -> None:
    """The figure depends on matching: it falls as soon as two orders too many are in the book."""
    ghosts = {int(name) for name in GHOSTS.split(", ")}
    kept = [row for row in range(len(recording.commands)) if not _cancels(recording, row, ghosts)]
    venue = Venue(recording.instrument)
    comparison = recording.compare(venue.apply(recording.commands[kept]))
    assert comparison.matched_count < 279


def _cancels(recording: Recording, row: int, orders: set[int]) -> bool:
    verb, client_order_id = recording.commands[row, :2].tolist()
    return client_order_id in orders and verb & 0xFF == 2


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("a,b\n1,2\n")
    (tmp_path / "trades.csv").write_text(bitstamp.TRADE_HEADER + "\n")
    with pytest.raises(RecordingError, match=r"orders\.csv begins with 'a,b'"):
        bitstamp.read(tmp_path / "orders.csv")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "trades.csv").write_text(bitstamp.TRADE_HEADER + "\n")
    line = "1,2,3,5.5,0.000000001,created,bid"
    (tmp_path / "orders.csv").write_text(f"{bitstamp.ORDER_HEADER}\n{line}\n")
    with pytest.raises(RecordingError, match=r"orders\.csv line 2 is '1,2,3,5\.5"):
        bitstamp.read(tmp_path / "orders.csv")
