"""Resting orders: slots, price queues, each account's list of orders.

A slot is a row of ``orders``; its neighbours in the price queue and in the account's list are slot
numbers in the same cache line. Slot 0 means none. Level quantities live in the public segment, the
queue ends in the vault.
"""

from engine.kernel.occupancy import highest_to, lowest_from, occupy, vacate
from engine.kernel.state import State
from engine.vault_layout import (
    A_FIRST_ORDER,
    A_OPEN_ORDERS,
    BEST_ASK,
    BEST_BID,
    FREE_HEAD,
    H_ACCOUNT,
    H_ACCOUNT_NEXT,
    H_ACCOUNT_PREVIOUS,
    H_NEXT,
    H_PREVIOUS,
    H_PRICE,
    HIGH_WATER,
    O_LEAVES,
    O_ORDER_ID,
    ORDER_CAPACITY,
    PRICE_CAPACITY,
    QUEUE_FIRST,
    QUEUE_LAST,
    RESTING_COUNT,
)
from exchange.book_layout import LEVEL_LOTS, LEVEL_ORDERS
from exchange.compiled import inlined
from exchange.records import ORDER_SLOT_BITS

SLOT_MASK = (1 << ORDER_SLOT_BITS) - 1


@inlined
def reserve_slot(s: State) -> int:
    """Take the slot freed last, else the lowest never used, else 0: the book is full."""
    slot = s.scalars[FREE_HEAD]
    if slot != 0:
        s.scalars[FREE_HEAD] = s.halves[slot, H_NEXT]
    elif s.scalars[HIGH_WATER] < s.scalars[ORDER_CAPACITY]:
        slot = s.scalars[HIGH_WATER] + 1
        s.scalars[HIGH_WATER] = slot
    return slot


@inlined
def free_slot(s: State, slot: int) -> None:
    """Give a slot back; it is the next one taken."""
    s.orders[slot, O_ORDER_ID] = 0
    s.halves[slot, H_NEXT] = s.scalars[FREE_HEAD]
    s.scalars[FREE_HEAD] = slot


@inlined
def live_slot(s: State, order_id: int) -> int:
    """Return the slot of a resting order, or 0 when no such order rests."""
    slot = order_id & SLOT_MASK
    if order_id > 0 and slot <= s.scalars[ORDER_CAPACITY] and s.orders[slot, 0] == order_id:
        return slot
    return 0


@inlined
def level_row(s: State, side: int, tick: int) -> int:
    """Return the row of a price in levels and queues; side is the index, 0 buy, 1 sell."""
    return side * s.scalars[PRICE_CAPACITY] + tick


@inlined
def enqueue(s: State, slot: int, side: int, tick: int) -> None:
    """Put an order at the back of its price."""
    row = level_row(s, side, tick)
    last = s.queues[row, QUEUE_LAST]
    s.halves[slot, H_PREVIOUS] = last
    s.halves[slot, H_NEXT] = 0
    if last == 0:
        s.queues[row, QUEUE_FIRST] = slot
        occupy(s, side, tick)
        best = s.scalars[BEST_BID + side]
        if best == 0 or (tick > best if side == 0 else tick < best):
            s.scalars[BEST_BID + side] = tick
    else:
        s.halves[last, H_NEXT] = slot
    s.queues[row, QUEUE_LAST] = slot
    s.levels[row, LEVEL_LOTS] += s.orders[slot, O_LEAVES]
    s.levels[row, LEVEL_ORDERS] += 1


@inlined
def dequeue(s: State, slot: int, side: int, tick: int) -> None:
    """Take an order out of its price queue, wherever it stands."""
    row = level_row(s, side, tick)
    before = s.halves[slot, H_PREVIOUS]
    after = s.halves[slot, H_NEXT]
    if before == 0:
        s.queues[row, QUEUE_FIRST] = after
    else:
        s.halves[before, H_NEXT] = after
    if after == 0:
        s.queues[row, QUEUE_LAST] = before
    else:
        s.halves[after, H_PREVIOUS] = before
    s.levels[row, LEVEL_LOTS] -= s.orders[slot, O_LEAVES]
    s.levels[row, LEVEL_ORDERS] -= 1
    if before == 0 and after == 0:
        vacate(s, side, tick)
        if s.scalars[BEST_BID + side] == tick:
            best = highest_to(s, side, tick) if side == 0 else lowest_from(s, side, tick)
            s.scalars[BEST_BID + side] = best


@inlined
def enlist(s: State, slot: int, account: int) -> None:
    """Put an order at the head of its account's list: the list runs from newest to oldest."""
    first = s.accounts[account, A_FIRST_ORDER]
    s.halves[slot, H_ACCOUNT_NEXT] = first
    s.halves[slot, H_ACCOUNT_PREVIOUS] = 0
    if first != 0:
        s.halves[first, H_ACCOUNT_PREVIOUS] = slot
    s.accounts[account, A_FIRST_ORDER] = slot
    s.accounts[account, A_OPEN_ORDERS] += 1
    s.scalars[RESTING_COUNT] += 1


@inlined
def delist(s: State, slot: int, account: int) -> None:
    """Take an order out of its account's list."""
    before = s.halves[slot, H_ACCOUNT_PREVIOUS]
    after = s.halves[slot, H_ACCOUNT_NEXT]
    if before == 0:
        s.accounts[account, A_FIRST_ORDER] = after
    else:
        s.halves[before, H_ACCOUNT_NEXT] = after
    if after != 0:
        s.halves[after, H_ACCOUNT_PREVIOUS] = before
    s.accounts[account, A_OPEN_ORDERS] -= 1
    s.scalars[RESTING_COUNT] -= 1


@inlined
def remove(s: State, slot: int, side: int) -> None:
    """Take an order off the book altogether; its hold is the caller's to return."""
    dequeue(s, slot, side, s.halves[slot, H_PRICE])
    delist(s, slot, s.halves[slot, H_ACCOUNT])
    free_slot(s, slot)


@inlined
def crosses(s: State, side: int, price: int) -> bool:
    """Say whether an order of this side and price would meet the best opposite price."""
    if side == 0:
        ask = s.scalars[BEST_ASK]
        return ask != 0 and price >= ask
    bid = s.scalars[BEST_BID]
    return bid != 0 and price <= bid
