"""Prefetching: tell the processor which lines the next commands will touch.

A command reads half a dozen lines scattered over tens of megabytes, each found through the one
before. While one command is decided, the lines of those behind it are on their way: the id's hash
chain first, then its entry, then the order, then the order's neighbours. These are hints. They
change no state, and a wrong guess costs a line fetched in vain; every index is bounded all the
same, because a real load stands behind each step but the first.
"""

from engine.kernel.book import SLOT_MASK, level_row
from engine.kernel.clients import chain_of
from engine.kernel.state import W_LOOK_CHAIN, W_LOOK_SLOT, State
from engine.vault_layout import (
    A_FIRST_ORDER,
    A_MAX_LOTS,
    ACCOUNT_CAPACITY,
    CLIENT_WINDOW,
    H_ACCOUNT_NEXT,
    H_ACCOUNT_PREVIOUS,
    H_NEXT,
    H_PREVIOUS,
    H_PRICE,
    K_ORDER_ID,
    O_TERMS,
    ORDER_CAPACITY,
    PRICE_CAPACITY,
    QUEUE_LAST,
)
from exchange.atomics import prefetch
from exchange.compiled import inlined
from exchange.enums import CommandKind
from exchange.records import C_CLIENT_ORDER_ID, C_ORDER_ID, C_PRICE, C_VERB
from exchange.tables import address_of

NEW_ORDER = int(CommandKind.NEW_ORDER)
AMEND_ORDER = int(CommandKind.AMEND_ORDER)

FAR = 16
MIDDLE = 12
NEAR = 8
NEXT = 4
_RING = 31


@inlined
def _look_far(s: State, i: int) -> None:
    """Fetch the head of the id's hash chain and the account."""
    account = s.commands[i, C_VERB] >> 32
    chain = chain_of(s, account, s.commands[i, C_CLIENT_ORDER_ID])
    s.work[W_LOOK_CHAIN + (i & _RING)] = chain
    prefetch(address_of(s.heads, chain))
    prefetch(address_of(s.accounts, account))
    prefetch(address_of(s.accounts, account) + 8 * A_MAX_LOTS)


@inlined
def _look_middle(s: State, i: int) -> None:
    """Fetch the newest entry of the chain; for a new order, its price."""
    row = s.heads[s.work[W_LOOK_CHAIN + (i & _RING)]] & (s.scalars[CLIENT_WINDOW] - 1)
    prefetch(address_of(s.entries, row))
    prefetch(address_of(s.links, row))
    if s.commands[i, C_VERB] & 0xFF == NEW_ORDER:
        side = ((s.commands[i, C_VERB] >> 8) & 0xFF) - 1
        level = level_row(s, side, s.commands[i, C_PRICE] & 0xFFFFFFFF)
        prefetch(address_of(s.levels, level))
        prefetch(address_of(s.queues, level))


@inlined
def _look_near(s: State, i: int) -> None:
    """Fetch the order a change names; for a new order, its neighbours to be."""
    verb = s.commands[i, C_VERB]
    slot = 0
    if verb & 0xFF == NEW_ORDER:
        account = verb >> 32
        price = s.commands[i, C_PRICE] & 0xFFFFFFFF
        side = ((verb >> 8) & 0xFF) - 1
        if 0 < account < s.scalars[ACCOUNT_CAPACITY]:
            prefetch(address_of(s.orders, s.accounts[account, A_FIRST_ORDER]))
        if price < s.scalars[PRICE_CAPACITY] and 0 <= side <= 1:
            prefetch(address_of(s.orders, s.queues[level_row(s, side, price), QUEUE_LAST]))
    else:
        order_id = s.commands[i, C_ORDER_ID]
        if order_id == 0:
            chain = s.work[W_LOOK_CHAIN + (i & _RING)]
            order_id = s.entries[s.heads[chain] & (s.scalars[CLIENT_WINDOW] - 1), K_ORDER_ID]
        slot = order_id & SLOT_MASK
        slot = slot if slot <= s.scalars[ORDER_CAPACITY] else 0
        prefetch(address_of(s.orders, slot))
    s.work[W_LOOK_SLOT + (i & _RING)] = slot


@inlined
def _look_next(s: State, i: int) -> None:
    """Fetch the neighbours and the price of the order a change names."""
    slot = s.work[W_LOOK_SLOT + (i & _RING)]
    if slot != 0:
        prefetch(address_of(s.orders, s.halves[slot, H_NEXT]))
        prefetch(address_of(s.orders, s.halves[slot, H_PREVIOUS]))
        prefetch(address_of(s.orders, s.halves[slot, H_ACCOUNT_NEXT]))
        prefetch(address_of(s.orders, s.halves[slot, H_ACCOUNT_PREVIOUS]))
        level = level_row(s, (s.orders[slot, O_TERMS] & 0xFF) - 1, s.halves[slot, H_PRICE])
        prefetch(address_of(s.levels, level))
        prefetch(address_of(s.queues, level))


@inlined
def look_ahead(s: State, i: int, count: int) -> None:
    """Take each of the next commands one step further."""
    prefetch(address_of(s.commands, i + 2 * FAR))
    if i + FAR < count:
        _look_far(s, i + FAR)
    if i + MIDDLE < count:
        _look_middle(s, i + MIDDLE)
    if i + NEAR < count:
        _look_near(s, i + NEAR)
    if i + NEXT < count:
        _look_next(s, i + NEXT)


@inlined
def look_at_first(s: State, count: int) -> None:
    """Start a batch: the first commands have nobody before them."""
    for i in range(min(count, FAR)):
        _look_far(s, i)
    for i in range(min(count, MIDDLE)):
        _look_middle(s, i)
    for i in range(min(count, NEAR)):
        _look_near(s, i)
    for i in range(min(count, NEXT)):
        _look_next(s, i)
