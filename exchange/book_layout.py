"""The public book segment of one pair: the bytes the kernel publishes and everybody may read.

It holds nothing about anybody: no account, no client order id. Orders have a public number, which
only their owner can connect with himself. The kernel is the only writer; readers map it PROT_READ
and write nothing, ever.

    scalars    64 words: configuration a reader needs, and heads (each group on its own line)
    touch      16 words: version, then best prices, last trade, day figures (seqlock)
    levels     (2 * T, 2): lots and order count of each price; row = side index * T + tick,
               side index 0 buy, 1 sell; zero means empty. This is the kernel's working copy:
               read it only between two equal even values of the book version.
    bits0..3   occupancy of the levels, 64 ticks a word; bits1 summarises bits0, and so on
    events     (R, 8): ring of anonymous 64-byte events with commit words
    depth      (K, 8 + 2 * N * 3): ring of complete depth copies

    event      0 commit word: position + 1 when complete, -1 while being written
               1 kind u8 | side u8 << 8 | action u4 << 16 | lots of the order << 20
               2 price ticks   3 lots (LEVEL: absolute; TRADE: traded)
               4 sequence      5 time ns
               6 order count of the level (LEVEL), trade number (TRADE), status (STATUS)
               7 public number of the resting order concerned (the order id without its slot), or 0
                 LEVEL ADDED: the order came to the back of the price with these lots
                 LEVEL REDUCED: these lots were taken off it, it kept its place
                 LEVEL DELETED: it left with these lots, without a trade
                 LEVEL without action: says the level after one or more TRADE events, no order
                 TRADE REDUCED, DELETED: the maker has something left, or left the book; its side
                 is the other one, and the lots of the order in word 1 are 0
    depth copy 0 commit word: copy number when complete, -1 while being written
               1 sequence      2 event position: the copy includes every event below it
               3 time ns       4 bid level count     5 ask level count     6, 7 zero
               8.. bid levels best first, (price, lots, orders) each; then N such for the asks

Counters start where the previous owner stopped, so that a reader's cursor cannot match by accident.
"""

from typing import Final

from exchange.instrument import Instrument
from exchange.ownership import Field, Layout

LAYOUT_VERSION: Final = 2

# scalars
BOOK_VERSION: Final = 0
"""Odd while a batch is applied."""
BOOK_SEQUENCE: Final = 1
"""Sequence of the last applied command."""
EVENT_HEAD: Final = 8
"""Number of events ever written; the newest is at position head - 1."""
DEPTH_HEAD: Final = 16
"""Number of the newest complete depth copy; it stands at row number % copies. Zero: none yet."""
DEPTH_EVENT_HEAD: Final = 17
"""Event position of the newest depth copy."""
DEPTH_TIME_NS: Final = 18
BOOK_PRICE_CAPACITY: Final = 24
BOOK_EVENT_CAPACITY: Final = 25
BOOK_DEPTH_LEVELS: Final = 26
BOOK_DEPTH_COPIES: Final = 27
BOOK_BASE_DECIMALS: Final = 28
BOOK_QUOTE_DECIMALS: Final = 29
BOOK_TICK_QUOTE_UNITS: Final = 30
BOOK_BASE_UNITS_PER_LOT: Final = 31
ENGINE_STATE: Final = 32
"""EngineState of the process that owns the segment."""
BEST_TICK: Final = 40
"""Words 40 and 41: best bid and best ask tick; 0: none."""

# touch
TOUCH_VERSION: Final = 0
TOUCH_SEQUENCE: Final = 1
TOUCH_BID_PRICE: Final = 2
TOUCH_BID_LOTS: Final = 3
TOUCH_ASK_PRICE: Final = 4
TOUCH_ASK_LOTS: Final = 5
TOUCH_LAST_PRICE: Final = 6
TOUCH_LAST_LOTS: Final = 7
TOUCH_LAST_TIME_NS: Final = 8
TOUCH_TRADE_COUNT: Final = 9
"""Trades ever; the last trade's number."""
TOUCH_DAY_OPEN: Final = 10
TOUCH_DAY_HIGH: Final = 11
TOUCH_DAY_LOW: Final = 12
TOUCH_DAY_LOTS: Final = 13
TOUCH_DAY_QUOTE_UNITS: Final = 14
TOUCH_STATUS: Final = 15
TOUCH_WORDS: Final = 16

LEVEL_LOTS: Final = 0
LEVEL_ORDERS: Final = 1

EVENT_COMMIT: Final = 0
EVENT_VERB: Final = 1
EVENT_PRICE: Final = 2
EVENT_LOTS: Final = 3
EVENT_SEQUENCE: Final = 4
EVENT_TIME_NS: Final = 5
EVENT_COUNT: Final = 6
"""Not beside the lots: a level's two words, stored one by one and loaded at once as a pair, would
wait for both stores to leave the store buffer."""
EVENT_ORDER: Final = 7
"""Public number of an order: the order id >> ORDER_SLOT_BITS. An order keeps it for life."""
EVENT_WORDS: Final = 8
EVENT_ACTION_SHIFT: Final = 16
EVENT_ORDER_LOTS_SHIFT: Final = 20
"""Shifts within the verb. Lots are at most 2**40, so that the word stays positive."""

EVENT_LEVEL: Final = 1
EVENT_TRADE: Final = 2
EVENT_STATUS: Final = 3

ACTION_NONE: Final = 0
ACTION_ADDED: Final = 1
ACTION_REDUCED: Final = 2
ACTION_DELETED: Final = 3

DEPTH_COMMIT: Final = 0
DEPTH_SEQUENCE: Final = 1
DEPTH_EVENT: Final = 2
DEPTH_TIME: Final = 3
DEPTH_BID_COUNT: Final = 4
DEPTH_ASK_COUNT: Final = 5
DEPTH_HEADER_WORDS: Final = 8
DEPTH_LEVEL_WORDS: Final = 3

STATE_STARTING: Final = 0
STATE_READY: Final = 1
STATE_JOURNAL_BLOCKED: Final = 2
STATE_DRAINING: Final = 3
STATE_CLOSING: Final = 4
STATE_CLOSED: Final = 5


def bitmap_words(price_capacity_ticks: int) -> tuple[int, int, int, int]:
    """Return the words of the four bitmap levels of one side."""
    words = []
    span = price_capacity_ticks
    for _ in range(4):
        span = -(-span // 64)
        words.append(span)
    return words[0], words[1], words[2], words[3]


def book_layout(instrument: Instrument) -> Layout:
    """Return the layout of the pair's public segment; capacities are part of its hash."""
    capacity = instrument.price_capacity_ticks
    words = bitmap_words(capacity)
    depth_words = DEPTH_HEADER_WORDS + 2 * instrument.depth_level_count * DEPTH_LEVEL_WORDS
    return Layout(
        name="book",
        version=LAYOUT_VERSION,
        fields=(
            Field("scalars", "int64", (64,)),
            Field("touch", "int64", (TOUCH_WORDS,)),
            Field("bits3", "uint64", (2, words[3])),
            Field("bits2", "uint64", (2, words[2])),
            Field("bits1", "uint64", (2, words[1])),
            Field("bits0", "uint64", (2, words[0])),
            Field("depth", "int64", (instrument.depth_copy_count, depth_words)),
            Field("events", "int64", (instrument.event_capacity, EVENT_WORDS)),
            Field("levels", "int64", (2 * capacity, 2)),
        ),
    )


def segment_name(pair: str, purpose: str) -> str:
    """Return the name of a pair's segment, such as holdfast-btc-usdt-book."""
    return f"holdfast-{pair.lower()}-{purpose}"
