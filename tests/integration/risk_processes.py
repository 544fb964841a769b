"""Two real pairs, real books and a real risk service: start, kill -9, restart, ask."""

import contextlib
import itertools
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import (
    ledger_pb2,
    ledger_pb2_grpc,
    order_entry_pb2,
    order_entry_pb2_grpc,
    risk_pb2,
    risk_pb2_grpc,
)
from ledgerd.chart import OwnerKind, Phase, Purpose, TransferKind
from ledgerd.database import EmbeddedPostgres
from tests.books import make_risk, risk_addresses
from tests.integration.exchange_processes import ROOT, PairProcesses, free_port

BTC, ETH = "BTC-USDT", "ETH-USDT"
UNIT = 10**8
DEADLINE_S = 180
"""Bounds a hang; nothing is measured against it."""

client_order_ids = itertools.count(1)


class Service:
    """One process with a port of its own."""

    def __init__(self, run: Path, name: str, *arguments: str) -> None:
        self.run, self.name, self.port = run, name, free_port()
        self.arguments = ("-m", name, *arguments, "--port", str(self.port))
        self.process: subprocess.Popen[bytes] | None = None
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def start(self) -> None:
        with (self.run / f"{self.name}.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.arguments], cwd=ROOT, stdout=output, stderr=output
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=DEADLINE_S)

    def await_health(self, service: str) -> None:
        """Return once the service is serving."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        for answer in stub.Watch(request, wait_for_ready=True, timeout=DEADLINE_S):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return

    def log(self) -> str:
        return (self.run / f"{self.name}.log").read_text()


class Books:
    """What tests ask of books, risk service and order entry, wherever they run."""

    books: ledger_pb2_grpc.LedgerServiceStub
    risk: risk_pb2_grpc.RiskServiceStub
    channels: dict[str, grpc.Channel]
    """To order entry, by pair."""

    def deposit(self, owner: int, asset: str, units: int, number: int) -> None:
        """Credit a trading account from custody."""
        names = [_name(0, asset, Purpose.CUSTODY), _name(owner, asset, Purpose.TRADING)]
        self.books.OpenAccounts(ledger_pb2.OpenAccountsRequest(names=names))
        legs = [
            ledger_pb2.TransferLeg(name=names[0], amount_units=-units),
            ledger_pb2.TransferLeg(name=names[1], amount_units=units),
        ]
        transfer = ledger_pb2.NewTransfer(
            id=number.to_bytes(16, "big"),
            kind=int(TransferKind.CORRECTION),  # type: ignore[arg-type]
            phase=int(Phase.SINGLE),  # type: ignore[arg-type]
            legs=legs,
            actor="test",
        )
        self.books.PostTransfers(ledger_pb2.PostTransfersRequest(transfers=[transfer]))

    def balances(self, owner: int) -> dict[tuple[str, str, str], int]:
        """Return an owner's balances by (purpose, asset, pair)."""
        request = ledger_pb2.ListBalancesRequest(
            owner_kind=ledger_pb2.OWNER_KIND_USER, owner_id=owner
        )
        answer = self.books.ListBalances(request, timeout=DEADLINE_S)
        return {
            (Purpose(item.name.purpose).name, item.name.asset, item.name.pair): item.amount_units
            for item in answer.balances
            if item.amount_units
        }

    def request(
        self, account: int, pair: str, asset: Any, units: int, **more: Any
    ) -> risk_pb2.RequestAllotmentResponse:
        """Ask for money, patiently."""
        request = risk_pb2.RequestAllotmentRequest(
            account=account,
            pair=pair,
            asset=asset,
            amount_units=units,
            **({"patience_ms": 4_000} | more),
        )
        return self.risk.RequestAllotment(request, timeout=DEADLINE_S)

    def recall(self, account: int, asset: str, units: int, pair: str = "") -> Any:
        request = risk_pb2.RecallFundsRequest(
            account=account, asset=asset, amount_units=units, pair=pair, patience_ms=4_000
        )
        return self.risk.RecallFunds(request, timeout=DEADLINE_S)

    def order(self, account: int, pair: str, side: Any, price: str, quantity: str) -> Any:
        """Enter a limit order that rests; return its report."""
        request = order_entry_pb2.SubmitOrderRequest(
            pair=pair,
            client_order_id=next(client_order_ids),
            side=side,
            order_type=enums.ORDER_TYPE_LIMIT,
            time_in_force=enums.TIME_IN_FORCE_GOOD_TILL_CANCELLED,
            price=price,
            quantity=quantity,
        )
        stub = order_entry_pb2_grpc.OrderEntryServiceStub(self.channels[pair])
        metadata = (("holdfast-account", str(account)),)
        return stub.SubmitOrder(request, metadata=metadata, timeout=DEADLINE_S).report

    def await_settled(self) -> None:
        """Return once the books have everything the engines said, and nothing is on its way."""
        while True:
            status = self.risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=DEADLINE_S)
            answer = self.books.ListSettlements(
                ledger_pb2.ListSettlementsRequest(), timeout=DEADLINE_S, wait_for_ready=True
            )
            settled = {item.pair: item for item in answer.settlements}
            for item in settled.values():
                assert item.state != ledger_pb2.SETTLEMENT_STATE_STOPPED, item.sentence
            done = all(
                settled[pair.pair].cursor == pair.committed_number == pair.cursor
                and pair.open_move_count == 0
                and not self.open_instructions(pair.pair)
                for pair in status.pairs
            )
            if done:
                return

    def open_instructions(self, pair: str) -> int:
        """Return how many instructions the books have that no engine answered."""
        request = ledger_pb2.ListInstructionsRequest(pair=pair)
        found = self.books.ListInstructions(request, timeout=DEADLINE_S).instructions
        return sum(not item.resolved for item in found)


class Exchange(Books):
    """Everything that money passes through."""

    def __init__(
        self,
        run: Path,
        segments: Path,
        asks: bool = False,
        headroom: int = 0,
        pairs: Sequence[str] = (BTC, ETH),
        instruments: Path | None = None,
        riskd: Sequence[str] = (),
    ) -> None:
        """Prepare; if `asks`, order entry asks for money by itself."""
        self.run = run
        self.pairs = {pair: PairProcesses(run / pair, segments, "os", pair) for pair in pairs}
        self.instruments = () if instruments is None else ("--instruments", str(instruments))
        follow: list[str] = list(self.instruments)
        for pair, processes in self.pairs.items():
            processes.run.mkdir()
            follow += ["--follow", f"{pair}={processes.target}"]
        self.ledgerd = Service(run, "ledgerd", "--run", str(run), *follow)
        self.postgres = EmbeddedPostgres(run / "postgres")
        ledger = f"127.0.0.1:{self.ledgerd.port}"
        self.riskd = Service(
            run,
            "riskd",
            *("--ledger", ledger, *risk_addresses(self.postgres)),
            *("--sticky", "0", "--headroom", str(headroom)),
            *riskd,
            *follow,
        )
        for processes in self.pairs.values():
            processes.entry_arguments = self.instruments
            if asks:
                # The machine may be busy; whoever is killed is noticed at once all the same.
                risk = ("--risk", f"127.0.0.1:{self.riskd.port}", "--risk-patience", "4000")
                processes.entry_arguments += risk
        self.books = ledger_pb2_grpc.LedgerServiceStub(self.ledgerd.channel)
        self.risk = risk_pb2_grpc.RiskServiceStub(self.riskd.channel)
        self.channels = {
            pair: grpc.insecure_channel(processes.target) for pair, processes in self.pairs.items()
        }

    def start(self) -> None:
        for processes in self.pairs.values():
            processes.start_engine(*self.instruments)
            processes.start_entry()
        self.ledgerd.start()
        for processes in self.pairs.values():
            processes.await_health()
        self.ledgerd.await_health("ledger")
        make_risk(self.postgres)
        self.start_riskd()

    def start_riskd(self) -> None:
        self.riskd.start()
        self.riskd.await_health("exchange.v1.RiskService")

    def end(self) -> None:
        for processes in self.pairs.values():
            for process in (processes.entry, processes.engine):
                if process is not None and process.poll() is None:
                    processes.kill(process)
        for service in (self.riskd, self.ledgerd):
            if service.process is not None and service.process.poll() is None:
                service.kill()
            service.channel.close()
        for channel in self.channels.values():
            channel.close()
        self.postgres.stop()


def _name(owner: int, asset: str, purpose: Purpose) -> ledger_pb2.AccountName:
    kind = OwnerKind.USER if owner else OwnerKind.EXCHANGE
    return ledger_pb2.AccountName(
        owner_kind=int(kind),  # type: ignore[arg-type]
        owner_id=owner,
        purpose=int(purpose),  # type: ignore[arg-type]
        asset=asset,
    )


@contextlib.contextmanager
def exchange(
    asks: bool = False,
    headroom: int = 0,
    pairs: Sequence[str] = (BTC, ETH),
    instruments: str = "",
    riskd: Sequence[str] = (),
) -> Iterator[Exchange]:
    """Give a running exchange, riskd with more arguments; everything is gone afterwards."""
    run = Path(tempfile.mkdtemp(prefix="holdfast-run-"))
    # PostgreSQL may run as another user, who has to reach its folder.
    run.chmod(0o755)
    segments = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    path = run / "instruments.toml" if instruments else None
    if path is not None:
        path.write_text(instruments)
    whole = Exchange(run, segments, asks, headroom, pairs, path, riskd)
    try:
        whole.start()
        yield whole
    finally:
        whole.end()
        shutil.rmtree(segments)
        shutil.rmtree(run, ignore_errors=True)
