"""`holdfast run`: one pair on this machine, with generated flow and a live view.

Everything it starts it also stops: Ctrl-C, SIGTERM and `--seconds` drain from the doors inwards.
A second run on the same folder goes on where the first one stopped.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from holdfast.cli.compilation import compile_kernels
from holdfast.cli.opening import until_open
from holdfast.client import AsyncClient
from holdfast.errors import CallFailed
from holdfast.flow import FIRST_PRICE, VISITOR, fund
from holdfast.live_view import LEVELS_SHOWN, ProcessLine, Screen
from holdfast.retry import Retry
from holdfast.supervisor import PairPlan, Supervisor, last_words

FRAMES_PER_SECOND: Final = 4
FLOW: Final = "flow"
_LOOK: Final = Retry(patience_s=3_600.0, attempt_s=1.0)
_ONCE: Final = Retry(patience_s=0.5, attempt_s=0.5)


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    parser = commands.add_parser("run", help="start a pair with generated flow and a live view")
    parser.add_argument("--pair", default="BTC-USDT")
    parser.add_argument("--run", type=Path, default=Path("run"), help="folder that is kept")
    parser.add_argument("--port", type=int, default=8850, help="order entry; market data: plus one")
    parser.add_argument("--market-data-port", type=int, help="instead of --port plus one")
    parser.add_argument("--durability", choices=("fsync", "os"), default="fsync")
    parser.add_argument("--entries", type=int, default=2, help="order-entry processes")
    parser.add_argument("--flow-rate", type=int, default=300, help="commands a second")
    parser.add_argument("--no-flow", action="store_true", help="an empty exchange for yourself")
    parser.add_argument("--seed", type=int, default=1, help="what the flow's decisions come from")
    parser.add_argument("--seconds", type=int, help="stop by itself after so long")
    parser.add_argument("--instruments", type=Path, help="instrument file")
    parser.set_defaults(command=command)


def command(given: argparse.Namespace) -> int:
    """Run until told to stop."""
    market_data_port = given.market_data_port or given.port + 1
    plan = PairPlan(
        pair=given.pair,
        run=given.run,
        orders_port=given.port,
        market_data_port=market_data_port,
        entry_count=given.entries,
        durability=given.durability,
        instruments=given.instruments,
    ).validate()
    return asyncio.run(Run(plan, given).work())


class Run:
    """One `holdfast run` from start to stop."""

    def __init__(self, plan: PairPlan, given: argparse.Namespace) -> None:
        self._plan = plan
        self._given = given
        self._console = Console()
        self._screen = Screen(plan.pair)
        self._target = f"127.0.0.1:{plan.orders_port}"
        self._market_data = f"127.0.0.1:{plan.market_data_port}"
        self._report = plan.folder / "flow.json"
        self._stopping = asyncio.Event()

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, soft_wrap=True, markup=False)

    async def work(self) -> int:
        """Start, show, stop; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        async with Supervisor(self._plan) as supervisor:
            if supervisor.cleaned:
                self._say(f"removed segments of dead owners: {', '.join(supervisor.cleaned)}")
            await self._until_stopped(self._start_and_show(supervisor))
            await supervisor.stop(self._say)
        self._say(self._last_word())
        return 0

    async def _until_stopped(self, work: Any) -> None:
        """Do the work until it ends or a stop is asked for; raises what the work raises."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _start_and_show(self, supervisor: Supervisor) -> None:
        await compile_kernels(self._console)
        started_ns = time.monotonic_ns()
        with self._console.status(f"starting {', '.join(self._plan.commands())}"):
            await supervisor.start()
            async with AsyncClient(
                self._plan.pair, target=self._target, market_data=self._market_data, retry=_LOOK
            ) as client:
                before = await until_open(supervisor, client)
                funded = await fund(client)
                price = _price_to_try((await client.ticker()).last_trade.price)
        spent_ms = (time.monotonic_ns() - started_ns) // 1_000_000
        count = before.committed_number
        found = f"as it was after {count:,} executions" if count else "new"
        funds = f"{funded} transfers funded its accounts" if funded else "its accounts have funds"
        self._say(
            f"{self._plan.pair} is open, {found}; {funds}; started in {spent_ms / 1_000:.1f} s"
        )
        self._report.unlink(missing_ok=True)
        if not self._given.no_flow:
            await supervisor.add(FLOW, self._flow_arguments())
        self._say(self._lines_to_try(price))
        await self._show(supervisor)

    def _flow_arguments(self) -> tuple[str, ...]:
        arguments: tuple[str, ...] = ("-m", "holdfast.flow", "--pair", self._plan.pair)
        arguments += ("--target", self._target, "--market-data", self._market_data)
        arguments += ("--rate", str(self._given.flow_rate), "--seed", str(self._given.seed))
        arguments += ("--report", str(self._report))
        if self._plan.instruments is not None:
            arguments += ("--instruments", str(self._plan.instruments))
        return arguments

    def _lines_to_try(self, price: str) -> str:
        order = (
            f'{{"pair": "{self._plan.pair}", "client_order_id": 1, "side": "SIDE_BUY",'
            ' "order_type": "ORDER_TYPE_LIMIT",'
            ' "time_in_force": "TIME_IN_FORCE_GOOD_TILL_CANCELLED",'
            f' "price": "{price}", "quantity": "0.01"}}'
        )
        service = "exchange.v1.OrderEntryService/SubmitOrder"
        return (
            f"Try it, in another terminal (account {VISITOR} is funded and yours):\n"
            f"  grpcurl -plaintext {self._target} list\n"
            f"  grpcurl -plaintext -H 'holdfast-account: {VISITOR}' -d '{order}'"
            f" {self._target} {service}\n"
            f'  grpcurl -plaintext -d \'{{"pair": "{self._plan.pair}"}}\''
            f" {self._market_data} exchange.v1.MarketDataService/StreamDepth\n"
            f"Logs and state: {self._plan.folder}. Ctrl-C stops everything in good order."
        )

    # The view.

    async def _show(self, supervisor: Supervisor) -> None:
        async with (
            AsyncClient(
                self._plan.pair, target=self._target, market_data=self._market_data, retry=_LOOK
            ) as client,
            asyncio.TaskGroup() as tasks,
        ):
            watchers = [
                tasks.create_task(self._watch_book(client)),
                tasks.create_task(self._watch_trades(client)),
                tasks.create_task(self._watch_ticker(client)),
                tasks.create_task(self._watch_status(client)),
            ]
            await self._draw(supervisor)
            for watcher in watchers:
                watcher.cancel()

    async def _draw(self, supervisor: Supervisor) -> None:
        """Draw until the time is up: a live picture, or a line a second where nobody looks."""
        clock = asyncio.get_running_loop().time
        ends = clock() + self._given.seconds if self._given.seconds else None
        terminal = self._console.is_terminal
        pause_s = 1 / FRAMES_PER_SECOND if terminal else 1
        with contextlib.ExitStack() as stack:
            live = None
            if terminal:
                live = Live(console=self._console, auto_refresh=False, transient=False)
                stack.enter_context(live)
            while ends is None or clock() < ends:
                await asyncio.sleep(pause_s)
                self._look(supervisor)
                if live is None:
                    self._say(self._screen.line())
                else:
                    live.update(self._screen.picture(self._console.height), refresh=True)

    def _look(self, supervisor: Supervisor) -> None:
        now_ns = time.monotonic_ns()
        self._screen.processes = [
            ProcessLine(
                child.name, child.pid, child.state, child.uptime_s(now_ns), child.restart_count
            )
            for child in supervisor.children.values()
        ]
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._screen.flow = json.loads(self._report.read_text())
        ill = [child for child in supervisor.children.values() if child.deaths_in_a_row > 1]
        self._screen.footer = "\n".join(
            f"{child.name} does not stay up: {last_words(child.log)}" for child in ill
        )

    async def _watch_book(self, client: AsyncClient) -> None:
        async for book in client.watch_book(LEVELS_SHOWN, 1_000 // FRAMES_PER_SECOND):
            self._screen.book = book

    async def _watch_trades(self, client: AsyncClient) -> None:
        async for trade in client.watch_trades():
            self._screen.trades.append(trade)

    async def _watch_ticker(self, client: AsyncClient) -> None:
        async for ticker in client.watch_ticker(500):
            self._screen.see_ticker(time.monotonic_ns(), ticker)

    async def _watch_status(self, client: AsyncClient) -> None:
        while True:
            try:
                status = await client.status(_ONCE)
                self._screen.see_status(time.monotonic_ns(), status)
            except CallFailed:
                self._screen.status = None
            await asyncio.sleep(0.5)

    def _last_word(self) -> str:
        status = self._screen.status
        if status is None:
            return f"{self._plan.pair} is stopped; its state is in {self._plan.folder}"
        return (
            f"{self._plan.pair} is stopped at sequence {status.sequence:,} or a little later;"
            f" its state is in {self._plan.folder}, the next run goes on there"
        )


def _price_to_try(last: str) -> str:
    """Return a price a little below the market: inside of its band, and not taken at once."""
    whole = int(last.partition(".")[0]) if last else FIRST_PRICE
    return str(max(1, whole * 95 // 100))
