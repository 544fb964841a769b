"""Compile, or load, every kernel of the gateway before it listens.

Otherwise the first book that appears would stop all streams for the seconds it takes. The arrays
have the types of the real ones, read-only where those are.
"""

import numpy as np

from exchange import book_layout as layout
from exchange.atomics import load
from exchange.doorbell import spin_until_changed
from exchange.enums import Side
from exchange.instrument import Instrument
from exchange.seqlock import read_stable
from mdgateway.book import stable
from mdgateway.book.depth import LEVEL_COLUMNS, DepthBook, Snapshot
from mdgateway.book.orders import EVENT_COLUMNS, FIRST_CAPACITY, OrderBook
from mdgateway.book.view import View


def warm_up() -> None:
    """Run each kernel once on a book without content."""
    arrays = layout.book_layout(_SMALLEST).arrays(bytes(layout.book_layout(_SMALLEST).size_bytes))
    scalars, events = arrays["scalars"], arrays["events"]
    touch, result = np.zeros(layout.TOUCH_WORDS, np.int64), np.zeros(8, np.int64)
    sides = np.zeros((2, 8, LEVEL_COLUMNS), np.int64)
    out = np.zeros((8, layout.EVENT_WORDS), np.int64)
    load(scalars, layout.EVENT_HEAD)
    spin_until_changed(np.zeros(0, np.int64), np.zeros(0, np.int64), 1)
    read_stable(arrays["touch"], layout.TOUCH_VERSION, arrays["touch"], touch, 1)
    stable.copy_depth(scalars, arrays["depth"], np.zeros(64, np.int64), 1)
    stable.drain_events(scalars, events, 0, 0, out, result)
    stable.copy_book(
        scalars,
        arrays["levels"],
        arrays["bits3"],
        arrays["bits2"],
        arrays["bits1"],
        arrays["bits0"],
        sides[0],
        sides[1],
        result,
        1,
    )
    book, view = DepthBook(8), View(1)
    nothing = np.zeros((0, LEVEL_COLUMNS), np.int64)
    book.load(Snapshot(0, 0, nothing, nothing, True, True))
    out[0, layout.EVENT_VERB] = layout.EVENT_LEVEL | int(Side.BUY) << 8
    book.apply(out[:1], 0)
    orders = OrderBook()
    orders.apply(np.zeros((2 * FIRST_CAPACITY, EVENT_COLUMNS), np.int64))
    view.advance(book, 0)


_SMALLEST = Instrument(
    price_capacity_ticks=64,
    order_capacity=1,
    client_id_window=2,
    event_capacity=64,
    depth_level_count=1,
    depth_copy_count=2,
)
