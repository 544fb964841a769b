"""A small writer of a public book segment, compiled, for tests of readers.

It keeps the protocol of ``exchange.book_layout`` and nothing else: no matching, no accounts. An
operation is a row (kind, side, price ticks, lots, orders, trade number), and of one order its
action and lots as the verb has them and its public number; a batch is one command.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exchange import book_layout as layout
from exchange.atomics import fence_release, store_relaxed, store_release
from exchange.book_layout import EVENT_LEVEL, EVENT_STATUS, EVENT_TRADE
from exchange.compiled import inlined, kernel
from exchange.instrument import Instrument
from exchange.ownership import Owned

Rows = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

DAY_NS = 86_400 * 1_000_000_000

INSTRUMENT = Instrument(
    pair="TEST-USDT",
    price_capacity_ticks=1 << 16,
    quantity_limit_lots=1_000_000,
    order_capacity=1 << 10,
    client_id_window=1 << 11,
    event_capacity=1 << 10,
    depth_level_count=16,
    depth_copy_count=4,
).validate()


@inlined
def _mark(bits: Bits, side: int, index: int, occupied: bool) -> bool:
    """Set or clear a bit; say whether its word is occupied now."""
    bit = np.uint64(1) << np.uint64(index & 63)
    if occupied:
        bits[side, index >> 6] |= bit
    else:
        bits[side, index >> 6] &= ~bit
    occupied = bits[side, index >> 6] != np.uint64(0)
    return bool(occupied)


@inlined
def _event(scalars: Rows, events: Rows, words: Rows, sequence: int, time_ns: int) -> None:
    position = scalars[layout.EVENT_HEAD]
    row = events[position & (events.shape[0] - 1)]
    store_relaxed(row, 0, -1)
    fence_release()
    row[layout.EVENT_VERB] = words[0] | words[1] << 8 | words[6]
    row[layout.EVENT_PRICE] = words[2]
    row[layout.EVENT_LOTS] = words[3]
    row[layout.EVENT_COUNT] = words[5] if words[0] == EVENT_TRADE else words[4]
    row[layout.EVENT_SEQUENCE] = sequence
    row[layout.EVENT_TIME_NS] = time_ns
    row[layout.EVENT_ORDER] = words[7]
    store_release(row, 0, position + 1)
    store_release(scalars, layout.EVENT_HEAD, position + 1)


@inlined
def _best(scalars: Rows, levels: Rows, side: int) -> int:
    capacity = scalars[layout.BOOK_PRICE_CAPACITY]
    for step in range(1, capacity):
        tick = capacity - step if side == 0 else step
        if levels[side * capacity + tick, 0] > 0:
            return tick
    return 0


@inlined
def _publish_touch(scalars: Rows, touch: Rows, levels: Rows, sequence: int) -> None:
    odd = touch[0] | 1
    store_relaxed(touch, 0, odd)
    fence_release()
    touch[1] = sequence
    touch[2] = scalars[40]
    touch[3] = levels[scalars[40], 0]
    touch[4] = scalars[41]
    touch[5] = levels[scalars[layout.BOOK_PRICE_CAPACITY] + scalars[41], 0]
    store_release(touch, 0, odd + 1)
    store_release(scalars, layout.BOOK_SEQUENCE, sequence)


@kernel
def publish_depth(scalars: Rows, levels: Rows, depth: Rows, sequence: int, time_ns: int) -> None:
    """Publish a complete depth copy."""
    number = scalars[layout.DEPTH_HEAD] + 1
    row = depth[number % depth.shape[0]]
    store_relaxed(row, 0, -1)
    fence_release()
    row[1] = sequence
    row[2] = scalars[layout.EVENT_HEAD]
    row[3] = time_ns
    capacity = scalars[layout.BOOK_PRICE_CAPACITY]
    room = scalars[layout.BOOK_DEPTH_LEVELS]
    for side in range(2):
        count = 0
        at = 8 + side * room * 3
        tick = scalars[40 + side]
        while 0 < tick < capacity and count < room:
            level = levels[side * capacity + tick]
            if level[0] > 0:
                row[at] = tick
                row[at + 1] = level[0]
                row[at + 2] = level[1]
                at += 3
                count += 1
            tick += 2 * side - 1
        row[4 + side] = count
    store_release(row, 0, number)
    store_release(scalars, layout.DEPTH_HEAD, number)


@kernel
def publish(
    scalars: Rows,
    touch: Rows,
    levels: Rows,
    bits3: Bits,
    bits2: Bits,
    bits1: Bits,
    bits0: Bits,
    events: Rows,
    operations: Rows,
    sequence: int,
    time_ns: int,
) -> None:
    """Apply one batch of one command under the book version."""
    version = scalars[layout.BOOK_VERSION] | 1
    store_relaxed(scalars, layout.BOOK_VERSION, version)
    fence_release()
    capacity = scalars[layout.BOOK_PRICE_CAPACITY]
    for index in range(operations.shape[0]):
        words = operations[index]
        if words[0] == EVENT_LEVEL:
            side = words[1] - 1
            tick = words[2]
            levels[side * capacity + tick, 0] = words[3]
            levels[side * capacity + tick, 1] = words[4]
            occupied = _mark(bits0, side, tick, words[3] > 0)
            occupied = _mark(bits1, side, tick >> 6, occupied)
            occupied = _mark(bits2, side, tick >> 12, occupied)
            _mark(bits3, side, tick >> 18, occupied)
            best = scalars[40 + side]
            if words[3] > 0 and (best == 0 or (tick - best) * (1 - 2 * side) > 0):
                scalars[40 + side] = tick
            elif words[3] == 0 and tick == best:
                scalars[40 + side] = _best(scalars, levels, side)
        _event(scalars, events, words, sequence, time_ns)
    _publish_touch(scalars, touch, levels, sequence)
    store_release(scalars, layout.BOOK_VERSION, version + 1)


class Writer:
    """Owns a book segment in a directory of the test's and publishes to it."""

    def __init__(self, directory: Path, instrument: Instrument = INSTRUMENT) -> None:
        self.instrument = instrument
        self.directory = directory
        self.sequence = 0
        self.time_ns = 1_700_000_000_000_000_000
        self.trade_count = 0
        self.owned = self._claim()

    def _claim(self) -> Owned:
        owned = Owned.claim(
            layout.segment_name(self.instrument.pair, "book"),
            layout.book_layout(self.instrument),
            mode=0o644,
            directory=self.directory,
            prepare=self._prepare,
        )
        self.arrays = {name: owned[name] for name in owned.arrays}
        return owned

    def _prepare(self, owned: Owned) -> None:
        scalars = owned["scalars"]
        scalars[layout.BOOK_PRICE_CAPACITY] = self.instrument.price_capacity_ticks
        scalars[layout.BOOK_EVENT_CAPACITY] = self.instrument.event_capacity
        scalars[layout.BOOK_DEPTH_LEVELS] = self.instrument.depth_level_count
        scalars[layout.BOOK_DEPTH_COPIES] = self.instrument.depth_copy_count
        scalars[layout.ENGINE_STATE] = layout.STATE_READY

    def restart(self) -> None:
        """Give the segment up and claim it again, as a restarted engine does."""
        self.owned.close()
        self.owned = self._claim()

    def close(self) -> None:
        """Remove the segment."""
        self.owned.close(unlink=True)

    def heartbeat(self, now_ns: int) -> None:
        """Say that the writer lives."""
        self.owned.heartbeat(now_ns)

    def level(self, side: int, price: int, lots: int, orders: int = 1) -> None:
        """Publish one command that sets one level."""
        self.batch([(EVENT_LEVEL, side, price, lots, orders if lots else 0, 0)])

    def trade(self, taker_side: int, price: int, lots: int) -> None:
        """Publish one command that trades without changing a level."""
        self.trade_count += 1
        touch = self.arrays["touch"]
        self._count_day(touch, price, lots)
        touch[layout.TOUCH_LAST_PRICE] = price
        touch[layout.TOUCH_LAST_LOTS] = lots
        touch[layout.TOUCH_LAST_TIME_NS] = self.time_ns
        touch[layout.TOUCH_TRADE_COUNT] = self.trade_count
        self.batch([(EVENT_TRADE, taker_side, price, lots, 0, self.trade_count)])

    def _count_day(self, touch: Rows, price: int, lots: int) -> None:
        if self.time_ns // DAY_NS != touch[layout.TOUCH_LAST_TIME_NS] // DAY_NS:
            touch[layout.TOUCH_DAY_OPEN : layout.TOUCH_DAY_LOW + 1] = price
            touch[layout.TOUCH_DAY_LOTS] = touch[layout.TOUCH_DAY_QUOTE_UNITS] = 0
        touch[layout.TOUCH_DAY_HIGH] = max(touch[layout.TOUCH_DAY_HIGH], price)
        touch[layout.TOUCH_DAY_LOW] = min(touch[layout.TOUCH_DAY_LOW], price)
        touch[layout.TOUCH_DAY_LOTS] += lots
        worth = self.instrument.quote_units_per_tick_lot
        touch[layout.TOUCH_DAY_QUOTE_UNITS] += price * lots * worth

    def status(self, status: int) -> None:
        """Publish a change of the pair's status."""
        self.arrays["touch"][layout.TOUCH_STATUS] = status
        self.batch([(EVENT_STATUS, 0, 0, 0, status, 0)])

    def add_order(self, number: int, side: int, price: int, lots: int) -> None:
        """Publish an order that comes to a level of its own."""
        verb = layout.ACTION_ADDED << layout.EVENT_ACTION_SHIFT
        verb |= lots << layout.EVENT_ORDER_LOTS_SHIFT
        self.batch([(EVENT_LEVEL, side, price, lots, 1, 0, verb, number)])

    def delete_order(self, number: int, side: int, price: int, lots: int) -> None:
        """Publish that the only order of a level is cancelled."""
        verb = layout.ACTION_DELETED << layout.EVENT_ACTION_SHIFT
        verb |= lots << layout.EVENT_ORDER_LOTS_SHIFT
        self.batch([(EVENT_LEVEL, side, price, 0, 0, 0, verb, number)])

    def batch(self, operations: Iterable[tuple[int, ...]]) -> None:
        """Publish one command with several events."""
        self.sequence += 1
        a = self.arrays
        whole = [(*operation, *(0,) * (8 - len(operation))) for operation in operations]
        rows = np.array(whole, np.int64).reshape(-1, 8)
        publish(
            a["scalars"],
            a["touch"],
            a["levels"],
            a["bits3"],
            a["bits2"],
            a["bits1"],
            a["bits0"],
            a["events"],
            rows,
            self.sequence,
            self.time_ns,
        )

    def depth(self) -> None:
        """Publish a depth copy."""
        a = self.arrays
        publish_depth(a["scalars"], a["levels"], a["depth"], self.sequence, self.time_ns)
