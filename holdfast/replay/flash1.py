"""The flow of the flash1 matching contest: its messages as commands, executions as its text.

    N,id,side,price,qty,ioc     new order; side B or S
    C,id                        cancel
    M,id,side,price,qty         modify: cancel and re-insert at the tail with the full quantity

The contest judges an engine by the SHA-256 of a report text, so the replay is compared byte for
byte. A modify to the same price and no more than the order's last quantity would keep its place by
our rules. It is sent as two amends: the first grows the order where it stands, which puts it at
the tail and cannot trade; the second gives it the size asked for and keeps the place. Neither needs
the answer of the other, and both are refused when the order is gone.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from exchange.enums import ExecutionKind, Side, TimeInForce
from exchange.instrument import Instrument
from exchange.records import (
    E_CLIENT_ORDER_ID,
    E_LEAVES,
    E_MAKER_CLIENT_ORDER_ID,
    E_QUANTITY,
    Rows,
    kind_of,
    price_of,
    side_of,
)
from holdfast.replay.formats import (
    CommandList,
    Comparison,
    Integers,
    Recording,
    RecordingError,
    command_index,
    fill_rows,
    read_lines,
)

SIDES: Final = {"B": Side.BUY, "S": Side.SELL}
PRICE_CAPACITY_TICKS: Final = 1 << 16
QUANTITY_LIMIT_LOTS: Final = 1 << 30
GROWN_LOTS: Final = QUANTITY_LIMIT_LOTS
"""What the first of two amends grows an order to: more than any order of a flow has."""

ACK: Final = 0
TRADE: Final = 1
CANCEL: Final = 2
MODIFY: Final = 3
CANCEL_REJECT: Final = 4
MODIFY_REJECT: Final = 5


@dataclass(frozen=True, eq=False)
class Flash1Recording(Recording):
    """A flow with the hashes of the report text after some numbers of messages."""

    verbs: bytes = b""
    """First letter of each message: N, C or M."""
    checkpoints: dict[int, str] = field(default_factory=dict)
    """Message count -> SHA-256 of the report text so far, in hexadecimal."""

    def report_lines(self, executions: Rows) -> tuple[list[str], Integers]:
        """Return the report lines that the executions stand for, and the message of each."""
        return report_lines(self, executions)

    def compare(self, executions: Rows) -> Comparison:
        """Count the checkpoints at which the report text agrees byte for byte."""
        lines, messages = report_lines(self, executions)
        reached = {count: sha for count, sha in self.checkpoints.items() if count <= self.reached}
        matched = sum(
            hash_after(lines, messages, count) == expected for count, expected in reached.items()
        )
        return Comparison("report hashes", matched, len(reached), self.notes)

    @property
    def reached(self) -> int:
        """Return how many messages of the flow this recording holds."""
        return len(self.verbs)


def read(path: Path, message_limit: int | None = None, account: int = 1) -> Flash1Recording:
    """Read the first messages of a flow; checkpoints are taken from a file beside it."""
    commands = CommandList(account)
    verbs = bytearray()
    places: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(read_lines(path)):
        if number == message_limit:
            break
        commands.message_index = number
        try:
            _translate(commands, places, line.split(","))
        except (IndexError, KeyError, OverflowError, ValueError) as error:
            raise RecordingError(f"{path.name} line {number + 1} is {line!r}") from error
        verbs.append(ord(line[0]))
    words, index, time_ns = commands.columns()
    return Flash1Recording(
        name=path.name,
        instrument=_instrument(),
        commands=words,
        message_index=index,
        time_ns=time_ns,
        message_count=len(verbs),
        fills=fill_rows([]),
        verbs=bytes(verbs),
        checkpoints=_checkpoints(path.parent.glob("*.checkpoints.json")),
    )


def _translate(commands: CommandList, places: dict[str, tuple[str, int]], words: list[str]) -> None:
    verb, name = words[0], words[1]
    # The contest counts orders from zero, we from one.
    order = int(name) + 1
    if verb == "N":
        _, _, side, price, quantity, immediate = words
        force = TimeInForce.GOOD_TILL_CANCELLED
        if immediate == "1":
            force = TimeInForce.IMMEDIATE_OR_CANCEL
        places[name] = (price, int(quantity))
        commands.new_order(order, SIDES[side], int(price), int(quantity), time_in_force=force)
    elif verb == "C":
        places.pop(name, None)
        commands.cancel(order)
    elif verb == "M":
        _, _, _, price, quantity = words
        old_price, old_quantity = places.get(name, ("", 0))
        if price == old_price and int(quantity) <= old_quantity:
            commands.amend(order, 0, GROWN_LOTS)
        if old_price:
            places[name] = (price, int(quantity))
        commands.amend(order, int(price), int(quantity))
    else:
        raise ValueError(verb)


def _instrument() -> Instrument:
    return Instrument(
        pair="FLASH1-USD",
        base_asset="FLASH1",
        quote_asset="USD",
        base_decimals=0,
        quote_decimals=0,
        tick_quote_units=1,
        base_units_per_lot=1,
        price_capacity_ticks=PRICE_CAPACITY_TICKS,
        quantity_limit_lots=QUANTITY_LIMIT_LOTS,
        taker_fee_ppm=0,
        order_capacity=1 << 16,
        client_id_window=1 << 17,
    ).validate()


def _checkpoints(paths: Iterable[Path]) -> dict[int, str]:
    found: dict[int, str] = {}
    for path in paths:
        hashes = json.loads(path.read_text())["prefix_sha256"]
        found.update({int(count): str(sha) for count, sha in hashes.items()})
    return found


def report_lines(recording: Flash1Recording, executions: Rows) -> tuple[list[str], Integers]:
    """Return the report of a replay: its lines in order, and the message of each.

    Within a message the lines are ordered by kind, and trades as they happened. Of a modify sent
    as two amends only the second speaks.
    """
    command = command_index(executions)
    message = recording.message_index[command]
    verb = np.frombuffer(recording.verbs, dtype=np.uint8)[message]
    kind = kind_of(executions)
    index = recording.message_index
    speaks = np.append(index[1:] != index[:-1], True)[command]
    accepted = kind == ExecutionKind.ACCEPTED
    gone = (kind == ExecutionKind.CANCELLED) | (kind == ExecutionKind.EXPIRED)
    rejected = (kind == ExecutionKind.REJECTED) & speaks
    masks = {
        ACK: accepted,
        TRADE: kind == ExecutionKind.TRADE,
        CANCEL: gone,
        MODIFY: (kind == ExecutionKind.AMENDED) & speaks,
        CANCEL_REJECT: rejected & (verb == ord("C")),
        MODIFY_REJECT: rejected & (verb == ord("M")),
    }
    side = side_of(executions) - Side.BUY
    order = executions[:, E_CLIENT_ORDER_ID] - 1
    maker = executions[:, E_MAKER_CLIENT_ORDER_ID] - 1
    price = price_of(executions)
    quantity = executions[:, E_QUANTITY]
    shape = {
        ACK: ("0,%d,%d,%d,%d,%d", (message, side, order, price, quantity)),
        TRADE: ("1,%d,%d,%d,%d,%d", (message, price, quantity, maker, order)),
        CANCEL: ("2,%d,%d,%d,%d", (message, side, order, price)),
        MODIFY: ("3,%d,%d,%d,%d,%d", (message, side, order, price, executions[:, E_LEAVES])),
        CANCEL_REJECT: ("4,%d,%d", (message, order)),
        MODIFY_REJECT: ("5,%d,%d", (message, order)),
    }
    lines = np.empty(len(executions), dtype=object)
    report_kind = np.full(len(executions), -1, dtype=np.int64)
    for code, mask in masks.items():
        text, columns = shape[code]
        values = zip(*(column[mask].tolist() for column in columns), strict=True)
        lines[mask] = [text % row for row in values]
        report_kind[mask] = code
    place = np.lexsort((report_kind, message))
    place = place[report_kind[place] >= 0]
    return lines[place].tolist(), message[place]


def hash_after(lines: list[str], messages: Integers, message_count: int) -> str:
    """Return the SHA-256 of the report text after so many messages, in hexadecimal."""
    end = int(np.searchsorted(messages, message_count))
    return hashlib.sha256("\n".join(lines[:end]).encode()).hexdigest()
