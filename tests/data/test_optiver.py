"""A trading competition's log through two kernels: trades, remaining volumes, fees, balances.

The log names every order of two instruments (0 the future, 1 the fund), the competitor's trades
with their fees, and per tick the competitor's account. Everything is in whole cents; a fee is the
exact share of the notional at one price rounded to a cent. Our fees are rounded up to the smallest
unit, so the instruments count millionths of a cent: then every fee is exact and the test rounds it.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from exchange.enums import (
    CommandKind,
    ExecutionKind,
    OrderType,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from exchange.instrument import Instrument
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    COMMAND_WORDS,
    E_FEE,
    E_QUANTITY,
    Rows,
    command_price,
    command_verb,
    kind_of,
    price_of,
)
from holdfast.replay.formats import read_lines, scaled
from tests.data.drivers import Venue

EVENTS = "optiver-rtg/rtgJ_match_events.csv.xz"
ACCOUNTS = "optiver-rtg/rtgJ_score_board.csv.xz"
BACKGROUND, COMPETITOR = 1, 2
FIRST_COMPETITOR_ID = 1 << 40
UNITS_PER_CENT = 1_000_000
TICK_CENTS = 100
SIDES = {"B": Side.BUY, "A": Side.SELL}
SIGNS = {"B": 1, "A": -1}
FORCES = {"G": TimeInForce.GOOD_TILL_CANCELLED, "F": TimeInForce.IMMEDIATE_OR_CANCEL}
FUND = "1"

INSTRUMENT = Instrument(
    pair="FUND-USD",
    base_decimals=0,
    quote_decimals=8,
    tick_quote_units=UNITS_PER_CENT,
    base_units_per_lot=1,
    price_capacity_ticks=1 << 20,
    quantity_limit_lots=1 << 20,
    taker_fee_ppm=200,
    maker_fee_ppm=-100,
    taker_fee_floor_ppm=100,
    order_capacity=1 << 14,
    account_capacity=4,
    client_id_window=1 << 17,
)

Trade = tuple[int, int, int, int]
"""Client order id, lots, price in cents, fee in cents."""


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(read_lines(path))


@dataclass
class Order:
    instrument: str
    account: int
    client_order_id: int
    side: str
    force: TimeInForce
    lots: int


@dataclass
class Log:
    """What the log says happened, and what the kernels said, in the same words."""

    venues: dict[str, Venue]
    orders: dict[tuple[str, str], Order] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    recorded_trades: list[Trade] = field(default_factory=list)
    left: list[tuple[int, int]] = field(default_factory=list)
    recorded_left: list[tuple[int, int]] = field(default_factory=list)
    amended: list[tuple[int, int]] = field(default_factory=list)
    recorded_amended: list[tuple[int, int]] = field(default_factory=list)
    expired: dict[int, int] = field(default_factory=dict)
    fee_units: int = 0
    bought: set[int] = field(default_factory=set)

    def buys(self, client_order_id: int) -> bool:
        return client_order_id in self.bought

    def take(self, row: dict[str, str]) -> None:
        operation, name = row["Operation"], (row["Competitor"], row["OrderId"])
        if operation == "Insert":
            self.insert(row)
        elif operation == "Cancel":
            order = self.orders[name]
            self.recorded_left.append((order.client_order_id, -int(row["Volume"])))
            self.left.append((order.client_order_id, self.cancel(order)))
        elif operation == "Amend":
            self.amend(self.orders[name], int(row["Volume"]))
        elif operation == "Trade":
            order = self.orders[name]
            words = (int(row["Volume"]), int(row["Price"]), int(row["Fee"]))
            self.recorded_trades.append((order.client_order_id, *words))

    def insert(self, row: dict[str, str]) -> None:
        ours = bool(row["Competitor"])
        order = Order(
            instrument=row["Instrument"],
            account=COMPETITOR if ours else BACKGROUND,
            client_order_id=int(row["OrderId"]) + (FIRST_COMPETITOR_ID if ours else 1),
            side=row["Side"],
            force=FORCES[row["Lifespan"]],
            lots=int(row["Volume"]),
        )
        self.orders[row["Competitor"], row["OrderId"]] = order
        if ours and order.side == "B":
            self.bought.add(order.client_order_id)
        verb = command_verb(
            CommandKind.NEW_ORDER,
            order.account,
            SIDES[order.side],
            OrderType.LIMIT,
            order.force,
        )
        price = command_price(int(row["Price"]), SelfTradePrevention.NONE)
        executions = self.apply(order, verb, price, order.lots)
        kinds = kind_of(executions)
        if ours:
            self.take_trades(order, executions[kinds == ExecutionKind.TRADE])
        for row_ in executions[kinds == ExecutionKind.EXPIRED]:
            self.expired[order.client_order_id] = int(row_[E_QUANTITY])

    def take_trades(self, order: Order, trades: Rows) -> None:
        """Add the trades of one order; the log has one line a price, whoever the makers were."""
        lots: Counter[int] = Counter()
        units: Counter[int] = Counter()
        for price, row in zip(price_of(trades).tolist(), trades.tolist(), strict=True):
            lots[price] += row[E_QUANTITY]
            units[price] += row[E_FEE]
        for price in lots:
            fee = rounded(units[price])
            self.trades.append((order.client_order_id, lots[price], price, fee))
        self.fee_units += units.total()

    def cancel(self, order: Order) -> int:
        """Return the lots the order had left; an immediate order's remainder expired already."""
        if order.force == TimeInForce.IMMEDIATE_OR_CANCEL:
            return self.expired[order.client_order_id]
        verb = command_verb(CommandKind.CANCEL_ORDER, order.account)
        executions = self.apply(order, verb, 0, 0)
        assert kind_of(executions).tolist() == [ExecutionKind.CANCELLED], order
        return int(executions[0, E_QUANTITY])

    def amend(self, order: Order, change_lots: int) -> None:
        """Amend to the recorded size: the log gives the reduction, we name the whole quantity."""
        order.lots += change_lots
        verb = command_verb(CommandKind.AMEND_ORDER, order.account)
        executions = self.apply(order, verb, 0, order.lots)
        assert kind_of(executions).tolist() == [ExecutionKind.AMENDED], order
        self.recorded_amended.append((order.client_order_id, order.lots))
        self.amended.append((order.client_order_id, int(executions[0, E_QUANTITY])))

    def apply(self, order: Order, verb: int, price: int, lots: int) -> Rows:
        command = np.zeros((1, COMMAND_WORDS), np.int64)
        command[0, C_VERB] = verb
        command[0, C_CLIENT_ORDER_ID] = order.client_order_id
        command[0, C_PRICE] = price
        command[0, C_QUANTITY] = lots
        return self.venues[order.instrument].apply(command)


def rounded(units: int) -> int:
    """Return the nearest number of cents, of two equally near ones the even one, as the log has."""
    cents, rest = divmod(units, UNITS_PER_CENT)
    half = UNITS_PER_CENT // 2
    return cents + (rest > half or (rest == half and cents % 2 == 1))


@dataclass(frozen=True)
class AccountRow:
    buy_lots: int
    sell_lots: int
    fund_position: int
    future_position: int
    fees_cents: int
    balance_cents: int
    profit_cents: int


@dataclass
class Replay:
    log: Log
    accounts: list[AccountRow] = field(default_factory=list)
    recorded_accounts: list[AccountRow] = field(default_factory=list)


def fund_account(log: Log, start: list[int]) -> tuple[int, int]:
    """Return the fund position, and the quote units gained since the start, fees included."""
    account = log.venues[FUND].engine.vault["accounts"][COMPETITOR].tolist()
    base, quote = (account[0] + account[1], account[2] + account[3])
    return base - start[0], quote - start[1]


class Hedges:
    """The future position of the competitor; it trades at the recorded price, without fees."""

    def __init__(self) -> None:
        self.position = 0
        self.cents = 0

    def take(self, row: dict[str, str]) -> None:
        lots = SIGNS[row["Side"]] * int(row["Volume"])
        self.position += lots
        self.cents -= lots * int(row["Price"])


def profit(row: dict[str, str], balance: int, fund: int, future: int) -> int:
    """Return balance and positions at the tick's prices, the fund's held near the future's."""
    future_price = int(row["FuturePrice"] or 0)
    half_width = 2 * future_price // 1000 // TICK_CENTS * TICK_CENTS
    low, high = future_price - half_width, future_price + half_width
    fund_price = min(max(int(row["EtfPrice"] or 0), low), high)
    return balance + future * future_price + fund * fund_price


def account_row(
    log: Log, hedges: Hedges, account: tuple[int, int], tick: dict[str, str]
) -> AccountRow:
    """Return the row of a tick; `account` is what `fund_account` returns."""
    position, gained = account
    fees = sum(fee for *_, fee in log.trades)
    assert (gained + log.fee_units) % UNITS_PER_CENT == 0
    balance = (gained + log.fee_units) // UNITS_PER_CENT - fees + hedges.cents
    buys = sum(lots for order, lots, *_ in log.trades if log.buys(order))
    sells = sum(lots for order, lots, *_ in log.trades if not log.buys(order))
    worth = profit(tick, balance, position, hedges.position)
    return AccountRow(buys, sells, position, hedges.position, fees, balance, worth)


@pytest.fixture(scope="module")
def replay(recorded_data: Callable[[str], Path]) -> Replay:
    venues = {instrument: Venue(INSTRUMENT, 2) for instrument in ("0", FUND)}
    log, hedges = Log(venues), Hedges()
    result = Replay(log)
    account = venues[FUND].engine.vault["accounts"][COMPETITOR].tolist()
    start = [account[0], account[2]]
    events = rows_of(recorded_data(EVENTS))
    event = next(events, None)
    for row in rows_of(recorded_data(ACCOUNTS)):
        # A tick shows the account as it was before the orders of the same moment.
        while event is not None and scaled(event["Time"], 6) < scaled(row["Time"], 6):
            hedges.take(event) if event["Operation"] == "Hedge" else log.take(event)
            event = next(events, None)
        result.accounts.append(account_row(log, hedges, fund_account(log, start), row))
        words = ("BuyVolume", "SellVolume", "EtfPosition", "FuturePosition", "TotalFees")
        recorded = [int(row[word]) for word in (*words, "AccountBalance", "ProfitOrLoss")]
        result.recorded_accounts.append(AccountRow(*recorded))
    while event is not None:
        hedges.take(event) if event["Operation"] == "Hedge" else log.take(event)
        event = next(events, None)
    for venue in venues.values():
        venue.engine.check()
    return result


def test_every_trade_with_its_fee(replay: Replay) -> None:
    log = replay.log
    equal = sum(a == b for a, b in zip(log.trades, log.recorded_trades, strict=True))
    print(f"{equal} of {len(log.recorded_trades)} trades with their fees")
    assert len(log.recorded_trades) == 332
    assert log.trades == log.recorded_trades


def test_every_remaining_volume(replay: Replay) -> None:
    log = replay.log
    print(f"{len(log.recorded_left):,} remaining volumes, {len(log.recorded_amended)} amends")
    assert len(log.recorded_left) == 26_404
    assert log.left == log.recorded_left
    assert len(log.recorded_amended) == 16
    assert log.amended == log.recorded_amended


def test_every_account_row(replay: Replay) -> None:
    print(f"{len(replay.recorded_accounts)} account rows")
    assert len(replay.recorded_accounts) == 316
    assert replay.accounts == replay.recorded_accounts
