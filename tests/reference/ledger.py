"""The plain twin of the books: dictionaries and loops, nothing shared with ledgerd's arithmetic.

It knows accounts by a tuple (owner, purpose, asset, pair), all amounts as Python integers, and one
execution at a time. Invariants after every step: each asset sums to zero; nothing but custody is
below zero.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from exchange.enums import Asset, CommandKind, ExecutionKind, Reason, Side
from exchange.instrument import Instrument

Key = tuple[int, str, str, str]
"""Owner (0: the exchange), purpose, asset, pair."""


class Short(Exception):
    """A movement that would take what is not there."""


@dataclass
class Held:
    """A pending transfer of the twin."""

    source: Key
    hold: Key
    target: Key
    amount: int
    open: bool = True


@dataclass
class Told:
    """An instruction for an engine."""

    allot: bool
    owner: int
    asset: str
    amount: int
    open: bool = True


@dataclass
class Books:
    """The whole books of the twin."""

    balances: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    counts: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    told: dict[tuple[str, int], Told] = field(default_factory=dict)

    def move(self, *legs: tuple[Key, int]) -> None:
        """Do one transfer, wholly or not at all."""
        after = dict(self.balances)
        for key, amount in legs:
            if amount == 0:
                continue
            after[key] = after.get(key, 0) + amount
            low, high = (-(1 << 62), 0) if key[1] == "custody" else (0, 1 << 62)
            if not low <= after[key] <= high:
                raise Short(f"{key} would be {after[key]}")
        for key, amount in legs:
            if amount:
                self.balances[key] += amount
                self.counts[key] += 1
        self.check()

    def check(self) -> None:
        """Assert what must hold at every moment."""
        sums: dict[str, int] = defaultdict(int)
        for (_, purpose, asset, _), amount in self.balances.items():
            sums[asset] += amount
            assert amount >= 0 or purpose == "custody", (purpose, asset, amount)
        assert not any(sums.values()), dict(sums)

    def deposit(self, owner: int, asset: str, amount: int) -> None:
        """Credit a trader's trading account from custody."""
        self.move(((0, "custody", asset, ""), -amount), ((owner, "trading", asset, ""), amount))

    def hold(self, source: Key, target: Key, amount: int) -> Held:
        """Set money aside."""
        waiting = (source[0], "suspense", source[2], "")
        self.move((source, -amount), (waiting, amount))
        return Held(source, waiting, target, amount)

    def resolve(self, held: Held, forward: int) -> None:
        """Post a part of what was set aside; the rest returns."""
        assert held.open
        back = held.amount - forward
        self.move((held.hold, -held.amount), (held.target, forward), (held.source, back))
        held.open = False

    def allot(self, pair: str, number: int, owner: int, asset: str, amount: int) -> None:
        """Send money on its way to an engine."""
        self.move(
            ((owner, "trading", asset, ""), -amount), ((owner, "suspense", asset, pair), amount)
        )
        self.told[pair, number] = Told(True, owner, asset, amount)

    def recall(self, pair: str, number: int, owner: int, asset: str, amount: int) -> None:
        """Ask an engine for money."""
        self.told[pair, number] = Told(False, owner, asset, amount)

    def settle(self, pair: Instrument, rows: npt.NDArray[np.int64]) -> None:
        """Do what executions say, one at a time."""
        for row in rows.tolist():
            kind = ExecutionKind(row[2] & 0xFF)
            if kind == ExecutionKind.TRADE:
                self._trade(pair, row)
            elif kind in {ExecutionKind.ALLOTTED, ExecutionKind.RELEASED}:
                self._moved(pair, row, kind == ExecutionKind.ALLOTTED)
            elif kind == ExecutionKind.REJECTED:
                self._refused(pair, row)

    def _trade(self, pair: Instrument, row: list[int]) -> None:
        taker, maker = row[2] >> 32, row[13] >> 32
        lots, price = row[6], row[5] & 0xFFFFFFFF
        worth = price * lots * pair.quote_units_per_tick_lot
        coins = lots * pair.base_units_per_lot
        buyer_is_taker = (row[2] >> 16) & 0xFF == Side.BUY
        sign = 1 if buyer_is_taker else -1
        base, quote, name = pair.base_asset, pair.quote_asset, pair.pair
        fees = (0, "fees", quote, name)
        self.move(
            ((taker, "allotted", base, name), sign * coins),
            ((maker, "allotted", base, name), -sign * coins),
            ((taker, "allotted", quote, name), -sign * worth - row[9]),
            ((maker, "allotted", quote, name), sign * worth - row[15]),
            (fees, row[9]),
            (fees, row[15]),
        )

    def _moved(self, pair: Instrument, row: list[int], allot: bool) -> None:
        told = self.told[pair.pair, row[4]]
        assert told.open
        assert told.allot == allot
        assert (told.owner, told.amount) == (row[2] >> 32, row[6])
        told.open = False
        keeping = (told.owner, "allotted", told.asset, pair.pair)
        flight = (told.owner, "suspense", told.asset, pair.pair)
        trading = (told.owner, "trading", told.asset, "")
        source, target = (flight, keeping) if allot else (keeping, trading)
        self.move((source, -told.amount), (target, told.amount))
        assert self.balances[keeping] == row[7] + row[8]

    def _refused(self, pair: Instrument, row: list[int]) -> None:
        if row[9] not in {CommandKind.ALLOT_FUNDS, CommandKind.RELEASE_FUNDS}:
            return
        reason = (row[2] >> 8) & 0xFF
        if reason not in {Reason.BALANCE_OVERFLOW, Reason.INSUFFICIENT_FUNDS}:
            return
        told = self.told[pair.pair, row[4]]
        assert told.open
        asset = pair.base_asset if row[5] == Asset.BASE else pair.quote_asset
        assert (told.owner, told.asset, told.amount) == (row[2] >> 32, asset, row[6])
        told.open = False
        if told.allot:
            flight = (told.owner, "suspense", told.asset, pair.pair)
            self.move(
                (flight, -told.amount), ((told.owner, "trading", told.asset, ""), told.amount)
            )
