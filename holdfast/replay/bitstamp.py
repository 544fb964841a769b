"""Bitstamp's order events (BTC/USD, order by order) as commands.

    id, timestamp ms, exchange timestamp ms, price, volume remaining, action, direction

with the trades, naming both orders, in a file beside it. `created` becomes a limit order and
`deleted` with something left a cancel; `changed` and `deleted` with nothing left are what fills do,
which the receiver's own matching brings about.

The events do not say who asked for post-only. An order that crossed and was deleted untouched a
moment later must have been one, so every order the trades do not name as taker is sent so. Two
more things only the trades tell: the size of a taker whose event came too late to carry it, and
that a resting order was not there any more although its deletion was never sent: such a ghost is
cancelled just before the first taker that is recorded to have traded through its price.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exchange.enums import Side
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
"""Whole dollars; a few hundred orders at ten and more times the price are left out."""
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


class _Reader:
    def __init__(self, account: int, fills: list[tuple[int, int, int, int]]) -> None:
        self.commands = CommandList(account)
        self.ghosts: list[int] = []
        self.left_out_count = 0
        self.unsized_count = 0
        self._takers: dict[int, _Taker] = {}
        self._makers: dict[int, set[int]] = {}
        self._resting: dict[int, tuple[Side, int]] = {}
        for maker, order, price, lots in fills:
            taker = self._takers.setdefault(order, _Taker())
            taker.lots += lots
            # The fills of one taker come in order, so the last is the worst.
            taker.worst_price = price
            self._makers.setdefault(order, set()).add(maker)

    def created(self, order: int, side: Side, price: int, lots: int) -> None:
        """Take the arrival of an order."""
        taker = self._takers.get(order)
        if lots == 0 and taker is None:
            self.unsized_count += 1
            return
        if price >= PRICE_CAPACITY_TICKS or lots > QUANTITY_LIMIT_LOTS:
            self.left_out_count += 1
            return
        if taker is None:
            flags = COMMAND_FLAG_POST_ONLY
        else:
            flags = 0
            lots = lots or taker.lots
            self._drop_ghosts(order, side, taker)
        self._resting[order] = (side, price)
        self.commands.new_order(order, side, price, lots, flags=flags)

    def deleted(self, order: int, lots: int) -> None:
        """Take the end of an order."""
        if self._resting.pop(order, None) and lots:
            self.commands.cancel(order)

    def _drop_ghosts(self, order: int, side: Side, taker: _Taker) -> None:
        makers = self._makers[order]
        ghosts = [
            resting
            for resting, (at, price) in self._resting.items()
            if at != side
            and resting not in makers
            and (price < taker.worst_price if side == Side.BUY else price > taker.worst_price)
        ]
        for ghost in ghosts:
            del self._resting[ghost]
            self.commands.cancel(ghost)
        self.ghosts.extend(ghosts)


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
        except (KeyError, ValueError) as error:
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
            f"{reader.left_out_count:,} orders at {PRICE_CAPACITY_TICKS:,} dollars and more, or "
            f"of more than {QUANTITY_LIMIT_LOTS:,} lots, were left out."
        )
    if reader.unsized_count:
        notes.append(f"{reader.unsized_count:,} orders were recorded without a size.")
    if reader.ghosts:
        names = ", ".join(map(str, reader.ghosts))
        notes.append(f"Dropped when traded through, because they were gone already: {names}.")
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
