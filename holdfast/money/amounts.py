"""Amounts of an asset as a caller gives them, and as the services count them. Pure.

A caller gives decimal text or `decimal.Decimal`, never a float: 0.1 as a float is another number,
and an int would leave open whether coins or smallest units are meant. The services' answers carry
decimal text beside the units; its decimals are the asset's.
"""

from decimal import Decimal
from typing import Final

from exchange.units import InvalidDecimal, format_decimal, parse_decimal
from holdfast.errors import InvalidRequest

Amount = Decimal | str

_INVALID_ARGUMENT: Final = 3
_UNITS_LIMIT: Final = 1 << 63


def invalid(reason: str, field: str, value: object, limit: str) -> InvalidRequest:
    """Return the refusal of a value that is wrong in itself, in the words a service would use."""
    message = f"{field} is {str(value)!r}; it must be {limit}"
    return InvalidRequest(
        _INVALID_ARGUMENT, message, reason, field=field, value=str(value), limit=limit
    )


def amount_text(amount: Amount, field: str = "amount") -> str:
    """Return an amount as plain decimal text.

    Raises TypeError if it is neither text nor Decimal, InvalidRequest if it is no number.
    """
    given: object = amount
    if isinstance(given, str):
        return given
    if not isinstance(given, Decimal):
        kind = type(given).__name__
        raise TypeError(
            f"{field} is {given!r} of type {kind}; it must be decimal text or decimal.Decimal,"
            " because a float is not the number that was meant"
        )
    if not given.is_finite():
        raise invalid("AMOUNT_INVALID", field, given, "a finite number")
    return format(given, "f")


def units_of(amount: Amount, decimals: int, field: str = "amount", least_units: int = 1) -> int:
    """Return an amount in smallest units. Raises InvalidRequest, TypeError."""
    text = amount_text(amount, field)
    try:
        units = parse_decimal(text, decimals)
    except InvalidDecimal as error:
        raise invalid("AMOUNT_INVALID", field, text, error.limit) from error
    if not least_units <= units < _UNITS_LIMIT:
        low, high = (plain(decimal_of(n, decimals)) for n in (least_units, _UNITS_LIMIT - 1))
        raise invalid("AMOUNT_OUT_OF_RANGE", field, text, f"from {low} to {high}")
    return units


def decimal_of(units: int, decimals: int) -> Decimal:
    """Return smallest units as an exact decimal."""
    return Decimal(format_decimal(units, decimals, decimals))


def decimals_in(text: str) -> int:
    """Return how many decimals a service writes an asset's amounts with."""
    return len(text.partition(".")[2])


def plain(amount: Decimal) -> str:
    """Return a decimal as text without an exponent, all its decimals kept."""
    return format(amount, "f")


def shortest(amount: Decimal) -> str:
    """Return a decimal as text without an exponent and without zeros at its end."""
    text = plain(amount)
    return text.rstrip("0").rstrip(".") if "." in text else text
