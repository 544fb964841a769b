"""What the kernel says: executions to the log, anonymous events and figures to the public book.

Executions are private and complete. Events carry no account, and of an order only its public
number. Event and depth rows use a commit word: invalid, then the data, then the row's own number; a
reader that finds another number before or after its copy has been lapped and knows it.
"""

from engine.kernel.occupancy import highest_to, lowest_from
from engine.kernel.state import (
    W_DAY,
    W_DEPTH_WORDS,
    W_EMITTED,
    W_SEQUENCE,
    W_SOURCE,
    W_TIME_NS,
    State,
)
from engine.vault_layout import (
    BEST_ASK,
    BEST_BID,
    DAY,
    DAY_HIGH,
    DAY_LOTS,
    DAY_LOW,
    DAY_OPEN,
    DAY_QUOTE_UNITS,
    DEPTH_COPIES,
    DEPTH_LEVELS,
    EVENT_CAPACITY,
    LAST_LOTS,
    LAST_PRICE,
    LAST_TIME_NS,
    PAIR_STATUS,
    PRICE_CAPACITY,
    SEQUENCE,
    TIME_NS,
    TRADE_COUNT,
)
from exchange.atomics import fence_release, prefetch, store_relaxed_at, store_release_at
from exchange.book_layout import (
    ACTION_DELETED,
    ACTION_REDUCED,
    BEST_TICK,
    BOOK_SEQUENCE,
    DEPTH_ASK_COUNT,
    DEPTH_BID_COUNT,
    DEPTH_COMMIT,
    DEPTH_EVENT,
    DEPTH_EVENT_HEAD,
    DEPTH_HEAD,
    DEPTH_HEADER_WORDS,
    DEPTH_LEVEL_WORDS,
    DEPTH_SEQUENCE,
    DEPTH_TIME,
    DEPTH_TIME_NS,
    EVENT_ACTION_SHIFT,
    EVENT_COUNT,
    EVENT_HEAD,
    EVENT_LEVEL,
    EVENT_LOTS,
    EVENT_ORDER,
    EVENT_ORDER_LOTS_SHIFT,
    EVENT_PRICE,
    EVENT_SEQUENCE,
    EVENT_TIME_NS,
    EVENT_TRADE,
    EVENT_VERB,
    TOUCH_ASK_LOTS,
    TOUCH_ASK_PRICE,
    TOUCH_BID_LOTS,
    TOUCH_BID_PRICE,
    TOUCH_DAY_HIGH,
    TOUCH_DAY_LOTS,
    TOUCH_DAY_LOW,
    TOUCH_DAY_OPEN,
    TOUCH_DAY_QUOTE_UNITS,
    TOUCH_LAST_LOTS,
    TOUCH_LAST_PRICE,
    TOUCH_LAST_TIME_NS,
    TOUCH_SEQUENCE,
    TOUCH_STATUS,
    TOUCH_TRADE_COUNT,
    TOUCH_VERSION,
)
from exchange.compiled import inlined
from exchange.records import FLAG_LAST, ORDER_SLOT_BITS
from exchange.tables import address_of

EVENTS_AHEAD = 16
DEPTH_EVERY_EVENTS = 1024
DEPTH_EVERY_NS = 1_000_000
LARGEST = (1 << 63) - 1


@inlined
def emit(
    s: State,
    verb: int,
    order_id: int,
    client_order_id: int,
    price_word: int,
    quantity: int,
    leaves: int,
    filled: int,
    fee: int,
) -> None:
    """Append an execution that is about one order or account."""
    n = s.work[W_EMITTED]
    s.out[n, 0] = s.work[W_SEQUENCE]
    s.out[n, 1] = s.work[W_TIME_NS]
    s.out[n, 2] = verb
    s.out[n, 3] = order_id
    s.out[n, 4] = client_order_id
    s.out[n, 5] = price_word
    s.out[n, 6] = quantity
    s.out[n, 7] = leaves
    s.out[n, 8] = filled
    s.out[n, 9] = fee
    s.out[n, 10] = s.work[W_SOURCE]
    s.out[n, 11] = 0
    s.out[n, 12] = 0
    s.out[n, 13] = 0
    s.out[n, 14] = 0
    s.out[n, 15] = 0
    s.work[W_EMITTED] = n + 1


@inlined
def add_maker(
    s: State, order_id: int, client_order_id: int, account: int, leaves: int, fee: int
) -> None:
    """Complete the newest execution with its maker."""
    n = s.work[W_EMITTED] - 1
    s.out[n, 11] = order_id
    s.out[n, 12] = client_order_id
    s.out[n, 13] = account << 32
    s.out[n, 14] = leaves
    s.out[n, 15] = fee


@inlined
def mark_last(s: State) -> None:
    """Say that the newest execution is the last of its command."""
    s.out[s.work[W_EMITTED] - 1, 2] |= FLAG_LAST << 24


@inlined
def publish_event(s: State, verb: int, price: int, lots: int, count: int, order: int) -> None:
    """Append an anonymous event to the public ring."""
    position = s.book[EVENT_HEAD]
    row = position & (s.scalars[EVENT_CAPACITY] - 1)
    commit = address_of(s.events, row)
    store_relaxed_at(commit, -1)
    fence_release()
    s.events[row, EVENT_VERB] = verb
    s.events[row, EVENT_PRICE] = price
    s.events[row, EVENT_LOTS] = lots
    s.events[row, EVENT_COUNT] = count
    s.events[row, EVENT_SEQUENCE] = s.work[W_SEQUENCE]
    s.events[row, EVENT_TIME_NS] = s.work[W_TIME_NS]
    s.events[row, EVENT_ORDER] = order
    store_release_at(commit, position + 1)
    store_release_at(address_of(s.book, EVENT_HEAD), position + 1)
    # The ring is larger than the caches: the lines of the next events have to be on their way.
    prefetch(address_of(s.events, (position + EVENTS_AHEAD) & (s.scalars[EVENT_CAPACITY] - 1)))


@inlined
def publish_level(s: State, side: int, tick: int) -> None:
    """Say what a price holds now; side is the index, 0 buy, 1 sell."""
    row = side * s.scalars[PRICE_CAPACITY] + tick
    publish_event(s, EVENT_LEVEL | (side + 1) << 8, tick, s.levels[row, 0], s.levels[row, 1], 0)


@inlined
def publish_order(s: State, side: int, tick: int, action: int, order_id: int, lots: int) -> None:
    """Say what an order did to its price, and what the price holds now; lots are the order's."""
    row = side * s.scalars[PRICE_CAPACITY] + tick
    did = action << EVENT_ACTION_SHIFT | lots << EVENT_ORDER_LOTS_SHIFT
    verb = EVENT_LEVEL | (side + 1) << 8 | did
    number = order_id >> ORDER_SLOT_BITS
    publish_event(s, verb, tick, s.levels[row, 0], s.levels[row, 1], number)


@inlined
def record_trade(
    s: State, side: int, price: int, lots: int, notional: int, maker_id: int, maker_leaves: int
) -> None:
    """Count a trade in the figures of the day and say it to the public; side is the taker's."""
    number = s.scalars[TRADE_COUNT] + 1
    s.scalars[TRADE_COUNT] = number
    s.scalars[LAST_PRICE] = price
    s.scalars[LAST_LOTS] = lots
    s.scalars[LAST_TIME_NS] = s.work[W_TIME_NS]
    if s.scalars[DAY] != s.work[W_DAY]:
        s.scalars[DAY] = s.work[W_DAY]
        s.scalars[DAY_OPEN] = price
        s.scalars[DAY_HIGH] = price
        s.scalars[DAY_LOW] = price
        s.scalars[DAY_LOTS] = 0
        s.scalars[DAY_QUOTE_UNITS] = 0
    s.scalars[DAY_HIGH] = max(s.scalars[DAY_HIGH], price)
    s.scalars[DAY_LOW] = min(s.scalars[DAY_LOW], price)
    # A day's sums have no bound of their own: at the largest int64 they stand still.
    s.scalars[DAY_LOTS] += min(lots, LARGEST - s.scalars[DAY_LOTS])
    s.scalars[DAY_QUOTE_UNITS] += min(notional, LARGEST - s.scalars[DAY_QUOTE_UNITS])
    action = ACTION_REDUCED if maker_leaves != 0 else ACTION_DELETED
    verb = EVENT_TRADE | (side + 1) << 8 | action << EVENT_ACTION_SHIFT
    publish_event(s, verb, price, lots, number, maker_id >> ORDER_SLOT_BITS)


@inlined
def publish_touch(s: State) -> None:
    """Publish best prices, last trade and day figures under their version."""
    t = s.touch
    version = t[TOUCH_VERSION]
    # A writer killed inside the section leaves an odd version; the next write repairs it.
    odd = version | 1
    store_relaxed_at(address_of(t, TOUCH_VERSION), odd)
    fence_release()
    bid = s.scalars[BEST_BID]
    ask = s.scalars[BEST_ASK]
    t[TOUCH_SEQUENCE] = s.scalars[SEQUENCE]
    t[TOUCH_BID_PRICE] = bid
    t[TOUCH_BID_LOTS] = s.levels[bid, 0]
    t[TOUCH_ASK_PRICE] = ask
    t[TOUCH_ASK_LOTS] = s.levels[s.scalars[PRICE_CAPACITY] + ask, 0]
    t[TOUCH_LAST_PRICE] = s.scalars[LAST_PRICE]
    t[TOUCH_LAST_LOTS] = s.scalars[LAST_LOTS]
    t[TOUCH_LAST_TIME_NS] = s.scalars[LAST_TIME_NS]
    t[TOUCH_TRADE_COUNT] = s.scalars[TRADE_COUNT]
    t[TOUCH_DAY_OPEN] = s.scalars[DAY_OPEN]
    t[TOUCH_DAY_HIGH] = s.scalars[DAY_HIGH]
    t[TOUCH_DAY_LOW] = s.scalars[DAY_LOW]
    t[TOUCH_DAY_LOTS] = s.scalars[DAY_LOTS]
    t[TOUCH_DAY_QUOTE_UNITS] = s.scalars[DAY_QUOTE_UNITS]
    t[TOUCH_STATUS] = s.scalars[PAIR_STATUS]
    store_release_at(address_of(t, TOUCH_VERSION), odd + 1)
    store_release_at(address_of(s.book, BOOK_SEQUENCE), s.scalars[SEQUENCE])
    s.book[BEST_TICK] = bid
    s.book[BEST_TICK + 1] = ask


@inlined
def _copy_side(s: State, row: int, side: int) -> int:
    """Copy the best levels of a side into a depth copy; return how many."""
    at = row + DEPTH_HEADER_WORDS + side * s.scalars[DEPTH_LEVELS] * DEPTH_LEVEL_WORDS
    tick = s.scalars[BEST_BID + side]
    count = 0
    while tick != 0 and count < s.scalars[DEPTH_LEVELS]:
        level = side * s.scalars[PRICE_CAPACITY] + tick
        s.depth[at] = tick
        s.depth[at + 1] = s.levels[level, 0]
        s.depth[at + 2] = s.levels[level, 1]
        at += DEPTH_LEVEL_WORDS
        count += 1
        tick = highest_to(s, side, tick - 1) if side == 0 else lowest_from(s, side, tick + 1)
    return count


@inlined
def publish_depth(s: State) -> None:
    """Publish one more complete copy of the best levels of both sides."""
    number = s.book[DEPTH_HEAD] + 1
    index = number % s.scalars[DEPTH_COPIES]
    row = index * s.work[W_DEPTH_WORDS]
    commit = address_of(s.depth, row + DEPTH_COMMIT)
    store_relaxed_at(commit, -1)
    fence_release()
    s.depth[row + DEPTH_SEQUENCE] = s.scalars[SEQUENCE]
    s.depth[row + DEPTH_EVENT] = s.book[EVENT_HEAD]
    s.depth[row + DEPTH_TIME] = s.scalars[TIME_NS]
    s.depth[row + DEPTH_BID_COUNT] = _copy_side(s, row, 0)
    s.depth[row + DEPTH_ASK_COUNT] = _copy_side(s, row, 1)
    store_release_at(commit, number)
    s.book[DEPTH_EVENT_HEAD] = s.book[EVENT_HEAD]
    s.book[DEPTH_TIME_NS] = s.scalars[TIME_NS]
    store_release_at(address_of(s.book, DEPTH_HEAD), number)


@inlined
def depth_is_due(s: State) -> bool:
    """Say whether the newest depth copy is old enough to be replaced."""
    behind = s.book[EVENT_HEAD] - s.book[DEPTH_EVENT_HEAD]
    age_ns = s.scalars[TIME_NS] - s.book[DEPTH_TIME_NS]
    return behind >= DEPTH_EVERY_EVENTS or (behind > 0 and age_ns >= DEPTH_EVERY_NS)
