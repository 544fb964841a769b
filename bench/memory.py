"""What a book costs by its size: bytes an order, and time as orders, queues and gaps grow."""

from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from bench.flows import Splitmix
from bench.harness import Rounds, Row, cpu_seconds, medians, rate, span
from bench.venue import ACCOUNTS, INSTRUMENT, Venue
from engine.vault_layout import RESTING_COUNT
from exchange.enums import CommandKind, OrderType, SelfTradePrevention, Side, TimeInForce
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    COMMAND_WORDS,
    Rows,
    command_price,
    command_verb,
)

LARGE: Final = replace(INSTRUMENT, order_capacity=1 << 20, client_id_window=1 << 21)
ORDERS: Final = 1_000_000
MIDDLE: Final = 1_000_000
FAR: Final = 1_000_000
"""Empty ticks a sweep leaves behind."""


def new_orders(
    first_id: int, prices: np.ndarray, side: Side, tif: int = TimeInForce.GOOD_TILL_CANCELLED
) -> Rows:
    """Return limit orders of ten lots at these prices, spread over all accounts."""
    rows = np.zeros((len(prices), COMMAND_WORDS), np.int64)
    number = np.arange(len(prices))
    verb = command_verb(CommandKind.NEW_ORDER, 0, side, OrderType.LIMIT, tif)
    # Neighbours in a queue belong to different accounts; the two sides of a trade as well.
    account = 1 + (2 * number + side) % ACCOUNTS
    rows[:, C_VERB] = verb | account << 32
    rows[:, C_CLIENT_ORDER_ID] = first_id + number
    rows[:, C_PRICE] = prices | command_price(0, SelfTradePrevention.CANCEL_NEWEST)
    rows[:, C_QUANTITY] = 10
    return rows


def cancels(orders: Rows) -> Rows:
    """Return the commands that take these orders off the book."""
    rows = np.zeros_like(orders)
    rows[:, C_VERB] = orders[:, C_VERB] >> 32 << 32 | int(CommandKind.CANCEL_ORDER)
    rows[:, C_CLIENT_ORDER_ID] = orders[:, C_CLIENT_ORDER_ID]
    return rows


def _book_of(count: int, levels: int) -> Rows:
    """Return so many bids, spread evenly over so many prices below the middle."""
    return new_orders(1, MIDDLE - 1 - np.arange(count) % levels, Side.BUY)


def _shuffled(rows: Rows, seed: int = 23) -> Rows:
    return rows[np.argsort(Splitmix(seed).below(1 << 31, len(rows)), kind="stable")]


def _used_bytes(venue: Venue) -> int:
    return sum(owned.path.stat().st_blocks * 512 for owned in (venue.vault, venue.book))


def _bytes_per_order(rounds: Rounds) -> Row:
    count = rounds.size(ORDERS, ORDERS // 4)
    with Venue(LARGE) as venue:
        before = _used_bytes(venue)
        venue.run(_book_of(count, 2_000), 1_024)
        assert venue.engine.vault["scalars"][RESTING_COUNT] == count
        used = _used_bytes(venue) - before
        parts = {
            name: venue.vault.arrays[name].nbytes
            for name in ("client_entries", "client_links", "client_heads")
        }
    ids = sum(parts.values()) / LARGE.client_id_window
    events = LARGE.event_capacity * 64
    return Row(
        f"{count:,} resting orders",
        f"{used / count:,.0f} B an order",
        "",
        None,
        "256 B",
        f"pages in use, with {events / count:.0f} B of the event ring and up to {ids:.0f} B an id "
        "remembered; the order itself has 64 B",
    )


def _churn(venue: Venue, resting: Rows, count: int) -> float:
    """Return the rate of cancels and adds in a book that stays as large as it is."""
    venue.reset()
    venue.run(resting, 1_024)
    picked = _shuffled(resting)[: count // 2]
    picked = picked if len(picked) == count // 2 else resting[: count // 2]
    work = np.zeros((2 * len(picked), COMMAND_WORDS), np.int64)
    work[0::2] = cancels(picked)
    work[1::2] = picked
    work[1::2, C_CLIENT_ORDER_ID] += 10_000_000
    seconds = cpu_seconds(lambda: venue.run(work, 1_024))
    assert venue.engine.vault["scalars"][RESTING_COUNT] == len(resting)
    return len(work) / seconds


def _cancel_seconds(venue: Venue, count: int, levels: int) -> float:
    venue.reset()
    orders = _book_of(count, levels)
    venue.run(orders, 1_024)
    work = cancels(_shuffled(orders))
    seconds = cpu_seconds(lambda: venue.run(work, 1_024)) / count
    assert venue.engine.vault["scalars"][RESTING_COUNT] == 0
    return seconds


def _sweep_seconds(venue: Venue, count: int, gap_ticks: int) -> float:
    """Return the seconds of taking the only order at the best price, again and again.

    The next best is so many empty ticks away, and the order taken is put back each time.
    """
    venue.reset()
    venue.run(new_orders(1, np.array([100 + gap_ticks]), Side.SELL), 1)
    prices = np.full(count, 100)
    work = np.zeros((2 * count, COMMAND_WORDS), np.int64)
    work[0::2] = new_orders(10, prices, Side.SELL)
    work[1::2] = new_orders(10 + count, prices, Side.BUY, TimeInForce.IMMEDIATE_OR_CANCEL)
    seconds = cpu_seconds(lambda: venue.run(work, 1_024)) / count
    assert venue.engine.vault["scalars"][RESTING_COUNT] == 1
    return seconds


def run_memory(rounds: Rounds) -> list[Row]:
    """Measure bytes an order, and what must not grow with the book."""
    rows = [_bytes_per_order(rounds)]
    with Venue(LARGE) as venue:
        count = rounds.size(200_000, 20_000)
        few, many = 10_000, rounds.size(ORDERS, ORDERS // 4)
        deep = rounds.size(100_000, 50_000)
        small, large = _book_of(few, 2_000), _book_of(many, 2_000)
        found = medians(
            rounds,
            {
                "few": partial(_churn, venue, small, min(count, 2 * few)),
                "many": partial(_churn, venue, large, count),
                "short": partial(_cancel_seconds, venue, deep, deep // 10),
                "long": partial(_cancel_seconds, venue, deep, 1),
                "near": partial(_sweep_seconds, venue, count // 4, 1),
                "far": partial(_sweep_seconds, venue, count // 4, FAR),
            },
        )
    rows.append(
        Row(
            f"cancel and add among {many:,} orders",
            rate(found["many"]),
            f"among {few:,} {rate(found['few'])}",
            found["many"] / found["few"],
            "",
            "the difference is the caches'",
        )
    )
    rows.append(
        Row(
            f"cancel in a queue of {deep:,}",
            span(found["long"]),
            f"in queues of 10 {span(found['short'])}",
            found["long"] / found["short"],
            "1",
        )
    )
    rows.append(
        Row(
            f"sweep, next price {FAR:,} empty ticks away",
            span(found["far"]),
            f"next tick {span(found['near'])}",
            found["far"] / found["near"],
            "1",
            "an order put and taken, and its level found empty",
        )
    )
    return rows
