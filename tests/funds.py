"""FundsService for tests: a real server and client, real books, a simulated chain, one clock."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import grpc

from exchange.service import refusal_in
from exchange.v1 import funds_pb2, funds_pb2_grpc, ledger_pb2
from ledgerd.custody.adapter import Custody
from ledgerd.custody.proof import verify_money
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody
from ledgerd.doors.funds_server import FundsServicer
from ledgerd.funds.desk import Desk
from ledgerd.funds.pipelines import Pipelines
from ledgerd.funds.risk_link import Limiter
from ledgerd.funds.settings import SECOND_NS, FundsSettings
from tests.books import PAIR, TestBooks, fresh_books

DEADLINE_S = 20
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
STATE = grpc.StatusCode.FAILED_PRECONDITION
AWAY = grpc.StatusCode.UNAVAILABLE
NOBODY = bytes(15) + b"\xff"
BEYOND_INT64 = "92233720368.54775808"
BEYOND_BOUND = "46116860184.27387905"
OUTSIDE = "outside1"
NEEDED = 2
WAIT_NS = 3_600 * SECOND_NS
SETTINGS = FundsSettings(
    custodian="simulated",
    address_wait_ns=WAIT_NS,
    confirmations_else=NEEDED,
    approval_above={"BTC": ("0.5", "5")},
)


@dataclass
class FundsDoor:
    """A client of the servicer, with its desk and rounds."""

    books: TestBooks
    desk: Desk
    pipelines: Pipelines
    stub: Any = None
    older: str = ""

    def answer(self, name: str, **fields: Any) -> Any:
        request = getattr(funds_pb2, f"{name}Request")(**fields)
        return getattr(self.stub, name)(request, timeout=DEADLINE_S)

    def refused(self, name: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
        """Return status and reason of a call that must be refused."""
        try:
            answer = self.answer(name, **fields)
        except grpc.RpcError as error:
            info = refusal_in(error)
            return error.code(), info.reason if info else ""
        raise AssertionError(f"{name} was not refused: {answer}")

    def new_id(self) -> bytes:
        return self.books.new_id().bytes

    def rounds(self, count: int = 1) -> None:
        """Let a block be found and everything go round."""
        for _ in range(count):
            for name, work in (
                ("blocks", self.pipelines.block_round),
                ("deposits", self.pipelines.deposit_round),
                ("approvals", self.pipelines.expiry_round),
                ("withdrawals", self.pipelines.withdrawal_round),
                ("limits", self.pipelines.release_round),
            ):
                self.pipelines.tried(name, work)

    def paid(self, address: str, amount: str, asset: str = "BTC") -> str:
        """Let somebody outside pay; return the transaction's id."""
        given = {"address": address, "asset": asset, "amount": amount}
        return str(self.answer("SimulateDeposit", id=uuid4().bytes, **given).transaction_id)

    def funded(self, owner: int, amount: str, asset: str = "BTC") -> str:
        """Deposit for an owner to the end; return the transaction's id."""
        address = self.answer("GetDepositAddress", owner_id=owner, asset=asset).address
        paid = self.paid(address, amount, asset)
        self.rounds(NEEDED + 1)
        return paid

    def listed(self, owner: int, address: str = OUTSIDE, asset: str = "BTC") -> Any:
        """List an address and let it wait long enough."""
        given = {"owner_id": owner, "asset": asset, "address": address, "actor": "alice"}
        made = self.answer("AddWithdrawalAddress", id=self.new_id(), **given)
        self.books.clock.now_ns += WAIT_NS
        return made.address

    def wanted(self, owner: int = 1, **other: Any) -> dict[str, Any]:
        """Return the fields of a request to withdraw."""
        given = {"id": self.new_id(), "owner_id": owner, "asset": "BTC", "amount": "0.25"}
        return given | {"address": OUTSIDE, "requester": "alice"} | other

    def state(self, made: bytes) -> str:
        found = self.answer("GetWithdrawal", id=made).withdrawal
        name = funds_pb2.WithdrawalState.Name(found.state)
        return str(name.removeprefix("WITHDRAWAL_STATE_"))

    def balances(self, owner: int) -> dict[tuple[str, str], int]:
        """Return an owner's balances that are not zero, by purpose and asset."""
        query = (
            "SELECT purpose, asset, amount FROM balances JOIN accounts ON id = account_id"
            " WHERE owner_id = %s AND owner_kind = 1 AND amount <> 0"
        )
        with self.books.engine.connect() as connection:
            rows = connection.exec_driver_sql(query, (owner,)).fetchall()
        names = ledger_pb2.AccountPurpose
        return {
            (names.Name(purpose).removeprefix("ACCOUNT_PURPOSE_"), asset): amount
            for purpose, asset, amount in rows
        }


@contextmanager
def door_over(
    books: TestBooks,
    custody: Custody,
    settings: FundsSettings = SETTINGS,
    limiter: Limiter | None = None,
) -> Iterator[FundsDoor]:
    """Give the door to books and a custodian."""
    desk = Desk(books.ledger, books.engine, books.clock, settings, custody, limiter)
    door = FundsDoor(books, desk, Pipelines(desk, lambda: door.older))
    servicer = FundsServicer(desk, door.pipelines, lambda: door.older)
    server = grpc.server(ThreadPoolExecutor(2))
    funds_pb2_grpc.add_FundsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            door.stub = funds_pb2_grpc.FundsServiceStub(channel)
            yield door
    finally:
        server.stop(None).wait()


@contextmanager
def fresh_door(
    settings: FundsSettings = SETTINGS, limiter: Limiter | None = None
) -> Iterator[FundsDoor]:
    """Give a door to empty books and an empty chain of BTC and USDT."""
    with (
        TemporaryDirectory(prefix="holdfast-chain-") as folder,
        fresh_books(custodian=True) as books,
    ):
        books.ledger.list_pair(PAIR)
        custody = SimulatedCustody(Path(folder) / "chain.log", 1, ["BTC", "USDT"], CALM)
        with door_over(books, custody, settings, limiter) as door:
            yield door


@contextmanager
def rich_door() -> Iterator[FundsDoor]:
    """Give a door at which owner 1 has ten coins and an address that waited long enough."""
    with fresh_door() as door:
        door.funded(1, "10")
        door.listed(1)
        yield door
        assert verify_money(door.books.engine) == []


@contextmanager
def untouched_door() -> Iterator[FundsDoor]:
    """Give the same to calls that must not change anything."""
    with rich_door() as door:
        yield door
        assert len(door.answer("ListFundsEvents").events) == 3
        assert door.balances(1) == {("FUNDING", "BTC"): 1_000_000_000}
