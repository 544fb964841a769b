"""Real engine, real ledgerd, real PostgreSQL: killed under load, the books are the engine's."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.durability.execution_reader import ExecutionLogReader
from exchange import records
from exchange.enums import Asset, ExecutionKind, Side
from exchange.v1 import enums_pb2, ledger_pb2, ledger_pb2_grpc
from holdfast.blocking import Client
from ledgerd.chart import OwnerKind, Phase, Purpose, TransferKind
from ledgerd.database import SUPERUSER, EmbeddedPostgres, connect
from tests.integration.exchange_processes import (
    PAIR,
    ROOT,
    PairProcesses,
    free_port,
    pair_processes,
)

pytestmark = pytest.mark.integration

OWNERS = (1, 2)
EACH_UNITS = 10**12
WAIT_S = 240
"""Bounds a wait on a machine that is busy with other things; nothing is asserted about it."""


class Ledgerd:
    """One ledgerd process over a run folder."""

    def __init__(self, run: Path, *follow: str) -> None:
        """Follow pairs, each given as PAIR=TARGET."""
        self.run = run
        self.follow = [word for one in follow for word in ("--follow", one)]
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.books = ledger_pb2_grpc.LedgerServiceStub(self.channel)

    def start(self) -> None:
        with (self.run / "ledgerd.log").open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ledgerd", "--run", str(self.run)),
                    *(*self.follow, "--port", str(self.port)),
                ],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=WAIT_S)

    def await_health(self) -> None:
        """Return once the books can be used."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service="ledger")
        for answer in stub.Watch(request, wait_for_ready=True, timeout=WAIT_S):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return

    def await_cursor(self, number: int) -> None:
        """Return once everything below a number is settled; asks again as often as answered."""
        while True:
            answer = self.books.ListSettlements(
                ledger_pb2.ListSettlementsRequest(), timeout=WAIT_S, wait_for_ready=True
            )
            shown = answer.settlements[0]
            assert shown.state != ledger_pb2.SETTLEMENT_STATE_STOPPED, shown.sentence
            if shown.cursor >= number:
                return

    def await_settlement(self, condition: Callable[[ledger_pb2.Settlement], bool]) -> str:
        """Return the sentence once the settlement of the pair is so."""
        while True:
            answer = self.books.ListSettlements(
                ledger_pb2.ListSettlementsRequest(), timeout=WAIT_S, wait_for_ready=True
            )
            if condition(answer.settlements[0]):
                return answer.settlements[0].sentence

    def logs(self) -> str:
        return (self.run / "ledgerd.log").read_text()


@contextmanager
def whole() -> Iterator[tuple[PairProcesses, Ledgerd]]:
    """Give a pair and its books; everything is gone afterwards."""
    with TemporaryDirectory(prefix="holdfast-run-") as folder:
        # PostgreSQL may run as another user, who has to reach its folder.
        run = Path(folder)
        run.chmod(0o755)
        with pair_processes(run) as pair:
            ledgerd = Ledgerd(run, f"{PAIR}={pair.target}")
            try:
                pair.start()
                ledgerd.start()
                pair.await_health()
                ledgerd.await_health()
                yield pair, ledgerd
            finally:
                if ledgerd.process is not None and ledgerd.process.poll() is None:
                    ledgerd.kill()
                ledgerd.channel.close()
                EmbeddedPostgres(run / "postgres").stop()


def name(owner: int, asset: str, purpose: Purpose) -> ledger_pb2.AccountName:
    kind = OwnerKind.USER if owner else OwnerKind.EXCHANGE
    return ledger_pb2.AccountName(
        owner_kind=int(kind),  # type: ignore[arg-type]
        owner_id=owner,
        purpose=int(purpose),  # type: ignore[arg-type]
        asset=asset,
    )


def deposited(books: ledger_pb2_grpc.LedgerServiceStub) -> None:
    assets = ("BTC", "USDT")
    names = [name(0, asset, Purpose.CUSTODY) for asset in assets]
    names += [name(owner, asset, Purpose.TRADING) for owner in OWNERS for asset in assets]
    books.OpenAccounts(ledger_pb2.OpenAccountsRequest(names=names))
    transfers = []
    for place, (owner, asset) in enumerate((o, a) for o in OWNERS for a in assets):
        legs = [
            ledger_pb2.TransferLeg(
                name=name(0, asset, Purpose.CUSTODY), amount_units=-2 * EACH_UNITS
            ),
            ledger_pb2.TransferLeg(
                name=name(owner, asset, Purpose.TRADING), amount_units=2 * EACH_UNITS
            ),
        ]
        transfers.append(
            ledger_pb2.NewTransfer(
                id=(1_000 + place).to_bytes(16, "big"),
                kind=int(TransferKind.CORRECTION),  # type: ignore[arg-type]
                phase=int(Phase.SINGLE),  # type: ignore[arg-type]
                legs=legs,
            )
        )
    books.PostTransfers(ledger_pb2.PostTransfersRequest(transfers=transfers))


def allotted(ledgerd: Ledgerd, operator: Client) -> None:
    """Have the books give instructions, and hand them to the engine as riskd will."""
    place = 0
    for owner in OWNERS:
        for asset in (enums_pb2.ASSET_BASE, enums_pb2.ASSET_QUOTE):
            place += 1
            request = ledger_pb2.AllotTradingFundsRequest(
                id=(2_000 + place).to_bytes(16, "big"),
                pair=PAIR,
                owner_id=owner,
                asset=asset,
                amount_units=EACH_UNITS,
            )
            assert ledgerd.books.AllotTradingFunds(request).transfer_number == place
    listed = ledgerd.books.ListInstructions(ledger_pb2.ListInstructionsRequest(pair=PAIR))
    for told in listed.instructions:
        report = operator.allot_funds(
            told.owner_id, Asset(told.asset), told.amount, told.transfer_number
        )
        assert ExecutionKind(report.executions[0].kind) == ExecutionKind.ALLOTTED


def traded(makers: Client, takers: Client, count: int) -> None:
    for _ in range(count):
        makers.submit(Side.SELL, price="50000.00", quantity="0.00100")
        takers.submit(Side.BUY, price="50000.00", quantity="0.00100")


def test_the_books_follow_an_engine_through_kills_of_ledgerd_and_database() -> None:
    with whole() as (pair, ledgerd):
        deposited(ledgerd.books)
        with (
            Client(PAIR, target=pair.target) as operator,
            Client(PAIR, 1, target=pair.target) as one,
            Client(PAIR, 2, target=pair.target) as two,
        ):
            allotted(ledgerd, operator)
            for step in range(4):
                traded(one, two, 30)
                if step == 1:
                    EmbeddedPostgres(ledgerd.run / "postgres").stop("immediate")
                ledgerd.kill()
                traded(two, one, 10)
                ledgerd.start()
                traded(one, two, 10)
            pair.kill(pair.engine)
            pair.start_engine()
            pair.await_health()
            traded(one, two, 10)
        log = ExecutionLogReader.open(pair.run / PAIR.lower() / "executions")
        ledgerd.await_health()
        ledgerd.await_cursor(log.committed())
        # Both engines' lives and all of ledgerd's are covered by one digest of the engine.
        trades = records.kind_of(log.read(0, 100_000)) == ExecutionKind.TRADE
        last = int(np.flatnonzero(trades)[-1])
        ledgerd.await_settlement(lambda shown: shown.checked_number > last)
        found = ledgerd.books.VerifyBooks(ledger_pb2.VerifyBooksRequest(), timeout=WAIT_S)
        assert list(found.complaints) == []
        balance = ledgerd.books.GetTrialBalance(ledger_pb2.GetTrialBalanceRequest())
        assert balance.balanced
        sums = {(line.asset, int(line.purpose)): line.amount_units for line in balance.lines}
        assert sums["USDT", Purpose.FEES] > 0
        assert sums["USDT", Purpose.SUSPENSE] == 0
        # Owner 1 sold 4·30+4·10+10 and bought 4·10, each of 0.001 coins.
        request = ledger_pb2.ListBalancesRequest(owner_kind=ledger_pb2.OWNER_KIND_USER, owner_id=1)
        held = {
            (one.name.asset, int(one.name.purpose)): one.amount_units
            for one in ledgerd.books.ListBalances(request).balances
        }
        assert held["BTC", Purpose.ALLOTTED] == EACH_UNITS - (170 - 40) * 100_000
        assert ledgerd.stop() == 0
        assert not EmbeddedPostgres(ledgerd.run / "postgres").running()


def test_books_that_somebody_changed_are_noticed_and_settled_no_further() -> None:
    with whole() as (pair, ledgerd):
        deposited(ledgerd.books)
        with (
            Client(PAIR, target=pair.target) as operator,
            Client(PAIR, 1, target=pair.target) as one,
            Client(PAIR, 2, target=pair.target) as two,
        ):
            allotted(ledgerd, operator)
            traded(one, two, 3)
            ledgerd.await_settlement(lambda shown: shown.checked_number > 8 + 3)
            ledgerd.kill()
            postgres = EmbeddedPostgres(ledgerd.run / "postgres")
            thief = connect(postgres.url(SUPERUSER), 1)
            with thief.begin() as connection:
                # From one trader to the other, so that no sum shows it.
                connection.exec_driver_sql(
                    "UPDATE balances SET amount = amount + CASE owner_id WHEN 1 THEN 5 ELSE -5 END"
                    " FROM accounts WHERE id = account_id AND purpose = 3 AND asset = 'BTC'"
                )
            thief.dispose()
            ledgerd.start()
            ledgerd.await_health()
            stopped = ledger_pb2.SETTLEMENT_STATE_STOPPED
            sentence = ledgerd.await_settlement(lambda shown: shown.state == stopped)
            assert "books and engine of BTC-USDT differ at execution" in sentence
            assert sentence in ledgerd.logs()
            # The engine does not care: its traders go on, and what they do waits in its log.
            traded(one, two, 1)


def test_a_database_restored_from_a_backup_is_refused() -> None:
    with whole() as (_, ledgerd):
        deposited(ledgerd.books)
        assert ledgerd.stop() == 0
        postgres = EmbeddedPostgres(ledgerd.run / "postgres")
        backup = ledgerd.run / "backup"
        subprocess.run(["cp", "-a", str(postgres.data), str(backup)], check=True)
        ledgerd.start()
        ledgerd.await_health()
        more = ledger_pb2.OpenAccountsRequest(names=[name(3, "BTC", Purpose.TRADING)])
        ledgerd.books.OpenAccounts(more, wait_for_ready=True, timeout=WAIT_S)
        assert ledgerd.stop() == 0
        subprocess.run(["rm", "-r", str(postgres.data)], check=True)
        backup.rename(postgres.data)
        ledgerd.start()
        assert ledgerd.process is not None
        assert ledgerd.process.wait(timeout=WAIT_S) == 1
        assert "the database is older than these books" in ledgerd.logs()
