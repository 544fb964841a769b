"""Which prices hold orders: a bitmap of four levels a side, 64 prices a word.

Finding the next occupied price reads at most seven words however far away it is, up to 2**24
ticks; beyond, the topmost level is scanned word by word (64 words at 2**30 ticks). Tick zero is
never occupied and means "none".
"""

from typing import Any

from numba.cpython.unsafe import numbers

from engine.kernel.state import W_BITS, State
from exchange.compiled import inlined
from exchange.tables import int64, uint64

_leading_zeros: Any = numbers.leading_zeros
_trailing_zeros: Any = numbers.trailing_zeros


@inlined
def _bit(index: int) -> Any:
    return uint64(1) << uint64(index & 63)


@inlined
def _lowest(word: Any) -> int:
    return int64(_trailing_zeros(word))


@inlined
def _highest(word: Any) -> int:
    return 63 - int64(_leading_zeros(word))


@inlined
def _from(index: int) -> Any:
    """Return a mask of the bits at and above index."""
    return uint64(0xFFFFFFFFFFFFFFFF) << uint64(index & 63)


@inlined
def _up_to(index: int) -> Any:
    """Return a mask of the bits at and below index."""
    return uint64(0xFFFFFFFFFFFFFFFF) >> uint64(63 - (index & 63))


@inlined
def occupy(s: State, side: int, tick: int) -> None:
    """Mark a price as holding orders."""
    a = tick >> 6
    b = a >> 6
    c = b >> 6
    s.bits0[side * s.work[W_BITS] + a] |= _bit(tick)
    s.bits1[side * s.work[W_BITS + 1] + b] |= _bit(a)
    s.bits2[side * s.work[W_BITS + 2] + c] |= _bit(b)
    s.bits3[side * s.work[W_BITS + 3] + (c >> 6)] |= _bit(c)


@inlined
def vacate(s: State, side: int, tick: int) -> None:
    """Mark a price as empty."""
    a = tick >> 6
    s.bits0[side * s.work[W_BITS] + a] &= ~_bit(tick)
    if s.bits0[side * s.work[W_BITS] + a] == uint64(0):
        b = a >> 6
        s.bits1[side * s.work[W_BITS + 1] + b] &= ~_bit(a)
        if s.bits1[side * s.work[W_BITS + 1] + b] == uint64(0):
            c = b >> 6
            s.bits2[side * s.work[W_BITS + 2] + c] &= ~_bit(b)
            if s.bits2[side * s.work[W_BITS + 2] + c] == uint64(0):
                s.bits3[side * s.work[W_BITS + 3] + (c >> 6)] &= ~_bit(c)


@inlined
def _descend_lowest(s: State, side: int, c: int) -> int:
    b = (c << 6) + _lowest(s.bits2[side * s.work[W_BITS + 2] + c])
    a = (b << 6) + _lowest(s.bits1[side * s.work[W_BITS + 1] + b])
    return (a << 6) + _lowest(s.bits0[side * s.work[W_BITS] + a])


@inlined
def _descend_highest(s: State, side: int, c: int) -> int:
    b = (c << 6) + _highest(s.bits2[side * s.work[W_BITS + 2] + c])
    a = (b << 6) + _highest(s.bits1[side * s.work[W_BITS + 1] + b])
    return (a << 6) + _highest(s.bits0[side * s.work[W_BITS] + a])


@inlined
def lowest_from(s: State, side: int, tick: int) -> int:
    """Return the lowest occupied price at or above tick, or 0."""
    none = 0
    a = tick >> 6
    if a >= s.work[W_BITS]:
        return none
    word = s.bits0[side * s.work[W_BITS] + a] & _from(tick)
    if word != uint64(0):
        return (a << 6) + _lowest(word)
    b = (a + 1) >> 6
    if b >= s.work[W_BITS + 1]:
        return none
    word = s.bits1[side * s.work[W_BITS + 1] + b] & _from(a + 1)
    if word != uint64(0):
        a = (b << 6) + _lowest(word)
        return (a << 6) + _lowest(s.bits0[side * s.work[W_BITS] + a])
    c = (b + 1) >> 6
    if c >= s.work[W_BITS + 2]:
        return none
    word = s.bits2[side * s.work[W_BITS + 2] + c] & _from(b + 1)
    if word != uint64(0):
        b = (c << 6) + _lowest(word)
        a = (b << 6) + _lowest(s.bits1[side * s.work[W_BITS + 1] + b])
        return (a << 6) + _lowest(s.bits0[side * s.work[W_BITS] + a])
    d = (c + 1) >> 6
    if d >= s.work[W_BITS + 3]:
        return none
    word = s.bits3[side * s.work[W_BITS + 3] + d] & _from(c + 1)
    while word == uint64(0):
        d += 1
        if d >= s.work[W_BITS + 3]:
            return none
        word = s.bits3[side * s.work[W_BITS + 3] + d]
    return _descend_lowest(s, side, (d << 6) + _lowest(word))


@inlined
def highest_to(s: State, side: int, tick: int) -> int:
    """Return the highest occupied price at or below tick, or 0."""
    none = 0
    if tick <= 0:
        return none
    a = tick >> 6
    word = s.bits0[side * s.work[W_BITS] + a] & _up_to(tick)
    if word != uint64(0):
        return (a << 6) + _highest(word)
    if a == 0:
        return none
    b = (a - 1) >> 6
    word = s.bits1[side * s.work[W_BITS + 1] + b] & _up_to(a - 1)
    if word != uint64(0):
        a = (b << 6) + _highest(word)
        return (a << 6) + _highest(s.bits0[side * s.work[W_BITS] + a])
    if b == 0:
        return none
    c = (b - 1) >> 6
    word = s.bits2[side * s.work[W_BITS + 2] + c] & _up_to(b - 1)
    if word != uint64(0):
        b = (c << 6) + _highest(word)
        a = (b << 6) + _highest(s.bits1[side * s.work[W_BITS + 1] + b])
        return (a << 6) + _highest(s.bits0[side * s.work[W_BITS] + a])
    if c == 0:
        return none
    d = (c - 1) >> 6
    word = s.bits3[side * s.work[W_BITS + 3] + d] & _up_to(c - 1)
    while word == uint64(0):
        d -= 1
        if d < 0:
            return none
        word = s.bits3[side * s.work[W_BITS + 3] + d]
    return _descend_highest(s, side, (d << 6) + _highest(word))
