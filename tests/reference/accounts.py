"""Money of the twin: what an account owns, what it has set aside, what a fee is.

Invariant: nothing here is ever below zero; `Account` asserts it at each movement.
"""

from dataclasses import dataclass, field

from exchange.enums import Asset
from tests.reference.book import Order

MILLION = 1_000_000


def fee(notional: int, rate_ppm: int) -> int:
    """Return the fee in units: rounded up, so a rebate (negative) is rounded towards zero."""
    return -(-notional * rate_ppm // MILLION)


def hold_per_lot(worth: int, rate_ppm: int) -> int:
    """Return the quote units a buyer sets aside for one lot worth `worth`."""
    return worth + fee(worth, rate_ppm)


def nothing() -> dict[Asset, int]:
    """Return an empty purse."""
    return {Asset.BASE: 0, Asset.QUOTE: 0}


@dataclass(slots=True)
class Account:
    """One open account of the pair."""

    number: int
    taker_ppm: int
    maker_ppm: int
    killed: bool = False
    largest_lots: int = 0
    largest_notional: int = 0
    most_orders: int = 0
    free: dict[Asset, int] = field(default_factory=nothing)
    held: dict[Asset, int] = field(default_factory=nothing)
    orders: dict[int, Order] = field(default_factory=dict)
    """The account's resting orders by order id."""

    @property
    def hold_ppm(self) -> int:
        """Return the rate a hold of this account provides for."""
        return max(self.taker_ppm, self.maker_ppm, 0)

    def receive(self, asset: Asset, units: int) -> None:
        """Add to the free funds."""
        assert units >= 0, (self.number, asset, units)
        self.free[asset] += units

    def pay(self, asset: Asset, units: int) -> None:
        """Take from the free funds."""
        self.free[asset] -= units
        assert self.free[asset] >= 0, (self.number, asset, units)

    def hold(self, asset: Asset, units: int) -> None:
        """Move from free to held."""
        self.pay(asset, units)
        self.held[asset] += units

    def pay_from_hold(self, asset: Asset, units: int) -> None:
        """Take from the held funds."""
        self.held[asset] -= units
        assert self.held[asset] >= 0, (self.number, asset, units)

    def unhold(self, asset: Asset, units: int) -> None:
        """Move from held to free."""
        self.pay_from_hold(asset, units)
        self.receive(asset, units)
