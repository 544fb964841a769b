"""Bitstamp's order events (BTC/USD, order by order) as commands.

    id, timestamp ms, exchange timestamp ms, price, volume remaining, action, direction

with the trades, naming both orders, in a file beside it. `created` becomes a limit order and
`deleted` with something left a cancel; `changed` and `deleted` with nothing left are what fills do,
which the receiver's own matching brings about.

The events do not say who asked for post-only. An order that crossed and was deleted untouched a
moment later must have been one, so every order the trades do not name as taker is sent so. A
taker without a price on the grid (0, or 999999999) is a market order. Two more things only the
trades tell: the size of a taker whose event came too late to carry it, and that a resting order
was not there any more although its deletion was never sent: such a ghost is cancelled just before
the first taker that is recorded to have passed it by.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from exchange.enums import OrderType, Side, TimeInForce
from exchange.instrument import Instrument
from exchange.records import COMMAND_FLAG_POST_ONLY
from holdfast.replay.formats import (
    CommandList,
    Recording,
    RecordingError,
    fill_rows,
    read_lines,
    scaled,
)

LOT_DECIMALS: Final = 8
PRICE_CAPACITY_TICKS: Final = 1 << 20
"""Whole dollars; the few resting orders below one and far above the market are left out."""
QUANTITY_LIMIT_LOTS: Final = 1 << 40
ORDER_HEADER: Final = "id,timestamp,exchange_timestamp,price,volume,action,direction"
TRADE_HEADER: Final = (
    "trade_id,timestamp,exchange_timestamp,price,amount,buy_order_id,sell_order_id,side"
)
SIDES: Final = {"bid": Side.BUY, "ask": Side.SELL}
NS_PER_MS: Final = 1_000_000


@dataclass(slots=True)
class _Taker:
    """What the trades say about one incoming order."""

    lots: int = 0
    worst_price: int = 0
    makers: list[int] = field(default_factory=list)


class _Reader:
    def __init__(self, account: int, fills: list[tuple[int, int, int, int]]) -> None:
        self.commands = CommandList(account)
        self.ghosts: list[int] = []
        self.left_out_count = 0
        self.unsized_count = 0
        self._takers: dict[int, _Taker] = {}
        self._resting: dict[int, tuple[Side, int]] = {}
        for maker, order, price, lots in fills:
            taker = self._takers.setdefault(order, _Taker())
            taker.lots += lots
            # The fills of one taker come in order, so the last is the worst.
            taker.worst_price = price
            taker.makers.append(maker)

    def created(self, order: int, side: Side, price: int, lots: int) -> None:
        """Take the arrival of an order."""
        taker = self._takers.get(order)
        priced = 0 < price < PRICE_CAPACITY_TICKS
        if taker is not None:
            self._incoming(order, side, price if priced else 0, lots or taker.lots)
        elif lots == 0:
            self.unsized_count += 1
        elif not priced or lots > QUANTITY_LIMIT_LOTS:
            self.left_out_count += 1
        else:
            self._resting[order] = (side, price)
            self.commands.new_order(order, side, price, lots, flags=COMMAND_FLAG_POST_ONLY)

    def deleted(self, order: int, lots: int) -> None:
        """Take the end of an order."""
        if self._resting.pop(order, None) and lots:
            self.commands.cancel(order)

    def _incoming(self, order: int, side: Side, price: int, lots: int) -> None:
        for ghost in self._ghosts_before(self._takers[order], side):
            del self._resting[ghost]
            self.commands.cancel(ghost)
            self.ghosts.append(ghost)
        if price:
            self._resting[order] = (side, price)
            self.commands.new_order(order, side, price, lots)
        else:
            self.commands.new_order(
                order,
                side,
                0,
                lots,
                order_type=OrderType.MARKET,
                time_in_force=TimeInForce.IMMEDIATE_OR_CANCEL,
            )

    def _ghosts_before(self, taker: _Taker, side: Side) -> list[int]:
        """Return the orders that stood before the last recorded maker and did not trade."""
        ghosts = []
        last_maker_seen = False
        for order, (at, price) in self._resting.items():
            if order in taker.makers:
                last_maker_seen |= order == taker.makers[-1]
            elif at != side:
                better = (
                    price < taker.worst_price if side == Side.BUY else price > taker.worst_price
                )
                ahead = price == taker.worst_price and not last_maker_seen
                if better or ahead:
                    ghosts.append(order)
        return ghosts


def read(path: Path, account: int = 1) -> Recording:
    """Read an order file and the `trades.csv` beside it."""
    fills = list(_fills(path.parent / "trades.csv"))
    reader = _Reader(account, fills)
    count = 0
    for number, words in _rows(path, ORDER_HEADER):
        try:
            name, _, exchange_ms, price, volume, action, direction = words
            # Lines are numbered from one and the first is the header.
            reader.commands.message_index = number - 2
            reader.commands.time_ns = int(exchange_ms) * NS_PER_MS
            lots = scaled(volume, LOT_DECIMALS)
            if action == "created":
                reader.created(int(name), SIDES[direction], scaled(price, 0), lots)
            elif action == "deleted":
                reader.deleted(int(name), lots)
            elif action != "changed":
                raise ValueError(action)
        except (KeyError, OverflowError, ValueError) as error:
            raise RecordingError(f"{path.name} line {number} is {','.join(words)!r}") from error
        count += 1
    commands, index, time_ns = reader.commands.columns()
    return Recording(
        name=path.name,
        instrument=_instrument(),
        commands=commands,
        message_index=index,
        time_ns=time_ns,
        message_count=count,
        fills=fill_rows(fills),
        notes=_notes(reader),
    )


def _fills(path: Path) -> Iterator[tuple[int, int, int, int]]:
    for number, words in _rows(path, TRADE_HEADER):
        try:
            _, _, _, price, amount, buyer, seller, side = words
            maker, taker = (seller, buyer) if side == "buy" else (buyer, seller)
            lots = scaled(amount, LOT_DECIMALS)
            yield int(maker), int(taker), scaled(price, 0), lots
        except ValueError as error:
            raise RecordingError(f"{path.name} line {number} is {','.join(words)!r}") from error


def _rows(path: Path, header: str) -> Iterator[tuple[int, list[str]]]:
    lines = read_lines(path)
    found = next(lines, "")
    if found != header:
        raise RecordingError(f"{path.name} begins with {found!r}; it must begin with {header!r}")
    for number, line in enumerate(lines, start=2):
        yield number, line.split(",")


def _notes(reader: _Reader) -> tuple[str, ...]:
    notes = []
    if reader.left_out_count:
        notes.append(
            f"{reader.left_out_count:,} orders below one dollar, at {PRICE_CAPACITY_TICKS:,} "
            f"dollars and more, or of more than {QUANTITY_LIMIT_LOTS:,} lots were left out."
        )
    if reader.unsized_count:
        notes.append(f"{reader.unsized_count:,} orders were recorded without a size.")
    if reader.ghosts:
        names = ", ".join(map(str, reader.ghosts))
        notes.append(f"Dropped when traded past, because they were gone already: {names}.")
    return tuple(notes)


def _instrument() -> Instrument:
    return Instrument(
        pair="BTC-USD",
        base_asset="BTC",
        quote_asset="USD",
        base_decimals=LOT_DECIMALS,
        quote_decimals=LOT_DECIMALS,
        tick_quote_units=10**LOT_DECIMALS,
        base_units_per_lot=1,
        price_capacity_ticks=PRICE_CAPACITY_TICKS,
        quantity_limit_lots=QUANTITY_LIMIT_LOTS,
        taker_fee_ppm=0,
        order_capacity=1 << 17,
        client_id_window=1 << 18,
    ).validate()
