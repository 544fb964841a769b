"""FundsService over a real server: every call, what it refuses, a custodian that goes away."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest

from exchange.v1 import funds_pb2, funds_pb2_grpc, ledger_pb2
from holdfast import MoneyClient
from ledgerd.__main__ import _verify
from ledgerd.custody.adapter import CustodyUnavailable, NoCustodian
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.journal import Subject
from ledgerd.custody.simulated_chain import SimulatedCustody
from ledgerd.custody.withdrawal_rules import WithdrawalState
from ledgerd.doors.funds_server import FundsServicer
from ledgerd.funds.settings import FundsSettings
from ledgerd.heads import Heads
from tests.books import PAIR, fresh_books, superuser
from tests.funds import (
    AWAY,
    BEYOND_INT64,
    INVALID,
    MISSING,
    NEEDED,
    NOBODY,
    OUTSIDE,
    SETTINGS,
    STATE,
    FundsDoor,
    door_over,
    fresh_door,
    rich_door,
    untouched_door,
)
from tests.unit.test_ledgerd_server import door_to


@pytest.fixture
def door() -> Iterator[FundsDoor]:
    with fresh_door() as made:
        yield made


@pytest.fixture
def rich() -> Iterator[FundsDoor]:
    with rich_door() as made:
        yield made


@pytest.fixture(scope="module")
def untouched() -> Iterator[FundsDoor]:
    with untouched_door() as made:
        yield made


# In.


def test_a_deposit_from_address_to_credit(door: FundsDoor) -> None:
    first = door.answer("GetDepositAddress", owner_id=7, asset="BTC")
    assert door.answer("GetDepositAddress", owner_id=7, asset="BTC") == first
    assert first.confirmations_needed == NEEDED
    paid = door.paid(first.address, "1.5")
    door.rounds()
    (seen,) = door.answer("ListDeposits", owner_id=7).deposits
    assert (seen.state, seen.confirmations) == (funds_pb2.DEPOSIT_STATE_SEEN, 1)
    assert door.balances(7) == {}
    door.rounds()
    (done,) = door.answer("ListDeposits", owner_id=7).deposits
    assert (done.state, done.amount) == (funds_pb2.DEPOSIT_STATE_CREDITED, "1.50000000")
    assert (done.transaction_id, done.output_index) == (paid, 0)
    assert not done.HasField("confirmations")
    assert door.balances(7) == {("FUNDING", "BTC"): 150_000_000}
    events = door.answer("ListFundsEvents", subject=done.id).events
    assert [event.state_name for event in events] == ["CREDITED", "SEEN"]


def test_deposits_are_handed_out_in_pages_newest_first(door: FundsDoor) -> None:
    for amount in range(1, 6):
        door.funded(1, f"0.{amount}")
    seen, token = [], ""
    while True:
        page = door.answer("ListDeposits", owner_id=1, page_size=2, page_token=token)
        seen += [one.amount[:3] for one in page.deposits]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["0.5", "0.4", "0.3", "0.2", "0.1"]
    assert door.answer("ListDeposits", owner_id=2).deposits == []
    for token in ("5-x", f"{1 << 63}-{'0' * 32}"):
        refused = door.refused("ListDeposits", owner_id=1, page_token=token)
        assert refused == (INVALID, "PAGE_TOKEN_INVALID")
    assert door.refused("ListDeposits", owner_id=1, page_size=1_001) == (
        INVALID,
        "PAGE_SIZE_OUT_OF_RANGE",
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"owner_id": 0, "asset": "BTC"}, "ACCOUNT_UNKNOWN"),
        ({"owner_id": -5, "asset": "BTC"}, "ACCOUNT_UNKNOWN"),
        ({"owner_id": 1 << 31, "asset": "BTC"}, "ACCOUNT_UNKNOWN"),
        ({"owner_id": (1 << 63) - 1, "asset": "BTC"}, "ACCOUNT_UNKNOWN"),
        ({"owner_id": 1, "asset": "DOGE"}, "ASSET_UNKNOWN"),
        ({"owner_id": 1, "asset": ""}, "ASSET_UNKNOWN"),
        ({"owner_id": 1, "asset": "BTC", "owner_kind": 3}, "ACCOUNT_UNKNOWN"),
        ({"owner_id": 1, "asset": "BTC", "owner_kind": 77}, "ENUM_INVALID"),
    ],
)
def test_an_address_is_refused_with_its_reason(
    untouched: FundsDoor, fields: dict[str, Any], reason: str
) -> None:
    assert untouched.refused("GetDepositAddress", **fields) == (INVALID, reason)
    wanted = fields | {"id": untouched.new_id(), "address": OUTSIDE, "actor": "alice"}
    assert untouched.refused("AddWithdrawalAddress", **wanted) == (INVALID, reason)


def test_an_owner_is_what_the_books_know(door: FundsDoor) -> None:
    maker = ledger_pb2.OWNER_KIND_MARKET_MAKER
    door.answer("GetDepositAddress", owner_kind=maker, owner_id=9, asset="BTC")
    address = door.answer("GetDepositAddress", owner_id=9, asset="USDT").address
    door.paid(address, "3", "USDT")
    door.rounds(NEEDED + 1)
    (found,) = door.answer("ListDeposits", owner_id=9).deposits
    assert found.owner_kind == maker
    user = ledger_pb2.OWNER_KIND_USER
    given = {"owner_kind": user, "owner_id": 9, "asset": "BTC"}
    assert door.refused("GetDepositAddress", **given) == (INVALID, "OWNER_TAKEN")


def test_a_deposit_of_another_asset_is_claimed_by_a_person(door: FundsDoor) -> None:
    address = door.answer("GetDepositAddress", owner_id=1, asset="BTC").address
    door.paid(address, "5", "USDT")
    door.rounds(NEEDED + 1)
    (found,) = door.answer("ListDeposits", owner_id=1).deposits
    assert found.state == funds_pb2.DEPOSIT_STATE_UNCLAIMED
    (alarm,) = door.answer("ListFundsEvents", alarms=True).events
    assert (alarm.alarm, alarm.state_name) == (True, "UNCLAIMED")
    assert door.refused("WriteOffDeposit", id=found.id, actor="carol") == (STATE, "DEPOSIT_STATE")
    assert door.refused("ClaimDeposit", id=found.id, actor="") == (INVALID, "TEXT_INVALID")
    assert door.refused("ClaimDeposit", id=NOBODY, actor="carol") == (MISSING, "DEPOSIT_UNKNOWN")
    assert door.refused("ClaimDeposit", id=b"short", actor="carol") == (INVALID, "ID_INVALID")
    done = door.answer("ClaimDeposit", id=found.id, actor="carol").deposit
    assert done.state == funds_pb2.DEPOSIT_STATE_CREDITED
    assert door.balances(1) == {("FUNDING", "USDT"): 500_000_000}
    assert door.answer("GetFundsStatus").alarm_count == 1


def test_a_reversed_deposit_freezes_and_is_written_off(rich: FundsDoor) -> None:
    payment = rich.funded(1, "2")
    assert rich.desk.simulated is not None
    rich.desk.simulated.reorganise(NEEDED + 1, [payment])
    rich.rounds()
    status = rich.answer("GetFundsStatus")
    assert (status.undecided_count, status.alarm_count) == (1, 1)
    found = next(
        one
        for one in rich.answer("ListDeposits", owner_id=1).deposits
        if one.transaction_id == payment
    )
    assert (found.withheld_units, found.confirmations) == (200_000_000, 0)
    assert rich.refused("RequestWithdrawal", **rich.wanted()) == (STATE, "OWNER_FROZEN")
    assert rich.refused("ClaimDeposit", id=found.id, actor="carol") == (STATE, "DEPOSIT_STATE")
    lost = rich.answer("WriteOffDeposit", id=found.id, actor="carol").deposit
    assert lost.state == funds_pb2.DEPOSIT_STATE_LOST
    assert rich.answer("RequestWithdrawal", **rich.wanted()).withdrawal.amount == "0.25000000"


# Where to.


def test_an_address_waits_and_is_removed(rich: FundsDoor) -> None:
    wanted = {"id": rich.new_id(), "owner_id": 1, "asset": "BTC", "address": "fresh1"}
    made = rich.answer("AddWithdrawalAddress", actor="alice", **wanted).address
    again = rich.answer("AddWithdrawalAddress", actor="alice", **wanted).address
    assert made == again
    assert made.usable_ns - made.added_ns == SETTINGS.address_wait_ns
    changed = wanted | {"address": "fresh2"}
    refused = rich.refused("AddWithdrawalAddress", actor="alice", **changed)
    assert refused == (INVALID, "ADDRESS_ID_REUSED")
    shown = rich.answer("ListWithdrawalAddresses", owner_id=1)
    assert [one.address for one in shown.addresses] == [OUTSIDE, "fresh1"]
    assert shown.addresses[0].usable_ns <= shown.now_ns < shown.addresses[1].usable_ns
    out = rich.wanted(address="fresh1")
    assert rich.refused("RequestWithdrawal", **out) == (STATE, "ADDRESS_TOO_FRESH")
    gone = rich.answer("RemoveWithdrawalAddress", id=made.id, actor="alice").address
    assert gone.removed_ns > 0
    assert rich.answer("RemoveWithdrawalAddress", id=made.id, actor="bob").address == gone
    assert rich.refused("RequestWithdrawal", **out) == (INVALID, "ADDRESS_NOT_LISTED")
    assert len(rich.answer("ListWithdrawalAddresses", owner_id=1).addresses) == 1


def test_an_address_that_cannot_be_listed(rich: FundsDoor) -> None:
    ours = rich.answer("GetDepositAddress", owner_id=1, asset="BTC").address
    for address in ("", "with space", "x" * 101, "schön", ours):
        given = {"id": rich.new_id(), "owner_id": 1, "asset": "BTC", "address": address}
        refused = rich.refused("AddWithdrawalAddress", actor="alice", **given)
        assert refused == (INVALID, "ADDRESS_INVALID")
    good = {"owner_id": 1, "asset": "BTC", "address": "fine"}
    for actor in ("", "x" * 101, "new\nline"):
        refused = rich.refused("AddWithdrawalAddress", id=rich.new_id(), actor=actor, **good)
        assert refused == (INVALID, "TEXT_INVALID")
    refused = rich.refused("AddWithdrawalAddress", id=b"", actor="alice", **good)
    assert refused == (INVALID, "ID_INVALID")
    refused = rich.refused("RemoveWithdrawalAddress", id=NOBODY, actor="alice")
    assert refused == (MISSING, "ADDRESS_UNKNOWN")


# What happened, and how it stands.


def test_events_are_handed_out_newest_first(rich: FundsDoor) -> None:
    shown = rich.answer("ListFundsEvents", page_size=2).events
    assert [event.kind for event in shown] == [
        funds_pb2.FUNDS_SUBJECT_ADDRESS,
        funds_pb2.FUNDS_SUBJECT_DEPOSIT,
    ]
    assert [event.state_name for event in shown] == ["LISTED", "CREDITED"]
    rest = rich.answer("ListFundsEvents", before=shown[-1].number).events
    assert [event.state_name for event in rest] == ["SEEN"]
    assert rich.answer("ListFundsEvents", alarms=True).events == []
    assert rich.refused("ListFundsEvents", subject=b"1") == (INVALID, "ID_INVALID")


def test_the_status_shows_rules_counts_and_holdings(rich: FundsDoor) -> None:
    rich.answer("RequestWithdrawal", **rich.wanted())
    rich.rounds(NEEDED + 4)
    status = rich.answer("GetFundsStatus")
    assert (status.custodian_reachable, status.waiting_for, status.simulated) == (True, "", True)
    assert (status.unexplained_payouts, status.undecided_count) == ([], 0)
    kinds = funds_pb2.FundsSubject
    counts = {(kinds.Name(one.kind), one.state_name): one.count for one in status.counts}
    assert counts == {
        ("FUNDS_SUBJECT_DEPOSIT", "CREDITED"): 1,
        ("FUNDS_SUBJECT_WITHDRAWAL", "CONFIRMED"): 1,
    }
    bitcoin = next(one for one in status.assets if one.asset == "BTC")
    assert (bitcoin.holdings_units, bitcoin.booked_units) == (975_000_000, 975_000_000)
    assert list(bitcoin.approval_above) == ["0.50000000", "5.00000000"]
    assert status.address_wait_ns == SETTINGS.address_wait_ns
    assert status.round_count > 0


def test_the_contract_has_the_states_of_the_books() -> None:
    for ours, theirs in (
        (DepositState, funds_pb2.DepositState),
        (WithdrawalState, funds_pb2.WithdrawalState),
        (Subject, funds_pb2.FundsSubject),
    ):
        prefix = {
            funds_pb2.DepositState: "DEPOSIT_STATE_",
            funds_pb2.WithdrawalState: "WITHDRAWAL_STATE_",
            funds_pb2.FundsSubject: "FUNDS_SUBJECT_",
        }[theirs]
        wire = {name.removeprefix(prefix): number for name, number in theirs.items()}
        assert wire == {item.name: item.value for item in ours}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": b""}, "ID_INVALID"),
        ({"amount": "0"}, "AMOUNT_ZERO"),
        ({"amount": "-1"}, "AMOUNT_NEGATIVE"),
        ({"amount": BEYOND_INT64}, "AMOUNT_BEYOND_INT64"),
        ({"asset": "DOGE"}, "ASSET_UNKNOWN"),
        ({"address": ""}, "ADDRESS_INVALID"),
        ({"address": "a b"}, "ADDRESS_INVALID"),
    ],
)
def test_a_simulated_payment_is_refused_with_its_reason(
    untouched: FundsDoor, fields: dict[str, Any], reason: str
) -> None:
    good = {"id": NOBODY, "address": "somewhere", "asset": "BTC", "amount": "1"}
    assert untouched.refused("SimulateDeposit", **(good | fields)) == (INVALID, reason)


def test_a_simulated_payment_is_made_once_for_its_id(door: FundsDoor) -> None:
    address = door.answer("GetDepositAddress", owner_id=1, asset="BTC").address
    given = {"id": door.new_id(), "address": address, "asset": "BTC", "amount": "1.5"}
    paid = door.answer("SimulateDeposit", **given)
    assert door.answer("SimulateDeposit", **(given | {"amount": "1.50"})) == paid
    for other in ({"amount": "1"}, {"asset": "USDT"}, {"address": "elsewhere"}):
        refused = door.refused("SimulateDeposit", **(given | other))
        assert refused == (INVALID, "PAYMENT_ID_REUSED")
    assert door.answer("SimulateDeposit", **(given | {"id": door.new_id()})) != paid
    door.rounds(NEEDED + 1)
    assert door.balances(1) == {("FUNDING", "BTC"): 300_000_000}


class LosingFirst(FundsServicer):
    """Pays whenever it is asked, and gives no answer the first time."""

    def __init__(self, door: FundsDoor) -> None:
        super().__init__(door.desk, door.pipelines, lambda: "")
        self.ids: list[bytes] = []

    def SimulateDeposit(
        self, request: funds_pb2.SimulateDepositRequest, context: grpc.ServicerContext
    ) -> funds_pb2.SimulateDepositResponse:
        paid = super().SimulateDeposit(request, context)
        self.ids.append(request.id)
        if len(self.ids) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way")
        return paid


def test_a_client_whose_answer_is_lost_pays_once(door: FundsDoor) -> None:
    address = door.answer("GetDepositAddress", owner_id=1, asset="BTC").address
    server, losing = grpc.server(ThreadPoolExecutor(2)), LosingFirst(door)
    funds_pb2_grpc.add_FundsServiceServicer_to_server(losing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with MoneyClient(1, ledger=f"127.0.0.1:{port}") as money:
            money.simulate_deposit(address, "BTC", "1.5")
            money.simulate_deposit(address, "BTC", "1.5")
    finally:
        server.stop(None).wait()
    first, again, other = losing.ids
    assert first == again != other
    door.rounds(NEEDED + 1)
    assert door.balances(1) == {("FUNDING", "BTC"): 300_000_000}


# Who is away.


class Switched:
    """A custodian that can be away."""

    def __init__(self, custody: SimulatedCustody) -> None:
        self.custody, self.away = custody, False

    def __getattr__(self, name: str) -> object:
        if self.away:
            raise CustodyUnavailable("no route to the custodian")
        return getattr(self.custody, name)


def test_a_custodian_that_is_away_is_waited_for(rich: FundsDoor) -> None:
    assert rich.desk.simulated is not None
    switched = Switched(rich.desk.simulated)
    with door_over(rich.books, switched) as door:  # type: ignore[arg-type]
        made = door.answer("RequestWithdrawal", **door.wanted()).withdrawal
        door.rounds()
        switched.away = True
        listing = {"owner_id": 1, "asset": "BTC", "address": "x", "actor": "alice"}
        for call, fields in (
            ("GetDepositAddress", {"owner_id": 5, "asset": "BTC"}),
            ("RequestWithdrawal", door.wanted()),
            ("AddWithdrawalAddress", {"id": door.new_id()} | listing),
        ):
            assert door.refused(call, **fields) == (AWAY, "CUSTODY_UNAVAILABLE")
        before = door.state(made.id)
        door.rounds(3)
        assert door.state(made.id) == before
        status = door.answer("GetFundsStatus")
        assert not status.custodian_reachable
        assert "no route to the custodian" in status.waiting_for
        assert not status.assets[0].HasField("holdings_units")
        switched.away = False
        for _ in range(NEEDED + 4):
            switched.custody.mine()
            door.rounds()
        assert door.state(made.id) == "CONFIRMED"
        assert door.answer("GetFundsStatus").waiting_for == ""
    assert switched.custody.paid_units("BTC", OUTSIDE) == 25_000_000


def test_without_a_custodian_it_says_so() -> None:
    with fresh_books() as books:
        books.ledger.list_pair(PAIR)
        custodian: Any = NoCustodian()
        with door_over(books, custodian, FundsSettings()) as door:
            refused = door.refused("GetDepositAddress", owner_id=1, asset="BTC")
            assert refused == (AWAY, "CUSTODY_UNAVAILABLE")
            refused = door.refused("SimulateDeposit", address="x", asset="BTC", amount="1")
            assert refused == (STATE, "CUSTODIAN_NOT_SIMULATED")
            assert not door.answer("GetFundsStatus").simulated


@pytest.mark.parametrize("owner_id", [0, -5, 1 << 31, 1 << 40])
def test_lists_are_of_an_owner_that_can_be(untouched: FundsDoor, owner_id: int) -> None:
    for name in ("ListDeposits", "ListWithdrawalAddresses", "ListWithdrawals"):
        refused = untouched.refused(name, owner_id=owner_id)
        assert refused == (INVALID, "ACCOUNT_UNKNOWN")


def test_nothing_is_sent_while_a_payout_is_unexplained(rich: FundsDoor) -> None:
    paid = rich.answer("RequestWithdrawal", **rich.wanted()).withdrawal
    rich.rounds(NEEDED + 4)
    assert rich.state(paid.id) == "CONFIRMED"
    assert rich.desk.simulated is not None
    # The same owner and address in books that never heard of that withdrawal.
    with fresh_books() as older:
        older.ledger.list_pair(PAIR)
        older.clock.now_ns = rich.books.clock.now_ns
        with door_over(older, rich.desk.simulated) as door:
            door.answer("GetDepositAddress", owner_id=1, asset="BTC")
            door.funded(1, "1")
            door.listed(1)
            made = door.answer("RequestWithdrawal", **door.wanted(id=bytes([7] * 16))).withdrawal
            door.rounds(NEEDED + 4)
            assert door.state(made.id) == "APPROVED"
            (sentence,) = door.answer("GetFundsStatus").unexplained_payouts
            assert "which the books do not know" in sentence
    assert [one.id for one in rich.desk.simulated.payouts()] == [UUID(bytes=paid.id)]


def test_older_books_refuse_everything(rich: FundsDoor) -> None:
    made = rich.answer("RequestWithdrawal", **rich.wanted()).withdrawal
    rich.older = "restored from an older backup"
    assert rich.refused("ListDeposits", owner_id=1) == (STATE, "BOOKS_OLDER")
    rich.rounds(5)
    rich.older = ""
    assert rich.state(made.id) == "APPROVED"


def test_the_proof_of_the_books_is_one_of_money_too(
    rich: FundsDoor, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = rich.answer("RequestWithdrawal", **rich.wanted()).withdrawal
    heads = Heads(tmp_path / "ledger.heads")
    running = door_to(rich.books, [])
    assert running.answer("VerifyBooks", ledger_pb2.VerifyBooksRequest()).sound
    assert _verify(rich.books.engine, heads, None) == 0
    thief = superuser(rich.books)
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE withdrawals SET state = 5")
    assert _verify(rich.books.engine, heads, None) == 1
    answer = running.answer("VerifyBooks", ledger_pb2.VerifyBooksRequest())
    assert not answer.sound
    shown = capsys.readouterr().out
    complaint = f"withdrawal {UUID(bytes=made.id)} is CONFIRMED and the books disagree"
    assert complaint in shown
    assert complaint in answer.complaints
    assert "NOT SOUND" in shown
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE withdrawals SET state = 2")
    thief.dispose()
