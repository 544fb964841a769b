"""Coins against books: every stage of what is on its way, and what nothing explains."""

from collections.abc import Iterator
from uuid import UUID

import pytest

from ledgerd.chart import OwnerKind
from ledgerd.custody.adapter import Payout
from ledgerd.reserves.holdings import TRIES, custody_complaints
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
    return custody_complaints(desk.books.engine, desk.custody, lambda: waited.append(1))


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
