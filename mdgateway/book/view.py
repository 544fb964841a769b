"""The best levels of a book as they were last told, and the book a client makes of that.

Pure: a view is advanced by its one owner and read by any number of subscribers, each of which is
one number, the generation it holds.
"""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from exchange.enums import Side
from mdgateway.book.depth import CHANGE_COLUMNS, LEVEL_COLUMNS, DepthBook, Rows, difference


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
        self._capacity = change_capacity or 8 * level_count + 64
        self._rows = [np.zeros((0, LEVEL_COLUMNS), np.int64) for _ in range(2)]
        self._scratch = np.empty((4 * level_count, CHANGE_COLUMNS), np.int64)
        self._changes: OrderedDict[tuple[int, int], tuple[int, int, int]] = OrderedDict()

    def advance(self, book: DepthBook, sequence: int) -> Rows:
        """Take over the book's present top; return the changes (side, price, lots, orders).

        Without changes the generation and its sequence stay as they were.
        """
        length = 0
        for index, side in enumerate((Side.BUY, Side.SELL)):
            rows, sign = book.best_last(index, self.level_count).copy(), 1 - 2 * index
            length = difference(self._rows[index], rows, sign, int(side), self._scratch, length)
            self._rows[index] = rows
        changes = self._scratch[:length].copy()
        if length:
            self.generation += 1
            self.sequence = sequence
            self._remember(changes.tolist())
        return changes

    def reset(self, sequence: int) -> None:
        """Forget the history, not the levels: every reader takes the whole view next."""
        self.generation += 1
        self.sequence = sequence
        self.oldest_generation = self.generation
        self._changes.clear()

    def levels(self) -> tuple[Rows, Rows]:
        """Return the view's bids and asks, best first."""
        return self._rows[0][::-1], self._rows[1][::-1]

    def since(self, generation: int) -> Rows | None:
        """Return each level changed after `generation` with its newest value, or None: too old."""
        if generation < self.oldest_generation or generation > self.generation:
            return None
        found: list[tuple[int, int, int, int]] = []
        for (side, price), (changed_in, lots, orders) in reversed(self._changes.items()):
            if changed_in <= generation:
                break
            found.append((side, price, lots, orders))
        found.reverse()
        return np.array(found, np.int64).reshape(-1, CHANGE_COLUMNS)

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
