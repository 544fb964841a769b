"""How careful the way in and out is: what `ledgerd` is told, with careful defaults. Pure.

Nothing given means: no custodian, an address waits a day before it can be used, one person approves
every withdrawal, and a payment counts six blocks deep.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from exchange.units import InvalidDecimal, amount_to_units
from ledgerd.custody.withdrawal_rules import DAY_NS, Policy

SECOND_NS: Final = 1_000_000_000
CUSTODIANS: Final = ("none", "simulated")
NO_APPROVALS: Final = "none"
CONFIRMATIONS_LIMIT: Final = 10_000
APPROVALS_LIMIT: Final = 10
_UNITS_NS: Final = {
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "h": 3_600 * SECOND_NS,
    "d": DAY_NS,
}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)", re.ASCII)
_DURATION_LIMIT_NS: Final = 3_650 * DAY_NS


class InvalidFunds(ValueError):
    """A setting that cannot work; the message names field, value and limit."""


def duration_ns(name: str, text: str) -> int:
    """Return a time such as 0s, 90s, 15m, 24h or 7d. Raises InvalidFunds."""
    match = _DURATION.fullmatch(text)
    found = int(match[1]) * _UNITS_NS[match[2]] if match else -1
    if not 0 <= found <= _DURATION_LIMIT_NS:
        raise InvalidFunds(f"{name} is {text!r}; it must be a time such as 0s, 90s, 24h or 7d")
    return found


@dataclass(frozen=True, slots=True)
class FundsSettings:
    """Settings of the way in and out."""

    custodian: str = "none"
    """One of CUSTODIANS."""
    block_every_ns: int = SECOND_NS
    """Simulated custodian: a block so often, while there is anything to confirm."""
    address_wait_ns: int = DAY_NS
    """So long a listed address waits before it can be used."""
    approval_expiry_ns: int = DAY_NS
    """So long a withdrawal waits for its approvals; 0: for ever."""
    watch_ns: int = 7 * DAY_NS
    """So long the chain is asked about what was credited or confirmed."""
    confirmations_else: int = 6
    confirmations: Mapping[str, int] = field(default_factory=dict)
    """By asset, where it differs."""
    approval_above: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By asset: one more person above each of these amounts, decimal text."""
    risk: str = ""
    """HOST:PORT of riskd, which counts daily limits; empty: there are none."""

    @classmethod
    def given(cls, arguments: argparse.Namespace) -> Self:
        """Return the settings that the command line gives. Raises InvalidFunds."""
        others, by_asset = confirmations_from(arguments.confirmations)
        return cls(
            custodian=arguments.custodian,
            block_every_ns=duration_ns("block-every", arguments.block_every),
            address_wait_ns=duration_ns("address-wait", arguments.address_wait),
            approval_expiry_ns=duration_ns("approval-expiry", arguments.approval_expiry),
            watch_ns=duration_ns("watch", arguments.watch),
            confirmations_else=others,
            confirmations=by_asset,
            approval_above=approvals_from(arguments.approval_above),
            risk=_target(arguments.risk),
        )

    def policy(self, decimals: Mapping[str, int]) -> Policy:
        """Return the rules for assets that divide so finely. Raises InvalidFunds."""
        bands: dict[str, tuple[int, ...]] = {}
        for asset, amounts in self.approval_above.items():
            if asset not in decimals:
                known = ", ".join(sorted(decimals)) or "none yet"
                raise InvalidFunds(f"approval-above names {asset!r}; the books have {known}")
            try:
                bands[asset] = tuple(amount_to_units(decimals[asset], text) for text in amounts)
            except InvalidDecimal as error:
                raise InvalidFunds(f"approval-above of {asset}: {error}") from error
        return Policy(
            address_waiting_ns=self.address_wait_ns,
            approval_expiry_ns=self.approval_expiry_ns,
            watch_ns=self.watch_ns,
            confirmations=self.confirmations,
            confirmations_else=self.confirmations_else,
            approval_above_units=bands,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `FundsSettings.given` reads."""
    group = parser.add_argument_group("money that enters and leaves (docs/withdrawals.md)")
    group.add_argument("--custodian", choices=CUSTODIANS, default="none")
    group.add_argument(
        "--block-every", default="1s", metavar="TIME", help="of the simulated custodian"
    )
    group.add_argument(
        "--confirmations",
        action="append",
        default=[],
        metavar="[ASSET=]N",
        help="so deep a payment has to lie in the chain; 6 if nothing is said",
    )
    group.add_argument(
        "--address-wait", default="24h", metavar="TIME", help="before a listed address can be used"
    )
    group.add_argument(
        "--approval-above",
        action="append",
        default=[],
        metavar="ASSET=AMOUNT[,AMOUNT…]",
        help="one more person approves above each; ASSET=none: nobody; one if nothing is said",
    )
    group.add_argument(
        "--approval-expiry", default="24h", metavar="TIME", help="0s: approvals may take for ever"
    )
    group.add_argument(
        "--watch", default="7d", metavar="TIME", help="how long the chain may change its mind"
    )
    group.add_argument(
        "--risk", default="", metavar="HOST:PORT", help="riskd, which counts daily limits"
    )


def _target(text: str) -> str:
    host, colon, port = text.rpartition(":")
    sound = bool(host and colon) and port.isascii() and port.isdecimal() and len(port) <= 5
    if text and not sound:
        raise InvalidFunds(f"risk is {text!r}; it must be HOST:PORT")
    return text


def confirmations_from(given: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Read `6` and `BTC=2`; return the number for all others and those by asset."""
    others, by_asset = FundsSettings().confirmations_else, {}
    for text in given:
        asset, equals, number = text.rpartition("=")
        sound = number.isascii() and number.isdecimal() and len(number) <= 9
        if (
            not sound
            or not 1 <= int(number) <= CONFIRMATIONS_LIMIT
            or bool(asset) != bool(equals)
            or asset in by_asset
        ):
            limit = f"a number from 1 to {CONFIRMATIONS_LIMIT}, or ASSET=NUMBER once an asset"
            raise InvalidFunds(f"confirmations is {text!r}; it must be {limit}")
        if asset:
            by_asset[asset] = int(number)
        else:
            others = int(number)
    return others, by_asset


def approvals_from(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read `BTC=0.5,10` (one person above 0.5, two above 10) and `USDT=none` (nobody)."""
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        asset, equals, amounts = text.partition("=")
        listed = () if amounts == NO_APPROVALS else tuple(amounts.split(","))
        empty = any(not amount for amount in listed)
        if not asset or not equals or asset in found or empty or len(listed) > APPROVALS_LIMIT:
            limit = f"ASSET=AMOUNT[,AMOUNT…], at most {APPROVALS_LIMIT}, or ASSET={NO_APPROVALS}"
            raise InvalidFunds(f"approval-above is {text!r}; it must be {limit}, once an asset")
        found[asset] = listed
    return found
