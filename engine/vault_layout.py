"""The private segment of one pair: orders, accounts, money, client order ids.

Mode 0600, mapped by the engine alone. Memory that was never written is a valid empty vault: slot,
tick, account and number zero mean "none" everywhere, so a large sparse segment costs only the
pages that were used.

    scalars         128 words, below; the first 64 are state, the others configuration
    sources         64 words: next position to take from each inbox ring
    accounts        (A, 16): row = account number
    orders          (N, 8): row = slot; one cache line
    queues          (2 * T, 2) int32: first and last slot of each price; rows as the book's levels
    client_entries  (W, 4): remembered client order ids, a ring in order of acceptance
    client_links    (W): entry number before this one in its hash chain
    client_heads    (2 * W): newest entry number of each hash chain
    open_accounts   (A) int32: numbers of the open accounts, in the order in which they were opened

An entry number n stands in row n % W and is alive while n > newest - W. Chains run from newest to
oldest, so a walk ends at the first number outside the window and nothing is ever unlinked.
"""

from typing import Final

from exchange.instrument import Instrument
from exchange.ownership import Field, Layout
from exchange.records import RING_CAPACITY

LAYOUT_VERSION: Final = 2

# Scalars that are state.
SEQUENCE: Final = 0
TIME_NS: Final = 1
EXECUTION_COUNT: Final = 2
ORDER_NUMBER: Final = 3
FREE_HEAD: Final = 4
HIGH_WATER: Final = 5
RESTING_COUNT: Final = 6
CLIENT_NUMBER: Final = 7
TRANSFER_NUMBER: Final = 8
PAIR_STATUS: Final = 9
BAND_LOW: Final = 10
BAND_HIGH: Final = 11
BAND_PPM: Final = 12
BEST_BID: Final = 16
BEST_ASK: Final = 17
ALLOTTED_BASE: Final = 24
ALLOTTED_QUOTE: Final = 25
"""Allotted less released, per asset."""
FEES_TAKEN: Final = 26
OPEN_ACCOUNT_COUNT: Final = 27
"""How many of `open_accounts` are used; an account once open stays open."""
LAST_PRICE: Final = 32
LAST_LOTS: Final = 33
LAST_TIME_NS: Final = 34
TRADE_COUNT: Final = 35
DAY: Final = 36
DAY_OPEN: Final = 37
DAY_HIGH: Final = 38
DAY_LOW: Final = 39
DAY_LOTS: Final = 40
DAY_QUOTE_UNITS: Final = 41

# Scalars that are configuration, written when the segment is made.
PRICE_CAPACITY: Final = 64
ORDER_CAPACITY: Final = 65
ACCOUNT_CAPACITY: Final = 66
CLIENT_WINDOW: Final = 67
UNITS_PER_TICK_LOT: Final = 68
UNITS_PER_LOT: Final = 69
QUANTITY_LIMIT: Final = 70
MINIMUM_NOTIONAL: Final = 71
DEFAULT_TAKER_PPM: Final = 72
DEFAULT_MAKER_PPM: Final = 73
TAKER_FLOOR_PPM: Final = 74
EVENT_CAPACITY: Final = 75
DEPTH_LEVELS: Final = 76
DEPTH_COPIES: Final = 77

# Columns of an account row.
A_FREE_BASE: Final = 0
A_HELD_BASE: Final = 1
A_FREE_QUOTE: Final = 2
A_HELD_QUOTE: Final = 3
A_TAKER_PPM: Final = 4
A_MAKER_PPM: Final = 5
A_FLAGS: Final = 6
A_OPEN_ORDERS: Final = 7
A_FIRST_ORDER: Final = 8
"""Slot of the account's newest resting order."""
A_MAX_LOTS: Final = 9
A_MAX_NOTIONAL: Final = 10
A_MAX_ORDERS: Final = 11
ACCOUNT_WORDS: Final = 16

ACCOUNT_OPEN: Final = 1
ACCOUNT_KILLED: Final = 2

# Columns of an order row, as eight int64 words ...
O_ORDER_ID: Final = 0
"""Zero: the slot is free."""
O_CLIENT_ORDER_ID: Final = 1
O_LEAVES: Final = 2
O_FILLED: Final = 3
O_TERMS: Final = 7
"""side | prevention << 8 | post-only << 12 | maker ppm << 16 | hold ppm << 40."""
ORDER_WORDS: Final = 8
ORDER_HALVES: Final = 16
# ... and as sixteen int32 halves
H_PRICE: Final = 8
H_ACCOUNT: Final = 9
H_NEXT: Final = 10
H_PREVIOUS: Final = 11
H_ACCOUNT_NEXT: Final = 12
H_ACCOUNT_PREVIOUS: Final = 13

QUEUE_FIRST: Final = 0
QUEUE_LAST: Final = 1

K_CLIENT_ORDER_ID: Final = 0
K_OWNER: Final = 1
"""account << 32 | content hash."""
K_ORDER_ID: Final = 2
K_EXECUTION: Final = 3
CLIENT_ENTRY_WORDS: Final = 4


def vault_layout(instrument: Instrument) -> Layout:
    """Return the layout of the pair's private segment; capacities are part of its hash."""
    window = instrument.client_id_window
    return Layout(
        name="vault",
        version=LAYOUT_VERSION,
        fields=(
            Field("scalars", "int64", (128,)),
            Field("sources", "int64", (RING_CAPACITY,)),
            Field("accounts", "int64", (instrument.account_capacity, ACCOUNT_WORDS)),
            Field("orders", "int64", (instrument.order_capacity + 1, ORDER_WORDS)),
            Field("queues", "int32", (2 * instrument.price_capacity_ticks, 2)),
            Field("client_entries", "int64", (window, CLIENT_ENTRY_WORDS)),
            Field("client_links", "int64", (window,)),
            Field("client_heads", "int64", (2 * window,)),
            Field("open_accounts", "int32", (instrument.account_capacity,)),
        ),
    )
