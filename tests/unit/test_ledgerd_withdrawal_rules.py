"""The rules of withdrawals by themselves, and every refusal through the real books."""

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest

from exchange.refusal import Refused
from ledgerd.audit import verify
from ledgerd.chart import BOUND_UNITS, OwnerKind, Purpose
from ledgerd.custody.adapter import CustodyUnavailable, Payout, PayoutConflict, PayoutStatus
from ledgerd.custody.addresses import Address, move_own
from ledgerd.custody.bookings import ContentChanged
from ledgerd.custody.proof import unexplained_payouts, verify_money
from ledgerd.custody.withdrawal_rules import (
    COUNTED,
    EFFECTS,
    HELD,
    TRANSITIONS,
    Asked,
    Effect,
    Facts,
    Limits,
    Policy,
    Standing,
    WithdrawalEvent,
    WithdrawalState,
    judge_approval,
    judge_request,
)
from ledgerd.custody.withdrawals import Withdrawals
from tests.books import superuser, user
from tests.custody import HOUR_NS, NEEDED, NO_LIMITS, OUTSIDE, POLICY, Desk, desk_over, fresh_desk

S, E = WithdrawalState, WithdrawalEvent
ASKED = Asked(UUID(int=1), OwnerKind.USER, 1, "BTC", 100, OUTSIDE, "alice")
GOOD = Facts(
    now_ns=1_000, asset_listed=True, asset_carried=True, account_open=True, usable_ns=1_000
)
INT64 = (1 << 63) - 1


@pytest.mark.parametrize(
    ("asked", "facts", "limits", "reason"),
    [
        ({"amount_units": 0}, {}, NO_LIMITS, "AMOUNT_ZERO"),
        ({"amount_units": -1}, {}, NO_LIMITS, "AMOUNT_NEGATIVE"),
        ({"amount_units": INT64 + 1}, {}, NO_LIMITS, "AMOUNT_BEYOND_INT64"),
        ({"amount_units": INT64}, {}, NO_LIMITS, "AMOUNT_OUT_OF_RANGE"),
        ({"amount_units": BOUND_UNITS}, {}, NO_LIMITS, None),
        ({"owner_kind": OwnerKind.EXCHANGE}, {}, NO_LIMITS, "ACCOUNT_UNKNOWN"),
        ({"owner_id": 0}, {}, NO_LIMITS, "ACCOUNT_UNKNOWN"),
        ({}, {"asset_listed": False}, NO_LIMITS, "ASSET_UNKNOWN"),
        ({}, {"asset_carried": False}, NO_LIMITS, "ASSET_NOT_CARRIED"),
        ({}, {"account_open": False}, NO_LIMITS, "ACCOUNT_UNKNOWN"),
        ({}, {"address_must_be": "shorter"}, NO_LIMITS, "ADDRESS_INVALID"),
        ({}, {"usable_ns": None}, NO_LIMITS, "ADDRESS_NOT_LISTED"),
        ({}, {"usable_ns": None, "listed_for": "USDT"}, NO_LIMITS, "ADDRESS_OTHER_ASSET"),
        ({}, {"usable_ns": 1_001}, NO_LIMITS, "ADDRESS_TOO_FRESH"),
        ({}, {"frozen": True}, NO_LIMITS, "OWNER_FROZEN"),
        ({}, {"withdrawn_units": 901}, Limits(1_000), "DAILY_WITHDRAWAL_LIMIT"),
        ({}, {"withdrawn_units": 900}, Limits(1_000), None),
        ({}, {}, Limits(0), "DAILY_WITHDRAWAL_LIMIT"),
        ({}, {"total_withdrawn_units": 901}, Limits(None, 1_000), "TOTAL_WITHDRAWAL_LIMIT"),
        ({}, {}, NO_LIMITS, None),
    ],
)
def test_a_request_is_refused_with_its_reason(
    asked: dict[str, object], facts: dict[str, object], limits: Limits, reason: str | None
) -> None:
    found = judge_request(
        replace(ASKED, **asked),  # type: ignore[arg-type]
        replace(GOOD, **facts),  # type: ignore[arg-type]
        limits,
    )
    assert (found.reason if found else None) == reason


def test_money_is_resolved_exactly_once_on_every_way_through() -> None:
    def ways(state: WithdrawalState, resolved: int) -> Iterator[tuple[WithdrawalState, int]]:
        following = [(e, to) for (at, e), to in TRANSITIONS.items() if at == state]
        if not following:
            yield state, resolved
        for event, to in following:
            effect = EFFECTS.get(event, Effect.NONE)
            yield from ways(to, resolved + (effect in {Effect.PAID, Effect.REFUNDED}))
            assert (to in HELD) == (resolved == 0 and effect == Effect.NONE)

    ends = list(ways(S.AWAITING_APPROVAL, 0))
    assert {resolved for _, resolved in ends} == {1}
    assert {state for state, _ in ends} == set(S) - set(COUNTED) - {S.UNSPECIFIED} | {S.RETURNED}


def test_nothing_takes_back_what_the_custodian_may_have_been_told() -> None:
    for state, event in TRANSITIONS:
        if event in {E.CANCEL, E.REJECT, E.EXPIRE}:
            assert state in {S.AWAITING_APPROVAL, S.APPROVED}


@pytest.mark.parametrize(
    ("approver", "now_ns", "state", "digest", "reason"),
    [
        ("alice", 5, S.AWAITING_APPROVAL, None, "APPROVER_IS_REQUESTER"),
        ("bob", 5, S.AWAITING_APPROVAL, b"other", "CONTENT_CHANGED"),
        ("bob", 10, S.AWAITING_APPROVAL, None, "WITHDRAWAL_EXPIRED"),
        ("bob", 5, S.EXPIRED, None, "WITHDRAWAL_EXPIRED"),
        ("bob", 5, S.SENDING, None, "WITHDRAWAL_STATE"),
        ("bob", 9, S.AWAITING_APPROVAL, b"seen", None),
    ],
)
def test_an_approval_is_refused_with_its_reason(
    approver: str, now_ns: int, state: WithdrawalState, digest: bytes | None, reason: str | None
) -> None:
    standing = Standing(UUID(int=1), state, "alice", 10, b"seen")
    found = judge_approval(standing, approver, now_ns, digest)
    assert (found.reason if found else None) == reason


def test_a_policy_that_says_nothing_asks_for_one_approval() -> None:
    assert Policy().approvals_needed("BTC", 1) == 1
    assert [POLICY.approvals_needed("USDT", n) for n in (1_000, 1_001, 1_000_001)] == [0, 1, 2]


# Through the books.


@pytest.fixture
def desk() -> Iterator[Desk]:
    with fresh_desk() as made:
        made.funded(1, 10_000)
        made.listed(1)
        yield made
        assert verify(made.books.engine).complaints == []
        assert verify_money(made.books.engine) == []
        assert unexplained_payouts(made.books.engine, made.custody) == []


def refusal(desk: Desk, asked: Asked, limits: Limits = NO_LIMITS) -> str:
    before = desk.funding(1), desk.suspense(1)
    with pytest.raises(Refused) as caught:
        desk.withdrawals.request(asked, limits)
    assert (desk.funding(1), desk.suspense(1)) == before
    assert desk.withdrawals.get(asked.id) is None
    return caught.value.refusal.reason


def test_a_small_withdrawal_goes_through_by_itself(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS)
    assert (made.state, desk.funding(1), desk.suspense(1)) == (S.APPROVED, 9_100, 900)
    assert desk.paid_out(made.id).state == S.CONFIRMED
    assert (desk.funding(1), desk.suspense(1)) == (9_100, 0)
    assert desk.custody.paid_units("BTC", OUTSIDE) == 900
    assert desk.of_exchange(Purpose.CUSTODY) == -9_100 == -desk.custody.holdings_units("BTC")


def test_bad_requests_are_refused_and_leave_nothing(desk: Desk) -> None:
    assert refusal(desk, desk.asked(1, 0)) == "AMOUNT_ZERO"
    assert refusal(desk, desk.asked(1, -5)) == "AMOUNT_NEGATIVE"
    assert refusal(desk, desk.asked(1, 1 << 63)) == "AMOUNT_BEYOND_INT64"
    assert refusal(desk, desk.asked(1, 5, asset="DOGE")) == "ASSET_UNKNOWN"
    assert refusal(desk, desk.asked(1, 5, asset="USDT")) == "ACCOUNT_UNKNOWN"
    assert refusal(desk, desk.asked(9, 5)) == "ACCOUNT_UNKNOWN"
    assert refusal(desk, desk.asked(1, 5, address="outside2")) == "ADDRESS_NOT_LISTED"
    assert refusal(desk, desk.asked(1, 5, address="a b")) == "ADDRESS_INVALID"
    ours = desk.deposits.address(OwnerKind.USER, 2, "BTC")
    assert refusal(desk, desk.asked(1, 5, address=ours)) == "ADDRESS_INVALID"
    assert refusal(desk, desk.asked(1, 5, requester="")) == "TEXT_INVALID"
    assert refusal(desk, desk.asked(1, 10_001)) == "INSUFFICIENT_FUNDS"


def test_a_fresh_address_waits_and_waits_again_when_listed_again(desk: Desk) -> None:
    wanted = Address(desk.books.new_id(), OwnerKind.USER, 1, "BTC", "outside2", "alice")
    listed = desk.addresses.add(wanted)
    assert desk.addresses.add(wanted) == listed
    with pytest.raises(Refused, match="never used"):
        desk.addresses.add(replace(wanted, address="outside3"))
    assert refusal(desk, desk.asked(1, 5, address="outside2")) == "ADDRESS_TOO_FRESH"
    desk.books.clock.now_ns += HOUR_NS
    desk.withdrawals.request(desk.asked(1, 5, address="outside2"), NO_LIMITS)
    desk.addresses.remove(listed.id, "alice")
    assert refusal(desk, desk.asked(1, 5, address="outside2")) == "ADDRESS_NOT_LISTED"
    desk.addresses.add(replace(wanted, id=desk.books.new_id()))
    assert refusal(desk, desk.asked(1, 5, address="outside2")) == "ADDRESS_TOO_FRESH"


def test_an_address_removed_before_sending_gives_the_money_back(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS)
    desk.addresses.remove(desk.addresses.of_owner(1)[0].id, "alice")
    desk.withdrawals.advance()
    assert (desk.state(made.id), desk.funding(1)) == ("REJECTED", 10_000)


def test_the_limit_counts_what_is_under_way_and_forgets_after_a_day(desk: Desk) -> None:
    limits = Limits(1_000)
    made = desk.withdrawals.request(desk.asked(1, 600), limits)
    assert refusal(desk, desk.asked(1, 401), limits) == "DAILY_WITHDRAWAL_LIMIT"
    desk.withdrawals.cancel(made.id, "alice")
    desk.withdrawals.request(desk.asked(1, 1_000), limits)
    assert refusal(desk, desk.asked(1, 1), limits) == "DAILY_WITHDRAWAL_LIMIT"
    desk.books.clock.now_ns += 24 * HOUR_NS
    desk.withdrawals.request(desk.asked(1, 1_000), limits)


def test_a_replayed_request_is_the_first_one_and_other_content_is_refused(desk: Desk) -> None:
    asked = desk.asked(1, 600)
    desk.withdrawals.request(asked, NO_LIMITS)
    again = desk.withdrawals.request(asked, NO_LIMITS)
    assert again.repeated
    with pytest.raises(Refused, match="never used"):
        desk.withdrawals.request(replace(asked, amount_units=601), NO_LIMITS)
    assert desk.suspense(1) == 600
    assert desk.paid_out(asked.id).state == S.CONFIRMED
    assert desk.withdrawals.request(asked, NO_LIMITS).state == S.CONFIRMED


def test_a_large_withdrawal_needs_somebody_else(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 1_001, requester="alice"), NO_LIMITS)
    desk.withdrawals.advance()
    assert desk.state(made.id) == "AWAITING_APPROVAL"
    with pytest.raises(Refused, match="somebody else") as caught:
        desk.withdrawals.approve(made.id, "alice")
    assert caught.value.refusal.reason == "APPROVER_IS_REQUESTER"
    assert [waiting.id for waiting in desk.withdrawals.awaiting()] == [made.id]
    assert desk.withdrawals.approve(made.id, "bob", made.digest).state == S.APPROVED
    assert desk.withdrawals.approve(made.id, "bob").repeated
    assert desk.paid_out(made.id).state == S.CONFIRMED
    with pytest.raises(Refused, match="CONFIRMED; CANCEL is not possible"):
        desk.withdrawals.cancel(made.id, "alice")


def test_two_approvals_are_two_people(desk: Desk) -> None:
    desk.funded(1, 2_000_000, "USDT")
    desk.listed(1, "outside9", "USDT")
    asked = desk.asked(1, 1_500_000, asset="USDT", address="outside9", requester="alice")
    made = desk.withdrawals.request(asked, NO_LIMITS)
    assert desk.withdrawals.approve(made.id, "bob").state == S.AWAITING_APPROVAL
    assert desk.withdrawals.approve(made.id, "bob").state == S.AWAITING_APPROVAL
    assert desk.withdrawals.approve(made.id, "carol").state == S.APPROVED


def test_without_approval_in_time_the_money_comes_back(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 5_000), NO_LIMITS)
    assert desk.withdrawals.expire() == 0
    desk.books.clock.now_ns += 2 * HOUR_NS
    with pytest.raises(Refused, match="waited too long"):
        desk.withdrawals.approve(made.id, "bob")
    assert desk.withdrawals.expire() == 1
    assert (desk.state(made.id), desk.funding(1)) == ("EXPIRED", 10_000)


def test_a_rejected_withdrawal_comes_back_with_its_reason(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 5_000), NO_LIMITS)
    gone = desk.withdrawals.reject(made.id, "bob", "unusual")
    assert (gone.state, gone.reason, desk.funding(1)) == (S.REJECTED, "unusual", 10_000)
    with pytest.raises(Refused, match="there is no withdrawal"):
        desk.withdrawals.reject(UUID(int=99), "bob", "unusual")


class Deaf:
    """A custodian that pays and whose answers are lost."""

    def __init__(self, desk: Desk, *, hears: bool) -> None:
        self._custody, self._hears = desk.custody, hears

    def __getattr__(self, name: str) -> object:
        return getattr(self._custody, name)

    def broadcast(self, payout: Payout) -> PayoutStatus:
        if self._hears:
            self._custody.broadcast(payout)
        raise CustodyUnavailable("no answer")


@pytest.mark.parametrize("hears", [True, False])
def test_a_lost_answer_neither_pays_twice_nor_gives_back(desk: Desk, hears: bool) -> None:
    made = desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS)
    deaf = Withdrawals(desk.money, Deaf(desk, hears=hears), POLICY)  # type: ignore[arg-type]
    deaf.advance()
    for _ in range(3):
        with pytest.raises(CustodyUnavailable):
            deaf.advance()
    assert (desk.state(made.id), desk.suspense(1)) == ("SENDING", 900)
    with pytest.raises(Refused, match="not possible"):
        desk.withdrawals.cancel(made.id, "alice")
    assert desk.paid_out(made.id).state == S.CONFIRMED
    assert desk.custody.paid_units("BTC", OUTSIDE) == 900


def test_who_comes_second_finds_the_state_moved(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS)
    desk.withdrawals.advance()
    seen = desk.withdrawals.get(made.id)
    assert seen is not None
    assert seen.state == S.SENDING
    assert desk.withdrawals._tell(seen)
    assert not desk.withdrawals._tell(seen)
    assert desk.state(made.id) == "SENT"
    assert desk.paid_out(made.id).state == S.CONFIRMED
    assert desk.custody.paid_units("BTC", OUTSIDE) == 900


def test_a_failed_payout_is_refunded_once(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS)
    for _ in range(2):
        desk.withdrawals.advance()
    found = desk.withdrawals.get(made.id)
    assert found is not None
    desk.custody.reorganise(0, [found.transaction_id])
    assert desk.paid_out(made.id).state == S.FAILED
    assert (desk.funding(1), desk.custody.paid_units("BTC", OUTSIDE)) == (10_000, 0)


def test_a_payment_undone_after_it_was_confirmed_goes_to_suspense(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS)
    done = desk.paid_out(made.id)
    desk.custody.reorganise(12, [done.transaction_id])
    desk.custody.mine(12)
    desk.withdrawals.advance()
    assert (desk.state(made.id), desk.funding(1)) == ("RETURNED", 9_100)
    assert desk.of_exchange(Purpose.SUSPENSE) == 900
    assert desk.withdrawals.advance() == 0


def test_a_redirected_withdrawal_stops_all_sending_and_nothing_else(desk: Desk) -> None:
    sent = desk.withdrawals.request(desk.asked(1, 100), NO_LIMITS)
    for _ in range(2):
        desk.withdrawals.advance()
    one, other = (desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS) for _ in range(2))
    thief = superuser(desk.books)
    with thief.begin() as connection:
        statement = "UPDATE withdrawals SET address = 'thief' WHERE id = %s"
        connection.exec_driver_sql(statement, (one.id,))
    assert desk.paid_out(other.id).state == S.APPROVED
    assert [desk.state(made.id) for made in (sent, one)] == ["CONFIRMED", "APPROVED"]
    assert "is not what was asked for" in desk.withdrawals.moving.troubles[one.id]
    assert any(str(one.id) in sentence for sentence in verify_money(desk.books.engine))
    with pytest.raises(ContentChanged):
        desk.withdrawals.step(one.id)
    with thief.begin() as connection:
        connection.exec_driver_sql(f"UPDATE withdrawals SET address = '{OUTSIDE}'")
    thief.dispose()
    assert [one.id for one in desk.custody.payouts()] == [sent.id]
    assert {desk.paid_out(made.id).state for made in (one, other)} == {S.CONFIRMED}
    assert desk.withdrawals.moving.troubles == {}


class Conflicting:
    """A custodian that has one payout's id for another payment."""

    def __init__(self, desk: Desk, subject: UUID) -> None:
        self._custody, self._subject = desk.custody, subject

    def __getattr__(self, name: str) -> object:
        return getattr(self._custody, name)

    def broadcast(self, payout: Payout) -> PayoutStatus:
        if payout.id == self._subject:
            raise PayoutConflict(f"payout {payout.id} was something else")
        return self._custody.broadcast(payout)


def test_one_bad_row_does_not_stop_the_others(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    made = [desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS) for _ in range(3)]
    odd = Conflicting(desk, made[1].id)
    withdrawals = Withdrawals(desk.money, odd, POLICY)  # type: ignore[arg-type]
    for _ in range(2 * NEEDED + 4):
        withdrawals.advance()
        desk.custody.mine()
    assert [desk.state(one.id) for one in made] == ["CONFIRMED", "SENDING", "CONFIRMED"]
    assert list(withdrawals.moving.troubles) == [made[1].id]
    # It is told once, not in every round.
    assert caplog.text.count("was something else\n") <= 2


def test_old_rows_do_not_keep_new_ones_waiting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledgerd.custody.withdrawals.BATCH", 2)
    for _ in range(5):
        desk.withdrawals.request(desk.asked(1, 100), NO_LIMITS)
    for _ in range(15):
        desk.withdrawals.advance()
        desk.custody.mine()
    last = desk.withdrawals.request(desk.asked(1, 100), NO_LIMITS)
    assert desk.paid_out(last.id).state == S.CONFIRMED
    done = desk.withdrawals.of_owner(1)
    assert {one.state for one in done} == {S.CONFIRMED}
    # All that are only watched have their turn, too: one that the chain undoes is found.
    undone = max(done, key=lambda one: one.id)
    desk.custody.reorganise(len(desk.custody._chain.blocks), [undone.transaction_id])
    for _ in range(4):
        desk.withdrawals.advance()
    assert desk.state(undone.id) == "RETURNED"


def test_an_older_database_does_not_explain_what_the_custodian_paid(desk: Desk) -> None:
    made = desk.withdrawals.request(desk.asked(1, 900), NO_LIMITS)
    desk.paid_out(made.id)
    with fresh_desk() as older:
        again = desk_over(older.books, desk.custody)
        found = unexplained_payouts(again.books.engine, desk.custody)
    assert found == [f"the custodian has payout {made.id}, which the books do not know"]


def test_only_released_money_goes_from_trading_to_funding(desk: Desk) -> None:
    ledger, owner = desk.books.ledger, (OwnerKind.USER, 1)
    ledger.open_accounts([user(1, "BTC")])
    out, back = (Purpose.FUNDING, Purpose.TRADING), (Purpose.TRADING, Purpose.FUNDING)
    move_own(desk.money, ledger, desk.books.new_id(), owner, "BTC", 500, out, "alice")
    with pytest.raises(Refused) as caught:
        move_own(desk.money, ledger, desk.books.new_id(), owner, "BTC", 501, back, "alice")
    assert caught.value.refusal.reason == "INSUFFICIENT_RELEASED_FUNDS"
    made = desk.books.new_id()
    assert not move_own(desk.money, ledger, made, owner, "BTC", 500, back, "alice").repeated
    assert move_own(desk.money, ledger, made, owner, "BTC", 500, back, "alice").repeated
    for amount, reason in ((0, "AMOUNT_ZERO"), (-1, "AMOUNT_NEGATIVE")):
        with pytest.raises(Refused) as caught:
            move_own(desk.money, ledger, desk.books.new_id(), owner, "BTC", amount, back, "alice")
        assert caught.value.refusal.reason == reason
    wrong = (Purpose.ALLOTTED, Purpose.FUNDING)
    with pytest.raises(Refused, match="FUNDING to TRADING"):
        move_own(desk.money, ledger, desk.books.new_id(), owner, "BTC", 1, wrong, "alice")
