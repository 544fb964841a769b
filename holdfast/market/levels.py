"""The levels of a book, sorted, whichever exchange they are of; pure.

A level is set by its absolute quantity and removed by the quantity zero, so that saying the same
twice changes nothing. Prices and quantities are integers. What a checksum is made of differs from
exchange to exchange; the levels it is made of do not.
"""

import zlib
from bisect import insort
from typing import Final, Generic, TypeVar

BIDS: Final = 0
ASKS: Final = 1
CHECKED_LEVELS: Final = 10

Entry = TypeVar("Entry")
"""What is kept of a level."""


class Levels(Generic[Entry]):
    """Bids and asks by price."""

    def __init__(self) -> None:
        self._entries: tuple[dict[int, Entry], dict[int, Entry]] = ({}, {})
        # Keys in ascending order, the best last: prices of bids, negative prices of asks.
        self._keys: tuple[list[int], list[int]] = ([], [])

    def clear(self) -> None:
        """Forget everything."""
        for side in (BIDS, ASKS):
            self._entries[side].clear()
            self._keys[side].clear()

    def set(self, side: int, price: int, entry: Entry) -> None:
        """Put a level in, or another one in its place."""
        key = price if side == BIDS else -price
        if key not in self._entries[side]:
            insort(self._keys[side], key)
        self._entries[side][key] = entry

    def remove(self, side: int, price: int) -> None:
        """Take a level out if it is there."""
        key = price if side == BIDS else -price
        if self._entries[side].pop(key, None) is not None:
            self._keys[side].remove(key)

    def get(self, side: int, price: int) -> Entry | None:
        """Return a level, if it is there."""
        return self._entries[side].get(price if side == BIDS else -price)

    def cut(self, side: int, count: int) -> None:
        """Keep only the best so many levels."""
        keys = self._keys[side]
        for key in keys[: max(0, len(keys) - count)]:
            del self._entries[side][key]
        del keys[: max(0, len(keys) - count)]

    def best(self, side: int, count: int) -> list[Entry]:
        """Return the best so many levels, best first."""
        keys = self._keys[side]
        entries = self._entries[side]
        return [entries[key] for key in keys[: -count - 1 : -1]] if count > 0 else []

    def count(self, side: int) -> int:
        """Return how many levels there are."""
        return len(self._keys[side])


def checksum(bids: list[tuple[int, int]], asks: list[tuple[int, int]]) -> int:
    """Return Holdfast's checksum of levels as (price ticks, lots), best first.

    CRC-32 of the text of the best ten levels: bids, then ``|``, then asks; each level its price,
    a colon and its lots, levels separated by commas.
    """
    sides = (
        ",".join(f"{price}:{lots}" for price, lots in side[:CHECKED_LEVELS])
        for side in (bids, asks)
    )
    return zlib.crc32("|".join(sides).encode("ascii"))
