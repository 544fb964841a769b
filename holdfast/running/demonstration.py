"""Who takes part in the demonstration, what they own, and how it gets where they trade.

Money comes in as it does for everybody: a deposit, then the owner's own move from funding to
trading. From there riskd hands it to the engines: ahead of time for the market maker, which has
targets, and to everybody else with the first order that lacks it.

Every transfer has an id made from what it is for, so that a second start moves nothing twice.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid5

from exchange.enums import Asset
from exchange.instrument import Instrument
from exchange.v1 import ledger_pb2, risk_pb2
from holdfast.running.services import Services, asked

MAKER: Final = 1
TRADERS: Final = (11, 12, 13, 14, 15, 16)
VISITOR: Final = 100
"""Funded as well, and left alone: for whoever tries the exchange by hand."""
FIRST_PRICES: Final = {"BTC": 64_000, "ETH": 3_400}
"""Where a market without trades begins, in whole quote coins."""
OTHER_FIRST_PRICE: Final = 100
ACTOR: Final = "demonstration"
_IDS: Final = UUID("6f1d6d5e-5c0f-4f4e-9f0a-8d3a1f6b7c21")
LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Share:
    """What a participant brings for each pair, in whole quote coins' worth of either asset."""

    base_worth: int
    quote: int


SHARES: Final = {
    MAKER: Share(40_000_000, 40_000_000),
    **dict.fromkeys(TRADERS, Share(2_000_000, 2_000_000)),
    VISITOR: Share(640_000, 500_000),
}
AHEAD: Final = Share(20_000_000, 20_000_000)
"""What the market maker is to have in each pair ahead of time."""


def first_price(instrument: Instrument) -> int:
    """Return where a market without trades begins, if its instrument reaches so far."""
    price = FIRST_PRICES.get(instrument.base_asset, OTHER_FIRST_PRICE)
    reach: int = instrument.price_capacity_ticks * instrument.tick_quote_units // 2
    return max(1, min(price, reach // int(10**instrument.quote_decimals)))


def owner_kind(account: int) -> Any:
    """Return what the books know an account's owner as."""
    if account == MAKER:
        return ledger_pb2.OWNER_KIND_MARKET_MAKER
    return ledger_pb2.OWNER_KIND_USER


def decimals_of(instruments: Iterable[Instrument]) -> dict[str, int]:
    """Return the decimals of all assets, base assets first."""
    found = {one.base_asset: one.base_decimals for one in instruments}
    return found | {one.quote_asset: one.quote_decimals for one in instruments}


def holdings(instruments: Iterable[Instrument], share: Share) -> dict[str, int]:
    """Return what a share is in whole coins of each asset, over all pairs."""
    found: dict[str, int] = {}
    for one in instruments:
        price = first_price(one)
        found[one.base_asset] = found.get(one.base_asset, 0) + share.base_worth // price
        found[one.quote_asset] = found.get(one.quote_asset, 0) + share.quote
    return found


async def fund(services: Services, instruments: list[Instrument]) -> int:
    """Bring the participants' money to their trading accounts; return how much of it was new.

    Counted are deposits.
    """
    decimals = decimals_of(instruments)
    names, transfers = [], []
    for asset in decimals:
        names.append(_custody(asset))
    for account, share in SHARES.items():
        for asset, coins in holdings(instruments, share).items():
            units = coins * 10 ** decimals[asset]
            places = [
                _custody(asset),
                _name(account, asset, ledger_pb2.ACCOUNT_PURPOSE_FUNDING),
                _name(account, asset, ledger_pb2.ACCOUNT_PURPOSE_TRADING),
            ]
            names += places[1:]
            kinds = (ledger_pb2.TRANSFER_KIND_CORRECTION, ledger_pb2.TRANSFER_KIND_INTERNAL)
            for kind, source, target in zip(kinds, places[:-1], places[1:], strict=True):
                transfers.append(_transfer(kind, source, target, units))
    await asked(services.books.OpenAccounts, ledger_pb2.OpenAccountsRequest(names=names))
    request = ledger_pb2.PostTransfersRequest(transfers=transfers)
    answer = await asked(services.books.PostTransfers, request)
    return sum(not one.repeated for one in answer.transfers[::2])


def _custody(asset: str) -> ledger_pb2.AccountName:
    return ledger_pb2.AccountName(
        owner_kind=ledger_pb2.OWNER_KIND_EXCHANGE,
        purpose=ledger_pb2.ACCOUNT_PURPOSE_CUSTODY,
        asset=asset,
    )


def _name(account: int, asset: str, purpose: Any) -> ledger_pb2.AccountName:
    return ledger_pb2.AccountName(
        owner_kind=owner_kind(account), owner_id=account, purpose=purpose, asset=asset
    )


def _transfer(
    kind: Any, source: ledger_pb2.AccountName, target: ledger_pb2.AccountName, units: int
) -> ledger_pb2.NewTransfer:
    return ledger_pb2.NewTransfer(
        id=uuid5(_IDS, f"{kind} {target.owner_id} {target.asset}").bytes,
        kind=kind,
        phase=ledger_pb2.TRANSFER_PHASE_SINGLE,
        legs=[
            ledger_pb2.TransferLeg(name=source, amount_units=-units),
            ledger_pb2.TransferLeg(name=target, amount_units=units),
        ],
        actor=ACTOR,
    )


async def supply_maker(services: Services, instruments: list[Instrument]) -> None:
    """Have riskd keep the market maker's money in the pairs ahead of time; wait until some is."""
    profile = risk_pb2.SetAccountProfileRequest(
        account=MAKER, role=risk_pb2.ACCOUNT_ROLE_MARKET_MAKER, actor=ACTOR
    )
    await asked(services.risk.SetAccountProfile, profile)
    wanted = set()
    for one in instruments:
        for asset, name, units in (
            (
                Asset.BASE,
                one.base_asset,
                AHEAD.base_worth // first_price(one) * 10**one.base_decimals,
            ),
            (Asset.QUOTE, one.quote_asset, AHEAD.quote * 10**one.quote_decimals),
        ):
            target = risk_pb2.SetAllotmentTargetRequest(
                account=MAKER,
                pair=one.pair,
                asset=int(asset),  # type: ignore[arg-type]
                amount_units=units,
                actor=ACTOR,
            )
            await asked(services.risk.SetAllotmentTarget, target)
            wanted.add((one.pair, name))
    while wanted:
        found = await asked(services.risk.GetExposure, risk_pb2.GetExposureRequest(account=MAKER))
        wanted -= {(one.pair, one.asset) for one in found.pairs if one.total_units}
        await asyncio.sleep(LOOK_S)
