"""The candles of all pairs in one DuckDB file; one process has it open at a time.

What one ``write`` is given is there as a whole or not at all, together with the number of the last
trade that it counts: after a crash the gateway goes on from exactly that trade, with those that
are still in the engine's ring. Candles of one second are kept for a month, the others for ever.

When a pair begins anew (its engine's history was thrown away), so does its series: rows carry the
number of the history, and only the newest one is shown.

It blocks: callers that must not wait use a thread. It knows nothing of subscribers.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb

from mdgateway.feed.candles import Candle, Hole, Interval
from mdgateway.history.rollup import SECOND_NS, offset_ns

FILE_NAME: Final = "candles.duckdb"
IMPORT_FOLDER: Final = "import"
"""Below the store's folder: files of ``backfill``, taken in when the store is opened."""
SECONDS_KEPT_NS: Final = 31 * 86_400 * SECOND_NS
_ROWS_AT_ONCE: Final = 1_000

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS positions (
    pair VARCHAR PRIMARY KEY, history INTEGER, last_trade_number BIGINT, last_time_ns BIGINT);
CREATE TABLE IF NOT EXISTS candles (
    pair VARCHAR, history INTEGER, length TINYINT, start_ns BIGINT,
    open_ticks BIGINT, high_ticks BIGINT, low_ticks BIGINT, close_ticks BIGINT,
    lots HUGEINT, tick_lots HUGEINT, trade_count BIGINT, last_trade_number BIGINT,
    PRIMARY KEY (pair, history, length, start_ns));
CREATE TABLE IF NOT EXISTS holes (
    pair VARCHAR, history INTEGER, first_trade_number BIGINT, last_trade_number BIGINT,
    from_ns BIGINT, to_ns BIGINT, PRIMARY KEY (pair, history, first_trade_number));
"""
_FIGURES: Final = (
    "start_ns, open_ticks, high_ticks, low_ticks, close_ticks, lots, tick_lots, trade_count,"
    " last_trade_number"
)
# Lays the candles of one second between two moments together; a candle that counts more trades
# than its seconds do (because these are not kept for ever) stays as it is.
_AGAIN: Final = """
INSERT OR REPLACE INTO candles
SELECT fresh.* FROM (
    SELECT pair, history, $length AS length,
           (start_ns - $offset) // $span * $span + $offset AS bucket,
           arg_min(open_ticks, start_ns), max(high_ticks), min(low_ticks),
           arg_max(close_ticks, start_ns), sum(lots), sum(tick_lots),
           sum(trade_count) AS trades, max(last_trade_number)
    FROM candles
    WHERE pair = $pair AND history = $history AND length = 1
      AND start_ns >= ($from - $offset) // $span * $span + $offset
      AND start_ns < (($to - $offset) // $span + 1) * $span + $offset
    GROUP BY pair, history, bucket) AS fresh
LEFT JOIN candles AS known ON known.pair = fresh.pair AND known.history = fresh.history
      AND known.length = fresh.length AND known.start_ns = fresh.bucket
WHERE known.trade_count IS NULL OR known.trade_count <= fresh.trades
"""
# How many trades there were before the first one of a file: what a second that the store has in the
# same way says.
_NUMBERS_BEFORE: Final = """
SELECT known.last_trade_number - fresh.last_trade_number
FROM read_parquet($path) AS fresh JOIN candles AS known USING (
    start_ns, open_ticks, high_ticks, low_ticks, close_ticks, lots, tick_lots, trade_count)
WHERE known.pair = $pair AND known.history = $history AND known.length = 1
ORDER BY start_ns DESC LIMIT 1
"""
_EDGES: Final = """
SELECT min(last_trade_number - trade_count) + 1 + $before, max(last_trade_number) + $before,
       max(start_ns) + 999999999
FROM read_parquet($path)
"""
# Holes of which a file has one end.
_LATER_HOLE: Final = """
UPDATE holes SET first_trade_number = $last + 1, from_ns = $to
WHERE pair = $pair AND history = $history AND from_ns >= $from AND from_ns < $to AND to_ns > $to
      AND $last BETWEEN first_trade_number AND last_trade_number - 1
"""
_EARLIER_HOLE: Final = """
UPDATE holes SET last_trade_number = $first - 1, to_ns = $from
WHERE pair = $pair AND history = $history AND from_ns < $from AND to_ns > $from AND to_ns <= $to
      AND $first BETWEEN first_trade_number + 1 AND last_trade_number
"""
# What a file has beyond the last trade that was counted is counted now, up to the end of its last
# second: told again by an engine's ring, these trades are known.
_REACH: Final = """
INSERT OR REPLACE INTO positions SELECT $pair, $history, $last, $end
WHERE NOT EXISTS (SELECT 1 FROM positions WHERE pair = $pair AND last_trade_number >= $last)
"""


class StoreUnusable(Exception):
    """The file cannot be opened or read: damaged, somebody else's, or another gateway has it."""


class Position(NamedTuple):
    """How far the candles of a pair reach."""

    history: int = 1
    last_trade_number: int = 0
    last_time_ns: int = 0


class Change(NamedTuple):
    """What became of one pair since the last write."""

    position: Position
    candles: Mapping[tuple[Interval, int], Candle]
    """By interval and first moment."""
    holes: Sequence[Hole]
    since: Position
    """Where the candles reached before."""


class CandleStore:
    """Candles on a disk."""

    def __init__(self, folder: Path) -> None:
        """Open the store of a folder, or make one. Raises StoreUnusable."""
        self._folder = folder
        self._imports = folder / IMPORT_FOLDER
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = duckdb.connect(
                str(folder / FILE_NAME), config={"threads": 1, "memory_limit": "256MB"}
            )
            self._connection.execute(_TABLES)
        except (duckdb.Error, OSError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreUnusable:
        return StoreUnusable(f"the candles in {self._folder} cannot be opened: {error}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def load(self, pair: str, limit: int) -> tuple[Position, dict[Interval, list[Candle]]]:
        """Return how far a pair's candles reach, and the newest of each interval, oldest first.

        Raises StoreUnusable.
        """
        try:
            position = self._position(pair)
            candles = {
                interval: self.page(pair, position.history, interval, 0, 1 << 62, limit)
                for interval in Interval
            }
        except duckdb.Error as error:
            raise self._unusable(error) from error
        return position, candles

    def page(
        self, pair: str, history: int, interval: Interval, from_ns: int, to_ns: int, limit: int
    ) -> list[Candle]:
        """Return the newest `limit` candles with from_ns <= start < to_ns, oldest first.

        Raises duckdb.Error.
        """
        rows = self._read(
            f"SELECT {_FIGURES} FROM candles WHERE pair = ? AND history = ? AND length = ?"
            " AND start_ns >= ? AND start_ns < ? ORDER BY start_ns DESC LIMIT ?",
            [pair, history, int(interval), from_ns, to_ns, limit],
        )
        return [Candle._make((*row, False)) for row in reversed(rows)]

    def holes(self, pair: str) -> list[Hole]:
        """Return what is missing of a pair's present history."""
        rows = self._read(
            "SELECT first_trade_number, last_trade_number, from_ns, to_ns FROM holes"
            " WHERE pair = ? AND history = ? ORDER BY from_ns",
            [pair, self._position(pair).history],
        )
        return [Hole(*row) for row in rows]

    def write(self, changes: Mapping[str, Change]) -> None:
        """Keep what changed, by pair, in one transaction. Raises duckdb.Error."""
        with self._lock:
            self._begin()
            try:
                for pair, change in changes.items():
                    self._write_pair(pair, change)
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()

    def forget_seconds_before(self, time_ns: int) -> None:
        """Remove the candles of one second that are older."""
        with self._lock:
            self._connection.execute(
                "DELETE FROM candles WHERE length = 1 AND start_ns < ?", [time_ns]
            )

    def take_imports(self) -> list[str]:
        """Take in what ``backfill`` left for this store; return a sentence for each file."""
        done = []
        for path in sorted(self._imports.glob("*.parquet")):
            try:
                taken, sentence = self._take_import(path)
            except (duckdb.Error, ValueError) as error:
                # No Parquet file, one without our columns, or one of no pair or of several.
                taken, sentence = False, str(error)
            done.append(f"{path.name}: {sentence}")
            path.replace(path.with_suffix(".taken" if taken else ".refused"))
        return done

    def _take_import(self, path: Path) -> tuple[bool, str]:
        columns = "pair, covers_from_ns, covers_to_ns"
        [(pair, from_ns, to_ns)] = self._read(
            f"SELECT DISTINCT {columns} FROM read_parquet(?)", [str(path)]
        )
        place = {"path": str(path), "pair": pair, "history": self._position(pair).history}
        # Counted from the first trade of all the numbers are what they are.
        before = [(0,)] if not from_ns else self._read(_NUMBERS_BEFORE, place)
        if not before:
            return False, f"no second of {pair} like one in the store says which trades they are"
        span = {"pair": pair, "history": place["history"], "from": from_ns, "to": to_ns}
        with self._lock:
            self._begin()
            try:
                count = self._replace_seconds(place | {"before": before[0][0]}, span)
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()
        return True, f"{count} seconds of {pair} with trades"

    def _replace_seconds(self, place: dict[str, Any], span: dict[str, Any]) -> int:
        execute = self._connection.execute
        within = "pair = $pair AND history = $history"
        execute(
            f"DELETE FROM candles WHERE {within} AND length = 1 AND start_ns >= $from"
            " AND start_ns < $to",
            span,
        )
        answer = execute(
            f"INSERT INTO candles SELECT $pair, $history, 1, {_FIGURES} + $before"
            " FROM read_parquet($path)",
            place,
        ).fetchone()
        for interval in list(Interval)[1:]:
            lengths = {
                "length": int(interval),
                "span": interval.seconds * SECOND_NS,
                "offset": offset_ns(interval),
            }
            execute(_AGAIN, span | lengths)
        execute(f"DELETE FROM holes WHERE {within} AND from_ns >= $from AND to_ns <= $to", span)
        numbers = {"path": place["path"], "before": place["before"]}
        [(first, last, end_ns)] = execute(_EDGES, numbers).fetchall()
        execute(_LATER_HOLE, span | {"last": last})
        execute(_EARLIER_HOLE, span | {"first": first})
        whose = {"pair": span["pair"], "history": span["history"]}
        execute(_REACH, whose | {"last": last, "end": end_ns})
        return int(answer[0]) if answer else 0

    def _write_pair(self, pair: str, change: Change) -> None:
        execute = self._connection.execute
        execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", [pair, *change.position])
        history = change.position.history
        rows = [
            (pair, history, int(interval), *candle[:-1])
            for (interval, _), candle in change.candles.items()
        ]
        self._insert("candles", rows)
        self._insert("holes", [(pair, history, *hole) for hole in change.holes])

    def _insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            # A list for each column: a mark for each value takes ten times as long.
            piece = rows[start : start + _ROWS_AT_ONCE]
            columns = [list(column) for column in zip(*piece, strict=True)]
            values = ", ".join(["unnest(?)"] * len(columns))
            self._connection.execute(f"INSERT OR REPLACE INTO {table} SELECT {values}", columns)

    def _position(self, pair: str) -> Position:
        rows = self._read(
            "SELECT history, last_trade_number, last_time_ns FROM positions WHERE pair = ?", [pair]
        )
        return Position(*rows[0]) if rows else Position()

    def _begin(self) -> None:
        self._connection.begin()

    def _read(self, query: str, values: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()
