"""Compile everything a call may need before the process says that it serves.

The first process on a machine compiles for some seconds and leaves the code in the cache; later
ones load it. Either way no caller pays for it. Compiled code is chosen by the exact types of its
arrays, so the rows here are read-only where those of the log are.
"""

import numpy as np

from engine.entry.batches import FOLD_WORDS, copy_acks, expand_records, fold_acks, records_of
from engine.entry.order_index import OrderIndex
from engine.entry.reports import rows_of_account
from exchange.packed import ACK_WORDS, BATCH_LIMIT, RECORD_BYTES, RECORD_WORDS
from exchange.records import COMMAND_WORDS, EXECUTION_WORDS


def warm_up() -> None:
    """Call each compiled function of the process once on arrays of its own."""
    rows = np.zeros((1, EXECUTION_WORDS), np.int64)
    rows.setflags(write=False)
    acks = np.zeros((2, ACK_WORDS), np.int64)
    ring = np.zeros((2, COMMAND_WORDS), np.int64)
    raw = records_of(bytes(RECORD_BYTES))
    assert isinstance(raw, np.ndarray), f"one record is refused, of {BATCH_LIMIT} allowed"
    for records in (raw, np.zeros((1, RECORD_WORDS), np.int64)):
        expand_records(records, 1, 0, 0, ring)
    fold_acks(rows, 0, 1, np.zeros(FOLD_WORDS, np.int64), acks)
    copy_acks(acks, 0, np.zeros((1, ACK_WORDS), np.int64))
    rows_of_account(rows, 1, np.zeros(1, np.int64))
    index = OrderIndex("", 1)
    index.apply(rows)
    index.find(1, 1, 0)
    index.find(1, 0, 1)
    index.page(1, 0, 1)
