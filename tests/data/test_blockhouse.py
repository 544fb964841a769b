"""A whole day of one NASDAQ stock through the kernel: ten levels after every recorded change.

The recording has order-level messages (R clear, A add, C cancel, T trade, F fill) and the
ten-level book that they lead to. A fill becomes an incoming immediate order of its size at its
price, so that the kernel has to find the recorded maker by itself; the cancel by which the
recording takes the filled size out of the book is then not sent.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from exchange.enums import Side, TimeInForce
from exchange.instrument import Instrument
from exchange.records import Rows
from holdfast.replay.formats import (
    CommandList,
    Integers,
    fill_rows,
    fills_of,
    read_lines,
    scaled,
)
from tests.data.drivers import Level, Venue, by_message

ORDERS = "blockhouse-arl/mbo.csv.xz"
BOOKS = "blockhouse-arl/mbp10_expected.csv.xz"
PRICE_DECIMALS = 3
LEVELS = 10
SIDES = {"B": Side.BUY, "A": Side.SELL}
OPPOSITE = {Side.BUY: Side.SELL, Side.SELL: Side.BUY}

INSTRUMENT = Instrument(
    pair="ARL-USD",
    base_decimals=0,
    quote_decimals=PRICE_DECIMALS,
    tick_quote_units=1,
    base_units_per_lot=1,
    price_capacity_ticks=1 << 22,
    quantity_limit_lots=1 << 30,
    taker_fee_ppm=0,
    order_capacity=1 << 12,
    client_id_window=1 << 14,
)

Key = tuple[str, str, str]
"""Sequence, action, order id: what names one message in both files."""
Book = tuple[list[Level], list[Level]]


@dataclass
class Day:
    commands: Rows
    message_index: Integers
    keys: list[Key]
    fills: Integers


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(read_lines(path))


def read_day(path: Path) -> Day:
    commands = CommandList(account=1)
    leaves: dict[int, int] = {}
    filled: dict[tuple[str, str, str], int] = {}
    fills = []
    keys = []
    taker = 1 << 40
    for number, row in enumerate(rows_of(path)):
        commands.message_index = number
        action, name, sequence = row["action"], row["order_id"], row["sequence"]
        keys.append((sequence, action, name))
        order, lots = int(name), int(row["size"])
        if action == "A":
            side, price = SIDES[row["side"]], scaled(row["price"].rstrip("0"), PRICE_DECIMALS)
            commands.new_order(order, side, price, lots)
            leaves[order] = lots
        elif action == "F":
            side, price = SIDES[row["side"]], scaled(row["price"].rstrip("0"), PRICE_DECIMALS)
            taker += 1
            force = TimeInForce.IMMEDIATE_OR_CANCEL
            commands.new_order(taker, OPPOSITE[side], price, lots, time_in_force=force)
            fills.append((order, taker, price, lots))
            filled[sequence, name, row["size"]] = order
        elif action == "C":
            leaves[order] -= lots
            if filled.pop((sequence, name, row["size"]), None):
                continue
            if leaves[order] == 0:
                commands.cancel(order)
            else:
                commands.amend(order, 0, leaves[order])
    assert not filled, "every fill is followed by the cancel of its size"
    rows, index, _ = commands.columns()
    return Day(rows, index, keys, fill_rows(fills))


def expected_book(row: dict[str, str]) -> Book:
    sides: list[list[Level]] = []
    for side in ("bid", "ask"):
        levels = []
        for place in range(LEVELS):
            lots = int(row[f"{side}_sz_{place:02d}"])
            if lots:
                price = scaled(row[f"{side}_px_{place:02d}"], PRICE_DECIMALS)
                levels.append((price, lots, int(row[f"{side}_ct_{place:02d}"])))
        sides.append(levels)
    return sides[0], sides[1]


@pytest.fixture(scope="module")
def day(recorded_data: Callable[[str], Path]) -> Day:
    return read_day(recorded_data(ORDERS))


@pytest.fixture(scope="module")
def replayed(day: Day) -> tuple[Rows, list[Book]]:
    """Return all executions, and ten levels a side after every message."""
    venue = Venue(INSTRUMENT)
    parts = dict(by_message(day.message_index))
    executions, books = [], []
    book: Book = ([], [])
    for number in range(len(day.keys)):
        if number in parts:
            executions.append(venue.apply(day.commands[parts[number]]))
            bids, asks = venue.depth()
            book = bids[:LEVELS], asks[:LEVELS]
        books.append(book)
    venue.engine.check()
    return np.concatenate(executions), books


def test_ten_levels_at_every_recorded_row(
    day: Day, replayed: tuple[Rows, list[Book]], recorded_data: Callable[[str], Path]
) -> None:
    _, books = replayed
    equal = count = message = 0
    for row in rows_of(recorded_data(BOOKS)):
        key = (row["sequence"], row["action"], row["order_id"])
        message = day.keys.index(key, message)
        # A trade's row shows the book when its event is over: after the fill that follows it.
        after = message
        if row["action"] == "T" and day.keys[min(message + 1, len(books) - 1)][1] == "F":
            after += 1
        equal += books[after] == expected_book(row)
        count += 1
    print(f"{equal:,} of {count:,} rows equal")
    assert count == 3_928
    assert equal == count


def test_fills_hit_the_recorded_makers(day: Day, replayed: tuple[Rows, list[Book]]) -> None:
    assert len(day.fills) == 11
    assert fills_of(replayed[0]).tolist() == day.fills.tolist()


def test_one_order_less_is_noticed(day: Day, recorded_data: Callable[[str], Path]) -> None:
    venue = Venue(INSTRUMENT)
    venue.apply(day.commands[1:100])
    last = int(day.message_index[99])
    sequence = day.keys[last][0]
    row = next(row for row in rows_of(recorded_data(BOOKS)) if row["sequence"] >= sequence)
    bids, asks = venue.depth()
    assert (bids[:LEVELS], asks[:LEVELS]) != expected_book(row)
