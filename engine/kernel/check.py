"""The invariants of the book and the money, checked by walking everything.

Used by tests after every step and by operations at start. The numbers it returns are explained
in ``engine.state_machine.BROKEN_INVARIANTS``. It changes nothing.
"""

from engine.kernel.accounts import slot_hold_per_lot, terms_side
from engine.kernel.occupancy import highest_to, lowest_from
from engine.kernel.state import State, form_state
from engine.vault_layout import (
    A_FIRST_ORDER,
    A_FLAGS,
    A_FREE_BASE,
    A_FREE_QUOTE,
    A_HELD_BASE,
    A_HELD_QUOTE,
    A_OPEN_ORDERS,
    ACCOUNT_CAPACITY,
    ACCOUNT_OPEN,
    ALLOTTED_BASE,
    ALLOTTED_QUOTE,
    BEST_ASK,
    BEST_BID,
    FEES_TAKEN,
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
    O_TERMS,
    OPEN_ACCOUNT_COUNT,
    PRICE_CAPACITY,
    QUEUE_FIRST,
    QUEUE_LAST,
    RESTING_COUNT,
)
from exchange.compiled import inlined, kernel

# Two of these many slots can never follow each other in a healthy list.
_ENDLESS = 1 << 25


@inlined
def _check_queue(s: State, side: int, tick: int) -> int:
    """Return 0, or the invariant a price's queue breaks."""
    row = side * s.scalars[PRICE_CAPACITY] + tick
    lots = 0
    count = 0
    before = 0
    slot = s.queues[row, QUEUE_FIRST]
    while slot != 0 and count < _ENDLESS:
        if s.halves[slot, H_PRICE] != tick or terms_side(s.orders[slot, O_TERMS]) != side:
            return 3
        if s.halves[slot, H_PREVIOUS] != before or s.orders[slot, O_ORDER_ID] == 0:
            return 3
        if s.orders[slot, O_LEAVES] <= 0:
            return 2
        lots += s.orders[slot, O_LEAVES]
        count += 1
        before = slot
        slot = s.halves[slot, H_NEXT]
    if s.queues[row, QUEUE_LAST] != before:
        return 3
    return 0 if lots == s.levels[row, 0] and count == s.levels[row, 1] else 2


@inlined
def _check_levels(s: State) -> int:
    """Return 0, or the invariant the price levels break."""
    resting = 0
    ticks = s.scalars[PRICE_CAPACITY]
    for side in range(2):
        occupied = 0
        tick = lowest_from(s, side, 1)
        first = tick
        last = 0
        while tick != 0:
            if s.levels[side * ticks + tick, 1] == 0:
                return 4
            code = _check_queue(s, side, tick)
            if code != 0:
                return code
            resting += s.levels[side * ticks + tick, 1]
            occupied += 1
            if highest_to(s, side, tick) != tick or highest_to(s, side, tick - 1) != last:
                return 4
            last = tick
            tick = lowest_from(s, side, tick + 1)
        if s.scalars[BEST_BID + side] != (last if side == 0 else first):
            return 5
    ask = s.scalars[BEST_ASK]
    if s.scalars[BEST_BID] >= ask and ask != 0:
        return 1
    return 0 if resting == s.scalars[RESTING_COUNT] else 10


@inlined
def _check_account(s: State, account: int) -> int:
    """Return 0, or the invariant an account's orders and holds break."""
    count = 0
    base = 0
    quote = 0
    before = 0
    slot = s.accounts[account, A_FIRST_ORDER]
    while slot != 0 and count < _ENDLESS:
        if s.halves[slot, H_ACCOUNT] != account or s.halves[slot, H_ACCOUNT_PREVIOUS] != before:
            return 6
        if before != 0 and s.orders[before, O_ORDER_ID] <= s.orders[slot, O_ORDER_ID]:
            return 6
        held = s.orders[slot, O_LEAVES] * slot_hold_per_lot(s, slot)
        if terms_side(s.orders[slot, O_TERMS]) == 0:
            quote += held
        else:
            base += held
        count += 1
        before = slot
        slot = s.halves[slot, H_ACCOUNT_NEXT]
    if count != s.accounts[account, A_OPEN_ORDERS]:
        return 6
    if base != s.accounts[account, A_HELD_BASE] or quote != s.accounts[account, A_HELD_QUOTE]:
        return 7
    return 8 if min(s.accounts[account, A_FREE_BASE], s.accounts[account, A_FREE_QUOTE]) < 0 else 0


@inlined
def _check_accounts(s: State) -> int:
    """Return 0, or the invariant the accounts break."""
    base = 0
    quote = 0
    for account in range(s.scalars[ACCOUNT_CAPACITY]):
        code = _check_account(s, account)
        if code != 0:
            return code
        base += s.accounts[account, A_FREE_BASE] + s.accounts[account, A_HELD_BASE]
        quote += s.accounts[account, A_FREE_QUOTE] + s.accounts[account, A_HELD_QUOTE]
    fees = s.scalars[FEES_TAKEN]
    if fees < 0:
        return 8
    if base != s.scalars[ALLOTTED_BASE] or quote + fees != s.scalars[ALLOTTED_QUOTE]:
        return 9
    return 0


@inlined
def _check_open_accounts(s: State) -> int:
    """Return 0, or 12 when the list of open accounts is not each open account once."""
    flagged = 0
    numbers = 0
    for account in range(s.scalars[ACCOUNT_CAPACITY]):
        if s.accounts[account, A_FLAGS] & ACCOUNT_OPEN != 0:
            flagged += 1
            numbers += account
    if flagged != s.scalars[OPEN_ACCOUNT_COUNT]:
        return 12
    for i in range(flagged):
        account = s.open_accounts[i]
        if s.accounts[account, A_FLAGS] & ACCOUNT_OPEN == 0:
            return 12
        numbers -= account
    return 0 if numbers == 0 else 12


@inlined
def _check_slots(s: State) -> int:
    """Return 0, or 11 when free and resting slots do not make up all used ones."""
    free = 0
    slot = s.scalars[FREE_HEAD]
    while slot != 0 and free < _ENDLESS:
        if s.orders[slot, O_ORDER_ID] != 0:
            return 11
        free += 1
        slot = s.halves[slot, H_NEXT]
    return 0 if free + s.scalars[RESTING_COUNT] == s.scalars[HIGH_WATER] else 11


@kernel
def check_state(context: int) -> int:
    """Return 0, or the number of the first broken invariant."""
    s = form_state(context)
    code = _check_levels(s)
    if code == 0:
        code = _check_slots(s)
    if code == 0:
        code = _check_accounts(s)
    if code == 0:
        code = _check_open_accounts(s)
    return code
