"""Compiled stable copies out of a book segment: depth copies, the whole book, the event ring.

Everything takes read-only arrays of the segment (``exchange.book_layout``) and caller-owned arrays
for the result, tries a bounded number of times and says whether it succeeded; on failure the
content of the result arrays means nothing. Nothing is written to the segment, and no number read
from it is used as an index before it was checked against the shapes.
"""

from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from numba.cpython.unsafe.numbers import leading_zeros, trailing_zeros

from exchange.atomics import fence_acquire, load_acquire, load_relaxed, pause
from exchange.book_layout import (
    BOOK_SEQUENCE,
    BOOK_VERSION,
    DEPTH_ASK_COUNT,
    DEPTH_BID_COUNT,
    DEPTH_COMMIT,
    DEPTH_HEAD,
    DEPTH_HEADER_WORDS,
    DEPTH_LEVEL_WORDS,
    EVENT_COMMIT,
    EVENT_HEAD,
    EVENT_SEQUENCE,
    EVENT_WORDS,
)
from exchange.compiled import inlined, kernel

Rows = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

# Results of `drain_events` and `copy_book`, by index.
DRAINED: Final = 0
NEXT_POSITION: Final = 1
LOST: Final = 2
CAUGHT_UP: Final = 3
COPIED_SEQUENCE: Final = 0
COPIED_POSITION: Final = 1
COPIED_BIDS: Final = 2
COPIED_ASKS: Final = 3
BIDS_COMPLETE: Final = 4
ASKS_COMPLETE: Final = 5
RESULT_WORDS: Final = 8

_CountZeros = Callable[[Any], int]
_leading_zeros = cast(_CountZeros, leading_zeros)
_trailing_zeros = cast(_CountZeros, trailing_zeros)

_VERSION_EVERY: Final = 256
"""Levels copied between two looks at the version: a copy already spoilt is not finished."""


@kernel
def copy_depth(scalars: Rows, depth: Rows, out: Rows, tries: int) -> int:
    """Copy the newest complete depth copy (head and used levels); return its number, or 0."""
    copies = depth.shape[0]
    side_words = (depth.shape[1] - DEPTH_HEADER_WORDS) // 2
    for _ in range(tries):
        number = load_acquire(scalars, DEPTH_HEAD)
        if number <= 0:
            return 0
        row = depth[number % copies]
        if load_acquire(row, DEPTH_COMMIT) == number:
            for index in range(DEPTH_HEADER_WORDS):
                out[index] = row[index]
            # The counts are not validated yet, so they may say anything.
            bid_words = min(max(out[DEPTH_BID_COUNT], 0) * DEPTH_LEVEL_WORDS, side_words)
            ask_words = min(max(out[DEPTH_ASK_COUNT], 0) * DEPTH_LEVEL_WORDS, side_words)
            bids = row[DEPTH_HEADER_WORDS : DEPTH_HEADER_WORDS + bid_words]
            for index in range(bid_words):
                out[DEPTH_HEADER_WORDS + index] = bids[index]
            asks_at = DEPTH_HEADER_WORDS + side_words
            asks = row[asks_at : asks_at + ask_words]
            for index in range(ask_words):
                out[asks_at + index] = asks[index]
            fence_acquire()
            if load_relaxed(row, DEPTH_COMMIT) == number:
                return number
        pause()
    return 0


@kernel
def drain_events(
    scalars: Rows, events: Rows, cursor: int, through_sequence: int, out: Rows, result: Rows
) -> None:
    """Copy complete events from position `cursor` on into `out`, in one unbroken run.

    Stops at the ring's head, at an event of a command after `through_sequence`, when `out` is
    full, or when the writer lapped the reader. Sets in `result`: DRAINED rows, NEXT_POSITION to
    ask for, LOST events that were overwritten before the run began, and CAUGHT_UP (1: nothing
    more up to `through_sequence` was there). After a loss the run starts behind the hole.
    """
    capacity = events.shape[0]
    head = load_acquire(scalars, EVENT_HEAD)
    position = cursor
    drained = 0
    lost = 0
    caught_up = 1
    while position < head:
        if drained == out.shape[0]:
            caught_up = 0
            break
        row = events[position & (capacity - 1)]
        commit = load_acquire(row, EVENT_COMMIT)
        whole = False
        if commit == position + 1:
            target = out[drained]
            for index in range(EVENT_WORDS):
                target[index] = row[index]
            fence_acquire()
            commit = load_relaxed(row, EVENT_COMMIT)
            whole = commit == position + 1
        if whole:
            if out[drained, EVENT_SEQUENCE] > through_sequence:
                break
            drained += 1
            position += 1
            continue
        lapped = commit > position + 1 or head - position >= capacity
        if not lapped or drained > 0:
            # Being written, or overwritten since: the next call sees which.
            caught_up = 0 if lapped else 1
            break
        head = load_acquire(scalars, EVENT_HEAD)
        # An eighth of the ring is left to the writer, so that the run is not lapped at once.
        oldest = max(position + 1, head - capacity + (capacity >> 3))
        lost += oldest - position
        position = oldest
    result[DRAINED] = drained
    result[NEXT_POSITION] = position
    result[LOST] = lost
    result[CAUGHT_UP] = caught_up


@inlined
def _signed(number: int) -> int:
    """Keep index arithmetic out of the unsigned types, which mix with int64 to floats."""
    return np.int64(number)  # type: ignore[return-value]


@inlined
def _first_bit(word: np.uint64, downwards: bool) -> int:
    if downwards:
        return 63 - _signed(_leading_zeros(word))
    return _signed(_trailing_zeros(word))


@inlined
def _cleared(word: np.uint64, bit: int) -> np.uint64:
    return word & ~(np.uint64(1) << np.uint64(bit))


@inlined
def _copy_words(
    scalars: Rows,
    levels: Rows,
    first_row: int,
    bits0: Bits,
    word_index: int,
    downwards: bool,
    version: int,
    out: Rows,
    count: int,
) -> int:
    """Copy the occupied levels of one word of the lowest bitmap; return the new count, or -1.

    One more than there is room for means that a level was left out.
    """
    word = bits0[word_index]
    while word != np.uint64(0):
        bit = _first_bit(word, downwards)
        word = _cleared(word, bit)
        if count == out.shape[0]:
            return count + 1
        tick = word_index * 64 + bit
        level = levels[first_row + tick]
        out[count, 0] = tick
        out[count, 1] = level[0]
        out[count, 2] = level[1]
        count += 1
        if count % _VERSION_EVERY == 0 and load_relaxed(scalars, BOOK_VERSION) != version:
            return -1
    return count


@inlined
def _copy_side(
    scalars: Rows,
    levels: Rows,
    first_row: int,
    bits3: Bits,
    bits2: Bits,
    bits1: Bits,
    bits0: Bits,
    downwards: bool,
    version: int,
    out: Rows,
) -> int:
    """Copy one side best first; return the count, room + 1 when there was more, or -1."""
    count = 0
    for step in range(bits3.shape[0]):
        d = bits3.shape[0] - 1 - step if downwards else step
        word3 = bits3[d]
        while word3 != np.uint64(0):
            bit = _first_bit(word3, downwards)
            word3 = _cleared(word3, bit)
            c = d * 64 + bit
            if c >= bits2.shape[0]:
                return -1
            word2 = bits2[c]
            while word2 != np.uint64(0):
                bit = _first_bit(word2, downwards)
                word2 = _cleared(word2, bit)
                b = c * 64 + bit
                if b >= bits1.shape[0]:
                    return -1
                word1 = bits1[b]
                while word1 != np.uint64(0):
                    bit = _first_bit(word1, downwards)
                    word1 = _cleared(word1, bit)
                    a = b * 64 + bit
                    if a >= bits0.shape[0]:
                        return -1
                    count = _copy_words(
                        scalars, levels, first_row, bits0, a, downwards, version, out, count
                    )
                    if count < 0 or count > out.shape[0]:
                        return count
    return count


@kernel
def copy_book(
    scalars: Rows,
    levels: Rows,
    bits3: Bits,
    bits2: Bits,
    bits1: Bits,
    bits0: Bits,
    bids: Rows,
    asks: Rows,
    result: Rows,
    tries: int,
) -> bool:
    """Copy the best levels of both sides, as many as there is room for, as of one batch's end.

    Walks the occupancy bitmaps between two equal even values of the book version. Sets in `result`
    COPIED_SEQUENCE, COPIED_POSITION (events below it are included), COPIED_BIDS and COPIED_ASKS,
    and whether those were all levels of their side (BIDS_COMPLETE, ASKS_COMPLETE).
    """
    capacity = levels.shape[0] // 2
    for _ in range(tries):
        version = load_acquire(scalars, BOOK_VERSION)
        if version & 1 == 0:
            result[COPIED_SEQUENCE] = scalars[BOOK_SEQUENCE]
            result[COPIED_POSITION] = scalars[EVENT_HEAD]
            bid_count = _copy_side(
                scalars, levels, 0, bits3[0], bits2[0], bits1[0], bits0[0], True, version, bids
            )
            ask_count = -1
            if bid_count >= 0:
                ask_count = _copy_side(
                    scalars,
                    levels,
                    capacity,
                    bits3[1],
                    bits2[1],
                    bits1[1],
                    bits0[1],
                    False,
                    version,
                    asks,
                )
            fence_acquire()
            if ask_count >= 0 and load_relaxed(scalars, BOOK_VERSION) == version:
                result[BIDS_COMPLETE] = bid_count <= bids.shape[0]
                result[ASKS_COMPLETE] = ask_count <= asks.shape[0]
                result[COPIED_BIDS] = min(bid_count, bids.shape[0])
                result[COPIED_ASKS] = min(ask_count, asks.shape[0])
                return True
        pause()
    return False
