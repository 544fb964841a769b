"""The arrays the kernel works on, formed from addresses inside the compiled code.

The kernel is reached through one integer: the address of a context of 128 words that holds the
addresses of all arrays. Tables formed inside the compiled function carry no owner, so nothing is
reference counted in the loop, which makes the same book several times faster than arrays handed
in as arguments. The context also holds the loop's own working words, so any compiled function
can be entered with the context alone.
"""

from typing import Any, Final, NamedTuple

from engine.vault_layout import ACCOUNT_WORDS, CLIENT_ENTRY_WORDS, ORDER_HALVES, ORDER_WORDS
from exchange.book_layout import EVENT_WORDS
from exchange.compiled import inlined
from exchange.records import COMMAND_WORDS, EXECUTION_WORDS
from exchange.tables import bitmap, halves, words

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
    "open_accounts",
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
BOOK_FIRST: Final = 16
# Context words: what the running batch is about.
W_SEQUENCE: Final = 32
W_TIME_NS: Final = 33
W_SOURCE: Final = 34
W_EMITTED: Final = 35
W_DAY: Final = 36
W_TRADED: Final = 37
"""One when the running command has traded."""
W_COMMANDS: Final = 38
"""Address of the commands."""
W_OUT: Final = 39
"""Address of the executions."""
W_BITS: Final = 40
"""Words 40 to 43: words of one side in each of the four bitmaps."""
W_DEPTH_WORDS: Final = 44
"""Words of one depth copy."""
W_LOOK_CHAIN: Final = 64
W_LOOK_SLOT: Final = 96
"""32 words each: what the look-ahead has found for the commands under way."""
CONTEXT_WORDS: Final = 128


class State(NamedTuple):
    """Tables of everything the kernel reads and writes; columns in the two layouts."""

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
    open_accounts: Any
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
def form_state(context: int) -> State:
    """Return the tables behind a context's addresses."""
    work = words(context, 1)
    return State(
        work,
        words(work[0], 1),
        words(work[1], 1),
        words(work[2], ACCOUNT_WORDS),
        words(work[3], ORDER_WORDS),
        halves(work[3], ORDER_HALVES),
        halves(work[4], 2),
        words(work[5], CLIENT_ENTRY_WORDS),
        words(work[6], 1),
        words(work[7], 1),
        halves(work[8], 1),
        words(work[BOOK_FIRST], 1),
        words(work[BOOK_FIRST + 1], 1),
        bitmap(work[BOOK_FIRST + 2], 1),
        bitmap(work[BOOK_FIRST + 3], 1),
        bitmap(work[BOOK_FIRST + 4], 1),
        bitmap(work[BOOK_FIRST + 5], 1),
        words(work[BOOK_FIRST + 6], 2),
        words(work[BOOK_FIRST + 7], 1),
        words(work[BOOK_FIRST + 8], EVENT_WORDS),
        words(work[W_COMMANDS], COMMAND_WORDS),
        words(work[W_OUT], EXECUTION_WORDS),
    )
