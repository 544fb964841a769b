"""The two engines a scenario is run through, behind one small face."""

from typing import Protocol

import numpy as np

from engine import vault_layout as vault
from engine.core import Engine
from exchange.book_layout import LEVEL_LOTS, LEVEL_ORDERS
from exchange.enums import Asset, Side
from exchange.instrument import Instrument
from tests.reference.engine import ReferenceEngine

Depth = dict[Side, list[tuple[int, int, int]]]
TIME_NS = 1_700_000_000_000_000_000


class Driver(Protocol):
    """What a scenario needs of an engine."""

    def apply(self, command: list[int]) -> list[list[int]]:
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


class Twin:
    """The plain twin."""

    def __init__(self, instrument: Instrument) -> None:
        self.engine = ReferenceEngine(instrument)
        self.sequence = 0

    def apply(self, command: list[int]) -> list[list[int]]:
        """Apply one command and return its executions."""
        self.sequence += 1
        return self.engine.apply(command, self.sequence, TIME_NS)

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


class Kernel:
    """The compiled kernel."""

    def __init__(self, instrument: Instrument) -> None:
        self.engine = Engine.in_memory(instrument)
        self.capacity = instrument.price_capacity_ticks

    def apply(self, command: list[int]) -> list[list[int]]:
        """Apply one command and return its executions."""
        rows: list[list[int]] = self.engine.apply(
            np.array([command], dtype=np.int64), TIME_NS
        ).tolist()
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
