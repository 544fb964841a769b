"""A pair in memory with funded accounts, and the ways these tests look at its book.

The book is read from what the kernel publishes (levels, touch, depth copies) wherever the question
is about levels, so that a replay proves the publication together with the matching.
"""

from collections.abc import Iterator

import numpy as np

from engine.state_machine import Engine
from engine.vault_layout import H_ACCOUNT, H_PRICE, HIGH_WATER, O_ORDER_ID
from exchange.book_layout import (
    BEST_TICK,
    DEPTH_ASK_COUNT,
    DEPTH_BID_COUNT,
    DEPTH_COMMIT,
    DEPTH_HEAD,
    DEPTH_HEADER_WORDS,
    DEPTH_LEVEL_WORDS,
    DEPTH_SEQUENCE,
    LEVEL_LOTS,
)
from exchange.enums import Asset, CommandKind, ExecutionKind, Side
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.records import (
    C_AMOUNT,
    C_PRICE,
    C_TRANSFER_NUMBER,
    C_VERB,
    COMMAND_WORDS,
    EXECUTION_WORDS,
    Rows,
    command_verb,
    kind_of,
)

Level = tuple[int, int, int]
"""Price in ticks, lots, orders."""
OpenOrder = tuple[int, int, int, int, int]
"""Account, client order id, side, price in ticks, leaves."""

BATCH = 4096
START_NS = 1_000_000_000


class Venue:
    """One pair over plain memory, whose first accounts can pay for everything they ask for."""

    def __init__(self, instrument: Instrument, account_count: int = 1) -> None:
        self.engine = Engine.in_memory(instrument)
        self.depth_level_count = instrument.depth_level_count
        executions = self.apply(allotments(account_count))
        assert (kind_of(executions) == ExecutionKind.ALLOTTED).all()

    def apply(self, commands: Rows) -> Rows:
        """Apply commands in batches and return all their executions."""
        parts = [
            self.engine.apply(commands[start : start + BATCH], START_NS)
            for start in range(0, len(commands), BATCH)
        ]
        return np.concatenate([np.empty((0, EXECUTION_WORDS), np.int64), *parts])

    def top(self) -> tuple[Level | None, Level | None]:
        """Return best bid and best ask as the public book has them; None where a side is empty."""
        scalars, levels = self.engine.book["scalars"], self.engine.book["levels"]
        best: list[Level | None] = []
        for side in (0, 1):
            price = int(scalars[BEST_TICK + side])
            lots, orders = levels[side * (len(levels) // 2) + price].tolist()
            best.append((price, lots, orders) if price else None)
        return best[0], best[1]

    def depth(self) -> tuple[list[Level], list[Level]]:
        """Return bids and asks, best first, as the newest published depth copy has them."""
        self.engine.publish_idle()
        copies, head = self.engine.book["depth"], int(self.engine.book["scalars"][DEPTH_HEAD])
        copy = copies[head % len(copies)].tolist()
        assert copy[DEPTH_COMMIT] == head
        assert copy[DEPTH_SEQUENCE] == self.engine.sequence
        sides: list[list[Level]] = []
        for side, count in enumerate((copy[DEPTH_BID_COUNT], copy[DEPTH_ASK_COUNT])):
            first = DEPTH_HEADER_WORDS + side * self.depth_level_count * DEPTH_LEVEL_WORDS
            words = copy[first : first + count * DEPTH_LEVEL_WORDS]
            sides.append(list(zip(words[0::3], words[1::3], words[2::3], strict=True)))
        return sides[0], sides[1]

    def level_lots(self, side: Side) -> dict[int, int]:
        """Return the lots of every occupied level of a side, by price."""
        levels = self.engine.book["levels"]
        half = len(levels) // 2
        lots = levels[:half, LEVEL_LOTS] if side == Side.BUY else levels[half:, LEVEL_LOTS]
        return {int(price): int(lots[price]) for price in np.flatnonzero(lots)}

    def open_orders(self) -> set[OpenOrder]:
        """Return every resting order of the vault."""
        high_water = int(self.engine.vault["scalars"][HIGH_WATER])
        rows = self.engine.vault["orders"][: high_water + 1]
        rows = rows[rows[:, O_ORDER_ID] != 0]
        halves = rows.view(np.int32)
        return {
            (int(half[H_ACCOUNT]), int(row[1]), int(row[7] & 0xFF), int(half[H_PRICE]), int(row[2]))
            for row, half in zip(rows, halves, strict=True)
        }


def allotments(account_count: int) -> Rows:
    """Return the commands that give each account an equal share of all the money there can be."""
    share = AMOUNT_LIMIT_UNITS // max(1, account_count)
    rows = np.zeros((2 * account_count, COMMAND_WORDS), np.int64)
    for index in range(len(rows)):
        account, asset = 1 + index // 2, Asset.BASE if index % 2 == 0 else Asset.QUOTE
        rows[index, C_VERB] = command_verb(CommandKind.ALLOT_FUNDS, account)
        rows[index, C_TRANSFER_NUMBER] = index + 1
        rows[index, C_PRICE] = asset
        rows[index, C_AMOUNT] = share
    return rows


def by_message(message_index: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yield each recorded message that causes commands, and their slice."""
    if len(message_index) == 0:
        return
    starts = np.flatnonzero(np.diff(message_index, prepend=-1)).tolist()
    ends = [*starts[1:], len(message_index)]
    for start, end in zip(starts, ends, strict=True):
        yield int(message_index[start]), slice(start, end)
