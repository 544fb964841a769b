"""Client order ids: a retried order is answered with its first outcome, never executed twice.

A ring of entries in order of acceptance plus hash chains from newest to oldest. Overwriting the
oldest entry unlinks it by itself, because a chain walk ends at the first number outside the ring's
window. An entry whose order still rests is not overwritten: it is carried forward as the newest.
"""

from engine.kernel.book import SLOT_MASK, live_slot
from engine.kernel.state import State
from engine.vault_layout import (
    CLIENT_NUMBER,
    CLIENT_WINDOW,
    K_CLIENT_ORDER_ID,
    K_EXECUTION,
    K_ORDER_ID,
    K_OWNER,
)
from exchange.atomics import prefetch
from exchange.compiled import inlined
from exchange.records import C_PRICE, C_QUANTITY, C_VERB
from exchange.tables import address_of, int64, uint64

# Odd 64-bit constants of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
# generators, 2014), used as multiplicative mixers.
_FIRST = uint64(0xBF58476D1CE4E5B9)
_SECOND = uint64(0x94D049BB133111EB)

ENTRIES_AHEAD = 32
OWNERS_AHEAD = 8


@inlined
def chain_of(s: State, account: int, client_order_id: int) -> int:
    """Return the hash chain an id belongs to."""
    mixed = (uint64(client_order_id) ^ (uint64(account) * _SECOND)) * _FIRST
    mixed ^= mixed >> uint64(32)
    return int64(mixed & uint64(2 * s.scalars[CLIENT_WINDOW] - 1))


@inlined
def content_of(s: State, i: int) -> int:
    """Return 32 bits that tell one order from another with the same client order id."""
    mixed = uint64(s.commands[i, C_VERB] & 0xFFFFFFFF) * _FIRST
    mixed = (mixed ^ uint64(s.commands[i, C_PRICE])) * _SECOND
    mixed = (mixed ^ (mixed >> uint64(29)) ^ uint64(s.commands[i, C_QUANTITY])) * _FIRST
    return int64(mixed >> uint64(32))


@inlined
def find_entry(s: State, account: int, client_order_id: int) -> int:
    """Return the row of the remembered id, or -1."""
    window = s.scalars[CLIENT_WINDOW]
    oldest = max(s.scalars[CLIENT_NUMBER] - window, 0)
    number = s.heads[chain_of(s, account, client_order_id)]
    while number > oldest:
        row = number & (window - 1)
        if (
            s.entries[row, K_CLIENT_ORDER_ID] == client_order_id
            and s.entries[row, K_OWNER] >> 32 == account
        ):
            return row
        number = s.links[row]
    return -1


@inlined
def _push(s: State, number: int, row: int, chain: int) -> None:
    s.links[row] = s.heads[chain]
    s.heads[chain] = number


@inlined
def remember(
    s: State, account: int, client_order_id: int, content: int, order_id: int, execution: int
) -> None:
    """Remember an accepted order's client order id."""
    window = s.scalars[CLIENT_WINDOW]
    number = s.scalars[CLIENT_NUMBER] + 1
    row = number & (window - 1)
    while number > window and live_slot(s, s.entries[row, K_ORDER_ID]) != 0:
        owner = s.entries[row, K_OWNER] >> 32
        _push(s, number, row, chain_of(s, owner, s.entries[row, K_CLIENT_ORDER_ID]))
        number += 1
        row = number & (window - 1)
    s.scalars[CLIENT_NUMBER] = number
    s.entries[row, K_CLIENT_ORDER_ID] = client_order_id
    s.entries[row, K_OWNER] = account << 32 | content
    s.entries[row, K_ORDER_ID] = order_id
    s.entries[row, K_EXECUTION] = execution
    _push(s, number, row, chain_of(s, account, client_order_id))
    # The ring is larger than the caches, and each entry to be overwritten names an order anywhere.
    far = (number + ENTRIES_AHEAD) & (window - 1)
    prefetch(address_of(s.entries, far))
    prefetch(address_of(s.links, far))
    near = s.entries[(number + OWNERS_AHEAD) & (window - 1), K_ORDER_ID] & SLOT_MASK
    prefetch(address_of(s.orders, near))
