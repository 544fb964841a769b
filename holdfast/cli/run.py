"""`holdfast run`: a whole exchange on this machine, with generated flow and a live view.

Two pairs that share an asset, the books on a PostgreSQL of their own, the risk service and the
market data gateway. Everything it starts it also stops: Ctrl-C, SIGTERM and `--seconds` drain from
the doors inwards, until the books have settled what the engines said. A second run on the same
folder goes on where the first one stopped.
"""

import argparse
import asyncio
import contextlib
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from exchange.config import load_instrument
from holdfast.cli.compilation import compile_kernels
from holdfast.client import AsyncClient
from holdfast.retry import Retry
from holdfast.running import plan as plans
from holdfast.running.demonstration import decimals_of, first_price, fund, supply_maker
from holdfast.running.draining import drain
from holdfast.running.guidance import lines_to_try
from holdfast.running.live_view import Screen
from holdfast.running.money_view import MoneyScreen
from holdfast.running.opening import until_open, until_serving
from holdfast.running.pair_view import PairScreen
from holdfast.running.plan import MoneyPlan, PairPlan, Plan, Process, Stage
from holdfast.running.services import Services, first_of
from holdfast.running.supervisor import Supervisor
from holdfast.running.watching import FRAMES_PER_SECOND, Watcher

FLOW: Final = "flow"
_LOOK: Final = Retry(patience_s=3_600.0, attempt_s=1.0)


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    parser = commands.add_parser(
        "run", help="start an exchange with generated flow and a live view"
    )
    parser.add_argument(
        "--pair",
        action="append",
        metavar="PAIR[=PORT]",
        help="a pair and the port of its order entry; may be given several times"
        f" (default: {' and '.join(plans.PAIRS)})",
    )
    parser.add_argument("--run", type=Path, default=Path("run"), help="folder that is kept")
    parser.add_argument(
        "--port", type=int, default=plans.ORDERS_PORT, help="order entry of the first pair"
    )
    parser.add_argument("--market-data-port", type=int, help="instead of --port plus 1")
    parser.add_argument("--http-port", type=int, help="instead of --port plus 2")
    parser.add_argument("--ledger-port", type=int, help="instead of --port plus 20")
    parser.add_argument("--risk-port", type=int, help="instead of --port plus 21")
    parser.add_argument("--durability", choices=("fsync", "os"), default="fsync")
    parser.add_argument("--entries", type=int, default=2, help="order-entry processes of each pair")
    parser.add_argument("--flow-rate", type=int, default=300, help="commands a second in each pair")
    parser.add_argument("--no-flow", action="store_true", help="an empty exchange for yourself")
    parser.add_argument("--seed", type=int, default=1, help="what the flow's decisions come from")
    parser.add_argument("--seconds", type=int, help="stop by itself after so long")
    parser.add_argument("--instruments", type=Path, help="instrument file")
    parser.add_argument(
        "--market-data-keys", type=Path, help="market data key file; without one all is for all"
    )
    parser.set_defaults(command=command)


def plan_of(given: argparse.Namespace) -> Plan:
    """Return the plan that the command line asks for. Raises ValueError."""
    pairs = []
    for place, item in enumerate(given.pair or plans.PAIRS):
        pair, _, port = item.partition("=")
        chosen = int(port) if port else given.port + plans.orders_offset(place)
        pairs.append(PairPlan(pair, chosen, given.entries))
    base: int = given.port
    return Plan(
        given.run,
        tuple(pairs),
        given.market_data_port or base + plans.MARKET_DATA_OFFSET,
        MoneyPlan(
            given.ledger_port or base + plans.LEDGER_OFFSET,
            given.risk_port or base + plans.RISK_OFFSET,
        ),
        given.durability,
        given.instruments,
        http_port=given.http_port or base + plans.HTTP_OFFSET,
        market_data_keys=given.market_data_keys,
    ).validate()


def command(given: argparse.Namespace) -> int:
    """Run until told to stop."""
    return asyncio.run(Run(plan_of(given), given).work())


class Run:
    """One `holdfast run` from start to stop."""

    def __init__(self, plan: Plan, given: argparse.Namespace) -> None:
        assert plan.money is not None
        self._plan = plan
        self._given = given
        self._money = plan.money
        self._instruments = [load_instrument(one.pair, plan.instruments) for one in plan.pairs]
        self._console = Console()
        self._screen = Screen(
            [PairScreen(one.pair) for one in plan.pairs],
            MoneyScreen(decimals=decimals_of(self._instruments)),
        )
        self._report = plan.run / "flow.json"
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
            # Nobody's channel is open any more when the services say goodbye.
            async with Services(self._money) as services:
                opened = await self._until_stopped(self._start_and_show(supervisor, services))
                await supervisor.stop_stage(Stage.FLOW, self._say)
                if opened:
                    left = await drain(self._plan, services, supervisor.close_doors)
                    self._say(f"not drained: {left}" if left else "the books are settled")
            await supervisor.stop(self._say)
        self._say(f"stopped; the state is in {self._plan.run}, the next run goes on there")
        return 0

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work until it ends or a stop is asked for; raises what the work raises.

        Return whether the exchange had opened by then.
        """
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        task.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors
        return any(one.status is not None for one in self._screen.pairs)

    async def _start_and_show(self, supervisor: Supervisor, services: Services) -> None:
        await compile_kernels(self._console)
        started_ns = time.monotonic_ns()
        pairs = ", ".join(one.pair for one in self._plan.pairs)
        with self._console.status(f"starting {pairs}, the books, the risk service"):
            await supervisor.start()
            opened = [await self._opened(supervisor, one) for one in self._plan.pairs]
            await until_serving(supervisor, services)
            deposits = await fund(self._money, self._instruments)
            await supply_maker(services, self._instruments)
        spent_ms = (time.monotonic_ns() - started_ns) // 1_000_000
        count = sum(number for number, _ in opened)
        found = f"as it was after {count:,} executions" if count else "new"
        funds = (
            f"{deposits} deposits funded its accounts" if deposits else "its accounts have funds"
        )
        self._say(f"{pairs}: open, {found}; {funds}; started in {spent_ms / 1_000:.1f} s")
        self._report.unlink(missing_ok=True)
        if not self._given.no_flow:
            await supervisor.add(Process(FLOW, self._flow_arguments(), Stage.FLOW))
        self._say(lines_to_try(self._plan, opened[0][1]))
        await self._show(supervisor, services)

    async def _opened(self, supervisor: Supervisor, one: PairPlan) -> tuple[int, str]:
        """Wait for a pair; return its executions so far, and a price at which an order may rest."""
        async with AsyncClient(
            one.pair, target=one.target, market_data=self._plan.market_data, retry=_LOOK
        ) as client:
            status = await until_open(supervisor, client)
            last = (await client.ticker()).last_trade.price
        self._screen.of(one.pair).see_status(time.monotonic_ns(), status)
        instrument = next(known for known in self._instruments if known.pair == one.pair)
        whole = int(last.partition(".")[0]) if last else first_price(instrument)
        # A little below the market: inside of its band, and not taken at once.
        return int(status.committed_number), str(max(1, whole * 95 // 100))

    def _flow_arguments(self) -> tuple[str, ...]:
        arguments: tuple[str, ...] = ("-m", "holdfast.running.flow")
        for one in self._plan.pairs:
            arguments += ("--pair", f"{one.pair}={one.target}")
        arguments += ("--market-data", self._plan.market_data, "--report", str(self._report))
        arguments += ("--rate", str(self._given.flow_rate), "--seed", str(self._given.seed))
        if self._plan.instruments is not None:
            arguments += ("--instruments", str(self._plan.instruments))
        return arguments

    # The view.

    async def _show(self, supervisor: Supervisor, services: Services) -> None:
        watcher = Watcher(self._plan, self._screen, services, self._report)
        watching = asyncio.create_task(watcher.run())
        drawing = asyncio.create_task(self._draw(supervisor, watcher))
        try:
            done, _ = await asyncio.wait((watching, drawing), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (watching, drawing):
                task.cancel()
            await asyncio.gather(watching, drawing, return_exceptions=True)

    async def _draw(self, supervisor: Supervisor, watcher: Watcher) -> None:
        """Draw until the time is up: a live picture, or lines once a second where nobody looks."""
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
                watcher.look(supervisor)
                now_ns = time.monotonic_ns()
                if live is None:
                    for line in self._screen.lines():
                        self._say(line)
                else:
                    size = self._console.size
                    live.update(self._screen.picture(now_ns, size.width, size.height), refresh=True)
