"""Candles from an execution log, for a gateway that was not there.

The log names accounts, so the gateway itself never reads it. An operator who may does, with
`python -m mdgateway.history`; what it writes is a Parquet file of candles of one second, without
anything about anybody, into the folder from which the gateway's store takes it at its next start.
All longer candles are made from those.

The log does not say the numbers of its trades. Read from its first execution they are counted from
1; read from a later one (older ones are pruned) they are counted from there, and the store finds
out what they are by the seconds that it has, too.

Invariant: a file covers whole seconds up to the last record that was read; within them it is
complete. Read from the first execution it covers everything before, too.
"""

from collections.abc import AsyncIterable
from contextlib import aclosing
from pathlib import Path
from typing import Final

import duckdb
import numpy as np

from exchange.enums import ExecutionKind
from exchange.feed import Chunk, ExecutionFeed
from exchange.records import E_QUANTITY, E_SEQUENCE, E_TIME_NS, Rows, kind_of, price_of
from mdgateway.feed.candles import Candle, Interval
from mdgateway.feed.trade_log import (
    TRADE_COLUMNS,
    TRADE_LOTS,
    TRADE_NUMBER,
    TRADE_PRICE,
    TRADE_SEQUENCE,
    TRADE_TIME_NS,
)
from mdgateway.history.rollup import SECOND_NS, Series, candles_of_seconds
from mdgateway.history.store import IMPORT_FOLDER

_CAPACITY: Final = 1 << 40
"""Every second with a trade is kept until the file is written."""
_COLUMNS: Final = (*Candle._fields[:-1],)


class Collected:
    """The seconds of a log so far; `from_start`: it is read from its first execution."""

    def __init__(self, *, from_start: bool = True) -> None:
        self._from_start = from_start
        self.series = Series(Interval.SECOND, _CAPACITY)
        self.trade_count = 0
        self.from_ns = 0
        """First moment that is covered."""
        self.to_ns = 0

    def take(self, rows: Rows) -> None:
        """Take the next executions."""
        if not len(rows):
            return
        if not self.from_ns and not self._from_start:
            # The second of the first record may have begun before it.
            self.from_ns = (int(rows[0, E_TIME_NS]) // SECOND_NS + 1) * SECOND_NS
        trades = rows[kind_of(rows) == ExecutionKind.TRADE]
        fresh = np.zeros((len(trades), TRADE_COLUMNS), np.int64)
        fresh[:, TRADE_NUMBER] = self.trade_count + 1 + np.arange(len(trades))
        fresh[:, TRADE_PRICE] = price_of(trades)
        fresh[:, TRADE_LOTS] = trades[:, E_QUANTITY]
        fresh[:, TRADE_TIME_NS] = trades[:, E_TIME_NS]
        fresh[:, TRADE_SEQUENCE] = trades[:, E_SEQUENCE]
        self.trade_count += len(trades)
        for piece in candles_of_seconds(fresh, self.to_ns):
            self.series.lay(piece)
        self.to_ns = max(self.to_ns, int(rows[-1, E_TIME_NS]))

    def seconds(self) -> list[Candle]:
        """Return the whole seconds: the one of the last record may not be over."""
        return self.series.between(self.from_ns, self.covers_to_ns, _CAPACITY)

    @property
    def covers_to_ns(self) -> int:
        """Return the end of what is covered."""
        return self.to_ns // SECOND_NS * SECOND_NS


async def collect(chunks: AsyncIterable[Chunk], *, from_start: bool = True) -> Collected:
    """Read a log up to where it reached when that was last said."""
    collected = Collected(from_start=from_start)
    async for chunk in chunks:
        collected.take(chunk.rows)
        if chunk.next_number >= chunk.committed_number:
            break
    return collected


async def backfill(target: str, pair: str, folder: Path, from_number: int = 0) -> str:
    """Write the file of one pair into the folder of a store; return a sentence about it.

    Raises FeedOutOfRange if the log does not reach back to the number.
    """
    async with ExecutionFeed(target, pair) as feed, aclosing(feed.chunks(from_number)) as chunks:
        collected = await collect(chunks, from_start=not from_number)
    path = write_file(folder, pair, collected)
    if path is None:
        return f"{pair}: {collected.trade_count} trades, no whole second with one; nothing written"
    return f"{pair}: {collected.trade_count} trades up to the last whole second, in {path}"


def write_file(folder: Path, pair: str, collected: Collected) -> Path | None:
    """Write the file for the store of a folder; return where, or None if there is nothing."""
    seconds = collected.seconds()
    if not seconds:
        return None
    path = folder / IMPORT_FOLDER / f"{pair}-{collected.covers_to_ns}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, pair, collected, seconds)
    return path


def _write(path: Path, pair: str, collected: Collected, seconds: list[Candle]) -> None:
    unfinished = path.with_suffix(".new")
    with duckdb.connect(":memory:") as connection:
        # Parquet has no whole numbers of 128 bits, but exact decimals.
        connection.execute(
            "CREATE TABLE seconds (start_ns BIGINT, open_ticks BIGINT, high_ticks BIGINT,"
            " low_ticks BIGINT, close_ticks BIGINT, lots DECIMAL(38, 0), tick_lots DECIMAL(38, 0),"
            " trade_count BIGINT, last_trade_number BIGINT)"
        )
        for start in range(0, len(seconds), 1_000):
            part = seconds[start : start + 1_000]
            marks = ", ".join([f"({', '.join('?' * len(_COLUMNS))})"] * len(part))
            values = [value for candle in part for value in candle[:-1]]
            connection.execute(f"INSERT INTO seconds VALUES {marks}", values)
        connection.execute("SET VARIABLE pair = ?", [pair])
        connection.execute("SET VARIABLE from_ns = ?", [collected.from_ns])
        connection.execute("SET VARIABLE to_ns = ?", [collected.covers_to_ns])
        connection.execute(
            "COPY (SELECT *, getvariable('pair') AS pair,"
            " getvariable('from_ns')::BIGINT AS covers_from_ns,"
            " getvariable('to_ns')::BIGINT AS covers_to_ns FROM seconds)"
            f" TO '{str(unfinished).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)"
        )
    unfinished.replace(path)
