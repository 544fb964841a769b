"""Which orders rest, and what became of the latest that ended, as told by the execution log.

Order entry cannot see the vault, so every entry process keeps this index for itself: one cache
line per order slot, found by the slot in the order id, updated by one compiled pass over the same
rows that answer callers. Its memory is bounded by the pair's order capacity (pages are used only
as far as slots are) and by a ring of `ENDED_CAPACITY` ended orders.

Invariants: the index reflects the log exactly up to `number`; a slot whose order id is zero is
free; updates are a function of the rows alone, so all entry processes of a pair agree.

A snapshot makes a start quick and lets the log be pruned: it is written whole beside its final
name and renamed, and one that contradicts the pair or the log is ignored. Any process of the pair
may start from any other's snapshot.
"""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from exchange.compiled import kernel
from exchange.enums import ExecutionKind, OrderType, Reason, TimeInForce
from exchange.records import (
    E_CLIENT_ORDER_ID,
    E_FILLED,
    E_LEAVES,
    E_MAKER_LEAVES,
    E_MAKER_ORDER_ID,
    E_ORDER_ID,
    E_PRICE,
    E_QUANTITY,
    E_TIME_NS,
    E_VERB,
    FLAG_LAST,
    ORDER_SLOT_BITS,
    Rows,
)

I_ORDER_ID: Final = 0
I_CLIENT_ORDER_ID: Final = 1
I_VERB: Final = 2
"""Kind of the ending execution u8 (0: rests) | reason u8 | side u8 | account << 32."""
I_PRICE: Final = 3
"""As in an execution: price, type, time in force, prevention, post-only."""
I_QUANTITY: Final = 4
I_LEAVES: Final = 5
I_FILLED: Final = 6
I_TIME_NS: Final = 7
INDEX_WORDS: Final = 8

ENDED_CAPACITY: Final = 1 << 16
"""Ended orders remembered: 4 MiB, some seconds of a busy pair."""

# Words of the state array.
_HIGH: Final = 0
_ENDED: Final = 1
_PASSING: Final = 2
_STATE_WORDS: Final = 8
_FORMAT: Final = 1

_SLOT_MASK: Final = (1 << ORDER_SLOT_BITS) - 1
_ACCEPTED: Final = int(ExecutionKind.ACCEPTED)
_TRADE: Final = int(ExecutionKind.TRADE)
_CANCELLED: Final = int(ExecutionKind.CANCELLED)
_EXPIRED: Final = int(ExecutionKind.EXPIRED)
_AMENDED: Final = int(ExecutionKind.AMENDED)
_PREVENTED: Final = int(ExecutionKind.PREVENTED)
_LIMIT: Final = int(OrderType.LIMIT)
_GTC: Final = int(TimeInForce.GOOD_TILL_CANCELLED)
_SELF_TRADE: Final = int(Reason.SELF_TRADE_PREVENTED)
_KIND_AND_REASON: Final = 0xFFFF


@kernel
def _slot_of(resting: Rows, order_id: int) -> int:
    """Return the row of a resting order, 0 if it does not rest."""
    slot: int = order_id & _SLOT_MASK
    if order_id != 0 and slot < resting.shape[0] and resting[slot, I_ORDER_ID] == order_id:
        return slot
    return 0


@kernel
def _end(order: Rows, kind: int, reason: int, ended: Rows, state: Rows) -> None:
    """Move an order to the ended ones and free its row."""
    order[I_VERB] = (order[I_VERB] & ~_KIND_AND_REASON) | kind | reason << 8
    target = ended[state[_ENDED] & (ended.shape[0] - 1)]
    for word in range(INDEX_WORDS):
        target[word] = order[word]
        order[word] = 0
    state[_ENDED] += 1


@kernel
def _shrink(
    order: Rows, leaves: int, filled: int, kind: int, reason: int, ended: Rows, state: Rows
) -> None:
    """Set what is left of a resting order and end it when that is nothing."""
    order[I_LEAVES] = leaves
    order[I_FILLED] = filled
    if leaves == 0:
        _end(order, kind, reason, ended, state)


@kernel
def _accept(row: Rows, resting: Rows, passing: Rows, state: Rows) -> None:
    """Enter a new order: into its slot if it may rest, else as the passing one."""
    shape = row[E_PRICE] >> 32
    slot = row[E_ORDER_ID] & _SLOT_MASK
    order = passing
    if shape & 0xFF == _LIMIT and (shape >> 8) & 0xFF == _GTC:
        if 0 < slot < resting.shape[0]:
            order = resting[slot]
            state[_HIGH] = max(state[_HIGH], slot + 1)
    else:
        state[_PASSING] = 1
    order[I_ORDER_ID] = row[E_ORDER_ID]
    order[I_CLIENT_ORDER_ID] = row[E_CLIENT_ORDER_ID]
    # Everything of the word but kind, reason and flags.
    order[I_VERB] = (row[E_VERB] >> 32) << 32 | ((row[E_VERB] >> 16) & 0xFF) << 16
    order[I_PRICE] = row[E_PRICE]
    order[I_QUANTITY] = row[E_QUANTITY]
    order[I_LEAVES] = row[E_LEAVES]
    order[I_FILLED] = 0
    order[I_TIME_NS] = row[E_TIME_NS]


@kernel
def _match(row: Rows, resting: Rows, ended: Rows, passing: Rows, state: Rows) -> None:
    """Shrink both orders of a TRADE or PREVENTED."""
    traded = row[E_VERB] & 0xFF == _TRADE
    kind = _TRADE if traded else _EXPIRED
    reason = 0 if traded else _SELF_TRADE
    maker = _slot_of(resting, row[E_MAKER_ORDER_ID])
    if maker:
        filled = resting[maker, I_FILLED] + (row[E_QUANTITY] if traded else 0)
        _shrink(resting[maker], row[E_MAKER_LEAVES], filled, kind, reason, ended, state)
    taker = _slot_of(resting, row[E_ORDER_ID])
    if taker:
        _shrink(resting[taker], row[E_LEAVES], row[E_FILLED], kind, reason, ended, state)
    elif state[_PASSING] and passing[I_ORDER_ID] == row[E_ORDER_ID]:
        passing[I_LEAVES] = row[E_LEAVES]
        passing[I_FILLED] = row[E_FILLED]
        passing[I_VERB] = (passing[I_VERB] & ~_KIND_AND_REASON) | kind | reason << 8


@kernel
def apply_rows(rows: Rows, resting: Rows, ended: Rows, passing: Rows, state: Rows) -> None:
    """Bring the index up to date with consecutive executions (n, 16).

    `passing` is the one order of the present command that cannot rest; it is ended with the
    command's last execution.
    """
    for i in range(rows.shape[0]):
        row = rows[i]
        kind = row[E_VERB] & 0xFF
        reason = (row[E_VERB] >> 8) & 0xFF
        order_id = row[E_ORDER_ID]
        if kind == _ACCEPTED:
            _accept(row, resting, passing, state)
        elif kind in (_TRADE, _PREVENTED):
            _match(row, resting, ended, passing, state)
        elif kind in (_CANCELLED, _EXPIRED):
            slot = _slot_of(resting, order_id)
            if slot:
                resting[slot, I_LEAVES] = 0
                _end(resting[slot], kind, reason, ended, state)
            elif state[_PASSING] and passing[I_ORDER_ID] == order_id:
                passing[I_LEAVES] = 0
                passing[I_VERB] = (passing[I_VERB] & ~_KIND_AND_REASON) | kind | reason << 8
        elif kind == _AMENDED:
            slot = _slot_of(resting, order_id)
            if slot:
                resting[slot, I_PRICE] = row[E_PRICE]
                resting[slot, I_QUANTITY] = row[E_QUANTITY]
                resting[slot, I_LEAVES] = row[E_LEAVES]
                resting[slot, I_FILLED] = row[E_FILLED]
        if (row[E_VERB] >> 24) & FLAG_LAST and state[_PASSING]:
            end = passing[I_VERB] & 0xFF
            _end(passing, end or _TRADE, (passing[I_VERB] >> 8) & 0xFF, ended, state)
            state[_PASSING] = 0


@kernel
def find_resting(resting: Rows, high: int, account: int, client_order_id: int) -> int:
    """Return the slot of an account's resting order by client order id, 0 if there is none."""
    for slot in range(1, high):
        if (
            resting[slot, I_CLIENT_ORDER_ID] == client_order_id
            and resting[slot, I_VERB] >> 32 == account
            and resting[slot, I_ORDER_ID] != 0
        ):
            return slot
    return 0


@kernel
def find_ended(ended: Rows, count: int, account: int, order_id: int, client_order_id: int) -> int:
    """Return the row of the newest matching ended order, -1 if there is none."""
    mask = ended.shape[0] - 1
    for back in range(min(count, ended.shape[0])):
        row: int = (count - 1 - back) & mask
        if ended[row, I_VERB] >> 32 != account:
            continue
        if order_id != 0 and ended[row, I_ORDER_ID] == order_id:
            return row
        if order_id == 0 and ended[row, I_CLIENT_ORDER_ID] == client_order_id:
            return row
    return -1


@kernel
def list_resting(resting: Rows, first: int, high: int, account: int, out: Rows) -> int:
    """Write the slots of an account's resting orders from slot `first` on; return how many."""
    count = 0
    for slot in range(max(first, 1), high):
        if resting[slot, I_ORDER_ID] != 0 and resting[slot, I_VERB] >> 32 == account:
            out[count] = slot
            count += 1
            if count == out.shape[0]:
                break
    return count


@dataclass(frozen=True, slots=True)
class IndexedOrder:
    """One order as the index knows it, in plain integers."""

    order_id: int
    client_order_id: int
    end_kind: int
    """ExecutionKind that ended it; 0: it rests."""
    reason: int
    side: int
    account: int
    price_word: int
    quantity: int
    leaves: int
    filled_lots: int
    accepted_time_ns: int


def _order(row: Any) -> IndexedOrder:
    words = row.tolist()
    verb = words[I_VERB]
    return IndexedOrder(
        order_id=words[I_ORDER_ID],
        client_order_id=words[I_CLIENT_ORDER_ID],
        end_kind=verb & 0xFF,
        reason=(verb >> 8) & 0xFF,
        side=(verb >> 16) & 0xFF,
        account=verb >> 32,
        price_word=words[I_PRICE],
        quantity=words[I_QUANTITY],
        leaves=words[I_LEAVES],
        filled_lots=words[I_FILLED],
        accepted_time_ns=words[I_TIME_NS],
    )


class OrderIndex:
    """The index of one pair; `number` is the first log number it does not reflect."""

    def __init__(self, pair: str, order_capacity: int) -> None:
        self.pair = pair
        self.number = 0
        self._resting = np.zeros((order_capacity + 1, INDEX_WORDS), np.int64)
        self._ended = np.zeros((ENDED_CAPACITY, INDEX_WORDS), np.int64)
        self._passing = np.zeros(INDEX_WORDS, np.int64)
        self._state = np.zeros(_STATE_WORDS, np.int64)

    def apply(self, rows: Rows) -> None:
        """Take in the executions from `number` on."""
        apply_rows(rows, self._resting, self._ended, self._passing, self._state)
        self.number += len(rows)

    def find(self, account: int, order_id: int, client_order_id: int) -> IndexedOrder | None:
        """Return an account's order by order id, or, when that is 0, by client order id."""
        if order_id:
            slot = int(_slot_of(self._resting, order_id))
            if slot and self._resting[slot, I_VERB] >> 32 != account:
                return None
        else:
            high = int(self._state[_HIGH])
            slot = int(find_resting(self._resting, high, account, client_order_id))
        if slot:
            return _order(self._resting[slot])
        count = int(self._state[_ENDED])
        row = int(find_ended(self._ended, count, account, order_id, client_order_id))
        return _order(self._ended[row]) if row >= 0 else None

    def page(self, account: int, first: int, limit: int) -> tuple[list[IndexedOrder], int]:
        """Return up to `limit` resting orders from slot `first` on, and where the next page starts.

        The second value is 0 at the end.
        """
        slots = np.empty(limit + 1, np.int64)
        high = int(self._state[_HIGH])
        count = int(list_resting(self._resting, first, high, account, slots))
        following = int(slots[limit]) if count > limit else 0
        return [_order(self._resting[slot]) for slot in slots[: min(count, limit)]], following

    def content(self) -> dict[str, Any]:
        """Return a copy of everything, for a snapshot that is written elsewhere."""
        high = int(self._state[_HIGH])
        occupied = self._resting[:high][self._resting[:high, I_ORDER_ID] != 0]
        ended_count = int(self._state[_ENDED])
        return {
            "header": np.array([_FORMAT, self.number, ended_count, len(self._resting)], np.int64),
            "pair": np.frombuffer(self.pair.encode(), np.uint8),
            "resting": occupied,
            "ended": self._ended[: min(ended_count, ENDED_CAPACITY)].copy(),
        }

    @classmethod
    def restore(cls, pair: str, order_capacity: int, path: Path) -> Self | None:
        """Return the index that a snapshot holds; None if it is damaged or of something else."""
        index = cls(pair, order_capacity)
        try:
            with path.open("rb") as opened, np.load(opened) as file:
                form, number, ended_count, rows = file["header"].tolist()
                told, resting, ended = bytes(file["pair"]).decode(), file["resting"], file["ended"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        slots = resting[:, I_ORDER_ID] & _SLOT_MASK
        if (form, told, rows) != (_FORMAT, pair, len(index._resting)) or (slots >= rows).any():
            return None
        index.number = number
        index._resting[slots] = resting
        index._ended[: len(ended)] = ended
        index._state[_HIGH] = int(slots.max()) + 1 if len(slots) else 0
        index._state[_ENDED] = ended_count
        return index


def write_snapshot(content: dict[str, Any], path: Path) -> None:
    """Write a snapshot so that its name never leads to half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        np.savez(file, **content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def newest_index(
    pair: str, order_capacity: int, folder: Path, first_number: int, committed: int
) -> OrderIndex | None:
    """Return the best index to start from: the newest snapshot that the log still continues.

    Without a usable snapshot an empty index, if the log reaches back to its beginning; else None,
    because orders that were accepted before the log's first record would be missing.
    """
    best: OrderIndex | None = OrderIndex(pair, order_capacity) if first_number == 0 else None
    for path in sorted(folder.glob("orders-*.npz")):
        index = OrderIndex.restore(pair, order_capacity, path)
        if index is None or not first_number <= index.number <= committed:
            continue
        if best is None or index.number > best.number:
            best = index
    return best
