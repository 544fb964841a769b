"""Kernel and twin behind one small face, so that a test can drive and compare both."""

from typing import Protocol

import numpy as np

from engine import vault_layout as vault
from engine.state_machine import Engine
from exchange.book_layout import LEVEL_LOTS, LEVEL_ORDERS
from exchange.enums import Asset, Side
from exchange.instrument import Instrument
from exchange.records import Rows
from tests.reference.engine import ReferenceEngine

Depth = dict[Side, list[tuple[int, int, int]]]
Summary = dict[str, int | list[int] | Depth]
ACCOUNT_COLUMNS = (
    *(vault.A_FREE_BASE, vault.A_HELD_BASE, vault.A_FREE_QUOTE, vault.A_HELD_QUOTE),
    *(vault.A_TAKER_PPM, vault.A_MAKER_PPM, vault.A_FLAGS, vault.A_OPEN_ORDERS),
    *(vault.A_MAX_LOTS, vault.A_MAX_NOTIONAL, vault.A_MAX_ORDERS),
)
SCALARS = {
    "sequence": vault.SEQUENCE,
    "execution_count": vault.EXECUTION_COUNT,
    "order_number": vault.ORDER_NUMBER,
    "resting_count": vault.RESTING_COUNT,
    "transfer_number": vault.TRANSFER_NUMBER,
    "status": vault.PAIR_STATUS,
    "band_low": vault.BAND_LOW,
    "band_high": vault.BAND_HIGH,
    "band_ppm": vault.BAND_PPM,
    "best_bid": vault.BEST_BID,
    "best_ask": vault.BEST_ASK,
    "allotted_base": vault.ALLOTTED_BASE,
    "allotted_quote": vault.ALLOTTED_QUOTE,
    "fees_taken": vault.FEES_TAKEN,
    "last_price": vault.LAST_PRICE,
    "last_lots": vault.LAST_LOTS,
    "last_time_ns": vault.LAST_TIME_NS,
    "trade_count": vault.TRADE_COUNT,
    "day_open": vault.DAY_OPEN,
    "day_high": vault.DAY_HIGH,
    "day_low": vault.DAY_LOW,
    "day_lots": vault.DAY_LOTS,
    "day_quote_units": vault.DAY_QUOTE_UNITS,
}
"""What both sides count under the same name, and where the kernel keeps it."""
TIME_NS = 1_700_000_000_000_000_000


class Driver(Protocol):
    """What a scenario needs of an engine."""

    def apply(self, command: list[int], time_ns: int = TIME_NS) -> list[list[int]]:
        """Apply one command and return its executions."""

    def check(self) -> None:
        """Raise AssertionError when an invariant does not hold."""

    def depth(self) -> Depth:
        """Return (price, lots, orders) of all levels, best first."""

    def funds(self, account: int) -> tuple[int, int, int, int]:
        """Return free and held base, free and held quote units."""

    def fees_taken(self) -> int:
        """Return the quote units taken as fees."""

    def state(self) -> object:
        """Return everything that a refused command must leave as it was, comparable."""

    def summary(self) -> Summary:
        """Return what both engines must agree on between two commands."""


class Twin:
    """The plain twin."""

    def __init__(self, instrument: Instrument) -> None:
        self.engine = ReferenceEngine(instrument)
        self.sequence = 0

    def apply(self, command: list[int], time_ns: int = TIME_NS) -> list[list[int]]:
        """Apply one command and return its executions."""
        self.sequence += 1
        return self.engine.apply(command, self.sequence, time_ns)

    def check(self) -> None:
        """Raise AssertionError when an invariant does not hold."""
        self.engine.check()

    def depth(self) -> Depth:
        """Return (price, lots, orders) of all levels, best first."""
        return self.engine.depth()

    def funds(self, account: int) -> tuple[int, int, int, int]:
        """Return free and held base, free and held quote units."""
        owner = self.engine.accounts()[account]
        base, quote = Asset.BASE, Asset.QUOTE
        return owner.free[base], owner.held[base], owner.free[quote], owner.held[quote]

    def fees_taken(self) -> int:
        """Return the quote units taken as fees."""
        return self.engine.market.fees_taken

    def state(self) -> object:
        """Return everything that a refused command must leave as it was, comparable."""
        market = self.engine.market
        levels = {side: dict(prices) for side, prices in market.book.levels.items()}
        return repr((levels, market.open_accounts, market.freed_slots, self.engine.order_number))

    def summary(self) -> Summary:
        """Return what both engines must agree on between two commands."""
        market = self.engine.market
        counted: dict[str, int] = {name: getattr(market, name, 0) for name in SCALARS}
        counted |= {
            "sequence": self.sequence,
            "execution_count": self.engine.execution_count,
            "order_number": self.engine.order_number,
            "resting_count": len(market.book.orders),
            "transfer_number": self.engine.transfer_number,
            "best_bid": market.book.best(Side.BUY),
            "best_ask": market.book.best(Side.SELL),
            "allotted_base": market.allotted[Asset.BASE],
            "allotted_quote": market.allotted[Asset.QUOTE],
        }
        summary: Summary = {name: int(value) for name, value in counted.items()}
        summary["depth"] = self.depth()
        for number, account in market.open_accounts.items():
            summary[f"account {number}"] = [
                *self.funds(number),
                account.taker_ppm,
                account.maker_ppm,
                vault.ACCOUNT_OPEN | (vault.ACCOUNT_KILLED if account.killed else 0),
                len(account.orders),
                account.largest_lots,
                account.largest_notional,
                account.most_orders,
            ]
        return summary


class Kernel:
    """The compiled kernel."""

    def __init__(self, instrument: Instrument) -> None:
        self.engine = Engine.in_memory(instrument)
        self.capacity = instrument.price_capacity_ticks

    def apply(self, command: list[int], time_ns: int = TIME_NS) -> list[list[int]]:
        """Apply one command and return its executions."""
        return self.apply_all(np.array([command], dtype=np.int64), time_ns)

    def apply_all(self, commands: Rows, time_ns: int) -> list[list[int]]:
        """Apply a batch and return its executions."""
        rows: list[list[int]] = self.engine.apply(commands, time_ns).tolist()
        return rows

    def check(self) -> None:
        """Raise AssertionError when an invariant does not hold."""
        self.engine.check()

    def depth(self) -> Depth:
        """Return (price, lots, orders) of all levels, best first."""
        sides: Depth = {}
        for index, side in enumerate((Side.BUY, Side.SELL)):
            levels = self.engine.book["levels"][index * self.capacity : (index + 1) * self.capacity]
            prices = np.flatnonzero(levels[:, LEVEL_LOTS]).tolist()
            sides[side] = [
                (price, int(levels[price, LEVEL_LOTS]), int(levels[price, LEVEL_ORDERS]))
                for price in (prices[::-1] if side == Side.BUY else prices)
            ]
        return sides

    def funds(self, account: int) -> tuple[int, int, int, int]:
        """Return free and held base, free and held quote units."""
        row = self.engine.vault["accounts"][account]
        columns = (vault.A_FREE_BASE, vault.A_HELD_BASE, vault.A_FREE_QUOTE, vault.A_HELD_QUOTE)
        base, held_base, quote, held_quote = (int(row[column]) for column in columns)
        return base, held_base, quote, held_quote

    def fees_taken(self) -> int:
        """Return the quote units taken as fees."""
        return int(self.engine.vault["scalars"][vault.FEES_TAKEN])

    def state(self) -> object:
        """Return everything that a refused command must leave as it was, comparable."""
        names = ("accounts", "orders", "queues", "client_entries", "client_links", "client_heads")
        arrays = [self.engine.vault[name] for name in names] + [self.engine.book["levels"]]
        return [array.tobytes() for array in arrays]

    def summary(self) -> Summary:
        """Return what both engines must agree on between two commands."""
        scalars = self.engine.vault["scalars"]
        accounts = self.engine.vault["accounts"]
        summary: Summary = {name: int(scalars[word]) for name, word in SCALARS.items()}
        summary["depth"] = self.depth()
        for number in np.flatnonzero(accounts[:, vault.A_FLAGS]).tolist():
            summary[f"account {number}"] = accounts[number, ACCOUNT_COLUMNS].tolist()
        return summary
