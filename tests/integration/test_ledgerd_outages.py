"""Two real engines, one ledgerd, a database that is away for a while: each pair exactly once."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.durability.execution_reader import ExecutionLogReader
from exchange import records
from exchange.enums import Asset, ExecutionKind, Side
from exchange.service import refusal_in
from exchange.v1 import enums_pb2, ledger_pb2
from holdfast.blocking import Client
from ledgerd.chart import Purpose
from ledgerd.database import EmbeddedPostgres
from tests.integration.exchange_processes import PairProcesses
from tests.integration.test_ledgerd import EACH_UNITS, OWNERS, WAIT_S, Ledgerd, name

pytestmark = pytest.mark.integration

PAIRS = ("BTC-USDT", "ETH-USDT")
ASSETS = ("BTC", "ETH", "USDT")
WAITING = ledger_pb2.SETTLEMENT_STATE_WAITING_FOR_DATABASE


class Followed(Ledgerd):
    """One ledgerd over two pairs."""

    def __init__(self, run: Path, pairs: list[PairProcesses]) -> None:
        super().__init__(run, *(f"{pair.pair}={pair.target}" for pair in pairs))

    def settlements(self) -> dict[str, ledger_pb2.Settlement]:
        request = ledger_pb2.ListSettlementsRequest()
        answer = self.books.ListSettlements(request, timeout=WAIT_S, wait_for_ready=True)
        return {one.pair: one for one in answer.settlements}


@contextmanager
def both() -> Iterator[tuple[list[PairProcesses], Followed]]:
    """Give two pairs and their books; everything is gone afterwards."""
    with ExitStack() as stack:
        run = Path(tempfile.mkdtemp(prefix="holdfast-run-"))
        stack.callback(shutil.rmtree, run, ignore_errors=True)
        # PostgreSQL may run as another user, who has to reach its folder.
        run.chmod(0o755)
        pairs = []
        for pair in PAIRS:
            segments = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
            stack.callback(shutil.rmtree, segments)
            processes = PairProcesses(run, segments, "fsync", pair)
            stack.callback(ended, processes)
            processes.start()
            pairs.append(processes)
        ledgerd = Followed(run, pairs)
        stack.callback(EmbeddedPostgres(run / "postgres").stop)
        stack.callback(ledgerd.channel.close)
        ledgerd.start()
        stack.callback(ledgerd.kill)
        for processes in pairs:
            processes.await_health()
        ledgerd.await_health()
        yield pairs, ledgerd


def ended(pair: PairProcesses) -> None:
    for process in (pair.entry, pair.engine):
        if process is not None and process.poll() is None:
            pair.kill(process)


def asked_credits(first: int, units: int) -> ledger_pb2.PostTransfersRequest:
    """Ask for money of every asset for every owner, from custody."""
    request = ledger_pb2.PostTransfersRequest()
    for place, (owner, asset) in enumerate((o, a) for o in OWNERS for a in ASSETS):
        transfer = request.transfers.add(
            id=(first + place).to_bytes(16, "big"),
            kind=ledger_pb2.TRANSFER_KIND_CORRECTION,
            phase=ledger_pb2.TRANSFER_PHASE_SINGLE,
        )
        transfer.legs.add(name=name(0, asset, Purpose.CUSTODY), amount_units=-units)
        transfer.legs.add(name=name(owner, asset, Purpose.TRADING), amount_units=units)
    return request


def allotted(ledgerd: Followed, pair: str, operator: Client) -> None:
    place = 3_000 + 100 * PAIRS.index(pair)
    for owner in OWNERS:
        for asset in (enums_pb2.ASSET_BASE, enums_pb2.ASSET_QUOTE):
            place += 1
            request = ledger_pb2.AllotTradingFundsRequest(
                id=place.to_bytes(16, "big"),
                pair=pair,
                owner_id=owner,
                asset=asset,
                amount_units=EACH_UNITS,
            )
            ledgerd.books.AllotTradingFunds(request)
    listed = ledgerd.books.ListInstructions(ledger_pb2.ListInstructionsRequest(pair=pair))
    for told in listed.instructions:
        report = operator.allot_funds(
            told.owner_id, Asset(told.asset), told.amount, told.transfer_number
        )
        assert ExecutionKind(report.executions[0].kind) == ExecutionKind.ALLOTTED


def traded(maker: Client, taker: Client, count: int) -> None:
    for _ in range(count):
        maker.submit(Side.SELL, price="3000.00", quantity="0.00200")
        taker.submit(Side.BUY, price="3000.00", quantity="0.00200")


def last_trade(pair: PairProcesses) -> tuple[int, int]:
    """Return where a pair's log ends, and its last trade."""
    log = ExecutionLogReader.open(pair.run / pair.pair.lower() / "executions")
    kinds = records.kind_of(log.read(0, 100_000))
    return log.committed(), int(np.flatnonzero(kinds == ExecutionKind.TRADE)[-1])


def unavailable(ledgerd: Followed, request: ledger_pb2.PostTransfersRequest) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ledgerd.books.PostTransfers(request, timeout=WAIT_S)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    info = refusal_in(caught.value)
    assert info is not None
    assert info.reason == "DATABASE_UNAVAILABLE"


def await_not_serving(ledgerd: Followed) -> None:
    stub = health_pb2_grpc.HealthStub(ledgerd.channel)
    for answer in stub.Watch(health_pb2.HealthCheckRequest(service="ledger"), timeout=WAIT_S):
        if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            return


def test_two_pairs_go_on_exactly_once_after_a_database_that_was_away() -> None:
    with both() as (pairs, ledgerd), ExitStack() as stack:
        names = [name(0, asset, Purpose.CUSTODY) for asset in ASSETS]
        names += [name(owner, asset, Purpose.TRADING) for owner in OWNERS for asset in ASSETS]
        ledgerd.books.OpenAccounts(ledger_pb2.OpenAccountsRequest(names=names))
        ledgerd.books.PostTransfers(asked_credits(1_000, 4 * EACH_UNITS))
        makers: list[Client] = []
        takers: list[Client] = []
        for pair in pairs:
            with Client(pair.pair, target=pair.target) as operator:
                allotted(ledgerd, pair.pair, operator)
            for owner, clients in ((1, makers), (2, takers)):
                client = Client(pair.pair, owner, target=pair.target)
                clients.append(stack.enter_context(client))
        postgres = EmbeddedPostgres(ledgerd.run / "postgres")
        for step in range(3):
            for place in range(2):
                traded(makers[place], takers[place], 20 + place)
            # In the middle of settlement: nothing waits for it to catch up.
            postgres.stop("immediate")
            for place in range(2):
                traded(takers[place], makers[place], 5)
            asked = asked_credits(10_000 * (step + 1), 7)
            unavailable(ledgerd, asked)
            while {one.state for one in ledgerd.settlements().values()} != {WAITING}:
                pass
            await_not_serving(ledgerd)
            postgres.start()
            ledgerd.await_health()
            first = ledgerd.books.PostTransfers(asked, timeout=WAIT_S)
            second = ledgerd.books.PostTransfers(asked, timeout=WAIT_S)
            assert all(one.repeated for one in second.transfers)
            assert [one.transfer_id for one in first.transfers] == [
                one.transfer_id for one in second.transfers
            ]
        for pair in pairs:
            end, trade = last_trade(pair)
            while True:
                shown = ledgerd.settlements()[pair.pair]
                assert shown.state != ledger_pb2.SETTLEMENT_STATE_STOPPED, shown.sentence
                if shown.cursor >= end and shown.checked_number > trade:
                    break
        found = ledgerd.books.VerifyBooks(ledger_pb2.VerifyBooksRequest(), timeout=WAIT_S)
        assert list(found.complaints) == []
        request = ledger_pb2.ListBalancesRequest(owner_kind=ledger_pb2.OWNER_KIND_USER, owner_id=1)
        held = {
            (one.name.asset, one.name.pair, int(one.name.purpose)): one.amount_units
            for one in ledgerd.books.ListBalances(request).balances
        }
        # Owner 1 sold 20 or 21 a step and bought 5, each of 0.002 coins.
        for place, (pair_name, asset) in enumerate(zip(PAIRS, ASSETS, strict=False)):
            sold = 3 * (20 + place - 5) * 200_000
            assert held[asset, pair_name, Purpose.ALLOTTED] == EACH_UNITS - sold
        assert held["USDT", "", Purpose.TRADING] == 2 * EACH_UNITS + 3 * 7
