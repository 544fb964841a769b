"""What market makers were promised and do not have. Pure."""

from collections.abc import Iterator, Mapping

from exchange.enums import Asset
from riskd.funds.holdings import Holdings
from riskd.funds.moves import Key, Purse, Want
from riskd.limits import asset_name


def wants_ahead(
    targets: Mapping[tuple[int, str, Asset], int],
    holdings: Mapping[str, Holdings],
    purses: Mapping[Key, Purse],
    now_ns: int,
    until_ns: int,
) -> Iterator[Want]:
    """Walk what is missing by a quarter or more, unless somebody waits for it there already."""
    for (account, pair, asset), target in targets.items():
        item = holdings[pair]
        name = asset_name(item.instrument, asset)
        purse = purses.get(Key(account, name), Purse())
        there = int(item.total[account, asset - 1])
        there += sum(move.change_units for move in purse.moves if move.pair == pair)
        waiting = any(want.pair == pair for want in purse.wants)
        # A quarter is worth a move; each fill alone is not.
        if waiting or (target - there) * 4 < target:
            continue
        missing = target - there
        yield Want(account, pair, asset, name, missing, missing, now_ns, until_ns, ahead=True)
