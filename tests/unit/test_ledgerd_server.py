"""LedgerService without a network: every call, what it refuses, and a database that goes away."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc_testing
import pytest

from exchange.enums import Asset, ExecutionKind
from exchange.service import ServerOptions, refusal_in
from exchange.v1 import enums_pb2, ledger_pb2, ledger_pb2_grpc
from ledgerd.chart import OwnerKind, Phase, Purpose, TransferKind
from ledgerd.custody.journal import MoneyBooks
from ledgerd.database import OWNER, SERVICE, EmbeddedPostgres, connect, migrate
from ledgerd.follower import State, Status
from ledgerd.heads import Heads
from ledgerd.ledger import Ledger
from ledgerd.reserves.merkle import Leaf, Node, Step, proven
from ledgerd.server import LedgerServer, LedgerServicer
from tests.books import PAIR, START_NS, TestBooks, custody, fresh_books, server, user
from tests.unit.test_ledgerd_ledger import funded, moved, rows_of, trade

DESCRIPTOR = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"]


@dataclass
class Door:
    """The servicer behind grpc_testing's server."""

    books: TestBooks
    server: Any
    servicer: Any = None
    heads: Heads = field(default_factory=lambda: Heads(server().folder / "never.written"))

    def call(self, name: str, request: Any) -> tuple[Any, grpc.StatusCode, str]:
        method = DESCRIPTOR.methods_by_name[name]
        call = self.server.invoke_unary_unary(method, (), request, None)
        answer, _, code, details = call.termination()
        return answer, code, details

    def answer(self, name: str, request: Any) -> Any:
        answer, code, details = self.call(name, request)
        assert code == grpc.StatusCode.OK, details
        return answer

    def reason(self, name: str, request: Any) -> tuple[str, str, str]:
        """Return reason, field and value of a refusal, as they come over the network."""
        served = LedgerServer(self.servicer, ServerOptions(port=0), threads=1)
        with grpc.insecure_channel(f"127.0.0.1:{served.start()}") as channel:
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                getattr(stub, name)(request, timeout=10)
        served.stop()
        info = refusal_in(caught.value)
        assert info is not None
        return info.reason, info.metadata.get("field", ""), info.metadata.get("value", "")

    def refused(self, name: str, request: Any) -> tuple[grpc.StatusCode, str]:
        answer, code, details = self.call(name, request)
        assert answer is None
        return code, details


def door_to(books: TestBooks, statuses: list[Status]) -> Door:
    door = Door(books, None)
    servicer = LedgerServicer(books.ledger, books.engine, lambda: statuses, door.heads)
    door.servicer = servicer
    clock = grpc_testing.strict_real_time()
    door.server = grpc_testing.server_from_dictionary({DESCRIPTOR: servicer}, clock)
    return door


@pytest.fixture
def door() -> Iterator[Door]:
    with fresh_books() as books:
        yield door_to(books, [Status(PAIR.pair, State.STOPPED, "because", 3, 9)])


def name(owner: int, asset: str, purpose: Purpose, pair: str = "") -> ledger_pb2.AccountName:
    kind = OwnerKind.USER if owner else OwnerKind.EXCHANGE
    return ledger_pb2.AccountName(
        owner_kind=int(kind),  # type: ignore[arg-type]
        owner_id=owner,
        purpose=int(purpose),  # type: ignore[arg-type]
        asset=asset,
        pair=pair,
    )


def credit(
    number: int, owner: int, amount: int, kind: TransferKind = TransferKind.CORRECTION
) -> ledger_pb2.NewTransfer:
    return ledger_pb2.NewTransfer(
        id=number.to_bytes(16, "big"),
        kind=int(kind),  # type: ignore[arg-type]
        phase=int(Phase.SINGLE),  # type: ignore[arg-type]
        legs=[
            ledger_pb2.TransferLeg(name=name(0, "BTC", Purpose.CUSTODY), amount_units=-amount),
            ledger_pb2.TransferLeg(name=name(owner, "BTC", Purpose.TRADING), amount_units=amount),
        ],
    )


def test_a_credit_from_account_to_statement(door: Door) -> None:
    door.books.open(1, PAIR)
    names = [name(5, "BTC", Purpose.TRADING), name(5, "BTC", Purpose.FUNDING)]
    opened = door.answer("OpenAccounts", ledger_pb2.OpenAccountsRequest(names=names))
    assert len(set(opened.account_ids)) == 2
    request = ledger_pb2.PostTransfersRequest(transfers=[credit(900, 5, 250_000_000)])
    first, second = door.answer("PostTransfers", request), door.answer("PostTransfers", request)
    assert not first.transfers[0].repeated
    assert second.transfers[0].repeated
    asked = ledger_pb2.ListBalancesRequest(owner_kind=ledger_pb2.OWNER_KIND_USER, owner_id=5)
    shown = {one.name.purpose: one.amount for one in door.answer("ListBalances", asked).balances}
    assert shown == {Purpose.TRADING: "2.50000000", Purpose.FUNDING: "0.00000000"}
    page = door.answer("ListStatement", ledger_pb2.ListStatementRequest(name=names[0]))
    assert [(line.amount, line.balance) for line in page.lines] == [("2.50000000", "2.50000000")]
    whole = door.answer("GetTransfer", ledger_pb2.GetTransferRequest(id=(900).to_bytes(16, "big")))
    assert sum(posting.amount_units for posting in whole.postings) == 0
    seals = door.answer("ListSeals", ledger_pb2.ListSealsRequest())
    assert whole.seal_hash in {seal.hash for seal in seals.seals}
    assert seals.seals[-1].hash == seals.head
    chained = zip(seals.seals, seals.seals[1:], strict=False)
    assert all(after.previous == before.hash for before, after in chained)


def test_a_statement_is_handed_out_in_pages(door: Door) -> None:
    door.books.open(1, PAIR)
    for amount in range(1, 8):
        door.books.deposit(1, "BTC", amount)
    request = ledger_pb2.ListStatementRequest(name=name(1, "BTC", Purpose.TRADING), page_size=3)
    seen = []
    while True:
        page = door.answer("ListStatement", request)
        seen += [line.amount_units for line in page.lines]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [7, 6, 5, 4, 3, 2, 1]


def test_balances_as_of_a_time_and_of_a_command(door: Door) -> None:
    cursor = funded(door.books)
    times = []
    for sequence in (9, 10, 11):
        rows = rows_of(trade(1, 2, sequence), trade(1, 2, sequence))
        cursor = door.books.ledger.settle(PAIR, rows, cursor)
        times.append(door.books.clock.now_ns)
    coins = 10 * PAIR.base_units_per_lot

    def bought(**as_of: Any) -> int:
        request = ledger_pb2.ListBalancesRequest(
            owner_kind=ledger_pb2.OWNER_KIND_USER, owner_id=1, as_of=ledger_pb2.Moment(**as_of)
        )
        found = [
            one.amount_units
            for one in door.answer("ListBalances", request).balances
            if one.name.asset == "BTC" and one.name.purpose == Purpose.ALLOTTED
        ]
        return (int(found[0]) - 10**8) // coins

    assert [bought(time_ns=time_ns) for time_ns in times] == [2, 4, 6]
    assert bought(time_ns=START_NS) == -(10**8) // coins

    def at(sequence: int) -> int:
        return bought(pair_sequence=ledger_pb2.PairSequence(pair=PAIR.pair, sequence=sequence))

    assert [at(sequence) for sequence in (8, 9, 10, 11)] == [0, 2, 4, 6]


def test_funds_for_an_engine_become_instructions(door: Door) -> None:
    door.books.open(1, PAIR)
    door.books.deposit(1, "BTC", 100)
    request = ledger_pb2.AllotTradingFundsRequest(
        id=bytes(15) + b"\xee",
        pair=PAIR.pair,
        owner_id=1,
        asset=enums_pb2.ASSET_BASE,
        amount_units=60,
    )
    for _ in range(2):
        done = door.answer("AllotTradingFunds", request)
        assert (done.transfer_number, done.trading_units) == (1, 40)
    arrived(door, number=1, units=60)
    recall = ledger_pb2.RecallTradingFundsRequest(
        id=bytes(15) + b"\xef",
        pair=PAIR.pair,
        owner_id=1,
        asset=enums_pb2.ASSET_BASE,
        amount_units=5,
    )
    assert door.answer("RecallTradingFunds", recall).transfer_number == 2
    asked = ledger_pb2.ListInstructionsRequest(pair=PAIR.pair, from_number=1)
    listed = door.answer("ListInstructions", asked)
    told = [(one.transfer_number, one.kind, one.amount_units) for one in listed.instructions]
    assert told == [(1, TransferKind.ALLOT, 60), (2, TransferKind.RELEASE, 5)]
    assert [one.resolved for one in listed.instructions] == [True, False]
    assert {one.asset for one in listed.instructions} == {Asset.BASE}


def arrived(door: Door, number: int, units: int) -> None:
    row = moved(ExecutionKind.ALLOTTED, 1, 1, number, w5=int(Asset.BASE), w6=units, w7=units)
    door.books.ledger.settle(PAIR, rows_of(row), 0)


def allotment(number: int, owner: int, units: int) -> dict[str, Any]:
    return {
        "id": (700 + number).to_bytes(16, "big"),
        "pair": PAIR.pair,
        "owner_id": owner,
        "asset": enums_pb2.ASSET_BASE,
        "amount_units": units,
    }


def test_an_allotment_beyond_the_balance_says_what_there_is(door: Door) -> None:
    door.books.open(1, PAIR)
    door.books.deposit(1, "BTC", 100)
    door.answer("AllotTradingFunds", ledger_pb2.AllotTradingFundsRequest(**allotment(1, 1, 60)))
    request = ledger_pb2.AllotTradingFundsRequest(**allotment(2, 1, 41))
    assert door.reason("AllotTradingFunds", request) == (
        "INSUFFICIENT_FUNDS",
        "trading_units",
        "40",
    )


@pytest.mark.parametrize("owner", [0, -1, PAIR.account_capacity, 1 << 40])
@pytest.mark.parametrize("call", ["AllotTradingFunds", "RecallTradingFunds"])
def test_an_owner_whom_the_engine_has_no_room_for_is_refused(
    door: Door, call: str, owner: int
) -> None:
    door.books.open(1, PAIR)
    if owner == PAIR.account_capacity:
        door.books.ledger.open_accounts([user(owner, "BTC")])
        door.books.deposit(owner, "BTC", 100)
    kind = getattr(ledger_pb2, f"{call}Request")
    reason = door.reason(call, kind(**allotment(1, owner, 60)))
    assert reason == ("ACCOUNT_BEYOND_ENGINE", "owner_id", str(owner))


def test_money_is_not_asked_back_from_where_none_has_arrived(door: Door) -> None:
    door.books.open(1, PAIR)
    door.books.deposit(1, "BTC", 100)
    recall = ledger_pb2.RecallTradingFundsRequest(**allotment(1, 1, 10))
    assert door.reason("RecallTradingFunds", recall)[0] == "NEVER_ALLOTTED"
    allot = ledger_pb2.AllotTradingFundsRequest(**allotment(2, 1, 60))
    assert door.answer("AllotTradingFunds", allot).transfer_number == 1
    # An engine may refuse what is on its way, and knows nobody then.
    assert door.reason("RecallTradingFunds", recall)[0] == "NEVER_ALLOTTED"
    arrived(door, number=1, units=60)
    assert door.answer("RecallTradingFunds", recall).transfer_number == 2


def test_a_pair_that_nobody_settles_here_is_given_nothing(door: Door) -> None:
    door.books.open(1, PAIR)
    door.books.deposit(1, "BTC", 100)
    elsewhere = door_to(replace(door.books, ledger=Ledger(door.books.engine, door.books.clock)), [])
    request = ledger_pb2.AllotTradingFundsRequest(**allotment(1, 1, 60))
    assert elsewhere.reason("AllotTradingFunds", request)[0] == "PAIR_UNKNOWN"


@pytest.mark.parametrize("kind", [TransferKind.DEPOSIT, TransferKind.WITHDRAWAL])
def test_what_comes_in_or_goes_out_is_only_booked_by_the_custody_pipelines(
    door: Door, kind: TransferKind
) -> None:
    door.books.open(1, PAIR)
    door.books.deposit(1, "BTC", 100)
    request = ledger_pb2.PostTransfersRequest(transfers=[credit(900, 1, 5, kind)])
    assert door.reason("PostTransfers", request) == ("KIND_OF_CUSTODY", "kind", kind.name)
    held = door.books.new_id()
    pipelines = MoneyBooks(door.books.engine, door.books.clock)
    pipelines.done(lambda step: step.hold(held, kind, user(1, "BTC"), custody("BTC"), 5))
    for phase in (Phase.POSTED, Phase.VOIDED):
        reasons = {
            kind: "KIND_OF_CUSTODY",
            TransferKind.CORRECTION: "PHASE_INVALID",
            TransferKind.INTERNAL: "KIND_INVALID",
        }
        for said, reason in reasons.items():
            resolving = ledger_pb2.NewTransfer(
                id=bytes(15) + b"\x99",
                kind=int(said),  # type: ignore[arg-type]
                phase=int(phase),  # type: ignore[arg-type]
                pending_id=held.bytes,
            )
            request = ledger_pb2.PostTransfersRequest(transfers=[resolving])
            assert door.reason("PostTransfers", request)[0] == reason
    assert door.books.balance(user(1, "BTC")) == 95


def test_custody_accounts_are_moved_by_corrections_only(door: Door) -> None:
    door.books.open(1, PAIR)
    request = ledger_pb2.PostTransfersRequest(transfers=[credit(900, 1, 5, TransferKind.INTERNAL)])
    assert door.reason("PostTransfers", request)[0] == "ACCOUNT_OF_CUSTODY"
    assert door.books.balance(user(1, "BTC")) == 0


def test_the_books_prove_themselves(door: Door) -> None:
    funded(door.books)
    assert door.answer("VerifyBooks", ledger_pb2.VerifyBooksRequest()).sound
    balance = door.answer("GetTrialBalance", ledger_pb2.GetTrialBalanceRequest())
    assert balance.balanced
    assert {line.asset for line in balance.lines} == {"BTC", "USDT"}
    taken = door.answer(
        "TakeLiabilitySnapshot", ledger_pb2.TakeLiabilitySnapshotRequest(asset="BTC")
    )
    shown = door.answer(
        "GetLiabilityProof",
        ledger_pb2.GetLiabilityProofRequest(snapshot=taken.snapshot, owner_id=2),
    )
    leaf = Leaf(shown.owner_id, shown.amount_units, shown.nonce)
    steps = [Step(Node(step.hash, step.total_units), step.left) for step in shown.steps]
    assert proven(leaf, steps, Node(taken.root, taken.total_units))
    assert taken.total_units == 2 * 10**9


def test_the_state_of_settlement_is_shown_with_its_sentence(door: Door) -> None:
    answer = door.answer("ListSettlements", ledger_pb2.ListSettlementsRequest())
    shown = answer.settlements[0]
    assert (shown.pair, shown.sentence) == (PAIR.pair, "because")
    assert shown.state == ledger_pb2.SETTLEMENT_STATE_STOPPED


@pytest.mark.parametrize(
    ("call", "request_", "code"),
    [
        ("OpenAccounts", ledger_pb2.OpenAccountsRequest(), "INVALID_ARGUMENT"),
        (
            "OpenAccounts",
            ledger_pb2.OpenAccountsRequest(names=[name(1, "BTC", Purpose.ALLOTTED, "BTC-USDT")]),
            "INVALID_ARGUMENT",
        ),
        (
            "OpenAccounts",
            ledger_pb2.OpenAccountsRequest(names=[name(1, "DOGE", Purpose.TRADING)]),
            "INVALID_ARGUMENT",
        ),
        (
            "ListStatement",
            ledger_pb2.ListStatementRequest(name=name(9, "BTC", Purpose.TRADING)),
            "NOT_FOUND",
        ),
        (
            "ListStatement",
            ledger_pb2.ListStatementRequest(
                name=name(1, "BTC", Purpose.TRADING), page_token="1; DROP"
            ),
            "INVALID_ARGUMENT",
        ),
        (
            "ListStatement",
            ledger_pb2.ListStatementRequest(name=name(1, "BTC", Purpose.TRADING), page_size=-1),
            "INVALID_ARGUMENT",
        ),
        ("PostTransfers", ledger_pb2.PostTransfersRequest(), "INVALID_ARGUMENT"),
        (
            "PostTransfers",
            ledger_pb2.PostTransfersRequest(transfers=[ledger_pb2.NewTransfer(id=b"short")]),
            "INVALID_ARGUMENT",
        ),
        ("GetTransfer", ledger_pb2.GetTransferRequest(transfer_id=99), "NOT_FOUND"),
        ("GetTransfer", ledger_pb2.GetTransferRequest(), "INVALID_ARGUMENT"),
        ("GetTransfer", ledger_pb2.GetTransferRequest(transfer_id=-1), "INVALID_ARGUMENT"),
        ("ListBalances", ledger_pb2.ListBalancesRequest(), "INVALID_ARGUMENT"),
        (
            "ListBalances",
            ledger_pb2.ListBalancesRequest(owner_kind=ledger_pb2.OWNER_KIND_USER),
            "INVALID_ARGUMENT",
        ),
        (
            "ListBalances",
            ledger_pb2.ListBalancesRequest(owner_kind=ledger_pb2.OWNER_KIND_USER, owner_id=1 << 40),
            "INVALID_ARGUMENT",
        ),
        ("ListSeals", ledger_pb2.ListSealsRequest(pair="NO-PAIR"), "INVALID_ARGUMENT"),
        (
            "ListBalances",
            ledger_pb2.ListBalancesRequest(
                owner_kind=ledger_pb2.OWNER_KIND_USER,
                owner_id=1,
                as_of=ledger_pb2.Moment(
                    pair_sequence=ledger_pb2.PairSequence(pair=PAIR.pair, sequence=99)
                ),
            ),
            "OUT_OF_RANGE",
        ),
        (
            "GetLiabilityProof",
            ledger_pb2.GetLiabilityProofRequest(snapshot=3, owner_id=1),
            "NOT_FOUND",
        ),
    ],
)
def test_bad_requests_are_refused_with_a_sentence(
    door: Door, call: str, request_: Any, code: str
) -> None:
    door.books.open(1, PAIR)
    refused, details = door.refused(call, request_)
    assert refused.name == code
    assert len(details) > 15


def test_an_enum_from_the_future_is_refused(door: Door) -> None:
    transfer = credit(1, 1, 5)
    transfer.kind = 999  # type: ignore[assignment]
    code, details = door.refused(
        "PostTransfers", ledger_pb2.PostTransfersRequest(transfers=[transfer])
    )
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "999" in details


def test_older_books_answer_nothing_but_why(door: Door) -> None:
    door.heads.sentence = "restored from a backup"
    code, details = door.refused("VerifyBooks", ledger_pb2.VerifyBooksRequest())
    assert (code, details) == (grpc.StatusCode.FAILED_PRECONDITION, "restored from a backup")


def test_a_database_that_goes_away_is_unavailable_and_comes_back() -> None:
    postgres = EmbeddedPostgres(server().folder.parent / "passing")
    postgres.start()
    try:
        postgres.create()
        migrate(postgres.url(OWNER))
        engine = connect(postgres.url(SERVICE), 2)
        ticks = iter(range(10**6))
        books = TestBooks("holdfast", engine, Ledger(engine, lambda: next(ticks)), None)  # type: ignore[arg-type]
        books.open(1, PAIR)
        door = door_to(books, [])
        request = ledger_pb2.PostTransfersRequest(transfers=[credit(7, 1, 5)])
        asked = ledger_pb2.ListBalancesRequest(owner_kind=ledger_pb2.OWNER_KIND_USER, owner_id=1)
        door.answer("PostTransfers", request)
        postgres.stop("immediate")
        for call, message in (("PostTransfers", request), ("ListBalances", asked)):
            code, details = door.refused(call, message)
            assert code == grpc.StatusCode.UNAVAILABLE, details
        postgres.start()
        assert door.answer("PostTransfers", request).transfers[0].repeated
        amounts = [one.amount_units for one in door.answer("ListBalances", asked).balances]
        assert sorted(amounts) == [0, 0, 0, 5]
        engine.dispose()
    finally:
        postgres.stop()
