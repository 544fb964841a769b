"""An order that lacks money, from its refusal to its acceptance, against one that lacks none.

The whole way through real processes: the engine refuses, order entry asks the risk service, the
ledger commits the move to PostgreSQL, the engine takes the money in, the risk service hears it from
the feed, order entry enters the order again. Wall time of single calls over gRPC, one after the
other; the three kinds of order take turns, and each shortage is that of an account that had nothing
here.
"""

import asyncio
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count as counter
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.harness import Rounds, Row, percentile, span
from bench.pair import Pair
from exchange.config import load_instrument
from exchange.v1 import (
    enums_pb2,
    ledger_pb2,
    ledger_pb2_grpc,
    order_entry_pb2,
    order_entry_pb2_grpc,
    risk_pb2,
    risk_pb2_grpc,
)
from ledgerd.chart import OwnerKind, Phase, Purpose, TransferKind
from ledgerd.database import RISK_DATABASE, RISK_OWNER, RISK_SERVICE, EmbeddedPostgres

PAIR: Final = "BTC-USDT"
LOOPBACK: Final = "127.0.0.1"
UNIT: Final = 10**8
EACH_UNITS: Final = 10_000 * UNIT
RICH_UNITS: Final = 10_000_000 * UNIT
AT_ONCE: Final = 200
"""Accounts that one request of the ledger credits."""
START_S: Final = 300
"""The kernel may have to be compiled first."""
PLAIN: Final = "an order that lacks nothing"
SHORT: Final = "one that needs an allotment"
NEXT: Final = "the one after it"
TURNS: Final = (SHORT, NEXT, PLAIN)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Exchange:
    """One pair with everything that money passes through."""

    def __init__(self, stack: ExitStack) -> None:
        self.run = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
        # PostgreSQL may run as another user, who has to reach its folder.
        self.run.chmod(0o755)
        stack.callback(shutil.rmtree, self.run, ignore_errors=True)
        ledger, risk, orders = (f"{LOOPBACK}:{_free_port()}" for _ in range(3))
        self.orders = orders
        self._processes: list[subprocess.Popen[bytes]] = []
        stack.callback(self._stop)
        self.pair = stack.enter_context(Pair("os", load_instrument(PAIR)))
        port = orders.rpartition(":")[2]
        asking = ("--risk", risk, "--risk-patience", "4000")
        self.pair.start("engine.entry_server", "--ring", "0", "--port", port, *asking)
        _await(orders, "orders")
        follow = ("--follow", f"{PAIR}={orders}")
        self._start("ledgerd", ledger, "--run", str(self.run), *follow)
        postgres = EmbeddedPostgres(self.run / "postgres")
        _await(ledger, "ledger")
        postgres.create(RISK_DATABASE, owner=RISK_OWNER, service=RISK_SERVICE)
        url = postgres.url(RISK_OWNER, RISK_DATABASE).render_as_string(hide_password=False)
        self._start("riskd", risk, "--ledger", ledger, "--database-url", url, *follow)
        _await(risk, "exchange.v1.RiskService")
        self.books = ledger_pb2_grpc.LedgerServiceStub(grpc.insecure_channel(ledger))
        self.risk = risk_pb2_grpc.RiskServiceStub(grpc.insecure_channel(risk))
        self._requests = counter(1)

    def _start(self, module: str, address: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, "--port", address.rpartition(":")[2], *arguments]
        with (self.run / f"{module}.log").open("ab") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait()

    def bring(self, account: int, units: int) -> None:
        """Have quote units of an account in the engine."""
        request = risk_pb2.RequestAllotmentRequest(
            account=account,
            pair=PAIR,
            asset=enums_pb2.ASSET_QUOTE,
            amount_units=units,
            patience_ms=4_000,
        )
        answer = self.risk.RequestAllotment(request)
        assert answer.reason == risk_pb2.RISK_REASON_UNSPECIFIED, answer.message

    def deposit(self, owners: range, units: int) -> None:
        """Credit trading accounts with quote units."""
        for begin in range(0, len(owners), AT_ONCE):
            part = owners[begin : begin + AT_ONCE]
            names = [_name(0, Purpose.CUSTODY), *(_name(n, Purpose.TRADING) for n in part)]
            self.books.OpenAccounts(ledger_pb2.OpenAccountsRequest(names=names))
            transfers = [
                ledger_pb2.NewTransfer(
                    id=next(self._requests).to_bytes(16, "big"),
                    kind=int(TransferKind.CORRECTION),  # type: ignore[arg-type]
                    phase=int(Phase.SINGLE),  # type: ignore[arg-type]
                    legs=[
                        ledger_pb2.TransferLeg(name=names[0], amount_units=-units),
                        ledger_pb2.TransferLeg(name=name, amount_units=units),
                    ],
                    actor="bench",
                )
                for name in names[1:]
            ]
            self.books.PostTransfers(ledger_pb2.PostTransfersRequest(transfers=transfers))


def _name(owner: int, purpose: Purpose) -> ledger_pb2.AccountName:
    kind = OwnerKind.USER if owner else OwnerKind.EXCHANGE
    return ledger_pb2.AccountName(
        owner_kind=int(kind),  # type: ignore[arg-type]
        owner_id=owner,
        purpose=int(purpose),  # type: ignore[arg-type]
        asset="USDT",
    )


def _await(address: str, service: str) -> None:
    """Return once a service says that it serves."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        for answer in stub.Watch(request, wait_for_ready=True, timeout=START_S):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


async def _turns(address: str, rich: int, owners: range) -> dict[str, list[float]]:
    """Send, for each owner, its first order, its second, and one of somebody with money."""
    taken: dict[str, list[float]] = {kind: [] for kind in TURNS}
    ids = counter(time.time_ns())
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with aio.insecure_channel(address, options=options) as channel:
        stub: Any = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
        for owner in owners:
            for kind, account in zip(TURNS, (owner, owner, rich), strict=True):
                order = order_entry_pb2.SubmitOrderRequest(
                    pair=PAIR,
                    client_order_id=next(ids),
                    side=enums_pb2.SIDE_BUY,
                    order_type=enums_pb2.ORDER_TYPE_LIMIT,
                    time_in_force=enums_pb2.TIME_IN_FORCE_GOOD_TILL_CANCELLED,
                    price="50000",
                    quantity="0.001",
                )
                metadata = (("holdfast-account", str(account)),)
                start_ns = time.perf_counter_ns()
                answer = await stub.SubmitOrder(order, metadata=metadata)
                taken[kind].append((time.perf_counter_ns() - start_ns) / 1e9)
                kept = answer.report.kind == enums_pb2.EXECUTION_KIND_ACCEPTED
                assert kept, f"{kind}: {answer.report.message}"
            # Others take in what was said meanwhile: nothing is measured against their work.
            await asyncio.sleep(0.01)
    return taken


@contextmanager
def _exchange() -> Iterator[Exchange]:
    with ExitStack() as stack:
        yield Exchange(stack)


def run_allotment(rounds: Rounds) -> list[Row]:
    """Measure an order that needs an allotment, and the one after it."""
    each = rounds.size(100, 40)
    found: dict[str, list[list[float]]] = {kind: [] for kind in TURNS}
    with _exchange() as exchange:
        rich, owners = 1, range(2, 2 + each * (rounds.count + 1))
        exchange.deposit(range(rich, rich + 1), RICH_UNITS)
        exchange.bring(rich, RICH_UNITS)
        exchange.deposit(owners, EACH_UNITS)
        for turn in range(rounds.count + 1):
            part = owners[turn * each : (turn + 1) * each]
            taken = uvloop.run(_turns(exchange.orders, rich, part))
            for kind in TURNS:
                if turn:  # The first round warms up.
                    found[kind].append(taken[kind])
    rows = []
    for kind, must in ((SHORT, ""), (NEXT, "1.5")):
        for at in (50, 99):
            plain, measured = (
                statistics.median(percentile(values, at) for values in found[name])
                for name in (PLAIN, kind)
            )
            rows.append(
                Row(
                    f"{kind}, p{at}",
                    span(measured),
                    f"{PLAIN} {span(plain)}",
                    measured / plain,
                    must,
                    f"{each} accounts a round; ledger in PostgreSQL, synchronous commit",
                )
            )
    return rows
