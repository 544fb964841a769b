"""Streams of commands for the comparison of kernel and twin, drawn from small universes.

Few prices, few accounts, small quantities and small capacities, so that orders meet, ids repeat
and everything runs full; now and then a number at the edge of what a word holds. One writer of
commands (`Author`) serves Hypothesis, which can shrink what it finds, and a seeded generator,
which is fast: both only have to answer `number(low, high)`.

The author watches the twin to know which orders exist and what accounts own, and now and then aims
at what just fits or just does not. It knows no rule: whether a command is accepted is never its
business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from exchange import records
from exchange.enums import Asset, CommandKind, ExecutionKind, Reason, Side
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from tests.reference.drivers import Twin

Item = TypeVar("Item")
START_NS = 1_700_000_000_000_000_000
ASSETS = frozenset({Asset.BASE, Asset.QUOTE})
HOUR_NS = 3600 * 1_000_000_000
ABOUT_ORDERS = (
    *(ExecutionKind.TRADE, ExecutionKind.PREVENTED),
    *(ExecutionKind.CANCELLED, ExecutionKind.EXPIRED),
)
WORD_EDGES = (
    *(0, 1, -1, 2, -(1 << 63), (1 << 63) - 1, AMOUNT_LIMIT_UNITS, AMOUNT_LIMIT_UNITS + 1),
    *(1 << 24, 1 << 31, 1 << 32, (1 << 32) - 1, 1 << 40, 1 << 62, -(1 << 32)),
)


class Dice(Protocol):
    """The only source of chance of a stream."""

    def number(self, low: int, high: int) -> int:
        """Return a number from low to high, both included."""


class SeededDice:
    """Chance from a seed: the same seed, the same stream, on every machine."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self.pool: list[int] = []

    def number(self, low: int, high: int) -> int:
        """Return a number from low to high, both included."""
        if not self.pool:
            self.pool = self.generator.integers(0, 1 << 62, 1 << 16, dtype=np.int64).tolist()
        return low + self.pool.pop() % (high - low + 1)


def among(dice: Dice, items: Sequence[Item]) -> Item:
    """Return one of the items."""
    return items[dice.number(0, len(items) - 1)]


@dataclass(frozen=True)
class Universe:
    """A pair, and the numbers its traders use."""

    instrument: Instrument
    lowest: int
    highest: int
    """Prices orders are usually given at."""
    lots: int
    """Largest usual quantity."""
    amount: int
    """Largest usual allotment and order amount, in quote units."""
    accounts: int
    """Account numbers in use are 1 to this."""
    patience: int = 3
    """One new order in so many is priced anywhere; the others wait on their side."""


def small_pair(**changes: int) -> Instrument:
    """Return a pair with small capacities."""
    values = {
        "base_decimals": 0,
        "quote_decimals": 0,
        "tick_quote_units": 1,
        "base_units_per_lot": 1,
        "price_capacity_ticks": 64,
        "quantity_limit_lots": 40,
        "taker_fee_ppm": 0,
        "order_capacity": 6,
        "account_capacity": 6,
        "client_id_window": 16,
        "event_capacity": 64,
        "depth_level_count": 3,
        "depth_copy_count": 2,
    }
    return Instrument(**(values | changes)).validate()  # type: ignore[arg-type]


UNIVERSES = {
    "plain": Universe(small_pair(), 28, 34, 12, 9_000, 3),
    "full": Universe(small_pair(order_capacity=2, client_id_window=4), 30, 33, 5, 5_000, 3),
    "fees": Universe(
        small_pair(
            tick_quote_units=7,
            base_units_per_lot=3,
            taker_fee_ppm=1_000,
            maker_fee_ppm=-500,
            taker_fee_floor_ppm=500,
            minimum_notional_units=630,
        ),
        *(28, 34, 12, 50_000, 3),
    ),
    "dear": Universe(
        small_pair(taker_fee_ppm=100_000, maker_fee_ppm=100_000, taker_fee_floor_ppm=100_000),
        *(28, 34, 12, 9_000, 3),
    ),
    "band": Universe(small_pair(price_band_ppm=150_000), 26, 36, 8, 9_000, 3),
    "edges": Universe(small_pair(price_band_ppm=1_000_000), 1, 63, 40, 5_000, 4),
    "huge": Universe(
        small_pair(
            price_capacity_ticks=1 << 12,
            quantity_limit_lots=1 << 40,
            tick_quote_units=1 << 8,
            taker_fee_ppm=99_999,
            maker_fee_ppm=-77_777,
            taker_fee_floor_ppm=77_777,
        ),
        *(4_080, 4_095, 1 << 40, 1 << 60, 3),
    ),
    "wide": Universe(
        small_pair(
            price_capacity_ticks=1 << 14,
            quantity_limit_lots=1_000,
            order_capacity=700,
            account_capacity=40,
            client_id_window=2_048,
            taker_fee_ppm=700,
            maker_fee_ppm=-100,
            taker_fee_floor_ppm=200,
        ),
        *(8_000, 8_400, 50, 10_000_000_000, 30, 24),
    ),
}


@dataclass(frozen=True, slots=True)
class Issued:
    """An order that was accepted, alive or not."""

    account: int
    order_id: int
    client_order_id: int
    side: int


@dataclass
class Author:
    """Writes one command after the other."""

    dice: Dice
    universe: Universe
    twin: Twin
    issued: list[Issued] = field(default_factory=list)
    alive: dict[int, Issued] = field(default_factory=dict)
    remedies: list[tuple[int, list[int]]] = field(default_factory=list)
    """Commands that let trading go on again, and how many commands to wait with each."""
    sent: list[list[int]] = field(default_factory=list)
    transfer_number: int = 0
    next_client_order_id: int = 1
    time_ns: int = START_NS

    def watch(self, rows: list[list[int]]) -> None:
        """Learn from executions which orders exist and which transfer number is next."""
        for row in rows:
            kind = row[records.E_VERB] & 0xFF
            account = row[records.E_VERB] >> 32
            order_id = row[records.E_ORDER_ID]
            if kind == ExecutionKind.ACCEPTED:
                side = row[records.E_VERB] >> 16 & 0xFF
                order = Issued(account, order_id, row[records.E_CLIENT_ORDER_ID], side)
                self.issued.append(order)
                self.alive[order_id] = order
            elif kind in ABOUT_ORDERS:
                if row[records.E_LEAVES] == 0:
                    self.alive.pop(order_id, None)
                if row[records.E_MAKER_LEAVES] == 0:
                    self.alive.pop(row[records.E_MAKER_ORDER_ID], None)
            elif kind in {ExecutionKind.ALLOTTED, ExecutionKind.RELEASED}:
                self.transfer_number = row[records.E_TRANSFER_NUMBER]
            elif row[records.E_VERB] >> 8 & 0xFF == Reason.TRANSFER_REPEATED:
                self.transfer_number += 1

    def opening(self) -> list[list[int]]:
        """Return commands that give every account funds."""
        commands = []
        for account in range(1, self.universe.accounts + 1):
            for asset in (Asset.BASE, Asset.QUOTE):
                self.transfer_number += 1
                amount = self.amount(asset)
                commands.append(self.funds(CommandKind.ALLOT_FUNDS, account, asset, amount))
        return commands

    def pass_time(self) -> int:
        """Return the time of the next batch: usually a little later, seldom the next day."""
        jump = self.dice.number(0, 99)
        self.time_ns += 30 * HOUR_NS if jump == 0 else jump * 1_000
        return self.time_ns

    def command(self) -> list[int]:
        """Return the next command."""
        if self.remedies:
            wait, remedy = self.remedies.pop(0)
            if wait == 0:
                return remedy
            self.remedies.append((wait - 1, remedy))
        throw = self.dice.number(0, 100)
        write = next(writer for limit, writer in WRITERS if throw < limit)
        command = write(self)
        if self.dice.number(0, 39) == 39:
            command = self.spoilt(command)
        command = [signed(word) for word in command]
        if command[0] & 0xFF == CommandKind.NEW_ORDER:
            self.sent.append(command)
        return command

    # Numbers.

    def account(self) -> int:
        """Return an account number, now and then one that is not open or not valid."""
        if self.dice.number(0, 49) == 49:
            capacity = self.universe.instrument.account_capacity
            return among(
                self.dice, (0, -1, self.universe.accounts + 1, capacity - 1, capacity, 1 << 24)
            )
        return self.dice.number(1, self.universe.accounts)

    def price(self) -> int:
        """Return a price, now and then at or beyond the edge."""
        if self.dice.number(0, 39) == 39:
            capacity = self.universe.instrument.price_capacity_ticks
            return among(self.dice, (0, 1, capacity - 1, capacity, (1 << 32) - 1))
        return self.dice.number(self.universe.lowest, self.universe.highest)

    def usual_price(self, side: int) -> int:
        """Return a price that mostly leaves a book behind: buyers low, sellers high."""
        middle = (self.universe.lowest + self.universe.highest) // 2
        if self.dice.number(1, self.universe.patience) == 1:
            return self.price()
        if side == Side.BUY:
            return self.dice.number(self.universe.lowest, middle)
        return self.dice.number(middle, self.universe.highest)

    def lots(self) -> int:
        """Return a quantity, now and then at or beyond the limit."""
        if self.dice.number(0, 39) == 39:
            limit = self.universe.instrument.quantity_limit_lots
            return among(self.dice, (0, -1, limit, limit + 1))
        return self.dice.number(1, self.universe.lots)

    def amount(self, asset: Asset = Asset.QUOTE) -> int:
        """Return an amount of units: plenty, or only enough for an order or two."""
        pair, lots = self.universe.instrument, self.universe.lots
        poor = self.dice.number(0, 3) == 0
        if asset == Asset.BASE:
            most = (2 if poor else 60) * lots * pair.base_units_per_lot
            return self.dice.number(1, min(most, 1 << 59))
        enough = 2 * lots * self.universe.highest * pair.quote_units_per_tick_lot
        return self.dice.number(1, min(enough, 1 << 60) if poor else self.universe.amount)

    def free(self, account: int, asset: int) -> int:
        """Return what an account has free, nothing for one that is not open."""
        if account not in self.twin.engine.accounts():
            return 0
        return self.twin.funds(account)[0 if asset == Asset.BASE else 2]

    def fitting(self, account: int, side: int, price: int) -> int:
        """Return a quantity: usual, or about the largest that the account can pay."""
        if self.dice.number(0, 9) < 9:
            return self.lots()
        pair = self.universe.instrument
        if side == Side.SELL:
            most = self.free(account, Asset.BASE) // pair.base_units_per_lot
        else:
            most = self.free(account, Asset.QUOTE) // (pair.quote_units_per_tick_lot * price or 1)
        return most + self.dice.number(-1, 1)

    def worth(self, account: int) -> int:
        """Return the amount of an order by amount: usual, all there is, or at the edge."""
        throw = self.dice.number(0, 29)
        if throw == 29:
            return among(self.dice, (0, -1, AMOUNT_LIMIT_UNITS, AMOUNT_LIMIT_UNITS + 1))
        if throw > 25:
            return self.free(account, Asset.QUOTE) + self.dice.number(-1, 1)
        pair = self.universe.instrument
        worth = self.universe.lots * self.universe.highest * pair.quote_units_per_tick_lot
        return self.dice.number(1, worth)

    # Orders.

    def new_order(self) -> list[int]:
        """Write a new order: mostly a resting limit order."""
        order_type, tif = among(
            self.dice,
            ((1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 2), (1, 3), (2, 2), (3, 2)),
        )
        client_order_id = self.next_client_order_id
        self.next_client_order_id += 1
        post_only = tif == 1 and self.dice.number(0, 7) == 7
        account, side = self.account(), self.dice.number(1, 2)
        price = self.usual_price(side)
        fits = self.worth(account) if order_type == 3 else self.fitting(account, side, price)
        return [
            records.command_verb(CommandKind.NEW_ORDER, account, side, order_type, tif),
            client_order_id,
            0,
            records.command_price(
                price,
                among(self.dice, (1, 1, 1, 2, 3, 4, 5, 5)),
                records.COMMAND_FLAG_POST_ONLY if post_only else 0,
            ),
            fits,
            self.source(),
            0,
            0,
        ]

    def retry(self) -> list[int]:
        """Send an earlier new order again, now and then with one word changed."""
        if not self.sent:
            return self.new_order()
        command = list(among(self.dice, self.sent[-40:]))
        command[records.C_SOURCE] = self.source()
        if self.dice.number(0, 3) == 3:
            word = among(self.dice, (records.C_PRICE, records.C_QUANTITY, records.C_VERB))
            change = among(self.dice, (1, -1, 1 << 8, 1 << 16, 1 << 32, 1 << 40, 1 << 48))
            command[word] += change
        return command

    def naming(self, account: int) -> Issued:
        """Return an earlier order, named by its client order id (then without order id) or id."""
        if not self.issued or self.dice.number(0, 29) == 29:
            return Issued(
                account, self.dice.number(0, 3) << 24 | 1, self.dice.number(-1, 5), Side.BUY
            )
        dead_too = not self.alive or self.dice.number(0, 4) == 0
        order = among(self.dice, self.issued[-24:] if dead_too else list(self.alive.values()))
        if self.dice.number(0, 9) < 9:
            account = order.account
        by_client_id = self.dice.number(0, 1)
        order_id = 0 if by_client_id else order.order_id
        return Issued(account, order_id, order.client_order_id, order.side)

    def cancel(self) -> list[int]:
        """Cancel some order."""
        order = self.naming(self.account())
        flags = among(self.dice, (0, 0, records.COMMAND_FLAG_DISCONNECTED))
        verb = records.command_verb(CommandKind.CANCEL_ORDER, order.account)
        price = records.command_price(0, 0, flags)
        return [
            *(verb, order.client_order_id, order.order_id, price),
            *(0, self.source(), 0, 0),
        ]

    def amend(self) -> list[int]:
        """Amend some order."""
        order = self.naming(self.account())
        verb = records.command_verb(CommandKind.AMEND_ORDER, order.account)
        price = 0 if self.dice.number(0, 2) == 0 else self.usual_price(order.side)
        flags = among(self.dice, (0, records.COMMAND_FLAG_LEAVES))
        lots = self.fitting(order.account, order.side, price)
        resting = self.twin.engine.market.book.orders.get(order.order_id)
        if resting and self.dice.number(0, 4) == 0:
            lots = resting.leaves + self.fitting(order.account, order.side, price or resting.price)
        word = records.command_price(price, 0, flags)
        return [
            *(verb, order.client_order_id, order.order_id, word),
            *(lots, self.source(), 0, 0),
        ]

    def cancel_all(self) -> list[int]:
        """Cancel all orders of an account."""
        side = among(self.dice, (0, 1, 2, 0, 3))
        verb = records.command_verb(CommandKind.CANCEL_ALL, self.account(), side)
        flags = among(self.dice, (0, records.COMMAND_FLAG_DISCONNECTED))
        return [verb, 0, 0, records.command_price(0, 0, flags), 0, self.source(), 0, 0]

    def digest(self) -> list[int]:
        """Ask for the digest of all accounts; the account named must not matter."""
        kind = CommandKind.DIGEST_ACCOUNTS
        return [records.command_verb(kind, self.account()), 0, 0, 0, 0, self.source(), 0, 0]

    # Funds and settings.

    def funds(self, kind: CommandKind, account: int, asset: int, amount: int) -> list[int]:
        """Write an allotment or a release with the present transfer number."""
        verb = records.command_verb(kind, account)
        return [verb, self.transfer_number, 0, asset, amount, self.source(), 0, 0]

    def move_funds(self) -> list[int]:
        """Allot or release, now and then with a gap, a repetition or an impossible amount."""
        kind = among(self.dice, (CommandKind.ALLOT_FUNDS, CommandKind.RELEASE_FUNDS))
        asset = among(self.dice, (1, 2, 1, 2, 1, 2, 0, 3))
        account, release = self.account(), kind == CommandKind.RELEASE_FUNDS
        amount = self.amount(Asset.BASE if asset == 1 else Asset.QUOTE)
        throw = self.dice.number(0, 9)
        if throw == 9:
            amount = among(self.dice, (0, -1, AMOUNT_LIMIT_UNITS, AMOUNT_LIMIT_UNITS + 1))
        elif throw == 8 and asset in ASSETS and (release or self.dice.number(0, 7) == 0):
            amount = self.rest(kind, account, asset) + self.dice.number(-1, 1)
        command = self.funds(kind, account, asset, amount)
        command[records.C_TRANSFER_NUMBER] += among(self.dice, (1, 1, 1, 1, 2, 0, -1, 3))
        return command

    def rest(self, kind: CommandKind, account: int, asset: int) -> int:
        """Return the most that can be allotted, or released, or leaves enough for one lot."""
        if kind == CommandKind.ALLOT_FUNDS:
            return AMOUNT_LIMIT_UNITS - self.twin.engine.market.allotted[Asset(asset)]
        pair = self.universe.instrument
        worth = self.usual_price(Side.SELL) * pair.quote_units_per_tick_lot
        lot = pair.base_units_per_lot if asset == Asset.BASE else worth
        return self.free(account, asset) - among(self.dice, (0, lot, 2 * lot))

    def setting(self) -> list[int]:
        """Write a SET command, and its remedy for later."""
        kind = among(
            self.dice,
            (
                *(CommandKind.SET_FEES, CommandKind.SET_FEES, CommandKind.SET_LIMITS),
                *(CommandKind.SET_KILL_SWITCH, CommandKind.SET_PAIR_STATUS),
                CommandKind.SET_PRICE_BAND,
            ),
        )
        command = [records.command_verb(kind, self.account()), 0, 0, 0, 0, self.source(), 0, 0]
        remedy = list(command)
        universe, dice = self.universe, self.dice
        if kind == CommandKind.SET_FEES:
            command[6] = among(dice, (0, 1, 500, 1_000, 77_777, 100_000, 100_001, -1))
            command[7] = among(dice, (0, 1, -1, -200, -500, 999, -77_777, 100_000, -100_001))
        elif kind == CommandKind.SET_LIMITS:
            worth = self.lots() * self.price() * universe.instrument.quote_units_per_tick_lot
            command[4] = among(dice, (0, 0, 1, self.lots(), universe.lots, -1))
            command[6] = among(dice, (0, 0, 1, worth, -1))
            command[7] = among(dice, (0, 0, 1, 3, -1))
        elif kind == CommandKind.SET_KILL_SWITCH:
            command[6] = among(dice, (0, 0, 0, 1, 2, -1))
        elif kind == CommandKind.SET_PAIR_STATUS:
            command[6] = among(dice, (1, 1, 1, 1, 2, 3, 0, 4))
        else:
            capacity = universe.instrument.price_capacity_ticks
            low = (1, 1, universe.lowest, universe.highest, universe.highest + 1, 0)
            command[6] = among(dice, low)
            command[7] = among(dice, (capacity - 1, capacity - 1, universe.highest, capacity))
            command[4] = among(dice, (0, 0, 1, 100_000, 1_000_000, 1_000_001, -1))
            remedy[6], remedy[7] = 1, capacity - 1
            remedy[4] = universe.instrument.price_band_ppm
        if kind == CommandKind.SET_PAIR_STATUS:
            remedy[6] = 1
        if kind != CommandKind.SET_FEES:
            self.remedies.append((dice.number(1, 8), remedy))
        return command

    def source(self) -> int:
        """Return where a command came from."""
        return records.source(self.dice.number(0, records.RING_CAPACITY - 1), len(self.sent))

    def spoilt(self, command: list[int]) -> list[int]:
        """Return the command with one thing in it that means nothing."""
        spoilt = list(command)
        way = self.dice.number(0, 3)
        if way == 0:
            shift = among(self.dice, (0, 8, 16, 24))
            spoilt[0] &= ~(0xFF << shift)
            spoilt[0] |= among(self.dice, (0, 3, 4, 5, 12, 13, 255)) << shift
        elif way == 1:
            spoilt[3] = spoilt[3] & ~(0xFF << 32) | among(self.dice, (0, 6, 255)) << 32
        elif way == 2:
            spoilt[3] ^= self.dice.number(0, (1 << 24) - 1) << 40
        else:
            spoilt[among(self.dice, (1, 2, 3, 4, 6, 7))] = among(self.dice, WORD_EDGES)
        return spoilt


def signed(word: int) -> int:
    """Return 64 bits as the signed number an int64 holds."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


WRITERS = (
    (55, Author.new_order),
    (71, Author.amend),
    (81, Author.cancel),
    (87, Author.retry),
    (94, Author.move_funds),
    (99, Author.setting),
    (100, Author.cancel_all),
    (101, Author.digest),
)
