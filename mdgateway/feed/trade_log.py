"""The newest trades of one pair by number: one bounded log that every subscriber reads from.

Rows have TRADE_COLUMNS: number, price ticks, lots, taker side, time, sequence.
Numbers in the log have no holes: a hole in what arrives empties it, and what was before is gone.
A subscriber is a number, the next trade it wants, so that a slow one costs nothing.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

TRADE_NUMBER: Final = 0
TRADE_PRICE: Final = 1
TRADE_LOTS: Final = 2
TRADE_SIDE: Final = 3
"""Side of the taker."""
TRADE_TIME_NS: Final = 4
TRADE_SEQUENCE: Final = 5
TRADE_COLUMNS: Final = 6


class TradeLog:
    """A ring of the last `capacity` (a power of two) trades."""

    def __init__(self, capacity: int) -> None:
        assert capacity.bit_count() == 1, f"capacity is {capacity}; a power of two is needed"
        self._rows = np.zeros((capacity, TRADE_COLUMNS), np.int64)
        self.capacity = capacity
        self.oldest = 1
        """Number of the oldest trade that can be had; one above `newest`: there is none."""
        self.newest = 0
        """Number of the newest trade, or of the last one before the log began."""
        self.first_after_hole = 1
        """Number of the first trade after the newest hole: whoever wanted one before it has
        missed it through no fault of its own."""

    def append(self, rows: Rows) -> int:
        """Take trades in order of their numbers; return how many were new.

        Numbers that are known already (a restarted engine says its last trades again) are passed
        over.
        """
        fresh = rows[rows[:, TRADE_NUMBER] > self.newest]
        if not len(fresh):
            return 0
        first = int(fresh[0, TRADE_NUMBER])
        if first != self.newest + 1:
            self._begin(first)
        holes = np.flatnonzero(np.diff(fresh[:, TRADE_NUMBER]) != 1)
        if len(holes):
            fresh = fresh[holes[-1] + 1 :]
            self._begin(int(fresh[0, TRADE_NUMBER]))
        self.newest = int(fresh[-1, TRADE_NUMBER])
        kept = fresh[-self.capacity :]
        self._rows[kept[:, TRADE_NUMBER] & (self.capacity - 1)] = kept
        self.oldest = max(self.oldest, self.newest - self.capacity + 1)
        return len(fresh)

    def begin_after(self, newest: int) -> None:
        """Empty the log: the next trade is the one after `newest`."""
        self.newest = newest
        self._begin(newest + 1)

    def last(self) -> Rows | None:
        """Return the newest trade's row, if there is one."""
        if self.oldest > self.newest:
            return None
        row: Rows = self._rows[self.newest & (self.capacity - 1)].copy()
        return row

    def since(self, number: int, limit: int) -> Rows:
        """Return at most `limit` trades from `number` on; it must be in the log or just after."""
        assert self.oldest <= number <= self.newest + 1, f"trade {number} is not in the log"
        end = min(self.newest, number + limit - 1)
        rows: Rows = self._rows[np.arange(number, end + 1) & (self.capacity - 1)]
        return rows

    def _begin(self, number: int) -> None:
        self.oldest = self.first_after_hole = number
