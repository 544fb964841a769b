"""`holdfast watch`: a pair's market in the terminal, from the gateway alone.

It needs no account and asks no trading service. Without a terminal it prints trades, a line each.
"""

import argparse
import asyncio
import contextlib
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from exchange.v1 import enums_pb2
from holdfast.market.client import MARKET_DATA_TARGET, AsyncMarketData
from holdfast.retry import Retry
from holdfast.running.pair_view import PAIR_LINES, PairScreen

FRAMES_PER_SECOND: Final = 5
LEVELS_ASKED: Final = 50
MOST_LEVELS: Final = 24
_LASTING: Final = Retry(patience_s=3_600.0)
"""A gateway that is away for a while is waited for."""


def add_commands(commands: Any) -> None:
    """Add this module's command to the parser."""
    parser = commands.add_parser("watch", help="show a pair's market as it moves")
    parser.add_argument("pair", nargs="?", default="BTC-USDT")
    parser.add_argument("--market-data", default=MARKET_DATA_TARGET)
    parser.add_argument("--key", default="", help="a market data key")
    parser.add_argument("--trades", action="store_true", help="trades only, a line each")
    parser.set_defaults(command=command)


def command(given: argparse.Namespace) -> int:
    """Show until interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(given))
    return 0


async def _watch(given: argparse.Namespace) -> None:
    console = Console()
    async with AsyncMarketData(given.market_data, key=given.key, retry=_LASTING) as market:
        if console.is_terminal and not given.trades:
            await _show(market, given.pair, console)
        else:
            await _print(market, given.pair)


async def _print(market: AsyncMarketData, pair: str) -> None:
    async for trade in market.trades(pair):
        side = enums_pb2.Side.Name(trade.taker_side).removeprefix("SIDE_").lower()
        print(f"{trade.trade_number}  {side:<4} {trade.quantity} at {trade.price}", flush=True)


async def _show(market: AsyncMarketData, pair: str, console: Console) -> None:
    # A pair that is unknown, or no gateway at all, is a sentence and not an empty picture.
    screen = PairScreen(pair, ticker=await market.get_ticker(pair, Retry()))
    screen.trades.extend(await market.get_trades(pair, count=screen.trades.maxlen or 1))

    async def books() -> None:
        async for book in market.depth(pair, LEVELS_ASKED, 1_000 // FRAMES_PER_SECOND):
            screen.book = book

    async def trades() -> None:
        number = screen.trades[-1].trade_number + 1 if screen.trades else 0
        async for trade in market.trades(pair, number):
            screen.trades.append(trade)

    async def tickers() -> None:
        async for ticker in market.ticker(pair, 500):
            screen.ticker = ticker

    async with asyncio.TaskGroup() as tasks:
        for work in (books, trades, tickers):
            tasks.create_task(work())
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                levels = max(1, min(MOST_LEVELS, (console.height - PAIR_LINES) // 2))
                live.update(screen.market_picture(levels), refresh=True)
                await asyncio.sleep(1 / FRAMES_PER_SECOND)
