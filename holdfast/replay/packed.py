"""Commands in the packed form of the batch door, and its acknowledgements read back.

The layouts are those of `SubmitBatchesRequest` and `SubmitBatchesResponse` in
protos/exchange/v1/order_entry.proto, version 1. The caller's account travels in the call's
metadata, so a record names none. Only orders, cancels and amends have a packed form.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from exchange.enums import CommandKind
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    Rows,
)

RECORD_VERSION: Final = 1
RECORD_DTYPE: Final = np.dtype(
    [
        ("client_order_id", "<i8"),
        ("order_id", "<i8"),
        ("quantity_lots", "<i8"),
        ("price_ticks", "<u4"),
        ("kind_side", "u1"),
        ("order_type_time_in_force", "u1"),
        ("prevention", "u1"),
        ("flags", "u1"),
    ]
)
ACK_DTYPE: Final = np.dtype(
    [
        ("client_order_id", "<i8"),
        ("order_id", "<i8"),
        ("filled_lots", "<i8"),
        ("leaves_lots", "<i8"),
        ("last_number", "<i8"),
        ("kind", "u1"),
        ("reason", "u1"),
        ("trade_count", "<u2"),
        ("execution_count", "<u4"),
    ]
)
BATCH_LIMIT: Final = 8_192
"""Most records of one batch."""
IN_FLIGHT_LIMIT: Final = 24_576
"""Unanswered records a sender may have under way: an inbox ring holds a third more, so that no
batch of an only sender is refused and the flow keeps its order."""

Structured = npt.NDArray[Any]

assert RECORD_DTYPE.itemsize == 32
assert ACK_DTYPE.itemsize == 48


def pack(commands: Rows) -> bytes:
    """Return (n, 8) commands as n packed records of 32 bytes."""
    records = np.zeros(len(commands), RECORD_DTYPE)
    verb, price = commands[:, C_VERB], commands[:, C_PRICE]
    kind = verb & 0xFF
    assert ((kind >= CommandKind.NEW_ORDER) & (kind <= CommandKind.CANCEL_ALL)).all()
    records["client_order_id"] = commands[:, C_CLIENT_ORDER_ID]
    records["order_id"] = commands[:, C_ORDER_ID]
    records["quantity_lots"] = commands[:, C_QUANTITY]
    records["price_ticks"] = price & 0xFFFFFFFF
    records["kind_side"] = kind | ((verb >> 8) & 0x0F) << 4
    records["order_type_time_in_force"] = ((verb >> 16) & 0x0F) | ((verb >> 24) & 0x0F) << 4
    records["prevention"] = (price >> 32) & 0xFF
    records["flags"] = (price >> 40) & 0xFF
    return records.tobytes()


def read_acks(acks: bytes) -> Structured:
    """Return the acknowledgements of a batch as a structured array, one row a record."""
    return np.frombuffer(acks, ACK_DTYPE)
