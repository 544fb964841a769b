"""Money inside the kernel: fees, holds and who pays whom.

Every function moves units between free, held and the fees taken; none makes or loses one. A buy
holds per lot what one lot can cost at most, each part rounded up, so the sum over any partial
fills never exceeds the hold: ceil(q * x) <= q * ceil(x).
"""

from engine.kernel.state import State
from engine.vault_layout import (
    A_FREE_BASE,
    A_FREE_QUOTE,
    A_HELD_BASE,
    A_HELD_QUOTE,
    A_MAKER_PPM,
    A_TAKER_PPM,
    FEES_TAKEN,
    H_ACCOUNT,
    H_PRICE,
    O_TERMS,
    UNITS_PER_LOT,
    UNITS_PER_TICK_LOT,
)
from exchange.compiled import inlined
from exchange.tables import int64, uint64

MILLION = 1_000_000


@inlined
def fee_units(notional: int, rate_ppm: int) -> int:
    """Return ceil(notional * rate / 10**6) without leaving int64; notional >= 0."""
    if rate_ppm == 0:
        return 0
    millions = int64(uint64(notional) // uint64(MILLION))
    rest = (notional - millions * MILLION) * rate_ppm
    if rest >= 0:
        part = int64((uint64(rest) + uint64(MILLION - 1)) // uint64(MILLION))
    else:
        part = -int64(uint64(-rest) // uint64(MILLION))
    return millions * rate_ppm + part


@inlined
def payable_notional(units: int, rate_ppm: int) -> int:
    """Return the largest notional that costs no more than so many units, its fee included.

    n + ceil(n * r / m) <= u, with m = 10**6, means n <= u * m / (m + r); u is divided first, so
    that nothing leaves int64.
    """
    whole = uint64(MILLION + rate_ppm)
    times = uint64(units) // whole
    rest = uint64(units) - times * whole
    return int64(times * uint64(MILLION) + rest * uint64(MILLION) // whole)


@inlined
def hold_rate_ppm(s: State, account: int) -> int:
    """Return the highest rate the account can be charged."""
    return max(max(s.accounts[account, A_TAKER_PPM], s.accounts[account, A_MAKER_PPM]), 0)


@inlined
def make_terms(s: State, account: int, side: int, prevention: int, post_only: int) -> int:
    """Return what a resting order remembers; side is the enum's number."""
    rates = s.accounts[account, A_MAKER_PPM] & 0xFFFFFF
    shape = side | prevention << 8 | post_only << 12
    return shape | rates << 16 | hold_rate_ppm(s, account) << 40


@inlined
def terms_side(terms: int) -> int:
    """Return the side index, 0 buy, 1 sell."""
    return (terms & 0xFF) - 1


@inlined
def terms_maker_ppm(terms: int) -> int:
    """Return the remembered maker rate, sign and all."""
    return (terms << 24) >> 40


@inlined
def terms_hold_ppm(terms: int) -> int:
    """Return the remembered hold rate."""
    return terms >> 40


@inlined
def buy_hold_per_lot(s: State, price: int, rate_ppm: int) -> int:
    """Return the quote units a buy of one lot holds."""
    worth = price * s.scalars[UNITS_PER_TICK_LOT]
    return worth + fee_units(worth, rate_ppm)


@inlined
def hold_per_lot(s: State, side: int, price: int, rate_ppm: int) -> int:
    """Return what one lot of an order holds, in the asset it pays with."""
    # Both, and then one of them: the side of an order cannot be predicted.
    buy = buy_hold_per_lot(s, price, rate_ppm)
    sell = s.scalars[UNITS_PER_LOT]
    return buy if side == 0 else sell


@inlined
def free_column(side: int) -> int:
    """Return the account column an order of this side pays from; held is the next one."""
    return A_FREE_QUOTE if side == 0 else A_FREE_BASE


@inlined
def hold(s: State, account: int, side: int, units: int) -> None:
    """Move units from free to held; negative units move back."""
    column = free_column(side)
    s.accounts[account, column] -= units
    s.accounts[account, column + 1] += units


@inlined
def slot_hold_per_lot(s: State, slot: int) -> int:
    """Return what one lot of a resting order holds."""
    terms = s.orders[slot, O_TERMS]
    price = s.halves[slot, H_PRICE]
    return hold_per_lot(s, terms_side(terms), price, terms_hold_ppm(terms))


@inlined
def release_hold(s: State, slot: int, lots: int) -> None:
    """Return the hold of so many lots of a resting order to its account's free funds."""
    side = terms_side(s.orders[slot, O_TERMS])
    hold(s, s.halves[slot, H_ACCOUNT], side, -lots * slot_hold_per_lot(s, slot))


@inlined
def settle(
    s: State, slot: int, taker: int, side: int, lots: int, notional: int, taker_fee: int
) -> int:
    """Pay a trade between an incoming order and a resting one; return the maker's fee.

    ``side`` is the incoming order's index. The incoming account pays from free, the resting one
    from its hold, of which the same number of lots is used up or returned.
    """
    terms = s.orders[slot, O_TERMS]
    maker = s.halves[slot, H_ACCOUNT]
    base = lots * s.scalars[UNITS_PER_LOT]
    maker_fee = fee_units(notional, terms_maker_ppm(terms))
    if side == 0:
        s.accounts[taker, A_FREE_QUOTE] -= notional + taker_fee
        s.accounts[taker, A_FREE_BASE] += base
        s.accounts[maker, A_HELD_BASE] -= base
        s.accounts[maker, A_FREE_QUOTE] += notional - maker_fee
    else:
        held = lots * slot_hold_per_lot(s, slot)
        s.accounts[taker, A_FREE_BASE] -= base
        s.accounts[taker, A_FREE_QUOTE] += notional - taker_fee
        s.accounts[maker, A_HELD_QUOTE] -= held
        s.accounts[maker, A_FREE_QUOTE] += held - notional - maker_fee
        s.accounts[maker, A_FREE_BASE] += base
    s.scalars[FEES_TAKEN] += taker_fee + maker_fee
    return maker_fee
