"""Reading recordings: exact decimals, clear errors, and comparisons that can fail."""

import lzma
from pathlib import Path

import numpy as np
import pytest

from exchange.config import load_instrument
from exchange.enums import Side
from exchange.instrument import Instrument
from exchange.records import E_SEQUENCE, account_of
from holdfast.replay import FORMATS, RecordingError, bitstamp, flash1, lobster, read
from holdfast.replay.formats import (
    CommandList,
    Recording,
    command_index,
    fill_rows,
    instrument_table,
    scaled,
)
from tests.data.drivers import Venue

SMALL = Instrument(
    pair="SMALL",
    base_decimals=0,
    quote_decimals=0,
    tick_quote_units=1,
    base_units_per_lot=1,
    price_capacity_ticks=1 << 10,
    quantity_limit_lots=1 << 20,
    taker_fee_ppm=0,
    order_capacity=16,
    account_capacity=4,
    client_id_window=32,
)


@pytest.mark.parametrize(
    ("text", "decimals", "number"),
    [
        ("78319.0", 0, 78_319),
        ("1.53453667", 8, 153_453_667),
        ("2.6e-06", 8, 260),
        ("1e-08", 8, 1),
        ("0", 8, 0),
        ("-1.5", 1, -15),
        ("5.50000", 2, 550),
    ],
)
def test_decimals_are_exact(text: str, decimals: int, number: int) -> None:
    assert scaled(text, decimals) == number


@pytest.mark.parametrize("text", ["", "1,5", "0.005", "1e-9", "nan", "inf", "0x10"])
def test_what_does_not_fit_the_grid_is_refused_not_rounded(text: str) -> None:
    with pytest.raises(RecordingError, match=r"decimal"):
        scaled(text, 2)


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        RecordingError, match=r"'itch'; it must be one of bitstamp, flash1, lobster"
    ):
        read(Path("anything"), "itch")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_noise_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "trades.csv").write_text(bitstamp.TRADE_HEADER + "\n")
    noise = tmp_path / "noise.csv"
    noise.write_text("the quick brown fox\n")
    with pytest.raises(RecordingError, match=r"noise\.csv (line 1 is|begins with) 'the quick"):
        read(noise, name)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("flash1", "N,1,B,4294967296,5,0"),
        ("flash1", "N,1,B,-1,5,0"),
        ("flash1", "N,99999999999999999999,B,1,5,0"),
        ("flash1", "N,1,B,1,99999999999999999999,0"),
        ("flash1", "M,1"),
        ("flash1", "X,1"),
        ("lobster", "34200.5,1,1,99999999999999999999,5853300,1"),
        ("lobster", "34200.5,1,1,18,-100,1"),
        ("lobster", "34200.5,1,1,18,5853300,2"),
    ],
)
def test_wrong_numbers_are_refused_with_their_line(tmp_path: Path, name: str, line: str) -> None:
    path = tmp_path / "flow.csv"
    path.write_text(line + "\n")
    with pytest.raises(RecordingError, match=r"flow\.csv line 1 is"):
        read(path, name)


def test_a_cut_or_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flow.csv.xz"
    whole = lzma.compress(b"N,1,B,1,5,0\n" * 1000)
    for content in (whole[: len(whole) // 2], b"no archive", whole[:40] + b"\0" + whole[41:]):
        path.write_bytes(content)
        with pytest.raises(RecordingError, match=r"flow\.csv\.xz cannot be read"):
            read(path, "flash1")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flow.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordingError, match=r"flow\.csv cannot be read"):
        read(path, "flash1")


@pytest.mark.parametrize("module", [bitstamp, flash1, lobster])
def test_instruments_survive_an_instruments_file(tmp_path: Path, module: object) -> None:
    instrument = module._instrument()  # type: ignore[attr-defined]
    path = tmp_path / "instruments.toml"
    path.write_text(instrument_table(instrument))
    assert load_instrument(instrument.pair, path) == instrument


def small_recording(fills: list[tuple[int, int, int, int]]) -> Recording:
    commands = CommandList(account=1)
    commands.new_order(1, Side.SELL, 100, 5)
    commands.new_order(2, Side.BUY, 100, 3)
    commands.message_index = 1
    commands.cancel(1)
    rows, index, time_ns = commands.columns()
    return Recording("small", SMALL, rows, index, time_ns, 2, fill_rows(fills))


def test_a_comparison_counts_whole_facts() -> None:
    fills = [(1, 2, 100, 1), (1, 2, 100, 2)]
    executions = Venue(SMALL).apply(small_recording(fills).commands)
    right = small_recording(fills).compare(executions)
    assert (right.matched_count, right.expected_count, right.notes) == (1, 1, ())
    assert str(right) == "1 of 1 fills as recorded"
    for wrong in ((1, 2, 100, 4), (1, 3, 100, 3), (3, 2, 100, 3), (1, 2, 99, 3)):
        comparison = small_recording([wrong]).compare(executions)
        assert comparison.matched_count == 0
        assert comparison.expected_count == 1


def test_unrecorded_fills_are_noted() -> None:
    executions = Venue(SMALL).apply(small_recording([]).commands)
    assert small_recording([]).compare(executions).notes == ("1 fills were not recorded.",)


def test_commands_are_found_wherever_the_flow_began() -> None:
    recording = small_recording([])
    executions = Venue(SMALL, account_count=3).apply(recording.commands)
    # Another member's command between ours moves the sequences apart.
    executions[executions[:, E_SEQUENCE] > executions[0, E_SEQUENCE], E_SEQUENCE] += 10
    assert np.unique(command_index(executions)).tolist() == [0, 1, 2]


def test_a_flow_can_be_sent_by_another_account() -> None:
    recording = small_recording([])
    executions = Venue(SMALL, account_count=3).apply(recording.for_account(3))
    assert set(account_of(executions).tolist()) == {3}
    assert recording.commands[0, 0] >> 32 == 1


def test_batches_cover_every_command_once() -> None:
    recording = small_recording([])
    parts = [recording.commands[part] for part in recording.batches(2)]
    assert [len(part) for part in parts] == [2, 1]
    assert (np.concatenate(parts) == recording.commands).all()
