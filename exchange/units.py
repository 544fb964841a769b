"""Decimal text at the edge, integers everywhere else.

Prices are ticks, quantities lots, amounts smallest units of an asset. Text is plain decimal
("64000.10"): no sign but a leading minus on output, no exponent, no separators, no NaN. A text
that does not fall on the grid is refused, never rounded. No floating point is involved.
"""

import re
from typing import Final

from exchange.instrument import Instrument

TEXT_LIMIT: Final = 40
"""Characters: more than any int64 needs at eighteen decimals."""

_PLAIN = re.compile(r"([0-9]+)(?:\.([0-9]+))?", re.ASCII)


class InvalidDecimal(ValueError):
    """A text that is no number on the grid; the message names the value and the limit."""

    def __init__(self, problem: str, limit: str) -> None:
        """Say what is wrong; ``limit`` completes "it must be"."""
        super().__init__(problem)
        self.limit = limit


def parse_decimal(text: str, decimals: int) -> int:
    """Return a plain decimal in steps of ``10**-decimals``; raises InvalidDecimal."""
    if len(text) > TEXT_LIMIT:
        raise InvalidDecimal(
            f"a text of {len(text)} characters; at most {TEXT_LIMIT}",
            f"at most {TEXT_LIMIT} characters",
        )
    match = _PLAIN.fullmatch(text)
    if match is None:
        limit = "plain decimal text such as 64000.10"
        raise InvalidDecimal(f"{text!r} is not {limit}", limit)
    whole, fraction = match[1], (match[2] or "").rstrip("0")
    if len(fraction) > decimals:
        limit = f"a number with at most {decimals} decimals"
        raise InvalidDecimal(f"{text!r} has more than {decimals} decimals", limit)
    return int(whole + fraction.ljust(decimals, "0"))


def format_decimal(steps: int, decimals: int, shown: int) -> str:
    """Return ``steps * 10**-decimals`` as text with ``shown`` decimals, which must suffice."""
    sign = "-" if steps < 0 else ""
    whole, fraction = divmod(abs(steps), 10**decimals)
    digits = str(fraction).rjust(decimals, "0")[:shown] if shown else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def _on_grid(text: str, decimals: int, step: int) -> int:
    units = parse_decimal(text, decimals)
    count, rest = divmod(units, step)
    if rest:
        grid = format_decimal(step, decimals, _shown(decimals, step))
        raise InvalidDecimal(f"{text!r} is not a multiple of {grid}", f"a multiple of {grid}")
    return count


def _shown(decimals: int, step: int) -> int:
    """Return the decimals that every multiple of a step can be written with."""
    while decimals and step % 10 == 0:
        decimals -= 1
        step //= 10
    return decimals


def price_to_ticks(instrument: Instrument, text: str) -> int:
    """Return a price, in quote asset per whole base coin, in ticks; raises InvalidDecimal."""
    return _on_grid(text, instrument.quote_decimals, instrument.tick_quote_units)


def ticks_to_price(instrument: Instrument, price_ticks: int) -> str:
    """Return a price in ticks as decimal text."""
    step, decimals = instrument.tick_quote_units, instrument.quote_decimals
    return format_decimal(price_ticks * step, decimals, _shown(decimals, step))


def quantity_to_lots(instrument: Instrument, text: str) -> int:
    """Return a quantity of the base asset in lots; raises InvalidDecimal."""
    return _on_grid(text, instrument.base_decimals, instrument.base_units_per_lot)


def lots_to_quantity(instrument: Instrument, quantity_lots: int) -> str:
    """Return a quantity in lots as decimal text."""
    step, decimals = instrument.base_units_per_lot, instrument.base_decimals
    return format_decimal(quantity_lots * step, decimals, _shown(decimals, step))


def amount_to_units(decimals: int, text: str) -> int:
    """Return an amount of an asset in its smallest units; raises InvalidDecimal."""
    return parse_decimal(text, decimals)


def units_to_amount(decimals: int, amount_units: int) -> str:
    """Return an amount in smallest units as decimal text."""
    return format_decimal(amount_units, decimals, decimals)
