"""The checksum a client can verify its book with; pure.

The text is, in ASCII, the best ten bids, best first, then ``|``, then the best ten asks, best
first; each level is its price in ticks, a colon and its quantity in lots; levels of a side are
separated by commas. A side with fewer levels, or a stream of fewer than ten, gives what there is.
The checksum is the CRC-32 (that of zip and PNG) of the text, from 0 to 2**32 - 1:

    6400010:50000,6400005:120|6400020:25000  ->  1234247811
"""

import zlib
from typing import Final

from mdgateway.book.depth import Rows

CHECKED_LEVELS: Final = 10


def depth_checksum(bids: Rows, asks: Rows) -> int:
    """Return the checksum of levels (price ticks, lots, ...), best first."""
    return zlib.crc32(checked_text(bids, asks).encode("ascii"))


def checked_text(bids: Rows, asks: Rows) -> str:
    """Return the text that the checksum is made of."""
    return "|".join(
        ",".join(f"{price}:{lots}" for price, lots in side[:CHECKED_LEVELS, :2].tolist())
        for side in (bids, asks)
    )
