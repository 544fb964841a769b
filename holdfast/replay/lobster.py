"""LOBSTER messages (NASDAQ, order by order) as commands.

    seconds, type, order id, size, price x 10000, direction of the resting order

with type 1 new, 2 partial cancel, 3 delete, 4 visible execution, 5 hidden execution, 7 halt. The
book at the start is the first line of an orderbook file beside the messages: levels without ids.
Each becomes one order of its size; a message about an order nobody saw enter is about that one.

Executions become incoming orders: each run of type 4 lines of equal time and side is one immediate
order for its whole size at its last price. Where the recorded makers are not those at the head of
the queue (orders that had lost their place in ways no message tells), the fills differ, and the
reader puts the sizes right afterwards: it keeps the queues itself, so it needs no answer to know.
Lines of type 5 and 7 do not touch the visible book and cause no command.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from exchange.enums import Side, TimeInForce
from exchange.instrument import Instrument
from holdfast.replay.formats import (
    CommandList,
    Recording,
    RecordingError,
    fill_rows,
    read_lines,
)

PRICE_UNITS_PER_TICK: Final = 100
"""The file counts ten-thousandths of a dollar; no visible order stands between two cents."""
PRICE_CAPACITY_TICKS: Final = 1 << 18
QUANTITY_LIMIT_LOTS: Final = 1 << 30
BEYOND_BOOK: Final = 9_999_999_999
"""The price of an ask level that does not exist; a missing bid has minus this or zero."""
SIDES: Final = {"1": Side.BUY, "-1": Side.SELL}
OPPOSITE: Final = {Side.BUY: Side.SELL, Side.SELL: Side.BUY}
NEW: Final = "1"
REDUCE: Final = "2"
DELETE: Final = "3"
EXECUTE: Final = "4"
VISIBLE_KINDS: Final = {NEW, REDUCE, DELETE, EXECUTE}


@dataclass(slots=True)
class _Queues:
    """Who stands where in the receiver's book, by client order id, oldest first."""

    levels: dict[tuple[Side, int], dict[int, int]] = field(default_factory=dict)
    place: dict[int, tuple[Side, int]] = field(default_factory=dict)

    def enter(self, order: int, side: Side, price: int, lots: int) -> None:
        self.levels.setdefault((side, price), {})[order] = lots
        self.place[order] = (side, price)

    def leave(self, order: int) -> None:
        key = self.place.pop(order)
        level = self.levels[key]
        del level[order]
        if not level:
            del self.levels[key]

    def lots(self, order: int) -> int:
        key = self.place.get(order)
        return self.levels[key][order] if key else 0

    def resize(self, order: int, lots: int) -> None:
        """Set what an order has left, as an amend does: growing costs its place."""
        level = self.levels[self.place[order]]
        if lots > level[order]:
            del level[order]
        level[order] = lots

    def take(self, side: Side, limit: int, lots: int) -> list[tuple[int, int, int]]:
        """Remove what an incoming order meets on a side: (order, price, lots before) of each."""
        met: list[tuple[int, int, int]] = []
        prices = [price for at, price in self.levels if at == side]
        prices = [p for p in prices if (p >= limit if side == Side.BUY else p <= limit)]
        for price in sorted(prices, reverse=side == Side.BUY):
            for order, resting in list(self.levels[side, price].items()):
                if lots == 0:
                    return met
                met.append((order, price, resting))
                if resting > lots:
                    self.resize(order, resting - lots)
                else:
                    self.leave(order)
                lots -= min(resting, lots)
        return met


@dataclass(frozen=True, slots=True)
class _Message:
    index: int
    time_ns: int
    kind: str
    name: str
    lots: int
    price: int
    side: Side


class _Reader:
    def __init__(self, account: int) -> None:
        self.commands = CommandList(account)
        self.fills: list[tuple[int, int, int, int]] = []
        self.unknown_count = 0
        self.put_right_count = 0
        self._queues = _Queues()
        self._names: dict[str, int] = {}
        self._start_orders: dict[tuple[Side, int], int] = {}
        self._re_entered: dict[int, int] = {}
        self._last_order = 0
        self._run: list[_Message] = []

    def start_book(self, line: str) -> None:
        """Enter one order a level, standing for the orders nobody saw enter."""
        numbers = [int(word) for word in line.split(",")]
        for place in range(0, len(numbers), 2):
            price, lots = numbers[place : place + 2]
            if lots > 0 and abs(price) != BEYOND_BOOK:
                side = Side.SELL if place % 4 == 0 else Side.BUY
                ticks = price // PRICE_UNITS_PER_TICK
                self._start_orders[side, ticks] = self._enter(side, ticks, lots)

    def message(self, message: _Message) -> None:
        """Take the next message; a run of executions is held back until it ends."""
        if message.kind not in VISIBLE_KINDS:
            return
        if self._run and not self._continues(message):
            self.flush()
        self.commands.message_index = message.index
        self.commands.time_ns = message.time_ns
        if message.kind == NEW:
            self._names[message.name] = self._enter(message.side, message.price, message.lots)
        elif message.kind in {REDUCE, DELETE}:
            order = self._order_of(message)
            left = max(0, self._queues.lots(order) - message.lots)
            self._put_right(order, message.side, message.price, left)
        elif message.kind == EXECUTE:
            self._run.append(message)

    def flush(self) -> None:
        """Send the run of executions as one incoming order, and put right what it met instead."""
        if not self._run:
            return
        run, self._run = self._run, []
        side = run[0].side
        self.commands.message_index = run[-1].index
        self.commands.time_ns = run[-1].time_ns
        self._last_order += 1
        taker = self._last_order
        prices = [message.price for message in run]
        limit = min(prices) if side == Side.BUY else max(prices)
        lots = sum(message.lots for message in run)
        force = TimeInForce.IMMEDIATE_OR_CANCEL
        self.commands.new_order(taker, OPPOSITE[side], limit, lots, time_in_force=force)
        wanted: dict[int, tuple[int, int]] = {}
        for message in run:
            maker = self._order_of(message)
            _, before = wanted.get(maker, (0, self._queues.lots(maker)))
            wanted[maker] = (message.price, max(0, before - message.lots))
            self.fills.append((maker, taker, message.price, message.lots))
        for maker, price, before in self._queues.take(side, limit, lots):
            wanted.setdefault(maker, (price, before))
        for maker, (price, left) in wanted.items():
            if self._queues.lots(maker) != left:
                self.put_right_count += 1
                self._put_right(maker, side, price, left)

    def _continues(self, message: _Message) -> bool:
        first = self._run[0]
        same_event = message.time_ns == first.time_ns and message.side == first.side
        return message.kind == EXECUTE and same_event

    def _enter(self, side: Side, price: int, lots: int) -> int:
        self._last_order += 1
        self._queues.enter(self._last_order, side, price, lots)
        self.commands.new_order(self._last_order, side, price, lots)
        return self._last_order

    def _order_of(self, message: _Message) -> int:
        """Return the client order id a message is about; 0: nobody we know of."""
        order = self._names.get(message.name, 0)
        if self._queues.lots(self._re_entered.get(order, order)) == 0:
            order = self._start_orders.get((message.side, message.price), 0)
        order = self._re_entered.get(order, order)
        if self._queues.lots(order) == 0:
            self.unknown_count += 1
            return 0
        return order

    def _put_right(self, order: int, side: Side, price: int, left: int) -> None:
        """Send what gives an order the size the recording says it has."""
        now = self._queues.lots(order)
        if now == left:
            return
        if left == 0:
            self._queues.leave(order)
            self.commands.cancel(order)
        elif now == 0:
            first = next((old for old, new in self._re_entered.items() if new == order), order)
            self._re_entered[first] = self._enter(side, price, left)
        else:
            self._queues.resize(order, left)
            self.commands.amend(order, 0, left)


def read(path: Path, account: int = 1) -> Recording:
    """Read a message file, with the start book from the widest orderbook file beside it."""
    reader = _Reader(account)
    start_book = _start_book(path.parent)
    count = 0
    if start_book:
        try:
            reader.start_book(start_book)
        except (OverflowError, ValueError) as error:
            raise RecordingError(f"the start book begins with {start_book[:40]!r}") from error
    for line in read_lines(path):
        count += 1
        # The first orderbook line is the state after the first message.
        if count == 1 and start_book:
            continue
        try:
            reader.message(_parse(count - 1, line))
        except (KeyError, OverflowError, ValueError) as error:
            raise RecordingError(f"{path.name} line {count} is {line!r}") from error
    reader.flush()
    words, index, time_ns = reader.commands.columns()
    return Recording(
        name=path.name,
        instrument=_instrument(),
        commands=words,
        message_index=index,
        time_ns=time_ns,
        message_count=count,
        fills=fill_rows(reader.fills),
        notes=_notes(reader),
    )


def _parse(index: int, line: str) -> _Message:
    seconds, kind, name, lots, price, side = line.split(",")
    ticks, rest = divmod(int(price), PRICE_UNITS_PER_TICK)
    if kind in VISIBLE_KINDS and (rest or not 0 < ticks < PRICE_CAPACITY_TICKS):
        raise ValueError(price)
    # Some times were written from floating point with digits below the nanosecond.
    whole, _, fraction = seconds.partition(".")
    time_ns = int(whole + fraction[:9].ljust(9, "0"))
    return _Message(index, time_ns, kind, name, int(lots), ticks, SIDES[side])


def _start_book(folder: Path) -> str:
    lines = [next(read_lines(path), "") for path in sorted(folder.glob("orderbook*"))]
    return max(lines, key=lambda line: line.count(","), default="")


def _notes(reader: _Reader) -> tuple[str, ...]:
    notes = []
    if reader.unknown_count:
        notes.append(f"{reader.unknown_count:,} messages are about orders nobody saw enter.")
    if reader.put_right_count:
        notes.append(
            f"{reader.put_right_count:,} orders were put right after an execution that the "
            "recording gives to an order behind them."
        )
    return tuple(notes)


def _instrument() -> Instrument:
    return Instrument(
        pair="AAPL-USD",
        base_asset="AAPL",
        quote_asset="USD",
        base_decimals=0,
        quote_decimals=2,
        tick_quote_units=1,
        base_units_per_lot=1,
        price_capacity_ticks=PRICE_CAPACITY_TICKS,
        quantity_limit_lots=QUANTITY_LIMIT_LOTS,
        taker_fee_ppm=0,
        order_capacity=1 << 16,
        client_id_window=1 << 17,
    ).validate()
