"""Hand-written scenarios of other exchanges through the kernel.

`goldens/kraken`: eight scenarios with the exact answers of the exchange. `goldens/cointossx`: a
start book, one incoming order or cancel, and the expected book and trades.

CoinTossX has order types we do not have: 3 stop, 4 stop-limit, 5 hidden with a minimum execution
size. In the eight cases that contain one, that order is sent by nobody and left out of the
expected book; everything else of the case must agree. In limit case 7 the expected book has the
side typed as `BO`; it is read as the `O` that was meant.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exchange.enums import ExecutionKind, OrderType, Reason, Side, TimeInForce
from exchange.instrument import Instrument
from exchange.records import (
    C_PRICE,
    E_CLIENT_ORDER_ID,
    E_MAKER_CLIENT_ORDER_ID,
    E_QUANTITY,
    Rows,
    account_of,
    kind_of,
    maker_account_of,
    price_of,
    reason_of,
)
from holdfast.replay.formats import CommandList, fills_of, read_lines
from tests.data.drivers import Level, Venue

INSTRUMENT = Instrument(
    pair="GOLDEN",
    base_decimals=0,
    quote_decimals=0,
    tick_quote_units=1,
    base_units_per_lot=1,
    price_capacity_ticks=1 << 16,
    quantity_limit_lots=1 << 30,
    taker_fee_ppm=0,
    order_capacity=64,
    account_capacity=8,
    client_id_window=128,
)

KRAKEN_SCENARIOS = (1, 3, 5, 7, 9, 11, 13, 15)
KRAKEN_SIDES = {"B": Side.BUY, "S": Side.SELL}

COINTOSSX_SIDES = {"B": Side.BUY, "O": Side.SELL, "BO": Side.SELL}
MARKET, LIMIT = "1", "2"
UNSUPPORTED = {"3": "stop", "4": "stop-limit", "5": "hidden"}
CASES = (
    *(("cancelOrder", number) for number in range(1, 11)),
    *(("limitOrder", number) for number in range(1, 13)),
    *(("marketOrder", number) for number in range(1, 7)),
)
UNSUPPORTED_CASES = {
    ("cancelOrder", 5): {"stop"},
    ("cancelOrder", 6): {"stop"},
    ("cancelOrder", 7): {"stop-limit"},
    ("cancelOrder", 8): {"stop-limit"},
    ("cancelOrder", 9): {"hidden"},
    ("cancelOrder", 10): {"hidden"},
    ("marketOrder", 5): {"hidden"},
    ("marketOrder", 6): {"hidden"},
}


def market(commands: CommandList, order: int, side: Side, lots: int) -> None:
    force = TimeInForce.IMMEDIATE_OR_CANCEL
    commands.new_order(order, side, 0, lots, order_type=OrderType.MARKET, time_in_force=force)


def kraken_answers(venue: Venue, lines: Iterator[str]) -> Iterator[str]:
    """Send each line, and yield what the exchange would have printed."""
    before = venue.top()
    for line in lines:
        verb, *words = [word.strip() for word in line.split(",")]
        if verb == "F":
            continue
        commands = CommandList(account=int(words[0]))
        if verb == "N":
            _, _, price, lots, side, order = words
            if price == "0":
                market(commands, int(order), KRAKEN_SIDES[side], int(lots))
            else:
                commands.new_order(int(order), KRAKEN_SIDES[side], int(price), int(lots))
        else:
            commands.cancel(int(words[1]))
        executions = venue.apply(commands.columns()[0])
        yield from map(kraken_line, executions)
        after = venue.top()
        for name, old, new in zip("BS", before, after, strict=True):
            if shown(old) != shown(new):
                yield f"B, {name}, {shown(new)}"
        before = after


def shown(level: Level | None) -> str:
    return f"{level[0]}, {level[1]}" if level else "-, -"


def kraken_line(execution: Rows) -> str:
    order = f"{account_of(execution)}, {execution[E_CLIENT_ORDER_ID]}"
    kind = ExecutionKind(int(kind_of(execution)))
    if kind == ExecutionKind.TRADE:
        maker = f"{maker_account_of(execution)}, {execution[E_MAKER_CLIENT_ORDER_ID]}"
        taker_buys = (execution[2] >> 16) & 0xFF == Side.BUY
        parties = f"{order}, {maker}" if taker_buys else f"{maker}, {order}"
        return f"T, {parties}, {price_of(execution)}, {execution[E_QUANTITY]}"
    return f"{ {ExecutionKind.ACCEPTED: 'A', ExecutionKind.CANCELLED: 'C'}[kind] }, {order}"


@pytest.mark.parametrize("number", KRAKEN_SCENARIOS)
def test_kraken(recorded_data: Callable[[str], Path], number: int) -> None:
    folder = recorded_data("goldens/kraken")
    expected = list(read_lines(folder / f"{number}.out.csv"))
    answers = kraken_answers(Venue(INSTRUMENT, 2), read_lines(folder / f"{number}.in.csv"))
    assert list(answers) == expected


def test_every_kraken_scenario_is_named(recorded_data: Callable[[str], Path]) -> None:
    names = {path.name for path in recorded_data("goldens/kraken").glob("*.in.csv")}
    assert names == {f"{number}.in.csv" for number in KRAKEN_SCENARIOS}


@dataclass
class Case:
    """One CoinTossX case, without the orders of a type we do not have."""

    start: list[dict[str, str]]
    incoming: list[dict[str, str]]
    book: set[tuple[int, int, int, int]]
    """Side, client order id, price in ticks, lots."""
    trades: list[tuple[int, int]]
    """Price in ticks, lots."""
    left_out: set[str] = field(default_factory=set)


def read_case(folder: Path, number: int) -> Case:
    # The master file and the files themselves do not agree on upper and lower case.
    files = {path.name.lower(): path for path in folder.iterdir()}

    def rows(part: str) -> list[dict[str, str]]:
        path = files.get(f"test{number}_{part}.csv")
        return [] if path is None else list(csv.DictReader(read_lines(path)))

    start, book = rows("init"), rows("output")
    left_out = {UNSUPPORTED[row["Type"]] for row in start if row["Type"] in UNSUPPORTED}
    return Case(
        start=[row for row in start if row["Type"] not in UNSUPPORTED],
        incoming=rows("input"),
        book={
            (COINTOSSX_SIDES[row["Side"]], int(row["OrderID"]), int(row["Price"]), int(row["Size"]))
            for row in book
            if row["Type"] not in UNSUPPORTED
        },
        trades=[(int(row["Price"]), int(row["Quantity"])) for row in rows("trades")],
        left_out=left_out,
    )


def enter(commands: CommandList, row: dict[str, str]) -> None:
    order, side, lots = int(row["OrderID"]), COINTOSSX_SIDES[row["Side"]], int(row["Size"])
    if row["Type"] == MARKET:
        market(commands, order, side, lots)
    else:
        assert row["Type"] == LIMIT
        commands.new_order(order, side, int(row["Price"]), lots)


@pytest.mark.parametrize(("group", "number"), CASES)
def test_cointossx(recorded_data: Callable[[str], Path], group: str, number: int) -> None:
    case = read_case(recorded_data("goldens/cointossx") / group, number)
    assert case.left_out == UNSUPPORTED_CASES.get((group, number), set())
    venue = Venue(INSTRUMENT)
    commands = CommandList(account=1)
    for row in case.start:
        enter(commands, row)
    venue.apply(commands.columns()[0])
    assert len(venue.open_orders()) == len(case.start)
    commands = CommandList(account=1)
    for row in case.incoming:
        if group == "cancelOrder":
            commands.cancel(int(row["OrderID"]))
        else:
            enter(commands, row)
    executions = venue.apply(commands.columns()[0])
    assert [(price, lots) for *_, price, lots in fills_of(executions).tolist()] == case.trades
    book = {(side, order, price, lots) for _, order, side, price, lots in venue.open_orders()}
    assert book == case.book
    venue.engine.check()


def test_cointossx_cancel_in_an_empty_book_is_refused(
    recorded_data: Callable[[str], Path],
) -> None:
    for number in (1, 2):
        case = read_case(recorded_data("goldens/cointossx") / "cancelOrder", number)
        commands = CommandList(account=1)
        commands.cancel(int(case.incoming[0]["OrderID"]))
        executions = Venue(INSTRUMENT).apply(commands.columns()[0])
        assert reason_of(executions).tolist() == [Reason.ORDER_UNKNOWN]


def test_every_cointossx_case_is_named(recorded_data: Callable[[str], Path]) -> None:
    folder = recorded_data("goldens/cointossx")
    found = set()
    for group in ("cancelOrder", "limitOrder", "marketOrder"):
        master = next((folder / group).glob("*Master.csv"))
        found |= {(group, int(row["TestNumber"])) for row in csv.DictReader(read_lines(master))}
    assert found == set(CASES)


def test_the_mistyped_side_is_the_only_one(recorded_data: Callable[[str], Path]) -> None:
    folder = recorded_data("goldens/cointossx")
    mistyped = [
        path.name
        for path in folder.rglob("Test*_Output.csv")
        for line in read_lines(path)
        if line.startswith("BO,")
    ]
    assert mistyped == ["Test7_Output.csv"]


def test_a_market_order_needs_no_price_word() -> None:
    commands = CommandList(account=1)
    market(commands, 1, Side.BUY, 5)
    assert commands.columns()[0][0, C_PRICE] & 0xFFFFFFFF == 0
