"""What the public book shows, for measuring a market order that lacks funds.

Reads the newest depth copy of the pair's book segment. It may be a millisecond old and the
engine may publish the next one meanwhile; what is wanted is what an order would cost, and the
engine decides.
"""

from typing import Final

import numpy as np

from engine.entry.risk.needs import Book, Levels
from exchange import book_layout as layout
from exchange.config import segment_folder
from exchange.instrument import Instrument
from exchange.ownership import Borrowed, OwnershipError
from exchange.records import Rows

TRIES: Final = 100


def read_book(instrument: Instrument) -> Book:
    """Return the levels of a pair's book; none of them if it cannot be read now."""
    name = layout.segment_name(instrument.pair, "book")
    try:
        with Borrowed.open(
            name, layout.book_layout(instrument), directory=segment_folder()
        ) as segment:
            found = _newest(segment["scalars"], segment["depth"])
    except OwnershipError:
        return Book()
    if found is None:
        return Book()
    counts = found[layout.DEPTH_BID_COUNT], found[layout.DEPTH_ASK_COUNT]
    sides = found[layout.DEPTH_HEADER_WORDS :].reshape(2, -1, layout.DEPTH_LEVEL_WORDS)
    bids, asks = (_levels(side[:count]) for side, count in zip(sides, counts, strict=True))
    return Book(bids, asks)


def _newest(scalars: Rows, copies: Rows) -> Rows | None:
    for _ in range(TRIES):
        number = int(scalars[layout.DEPTH_HEAD])
        row = copies[number % len(copies)]
        if number <= 0:
            return None
        found: Rows = np.array(row)
        if found[layout.DEPTH_COMMIT] == number == row[layout.DEPTH_COMMIT]:
            return found
    return None


def _levels(rows: Rows) -> Levels:
    return tuple((price, lots) for price, lots, _ in rows.tolist() if price > 0 and lots > 0)
