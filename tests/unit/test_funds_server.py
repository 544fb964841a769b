"""FundsService over a real server: every call, what it refuses, a custodian that goes away."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import grpc
import pytest

from exchange.v1 import funds_pb2, ledger_pb2
from ledgerd.__main__ import _verify as prove
from ledgerd.custody.adapter import CustodyUnavailable, NoCustodian
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.journal import Subject
from ledgerd.custody.proof import verify_money
from ledgerd.custody.simulated_chain import SimulatedCustody
from ledgerd.custody.withdrawal_rules import WithdrawalState
from ledgerd.funds.settings import FundsSettings
from tests.books import PAIR, fresh_books, superuser
from tests.funds import NEEDED, OUTSIDE, SETTINGS, FundsDoor, door_over, fresh_door

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
STATE = grpc.StatusCode.FAILED_PRECONDITION
AWAY = grpc.StatusCode.UNAVAILABLE
FUNDING, TRADING = ledger_pb2.ACCOUNT_PURPOSE_FUNDING, ledger_pb2.ACCOUNT_PURPOSE_TRADING
NOBODY = bytes(15) + b"\xff"
BEYOND_INT64 = "92233720368.54775808"
BEYOND_BOUND = "46116860184.27387905"


@pytest.fixture
def door() -> Iterator[FundsDoor]:
    with fresh_door() as made:
        yield made


@pytest.fixture
def rich() -> Iterator[FundsDoor]:
    """Give a door at which owner 1 has ten coins and an address that waited long enough."""
    with fresh_door() as made:
        made.funded(1, "10")
        made.listed(1)
        yield made
        assert verify_money(made.books.engine) == []


@pytest.fixture(scope="module")
def untouched() -> Iterator[FundsDoor]:
    """Give the same to calls that must not change anything."""
    with fresh_door() as made:
        made.funded(1, "10")
        made.listed(1)
        yield made
        assert len(made.answer("ListFundsEvents").events) == 3
        assert made.balances(1) == {("FUNDING", "BTC"): 1_000_000_000}


# In.


def test_a_deposit_from_address_to_credit(door: FundsDoor) -> None:
    first = door.answer("GetDepositAddress", owner_id=7, asset="BTC")
    assert door.answer("GetDepositAddress", owner_id=7, asset="BTC") == first
    assert first.confirmations_needed == NEEDED
    paid = door.answer("SimulateDeposit", address=first.address, asset="BTC", amount="1.5")
    door.rounds()
    (seen,) = door.answer("ListDeposits", owner_id=7).deposits
    assert (seen.state, seen.confirmations) == (funds_pb2.DEPOSIT_STATE_SEEN, 1)
    assert door.balances(7) == {}
    door.rounds()
    (done,) = door.answer("ListDeposits", owner_id=7).deposits
    assert (done.state, done.amount) == (funds_pb2.DEPOSIT_STATE_CREDITED, "1.50000000")
    assert (done.transaction_id, done.output_index) == (paid.transaction_id, 0)
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
    door.answer("SimulateDeposit", address=address, asset="USDT", amount="3")
    door.rounds(NEEDED + 1)
    (found,) = door.answer("ListDeposits", owner_id=9).deposits
    assert found.owner_kind == maker
    user = ledger_pb2.OWNER_KIND_USER
    given = {"owner_kind": user, "owner_id": 9, "asset": "BTC"}
    assert door.refused("GetDepositAddress", **given) == (INVALID, "OWNER_TAKEN")


def test_a_deposit_of_another_asset_is_claimed_by_a_person(door: FundsDoor) -> None:
    address = door.answer("GetDepositAddress", owner_id=1, asset="BTC").address
    door.answer("SimulateDeposit", address=address, asset="USDT", amount="5")
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


# Out.


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"id": b"\x01" * 15}, "ID_INVALID"),
        ({"id": b""}, "ID_INVALID"),
        ({"asset": "DOGE"}, "ASSET_UNKNOWN"),
        ({"amount": "0"}, "AMOUNT_ZERO"),
        ({"amount": "0.000000000"}, "AMOUNT_ZERO"),
        ({"amount": "-1"}, "AMOUNT_NEGATIVE"),
        ({"amount": "-0.00000001"}, "AMOUNT_NEGATIVE"),
        ({"amount": BEYOND_INT64}, "AMOUNT_BEYOND_INT64"),
        ({"amount": "9" * 40}, "AMOUNT_BEYOND_INT64"),
        ({"amount": BEYOND_BOUND}, "AMOUNT_OUT_OF_RANGE"),
        ({"amount": ""}, "AMOUNT_INVALID"),
        ({"amount": "one"}, "AMOUNT_INVALID"),
        ({"amount": "--1"}, "AMOUNT_INVALID"),
        ({"amount": "1e3"}, "AMOUNT_INVALID"),
        ({"amount": "NaN"}, "AMOUNT_INVALID"),
        ({"amount": "1,5"}, "AMOUNT_INVALID"),
        ({"amount": "0.123456789"}, "AMOUNT_INVALID"),
        ({"amount": "9" * 41}, "AMOUNT_INVALID"),
        ({"amount": "٣"}, "AMOUNT_INVALID"),
        ({"owner_id": 0}, "ACCOUNT_UNKNOWN"),
        ({"owner_id": 2}, "ACCOUNT_UNKNOWN"),
        ({"owner_id": 1 << 31}, "ACCOUNT_UNKNOWN"),
        ({"owner_kind": 3}, "ACCOUNT_UNKNOWN"),
        ({"owner_kind": 9}, "ENUM_INVALID"),
        ({"asset": "USDT"}, "ACCOUNT_UNKNOWN"),
        ({"requester": ""}, "TEXT_INVALID"),
        ({"requester": "a\x00b"}, "TEXT_INVALID"),
        ({"address": "elsewhere"}, "ADDRESS_NOT_LISTED"),
        ({"address": "not one"}, "ADDRESS_INVALID"),
        ({"address": "nul\x00"}, "ADDRESS_INVALID"),
        ({"address": ""}, "ADDRESS_INVALID"),
        ({"asset": "B\x00C"}, "ASSET_UNKNOWN"),
    ],
)
def test_a_withdrawal_is_refused_with_its_reason(
    untouched: FundsDoor, other: dict[str, Any], reason: str
) -> None:
    wanted = untouched.wanted(**other)
    assert untouched.refused("RequestWithdrawal", **wanted) == (INVALID, reason)


def test_more_than_there_is_and_an_address_of_another_asset(rich: FundsDoor) -> None:
    beyond = rich.wanted(amount="10.00000001")
    assert rich.refused("RequestWithdrawal", **beyond) == (STATE, "INSUFFICIENT_FUNDS")
    rich.funded(1, "5", "USDT")
    other = rich.wanted(asset="USDT", amount="1")
    assert rich.refused("RequestWithdrawal", **other) == (INVALID, "ADDRESS_OTHER_ASSET")


def test_a_small_withdrawal_is_paid_and_a_replay_is_the_same_one(rich: FundsDoor) -> None:
    wanted = rich.wanted()
    first = rich.answer("RequestWithdrawal", **wanted)
    assert (first.repeated, first.withdrawal.amount_units) == (False, 25_000_000)
    again = rich.answer("RequestWithdrawal", **wanted)
    assert (again.repeated, again.withdrawal.digest) == (True, first.withdrawal.digest)
    for other in ({"amount": "0.26"}, {"requester": "bob"}, {"owner_id": 2}, {"address": "x1"}):
        refused = rich.refused("RequestWithdrawal", **(wanted | other))
        assert refused == (INVALID, "WITHDRAWAL_ID_REUSED")
    rich.rounds(2)
    sent = rich.answer("GetWithdrawal", id=wanted["id"]).withdrawal
    assert sent.state == funds_pb2.WITHDRAWAL_STATE_SENT
    assert (sent.HasField("confirmations"), len(sent.transaction_id)) == (True, 64)
    rich.rounds(NEEDED + 2)
    assert rich.state(wanted["id"]) == "CONFIRMED"
    assert rich.answer("RequestWithdrawal", **wanted).repeated
    assert rich.desk.simulated is not None
    assert rich.desk.simulated.paid_units("BTC", OUTSIDE) == 25_000_000
    assert rich.balances(1) == {("FUNDING", "BTC"): 975_000_000}


def test_approvals_are_of_what_was_seen_and_of_other_people(rich: FundsDoor) -> None:
    wanted = rich.wanted(amount="6")
    made = rich.answer("RequestWithdrawal", **wanted).withdrawal
    assert (made.approvals_needed, made.approvals) == (2, [])
    rich.rounds(3)
    assert rich.state(made.id) == "AWAITING_APPROVAL"
    seen = {"id": made.id, "digest": made.digest}
    refused = rich.refused("ApproveWithdrawal", approver="alice", **seen)
    assert refused == (grpc.StatusCode.PERMISSION_DENIED, "APPROVER_IS_REQUESTER")
    other = bytes(31) + b"\x01"
    for digest, reason in ((other, "CONTENT_CHANGED"), (b"", "DIGEST_INVALID")):
        refused = rich.refused("ApproveWithdrawal", id=made.id, approver="bob", digest=digest)
        assert refused == (INVALID, reason)
    refused = rich.refused("ApproveWithdrawal", id=NOBODY, approver="bob", digest=made.digest)
    assert refused == (MISSING, "WITHDRAWAL_UNKNOWN")
    assert not rich.answer("ApproveWithdrawal", approver="bob", **seen).repeated
    assert rich.answer("ApproveWithdrawal", approver="bob", **seen).repeated
    rich.rounds(3)
    assert rich.state(made.id) == "AWAITING_APPROVAL"
    done = rich.answer("ApproveWithdrawal", approver="carol", **seen).withdrawal
    assert [one.approver for one in done.approvals] == ["bob", "carol"]
    rich.rounds(NEEDED + 4)
    assert rich.state(made.id) == "CONFIRMED"
    refused = rich.refused("ApproveWithdrawal", approver="dave", **seen)
    assert refused == (STATE, "WITHDRAWAL_STATE")


def test_changed_content_is_neither_approved_nor_paid(rich: FundsDoor) -> None:
    made = rich.answer("RequestWithdrawal", **rich.wanted(amount="1")).withdrawal
    thief = superuser(rich.books)
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE withdrawals SET address = 'thief'")
    seen = {"id": made.id, "digest": made.digest}
    code, _ = rich.refused("ApproveWithdrawal", approver="bob", **seen)
    assert code == grpc.StatusCode.INTERNAL
    rich.rounds(3)
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE withdrawals SET address = %s", (OUTSIDE,))
    thief.dispose()
    assert rich.desk.custody.payouts() == []


def test_a_rejected_and_a_cancelled_withdrawal_come_back(rich: FundsDoor) -> None:
    first, second = (
        rich.answer("RequestWithdrawal", **rich.wanted(amount="1")).withdrawal for _ in range(2)
    )
    assert rich.balances(1) == {("FUNDING", "BTC"): 800_000_000, ("SUSPENSE", "BTC"): 200_000_000}
    for actor, reason in (("", "unusual"), ("bob", ""), ("bob", "x" * 201)):
        refused = rich.refused("RejectWithdrawal", id=first.id, actor=actor, reason=reason)
        assert refused == (INVALID, "TEXT_INVALID")
    gone = rich.answer("RejectWithdrawal", id=first.id, actor="bob", reason="unusual").withdrawal
    assert gone.reason == "unusual"
    assert rich.refused("CancelWithdrawal", id=second.id, actor="") == (INVALID, "TEXT_INVALID")
    rich.answer("CancelWithdrawal", id=second.id, actor="alice")
    assert [rich.state(one.id) for one in (first, second)] == ["REJECTED", "CANCELLED"]
    # Whoever did not hear the answer asks again; nothing is another decision after that.
    again = rich.answer("CancelWithdrawal", id=second.id, actor="alice").withdrawal
    assert again.state == funds_pb2.WITHDRAWAL_STATE_CANCELLED
    refused = rich.refused("RejectWithdrawal", id=second.id, actor="bob", reason="late")
    assert refused == (STATE, "WITHDRAWAL_STATE")
    for call in ("GetWithdrawal", "CancelWithdrawal"):
        fields = {"id": NOBODY} | ({"actor": "alice"} if call != "GetWithdrawal" else {})
        assert rich.refused(call, **fields) == (MISSING, "WITHDRAWAL_UNKNOWN")
    rich.rounds(3)
    assert rich.balances(1) == {("FUNDING", "BTC"): 1_000_000_000}


def test_without_approvals_in_time_it_expires(rich: FundsDoor) -> None:
    made = rich.answer("RequestWithdrawal", **rich.wanted(amount="1")).withdrawal
    rich.books.clock.now_ns += SETTINGS.approval_expiry_ns
    seen = {"id": made.id, "digest": made.digest, "approver": "bob"}
    assert rich.refused("ApproveWithdrawal", **seen) == (STATE, "WITHDRAWAL_EXPIRED")
    rich.rounds()
    assert rich.state(made.id) == "EXPIRED"
    assert rich.balances(1) == {("FUNDING", "BTC"): 1_000_000_000}


def test_withdrawals_in_pages_of_an_owner_and_of_what_waits(rich: FundsDoor) -> None:
    rich.funded(2, "10")
    rich.listed(2)
    made = [
        rich.answer("RequestWithdrawal", **rich.wanted(owner, amount=amount)).withdrawal.id
        for owner, amount in ((1, "1"), (1, "0.1"), (2, "1"), (1, "1"))
    ]

    def walk(**fields: Any) -> list[bytes]:
        seen, token = [], ""
        while True:
            page = rich.answer("ListWithdrawals", page_size=1, page_token=token, **fields)
            seen += [one.id for one in page.withdrawals]
            token = page.next_page_token
            if not token:
                return seen

    assert walk(owner_id=1) == [made[3], made[1], made[0]]
    assert walk(awaiting_approval=True) == [made[0], made[2], made[3]]
    assert walk(awaiting_approval=True, owner_id=2) == [made[2]]
    assert rich.refused("ListWithdrawals") == (INVALID, "ACCOUNT_UNKNOWN")
    assert rich.refused("ListWithdrawals", owner_id=1, page_size=-1) == (
        INVALID,
        "PAGE_SIZE_OUT_OF_RANGE",
    )


# An owner's own moves.


def test_own_moves_there_and_back(rich: FundsDoor) -> None:
    there = {"owner_id": 1, "asset": "BTC", "source": FUNDING, "target": TRADING, "actor": "alice"}
    made = rich.new_id()
    first = rich.answer("MoveFunds", id=made, amount="4", **there)
    again = rich.answer("MoveFunds", id=made, amount="4", **there)
    assert (first.repeated, again.repeated) == (False, True)
    assert first.transfer_id == again.transfer_id
    assert rich.refused("MoveFunds", id=made, amount="5", **there) == (
        INVALID,
        "TRANSFER_ID_REUSED",
    )
    assert rich.balances(1) == {("FUNDING", "BTC"): 600_000_000, ("TRADING", "BTC"): 400_000_000}
    back = there | {"source": TRADING, "target": FUNDING}
    short = rich.refused("MoveFunds", id=rich.new_id(), amount="4.00000001", **back)
    assert short == (STATE, "INSUFFICIENT_RELEASED_FUNDS")
    short = rich.refused("MoveFunds", id=rich.new_id(), amount="6.00000001", **there)
    assert short == (STATE, "INSUFFICIENT_FUNDS")
    rich.answer("MoveFunds", id=rich.new_id(), amount="4", **back)
    assert rich.balances(1) == {("FUNDING", "BTC"): 1_000_000_000}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"id": b"1"}, "ID_INVALID"),
        ({"amount": "0"}, "AMOUNT_ZERO"),
        ({"amount": "-3"}, "AMOUNT_NEGATIVE"),
        ({"amount": BEYOND_INT64}, "AMOUNT_BEYOND_INT64"),
        ({"amount": BEYOND_BOUND}, "AMOUNT_OUT_OF_RANGE"),
        ({"amount": "x"}, "AMOUNT_INVALID"),
        ({"asset": "DOGE"}, "ASSET_UNKNOWN"),
        ({"owner_id": 2}, "ACCOUNT_UNKNOWN"),
        ({"owner_id": 1, "owner_kind": 3}, "ACCOUNT_UNKNOWN"),
        ({"actor": ""}, "TEXT_INVALID"),
        ({"source": TRADING}, "PURPOSE_INVALID"),
        ({"target": ledger_pb2.ACCOUNT_PURPOSE_ALLOTTED}, "PURPOSE_INVALID"),
        ({"source": ledger_pb2.ACCOUNT_PURPOSE_CUSTODY}, "PURPOSE_INVALID"),
        ({"source": 99}, "ENUM_INVALID"),
    ],
)
def test_a_move_is_refused_with_its_reason(
    untouched: FundsDoor, other: dict[str, Any], reason: str
) -> None:
    good = {"id": untouched.new_id(), "owner_id": 1, "asset": "BTC", "amount": "1"}
    given = good | {"actor": "alice", "source": FUNDING, "target": TRADING} | other
    assert untouched.refused("MoveFunds", **given) == (INVALID, reason)


# What happened, and how it stands.


def test_events_are_handed_out_newest_first(rich: FundsDoor) -> None:
    shown = rich.answer("ListFundsEvents", page_size=2).events
    assert [event.kind for event in shown] == [
        funds_pb2.FUNDS_SUBJECT_ADDRESS,
        funds_pb2.FUNDS_SUBJECT_DEPOSIT,
    ]
    assert [event.state_name for event in shown] == ["LISTED", "CREDITED"]
    rest = rich.answer("ListFundsEvents", before=shown[-1].number).events
    assert [event.number for event in rest] == [1]
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
    good = {"address": "somewhere", "asset": "BTC", "amount": "1"}
    assert untouched.refused("SimulateDeposit", **(good | fields)) == (INVALID, reason)


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
            made = door.answer("RequestWithdrawal", **door.wanted(id=bytes(16))).withdrawal
            door.rounds(NEEDED + 4)
            assert door.state(made.id) == "APPROVED"
            (sentence,) = door.answer("GetFundsStatus").unexplained_payouts
            assert "which the books do not know" in sentence
    assert rich.desk.simulated.payouts() == [UUID(bytes=paid.id)]


def test_older_books_refuse_everything(rich: FundsDoor) -> None:
    made = rich.answer("RequestWithdrawal", **rich.wanted()).withdrawal
    rich.older = "restored from an older backup"
    assert rich.refused("ListDeposits", owner_id=1) == (STATE, "BOOKS_OLDER")
    rich.rounds(5)
    rich.older = ""
    assert rich.state(made.id) == "APPROVED"


def test_the_proof_of_the_books_is_one_of_money_too(
    rich: FundsDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    made = rich.answer("RequestWithdrawal", **rich.wanted()).withdrawal
    assert prove(rich.books.engine) == 0
    thief = superuser(rich.books)
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE withdrawals SET state = 5")
    assert prove(rich.books.engine) == 1
    shown = capsys.readouterr().out
    assert f"withdrawal {UUID(bytes=made.id)} is CONFIRMED and the books disagree" in shown
    assert "NOT SOUND" in shown
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE withdrawals SET state = 2")
    thief.dispose()
