"""The packed form of order entry: records of commands in, acknowledgements out.

The one definition of the bytes that `SubmitBatchesRequest` and `SubmitBatchesResponse` in
protos/exchange/v1/order_entry.proto describe: order entry reads and writes them, clients write and
read them. Everything is a little-endian integer; prices are ticks, quantities lots.

    record (32 bytes)                          acknowledgement (48 bytes)
       0  client order id                         0  client order id
       8  order id                                8  order id
      16  quantity lots                          16  filled lots
      24  price ticks u32                        24  leaves lots
      28  kind | side << 4                       32  number of the command's last execution
      29  order type | time in force << 4        40  kind u8
      30  self-trade prevention u8               41  reason u8
      31  flags u8                               42  trade count u16
                                                 44  execution count u32

Flags of a record are the COMMAND_FLAG_ numbers of `exchange.records`. Not here: what a command
means, and which values are allowed.
"""

from typing import Final

import numpy as np

RECORD_VERSION: Final = 1
RECORD_WORDS: Final = 4
RECORD_BYTES: Final = 32
ACK_WORDS: Final = 6
ACK_BYTES: Final = 48
BATCH_LIMIT: Final = 8_192
"""Most commands of one batch: 256 KiB in, 384 KiB out, a quarter of an inbox."""

# Words of a record as a row of four int64.
RECORD_CLIENT_ORDER_ID: Final = 0
RECORD_ORDER_ID: Final = 1
RECORD_QUANTITY: Final = 2
RECORD_SHAPE: Final = 3
"""price u32 | kind u4 | side u4 | type u4 | time in force u4 | prevention u8 | flags u8"""

# Words of an acknowledgement as a row of six int64.
ACK_CLIENT_ORDER_ID: Final = 0
ACK_ORDER_ID: Final = 1
ACK_FILLED: Final = 2
ACK_LEAVES: Final = 3
ACK_LAST_NUMBER: Final = 4
ACK_VERB: Final = 5
"""kind u8 | reason u8 | trades u16 | executions u32"""

RECORD_DTYPE: Final = np.dtype(
    [
        ("client_order_id", "<i8"),
        ("order_id", "<i8"),
        ("quantity_lots", "<i8"),
        ("price_ticks", "<u4"),
        ("kind_side", "u1"),
        ("order_type_time_in_force", "u1"),
        ("self_trade_prevention", "u1"),
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


def _offsets(layout: "np.dtype[np.void]") -> tuple[int, ...]:
    assert layout.fields is not None
    return tuple(int(field[1]) for field in layout.fields.values())


assert RECORD_DTYPE.itemsize == RECORD_BYTES == 8 * RECORD_WORDS
assert ACK_DTYPE.itemsize == ACK_BYTES == 8 * ACK_WORDS
assert _offsets(RECORD_DTYPE) == (0, 8, 16, 24, 28, 29, 30, 31)
assert _offsets(ACK_DTYPE) == (0, 8, 16, 24, 32, 40, 41, 42, 44)
