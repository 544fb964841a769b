"""Coins against books: every stage of what is on its way, and what nothing explains."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from ledgerd.chart import OwnerKind
from ledgerd.custody.adapter import CustodyUnavailable, Payout, PayoutState
from ledgerd.heads import Heads
from ledgerd.reserves.holdings import TRIES, custody_complaints
from ledgerd.reserves.proof import prove
from tests.books import superuser
from tests.custody import NEEDED, NO_LIMITS, OUTSIDE, Desk, fresh_desk


@pytest.fixture
def desk() -> Iterator[Desk]:
    with fresh_desk() as made:
        made.funded(1, 10_000)
        made.listed(1)
        yield made


def complaints(desk: Desk, pauses: list[int] | None = None) -> list[str]:
    waited = [] if pauses is None else pauses
    return list(custody_complaints(desk.books.engine, desk.custody, lambda: waited.append(1)))


def at_once(desk: Desk) -> None:
    """Show that coins and books agree without a second look."""
    pauses: list[int] = []
    assert complaints(desk, pauses) == []
    assert pauses == []


def test_a_deposit_is_explained_at_every_stage(desk: Desk) -> None:
    address = desk.deposits.address(OwnerKind.USER, 2, "BTC")
    desk.deposits.follow()
    payment = desk.custody.receive(("BTC", address, 700))
    at_once(desk)
    desk.custody.mine()
    at_once(desk)
    desk.deposits.look(payment, 0)
    at_once(desk)
    desk.custody.mine(NEEDED)
    desk.deposits.look(payment, 0)
    desk.deposits.follow()
    at_once(desk)
    desk.custody.reorganise(NEEDED + 3, [payment])
    reversed_ = desk.deposits.look(payment, 0)
    assert reversed_ is not None
    at_once(desk)
    desk.deposits.write_off(reversed_.id, "carol")
    at_once(desk)


def test_a_withdrawal_is_explained_at_every_stage(desk: Desk) -> None:
    asked = desk.asked(1, 900)
    desk.withdrawals.request(asked, NO_LIMITS)
    states = []
    for _ in range(NEEDED + 4):
        at_once(desk)
        desk.withdrawals.advance()
        at_once(desk)
        desk.custody.mine()
        states.append(desk.state(asked.id))
    assert {"SENDING", "SENT", "CONFIRMED"} <= set(states)


def test_coins_that_are_not_there_are_missed(desk: Desk) -> None:
    desk.custody.broadcast(Payout(UUID(int=77), "BTC", OUTSIDE, 300))
    desk.custody.mine()
    pauses: list[int] = []
    unknown, short = complaints(desk, pauses)
    assert "which the books do not know" in unknown
    assert short.startswith("the custodian holds 9700 BTC units, not 10000: 10000 are booked")
    assert len(pauses) == TRIES - 1


def test_a_payout_of_another_amount_is_noticed(desk: Desk) -> None:
    asked = desk.asked(1, 900)
    desk.withdrawals.request(asked, NO_LIMITS)
    desk.withdrawals.advance()
    assert desk.state(asked.id) == "SENDING"
    desk.custody.broadcast(Payout(asked.id, "BTC", OUTSIDE, 9_000))
    (found,) = complaints(desk)
    assert "9000" in found
    assert "900]" in found


def test_a_withdrawal_that_was_never_paid_is_not_confirmed(desk: Desk) -> None:
    asked = desk.asked(1, 900)
    desk.withdrawals.request(asked, NO_LIMITS)
    thief = superuser(desk.books)
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE withdrawals SET state = 5")
    thief.dispose()
    (found,) = complaints(desk)
    assert found == f"withdrawal {asked.id} is CONFIRMED, and the custodian has no such payout"


def test_a_credited_deposit_that_the_chain_lost_is_named(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One to a piece, so that the lost one has others before and behind it in other pieces.
    monkeypatch.setattr("ledgerd.reserves.undone.BATCH", 1)
    lost = desk.funded(2, 700)
    desk.custody.reorganise(NEEDED + 1, [lost])
    desk.funded(3, 500)
    (made,) = [deposit.id for deposit in desk.deposits.of_owner(2)]
    short, named = complaints(desk)
    assert short.startswith("the custodian holds 10500 BTC units, not 11200")
    assert named == (
        f"deposit {made} of 700 BTC units is CREDITED, and the chain has it no more:"
        f" the payment is in no block (transaction {lost}, output 0)"
    )
    # Once the service has looked, it is REVERSED: booked in suspense, and explained.
    desk.deposits.look(lost, 0)
    at_once(desk)


def test_a_credited_deposit_that_the_custodian_forgot_is_named(desk: Desk) -> None:
    payment = desk.funded(2, 700)
    transactions = desk.custody._chain.transactions
    outputs = transactions[payment].outputs
    # To an address that is none of ours, it is no payment of ours at all.
    transactions[payment].outputs = tuple((asset, "theirs", units) for asset, _, units in outputs)
    _, named = complaints(desk)
    assert "of 700 BTC units is CREDITED" in named
    assert "the custodian knows no such payment" in named


def test_what_was_found_before_the_custodian_went_away_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ledgerd.reserves.proof.PAUSE_S", 0)
    asked = desk.asked(1, 900)
    desk.withdrawals.request(asked, NO_LIMITS)
    desk.paid_out(asked.id)
    desk.custody.reorganise(NEEDED + 1, [desk.funded(2, 700)])

    def away(*_: object) -> None:
        raise CustodyUnavailable("no answer")

    monkeypatch.setattr(desk.custody, "payout", away)
    heads = Heads(tmp_path / "heads")
    short, named, broken = prove(desk.books.engine, heads, desk.custody).complaints
    assert short.startswith("the custodian holds 9100 BTC units, not 9800")
    assert "of 700 BTC units is CREDITED" in named
    assert broken == "coins and books were not compared to the end: no answer"


@pytest.mark.parametrize("lost", [False, True], ids=["waits again", "never paid"])
def test_a_confirmed_withdrawal_that_the_chain_undid_is_named(desk: Desk, lost: bool) -> None:
    kept, undone = desk.asked(1, 900), desk.asked(1, 800)
    for asked in (kept, undone):
        desk.withdrawals.request(asked, NO_LIMITS)
        desk.paid_out(asked.id)
    status = desk.custody.payout(undone.id)
    assert status.state == PayoutState.ACCEPTED
    chain = desk.custody._chain
    payment = chain.transactions[status.transaction_id]
    chain.blocks[payment.height - 1].remove(payment.id)
    payment.height, payment.lost = 0, lost
    much, named = complaints(desk)
    assert much.startswith("the custodian holds 9100 BTC units, not 8300")
    says = "it was and will never be paid" if lost else "the payout is in no block"
    assert named == (
        f"withdrawal {undone.id} of 800 BTC units is CONFIRMED, and the chain has it no more:"
        f" {says} (transaction {payment.id})"
    )
