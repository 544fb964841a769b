"""What every recorded format is turned into: commands in our own records, and what to expect.

A recording is read in place, compressed or not; nothing is unpacked to disk. Its reader plays the
members of the recorded exchange: it says what they must have sent for the recording to come about.
The commands never depend on an answer, so that they can be sent as fast as the receiver takes
them: every order is named by a client order id, and whatever the reader must know about an order
it keeps itself.

All money is whole numbers; a recorded decimal that does not fit its grid is an error, never
rounded. This module neither matches nor sends.
"""

import json
import lzma
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from exchange.enums import (
    CommandKind,
    ExecutionKind,
    OrderType,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from exchange.instrument import Instrument
from exchange.records import (
    C_VERB,
    COMMAND_FLAG_LEAVES,
    COMMAND_WORDS,
    E_CLIENT_ORDER_ID,
    E_MAKER_CLIENT_ORDER_ID,
    E_QUANTITY,
    E_SEQUENCE,
    Rows,
    command_price,
    command_verb,
    kind_of,
    price_of,
)

Integers = npt.NDArray[np.int64]

FILL_WORDS: Final = 4
"""A fill is maker client order id, taker client order id, price in ticks, lots."""

NO_EXPONENT_DIGITS: Final = frozenset("0123456789.")


class RecordingError(ValueError):
    """A recording that cannot be read; the message names file, line and value."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a replay gave against what was recorded."""

    what: str
    """What is counted, in the plural."""
    matched_count: int
    expected_count: int
    notes: tuple[str, ...] = ()
    """Whole sentences for people: what was left out or differs, and why."""

    def __str__(self) -> str:
        return f"{self.matched_count:,} of {self.expected_count:,} {self.what} as recorded"


@dataclass(frozen=True, eq=False)
class Recording:
    """Recorded flow as commands, in the order in which they must be applied."""

    name: str
    instrument: Instrument
    """A grid on which every command of the recording is valid."""
    commands: Rows
    """(n, 8) command records without a source; the orders belong to one account."""
    message_index: Integers
    """(n,): number, from zero, of the recorded line that caused the command. Ascending."""
    time_ns: Integers
    """(n,): recorded time of each command; ascending; zero where the format has no time."""
    message_count: int
    """Recorded lines, with those that cause no command."""
    fills: Integers
    """(k, 4): the recorded fills in order: maker and taker client order id, ticks, lots."""
    notes: tuple[str, ...] = ()
    """Whole sentences about what was left out, and why."""

    def batches(self, size: int) -> Iterator[slice]:
        """Yield the commands as consecutive slices of at most `size`."""
        assert size > 0
        for start in range(0, len(self.commands), size):
            yield slice(start, min(start + size, len(self.commands)))

    def for_account(self, account: int) -> Rows:
        """Return the commands as sent by another account; (n, 8), a copy."""
        rows = self.commands.copy()
        rows[:, C_VERB] = rows[:, C_VERB] & 0xFFFFFFFF | account << 32
        return rows

    def compare(self, executions: Rows) -> Comparison:
        """Compare the fills of a replay with the recorded ones: orders, price and lots.

        `executions` are all the (m, 16) executions that the commands caused, in order. What two
        orders traded at one price counts as one fill, however many lines the recording gave it.
        """
        got, expected = _lots_by_fill(fills_of(executions)), _lots_by_fill(self.fills)
        matched = sum(got.get(fill) == lots for fill, lots in expected.items())
        extra = sum(fill not in expected for fill in got)
        notes = self.notes + ((f"{extra:,} fills were not recorded.",) if extra else ())
        return Comparison("fills", matched, len(expected), notes)


class CommandList:
    """Commands while a recording is being read.

    One flat array of machine words: half a million commands take 32 MB and no object each.
    """

    def __init__(self, account: int) -> None:
        self._words = array("q")
        self._message_index = array("q")
        self._time_ns = array("q")
        self._cancel_verb = command_verb(CommandKind.CANCEL_ORDER, account)
        self._amend_verb = command_verb(CommandKind.AMEND_ORDER, account)
        self._new_verbs = {
            (side, kind, force): command_verb(CommandKind.NEW_ORDER, account, side, kind, force)
            for side in (Side.BUY, Side.SELL)
            for kind in OrderType
            for force in TimeInForce
        }
        self._leaves_word = command_price(0, 0, COMMAND_FLAG_LEAVES)
        self.message_index = 0
        """Recorded line of the commands that follow."""
        self.time_ns = 0
        """Recorded time of the commands that follow."""

    def new_order(
        self,
        client_order_id: int,
        side: Side,
        price_ticks: int,
        quantity_lots: int,
        *,
        order_type: OrderType = OrderType.LIMIT,
        time_in_force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
        flags: int = 0,
    ) -> None:
        """Append a new order; own orders may meet, because one account plays all members."""
        verb = self._new_verbs[side, order_type, time_in_force]
        _check_price(price_ticks)
        price = command_price(price_ticks, SelfTradePrevention.NONE, flags)
        self._append(verb, client_order_id, price, quantity_lots)

    def cancel(self, client_order_id: int) -> None:
        """Append the cancel of an order."""
        self._append(self._cancel_verb, client_order_id, 0, 0)

    def amend(self, client_order_id: int, price_ticks: int, leaves_lots: int) -> None:
        """Append an amend to what shall be left open; price 0: as it is."""
        _check_price(price_ticks)
        self._append(
            self._amend_verb, client_order_id, self._leaves_word | price_ticks, leaves_lots
        )

    def _append(self, verb: int, client_order_id: int, price: int, quantity: int) -> None:
        self._words.extend((verb, client_order_id, 0, price, quantity, 0, 0, 0))
        self._message_index.append(self.message_index)
        self._time_ns.append(self.time_ns)

    def columns(self) -> tuple[Rows, Integers, Integers]:
        """Return commands (n, 8), message index (n,) and time (n,)."""
        words = np.array(self._words, dtype=np.int64).reshape(-1, COMMAND_WORDS)
        index = np.array(self._message_index, dtype=np.int64)
        return words, index, np.array(self._time_ns, dtype=np.int64)


def _check_price(price_ticks: int) -> None:
    """Refuse what would run over into the other half of the price word."""
    if price_ticks >> 32:
        raise RecordingError(f"price is {price_ticks} ticks; it must be from 0 to {(1 << 32) - 1}")


def fills_of(executions: Rows) -> Integers:
    """Return the trades among executions as (k, 4) fills."""
    trades = executions[kind_of(executions) == ExecutionKind.TRADE]
    fills = np.empty((len(trades), FILL_WORDS), dtype=np.int64)
    fills[:, 0] = trades[:, E_MAKER_CLIENT_ORDER_ID]
    fills[:, 1] = trades[:, E_CLIENT_ORDER_ID]
    fills[:, 2] = price_of(trades)
    fills[:, 3] = trades[:, E_QUANTITY]
    return fills


def _lots_by_fill(fills: Integers) -> Counter[tuple[int, ...]]:
    lots: Counter[tuple[int, ...]] = Counter()
    for *fill, traded in fills.tolist():
        lots[tuple(fill)] += traded
    return lots


def fill_rows(fills: list[tuple[int, int, int, int]]) -> Integers:
    """Return fills as a (k, 4) array, also when there are none."""
    return np.array(fills, dtype=np.int64).reshape(-1, FILL_WORDS)


def instrument_table(instrument: Instrument) -> str:
    """Return an instrument as a table of an instruments file (TOML)."""
    lines = [f'["{instrument.pair}"]']
    for field in fields(instrument):
        value = getattr(instrument, field.name)
        if field.name != "pair":
            lines.append(f"{field.name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def command_index(executions: Rows) -> Integers:
    """Return for each execution the number, from zero, of the command that caused it.

    Every command causes at least one execution, so the rank of a sequence among those of one flow
    is the number of its command, wherever in the pair's order the flow began and whoever else
    traded meanwhile.
    """
    return np.unique(executions[:, E_SEQUENCE], return_inverse=True)[1].astype(np.int64)


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, decompressed on the way when its name ends in .xz.

    Raises RecordingError when the file is cut short, damaged or no text, OSError when it cannot be
    opened.
    """
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as lines:
        try:
            for line in lines:
                yield line.rstrip("\r\n")
        except (EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
            raise RecordingError(f"{path.name} cannot be read: {error}") from error


def scaled(text: str, decimals: int) -> int:
    """Return a decimal as a whole number of 10**-decimals, or raise RecordingError."""
    if NO_EXPONENT_DIGITS.issuperset(text):
        whole, _, fraction = text.partition(".")
        if len(fraction) <= decimals and whole:
            return int(whole + fraction.ljust(decimals, "0"))
    try:
        number = Decimal(text).scaleb(decimals)
        if number == int(number):
            return int(number)
    except (ArithmeticError, ValueError) as error:
        raise RecordingError(f"{text!r} is not a decimal number") from error
    raise RecordingError(f"{text!r} has more than {decimals} decimals")
