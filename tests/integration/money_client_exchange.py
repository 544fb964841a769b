"""Everything that money passes through, with a way in and out, for the tests of client and CLI."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from holdfast import MoneyClient, Retry
from holdfast.money.verification import PATIENT
from tests.integration.risk_processes import Exchange

ALICE, BOB, CAROL, DAVE = 1, 2, 3, 4
OUTSIDE = "outside1"
QUICK = ("--custodian", "simulated", "--block-every", "10ms", "--confirmations", "2")
"""A chain that does not keep tests waiting."""
POLICY = ("--approval-above", "BTC=0.5,2", "--approval-above", "USDT=none")
UNSURE = Retry(patience_s=60.0, attempt_s=5.0)


class MoneyExchange(Exchange):
    """Two pairs, books with the simulated custodian, and the risk service that counts limits."""

    def __init__(self, run: Path, segments: Path) -> None:
        super().__init__(run, segments)
        self._bare = self.ledgerd.arguments
        self.allow_fresh_addresses("0s")

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
            *_, last = money.follow_deposit(paid, watch=PATIENT)
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
