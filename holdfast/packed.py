"""Batches as numpy arrays: the records that go out, the acknowledgements that come back.

The layouts are those of `exchange.packed`. Everything is integers: prices in ticks, quantities
in lots.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from exchange.enums import CommandKind, OrderType, SelfTradePrevention, Side, TimeInForce
from exchange.packed import ACK_DTYPE, BATCH_LIMIT, RECORD_DTYPE, RECORD_VERSION
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    COMMAND_FLAG_LEAVES,
    COMMAND_FLAG_POST_ONLY,
    Rows,
)

__all__ = [
    "ACK_DTYPE",
    "BATCH_LIMIT",
    "FLAG_LEAVES",
    "FLAG_POST_ONLY",
    "RECORD_DTYPE",
    "RECORD_VERSION",
    "Acks",
    "Records",
    "acks_of",
    "cancel_all",
    "cancels",
    "check_records",
    "new_orders",
    "records_of_commands",
]

Records = npt.NDArray[np.void]
"""(n,) of RECORD_DTYPE."""
Acks = npt.NDArray[np.void]
"""(n,) of ACK_DTYPE."""

FLAG_POST_ONLY: Final = COMMAND_FLAG_POST_ONLY
FLAG_LEAVES: Final = COMMAND_FLAG_LEAVES
"""AMEND: the quantity given is what shall be left open, not the whole order's."""


def new_orders(
    client_order_ids: npt.ArrayLike,
    sides: npt.ArrayLike,
    prices_ticks: npt.ArrayLike,
    quantities_lots: npt.ArrayLike,
    *,
    order_type: OrderType = OrderType.LIMIT,
    time_in_force: TimeInForce = TimeInForce.GOOD_TILL_CANCELLED,
    self_trade_prevention: SelfTradePrevention = SelfTradePrevention.CANCEL_NEWEST,
    post_only: bool = False,
) -> Records:
    """Return records of new orders of one type; arrays of equal length, or single values."""
    ids, side, price, lots = np.broadcast_arrays(
        client_order_ids, sides, prices_ticks, quantities_lots
    )
    records = np.zeros(ids.shape, RECORD_DTYPE)
    records["client_order_id"] = ids
    records["quantity_lots"] = lots
    records["price_ticks"] = price
    records["kind_side"] = int(CommandKind.NEW_ORDER) | np.asarray(side, np.uint8) << 4
    records["order_type_time_in_force"] = int(order_type) | int(time_in_force) << 4
    records["self_trade_prevention"] = int(self_trade_prevention)
    records["flags"] = FLAG_POST_ONLY if post_only else 0
    return records


def cancels(client_order_ids: npt.ArrayLike) -> Records:
    """Return records that cancel orders named by their client order ids."""
    ids = np.asarray(client_order_ids, np.int64)
    records = np.zeros(ids.shape, RECORD_DTYPE)
    records["client_order_id"] = ids
    records["kind_side"] = int(CommandKind.CANCEL_ORDER)
    return records


def cancel_all(side: Side = Side.UNSPECIFIED) -> Records:
    """Return the one record that cancels all orders of a side, or of both."""
    records = np.zeros(1, RECORD_DTYPE)
    records["kind_side"] = int(CommandKind.CANCEL_ALL) | int(side) << 4
    return records


def records_of_commands(commands: Rows) -> Records:
    """Return command rows (n, 8) of `exchange.records` as records, without their account."""
    verb, price = commands[:, C_VERB], commands[:, C_PRICE]
    records = np.zeros(len(commands), RECORD_DTYPE)
    records["client_order_id"] = commands[:, C_CLIENT_ORDER_ID]
    records["order_id"] = commands[:, C_ORDER_ID]
    records["quantity_lots"] = commands[:, C_QUANTITY]
    records["price_ticks"] = price & 0xFFFFFFFF
    records["kind_side"] = verb & 0xF | ((verb >> 8) & 0xF) << 4
    records["order_type_time_in_force"] = (verb >> 16) & 0xF | ((verb >> 24) & 0xF) << 4
    records["self_trade_prevention"] = (price >> 32) & 0xFF
    records["flags"] = (price >> 40) & 0xFF
    return records


def check_records(records: Any) -> bytes:
    """Return the bytes of a batch. Raises ValueError naming what is wrong with the array."""
    if not isinstance(records, np.ndarray) or records.dtype != RECORD_DTYPE:
        kind = getattr(records, "dtype", type(records).__name__)
        raise ValueError(f"records are {kind}; they must be an array of RECORD_DTYPE")
    if records.ndim != 1 or not 1 <= len(records) <= BATCH_LIMIT:
        raise ValueError(f"records have shape {records.shape}; it must be (1 to {BATCH_LIMIT},)")
    return records.tobytes()


def acks_of(content: bytes) -> Acks:
    """Return the acknowledgements of one batch, (n,) of ACK_DTYPE, read-only."""
    return np.frombuffer(content, ACK_DTYPE)
