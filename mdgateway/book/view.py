"""The best levels of a book as they were last told, and the book a client makes of that.

Pure: a view is advanced by its one owner and read by any number of subscribers, each of which is
one number, the generation it holds.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

import numpy as np

from exchange.enums import Side
from mdgateway.book.checksum import depth_checksum
from mdgateway.book.depth import CHANGE_COLUMNS, LEVEL_COLUMNS, DepthBook, Rows, difference

CHANGE_CAPACITY_LIMIT: Final = 1 << 16
"""Changed levels that a view of many levels remembers; a subscriber further behind is better
served with everything."""
SEQUENCE_CAPACITY: Final = 4_096
"""Generations from which a subscriber may resume: forty seconds of changes at every tick."""


class View:
    """The best levels of a book as they were last told, and what changed since any earlier moment.

    Each advance that changes something starts a new generation. A reader remembers one number,
    the generation it holds, and asks for what changed since: always the newest value of each
    level, once. The memory of changes is bounded; a reader too far behind is told None and takes
    the whole view instead.
    """

    def __init__(self, level_count: int, change_capacity: int | None = None) -> None:
        assert level_count >= 1
        self.level_count = level_count
        self.generation = 0
        self.oldest_generation = 0
        """Changes since this generation or a later one are still known."""
        self.sequence = 0
        """Sequence of the newest generation."""
        self._capacity = change_capacity or min(8 * level_count + 64, CHANGE_CAPACITY_LIMIT)
        self._rows = [np.zeros((0, LEVEL_COLUMNS), np.int64) for _ in range(2)]
        self._scratch = np.empty((64, CHANGE_COLUMNS), np.int64)
        self._changes: OrderedDict[tuple[int, int], tuple[int, int, int]] = OrderedDict()
        self._newest = np.zeros((0, CHANGE_COLUMNS), np.int64)
        """What the newest generation changed; empty after a reset."""
        self._sequences: deque[tuple[int, int]] = deque(maxlen=SEQUENCE_CAPACITY)
        """(sequence, generation) of generations since the last reset, oldest first."""
        self._checksum = (-1, 0)

    def advance(self, book: DepthBook, sequence: int) -> Rows:
        """Take over the book's present top; return the changes (side, price, lots, orders).

        Without changes the generation and its sequence stay as they were.
        """
        rows = [book.best_last(index, self.level_count).copy() for index in range(2)]
        room = sum(map(len, rows)) + sum(map(len, self._rows))
        if room > len(self._scratch):
            self._scratch = np.empty((2 * room, CHANGE_COLUMNS), np.int64)
        length = 0
        for index, side in enumerate((Side.BUY, Side.SELL)):
            before, sign = self._rows[index], 1 - 2 * index
            length = difference(before, rows[index], sign, int(side), self._scratch, length)
        self._rows = rows
        changes = self._scratch[:length].copy()
        if length:
            self._begin(sequence)
            self._newest = changes
            self._remember(changes.tolist())
        return changes

    def reset(self, sequence: int) -> None:
        """Forget the history, not the levels: every reader takes the whole view next."""
        self._changes.clear()
        self._sequences.clear()
        self._begin(sequence)
        self._newest = self._newest[:0]
        self.oldest_generation = self.generation

    def start(self, book: DepthBook, sequence: int) -> None:
        """Take over the book's top as where the history begins."""
        self._rows = [book.best_last(index, self.level_count).copy() for index in range(2)]
        self.reset(sequence)

    def levels(self) -> tuple[Rows, Rows]:
        """Return the view's bids and asks, best first."""
        return self._rows[0][::-1], self._rows[1][::-1]

    def checksum(self) -> int:
        """Return the checksum of the newest generation."""
        if self._checksum[0] != self.generation:
            self._checksum = self.generation, depth_checksum(*self.levels())
        return self._checksum[1]

    def since(self, generation: int) -> Rows | None:
        """Return each level changed after `generation` with its newest value, or None: too old."""
        if generation < self.oldest_generation or generation > self.generation:
            return None
        if generation == self.generation - 1:
            return self._newest
        found: list[tuple[int, int, int, int]] = []
        for (side, price), (changed_in, lots, orders) in reversed(self._changes.items()):
            if changed_in <= generation:
                break
            found.append((side, price, lots, orders))
        found.reverse()
        return np.array(found, np.int64).reshape(-1, CHANGE_COLUMNS)

    def generation_of(self, sequence: int) -> int | None:
        """Return the generation that was told with exactly this sequence, if it can be left from.

        No other sequence will do: between two generations a level may have come and gone, and
        whoever holds the book of such a moment would keep it for ever.
        """
        found = None
        for told, generation in reversed(self._sequences):
            # Two generations have one sequence when more of a book became known: the older serves
            # the holders of both.
            if told < sequence or generation < self.oldest_generation:
                break
            if told == sequence:
                found = generation
        return found

    def _begin(self, sequence: int) -> None:
        self.generation += 1
        self.sequence = sequence
        self._sequences.append((sequence, self.generation))

    def _remember(self, changes: Iterable[list[int]]) -> None:
        for side, price, lots, orders in changes:
            key = (side, price)
            self._changes[key] = (self.generation, lots, orders)
            self._changes.move_to_end(key)
        while len(self._changes) > self._capacity:
            _, (forgotten_in, _, _) = self._changes.popitem(last=False)
            self.oldest_generation = max(self.oldest_generation, forgotten_in)


def apply_changes(levels: dict[tuple[int, int], tuple[int, int]], changes: Rows) -> None:
    """Apply change rows to a plain book {(side, price): (lots, orders)}, as a client would."""
    for side, price, lots, orders in changes.tolist():
        if lots:
            levels[side, price] = (lots, orders)
        else:
            levels.pop((side, price), None)
