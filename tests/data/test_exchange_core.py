"""exchange-core's readable scenarios through the kernel: books, fills, balances and holds.

The steps are read from the feature file itself; a step that no rule here understands fails the
test. Two things of theirs we do not have, and no answer of these scenarios depends on them: a
reserve price, up to which a buy may be moved without new funds (no scenario moves a buy), and
futures, which is what their EUR_USD is: it needs no base asset, so here sellers are given some.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from engine.vault_layout import A_FREE_BASE, A_FREE_QUOTE
from exchange.enums import Asset, CommandKind, ExecutionKind, Side, TimeInForce
from exchange.instrument import Instrument
from exchange.records import (
    C_AMOUNT,
    C_PRICE,
    C_TRANSFER_NUMBER,
    C_VERB,
    COMMAND_WORDS,
    E_QUANTITY,
    Rows,
    command_verb,
    kind_of,
)
from holdfast.replay.formats import CommandList, fills_of, read_lines
from tests.data.drivers import OpenOrder, Venue

FEATURE = "goldens/exchange-core-basic.feature"
SIDES = {"ASK": Side.SELL, "BID": Side.BUY}
FORCES = {"GTC": TimeInForce.GOOD_TILL_CANCELLED, "IOC": TimeInForce.IMMEDIATE_OR_CANCEL}
SCENARIOS = (
    ("basic full cycle test", "EUR_USD"),
    ("basic full cycle test", "ETH_XBT"),
    ("cancel BID order", "ETH_XBT"),
)
FUTURES = "EUR_USD"
SELLERS_BASE_UNITS = 1_000


def instrument(pair: str, base_decimals: int, tick: int, lot: int) -> Instrument:
    return Instrument(
        pair=pair,
        base_asset=pair.split("_", maxsplit=1)[0],
        quote_asset=pair.split("_")[1],
        base_decimals=base_decimals,
        quote_decimals=0,
        tick_quote_units=tick,
        base_units_per_lot=lot,
        price_capacity_ticks=1 << 16,
        quantity_limit_lots=1 << 20,
        taker_fee_ppm=0,
        order_capacity=64,
        account_capacity=8,
        client_id_window=128,
    )


# Theirs: a lot of ETH is 100,000 units and one tick of it 10 units of XBT; of EUR_USD 1 and 1.
INSTRUMENTS = {
    "EUR_USD": instrument("EUR_USD", 0, 1, 1),
    "ETH_XBT": instrument("ETH_XBT", 5, 10, 100_000),
}

Table = list[list[str]]


@dataclass
class Step:
    text: str
    table: Table = field(default_factory=list)


def steps_of(path: Path, scenario: str, symbol: str) -> list[Step]:
    """Return the steps of the background and of one scenario, with the symbol filled in."""
    steps: list[Step] = []
    wanted = False
    for line in map(str.strip, read_lines(path)):
        word, _, rest = line.partition(" ")
        if line.startswith(("Background:", "Scenario")):
            wanted = line == "Background:" or line.split(": ", maxsplit=1)[-1] == scenario
        elif line.startswith("Examples:"):
            wanted = False
        elif wanted and word in {"Given", "When", "Then", "And"}:
            steps.append(Step(rest.replace("<symbol>", symbol)))
        elif wanted and word == "|":
            steps[-1].table.append([cell.strip() for cell in line.strip("|").split("|")])
    return steps


class Scenario:
    """A pair on which the steps act, and what they are checked against."""

    def __init__(self, symbol: str) -> None:
        self.instrument = INSTRUMENTS[symbol]
        self.symbol = symbol
        self.venue = Venue(self.instrument, account_count=0)
        self.clients: dict[str, int] = {}
        self.transfers = 0
        self.last: Rows = np.empty((0, 16), np.int64)
        self.rules: dict[str, Callable[..., None]] = {
            r"New client (\w+) has a balance:": self.new_client,
            r"A client (\w+) places an (ASK|BID) order (\d+) at (\d+)@(\d+) "
            r"\(type: (GTC|IOC), symbol: (\w+)(?:, reservePrice: \d+)?\)": self.place,
            r"A client (\w+) moves a price to (\d+) of the order (\d+)": self.move,
            r"A client (\w+) cancels the remaining size (\d+) of the order (\d+)": self.cancel,
            r"An (\w+) order book is:": self.check_book,
            r"No trade events": self.check_no_trades,
            r"The order (\d+) is (partially|fully) matched\. LastPx: (\d+), LastQty: (\d+)": (
                self.check_match
            ),
            r"A client (\w+) orders:": self.check_orders,
            r"A client (\w+) does not have active orders": self.check_no_orders,
            r"A balance of a client (\w+):": self.check_balance,
        }

    def run(self, step: Step) -> None:
        for pattern, rule in self.rules.items():
            found = re.fullmatch(pattern, step.text)
            if found:
                rule(*found.groups(), table=step.table)
                return
        raise AssertionError(f"no rule understands {step.text!r}")

    def new_client(self, name: str, table: Table) -> None:
        self.clients[name] = len(self.clients) + 1
        for asset, units in table:
            self.allot(name, asset, int(units))
        if self.symbol == FUTURES:
            self.allot(name, self.instrument.base_asset, SELLERS_BASE_UNITS)

    def allot(self, name: str, asset: str, units: int) -> None:
        assets = {self.instrument.base_asset: Asset.BASE, self.instrument.quote_asset: Asset.QUOTE}
        if asset not in assets:
            return
        self.transfers += 1
        row = np.zeros((1, COMMAND_WORDS), np.int64)
        row[0, C_VERB] = command_verb(CommandKind.ALLOT_FUNDS, self.clients[name])
        row[0, C_TRANSFER_NUMBER] = self.transfers
        row[0, C_PRICE] = assets[asset]
        row[0, C_AMOUNT] = units
        assert kind_of(self.venue.apply(row)).tolist() == [ExecutionKind.ALLOTTED]

    def send(self, commands: CommandList) -> None:
        self.last = self.venue.apply(commands.columns()[0])
        assert ExecutionKind.REJECTED not in kind_of(self.last)
        self.venue.engine.check()

    def place(self, name: str, side: str, order: str, *rest: str, table: Table) -> None:
        price, lots, force, symbol = rest
        assert symbol == self.symbol
        commands = CommandList(self.clients[name])
        commands.new_order(
            int(order), SIDES[side], int(price), int(lots), time_in_force=FORCES[force]
        )
        self.send(commands)

    def open_orders(self, name: str) -> dict[int, OpenOrder]:
        account = self.clients[name]
        return {order[1]: order for order in self.venue.open_orders() if order[0] == account}

    def move(self, name: str, price: str, order: str, table: Table) -> None:
        *_, leaves = self.open_orders(name)[int(order)]
        commands = CommandList(self.clients[name])
        commands.amend(int(order), int(price), leaves)
        self.send(commands)

    def cancel(self, name: str, lots: str, order: str, table: Table) -> None:
        commands = CommandList(self.clients[name])
        commands.cancel(int(order))
        self.send(commands)
        assert self.last[:, E_QUANTITY].tolist() == [int(lots)]

    def check_book(self, symbol: str, table: Table) -> None:
        assert symbol == self.symbol
        bids, asks = self.venue.depth()
        rows = [["", str(price), str(lots)] for price, lots, _ in reversed(asks)]
        rows += [[str(lots), str(price), ""] for price, lots, _ in bids]
        assert rows == [row for row in table if row != ["bid", "price", "ask"]]

    def check_no_trades(self, table: Table) -> None:
        assert len(fills_of(self.last)) == 0

    def check_match(self, order: str, how: str, *rest: str, table: Table) -> None:
        maker, _, price, lots = fills_of(self.last)[-1].tolist()
        assert (maker, price, lots) == (int(order), int(rest[0]), int(rest[1]))
        resting = any(int(order) in self.open_orders(name) for name in self.clients)
        assert resting == (how == "partially")

    def check_orders(self, name: str, table: Table) -> None:
        header, *rows = table
        expected = set()
        for row in rows:
            cells = dict(zip(header, row, strict=True))
            leaves = int(cells["size"]) - int(cells["filled"])
            side = SIDES[cells["side"]]
            account = self.clients[name]
            expected.add((account, int(cells["id"]), side, int(cells["price"]), leaves))
        assert set(self.open_orders(name).values()) == expected

    def check_no_orders(self, name: str, table: Table) -> None:
        assert self.open_orders(name) == {}

    def check_balance(self, name: str, table: Table) -> None:
        account = self.venue.engine.vault["accounts"][self.clients[name]]
        free = {
            self.instrument.base_asset: str(account[A_FREE_BASE]),
            self.instrument.quote_asset: str(account[A_FREE_QUOTE]),
        }
        assert [[asset, free[asset]] for asset, _ in table] == table


def named_scenarios(path: Path) -> Iterator[str]:
    for line in map(str.strip, read_lines(path)):
        if line.startswith("Scenario"):
            yield line.split(": ", maxsplit=1)[1]


@pytest.mark.parametrize(("name", "symbol"), SCENARIOS)
def test_scenario(recorded_data: Callable[[str], Path], name: str, symbol: str) -> None:
    steps = steps_of(recorded_data(FEATURE), name, symbol)
    assert len(steps) >= 9
    scenario = Scenario(symbol)
    for step in steps:
        scenario.run(step)


def test_every_scenario_is_named(recorded_data: Callable[[str], Path]) -> None:
    assert set(named_scenarios(recorded_data(FEATURE))) == {name for name, _ in SCENARIOS}
