"""Candles against a plain recomputation from the trades, over restarts at any moment."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mdgateway.feed.candles import Candle, Interval
from mdgateway.feed.trade_log import TRADE_COLUMNS
from mdgateway.history.rollup import SECOND_NS, end_of, start_of
from mdgateway.history.source import CandleKeeper, PairCandles
from mdgateway.history.store import CandleStore

PAIR = "BTC-USDT"
START_NS = 1_763_856_000 * SECOND_NS
LARGE = 1 << 40

Trade = tuple[int, int, int]
"""Price in ticks, lots, nanoseconds since the trade before."""

trades_drawn = st.lists(
    st.tuples(
        st.integers(1, LARGE),
        st.integers(1, LARGE),
        st.one_of(
            st.integers(0, SECOND_NS),
            st.integers(0, 8 * 86_400 * SECOND_NS),
        ),
    ),
    min_size=1,
    max_size=30,
)


def rows_of(trades: Sequence[Trade]) -> np.ndarray:
    rows = np.zeros((len(trades), TRADE_COLUMNS), np.int64)
    moment_ns = START_NS
    for index, (price, lots, pause_ns) in enumerate(trades):
        moment_ns += pause_ns
        rows[index] = (index + 1, price, lots, 1, moment_ns, index + 1)
    return rows


def plain(rows: np.ndarray, interval: Interval) -> list[Candle]:
    """Return the candles by going through the trades one after the other."""
    found: dict[int, list[list[int]]] = {}
    for row in rows.tolist():
        found.setdefault(start_of(interval, row[4]), []).append(row)
    newest_ns = int(rows[-1, 4])
    return [
        Candle(
            start_ns=start_ns,
            open_ticks=group[0][1],
            high_ticks=max(row[1] for row in group),
            low_ticks=min(row[1] for row in group),
            close_ticks=group[-1][1],
            lots=sum(row[2] for row in group),
            tick_lots=sum(row[1] * row[2] for row in group),
            trade_count=len(group),
            last_trade_number=group[-1][0],
            closed=end_of(interval, start_ns) <= newest_ns,
        )
        for start_ns, group in found.items()
    ]


def pages(candles: PairCandles, interval: Interval, limit: int) -> list[Candle]:
    """Return everything, page by page from the newest to the oldest."""
    found: list[Candle] = []
    to_ns = 1 << 62
    while to_ns:
        page = asyncio.run(candles.page(interval, 0, to_ns, limit))
        found = [*page.candles, *found]
        to_ns = page.next_to_ns
    return found


@settings(max_examples=20)
@given(trades_drawn, st.data())
def test_candles_are_those_of_a_plain_recomputation(
    trades: list[Trade], data: st.DataObject
) -> None:
    rows = rows_of(trades)
    with tempfile.TemporaryDirectory() as folder:
        start = 0
        while start < len(rows):
            least = min(start + 5, len(rows))
            end = data.draw(st.integers(least, len(rows)), label="until the next restart")
            store = CandleStore(Path(folder))
            keeper = CandleKeeper(store, lambda: START_NS)
            # A restarted gateway is given what the ring still holds once more.
            again = data.draw(st.integers(0, start), label="given again from")
            keeper.source_of(PAIR).add_trades(rows[again:end])
            if data.draw(st.booleans(), label="written") or end == len(rows):
                asyncio.run(keeper.write())
                start = end
            candles = keeper.source_of(PAIR)
            if start < len(rows):
                store.close()
        for interval in Interval:
            expected = plain(rows, interval)
            assert list(candles.recent(interval, 0, len(rows))) == expected
            assert pages(candles, interval, data.draw(st.integers(1, 7))) == expected
        store.close()
