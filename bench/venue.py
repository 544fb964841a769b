"""A funded pair to measure on, in memory like the product's: segments of shared memory.

The kernel's arrays may be anonymous memory, which numpy asks the system to back with large pages,
or segments, which most systems back with small ones. The product runs on segments, so these are
what is measured.
"""

import itertools
import os
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import numpy as np

from engine.state_machine import Engine
from engine.vault_layout import vault_layout
from exchange.book_layout import book_layout, segment_name
from exchange.enums import Asset, CommandKind, ExecutionKind
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.ownership import Owned
from exchange.records import (
    C_AMOUNT,
    C_PRICE,
    C_TRANSFER_NUMBER,
    C_VERB,
    COMMAND_BYTES,
    COMMAND_WORDS,
    Rows,
    command_verb,
    kind_of,
)

ACCOUNTS: Final = 1000
_NUMBERS: Final = itertools.count()
START_NS: Final = 1_700_000_000_000_000_000

INSTRUMENT: Final = Instrument(
    pair="BENCH-USD",
    base_asset="BENCH",
    quote_asset="USD",
    base_decimals=0,
    quote_decimals=0,
    tick_quote_units=1,
    base_units_per_lot=1,
    price_capacity_ticks=1 << 21,
    quantity_limit_lots=1 << 30,
    taker_fee_ppm=1_000,
    maker_fee_ppm=500,
    order_capacity=1 << 16,
    account_capacity=1 << 10,
    client_id_window=1 << 17,
).validate()


def funding(account_count: int = ACCOUNTS) -> Rows:
    """Return the commands that give each account an equal share of all the money there can be."""
    share = AMOUNT_LIMIT_UNITS // account_count
    rows = np.zeros((2 * account_count, COMMAND_WORDS), np.int64)
    index = np.arange(len(rows))
    rows[:, C_VERB] = command_verb(CommandKind.ALLOT_FUNDS, 0) | (1 + index // 2) << 32
    rows[:, C_TRANSFER_NUMBER] = index + 1
    rows[:, C_PRICE] = np.where(index % 2 == 0, int(Asset.BASE), int(Asset.QUOTE))
    rows[:, C_AMOUNT] = share
    return rows


class Venue:
    """An engine over two owned segments whose accounts can pay for what they ask for."""

    def __init__(self, instrument: Instrument = INSTRUMENT, account_count: int = ACCOUNTS) -> None:
        # One name per process and venue: several runs side by side must not meet.
        pair = f"BENCH-{os.getpid()}-{next(_NUMBERS)}"
        self.instrument = instrument = replace(instrument, pair=pair)
        self.account_count = account_count
        self.vault = Owned.claim(segment_name(pair, "vault"), vault_layout(instrument))
        self.book = Owned.claim(segment_name(pair, "book"), book_layout(instrument))
        self.engine = Engine(instrument, self.vault.arrays, self.book.arrays)
        self.fund()

    def fund(self) -> None:
        """Give every account its share."""
        executions = self.engine.apply(funding(self.account_count), START_NS)
        assert (kind_of(executions) == ExecutionKind.ALLOTTED).all()

    def reset(self) -> None:
        """Start anew in the same memory: no order, and no page to be fetched for the first time."""
        for owned in (self.vault, self.book):
            for array in owned.arrays.values():
                array.fill(0)
        self.engine.configure()
        self.fund()

    def run(self, commands: Rows, batch: int) -> None:
        """Apply commands, so many a call, as the sequencer does; the executions are left."""
        run(self.engine, commands, batch)

    def close(self) -> None:
        """Give the memory back."""
        del self.engine
        for owned in (self.vault, self.book):
            owned.close(unlink=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def run(engine: Engine, commands: Rows, batch: int) -> None:
    """Apply commands to an engine, so many a call."""
    address, left = commands.ctypes.data, len(commands)
    while left:
        applied = engine.apply_at(address, min(batch, left), START_NS)
        left -= applied
        address += applied * COMMAND_BYTES
