"""The arrays the kernel works on, formed from addresses inside the compiled code.

The kernel is reached through one integer: the address of a context of 64 words that holds the
addresses of all arrays. Views formed inside the compiled function carry no owner, so nothing is
reference counted in the loop, which makes the same book several times faster than arrays handed
in as arguments. The context also holds the loop's own working words.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba import carray

from engine.vault_layout import (
    ACCOUNT_CAPACITY,
    ACCOUNT_WORDS,
    CLIENT_ENTRY_WORDS,
    CLIENT_WINDOW,
    DEPTH_COPIES,
    DEPTH_LEVELS,
    EVENT_CAPACITY,
    ORDER_CAPACITY,
    ORDER_WORDS,
    PRICE_CAPACITY,
)
from exchange.atomics import pointer_at
from exchange.book_layout import (
    DEPTH_HEADER_WORDS,
    DEPTH_LEVEL_WORDS,
    EVENT_WORDS,
    TOUCH_WORDS,
)
from exchange.compiled import inlined
from exchange.records import COMMAND_WORDS, EXECUTION_WORDS, RING_CAPACITY

# Context words: addresses.
VAULT_FIELDS: Final = (
    "scalars",
    "sources",
    "accounts",
    "orders",
    "queues",
    "client_entries",
    "client_links",
    "client_heads",
)
BOOK_FIELDS: Final = (
    "scalars",
    "touch",
    "bits0",
    "bits1",
    "bits2",
    "bits3",
    "levels",
    "depth",
    "events",
)
BOOK_FIRST: Final = 8
# Context words: what the running batch is about.
W_SEQUENCE: Final = 32
W_TIME_NS: Final = 33
W_SOURCE: Final = 34
W_EMITTED: Final = 35
W_DAY: Final = 36
W_TRADED: Final = 37
"""One when the running command has traded."""
CONTEXT_WORDS: Final = 64


class State(NamedTuple):
    """Views of everything the kernel reads and writes; field meanings in the two layouts."""

    work: Any
    scalars: Any
    sources: Any
    accounts: Any
    orders: Any
    halves: Any
    queues: Any
    entries: Any
    links: Any
    heads: Any
    book: Any
    touch: Any
    bits0: Any
    bits1: Any
    bits2: Any
    bits3: Any
    levels: Any
    depth: Any
    events: Any
    commands: Any
    out: Any


@inlined
def form_state(context: int, commands: int, count: int, out: int, out_capacity: int) -> State:
    """Return the views behind a context's addresses."""
    work = carray(pointer_at(context), 64, np.int64)
    scalars = carray(pointer_at(work[0]), 128, np.int64)
    ticks = scalars[PRICE_CAPACITY]
    orders = scalars[ORDER_CAPACITY] + 1
    window = scalars[CLIENT_WINDOW]
    words0 = (ticks + 63) >> 6
    words1 = (words0 + 63) >> 6
    words2 = (words1 + 63) >> 6
    words3 = (words2 + 63) >> 6
    depth_words = DEPTH_HEADER_WORDS + 2 * DEPTH_LEVEL_WORDS * scalars[DEPTH_LEVELS]
    return State(
        work,
        scalars,
        carray(pointer_at(work[1]), RING_CAPACITY, np.int64),
        carray(pointer_at(work[2]), (scalars[ACCOUNT_CAPACITY], ACCOUNT_WORDS), np.int64),
        carray(pointer_at(work[3]), (orders, ORDER_WORDS), np.int64),
        carray(pointer_at(work[3]), (orders, 2 * ORDER_WORDS), np.int32),
        carray(pointer_at(work[4]), (2 * ticks, 2), np.int32),
        carray(pointer_at(work[5]), (window, CLIENT_ENTRY_WORDS), np.int64),
        carray(pointer_at(work[6]), window, np.int64),
        carray(pointer_at(work[7]), 2 * window, np.int64),
        carray(pointer_at(work[BOOK_FIRST]), 64, np.int64),
        carray(pointer_at(work[BOOK_FIRST + 1]), TOUCH_WORDS, np.int64),
        carray(pointer_at(work[BOOK_FIRST + 2]), (2, words0), np.uint64),
        carray(pointer_at(work[BOOK_FIRST + 3]), (2, words1), np.uint64),
        carray(pointer_at(work[BOOK_FIRST + 4]), (2, words2), np.uint64),
        carray(pointer_at(work[BOOK_FIRST + 5]), (2, words3), np.uint64),
        carray(pointer_at(work[BOOK_FIRST + 6]), (2 * ticks, 2), np.int64),
        carray(pointer_at(work[BOOK_FIRST + 7]), (scalars[DEPTH_COPIES], depth_words), np.int64),
        carray(pointer_at(work[BOOK_FIRST + 8]), (scalars[EVENT_CAPACITY], EVENT_WORDS), np.int64),
        carray(pointer_at(commands), (count, COMMAND_WORDS), np.int64),
        carray(pointer_at(out), (out_capacity, EXECUTION_WORDS), np.int64),
    )
