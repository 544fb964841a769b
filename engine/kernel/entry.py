"""New orders: the ladder of refusals, then the order's life until it rests or is gone.

The ladder of ``refusal`` is the table of ``docs/trading-rules.md`` in its order. After the ladder
nothing may fail.
"""

from engine.kernel.accounts import (
    buy_hold_per_lot,
    free_column,
    hold,
    hold_per_lot,
    hold_rate_ppm,
    make_terms,
)
from engine.kernel.book import (
    crosses,
    enlist,
    enqueue,
    free_slot,
    live_slot,
    reserve_slot,
)
from engine.kernel.clients import content_of, find_entry, remember
from engine.kernel.matching import (
    LIMIT,
    MARKET,
    MARKET_BY_AMOUNT,
    Taker,
    fillable,
    order_shape,
    take,
)
from engine.kernel.publication import emit, publish_order
from engine.kernel.state import W_EMITTED, State
from engine.vault_layout import (
    A_FLAGS,
    A_MAX_LOTS,
    A_MAX_NOTIONAL,
    A_MAX_ORDERS,
    A_OPEN_ORDERS,
    ACCOUNT_CAPACITY,
    ACCOUNT_KILLED,
    ACCOUNT_OPEN,
    BAND_HIGH,
    BAND_LOW,
    BEST_BID,
    EXECUTION_COUNT,
    H_ACCOUNT,
    H_PRICE,
    K_EXECUTION,
    K_ORDER_ID,
    K_OWNER,
    MINIMUM_NOTIONAL,
    O_CLIENT_ORDER_ID,
    O_FILLED,
    O_LEAVES,
    O_ORDER_ID,
    O_TERMS,
    ORDER_CAPACITY,
    ORDER_NUMBER,
    PAIR_STATUS,
    PRICE_CAPACITY,
    QUANTITY_LIMIT,
    RESTING_COUNT,
    UNITS_PER_LOT,
    UNITS_PER_TICK_LOT,
)
from exchange.book_layout import ACTION_ADDED
from exchange.compiled import inlined
from exchange.enums import Asset, ExecutionKind, PairStatus, Reason, TimeInForce
from exchange.instrument import AMOUNT_LIMIT_UNITS
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    COMMAND_FLAG_POST_ONLY,
    E_HOLD_RATE,
    E_NEEDED,
    E_NEEDED_ASSET,
    ORDER_SLOT_BITS,
)

GTC = int(TimeInForce.GOOD_TILL_CANCELLED)
IOC = int(TimeInForce.IMMEDIATE_OR_CANCEL)
FOK = int(TimeInForce.FILL_OR_KILL)
ACCEPTED = int(ExecutionKind.ACCEPTED)
REJECTED = int(ExecutionKind.REJECTED)
REPLAYED = int(ExecutionKind.REPLAYED)
EXPIRED = int(ExecutionKind.EXPIRED)
STATUS_OPEN = int(PairStatus.OPEN)
CANCEL_ONLY = int(PairStatus.CANCEL_ONLY)

ACCOUNT_UNKNOWN = int(Reason.ACCOUNT_UNKNOWN)
CLIENT_ORDER_ID_INVALID = int(Reason.CLIENT_ORDER_ID_INVALID)
CLIENT_ORDER_ID_REUSED = int(Reason.CLIENT_ORDER_ID_REUSED)
PAIR_HALTED = int(Reason.PAIR_HALTED)
PAIR_CANCEL_ONLY = int(Reason.PAIR_CANCEL_ONLY)
KILLED = int(Reason.ACCOUNT_KILLED)
SIDE_INVALID = int(Reason.SIDE_INVALID)
ORDER_TYPE_INVALID = int(Reason.ORDER_TYPE_INVALID)
TIME_IN_FORCE_INVALID = int(Reason.TIME_IN_FORCE_INVALID)
PREVENTION_INVALID = int(Reason.SELF_TRADE_PREVENTION_INVALID)
POST_ONLY_INVALID = int(Reason.POST_ONLY_INVALID)
PRICE_OUT_OF_RANGE = int(Reason.PRICE_OUT_OF_RANGE)
PRICE_OUTSIDE_BAND = int(Reason.PRICE_OUTSIDE_BAND)
QUANTITY_OUT_OF_RANGE = int(Reason.QUANTITY_OUT_OF_RANGE)
AMOUNT_OUT_OF_RANGE = int(Reason.AMOUNT_OUT_OF_RANGE)
NOTIONAL_BELOW_MINIMUM = int(Reason.NOTIONAL_BELOW_MINIMUM)
ORDER_SIZE_LIMIT = int(Reason.ORDER_SIZE_LIMIT)
ORDER_NOTIONAL_LIMIT = int(Reason.ORDER_NOTIONAL_LIMIT)
OPEN_ORDERS_LIMIT = int(Reason.OPEN_ORDERS_LIMIT)
ORDER_CAPACITY_REACHED = int(Reason.ORDER_CAPACITY)
POST_ONLY_WOULD_TRADE = int(Reason.POST_ONLY_WOULD_TRADE)
FILL_OR_KILL_UNFILLED = int(Reason.FILL_OR_KILL_UNFILLED)
INSUFFICIENT_FUNDS = int(Reason.INSUFFICIENT_FUNDS)
BASE = int(Asset.BASE)
QUOTE = int(Asset.QUOTE)
IMMEDIATE_REMAINDER = int(Reason.IMMEDIATE_REMAINDER)
LIQUIDITY_EXHAUSTED = int(Reason.LIQUIDITY_EXHAUSTED)


@inlined
def command_side(s: State, i: int) -> int:
    """Return the side number of a command, as given."""
    return (s.commands[i, C_VERB] >> 8) & 0xFF


@inlined
def command_account(s: State, i: int) -> int:
    """Return the account number of a command, as given."""
    return s.commands[i, C_VERB] >> 32


@inlined
def command_price(s: State, i: int) -> int:
    """Return the price of a command in ticks, as given."""
    return s.commands[i, C_PRICE] & 0xFFFFFFFF


@inlined
def command_flags(s: State, i: int) -> int:
    """Return the flags of a command."""
    return (s.commands[i, C_PRICE] >> 40) & 0xFF


@inlined
def command_shape(s: State, i: int) -> int:
    """Return the high half of word 5 of an execution that echoes a command."""
    verb = s.commands[i, C_VERB]
    prevention = (s.commands[i, C_PRICE] >> 32) & 0xFF
    post_only = command_flags(s, i) & COMMAND_FLAG_POST_ONLY
    return order_shape((verb >> 16) & 0xFF, (verb >> 24) & 0xFF, prevention, post_only)


@inlined
def account_is_valid(s: State, account: int) -> bool:
    """Say whether a number can be an account."""
    return 0 < account < s.scalars[ACCOUNT_CAPACITY]


@inlined
def account_is_open(s: State, account: int) -> bool:
    """Say whether an account is known to this engine."""
    return account_is_valid(s, account) and s.accounts[account, A_FLAGS] & ACCOUNT_OPEN != 0


@inlined
def reject(s: State, i: int, reason: int) -> None:
    """Answer a command with a refusal that echoes it, its kind included."""
    verb = REJECTED | reason << 8 | command_side(s, i) << 16 | command_account(s, i) << 32
    emit(
        s,
        verb,
        s.commands[i, C_ORDER_ID],
        s.commands[i, C_CLIENT_ORDER_ID],
        command_price(s, i) | command_shape(s, i),
        s.commands[i, C_QUANTITY],
        0,
        0,
        s.commands[i, C_VERB] & 0xFF,
    )


@inlined
def trader_refusal(s: State, account: int) -> int:
    """Return why a trader may not change orders now, or 0."""
    status = s.scalars[PAIR_STATUS]
    if status != STATUS_OPEN:
        return PAIR_CANCEL_ONLY if status == CANCEL_ONLY else PAIR_HALTED
    if s.accounts[account, A_FLAGS] & ACCOUNT_KILLED != 0:
        return KILLED
    return 0


@inlined
def shape_refusal(s: State, i: int) -> int:
    """Return what is wrong with the kinds of a new order, or 0."""
    verb = s.commands[i, C_VERB]
    order_type = (verb >> 16) & 0xFF
    tif = (verb >> 24) & 0xFF
    prevention = (s.commands[i, C_PRICE] >> 32) & 0xFF
    side = (verb >> 8) & 0xFF
    if side != 1 and side != 2:
        return SIDE_INVALID
    if order_type < LIMIT or order_type > MARKET_BY_AMOUNT:
        return ORDER_TYPE_INVALID
    if order_type == LIMIT:
        if tif < GTC or tif > FOK:
            return TIME_IN_FORCE_INVALID
    elif tif != IOC:
        return TIME_IN_FORCE_INVALID
    if prevention < 1 or prevention > 5:
        return PREVENTION_INVALID
    if command_flags(s, i) & COMMAND_FLAG_POST_ONLY and (order_type != LIMIT or tif != GTC):
        return POST_ONLY_INVALID
    return 0


@inlined
def price_refusal(s: State, price: int) -> int:
    """Return what is wrong with a limit price, or 0."""
    if price < 1 or price >= s.scalars[PRICE_CAPACITY]:
        return PRICE_OUT_OF_RANGE
    if price < s.scalars[BAND_LOW] or price > s.scalars[BAND_HIGH]:
        return PRICE_OUTSIDE_BAND
    return 0


@inlined
def size_refusal(s: State, account: int, lots: int, notional: int) -> int:
    """Return which limit of the pair or account a limit order of this size breaks, or 0."""
    if notional < s.scalars[MINIMUM_NOTIONAL]:
        return NOTIONAL_BELOW_MINIMUM
    max_lots = s.accounts[account, A_MAX_LOTS]
    if max_lots != 0 and lots > max_lots:
        return ORDER_SIZE_LIMIT
    max_notional = s.accounts[account, A_MAX_NOTIONAL]
    if max_notional != 0 and notional > max_notional:
        return ORDER_NOTIONAL_LIMIT
    return 0


@inlined
def new_size_refusal(s: State, account: int, order_type: int, price: int, quantity: int) -> int:
    """Return what is wrong with price and size of a new order, or 0."""
    if order_type == LIMIT:
        reason = price_refusal(s, price)
        if reason != 0:
            return reason
    if order_type == MARKET_BY_AMOUNT:
        if quantity < 1 or quantity > AMOUNT_LIMIT_UNITS:
            return AMOUNT_OUT_OF_RANGE
        return size_refusal(s, account, 0, quantity)
    if quantity < 1 or quantity > s.scalars[QUANTITY_LIMIT]:
        return QUANTITY_OUT_OF_RANGE
    if order_type == LIMIT:
        notional = price * quantity * s.scalars[UNITS_PER_TICK_LOT]
        return size_refusal(s, account, quantity, notional)
    max_lots = s.accounts[account, A_MAX_LOTS]
    return ORDER_SIZE_LIMIT if max_lots != 0 and quantity > max_lots else 0


@inlined
def rest_refusal(s: State, account: int) -> int:
    """Return why one more order of this account cannot rest, or 0."""
    max_orders = s.accounts[account, A_MAX_ORDERS]
    if max_orders != 0 and s.accounts[account, A_OPEN_ORDERS] >= max_orders:
        return OPEN_ORDERS_LIMIT
    if s.scalars[RESTING_COUNT] >= s.scalars[ORDER_CAPACITY]:
        return ORDER_CAPACITY_REACHED
    return 0


@inlined
def limit_of(s: State, side: int, order_type: int, price: int) -> int:
    """Return the worst price an order may trade at."""
    if order_type == LIMIT:
        return price
    return s.scalars[BAND_HIGH] if side == 0 else s.scalars[BAND_LOW]


@inlined
def refuse_for_funds(s: State, i: int, account: int, side: int, needed: int) -> None:
    """Refuse an order or amendment, and say how much of what had to be free."""
    reject(s, i, INSUFFICIENT_FUNDS)
    n = s.work[W_EMITTED] - 1
    s.out[n, E_NEEDED_ASSET] = QUOTE if side == 0 else BASE
    s.out[n, E_NEEDED] = needed
    s.out[n, E_HOLD_RATE] = hold_rate_ppm(s, account)


@inlined
def funds_needed(
    s: State, account: int, side: int, order_type: int, price: int, size: int, per_lot: int
) -> int:
    """Return how many units must be free for an order to enter."""
    if order_type == LIMIT:
        needed = size * per_lot
    elif side == 1 and order_type == MARKET:
        needed = size * s.scalars[UNITS_PER_LOT]
    elif side == 0 and order_type == MARKET_BY_AMOUNT:
        needed = size
    elif not crosses(s, side, price):
        needed = 0
    elif side == 0:
        best = s.scalars[BEST_BID + 1]
        needed = buy_hold_per_lot(s, best, hold_rate_ppm(s, account))
    else:
        needed = s.scalars[UNITS_PER_LOT]
    return needed


@inlined
def replay(s: State, i: int, row: int) -> None:
    """Answer a retried order with what became of it."""
    order_id = s.entries[row, K_ORDER_ID]
    slot = live_slot(s, order_id)
    emit(
        s,
        REPLAYED | command_side(s, i) << 16 | command_account(s, i) << 32,
        order_id,
        s.commands[i, C_CLIENT_ORDER_ID],
        command_price(s, i) | command_shape(s, i),
        s.commands[i, C_QUANTITY],
        s.orders[slot, O_LEAVES] if slot != 0 else 0,
        s.orders[slot, O_FILLED] if slot != 0 else 0,
        s.entries[row, K_EXECUTION],
    )


@inlined
def rest(
    s: State,
    slot: int,
    taker: Taker,
    tick: int,
    leaves: int,
    filled: int,
    post_only: int,
    per_lot: int,
) -> None:
    """Put what remains of an order into the book and hold what it may cost."""
    account = taker.account
    side = taker.side
    s.orders[slot, O_ORDER_ID] = taker.order_id
    s.orders[slot, O_CLIENT_ORDER_ID] = taker.client_order_id
    s.orders[slot, O_LEAVES] = leaves
    s.orders[slot, O_FILLED] = filled
    s.orders[slot, O_TERMS] = make_terms(s, account, side + 1, taker.prevention, post_only)
    s.halves[slot, H_PRICE] = tick
    s.halves[slot, H_ACCOUNT] = account
    hold(s, account, side, leaves * per_lot)
    enqueue(s, slot, side, tick)
    publish_order(s, side, tick, ACTION_ADDED, taker.order_id, leaves)


@inlined
def expire_taker(s: State, taker: Taker, reason: int, tick: int, left: int, filled: int) -> None:
    """Say that the rest of an incoming order is gone."""
    verb = EXPIRED | reason << 8 | (taker.side + 1) << 16 | taker.account << 32
    emit(
        s,
        verb,
        taker.order_id,
        taker.client_order_id,
        tick | taker.shape,
        left,
        0,
        filled,
        0,
    )


@inlined
def refusal(s: State, i: int, account: int, side: int, order_type: int, tif: int) -> int:
    """Return the first reason of the ladder from the pair's status on to funds, or 0."""
    reason = trader_refusal(s, account)
    if reason == 0:
        reason = shape_refusal(s, i)
    if reason != 0:
        return reason
    price = command_price(s, i)
    quantity = s.commands[i, C_QUANTITY]
    reason = new_size_refusal(s, account, order_type, price, quantity)
    if reason == 0 and tif == GTC:
        reason = rest_refusal(s, account)
    if reason != 0:
        return reason
    prevention = (s.commands[i, C_PRICE] >> 32) & 0xFF
    if command_flags(s, i) & COMMAND_FLAG_POST_ONLY and crosses(s, side, price):
        return POST_ONLY_WOULD_TRADE
    if tif == FOK and not fillable(s, account, side, prevention, price, quantity):
        return FILL_OR_KILL_UNFILLED
    return 0


@inlined
def new_order(s: State, i: int) -> None:
    """Judge a new order, and if it may live let it trade, rest or expire."""
    account = command_account(s, i)
    client_order_id = s.commands[i, C_CLIENT_ORDER_ID]
    if not account_is_open(s, account):
        reject(s, i, ACCOUNT_UNKNOWN)
        return
    if client_order_id < 1:
        reject(s, i, CLIENT_ORDER_ID_INVALID)
        return
    content = content_of(s, i)
    known = find_entry(s, account, client_order_id)
    if known >= 0:
        if s.entries[known, K_OWNER] & 0xFFFFFFFF == content:
            replay(s, i, known)
        else:
            reject(s, i, CLIENT_ORDER_ID_REUSED)
        return
    verb = s.commands[i, C_VERB]
    side = command_side(s, i) - 1
    order_type = (verb >> 16) & 0xFF
    tif = (verb >> 24) & 0xFF
    reason = refusal(s, i, account, side, order_type, tif)
    if reason != 0:
        reject(s, i, reason)
        return
    price = command_price(s, i)
    quantity = s.commands[i, C_QUANTITY]
    limit = limit_of(s, side, order_type, price)
    # Needed twice, and a number without meaning for what has no price.
    per_lot = hold_per_lot(s, side, price, hold_rate_ppm(s, account))
    needed = funds_needed(s, account, side, order_type, limit, quantity, per_lot)
    if needed > s.accounts[account, free_column(side)]:
        refuse_for_funds(s, i, account, side, needed)
        return
    # From here on nothing may fail.
    slot = reserve_slot(s)
    s.scalars[ORDER_NUMBER] += 1
    order_id = s.scalars[ORDER_NUMBER] << ORDER_SLOT_BITS | slot
    first = s.scalars[EXECUTION_COUNT] + s.work[W_EMITTED]
    remember(s, account, client_order_id, content, order_id, first)
    shape = command_shape(s, i)
    prevention = (s.commands[i, C_PRICE] >> 32) & 0xFF
    head = (side + 1) << 16 | account << 32
    emit(s, ACCEPTED | head, order_id, client_order_id, price | shape, quantity, quantity, 0, 0)
    taker = Taker(account, side, order_type, prevention, limit, order_id, client_order_id, shape)
    left, filled, ended = take(s, taker, quantity, 0)
    if left > 0 and tif == GTC and ended == 0:
        post_only = command_flags(s, i) & COMMAND_FLAG_POST_ONLY
        rest(s, slot, taker, price, left, filled, post_only, per_lot)
        enlist(s, slot, account)
        return
    if slot != 0:
        free_slot(s, slot)
    if left > 0:
        if ended == 0:
            ended = IMMEDIATE_REMAINDER if order_type == LIMIT else LIQUIDITY_EXHAUSTED
        expire_taker(s, taker, ended, price, left, filled)
