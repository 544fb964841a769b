"""The specification of one pair: grids, units, capacities, default fees.

Everything is an integer. One lot of the base asset is ``base_units_per_lot`` smallest units; a
quantity of q lots at p ticks is worth ``p * q * quote_units_per_tick_lot`` smallest quote units.
``validate`` proves once, for the largest numbers the specification admits, that no product in the
kernel can leave int64: the kernel then needs no overflow check of its own per order.
"""

from dataclasses import dataclass
from typing import Final

AMOUNT_LIMIT_UNITS: Final = 1 << 61
"""Most units of one asset that may exist in one engine: two such sums still fit an int64."""

FEE_RATE_LIMIT_PPM: Final = 100_000
"""Ten per cent. A fee is never larger than the notional it is taken from."""


class InvalidInstrument(ValueError):
    """A specification that contradicts itself; the message names field, value and limit."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """What a pair trades and how finely."""

    pair: str = "BTC-USDT"
    base_asset: str = "BTC"
    quote_asset: str = "USDT"
    base_decimals: int = 8
    """Decimals of the base asset's smallest unit."""
    quote_decimals: int = 8
    """Decimals of the quote asset's smallest unit."""
    tick_quote_units: int = 1_000_000
    """One price tick, in smallest quote units per whole base coin (0.01 at eight decimals)."""
    base_units_per_lot: int = 1_000
    """One lot, in smallest base units (0.00001 at eight decimals)."""
    price_capacity_ticks: int = 1 << 24
    """Prices are 1 to this less one. A multiple of 64, at most 2**30."""
    quantity_limit_lots: int = 10_000_000_000
    """Largest quantity of one order."""
    minimum_notional_units: int = 0
    taker_fee_ppm: int = 1_000
    """Default for accounts without rates of their own."""
    maker_fee_ppm: int = 0
    taker_fee_floor_ppm: int = 0
    """No account pays less as taker, and no maker's rebate exceeds it: the sum of the fees of
    one trade is never negative."""
    price_band_ppm: int = 0
    """Width of the price band around the last trade; zero: no band."""
    order_capacity: int = 1 << 20
    """Most resting orders. Less than 2**24."""
    account_capacity: int = 1 << 16
    """Account numbers are 1 to this less one."""
    client_id_window: int = 1 << 21
    """Power of two, at least twice the order capacity: so many accepted client order ids are
    remembered, and those of live orders always."""
    event_capacity: int = 1 << 18
    """Power of two: anonymous events kept for readers."""
    depth_level_count: int = 64
    """Levels a side in each published depth copy."""
    depth_copy_count: int = 8

    @property
    def quote_units_per_tick_lot(self) -> int:
        """Return the worth of one lot at one tick, in smallest quote units."""
        scale: int = 10**self.base_decimals
        return self.tick_quote_units * self.base_units_per_lot // scale

    def validate(self) -> "Instrument":
        """Return self, or raise InvalidInstrument naming the first contradiction."""
        _demand(bool(self.pair) and len(self.pair) <= 32, "pair", self.pair, "1 to 32 characters")
        for name in ("base_decimals", "quote_decimals"):
            _between(self, name, 0, 18)
        _between(self, "tick_quote_units", 1, 1 << 60)
        _between(self, "base_units_per_lot", 1, 1 << 60)
        product = self.tick_quote_units * self.base_units_per_lot
        exact = product % 10**self.base_decimals == 0
        _demand(exact, "tick_quote_units", self.tick_quote_units, "tick times lot in whole units")
        _between(self, "price_capacity_ticks", 64, 1 << 30)
        _demand(
            self.price_capacity_ticks % 64 == 0,
            "price_capacity_ticks",
            self.price_capacity_ticks,
            "a multiple of 64",
        )
        _between(self, "quantity_limit_lots", 1, 1 << 40)
        _between(self, "minimum_notional_units", 0, AMOUNT_LIMIT_UNITS)
        _between(self, "taker_fee_floor_ppm", 0, FEE_RATE_LIMIT_PPM)
        _between(self, "taker_fee_ppm", self.taker_fee_floor_ppm, FEE_RATE_LIMIT_PPM)
        _between(self, "maker_fee_ppm", -self.taker_fee_floor_ppm, FEE_RATE_LIMIT_PPM)
        _between(self, "price_band_ppm", 0, 1_000_000)
        _between(self, "order_capacity", 1, (1 << 24) - 2)
        _between(self, "account_capacity", 2, 1 << 24)
        _power_of_two(self, "client_id_window", max(2, 2 * self.order_capacity), 1 << 26)
        _power_of_two(self, "event_capacity", 64, 1 << 24)
        _between(self, "depth_level_count", 1, 1_000)
        _between(self, "depth_copy_count", 2, 64)
        self._validate_products()
        return self

    def _validate_products(self) -> None:
        worth = self.price_capacity_ticks * self.quantity_limit_lots * self.quote_units_per_tick_lot
        worth += worth // 10 + self.quantity_limit_lots
        _demand(
            worth <= AMOUNT_LIMIT_UNITS,
            "quantity_limit_lots",
            self.quantity_limit_lots,
            f"a largest order worth at most {AMOUNT_LIMIT_UNITS} quote units, not {worth}",
        )
        level = self.order_capacity * self.quantity_limit_lots
        _demand(
            level <= 1 << 62,
            "order_capacity",
            self.order_capacity,
            f"a level of at most {1 << 62} lots when every order rests on it, not {level}",
        )
        base = self.quantity_limit_lots * self.base_units_per_lot
        _demand(
            base <= AMOUNT_LIMIT_UNITS,
            "quantity_limit_lots",
            self.quantity_limit_lots,
            f"a largest order of at most {AMOUNT_LIMIT_UNITS} base units, not {base}",
        )


def _demand(condition: bool, field: str, value: object, limit: str) -> None:
    if not condition:
        raise InvalidInstrument(f"{field} is {value!r}; it must be {limit}")


def _between(instrument: Instrument, field: str, low: int, high: int) -> None:
    value = getattr(instrument, field)
    _demand(low <= value <= high, field, value, f"from {low} to {high}")


def _power_of_two(instrument: Instrument, field: str, low: int, high: int) -> None:
    value = getattr(instrument, field)
    fits = low <= value <= high and value & (value - 1) == 0
    _demand(fits, field, value, f"a power of two from {low} to {high}")
