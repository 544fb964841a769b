"""Withdrawals and own moves through FundsService: every refusal, every replay, every end."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from exchange.v1 import funds_pb2, ledger_pb2
from tests.books import superuser
from tests.funds import (
    BEYOND_BOUND,
    BEYOND_INT64,
    INVALID,
    MISSING,
    NEEDED,
    NOBODY,
    OUTSIDE,
    SETTINGS,
    STATE,
    FundsDoor,
    rich_door,
    untouched_door,
)

FUNDING, TRADING = ledger_pb2.ACCOUNT_PURPOSE_FUNDING, ledger_pb2.ACCOUNT_PURPOSE_TRADING


@pytest.fixture
def rich() -> Iterator[FundsDoor]:
    with rich_door() as made:
        yield made


@pytest.fixture(scope="module")
def untouched() -> Iterator[FundsDoor]:
    with untouched_door() as made:
        yield made


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


def test_any_16_bytes_are_an_id(rich: FundsDoor) -> None:
    for made in (bytes(16), bytes([255] * 16)):
        rich.answer("RequestWithdrawal", **rich.wanted(id=made))
        rich.rounds(NEEDED + 4)
        assert rich.state(made) == "CONFIRMED"


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
    before = accounts(untouched)
    assert untouched.refused("MoveFunds", **given) == (INVALID, reason)
    assert accounts(untouched) == before


def accounts(door: FundsDoor) -> int:
    """Return how many accounts are open."""
    with door.books.engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT count(*) FROM accounts").fetchone()
    assert row is not None
    return int(row[0])
