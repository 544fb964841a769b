"""The kernel's one entry point: apply a batch of commands to the state behind an address."""

from engine.kernel.changes import amend_order, cancel_all, cancel_order
from engine.kernel.entry import new_order, reject
from engine.kernel.lookahead import look_ahead, look_at_first
from engine.kernel.publication import depth_is_due, mark_last, publish_depth, publish_touch
from engine.kernel.settings import (
    digest_accounts,
    follow_band,
    move_funds,
    set_fees,
    set_kill_switch,
    set_limits,
    set_pair_status,
    set_price_band,
)
from engine.kernel.state import (
    W_COMMANDS,
    W_DAY,
    W_EMITTED,
    W_OUT,
    W_SEQUENCE,
    W_SOURCE,
    W_TIME_NS,
    W_TRADED,
    State,
    form_state,
)
from engine.vault_layout import BAND_PPM, EXECUTION_COUNT, RESTING_COUNT, SEQUENCE, TIME_NS
from exchange.atomics import fence_release, store_relaxed_at, store_release_at
from exchange.book_layout import BOOK_VERSION
from exchange.compiled import inlined, kernel
from exchange.enums import CommandKind, Reason
from exchange.records import (
    C_SOURCE,
    C_VERB,
    RING_CAPACITY,
    SOURCE_POSITION_MASK,
    SOURCE_SHIFT,
)
from exchange.tables import address_of, words

NEW_ORDER = int(CommandKind.NEW_ORDER)
CANCEL_ORDER = int(CommandKind.CANCEL_ORDER)
AMEND_ORDER = int(CommandKind.AMEND_ORDER)
CANCEL_ALL = int(CommandKind.CANCEL_ALL)
ALLOT_FUNDS = int(CommandKind.ALLOT_FUNDS)
RELEASE_FUNDS = int(CommandKind.RELEASE_FUNDS)
SET_FEES = int(CommandKind.SET_FEES)
SET_LIMITS = int(CommandKind.SET_LIMITS)
SET_KILL_SWITCH = int(CommandKind.SET_KILL_SWITCH)
SET_PAIR_STATUS = int(CommandKind.SET_PAIR_STATUS)
SET_PRICE_BAND = int(CommandKind.SET_PRICE_BAND)
DIGEST_ACCOUNTS = int(CommandKind.DIGEST_ACCOUNTS)
COMMAND_KIND_INVALID = int(Reason.COMMAND_KIND_INVALID)

DAY_NS = 86_400_000_000_000
OUTPUT_RESERVE = 8
"""Executions one command may cause beyond one per resting order."""


@inlined
def _apply_one(s: State, i: int) -> None:
    kind = s.commands[i, C_VERB] & 0xFF
    if kind == NEW_ORDER:
        new_order(s, i)
    elif kind == CANCEL_ORDER:
        cancel_order(s, i)
    elif kind == AMEND_ORDER:
        amend_order(s, i)
    elif kind == CANCEL_ALL:
        cancel_all(s, i)
    elif kind in (ALLOT_FUNDS, RELEASE_FUNDS):
        move_funds(s, i)
    elif kind == SET_FEES:
        set_fees(s, i)
    elif kind == SET_LIMITS:
        set_limits(s, i)
    elif kind == SET_KILL_SWITCH:
        set_kill_switch(s, i)
    elif kind == SET_PAIR_STATUS:
        set_pair_status(s, i)
    elif kind == SET_PRICE_BAND:
        set_price_band(s, i)
    elif kind == DIGEST_ACCOUNTS:
        digest_accounts(s)
    else:
        reject(s, i, COMMAND_KIND_INVALID)


@inlined
def _begin(s: State, time_ns: int) -> None:
    # A writer killed inside a batch leaves an odd version; the next batch repairs it.
    store_relaxed_at(address_of(s.book, BOOK_VERSION), s.book[BOOK_VERSION] | 1)
    fence_release()
    s.work[W_EMITTED] = 0
    s.work[W_TIME_NS] = time_ns
    # Day 0 means that there was no trade yet.
    s.work[W_DAY] = time_ns // DAY_NS + 1


@inlined
def _end(s: State, applied: int, time_ns: int) -> None:
    s.scalars[SEQUENCE] += applied
    s.scalars[TIME_NS] = time_ns
    s.scalars[EXECUTION_COUNT] += s.work[W_EMITTED]
    publish_touch(s)
    if depth_is_due(s):
        publish_depth(s)
    store_release_at(address_of(s.book, BOOK_VERSION), (s.book[BOOK_VERSION] | 1) + 1)


@kernel
def apply_batch(
    context: int, commands: int, count: int, time_ns: int, out: int, out_capacity: int
) -> int:
    """Apply commands in order; return how many were applied.

    ``context``, ``commands`` (count rows of 8 int64) and ``out`` (out_capacity rows of 16 int64)
    are addresses. Executions go to ``out`` from row 0; their number is left in the context's word
    W_EMITTED. Fewer than count are applied when ``out`` could overflow before the next one: call
    again with the rest. ``out_capacity`` is at least the order capacity plus OUTPUT_RESERVE, so
    that every call makes progress. The first command gets the sequence after the last applied.
    """
    work = words(context, 1)
    work[W_COMMANDS] = commands
    work[W_OUT] = out
    s = form_state(context)
    _begin(s, time_ns)
    first = s.scalars[SEQUENCE] + 1
    applied = count
    look_at_first(s, count)
    for i in range(count):
        look_ahead(s, i, count)
        if out_capacity - s.work[W_EMITTED] < s.scalars[RESTING_COUNT] + OUTPUT_RESERVE:
            applied = i
            break
        source = s.commands[i, C_SOURCE]
        s.work[W_SEQUENCE] = first + i
        s.work[W_SOURCE] = source
        s.work[W_TRADED] = 0
        s.sources[(source >> SOURCE_SHIFT) & (RING_CAPACITY - 1)] = (
            source & SOURCE_POSITION_MASK
        ) + 1
        _apply_one(s, i)
        mark_last(s)
        if s.work[W_TRADED] != 0 and s.scalars[BAND_PPM] > 0:
            follow_band(s)
    _end(s, applied, time_ns)
    return applied


@kernel
def publish_idle(context: int) -> None:
    """Bring the depth copies up to date when no command is waiting."""
    s = form_state(context)
    publish_depth(s)


@kernel
def publish_again(context: int) -> None:
    """Make all publications consistent after a take-over or a restored snapshot."""
    s = form_state(context)
    store_relaxed_at(address_of(s.book, BOOK_VERSION), s.book[BOOK_VERSION] | 1)
    fence_release()
    publish_touch(s)
    publish_depth(s)
    store_release_at(address_of(s.book, BOOK_VERSION), (s.book[BOOK_VERSION] | 1) + 1)
