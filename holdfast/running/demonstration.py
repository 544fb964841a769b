"""Who takes part in the demonstration, what they own, and how it gets where they trade.

Money comes in as it does for everybody: a deposit, then the owner's own move from funding to
trading. From there riskd hands it to the engines: ahead of time for the market maker, which has
targets, and to everybody else with the first order that lacks it.

Deposits and moves have ids made from what they are for, so a second start, or one that begins where
another was killed, brings nothing in twice; what a participant deposits besides is its own.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid5

from exchange.enums import Asset
from exchange.instrument import Instrument
from exchange.v1 import ledger_pb2, risk_pb2
from holdfast.errors import InvalidRequest
from holdfast.money.client import AsyncMoneyClient
from holdfast.retry import Attempts, Retry
from holdfast.running.plan import MoneyPlan
from holdfast.running.services import PATIENT, Services, asked

MAKER: Final = 1
TRADERS: Final = (11, 12, 13, 14, 15, 16)
VISITOR: Final = 100
"""Funded as well, and left alone: for whoever tries the exchange by hand."""
FIRST_PRICES: Final = {"BTC": 64_000, "ETH": 3_400}
"""Where a market without trades begins, in whole quote coins."""
OTHER_FIRST_PRICE: Final = 100
ACTOR: Final = "demonstration"
_ON_ITS_WAY: Final = "INSUFFICIENT_FUNDS"
_IDS: Final = UUID("6f1d6d5e-5c0f-4f4e-9f0a-8d3a1f6b7c21")
LOOK_S: Final = 0.05
WATCH: Final = Retry(patience_s=60.0, first_pause_s=0.05, longest_pause_s=0.2)


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


def contributions(instruments: Iterable[Instrument], share: Share) -> dict[tuple[str, str], int]:
    """Return what a share is in whole coins, by pair and asset."""
    found: dict[tuple[str, str], int] = {}
    for one in instruments:
        found[one.pair, one.base_asset] = share.base_worth // first_price(one)
        found[one.pair, one.quote_asset] = share.quote
    return found


async def fund(plan: MoneyPlan, instruments: list[Instrument]) -> int:
    """Bring the participants' money to their trading accounts; return how many sums were new.

    Raises CallFailed.
    """
    async with asyncio.TaskGroup() as tasks:
        bringing = [
            tasks.create_task(_bring(plan, account, contributions(instruments, share)))
            for account, share in SHARES.items()
        ]
    return sum(task.result() for task in bringing)


async def _bring(plan: MoneyPlan, account: int, wanted: dict[tuple[str, str], int]) -> int:
    kind = "market-maker" if account == MAKER else "user"
    async with AsyncMoneyClient(
        account,
        owner_kind=kind,
        actor=ACTOR,
        ledger=plan.ledger,
        risk=plan.risk,
        retry=PATIENT,
    ) as money:
        async with asyncio.TaskGroup() as tasks:
            bringing = [
                tasks.create_task(
                    _contribute(money, asset, coins, uuid5(_IDS, f"{account} {pair} {asset}"))
                )
                for (pair, asset), coins in wanted.items()
            ]
        return sum(task.result() for task in bringing)


async def _contribute(money: AsyncMoneyClient, asset: str, coins: int, made: UUID) -> bool:
    """Deposit a sum once and move it to trading once; say whether that was done now.

    Payment and move know their id, however often and from wherever this is begun anew.
    """
    address = (await money.deposit_address(asset)).address
    await money.simulate_deposit(address, asset, str(coins), payment_id=made)
    attempts = Attempts(WATCH)
    while True:
        try:
            return not (await money.transfer(asset, str(coins), transfer_id=made)).repeated
        except InvalidRequest as error:
            # It is on its way: a deposit is credited after its confirmations.
            if error.reason != _ON_ITS_WAY or attempts.spent():
                raise
        await attempts.pause()


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
