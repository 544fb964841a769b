"""How much of what is where, as the risk service sees it. Pure: reads an `Allotments`."""

from exchange.enums import Asset
from riskd.allotments import Allotments
from riskd.funds.moves import Key
from riskd.limits import asset_name


def _columns(allotments: Allotments, name: str) -> list[tuple[str, int]]:
    return [
        (pair, asset - 1)
        for pair, item in allotments.holdings.items()
        for asset in (Asset.BASE, Asset.QUOTE)
        if asset_name(item.instrument, asset) == name
    ]


def in_flight(allotments: Allotments, account: int, pair: str, asset: Asset) -> int:
    """Return what is on its way into a pair for an account: recorded by the ledger, not there."""
    key = Key(account, asset_name(allotments.holdings[pair].instrument, asset))
    purse = allotments.purses.get(key)
    moves = purse.moves if purse else ()
    return sum(
        move.amount_units for move in moves if move.pair == pair and move.allots and move.number
    )


def exposure(allotments: Allotments, account: int, name: str) -> int:
    """Return what all engines have of an account's asset, with what is on its way there."""
    units = sum(
        int(allotments.holdings[pair].total[account, column])
        for pair, column in _columns(allotments, name)
        # Pairs may differ in how many accounts they have room for.
        if account < len(allotments.holdings[pair].total)
    )
    purse = allotments.purses.get(Key(account, name))
    moves = purse.moves if purse else ()
    return units + sum(move.amount_units for move in moves if move.allots)


def total_exposure(allotments: Allotments, name: str) -> int:
    """Return what all engines have of an asset, with what is on its way there."""
    units = sum(
        int(allotments.holdings[pair].total[:, column].sum())
        for pair, column in _columns(allotments, name)
    )
    return units + sum(
        move.amount_units
        for key, purse in allotments.purses.items()
        if key.asset_name == name
        for move in purse.moves
        if move.allots
    )


def position(allotments: Allotments, account: int, name: str, trading_units: int) -> int:
    """Return what an account owns of an asset where it can be traded."""
    purse = allotments.purses.get(Key(account, name))
    returning = sum(units for _, _, units in purse.returning) if purse else 0
    return trading_units + exposure(allotments, account, name) + returning
