"""The packed doors: many commands in, many acknowledgements out, without a Python step per order.

A batch is an array of 32-byte records, checked and widened to 64-byte command rows straight into
the inbox ring by one compiled pass; the acknowledgements are folded from the execution log into an
array by position in the ring by another. Layouts: `exchange.packed`.

Invariants: a trader's door lets only NEW_ORDER, CANCEL_ORDER, AMEND_ORDER and CANCEL_ALL pass, any
other kind reaches the engine as kind 0 and is refused there; what a kind does not use is zero, so
that a command has the same bytes whichever door it came through; values outside the enumerations
are passed on, and the engine answers each with its reason.

Not here: whether there is room, who waits for what, and anything asynchronous.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from engine.order_entry import Command
from exchange.compiled import kernel
from exchange.enums import CommandKind, ExecutionKind, Reason, SelfTradePrevention
from exchange.packed import (
    ACK_CLIENT_ORDER_ID,
    ACK_FILLED,
    ACK_LAST_NUMBER,
    ACK_LEAVES,
    ACK_ORDER_ID,
    ACK_VERB,
    ACK_WORDS,
    BATCH_LIMIT,
    RECORD_BYTES,
    RECORD_VERSION,
    RECORD_WORDS,
)
from exchange.records import (
    COMMAND_FLAG_LEAVES,
    COMMAND_FLAG_POST_ONLY,
    E_CLIENT_ORDER_ID,
    E_FILLED,
    E_LEAVES,
    E_ORDER_ID,
    E_QUANTITY,
    E_SOURCE,
    E_VERB,
    FLAG_LAST,
    SOURCE_POSITION_MASK,
    SOURCE_SHIFT,
    Rows,
)
from exchange.refusal import Refusal
from exchange.v1 import order_entry_pb2

NO_POSITION: Final = -1
FOLD_ACKED: Final = 0
"""Word of the fold's state: every position below it is answered."""
FOLD_OPEN: Final = 1
"""Word of the fold's state: the position whose executions are being read, or NO_POSITION."""
FOLD_WORDS: Final = 8

# Compiled code takes constants as plain integers.
_NEW: Final = int(CommandKind.NEW_ORDER)
_CANCEL: Final = int(CommandKind.CANCEL_ORDER)
_AMEND: Final = int(CommandKind.AMEND_ORDER)
_CANCEL_ALL: Final = int(CommandKind.CANCEL_ALL)
_CANCEL_NEWEST: Final = int(SelfTradePrevention.CANCEL_NEWEST)
_TRADE: Final = int(ExecutionKind.TRADE)
_CANCELLED: Final = int(ExecutionKind.CANCELLED)
_EXPIRED: Final = int(ExecutionKind.EXPIRED)
_PREVENTED: Final = int(ExecutionKind.PREVENTED)
_ALL_CANCELLED: Final = int(ExecutionKind.ALL_CANCELLED)
_NO_FUNDS: Final = int(ExecutionKind.REJECTED) | int(Reason.INSUFFICIENT_FUNDS) << 8
_NO_ACCOUNT: Final = int(ExecutionKind.REJECTED) | int(Reason.ACCOUNT_UNKNOWN) << 8
_CONTINUATIONS: Final = (_TRADE, _CANCELLED, _EXPIRED, _PREVENTED)
_AMEND_FLAGS: Final = COMMAND_FLAG_LEAVES
_NEW_FLAGS: Final = COMMAND_FLAG_POST_ONLY
_TRADES_LIMIT: Final = 0xFFFF
_EXECUTIONS_LIMIT: Final = 0xFFFFFFFF


@kernel
def expand_records(
    records: Rows, account: int, ring_source: int, position: int, rows: Rows
) -> None:
    """Write each record (n, 4) as the command row of `position`, `position + 1`, … of a ring.

    `ring_source` is the ring's number shifted into place, `rows` the ring's records (capacity, 8).
    The caller has made sure that all of them fit.
    """
    mask = rows.shape[0] - 1
    for i in range(records.shape[0]):
        record = records[i]
        packed = record[3]
        kind = (packed >> 32) & 0xF
        side = (packed >> 36) & 0xF
        shape = ((packed >> 40) & 0xF) << 16 | ((packed >> 44) & 0xF) << 24
        prevention = (packed >> 48) & 0xFF
        flags = (packed >> 56) & 0xFF
        price = packed & 0xFFFFFFFF
        if kind == _NEW:
            if prevention == 0:
                prevention = _CANCEL_NEWEST
            price |= prevention << 32 | (flags & _NEW_FLAGS) << 40
        elif kind == _AMEND:
            price |= (flags & _AMEND_FLAGS) << 40
        else:
            price = 0
        row = rows[(position + i) & mask]
        row[0] = (kind if kind <= _CANCEL_ALL else 0) | account << 32
        if kind == _NEW:
            row[0] |= side << 8 | shape
        elif kind == _CANCEL_ALL:
            row[0] |= side << 8
        named = kind in (_CANCEL, _AMEND)
        row[1] = record[0] if kind == _NEW or (named and record[1] == 0) else 0
        row[2] = record[1] if named else 0
        row[3] = price
        row[4] = record[2] if kind in (_NEW, _AMEND) else 0
        row[5] = ring_source | (position + i)
        row[6] = 0
        row[7] = 0


@kernel
def fold_acks(rows: Rows, first_number: int, ring: int, state: Rows, acks: Rows) -> int:
    """Fold executions into one acknowledgement per command of `ring`; return the new acked.

    `rows` (n, 16) are consecutive records of the log, the first with `first_number`; a command may
    be spread over several calls. The acknowledgement of a position stands in row
    `position & (len(acks) - 1)` once `state[FOLD_ACKED]` is beyond it.
    """
    mask = acks.shape[0] - 1
    for i in range(rows.shape[0]):
        row = rows[i]
        if row[E_SOURCE] >> SOURCE_SHIFT != ring:
            continue
        position = row[E_SOURCE] & SOURCE_POSITION_MASK
        if position < state[FOLD_ACKED]:
            continue
        kind = row[E_VERB] & 0xFF
        reason = (row[E_VERB] >> 8) & 0xFF
        ack = acks[position & mask]
        if state[FOLD_OPEN] != position:
            state[FOLD_OPEN] = position
            ack[ACK_CLIENT_ORDER_ID] = row[E_CLIENT_ORDER_ID]
            ack[ACK_ORDER_ID] = row[E_ORDER_ID]
            ack[ACK_FILLED] = row[E_FILLED]
            ack[ACK_LEAVES] = row[E_LEAVES]
            ack[ACK_VERB] = kind | reason << 8
        elif row[E_ORDER_ID] == ack[ACK_ORDER_ID] and kind in _CONTINUATIONS:
            ack[ACK_FILLED] = row[E_FILLED]
            ack[ACK_LEAVES] = row[E_LEAVES]
            ack[ACK_VERB] |= reason << 8
        if kind == _ALL_CANCELLED:
            ack[ACK_CLIENT_ORDER_ID] = 0
            ack[ACK_ORDER_ID] = 0
            ack[ACK_FILLED] = 0
            ack[ACK_LEAVES] = row[E_QUANTITY]
            ack[ACK_VERB] = (ack[ACK_VERB] >> 16) << 16 | kind
        if kind == _TRADE and (ack[ACK_VERB] >> 16) & _TRADES_LIMIT != _TRADES_LIMIT:
            ack[ACK_VERB] += 1 << 16
        if (ack[ACK_VERB] >> 32) & _EXECUTIONS_LIMIT != _EXECUTIONS_LIMIT:
            ack[ACK_VERB] += 1 << 32
        ack[ACK_LAST_NUMBER] = first_number + i
        if (row[E_VERB] >> 24) & FLAG_LAST:
            state[FOLD_ACKED] = position + 1
            state[FOLD_OPEN] = NO_POSITION
    acked: int = state[FOLD_ACKED]
    return acked


@kernel
def copy_acks(acks: Rows, position: int, out: Rows) -> int:
    """Copy the acknowledgements of `len(out)` positions from `position` on out of their ring.

    Return how many of them are refusals for lack of funds, or of an account that never had any.
    """
    mask = acks.shape[0] - 1
    short = 0
    for i in range(out.shape[0]):
        for word in range(ACK_WORDS):
            out[i, word] = acks[(position + i) & mask, word]
        verb = out[i, ACK_VERB] & 0xFFFF
        if verb in (_NO_FUNDS, _NO_ACCOUNT):
            short += 1
    return short


def record_of(command: Command) -> Rows:
    """Return the record (1, 4) of a trader's command, for `expand_records` to write again."""
    verb, price = command.verb, command.price
    shape = price & 0xFFFFFFFF | (verb & 0xF) << 32 | ((verb >> 8) & 0xF) << 36
    shape |= ((verb >> 16) & 0xF) << 40 | ((verb >> 24) & 0xF) << 44
    shape |= ((price >> 32) & 0xFF) << 48 | ((price >> 40) & 0x7F) << 56
    words = (command.client_order_id, command.order_id, command.quantity, shape)
    return np.array([words], np.int64)


def records_of(content: bytes) -> Rows | Refusal:
    """Return raw records as rows (n, 4), without a copy, or why they are none."""
    count, rest = divmod(len(content), RECORD_BYTES)
    if rest or not 1 <= count <= BATCH_LIMIT:
        limit = f"1 to {BATCH_LIMIT} whole records of {RECORD_BYTES} bytes"
        return Refusal.of_field("BATCH_LENGTH", "records", f"{len(content)} bytes", limit)
    return np.frombuffer(content, np.int64).reshape(count, RECORD_WORDS)


_COLUMNS: Final = (
    "sides",
    "order_types",
    "times_in_force",
    "self_trade_preventions",
    "flags",
    "prices_ticks",
    "quantities_lots",
    "client_order_ids",
    "order_ids",
)


def records_of_columns(columns: order_entry_pb2.CommandColumns) -> Rows | Refusal:
    """Return columns as rows (n, 4), or why they do not fit together.

    A value that its field cannot hold becomes the field's highest, which no enumeration uses, so
    that the engine refuses that command and no other.
    """
    count = len(columns.kinds)
    if not 1 <= count <= BATCH_LIMIT:
        return Refusal.of_field("BATCH_LENGTH", "kinds", f"{count} values", f"1 to {BATCH_LIMIT}")
    given: dict[str, npt.NDArray[np.int64]] = {}
    for name in _COLUMNS:
        values = getattr(columns, name)
        if len(values) not in (0, count):
            limit = f"as long as kinds ({count}), or empty"
            return Refusal.of_field("COLUMN_LENGTH", name, f"{len(values)} values", limit)
        given[name] = np.fromiter(values, np.int64, len(values)) if values else _zeros(count)

    def narrow(values: npt.NDArray[np.int64], highest: int) -> npt.NDArray[np.int64]:
        return np.where((values < 0) | (values > highest), highest, values)

    rows = np.empty((count, RECORD_WORDS), np.int64)
    rows[:, 0] = given["client_order_ids"]
    rows[:, 1] = given["order_ids"]
    rows[:, 2] = given["quantities_lots"]
    rows[:, 3] = given["prices_ticks"]
    rows[:, 3] |= narrow(np.fromiter(columns.kinds, np.int64, count), 0xF) << 32
    rows[:, 3] |= narrow(given["sides"], 0xF) << 36
    rows[:, 3] |= narrow(given["order_types"], 0xF) << 40
    rows[:, 3] |= narrow(given["times_in_force"], 0xF) << 44
    rows[:, 3] |= narrow(given["self_trade_preventions"], 0xFF) << 48
    rows[:, 3] |= (given["flags"] & (COMMAND_FLAG_POST_ONLY | COMMAND_FLAG_LEAVES)) << 56
    return rows


def _zeros(count: int) -> npt.NDArray[np.int64]:
    return np.zeros(count, np.int64)


def records_of_message(message: order_entry_pb2.SubmitBatchesRequest) -> Rows | Refusal:
    """Return the commands of one batch message as rows (n, 4), or why there are none."""
    if message.record_version != RECORD_VERSION:
        return Refusal.of_field(
            "RECORD_VERSION", "record_version", message.record_version, str(RECORD_VERSION)
        )
    form = message.WhichOneof("content")
    if form == "records":
        return records_of(message.records)
    if form == "columns":
        return records_of_columns(message.columns)
    return Refusal.of_field("FIELD_MISSING", "content", "", "either records or columns")
