"""Everything that money passes through, with a way in and out, for the tests of client and CLI."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

from grpc_health.v1 import health_pb2, health_pb2_grpc

from holdfast import MoneyClient, Retry
from ledgerd.custody.adapter import Payout
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody
from ledgerd.funds.desk import CHAIN_FILE, CHAIN_SEED
from tests.books import make_risk
from tests.integration.risk_processes import Exchange, Service

ALICE, BOB, CAROL, DAVE = 1, 2, 3, 4
OUTSIDE = "outside1"
QUICK = ("--custodian", "simulated", "--block-every", "10ms", "--confirmations", "2")
"""A chain that does not keep tests waiting."""
POLICY = ("--approval-above", "BTC=0.5,2", "--approval-above", "USDT=none")
UNSURE = Retry(patience_s=120.0, attempt_s=15.0)
HANG_S = 600
"""Bounds a hang; nothing is measured against it."""


def await_serving(service: Service, name: str) -> None:
    """Return once a service is serving."""
    stub = health_pb2_grpc.HealthStub(service.channel)
    request = health_pb2.HealthCheckRequest(service=name)
    for answer in stub.Watch(request, wait_for_ready=True, timeout=HANG_S):
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return


class MoneyExchange(Exchange):
    """Two pairs, books with the simulated custodian, and the risk service that counts limits."""

    def __init__(self, run: Path, segments: Path) -> None:
        super().__init__(run, segments)
        self._bare = self.ledgerd.arguments
        self.allow_fresh_addresses("0s")

    def start(self) -> None:
        """Start everything; on a busy machine a first start takes its time."""
        for processes in self.pairs.values():
            processes.start()
        self.ledgerd.start()
        for processes in self.pairs.values():
            processes.await_health()
        await_serving(self.ledgerd, "ledger")
        make_risk(self.postgres)
        self.riskd.start()
        await_serving(self.riskd, "exchange.v1.RiskService")

    def restart_ledgerd(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Stop the books in good order and start them again."""
        self.ledgerd.stop()
        meanwhile()
        self.ledgerd.start()
        await_serving(self.ledgerd, "ledger")

    def close_the_way_in(self) -> None:
        """Have no custodian, from ledgerd's next start on."""
        self.ledgerd.arguments = self._bare

    def pay_behind_the_books(self) -> None:
        """Let the custodian pay out what the books know nothing of."""
        chain = SimulatedCustody(self.run / CHAIN_FILE, CHAIN_SEED, ["BTC"], CALM)
        chain.broadcast(Payout(uuid4(), "BTC", OUTSIDE, 1))

    def allow_fresh_addresses(self, waiting: str) -> None:
        """Let listed addresses wait so long, from ledgerd's next start on."""
        risk = ("--risk", f"127.0.0.1:{self.riskd.port}")
        self.ledgerd.arguments = (*self._bare, *QUICK, *POLICY, "--address-wait", waiting, *risk)

    @property
    def targets(self) -> dict[str, Any]:
        """Return what a client has to be told."""
        return {
            "ledger": f"127.0.0.1:{self.ledgerd.port}",
            "risk": f"127.0.0.1:{self.riskd.port}",
            "pairs": {pair: processes.target for pair, processes in self.pairs.items()},
            "retry": UNSURE,
        }

    def client(self, account: int, actor: str = "", **more: Any) -> MoneyClient:
        """Return a client of these services."""
        return MoneyClient(account, actor=actor, **(self.targets | more))

    def bring(self, account: int, asset: str, amount: str, *, trading: str = "0") -> None:
        """Deposit so much, and move a part of it to trading."""
        with self.client(account) as money:
            address = money.deposit_address(asset).address
            paid = money.simulate_deposit(address, asset, amount)
            *_, last = money.follow_deposit(paid, watch=UNSURE)
            assert last.state == "credited", last
            if Decimal(trading):
                money.transfer(asset, trading)


@contextmanager
def money_exchange() -> Iterator[MoneyExchange]:
    """Give a running exchange with a way in and out; everything is gone afterwards."""
    run = Path(tempfile.mkdtemp(prefix="holdfast-run-"))
    # PostgreSQL may run as another user, who has to reach its folder.
    run.chmod(0o755)
    segments = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    whole = MoneyExchange(run, segments)
    try:
        whole.start()
        yield whole
    finally:
        whole.end()
        shutil.rmtree(segments)
        shutil.rmtree(run, ignore_errors=True)
