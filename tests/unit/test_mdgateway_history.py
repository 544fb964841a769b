"""The candle store: restarts, holes, another history, full disks, files of a back-fill."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from exchange.enums import ExecutionKind
from exchange.feed import Chunk
from exchange.records import E_PRICE, E_QUANTITY, E_TIME_NS, E_VERB, EXECUTION_WORDS
from mdgateway.feed.candles import Hole, Interval
from mdgateway.feed.trade_log import TRADE_COLUMNS
from mdgateway.history import source, unwritten
from mdgateway.history.backfill import collect, write_file
from mdgateway.history.rollup import SECOND_NS, start_of
from mdgateway.history.source import CandleKeeper
from mdgateway.history.store import CandleStore, StoreUnusable

PAIR = "BTC-USDT"
START_NS = 1_763_856_000 * SECOND_NS
"""A Sunday, 0:00 UTC."""


def trades(
    first: int, count: int, start_ns: int = START_NS, pause_ns: int = SECOND_NS
) -> np.ndarray:
    rows = np.zeros((count, TRADE_COLUMNS), np.int64)
    for index in range(count):
        number = first + index
        rows[index] = (number, 100 + number, number, 1, start_ns + index * pause_ns, number)
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "candles"


def test_weeks_begin_on_monday() -> None:
    assert start_of(Interval.WEEK, START_NS) == START_NS - 6 * 86_400 * SECOND_NS


@pytest.mark.parametrize("at", [0, 100, 8_192])
def test_a_damaged_file_is_refused_with_a_sentence_and_stays(folder: Path, at: int) -> None:
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    keeper.source_of(PAIR).add_trades(trades(1, 100))
    asyncio.run(keeper.write())
    store.close()
    path = folder / "candles.duckdb"
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"no database" * 400)
    damaged = path.read_bytes()
    with pytest.raises(StoreUnusable, match="cannot be opened"):
        CandleKeeper(CandleStore(folder)).source_of(PAIR)
    assert path.read_bytes() == damaged


def test_a_file_of_a_back_fill_that_cannot_be_read_is_refused(folder: Path) -> None:
    (folder / "import").mkdir(parents=True)
    (folder / "import" / "broken.parquet").write_bytes(b"no parquet")
    store = CandleStore(folder)
    [sentence] = store.take_imports()
    assert sentence.startswith("broken.parquet: ")
    assert store.take_imports() == []
    assert (folder / "import" / "broken.refused").exists()
    store.close()


def test_without_a_store_the_newest_candles_are_in_memory() -> None:
    keeper = CandleKeeper(None, lambda: START_NS)
    candles = keeper.source_of(PAIR)
    candles.add_trades(trades(1, source.MEMORY_CANDLES + 10))
    asyncio.run(keeper.write())
    assert candles.take_change() is None, "nothing is kept for a store that is not there"
    page = asyncio.run(candles.page(Interval.SECOND, 0, 1 << 62, 1_000))
    assert len(page.candles) == 1_000
    older = asyncio.run(candles.page(Interval.SECOND, 0, page.next_to_ns, 1_000))
    assert (len(older.candles), older.next_to_ns) == (source.MEMORY_CANDLES - 1_000, 0)


def test_missing_trades_are_kept_as_holes(folder: Path) -> None:
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    keeper.source_of(PAIR).add_trades(trades(3, 2))
    keeper.source_of(PAIR).add_trades(trades(8, 1, START_NS + 9 * SECOND_NS))
    asyncio.run(keeper.write())
    assert store.holes(PAIR) == [
        Hole(1, 2, 0, START_NS),
        Hole(5, 7, START_NS + SECOND_NS, START_NS + 9 * SECOND_NS),
    ]
    store.close()


def test_another_history_begins_without_trades(folder: Path) -> None:
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    keeper.source_of(PAIR).add_trades(trades(1, 5))
    asyncio.run(keeper.write())
    store.close()
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    later_ns = START_NS + 3_600 * SECOND_NS
    keeper.source_of(PAIR).add_trades(trades(1, 2, later_ns))
    [day] = keeper.source_of(PAIR).recent(Interval.DAY, 0, 10)
    assert day.trade_count == 2
    asyncio.run(keeper.write())
    store.close()
    _, kept = CandleStore(folder).load(PAIR, 10)
    assert [candle.trade_count for candle in kept[Interval.DAY]] == [2]


def test_a_candle_closes_when_its_time_is_over(folder: Path) -> None:
    keeper = CandleKeeper(CandleStore(folder), lambda: START_NS)
    candles = keeper.source_of(PAIR)
    candles.add_trades(trades(1, 1))
    before = candles.revision
    candles.close_before(START_NS + 59 * SECOND_NS)
    closed = {interval for interval in Interval if candles.recent(interval, 0, 1)[0].closed}
    assert closed == {Interval.SECOND}
    candles.close_before(START_NS + 60 * SECOND_NS)
    assert candles.recent(Interval.MINUTE, 0, 1)[0].closed
    assert candles.revision == before + 2


def test_older_candles_come_from_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MEMORY_CANDLES", 4)
    keeper = CandleKeeper(CandleStore(folder), lambda: START_NS)
    keeper.source_of(PAIR).add_trades(trades(1, 10))
    asyncio.run(keeper.write())
    assert len(keeper.source_of(PAIR).recent(Interval.SECOND, 0, 100)) == 4
    page = asyncio.run(keeper.source_of(PAIR).page(Interval.SECOND, 0, 1 << 62, 7))
    assert [candle.last_trade_number for candle in page.candles] == [4, 5, 6, 7, 8, 9, 10]
    page = asyncio.run(keeper.source_of(PAIR).page(Interval.SECOND, 0, page.next_to_ns, 7))
    assert [candle.last_trade_number for candle in page.candles] == [1, 2, 3]
    assert page.next_to_ns == 0


def test_what_cannot_be_written_is_written_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    keeper.source_of(PAIR).add_trades(trades(1, 3))

    def full(_changes: object) -> None:
        raise duckdb.IOException("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        asyncio.run(keeper.write())
    assert "no space left" in keeper.trouble
    keeper.source_of(PAIR).add_trades(trades(4, 1, START_NS + 3 * SECOND_NS))
    asyncio.run(keeper.write())
    assert keeper.trouble == ""
    position, kept = store.load(PAIR, 10)
    assert position.last_trade_number == 4
    assert [candle.trade_count for candle in kept[Interval.SECOND]] == [1, 1, 1, 1]
    assert [candle.trade_count for candle in kept[Interval.WEEK]] == [4]


def test_a_full_disk_is_tried_less_and_less_and_candles_are_closed_all_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, second = CandleStore(folder), 0
    keeper = CandleKeeper(store, lambda: START_NS + second * SECOND_NS)
    candles = keeper.source_of(PAIR)
    tried: list[int] = []

    def full(_changes: object) -> None:
        tried.append(second)
        raise duckdb.IOException("no space left on device")

    async def move(until: int, *, trading: bool = True) -> None:
        nonlocal second
        while second < until:
            second += 1
            if trading:
                candles.add_trades(trades(second, 1, START_NS + (second - 1) * SECOND_NS))
            await keeper.tick()

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        asyncio.run(move(40))
        assert tried == [1, 3, 7, 15, 23, 31, 39]
        assert not candles.recent(Interval.SECOND, 0, 100)[-1].closed
        asyncio.run(move(46, trading=False))
        assert candles.recent(Interval.SECOND, 0, 100)[-1].closed
        # Whoever ends tries once more, whenever the next try would be.
        asyncio.run(keeper.write())
        assert tried[7:] == [46]
    # There is room again: what waits is written at the next try, and from then on each second.
    assert store.load(PAIR, 1)[0].last_trade_number == 0
    for until in 47, 48, 49:
        asyncio.run(move(until, trading=until > 47))
        written = store.load(PAIR, 1)[0].last_trade_number
        assert written == (40 if until == 47 else until)
    assert keeper.trouble == ""
    kept = store.load(PAIR, 100)[1][Interval.SECOND]
    assert [one.trade_count for one in kept] == [1] * 42
    assert store.holes(PAIR) == [Hole(41, 47, START_NS + 39 * SECOND_NS, START_NS + 47 * SECOND_NS)]
    store.close()


def test_beyond_the_limit_the_oldest_unwritten_become_one_hole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unwritten, "UNWRITTEN_SECONDS", 100)
    whole = trades(1, 400)
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    keeper.source_of(PAIR).add_trades(whole[:30])
    asyncio.run(keeper.write())

    def full(_changes: object) -> None:
        raise duckdb.IOException("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        # Lost: 41 to 50 within what is given up, 301 to 310 at its edge, 321 to 325 after it.
        for rows in whole[30:40], whole[50:200], whole[200:300], whole[310:320], whole[325:]:
            keeper.source_of(PAIR).add_trades(rows)
            asyncio.run(keeper.write())
    assert caplog.text.count("become a hole from trade 31 on") == 1
    asyncio.run(keeper.write())
    # The minute of which not everything fits goes as a whole.
    assert "trades 31 to 310 were not written" in caplog.text
    assert store.holes(PAIR) == [
        Hole(31, 310, START_NS + 29 * SECOND_NS, START_NS + 310 * SECOND_NS),
        Hole(321, 325, START_NS + 319 * SECOND_NS, START_NS + 325 * SECOND_NS),
    ]
    position, kept = store.load(PAIR, 1_000)
    assert position.last_trade_number == 400
    assert [candle.last_trade_number for candle in kept[Interval.SECOND]] == [
        *range(1, 31),
        *range(311, 321),
        *range(326, 401),
    ]
    assert [candle.trade_count for candle in kept[Interval.MINUTE]] == [30, 45, 40]
    store.close()


# Filling in from a log.


def executions(rows: np.ndarray) -> np.ndarray:
    """Return the log of these trades, each between two facts that are no trades."""
    found = np.zeros((3 * len(rows), EXECUTION_WORDS), np.int64)
    found[:, E_TIME_NS] = np.repeat(rows[:, 4], 3)
    found[:, E_VERB] = ExecutionKind.ACCEPTED
    found[1::3, E_VERB] = ExecutionKind.TRADE
    found[1::3, E_PRICE] = rows[:, 1]
    found[1::3, E_QUANTITY] = rows[:, 2]
    return found


async def chunks(rows: np.ndarray, size: int) -> AsyncIterator[Chunk]:
    for start in range(0, len(rows), size):
        yield Chunk(start, rows[start : start + size], len(rows))


def test_a_back_fill_closes_holes_and_makes_the_longer_candles_anew(folder: Path) -> None:
    whole = trades(1, 200)
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    # The gateway missed trades 21 to 150.
    keeper.source_of(PAIR).add_trades(whole[:20])
    keeper.source_of(PAIR).add_trades(whole[150:])
    asyncio.run(keeper.write())
    assert len(store.holes(PAIR)) == 1
    store.close()
    collected = asyncio.run(collect(chunks(executions(whole[:190]), 7)))
    assert write_file(folder, PAIR, collected) is not None
    store = CandleStore(folder)
    [sentence] = store.take_imports()
    assert "189 seconds of BTC-USDT" in sentence
    assert store.take_imports() == []
    assert store.holes(PAIR) == []
    plain = CandleKeeper(CandleStore(folder.parent / "plain"), lambda: START_NS)
    plain.source_of(PAIR).add_trades(whole)
    filled = CandleKeeper(store, lambda: START_NS)
    for interval in Interval:
        expected = plain.source_of(PAIR).recent(interval, 0, 1_000)
        assert filled.source_of(PAIR).recent(interval, 0, 1_000) == expected, interval


def test_a_back_fill_of_seconds_that_are_gone_takes_nothing_away(folder: Path) -> None:
    whole = trades(1, 100)
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    keeper.source_of(PAIR).add_trades(whole)
    asyncio.run(keeper.write())
    store.forget_seconds_before(START_NS + 90 * SECOND_NS)
    store.close()
    collected = asyncio.run(collect(chunks(executions(whole[80:96]), 100)))
    write_file(folder, PAIR, collected)
    store = CandleStore(folder)
    store.take_imports()
    _, kept = store.load(PAIR, 1_000)
    assert [candle.trade_count for candle in kept[Interval.MINUTE]] == [60, 40]
    assert [candle.trade_count for candle in kept[Interval.DAY]] == [100]
