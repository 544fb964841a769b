"""Decimal text to integers and back: exact on the grid, refused beside it, never rounded."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.instrument import Instrument
from exchange.units import (
    TEXT_LIMIT,
    InvalidDecimal,
    amount_to_units,
    format_decimal,
    lots_to_quantity,
    parse_decimal,
    price_to_ticks,
    quantity_to_lots,
    ticks_to_price,
    units_to_amount,
)

# Ticks of 0.01 quote, lots of 0.00001 base, both assets with eight decimals.
PAIR = Instrument().validate()
# Grids that are no powers of ten: ticks of 0.25 quote, lots of 5 base.
ODD = Instrument(
    base_decimals=0,
    quote_decimals=2,
    tick_quote_units=25,
    base_units_per_lot=5,
    price_capacity_ticks=1 << 12,
    quantity_limit_lots=1_000,
).validate()


@pytest.mark.parametrize(
    ("text", "decimals", "steps"),
    [
        ("0", 0, 0),
        ("0", 8, 0),
        ("1", 8, 100_000_000),
        ("64000.10", 2, 6_400_010),
        ("64000.1", 2, 6_400_010),
        ("64000.1000000", 2, 6_400_010),
        ("007", 0, 7),
        ("0.00000001", 8, 1),
        ("0.000000000000000001", 18, 1),
        # Above 2**53, where a floating number would be one off.
        ("90071992.54740993", 8, 9_007_199_254_740_993),
        ("9223372036854775807", 0, 9_223_372_036_854_775_807),
    ],
)
def test_plain_text_is_read_exactly(text: str, decimals: int, steps: int) -> None:
    assert parse_decimal(text, decimals) == steps


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "1.", ".5", "-", "-1", "+1", "--1", "1-1"),
        *("nan", "NaN", "inf", "Infinity", "-inf", "1e5", "1E5", "1e-5", "0x10", "0b1"),
        *("1_000", "1,000", "1,5", "1 000", " 1", "1 ", "1\n", "\t1", "1.2.3", "1/2", "ten"),
        # Digits of other scripts are digits to Python, but not to us.
        *("١٢٣", "１２", "1٫5", "²", "½"),
    ],
)
def test_anything_else_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidDecimal) as refusal:
        parse_decimal(text, 8)
    assert repr(text) in str(refusal.value)


def test_too_many_decimals_are_refused_not_rounded() -> None:
    with pytest.raises(InvalidDecimal, match=r"'0\.001' has more than 2 decimals"):
        parse_decimal("0.001", 2)
    with pytest.raises(InvalidDecimal, match="more than 0 decimals"):
        parse_decimal("1.5", 0)


def test_an_endless_text_is_refused_before_it_is_read() -> None:
    assert parse_decimal("0" * TEXT_LIMIT, 0) == 0
    with pytest.raises(InvalidDecimal, match=f"1000000 characters; at most {TEXT_LIMIT}"):
        parse_decimal("9" * 1_000_000, 0)


@pytest.mark.parametrize(
    ("text", "ticks", "shown"),
    [("0.01", 1, "0.01"), ("64000.1", 6_400_010, "64000.10"), ("5", 500, "5.00")],
)
def test_prices_are_ticks(text: str, ticks: int, shown: str) -> None:
    assert price_to_ticks(PAIR, text) == ticks
    assert ticks_to_price(PAIR, ticks) == shown


@pytest.mark.parametrize(
    ("text", "lots", "shown"),
    [("0.00001", 1, "0.00001"), ("1", 100_000, "1.00000"), ("12.5", 1_250_000, "12.50000")],
)
def test_quantities_are_lots(text: str, lots: int, shown: str) -> None:
    assert quantity_to_lots(PAIR, text) == lots
    assert lots_to_quantity(PAIR, lots) == shown


def test_amounts_are_smallest_units() -> None:
    assert amount_to_units(8, "1.5") == 150_000_000
    assert units_to_amount(8, 150_000_000) == "1.50000000"
    assert units_to_amount(0, 7) == "7"


@pytest.mark.parametrize(
    ("read", "text", "grid"),
    [
        (price_to_ticks, "64000.105", "0.01"),
        (price_to_ticks, "0.00000001", "0.01"),
        (quantity_to_lots, "0.000015", "0.00001"),
        (quantity_to_lots, "0.00000001", "0.00001"),
    ],
)
def test_what_stands_beside_the_grid_is_refused(
    read: Callable[[Instrument, str], int], text: str, grid: str
) -> None:
    with pytest.raises(InvalidDecimal) as refusal:
        read(PAIR, text)
    assert str(refusal.value) == f"{text!r} is not a multiple of {grid}"


def test_grids_need_not_be_powers_of_ten() -> None:
    assert price_to_ticks(ODD, "1.75") == 7
    assert ticks_to_price(ODD, 7) == "1.75"
    assert quantity_to_lots(ODD, "15") == 3
    assert lots_to_quantity(ODD, 3) == "15"
    with pytest.raises(InvalidDecimal, match=r"'1\.80' is not a multiple of 0\.25"):
        price_to_ticks(ODD, "1.80")
    with pytest.raises(InvalidDecimal, match="'16' is not a multiple of 5"):
        quantity_to_lots(ODD, "16")


def test_zero_is_on_every_grid_and_left_for_the_engine_to_refuse() -> None:
    assert price_to_ticks(PAIR, "0") == quantity_to_lots(PAIR, "0.0") == 0


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 18))
def test_what_is_written_is_read_back(units: int, decimals: int) -> None:
    text = units_to_amount(decimals, units)
    assert text.startswith("-") == (units < 0)
    assert parse_decimal(text.lstrip("-"), decimals) == abs(units)


@given(st.sampled_from([PAIR, ODD]), st.integers(0, 1 << 40))
def test_every_tick_and_every_lot_survives_the_way_through_text(pair: Instrument, n: int) -> None:
    assert price_to_ticks(pair, ticks_to_price(pair, n)) == n
    assert quantity_to_lots(pair, lots_to_quantity(pair, n)) == n


@given(st.text(max_size=60))
def test_any_text_is_a_number_or_refused(text: str) -> None:
    try:
        steps = parse_decimal(text, 8)
    except InvalidDecimal:
        return
    assert text.isascii()
    assert steps >= 0
    assert parse_decimal(format_decimal(steps, 8, 8), 8) == steps
