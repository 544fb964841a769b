"""Deposits: credited once and deep enough, undone quietly before that and loudly after."""

import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError

from exchange.refusal import Refused
from ledgerd.audit import verify
from ledgerd.chart import AccountName, OwnerKind, Purpose, TransferKind
from ledgerd.custody.adapter import Payout, PayoutConflict, PayoutState
from ledgerd.custody.deposit_rules import DepositState, DepositStep, next_step
from ledgerd.custody.proof import verify_money
from ledgerd.custody.simulated_chain import (
    CALM,
    Chain,
    PaymentConflict,
    SimulatedCustody,
    Weather,
)
from tests.books import superuser, user
from tests.custody import NEEDED, NO_LIMITS, Desk, fresh_desk

S, D = DepositState, DepositStep


@pytest.fixture
def desk() -> Iterator[Desk]:
    with fresh_desk() as made:
        yield made
        assert verify(made.books.engine).complaints == []
        assert verify_money(made.books.engine) == []


def sent(desk: Desk, amount: int, owner: int = 1, asset: str = "BTC") -> str:
    address = desk.deposits.address(OwnerKind.USER, owner, asset)
    return desk.custody.receive((asset, address, amount))


@pytest.mark.parametrize(
    ("state", "confirmations", "fits", "step"),
    [
        (S.UNSPECIFIED, 0, True, D.NONE),
        (S.UNSPECIFIED, 9, True, D.HOLD),
        (S.SEEN, 1, True, D.NONE),
        (S.SEEN, 0, True, D.VOID),
        (S.SEEN, 3, True, D.CREDIT),
        (S.SEEN, 3, False, D.UNCLAIM),
        (S.CREDITED, 3, True, D.NONE),
        (S.CREDITED, 2, True, D.REVERSE),
        (S.CREDITED, 0, True, D.REVERSE),
        (S.REVERSED, 2, True, D.NONE),
        (S.REVERSED, 3, True, D.RESTORE),
        (S.VOIDED, 0, True, D.NONE),
        (S.VOIDED, 1, True, D.HOLD),
        (S.UNCLAIMED, 3, False, D.NONE),
        (S.UNCLAIMED, 0, False, D.VOID),
        (S.LOST, 0, True, D.NONE),
        (S.LOST, 1, True, D.HOLD),
    ],
)
def test_each_state_has_one_next_step(
    state: DepositState, confirmations: int, fits: bool, step: DepositStep
) -> None:
    assert next_step(state, confirmations, 3, asset_fits=fits) == step


def test_a_payment_is_credited_once_when_it_is_deep_enough(desk: Desk) -> None:
    payment = sent(desk, 700)
    assert desk.deposits.look(payment, 0) is None
    desk.custody.mine()
    seen = desk.deposits.look(payment, 0)
    assert seen is not None
    assert (seen.state, desk.funding(1)) == (S.SEEN, 0)
    assert desk.of_exchange(Purpose.SUSPENSE) == 700
    desk.custody.mine(NEEDED - 1)
    for _ in range(3):
        done = desk.deposits.look(payment, 0)
        assert done is not None
        assert done.state == S.CREDITED
    assert (desk.funding(1), desk.of_exchange(Purpose.SUSPENSE)) == (700, 0)
    assert desk.of_exchange(Purpose.CUSTODY) == -700 == -desk.custody.holdings_units("BTC")


def test_two_outputs_of_one_payment_are_two_deposits(desk: Desk) -> None:
    first, second = (desk.deposits.address(OwnerKind.USER, owner, "BTC") for owner in (1, 2))
    desk.custody.receive(("BTC", first, 10), ("BTC", "elsewhere", 5), ("BTC", second, 20))
    desk.custody.mine(NEEDED)
    assert desk.deposits.follow() > 0
    assert (desk.funding(1), desk.funding(2)) == (10, 20)
    assert desk.deposits.follow() == 0


def test_a_reorganisation_before_it_is_deep_enough_voids(desk: Desk) -> None:
    payment = sent(desk, 700)
    desk.custody.mine()
    desk.deposits.look(payment, 0)
    desk.custody.reorganise(1, [payment])
    gone = desk.deposits.look(payment, 0)
    assert gone is not None
    assert (gone.state, desk.funding(1), desk.of_exchange(Purpose.CUSTODY)) == (S.VOIDED, 0, 0)


def test_a_voided_payment_that_is_mined_again_is_credited(desk: Desk) -> None:
    payment = sent(desk, 700)
    desk.custody.mine()
    desk.deposits.look(payment, 0)
    desk.custody.reorganise(1)
    desk.custody.mine(NEEDED)
    desk.deposits.sweep()
    assert desk.funding(1) == 700


def test_a_reorganisation_after_the_credit_is_loud_and_freezes(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    payment = desk.funded(1, 700)
    desk.listed(1)
    with caplog.at_level(logging.CRITICAL):
        desk.custody.reorganise(NEEDED, [payment])
        gone = desk.deposits.look(payment, 0)
    assert gone is not None
    assert (gone.state, gone.withheld_units, gone.shortfall_units) == (S.REVERSED, 700, 0)
    assert "700 withheld" in caplog.text
    assert (desk.funding(1), desk.suspense(1)) == (0, 700)
    desk.funded(1, 500)
    with pytest.raises(Refused, match="undone by the chain"):
        desk.withdrawals.request(desk.asked(1, 100), NO_LIMITS)
    lost = desk.deposits.write_off(gone.id, "carol")
    assert (lost.state, desk.suspense(1)) == (S.LOST, 0)
    assert desk.of_exchange(Purpose.CUSTODY) == -500 == -desk.custody.holdings_units("BTC")
    with pytest.raises(Refused, match="LOST, not REVERSED"):
        desk.deposits.write_off(gone.id, "carol")


def test_what_the_owner_no_longer_has_comes_from_insurance(desk: Desk) -> None:
    payment = desk.funded(1, 700)
    trading = user(1, "BTC")
    desk.books.ledger.open_accounts([trading])
    away = desk.books.transfer((user(1, "BTC", Purpose.FUNDING), -600), (trading, 600))
    desk.books.ledger.post([away])
    desk.custody.reorganise(NEEDED, [payment])
    gone = desk.deposits.look(payment, 0)
    assert gone is not None
    assert (gone.withheld_units, gone.shortfall_units) == (100, 600)
    with pytest.raises(Refused, match="nothing was posted"):
        desk.deposits.write_off(gone.id, "carol")
    desk.funded(2, 600)
    insurance = AccountName(OwnerKind.EXCHANGE, 0, Purpose.INSURANCE, "BTC")
    desk.books.ledger.open_accounts([insurance])
    given = desk.books.transfer(
        (user(2, "BTC", Purpose.FUNDING), -600), (insurance, 600), kind=TransferKind.CORRECTION
    )
    desk.books.ledger.post([given])
    desk.deposits.write_off(gone.id, "carol")
    assert desk.of_exchange(Purpose.INSURANCE) == 0
    assert desk.of_exchange(Purpose.CUSTODY) == -600 == -desk.custody.holdings_units("BTC")


def test_a_reversed_payment_that_comes_back_is_given_back(desk: Desk) -> None:
    payment = desk.funded(1, 700)
    desk.custody.reorganise(NEEDED)
    desk.deposits.look(payment, 0)
    desk.custody.mine(NEEDED)
    desk.deposits.sweep()
    assert (desk.funding(1), desk.suspense(1)) == (700, 0)


def test_an_asset_sent_to_another_assets_address_waits_for_a_person(desk: Desk) -> None:
    address = desk.deposits.address(OwnerKind.USER, 1, "BTC")
    payment = desk.custody.receive(("USDT", address, 50))
    desk.custody.mine(NEEDED)
    found = desk.deposits.look(payment, 0)
    assert found is not None
    assert (found.state, desk.funding(1, "USDT")) == (S.UNCLAIMED, 0)
    assert desk.of_exchange(Purpose.SUSPENSE, "USDT") == 50
    desk.deposits.claim(found.id, "carol")
    assert desk.funding(1, "USDT") == 50


@pytest.mark.parametrize(("asset", "amount"), [("BTC", 0), ("BTC", 1 << 70), ("DOGE", 5)])
def test_what_cannot_be_a_deposit_is_an_alarm_and_no_money(
    desk: Desk, asset: str, amount: int, caplog: pytest.LogCaptureFixture
) -> None:
    address = desk.deposits.address(OwnerKind.USER, 1, "BTC")
    payment = desk.custody.receive((asset, address, amount))
    desk.custody.mine(NEEDED)
    with caplog.at_level(logging.CRITICAL):
        for _ in range(2):
            assert desk.deposits.look(payment, 0) is None
    assert len(caplog.records) == 1
    assert desk.of_exchange(Purpose.CUSTODY) == 0


def test_addresses_are_for_traders_and_assets_that_there_are(desk: Desk) -> None:
    for owner, asset, reason in ((0, "BTC", "ACCOUNT_UNKNOWN"), (1, "DOGE", "ASSET_NOT_CARRIED")):
        with pytest.raises(Refused) as caught:
            desk.deposits.address(OwnerKind.USER, owner, asset)
        assert caught.value.refusal.reason == reason
    one = desk.deposits.address(OwnerKind.USER, 1, "BTC")
    assert desk.deposits.address(OwnerKind.USER, 1, "BTC") == one
    assert desk.deposits.address(OwnerKind.USER, 1, "USDT") != one


def test_a_forged_state_and_a_forged_event_are_named(desk: Desk) -> None:
    payment = sent(desk, 700)
    desk.custody.mine()
    seen = desk.deposits.look(payment, 0)
    assert seen is not None
    thief = superuser(desk.books)
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE deposits SET state = 3")
    assert verify_money(desk.books.engine) == [
        f"deposits {seen.id}: state is 3; its events say 1",
        f"deposit {seen.id} is VOIDED and the books disagree",
    ]
    with thief.begin() as connection:
        connection.exec_driver_sql("UPDATE deposits SET state = 1")
        connection.exec_driver_sql("SET session_replication_role = replica")
        connection.exec_driver_sql("UPDATE money_events SET actor = 'nobody' WHERE number = 2")
    assert verify_money(desk.books.engine) == [f"event 2, of {seen.id}, was changed"]
    with thief.begin() as connection:
        connection.exec_driver_sql("SET session_replication_role = replica")
        connection.exec_driver_sql("UPDATE money_events SET actor = 'ledgerd' WHERE number = 2")
    thief.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM deposits",
        "UPDATE deposits SET amount_units = 1",
        "UPDATE withdrawals SET address = 'mine'",
        "UPDATE money_events SET actor = ''",
        "DELETE FROM withdrawal_approvals",
        "UPDATE withdrawal_addresses SET usable_ns = 0",
    ],
)
def test_the_service_may_not_change_whom_how_much_and_where_to(desk: Desk, statement: str) -> None:
    with desk.books.engine.connect() as connection, pytest.raises(ProgrammingError) as caught:
        connection.exec_driver_sql(statement)
    assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege)


# The chain itself.


def unruly(seed: int) -> Chain:
    chain = Chain(seed, Weather(30, 3, 30, 20, 30, 50, 50, 4))
    address = chain.address("BTC", "key")
    for number in range(60):
        chain.receive([("BTC", address, number + 1)])
        chain.pay(f"payout {number}", "BTC", "out", 1)
        chain.mine()
    return chain


def test_a_chain_is_a_function_of_its_seed() -> None:
    assert unruly(7) == unruly(7)
    assert unruly(7).blocks != unruly(8).blocks


def test_an_unruly_chain_does_all_that_chains_do() -> None:
    chain = unruly(7)
    assert chain.taken_count > 0
    assert any(one.lost and one.ours for one in chain.transactions.values())
    assert any(one.lost and not one.ours for one in chain.transactions.values())
    order = [list(chain.transactions).index(name) for name, _ in chain.notices]
    assert order != sorted(order)
    assert len(chain.notices) > len(set(chain.notices))


def test_whoever_opens_the_file_sees_the_same_chain(tmp_path: Path) -> None:
    path = tmp_path / "chain.log"
    one, two = (SimulatedCustody(path, 3, ["BTC"], CALM) for _ in range(2))
    address = one.new_address("BTC", "key")
    payment = two.receive(("BTC", address, 9))
    one.mine(2)
    with path.open("ab") as file:
        file.write(b'["receive", [["BTC"')
    assert two.incoming(payment, 0) == one.incoming(payment, 0)
    two.mine()
    three = SimulatedCustody(path, 3, ["BTC"], CALM)
    found = three.incoming(payment, 0)
    assert found is not None
    assert found.confirmations == 3


def test_a_payment_from_outside_is_made_once_for_its_id_whoever_opens_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chain.log"
    # As a file of before payments had ids begins.
    path.write_bytes(b'["receive", [["BTC", "before", 5]]]\n')
    one, two = (SimulatedCustody(path, 3, ["BTC"], CALM) for _ in range(2))
    address = one.new_address("BTC", "key")
    payment = one.receive(("BTC", address, 9), payment_id=UUID(int=1))
    assert two.receive(("BTC", address, 9), payment_id=UUID(int=1)) == payment
    other = two.receive(("BTC", address, 9), payment_id=UUID(int=2))
    assert other != payment
    for content in (("BTC", address, 8), ("BTC", "elsewhere", 9)):
        with pytest.raises(PaymentConflict):
            one.receive(content, payment_id=UUID(int=1))
    three = SimulatedCustody(path, 3, ["BTC"], CALM)
    assert three.receive(("BTC", address, 9), payment_id=UUID(int=1)) == payment
    three.mine()
    assert one.holdings_units("BTC") == 18


def test_a_payout_id_pays_once_and_one_content_only(tmp_path: Path) -> None:
    custody = SimulatedCustody(tmp_path / "chain.log", 3, ["BTC"], CALM)
    payout = Payout(UUID(int=1), "BTC", "outside", 7)
    assert custody.payout(payout.id).state == PayoutState.UNKNOWN
    assert custody.broadcast(payout) == custody.broadcast(payout)
    custody.mine()
    assert custody.paid_units("BTC", "outside") == 7
    assert custody.holdings_units("BTC") == -7
    with pytest.raises(PayoutConflict):
        custody.broadcast(Payout(UUID(int=1), "BTC", "elsewhere", 7))
    assert custody.paid_units("BTC", "elsewhere") == 0
