"""Changes to resting orders: cancel, cancel all, amend."""

from engine.kernel.accounts import (
    free_column,
    hold_per_lot,
    hold_rate_ppm,
    release_hold,
    slot_hold_per_lot,
    terms_side,
)
from engine.kernel.book import crosses, delist, dequeue, free_slot, level_row, live_slot
from engine.kernel.clients import find_entry
from engine.kernel.entry import (
    ACCOUNT_UNKNOWN,
    PAIR_HALTED,
    POST_ONLY_WOULD_TRADE,
    QUANTITY_OUT_OF_RANGE,
    SIDE_INVALID,
    account_is_open,
    command_account,
    command_flags,
    command_price,
    command_side,
    expire_taker,
    price_refusal,
    refuse_for_funds,
    reject,
    rest,
    size_refusal,
    trader_refusal,
)
from engine.kernel.matching import LIMIT, Taker, end_resting, resting_shape, say_resting, take
from engine.kernel.publication import emit, publish_order
from engine.kernel.state import State
from engine.vault_layout import (
    A_FIRST_ORDER,
    H_ACCOUNT,
    H_ACCOUNT_NEXT,
    H_PRICE,
    K_ORDER_ID,
    O_CLIENT_ORDER_ID,
    O_FILLED,
    O_LEAVES,
    O_ORDER_ID,
    O_TERMS,
    PAIR_STATUS,
    QUANTITY_LIMIT,
    UNITS_PER_TICK_LOT,
)
from exchange.book_layout import ACTION_DELETED, ACTION_REDUCED, LEVEL_LOTS
from exchange.compiled import inlined
from exchange.enums import ExecutionKind, PairStatus, Reason
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_ORDER_ID,
    C_QUANTITY,
    COMMAND_FLAG_DISCONNECTED,
    COMMAND_FLAG_LEAVES,
)

HALTED = int(PairStatus.HALTED)
CANCELLED = int(ExecutionKind.CANCELLED)
AMENDED = int(ExecutionKind.AMENDED)
ALL_CANCELLED = int(ExecutionKind.ALL_CANCELLED)
ORDER_UNKNOWN = int(Reason.ORDER_UNKNOWN)
CANCEL_REQUESTED = int(Reason.CANCEL_REQUESTED)
CANCEL_ALL_REQUESTED = int(Reason.CANCEL_ALL_REQUESTED)
DISCONNECTED = int(Reason.DISCONNECTED)
AMENDED_BELOW_FILLED = int(Reason.AMENDED_BELOW_FILLED)


@inlined
def named_slot(s: State, i: int, account: int) -> int:
    """Return the slot of the account's resting order a command names, or 0."""
    order_id = s.commands[i, C_ORDER_ID]
    if order_id == 0:
        row = find_entry(s, account, s.commands[i, C_CLIENT_ORDER_ID])
        if row < 0:
            return 0
        order_id = s.entries[row, K_ORDER_ID]
    slot = live_slot(s, order_id)
    return slot if slot != 0 and s.halves[slot, H_ACCOUNT] == account else 0


@inlined
def cancel_order(s: State, i: int) -> None:
    """Take one resting order off the book."""
    account = command_account(s, i)
    if not account_is_open(s, account):
        reject(s, i, ACCOUNT_UNKNOWN)
        return
    if s.scalars[PAIR_STATUS] == HALTED:
        reject(s, i, PAIR_HALTED)
        return
    slot = named_slot(s, i, account)
    if slot == 0:
        reject(s, i, ORDER_UNKNOWN)
        return
    lost = command_flags(s, i) & COMMAND_FLAG_DISCONNECTED
    end_resting(s, slot, CANCELLED, DISCONNECTED if lost else CANCEL_REQUESTED)


@inlined
def cancel_orders(s: State, account: int, side: int, reason: int) -> int:
    """Cancel an account's orders of a side (0: both), newest first; return how many."""
    count = 0
    slot = s.accounts[account, A_FIRST_ORDER]
    while slot != 0:
        older = s.halves[slot, H_ACCOUNT_NEXT]
        if side == 0 or s.orders[slot, O_TERMS] & 0xFF == side:
            end_resting(s, slot, CANCELLED, reason)
            count += 1
        slot = older
    return count


@inlined
def cancel_all(s: State, i: int) -> None:
    """Cancel an account's orders, all or of one side."""
    account = command_account(s, i)
    side = command_side(s, i)
    if not account_is_open(s, account):
        reject(s, i, ACCOUNT_UNKNOWN)
        return
    if side > 2:
        reject(s, i, SIDE_INVALID)
        return
    if s.scalars[PAIR_STATUS] == HALTED:
        reject(s, i, PAIR_HALTED)
        return
    lost = command_flags(s, i) & COMMAND_FLAG_DISCONNECTED
    count = cancel_orders(s, account, side, DISCONNECTED if lost else CANCEL_ALL_REQUESTED)
    emit(s, ALL_CANCELLED | side << 16 | account << 32, 0, 0, 0, count, 0, 0, 0)


@inlined
def amend_refusal(s: State, slot: int, price: int, leaves: int) -> int:
    """Return why, funds apart, a resting order may not get this price and these leaves, or 0."""
    account = s.halves[slot, H_ACCOUNT]
    terms = s.orders[slot, O_TERMS]
    side = terms_side(terms)
    moved = price != s.halves[slot, H_PRICE]
    if moved or leaves > s.orders[slot, O_LEAVES]:
        notional = price * leaves * s.scalars[UNITS_PER_TICK_LOT]
        reason = size_refusal(s, account, leaves, notional)
        if reason != 0:
            return reason
    if moved and (terms >> 12) & 1 != 0 and crosses(s, side, price):
        return POST_ONLY_WOULD_TRADE
    return 0


@inlined
def amend_needed(s: State, slot: int, side: int, price: int, leaves: int) -> int:
    """Return how many units must be free for a resting order to get this price and these leaves."""
    if price == s.halves[slot, H_PRICE] and leaves <= s.orders[slot, O_LEAVES]:
        return 0
    rate_ppm = hold_rate_ppm(s, s.halves[slot, H_ACCOUNT])
    held = s.orders[slot, O_LEAVES] * slot_hold_per_lot(s, slot)
    return leaves * hold_per_lot(s, side, price, rate_ppm) - held


@inlined
def shrink_in_place(s: State, slot: int, leaves: int) -> None:
    """Give an order fewer lots where it stands; it keeps its place and remembered rates."""
    side = terms_side(s.orders[slot, O_TERMS])
    tick = s.halves[slot, H_PRICE]
    less = s.orders[slot, O_LEAVES] - leaves
    release_hold(s, slot, less)
    s.orders[slot, O_LEAVES] = leaves
    s.levels[level_row(s, side, tick), LEVEL_LOTS] -= less
    say_resting(s, slot, AMENDED, 0, s.orders[slot, O_FILLED] + leaves, leaves)
    if less > 0:
        publish_order(s, side, tick, ACTION_REDUCED, s.orders[slot, O_ORDER_ID], less)


@inlined
def requeue(s: State, slot: int, price: int, leaves: int) -> None:
    """Move an order to a new price or a larger size: it may trade, and goes to the back."""
    account = s.halves[slot, H_ACCOUNT]
    terms = s.orders[slot, O_TERMS]
    side = terms_side(terms)
    old_tick = s.halves[slot, H_PRICE]
    order_id = s.orders[slot, O_ORDER_ID]
    old_leaves = s.orders[slot, O_LEAVES]
    release_hold(s, slot, old_leaves)
    dequeue(s, slot, side, old_tick)
    publish_order(s, side, old_tick, ACTION_DELETED, order_id, old_leaves)
    s.halves[slot, H_PRICE] = price
    say_resting(s, slot, AMENDED, 0, s.orders[slot, O_FILLED] + leaves, leaves)
    prevention = (terms >> 8) & 0xF
    post_only = (terms >> 12) & 1
    client_order_id = s.orders[slot, O_CLIENT_ORDER_ID]
    shape = resting_shape(terms)
    taker = Taker(account, side, LIMIT, prevention, price, order_id, client_order_id, shape)
    left, filled, ended = take(s, taker, leaves, s.orders[slot, O_FILLED])
    if left > 0 and ended == 0:
        per_lot = hold_per_lot(s, side, price, hold_rate_ppm(s, account))
        rest(s, slot, taker, price, left, filled, post_only, per_lot)
        return
    delist(s, slot, account)
    free_slot(s, slot)
    if left > 0:
        expire_taker(s, taker, ended, price, left, filled)


@inlined
def amend_order(s: State, i: int) -> None:
    """Change price or quantity of a resting order."""
    account = command_account(s, i)
    if not account_is_open(s, account):
        reject(s, i, ACCOUNT_UNKNOWN)
        return
    reason = trader_refusal(s, account)
    if reason != 0:
        reject(s, i, reason)
        return
    slot = named_slot(s, i, account)
    if slot == 0:
        reject(s, i, ORDER_UNKNOWN)
        return
    old_price = s.halves[slot, H_PRICE]
    price = command_price(s, i)
    if price == 0:
        price = old_price
    if price != old_price:
        reason = price_refusal(s, price)
        if reason != 0:
            reject(s, i, reason)
            return
    leaves = s.commands[i, C_QUANTITY]
    if leaves < 1 or leaves > s.scalars[QUANTITY_LIMIT]:
        reject(s, i, QUANTITY_OUT_OF_RANGE)
        return
    if command_flags(s, i) & COMMAND_FLAG_LEAVES == 0:
        leaves -= s.orders[slot, O_FILLED]
    if leaves <= 0:
        end_resting(s, slot, CANCELLED, AMENDED_BELOW_FILLED)
        return
    reason = amend_refusal(s, slot, price, leaves)
    if reason != 0:
        reject(s, i, reason)
        return
    side = terms_side(s.orders[slot, O_TERMS])
    needed = amend_needed(s, slot, side, price, leaves)
    if needed > s.accounts[account, free_column(side)]:
        refuse_for_funds(s, i, account, side, needed)
        return
    if price == old_price and leaves <= s.orders[slot, O_LEAVES]:
        shrink_in_place(s, slot, leaves)
    else:
        requeue(s, slot, price, leaves)
