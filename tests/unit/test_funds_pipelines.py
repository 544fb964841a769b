"""The rounds of deposits and withdrawals: bounded, in turn, and stopped by no single row."""

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from exchange.refusal import Refusal, Refused
from exchange.v1 import funds_pb2
from ledgerd.custody.adapter import Incoming
from ledgerd.custody.deposits import Deposits
from ledgerd.custody.journal import MoneyBooks
from ledgerd.custody.simulated_chain import NOTICE_DEPTH, Chain, SimulatedCustody, Weather
from tests.books import superuser
from tests.funds import NEEDED, FundsDoor, fresh_door


@pytest.fixture
def door() -> Iterator[FundsDoor]:
    with fresh_door() as made:
        yield made


class Odd:
    """A custodian whose answer about one payment, or about all, makes a look fail."""

    def __init__(self, custody: SimulatedCustody, bad: str = "all") -> None:
        self.custody, self.bad = custody, bad

    def __getattr__(self, name: str) -> object:
        return getattr(self.custody, name)

    def incoming(self, transaction_id: str, output_index: int) -> Incoming | None:
        if self.bad in {transaction_id, "all"}:
            raise ValueError("an answer that nobody foresaw")
        return self.custody.incoming(transaction_id, output_index)


def paid(door: FundsDoor, owner: int, amount: str) -> str:
    address = door.answer("GetDepositAddress", owner_id=owner, asset="BTC").address
    return door.paid(address, amount)


def credited(door: FundsDoor, owner: int) -> int:
    deposits = door.answer("ListDeposits", owner_id=owner).deposits
    return sum(one.state == funds_pb2.DEPOSIT_STATE_CREDITED for one in deposits)


def cursor(door: FundsDoor) -> int:
    with door.books.engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT cursor FROM custody_cursors").fetchone()
    return 0 if row is None else int(row[0])


def test_a_notice_whose_look_fails_is_tried_again_and_never_passed(door: FundsDoor) -> None:
    assert door.desk.simulated is not None
    bad, good = paid(door, 1, "1"), paid(door, 2, "1")
    odd = Odd(door.desk.simulated, bad)
    deposits = Deposits(door.desk.books, odd, door.desk.policy)  # type: ignore[arg-type]
    for _ in range(2 * NOTICE_DEPTH):
        door.desk.simulated.mine_if_unsettled(NOTICE_DEPTH)
        deposits.follow()
        deposits.sweep()
    # The other one is through, and no later notice will come of either.
    assert (credited(door, 1), credited(door, 2)) == (0, 1)
    assert bad in {name for name, _ in door.desk.simulated._chain.notices[cursor(door) :]}
    assert "nobody foresaw" in "".join(deposits.notices.troubles.values())
    again = Deposits(door.desk.books, door.desk.simulated, door.desk.policy)
    again.follow()
    assert (credited(door, 1), credited(door, 2)) == (1, 1)
    assert cursor(door) == len(door.desk.simulated._chain.notices)
    odd.bad = ""
    deposits.follow()
    assert deposits.notices.troubles == {}
    assert good != bad


def test_so_many_failed_looks_end_the_reading(
    door: FundsDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerd.custody.deposits.RETRY_LIMIT", 2)
    assert door.desk.simulated is not None
    for owner in range(1, 6):
        paid(door, owner, "1")
    door.desk.simulated.mine(5)
    odd = Odd(door.desk.simulated)
    deposits = Deposits(door.desk.books, odd, door.desk.policy)  # type: ignore[arg-type]
    for _ in range(6):
        deposits.follow()
        assert len(deposits._again) <= 2
    odd.bad = ""
    for _ in range(len(door.desk.simulated._chain.notices)):
        deposits.follow()
    assert [credited(door, owner) for owner in range(1, 6)] == [1] * 5


def test_many_watched_deposits_do_not_delay_a_new_one(
    door: FundsDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerd.custody.deposits.LOOK_LIMIT", 2)
    for _ in range(7):
        door.funded(1, "1")
    assert door.desk.simulated is not None
    address = door.answer("GetDepositAddress", owner_id=2, asset="BTC").address
    payment = door.desk.simulated.receive(("BTC", address, 5))
    door.desk.simulated.mine()
    door.desk.deposits.look(payment, 0)
    door.desk.simulated.mine(NEEDED)
    door.desk.deposits.sweep()
    assert credited(door, 2) == 1
    # All that are watched have their turn: a reorganisation far back is found without a notice.
    last = max(door.answer("ListDeposits", owner_id=1).deposits, key=lambda one: one.id)
    chain = door.desk.simulated._chain
    door.desk.simulated.reorganise(len(chain.blocks), [last.transaction_id])
    for _ in range(5):
        door.desk.deposits.sweep()
    assert door.answer("GetFundsStatus").undecided_count == 1


def test_a_look_that_finds_nothing_takes_no_lock(door: FundsDoor) -> None:
    door.funded(1, "1")
    owner = superuser(door.books)
    with owner.begin() as connection:
        # Whoever holds the books' own stream keeps every writer out.
        connection.exec_driver_sql("SELECT FROM streams WHERE id = 0 FOR UPDATE")
        assert door.desk.deposits.sweep() == 0
        assert door.desk.withdrawals.advance() == 0
    owner.dispose()


def test_a_round_that_fails_is_told_and_the_next_one_goes_on(
    door: FundsDoor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[Exception] = [
        ValueError("nobody foresaw it"),
        psycopg.OperationalError("server closed the connection"),
        Refused(Refusal.of_field("X", "x", 1, "2")),
    ]

    def failing(_: MoneyBooks, __: Any) -> Any:
        raise errors.pop(0)

    monkeypatch.setattr(MoneyBooks, "read", failing)
    said = []
    while errors:
        assert not door.pipelines.tried("deposits", door.pipelines.deposit_round)
        said.append(door.pipelines.waiting_for)
    monkeypatch.undo()
    assert "ValueError" in said[0]
    assert said[1] == "the database does not answer: server closed the connection"
    assert "nobody foresaw it" in caplog.text
    door.rounds()
    assert door.pipelines.waiting_for == ""
    door.funded(1, "1")
    assert credited(door, 1) == 1


def test_the_rounds_run_by_themselves_and_end_when_told(door: FundsDoor) -> None:
    paid(door, 1, "1")

    async def until_credited() -> None:
        running = asyncio.create_task(door.pipelines.run())
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(credited, door, 1):
                continue
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(until_credited())
    assert door.pipelines.waiting_for == ""


def test_a_chain_on_which_nothing_happens_stands_still(door: FundsDoor) -> None:
    custody = door.desk.simulated
    assert custody is not None
    assert not custody.mine_if_unsettled(3)
    paid(door, 1, "1")
    before = custody.path.stat().st_size
    mined = 0
    while custody.mine_if_unsettled(3):
        mined += 1
        assert mined <= 3
    assert mined == 3
    still = custody.path.stat().st_size
    assert still > before
    assert not custody.mine_if_unsettled(3)
    assert custody.path.stat().st_size == still
    # Deep enough for one who needs one block only.
    assert not custody._chain.unsettled(1)


def test_a_command_that_fails_leaves_the_chain_as_its_file_says(door: FundsDoor) -> None:
    custody = door.desk.simulated
    assert custody is not None
    payment = paid(door, 1, "1")
    custody.mine(5)
    with pytest.raises(AssertionError, match="is in a block"):
        custody.reorganise(1, [payment])
    blocks = len(custody._chain.blocks)
    again = SimulatedCustody(custody.path, 1, ["BTC"], Weather(0, 0, 0, 0, 0, 0, 0, 0))
    assert custody.incoming(payment, 0) == again.incoming(payment, 0)
    assert blocks in {0, 5}


def test_unsettled_is_any_payment_less_deep_than_asked_for() -> None:
    chain = Chain(1, Weather(0, 0, 0, 0, 0, 0, 0, 0))
    assert not chain.unsettled(6)
    chain.receive([("BTC", "a", 1)])
    for depth in range(1, 7):
        assert chain.unsettled(6), depth
        chain.mine()
    assert [chain.unsettled(depth) for depth in (6, 7)] == [False, True]
