"""Specifications: what is right passes, what is wrong is named with field, value and limit."""

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.config import load_instrument
from exchange.instrument import (
    AMOUNT_LIMIT_UNITS,
    FEE_RATE_LIMIT_PPM,
    Instrument,
    InvalidInstrument,
)

INT64_MAX = (1 << 63) - 1


def test_the_defaults_are_valid() -> None:
    instrument = Instrument()
    assert instrument.validate() is instrument
    assert instrument.quote_units_per_tick_lot == 10


def test_a_specification_never_changes() -> None:
    with pytest.raises(FrozenInstanceError):
        Instrument().pair = "ETH-USDT"  # type: ignore[misc]


@pytest.mark.parametrize("pair", ["BTC-USDT", "ETH-USDT"])
def test_the_installed_pairs_are_valid(pair: str) -> None:
    assert load_instrument(pair).pair == pair


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("pair", "", "1 to 32 characters"),
        ("pair", "X" * 33, "1 to 32 characters"),
        ("base_decimals", -1, "from 0 to 18"),
        ("base_decimals", 19, "from 0 to 18"),
        ("quote_decimals", 19, "from 0 to 18"),
        ("tick_quote_units", 0, "from 1 to"),
        ("tick_quote_units", 1, "tick times lot in whole units"),
        ("base_units_per_lot", 0, "from 1 to"),
        ("price_capacity_ticks", 63, "from 64 to"),
        ("price_capacity_ticks", 65, "a multiple of 64"),
        ("price_capacity_ticks", (1 << 30) + 64, "from 64 to"),
        ("quantity_limit_lots", 0, "from 1 to"),
        ("quantity_limit_lots", (1 << 40) + 1, "from 1 to"),
        ("minimum_notional_units", -1, "from 0 to"),
        ("taker_fee_floor_ppm", -1, "from 0 to 100000"),
        ("taker_fee_ppm", 100_001, "from 0 to 100000"),
        ("maker_fee_ppm", -1, "from 0 to 100000"),
        ("price_band_ppm", 1_000_001, "from 0 to 1000000"),
        ("order_capacity", 0, "from 1 to"),
        ("order_capacity", (1 << 24) - 1, "from 1 to"),
        ("account_capacity", 1, "from 2 to"),
        ("client_id_window", (1 << 21) - 1, "a power of two"),
        ("client_id_window", 1 << 20, "a power of two from 2097152"),
        ("event_capacity", 100, "a power of two"),
        ("depth_level_count", 0, "from 1 to 1000"),
        ("depth_copy_count", 1, "from 2 to 64"),
    ],
)
def test_a_contradiction_is_named(field: str, value: int | str, limit: str) -> None:
    with pytest.raises(InvalidInstrument) as refusal:
        replace(Instrument(), **{field: value}).validate()  # type: ignore[arg-type]
    message = str(refusal.value)
    assert message.startswith(f"{field} is {value!r}; it must be ")
    assert limit in message


def test_the_taker_floor_covers_every_rebate() -> None:
    floor = replace(Instrument(), taker_fee_floor_ppm=500, taker_fee_ppm=500)
    replace(floor, maker_fee_ppm=-500).validate()
    with pytest.raises(InvalidInstrument, match="maker_fee_ppm is -501"):
        replace(floor, maker_fee_ppm=-501).validate()
    with pytest.raises(InvalidInstrument, match="taker_fee_ppm is 499"):
        replace(floor, taker_fee_ppm=499).validate()


def test_an_order_worth_too_much_is_refused_before_it_can_exist() -> None:
    with pytest.raises(InvalidInstrument, match="a largest order worth at most"):
        replace(Instrument(), quantity_limit_lots=1 << 40, price_capacity_ticks=1 << 30).validate()
    with pytest.raises(InvalidInstrument, match="base units"):
        replace(
            Instrument(),
            base_decimals=18,
            tick_quote_units=1,
            base_units_per_lot=10**18,
            price_capacity_ticks=64,
            quantity_limit_lots=3,
        ).validate()
    with pytest.raises(InvalidInstrument, match="when every order rests on it"):
        replace(
            Instrument(),
            base_decimals=0,
            tick_quote_units=1,
            base_units_per_lot=1,
            price_capacity_ticks=64,
            quantity_limit_lots=1 << 40,
            order_capacity=1 << 23,
            client_id_window=1 << 24,
        ).validate()


@st.composite
def instruments(draw: st.DrawFn) -> Instrument:
    """Draw a specification whose largest order is worth about as much as may be."""
    decimals = draw(st.integers(0, 18))
    lot_digits = draw(st.integers(0, decimals))
    ticks_worth = draw(st.integers(1, 1 << 10))
    capacity = 64 * draw(st.integers(1, 1 << 24))
    dearest = capacity * ticks_worth
    most = min(AMOUNT_LIMIT_UNITS * 10 // (11 * dearest), AMOUNT_LIMIT_UNITS // 10**lot_digits)
    return Instrument(
        base_decimals=decimals,
        tick_quote_units=10 ** (decimals - lot_digits) * ticks_worth,
        base_units_per_lot=10**lot_digits,
        price_capacity_ticks=capacity,
        quantity_limit_lots=max(1, min(most, 1 << 40) + draw(st.integers(-2, 2))),
        order_capacity=draw(st.integers(1, 1 << 22)),
        client_id_window=1 << 23,
    )


@given(instruments())
def test_no_product_of_a_valid_pair_leaves_a_signed_word(instrument: Instrument) -> None:
    try:
        instrument.validate()
    except InvalidInstrument:
        return
    price = instrument.price_capacity_ticks - 1
    lots = instrument.quantity_limit_lots
    worth = price * lots * instrument.quote_units_per_tick_lot
    largest_fee = -(-worth * FEE_RATE_LIMIT_PPM // 1_000_000)
    per_lot = price * instrument.quote_units_per_tick_lot
    largest_hold = lots * (per_lot - (-per_lot * FEE_RATE_LIMIT_PPM // 1_000_000))
    for number in (
        worth + largest_fee + AMOUNT_LIMIT_UNITS,
        largest_hold + AMOUNT_LIMIT_UNITS,
        lots * instrument.base_units_per_lot + AMOUNT_LIMIT_UNITS,
        lots * instrument.order_capacity,
    ):
        assert number <= INT64_MAX
