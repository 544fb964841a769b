"""Price-time priority: an incoming order against the opposite side, oldest first at each price.

The incoming order's working values travel as one small tuple of integers; resting orders change in
place. Nothing here decides whether an order may enter; that is ``orders``.
"""

from typing import NamedTuple

from engine.kernel.accounts import (
    fee_units,
    payable_notional,
    release_hold,
    settle,
    terms_side,
)
from engine.kernel.book import crosses, delist, dequeue, free_slot, level_row, remove
from engine.kernel.occupancy import highest_to, lowest_from
from engine.kernel.publication import add_maker, emit, publish_level, publish_order, record_trade
from engine.kernel.state import W_TRADED, State
from engine.vault_layout import (
    A_FREE_BASE,
    A_FREE_QUOTE,
    A_OPEN_ORDERS,
    A_TAKER_PPM,
    BEST_BID,
    H_ACCOUNT,
    H_NEXT,
    H_PRICE,
    O_CLIENT_ORDER_ID,
    O_FILLED,
    O_LEAVES,
    O_ORDER_ID,
    O_TERMS,
    QUEUE_FIRST,
    UNITS_PER_LOT,
    UNITS_PER_TICK_LOT,
)
from exchange.book_layout import ACTION_DELETED, ACTION_REDUCED, LEVEL_LOTS
from exchange.compiled import inlined
from exchange.enums import ExecutionKind, OrderType, Reason, SelfTradePrevention, TimeInForce

LIMIT = int(OrderType.LIMIT)
MARKET = int(OrderType.MARKET)
MARKET_BY_AMOUNT = int(OrderType.MARKET_BY_AMOUNT)
GOOD_TILL_CANCELLED = int(TimeInForce.GOOD_TILL_CANCELLED)
ALLOW = int(SelfTradePrevention.NONE)
CANCEL_NEWEST = int(SelfTradePrevention.CANCEL_NEWEST)
CANCEL_OLDEST = int(SelfTradePrevention.CANCEL_OLDEST)
DECREMENT = int(SelfTradePrevention.DECREMENT)
TRADE = int(ExecutionKind.TRADE)
EXPIRED = int(ExecutionKind.EXPIRED)
PREVENTED = int(ExecutionKind.PREVENTED)
SELF_TRADE_PREVENTED = int(Reason.SELF_TRADE_PREVENTED)
FUNDS_EXHAUSTED = int(Reason.FUNDS_EXHAUSTED)
LIQUIDITY_EXHAUSTED = int(Reason.LIQUIDITY_EXHAUSTED)


class Taker(NamedTuple):
    """An order on its way through the book; side is the index, 0 buy, 1 sell."""

    account: int
    side: int
    order_type: int
    prevention: int
    limit_ticks: int
    order_id: int
    client_order_id: int
    shape: int
    """Word 5 of its executions without the price."""


@inlined
def order_shape(order_type: int, tif: int, prevention: int, post_only: int) -> int:
    """Return the high half of word 5 of an execution."""
    return order_type << 32 | tif << 40 | prevention << 48 | post_only << 56


@inlined
def resting_shape(terms: int) -> int:
    """Return the high half of word 5 for a resting order."""
    prevention = (terms >> 8) & 0xF
    return order_shape(LIMIT, GOOD_TILL_CANCELLED, prevention, (terms >> 12) & 1)


@inlined
def say_resting(s: State, slot: int, kind: int, reason: int, lots: int, leaves: int) -> None:
    """Emit an execution about a resting order."""
    terms = s.orders[slot, O_TERMS]
    verb = kind | reason << 8 | (terms & 0xFF) << 16
    emit(
        s,
        verb | s.halves[slot, H_ACCOUNT] << 32,
        s.orders[slot, O_ORDER_ID],
        s.orders[slot, O_CLIENT_ORDER_ID],
        s.halves[slot, H_PRICE] | resting_shape(terms),
        lots,
        leaves,
        s.orders[slot, O_FILLED],
        0,
    )


@inlined
def end_resting(s: State, slot: int, kind: int, reason: int) -> None:
    """Take an order off the book, return its hold and say so."""
    leaves = s.orders[slot, O_LEAVES]
    side = terms_side(s.orders[slot, O_TERMS])
    tick = s.halves[slot, H_PRICE]
    order_id = s.orders[slot, O_ORDER_ID]
    say_resting(s, slot, kind, reason, leaves, 0)
    release_hold(s, slot, leaves)
    remove(s, slot, side)
    publish_order(s, side, tick, ACTION_DELETED, order_id, leaves)


@inlined
def affordable(s: State, taker: Taker, price: int, remaining: int) -> tuple[int, int]:
    """Return how many lots a market order can pay at a price, and why it ends when they run out."""
    account = taker.account
    lot_worth = price * s.scalars[UNITS_PER_TICK_LOT]
    by_amount = taker.order_type == MARKET_BY_AMOUNT
    if taker.side == 0:
        money = remaining if by_amount else s.accounts[account, A_FREE_QUOTE]
        lots = payable_notional(money, s.accounts[account, A_TAKER_PPM]) // lot_worth
        if by_amount:
            return lots, LIQUIDITY_EXHAUSTED
        return min(remaining, lots), FUNDS_EXHAUSTED
    if not by_amount:
        return remaining, FUNDS_EXHAUSTED
    owned = s.accounts[account, A_FREE_BASE] // s.scalars[UNITS_PER_LOT]
    lots = remaining // lot_worth
    return (owned, FUNDS_EXHAUSTED) if owned <= lots else (lots, LIQUIDITY_EXHAUSTED)


@inlined
def trade(
    s: State, taker: Taker, slot: int, price: int, lots: int, remaining: int, filled: int
) -> int:
    """Trade lots with a resting order; return what remains of the incoming one."""
    side = taker.side
    notional = price * lots * s.scalars[UNITS_PER_TICK_LOT]
    fee = fee_units(notional, s.accounts[taker.account, A_TAKER_PPM])
    maker_fee = settle(s, slot, taker.account, side, lots, notional, fee)
    if taker.order_type != MARKET_BY_AMOUNT:
        remaining -= lots
    elif side == 0:
        remaining -= notional + fee
    else:
        remaining -= notional
    leaves = s.orders[slot, O_LEAVES] - lots
    verb = TRADE | (side + 1) << 16 | taker.account << 32
    emit(
        s,
        verb,
        taker.order_id,
        taker.client_order_id,
        price | taker.shape,
        lots,
        remaining,
        filled + lots,
        fee,
    )
    order_id = s.orders[slot, O_ORDER_ID]
    client_order_id = s.orders[slot, O_CLIENT_ORDER_ID]
    maker = s.halves[slot, H_ACCOUNT]
    add_maker(s, order_id, client_order_id, maker, leaves, maker_fee)
    record_trade(s, side, price, lots, notional, order_id, leaves)
    s.work[W_TRADED] = 1
    shrink(s, slot, 1 - side, price, lots)
    s.orders[slot, O_FILLED] += lots
    return remaining


@inlined
def shrink(s: State, slot: int, side: int, tick: int, lots: int) -> None:
    """Take lots off a resting order; at zero it leaves the book. Its hold is already settled."""
    if lots == s.orders[slot, O_LEAVES]:
        dequeue(s, slot, side, tick)
        delist(s, slot, s.halves[slot, H_ACCOUNT])
        s.orders[slot, O_LEAVES] = 0
        free_slot(s, slot)
    else:
        s.orders[slot, O_LEAVES] -= lots
        s.levels[level_row(s, side, tick), LEVEL_LOTS] -= lots


@inlined
def decrement(s: State, taker: Taker, slot: int, tick: int, remaining: int, filled: int) -> int:
    """Shrink both orders without a trade; return what remains of the incoming one."""
    lots = min(remaining, s.orders[slot, O_LEAVES])
    verb = PREVENTED | SELF_TRADE_PREVENTED << 8 | (taker.side + 1) << 16 | taker.account << 32
    remaining -= lots
    emit(
        s,
        verb,
        taker.order_id,
        taker.client_order_id,
        tick | taker.shape,
        lots,
        remaining,
        filled,
        0,
    )
    order_id = s.orders[slot, O_ORDER_ID]
    client_order_id = s.orders[slot, O_CLIENT_ORDER_ID]
    leaves = s.orders[slot, O_LEAVES] - lots
    add_maker(s, order_id, client_order_id, taker.account, leaves, 0)
    release_hold(s, slot, lots)
    shrink(s, slot, 1 - taker.side, tick, lots)
    action = ACTION_REDUCED if leaves != 0 else ACTION_DELETED
    publish_order(s, 1 - taker.side, tick, action, order_id, lots)
    return remaining


@inlined
def take(s: State, taker: Taker, remaining: int, filled: int) -> tuple[int, int, int]:
    """Match an incoming order; return what remains, the lots filled in all, and why it ended.

    Reason 0: it went as far as its limit; what remains may rest or expire by its own rules. It
    meets every resting order once: what a trade with its own account's order gives back does not
    pay for another one with the same order, or one command could emit executions without end.
    """
    reason = 0
    other = 1 - taker.side
    while remaining > 0 and reason == 0 and crosses(s, taker.side, taker.limit_ticks):
        tick = s.scalars[BEST_BID + other]
        row = level_row(s, other, tick)
        while remaining > 0:
            slot = s.queues[row, QUEUE_FIRST]
            if slot == 0:
                break
            if s.halves[slot, H_ACCOUNT] == taker.account and taker.prevention != ALLOW:
                mode = taker.prevention
                if mode == DECREMENT and taker.order_type != MARKET_BY_AMOUNT:
                    remaining = decrement(s, taker, slot, tick, remaining, filled)
                    continue
                if mode != CANCEL_NEWEST:
                    end_resting(s, slot, EXPIRED, SELF_TRADE_PREVENTED)
                if mode != CANCEL_OLDEST:
                    reason = SELF_TRADE_PREVENTED
                    break
                continue
            lots, shortage = remaining, 0
            if taker.order_type != LIMIT:
                lots, shortage = affordable(s, taker, tick, remaining)
                if lots == 0:
                    reason = shortage
                    break
            leaves = s.orders[slot, O_LEAVES]
            lots = min(lots, leaves)
            remaining = trade(s, taker, slot, tick, lots, remaining, filled)
            filled += lots
            if lots < leaves and remaining > 0:
                reason = shortage
                break
        publish_level(s, other, tick)
    return remaining, filled, reason


@inlined
def fillable(s: State, account: int, side: int, prevention: int, price: int, lots: int) -> bool:
    """Say whether a fill-or-kill order of so many lots would fill, own orders considered."""
    other = 1 - side
    own = prevention != ALLOW and s.accounts[account, A_OPEN_ORDERS] > 0
    tick = s.scalars[BEST_BID + other]
    while tick != 0 and lots > 0 and (tick <= price if side == 0 else tick >= price):
        row = level_row(s, other, tick)
        if not own:
            lots -= s.levels[row, LEVEL_LOTS]
        else:
            slot = s.queues[row, QUEUE_FIRST]
            while slot != 0 and lots > 0:
                if s.halves[slot, H_ACCOUNT] != account:
                    lots -= s.orders[slot, O_LEAVES]
                elif prevention != CANCEL_OLDEST:
                    return False
                slot = s.halves[slot, H_NEXT]
        tick = lowest_from(s, other, tick + 1) if side == 0 else highest_to(s, other, tick - 1)
    return lots <= 0
