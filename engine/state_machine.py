"""One pair's state machine: the arrays, the kernel over them, and what can be asked of both.

``Engine`` turns rows of commands into rows of executions. It knows no clock, no disk and no
process: the sequencer gives it time, the journal makes its commands durable, the execution log
keeps what it says. Its arrays may be plain memory (tests, replays) or owned segments.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from engine.kernel.apply import OUTPUT_RESERVE, apply_batch, publish_again, publish_idle
from engine.kernel.check import check_state
from engine.kernel.state import (
    BOOK_FIELDS,
    BOOK_FIRST,
    CONTEXT_WORDS,
    VAULT_FIELDS,
    W_BITS,
    W_DEPTH_WORDS,
    W_EMITTED,
)
from engine.vault_layout import (
    ACCOUNT_CAPACITY,
    BAND_HIGH,
    BAND_LOW,
    BAND_PPM,
    CLIENT_NUMBER,
    CLIENT_WINDOW,
    DEFAULT_MAKER_PPM,
    DEFAULT_TAKER_PPM,
    DEPTH_COPIES,
    DEPTH_LEVELS,
    EVENT_CAPACITY,
    EXECUTION_COUNT,
    HIGH_WATER,
    MINIMUM_NOTIONAL,
    ORDER_CAPACITY,
    PAIR_STATUS,
    PRICE_CAPACITY,
    QUANTITY_LIMIT,
    SEQUENCE,
    TAKER_FLOOR_PPM,
    UNITS_PER_LOT,
    UNITS_PER_TICK_LOT,
    vault_layout,
)
from exchange.book_layout import (
    BOOK_BASE_DECIMALS,
    BOOK_BASE_UNITS_PER_LOT,
    BOOK_DEPTH_COPIES,
    BOOK_DEPTH_LEVELS,
    BOOK_EVENT_CAPACITY,
    BOOK_PRICE_CAPACITY,
    BOOK_QUOTE_DECIMALS,
    BOOK_TICK_QUOTE_UNITS,
    bitmap_words,
    book_layout,
)
from exchange.enums import PairStatus
from exchange.instrument import Instrument
from exchange.ownership import Layout
from exchange.records import COMMAND_BYTES, COMMAND_WORDS, EXECUTION_WORDS

Rows = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]

OUTPUT_HEADROOM: Final = 1 << 14
"""Executions the output holds beyond the largest single command: a batch seldom needs a second
call, and only the pages that are used cost memory."""

BROKEN_INVARIANTS: Final = {
    1: "best bid >= best ask",
    2: "a level's lots or order count differ from its queue",
    3: "a queue's links are inconsistent or its orders stand at another price or side",
    4: "occupancy bitmap and levels disagree",
    5: "best price is not the best occupied level",
    6: "an account's list of orders is inconsistent",
    7: "an account's held units differ from its orders' holds",
    8: "a balance is below zero",
    9: "free + held + fees differ from allotted less released",
    10: "the number of resting orders differs",
    11: "free slots and resting orders do not add up",
    12: "the list of open accounts differs from the accounts that are open",
}


class Engine:
    """The deterministic core of one pair."""

    def __init__(self, instrument: Instrument, vault: Arrays, book: Arrays) -> None:
        """Work on the given arrays, which are all zero or a state this class has made before."""
        self.instrument = instrument
        self.vault = vault
        self.book = book
        self._output: Rows = np.zeros(
            (instrument.order_capacity + OUTPUT_RESERVE + OUTPUT_HEADROOM, EXECUTION_WORDS),
            np.int64,
        )
        self._context: Rows = np.zeros(CONTEXT_WORDS, np.int64)
        for index, field in enumerate(VAULT_FIELDS):
            self._context[index] = vault[field].ctypes.data
        for index, field in enumerate(BOOK_FIELDS):
            self._context[BOOK_FIRST + index] = book[field].ctypes.data
        for index, count in enumerate(bitmap_words(instrument.price_capacity_ticks)):
            self._context[W_BITS + index] = count
        self._context[W_DEPTH_WORDS] = book["depth"].shape[1]
        self._context_address = self._context.ctypes.data
        self._output_capacity = self._output.shape[0]
        self._output_address = self._output.ctypes.data
        self._scalars: Rows = vault["scalars"]
        self.configure()

    @classmethod
    def in_memory(cls, instrument: Instrument) -> "Engine":
        """Return an engine over fresh anonymous memory."""
        instrument.validate()
        return cls(
            instrument, _allocate(vault_layout(instrument)), _allocate(book_layout(instrument))
        )

    def configure(self) -> None:
        """Write the instrument into the arrays; open the pair if it was never opened."""
        instrument, scalars, public = self.instrument, self._scalars, self.book["scalars"]
        for word, value in (
            (PRICE_CAPACITY, instrument.price_capacity_ticks),
            (ORDER_CAPACITY, instrument.order_capacity),
            (ACCOUNT_CAPACITY, instrument.account_capacity),
            (CLIENT_WINDOW, instrument.client_id_window),
            (UNITS_PER_TICK_LOT, instrument.quote_units_per_tick_lot),
            (UNITS_PER_LOT, instrument.base_units_per_lot),
            (QUANTITY_LIMIT, instrument.quantity_limit_lots),
            (MINIMUM_NOTIONAL, instrument.minimum_notional_units),
            (DEFAULT_TAKER_PPM, instrument.taker_fee_ppm),
            (DEFAULT_MAKER_PPM, instrument.maker_fee_ppm),
            (TAKER_FLOOR_PPM, instrument.taker_fee_floor_ppm),
            (EVENT_CAPACITY, instrument.event_capacity),
            (DEPTH_LEVELS, instrument.depth_level_count),
            (DEPTH_COPIES, instrument.depth_copy_count),
        ):
            scalars[word] = value
        for word, value in (
            (BOOK_PRICE_CAPACITY, instrument.price_capacity_ticks),
            (BOOK_EVENT_CAPACITY, instrument.event_capacity),
            (BOOK_DEPTH_LEVELS, instrument.depth_level_count),
            (BOOK_DEPTH_COPIES, instrument.depth_copy_count),
            (BOOK_BASE_DECIMALS, instrument.base_decimals),
            (BOOK_QUOTE_DECIMALS, instrument.quote_decimals),
            (BOOK_TICK_QUOTE_UNITS, instrument.tick_quote_units),
            (BOOK_BASE_UNITS_PER_LOT, instrument.base_units_per_lot),
        ):
            public[word] = value
        if scalars[PAIR_STATUS] == PairStatus.UNSPECIFIED:
            scalars[PAIR_STATUS] = PairStatus.OPEN
            scalars[BAND_LOW] = 1
            scalars[BAND_HIGH] = instrument.price_capacity_ticks - 1
            scalars[BAND_PPM] = instrument.price_band_ppm

    @property
    def sequence(self) -> int:
        """Return the sequence of the last applied command."""
        return int(self._scalars[SEQUENCE])

    @property
    def execution_count(self) -> int:
        """Return how many executions were ever emitted: the number of the next one."""
        return int(self._scalars[EXECUTION_COUNT])

    def apply_at(self, commands_address: int, count: int, time_ns: int) -> int:
        """Apply so many command rows at an address; return how many were applied.

        Fewer than count when the output is full: take ``executions`` and call again with the
        rest. The rows are 64 bytes each and stay where they are during the call.
        """
        return apply_batch(
            self._context_address,
            commands_address,
            count,
            time_ns,
            self._output_address,
            self._output_capacity,
        )

    @property
    def executions(self) -> Rows:
        """Return the executions of the last call, (m, 16), a view valid until the next one."""
        return self._output[: self._context[W_EMITTED]]

    def apply(self, commands: Rows, time_ns: int) -> Rows:
        """Apply all commands; return their executions, (m, 16) int64, as a copy."""
        rows = np.ascontiguousarray(commands, dtype=np.int64).reshape(-1, COMMAND_WORDS)
        parts: list[Rows] = []
        applied = 0
        while applied < len(rows) or not parts:
            address = rows.ctypes.data + applied * COMMAND_BYTES
            applied += self.apply_at(address, len(rows) - applied, time_ns)
            parts.append(self.executions.copy())
        return np.concatenate(parts)

    def publish_idle(self) -> None:
        """Bring the published depth up to date when nothing is waiting."""
        publish_idle(self._context_address)

    def publish_again(self) -> None:
        """Make every publication consistent after a take-over or a restored snapshot."""
        publish_again(self._context_address)

    def check(self) -> None:
        """Raise AssertionError naming the first broken invariant."""
        code = check_state(self._context_address)
        assert code == 0, f"sequence {self.sequence}: {BROKEN_INVARIANTS[code]}"

    def used(self) -> dict[str, npt.NDArray[Any]]:
        """Return the parts of the vault that decide future behaviour, in a fixed order.

        Levels, queues, bitmaps, hash chains and the list of open accounts follow from these;
        ``check`` compares them.
        """
        orders = int(self._scalars[HIGH_WATER]) + 1
        entries = min(int(self._scalars[CLIENT_NUMBER]) + 1, self.instrument.client_id_window)
        return {
            "scalars": self.vault["scalars"],
            "sources": self.vault["sources"],
            "accounts": self.vault["accounts"],
            "orders": self.vault["orders"][:orders],
            "client_entries": self.vault["client_entries"][:entries],
        }

    def state_hash(self) -> int:
        """Return a 64-bit hash of the state (XXH3); equal states, equal hashes, everywhere."""
        digest = xxhash.xxh3_64()
        for array in self.used().values():
            digest.update(np.ascontiguousarray(array).data)
        return digest.intdigest()


def _allocate(layout: Layout) -> dict[str, npt.NDArray[Any]]:
    return {field.name: np.zeros(field.shape, field.dtype) for field in layout.fields}
