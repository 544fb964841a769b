"""Rolling figures against a plain sum over the trades of the window, and what fills the holes."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdgateway.feed.ticker import DAY_NS, MINUTE_NS, Day, Figures, RollingDay
from mdgateway.feed.trade_log import TRADE_COLUMNS

DAY = 20_000
MIDNIGHT = DAY * DAY_NS
HOUR = 60 * MINUTE_NS

Trade = tuple[int, int, int]

trade_lists = st.lists(
    st.tuples(st.integers(0, 5 * HOUR), st.integers(1, 1 << 25), st.integers(1, 1 << 33)),
    max_size=60,
)


def timed(steps: Sequence[Trade], start: int) -> list[Trade]:
    """Turn distances between trades into times."""
    trades, time_ns = [], start
    for distance, price, lots in steps:
        time_ns += distance
        trades.append((time_ns, price, lots))
    return trades


def add(rolling: RollingDay, trades: Sequence[Trade], first: int = 1) -> None:
    """Add trades that are numbered from `first` on."""
    rows = np.zeros((len(trades), TRADE_COLUMNS), np.int64)
    for index, (time_ns, price, lots) in enumerate(trades):
        rows[index] = (first + index, price, lots, 1, time_ns, 0)
    rolling.add(rows)


def plain(trades: Sequence[Trade], now_ns: int, since_ns: int) -> Figures:
    """Return the figures the obvious way, by the minute as the window does."""
    first = (now_ns // MINUTE_NS - 1_439) * MINUTE_NS
    inside = [trade for trade in trades if trade[0] >= first]
    lots = sum(trade[2] for trade in inside)
    tick_lots = sum(trade[1] * trade[2] for trade in inside)
    prices = [trade[1] for trade in inside]
    average = (2 * tick_lots + lots) // (2 * lots) if lots else 0
    return Figures(
        lots,
        tick_lots,
        max(prices, default=0),
        min(prices, default=0),
        average,
        since_ns,
        prices[0] if prices else 0,
        len(inside),
    )


@given(trade_lists, st.integers(1, 7), st.integers(0, 30 * HOUR))
def test_figures_are_those_of_the_trades_in_the_window(
    steps: list[Trade], run: int, wait_ns: int
) -> None:
    trades, rolling = timed(steps, MIDNIGHT), RollingDay()
    for start in range(0, len(trades), run):
        # The newest trade is told again, as a restarted engine does.
        again = max(0, start - 1)
        add(rolling, trades[again : start + run], again + 1)
        now_ns = trades[min(start + run, len(trades)) - 1][0]
        figures = rolling.figures(now_ns)
        assert figures == plain(trades[: start + run], now_ns, figures.since_ns)
    now_ns = (trades[-1][0] if trades else MIDNIGHT) + wait_ns
    figures = rolling.figures(now_ns)
    assert figures == plain(trades, now_ns, figures.since_ns)
    assert figures.since_ns == (now_ns // MINUTE_NS - 1_439) * MINUTE_NS


def test_the_day_before_the_start_is_taken_from_the_engine() -> None:
    rolling = RollingDay()
    start = MIDNIGHT + 10 * HOUR
    rolling.reconcile(70, start - HOUR, Day(700, 70_000, 105, 95, 99))
    assert rolling.figures(start) == Figures(700, 70_000, 105, 95, 100, MIDNIGHT, 99, 0)
    add(rolling, [(start + HOUR, 110, 100)], 71)
    rolling.reconcile(71, start + HOUR, Day(800, 81_000, 110, 95, 99))
    assert rolling.figures(start + HOUR) == Figures(800, 81_000, 110, 95, 101, MIDNIGHT, 99, 1)
    # Once midnight has left the window, only what was watched is left, and it says so.
    later = MIDNIGHT + DAY_NS + 2 * MINUTE_NS
    assert rolling.figures(later) == Figures(100, 11_000, 110, 110, 110, start - HOUR, 110, 1)


def test_trades_still_in_the_ring_are_not_counted_twice() -> None:
    rolling = RollingDay()
    seen = MIDNIGHT + 3 * HOUR
    add(rolling, [(seen, 100, 5), (seen + 1, 100, 5)], 4)
    rolling.reconcile(5, seen + 1, Day(25, 2_500, 100, 100, 100))
    assert rolling.figures(seen + HOUR)[:2] == (25, 2_500)
    figures = rolling.figures(MIDNIGHT + DAY_NS + HOUR)
    assert figures == Figures(10, 1_000, 100, 100, 100, seen, 100, 2)


def test_what_was_lost_is_filled_in_from_the_engines_day() -> None:
    rolling = RollingDay()
    noon = MIDNIGHT + 12 * HOUR
    add(rolling, [(noon + HOUR, 100, 10)])
    rolling.reconcile(1, noon + HOUR, Day(10, 1_000, 100, 100, 100))
    # Three trades with twenty lots were between one and two o'clock and nobody saw the events.
    rolling.reconcile(4, noon + 2 * HOUR, Day(30, 3_400, 130, 100, 100))
    figures = rolling.figures(noon + 2 * HOUR)
    assert figures[:4] == (30, 3_400, 130, 100)
    assert figures.trade_count == 4


def test_a_loss_over_midnight_is_admitted() -> None:
    rolling = RollingDay()
    evening = MIDNIGHT - HOUR
    add(rolling, [(evening, 100, 10)])
    rolling.reconcile(1, evening, Day(10, 1_000, 100, 100, 100))
    rolling.reconcile(5, MIDNIGHT + HOUR, Day(7, 707, 101, 101, 101))
    figures = rolling.figures(MIDNIGHT + HOUR)
    assert figures[:2] == (17, 1_707)
    assert figures.since_ns == MIDNIGHT


def test_a_loss_before_midnight_alone_is_admitted() -> None:
    rolling = RollingDay()
    evening = MIDNIGHT - HOUR
    add(rolling, [(evening, 100, 10)])
    rolling.reconcile(1, evening, Day(10, 1_000, 100, 100, 100))
    # Trade 2 was lost; all of the new day was seen.
    add(rolling, [(MIDNIGHT - 1, 100, 10), (MIDNIGHT + HOUR, 100, 7)], 3)
    rolling.reconcile(4, MIDNIGHT + HOUR, Day(7, 700, 100, 100, 100))
    figures = rolling.figures(MIDNIGHT + HOUR)
    assert figures[:2] == (27, 2_700)
    assert figures.since_ns == MIDNIGHT - 1


def test_the_window_is_bounded_however_long_it_runs() -> None:
    rolling = RollingDay()
    for minute in range(5_000):
        add(rolling, [(MIDNIGHT + minute * MINUTE_NS, 1, 1)], minute + 1)
    assert len(rolling._minutes) <= 1_441
