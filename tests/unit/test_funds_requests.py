"""Limits that riskd counts: asked before money is set aside, and given back when it comes back.

The limiter is riskd's own store over PostgreSQL, with one limit; what is broken is the way to it.
"""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import grpc
import pytest
from sqlalchemy import text

from exchange.refusal import Code, Refusal
from ledgerd.custody.proof import verify_money
from ledgerd.custody.withdrawal_rules import ReservationState
from ledgerd.database import SUPERUSER
from ledgerd.funds.requests import GRACE_NS
from ledgerd.funds.risk_link import RiskLink, RiskUnavailable
from riskd.limits import RiskReason
from riskd.storage.store import Store, connect, migrate
from tests.books import TestBooks, superuser
from tests.funds import NEEDED, FundsDoor, door_over, fresh_door

LIMIT_UNITS = 40_000_000
STATE, AWAY = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE
S = ReservationState


class Limits:
    """riskd's store with one daily limit, and a way to it that breaks when told."""

    def __init__(self, books: TestBooks) -> None:
        url = books.url(SUPERUSER).render_as_string(hide_password=False)
        self.engine = connect(url, 2)
        migrate(url)
        self.store = Store(self.engine, books.clock)
        self.broken = ""
        """Empty; "before" or "after": where the call is lost."""

    def reserve(self, made: UUID, account: int, asset: str, amount_units: int) -> Refusal | None:
        def judge(mine: int, _: int) -> RiskReason:
            within = mine + amount_units <= LIMIT_UNITS
            return RiskReason.UNSPECIFIED if within else RiskReason.DAILY_WITHDRAWAL_LIMIT

        self._breaks("before")
        reason = self.store.reserve_withdrawal(made, account, asset, amount_units, judge)
        self._breaks("after")
        return Refusal(Code.FAILED_PRECONDITION, reason.name, "too much") if reason else None

    def release(self, made: UUID) -> None:
        self._breaks("before")
        self.store.release_withdrawal(made)
        self._breaks("after")

    def _breaks(self, where: str) -> None:
        if self.broken == where:
            raise RiskUnavailable("riskd gave no answer")

    def counted(self) -> int:
        return self.store.withdrawn("BTC", 1)


@pytest.fixture
def limited() -> Iterator[tuple[FundsDoor, Limits]]:
    with fresh_door() as plain:
        limits = Limits(plain.books)
        assert plain.desk.simulated is not None
        with door_over(plain.books, plain.desk.simulated, limiter=limits) as door:
            door.funded(1, "10")
            door.listed(1)
            yield door, limits
        assert verify_money(plain.books.engine) == []
        limits.engine.dispose()


def states(door: FundsDoor) -> list[ReservationState]:
    """Return the states of all reservations, oldest first."""
    with door.books.engine.connect() as connection:
        query = text("SELECT state FROM withdrawal_reservations ORDER BY changed_ns, id")
        return [S(row[0]) for row in connection.execute(query)]


def test_what_is_within_the_limit_counts_until_its_time_is_over(
    limited: tuple[FundsDoor, Limits],
) -> None:
    door, limits = limited
    first = door.wanted()
    door.answer("RequestWithdrawal", **first)
    assert door.answer("RequestWithdrawal", **first).repeated
    assert limits.counted() == 25_000_000
    refused = door.refused("RequestWithdrawal", **door.wanted())
    assert refused == (STATE, "DAILY_WITHDRAWAL_LIMIT")
    assert states(door) == [S.TAKEN, S.REFUSED]
    door.rounds(NEEDED + 4)
    assert door.state(first["id"]) == "CONFIRMED"
    assert states(door) == [S.REFUSED, S.KEPT]
    assert limits.counted() == 25_000_000
    assert door.balances(1) == {("FUNDING", "BTC"): 975_000_000}


@pytest.mark.parametrize("broken", ["before", "after"])
def test_without_riskd_nothing_is_set_aside_and_a_retry_counts_once(
    limited: tuple[FundsDoor, Limits], broken: str
) -> None:
    door, limits = limited
    wanted = door.wanted()
    limits.broken = broken
    for _ in range(3):
        assert door.refused("RequestWithdrawal", **wanted) == (AWAY, "RISK_UNAVAILABLE")
    assert door.balances(1) == {("FUNDING", "BTC"): 1_000_000_000}
    assert door.refused("GetWithdrawal", id=wanted["id"])[1] == "WITHDRAWAL_UNKNOWN"
    limits.broken = ""
    assert not door.answer("RequestWithdrawal", **wanted).repeated
    assert (limits.counted(), states(door)) == (25_000_000, [S.TAKEN])


@pytest.mark.parametrize("broken", ["before", "after"])
def test_what_was_asked_for_and_given_up_is_released(
    limited: tuple[FundsDoor, Limits], broken: str
) -> None:
    door, limits = limited
    wanted = door.wanted()
    for tries in range(1, 4):
        limits.broken = broken
        door.refused("RequestWithdrawal", **wanted)
        door.books.clock.now_ns += GRACE_NS
        door.rounds(2)
        assert states(door) == [S.RELEASED] * (tries - 1) + [S.ENDED]
        assert "riskd gave no answer" in door.answer("GetFundsStatus").waiting_for
        limits.broken = ""
        door.rounds()
        assert (states(door), limits.counted()) == ([S.RELEASED] * tries, 0)
        assert door.answer("GetFundsStatus").waiting_for == ""
    # The same id again is another reservation, which the releases before do not touch.
    door.answer("RequestWithdrawal", **wanted)
    assert (states(door), limits.counted()) == ([S.RELEASED] * 3 + [S.TAKEN], 25_000_000)
    door.rounds(2)
    assert limits.counted() == 25_000_000


@pytest.mark.parametrize("end", ["CancelWithdrawal", "RejectWithdrawal", "expired"])
def test_what_comes_back_counts_no_longer(limited: tuple[FundsDoor, Limits], end: str) -> None:
    door, limits = limited
    # Above the amount from which somebody has to approve, so that it does not leave meanwhile.
    door.desk.policy.approval_above_units["BTC"] = (0,)  # type: ignore[index]
    wanted = door.wanted(amount="0.4")
    made = door.answer("RequestWithdrawal", **wanted).withdrawal
    assert limits.counted() == LIMIT_UNITS
    if end == "expired":
        door.books.clock.now_ns += door.desk.policy.approval_expiry_ns
    else:
        reason = {"reason": "unusual"} if end == "RejectWithdrawal" else {}
        door.answer(end, id=made.id, actor="bob", **reason)
    door.rounds(2)
    assert (states(door), limits.counted()) == ([S.RELEASED], 0)
    door.answer("RequestWithdrawal", **door.wanted(amount="0.4"))


def test_a_refusal_of_the_books_asks_nobody(limited: tuple[FundsDoor, Limits]) -> None:
    door, limits = limited
    limits.broken = "before"
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"amount": "11"}, "INSUFFICIENT_FUNDS"),
        ({"address": "elsewhere"}, "ADDRESS_NOT_LISTED"),
        ({"amount": "0"}, "AMOUNT_ZERO"),
    ]
    for other, reason in refusals:
        assert door.refused("RequestWithdrawal", **door.wanted(**other))[1] == reason
    assert states(door) == []


def test_money_that_went_away_meanwhile_counts_no_longer(
    limited: tuple[FundsDoor, Limits], monkeypatch: pytest.MonkeyPatch
) -> None:
    door, limits = limited
    reserve = limits.reserve
    moved = {"owner_id": 1, "asset": "BTC", "amount": "10", "actor": "alice"}

    def while_asking(made: UUID, account: int, asset: str, units: int) -> Refusal | None:
        answer = reserve(made, account, asset, units)
        move = {"id": door.new_id(), "source": 1, "target": 2} | moved
        door.answer("MoveFunds", **move)
        return answer

    monkeypatch.setattr(limits, "reserve", while_asking)
    refused = door.refused("RequestWithdrawal", **door.wanted())
    assert refused == (STATE, "INSUFFICIENT_FUNDS")
    door.rounds()
    assert (states(door), limits.counted()) == ([S.RELEASED], 0)


def test_a_reservation_that_was_given_up_cannot_be_taken(
    limited: tuple[FundsDoor, Limits], monkeypatch: pytest.MonkeyPatch
) -> None:
    door, limits = limited
    reserve = limits.reserve

    def slowly(made: UUID, account: int, asset: str, units: int) -> Refusal | None:
        answer = reserve(made, account, asset, units)
        door.books.clock.now_ns += GRACE_NS
        door.pipelines.tried("limits", door.pipelines.release_round)
        return answer

    monkeypatch.setattr(limits, "reserve", slowly)
    wanted = door.wanted()
    assert door.refused("RequestWithdrawal", **wanted) == (AWAY, "RESERVATION_ENDED")
    assert (limits.counted(), door.balances(1)) == (0, {("FUNDING", "BTC"): 1_000_000_000})
    monkeypatch.undo()
    door.answer("RequestWithdrawal", **wanted)
    assert limits.counted() == 25_000_000


def test_the_same_id_for_something_else_counts_only_what_is_set_aside(
    limited: tuple[FundsDoor, Limits],
) -> None:
    door, limits = limited
    wanted = door.wanted()
    limits.broken = "after"
    door.refused("RequestWithdrawal", **wanted)
    limits.broken = ""
    door.answer("RequestWithdrawal", **(wanted | {"amount": "0.15"}))
    assert limits.counted() == LIMIT_UNITS
    door.books.clock.now_ns += GRACE_NS
    door.rounds()
    assert (limits.counted(), states(door)) == (15_000_000, [S.TAKEN, S.RELEASED])


def test_a_riskd_that_is_not_there_is_no_answer() -> None:
    link = RiskLink("127.0.0.1:1")
    with pytest.raises(RiskUnavailable, match=r"riskd at 127\.0\.0\.1:1 gave no answer"):
        link.reserve(UUID(int=1), 1, "BTC", 1)
    with pytest.raises(RiskUnavailable):
        link.release(UUID(int=1))
    link.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("amount_units = 1", "is counted at riskd as something else"),
        ("state = 4", "is counted at riskd 0 times"),
    ],
)
def test_the_proof_names_what_is_set_aside_and_counted_otherwise(
    limited: tuple[FundsDoor, Limits], change: str, complaint: str
) -> None:
    door, _ = limited
    made = door.answer("RequestWithdrawal", **door.wanted()).withdrawal
    thief = superuser(door.books)
    with thief.begin() as connection:
        connection.exec_driver_sql(f"UPDATE withdrawal_reservations SET {change}")
    made_here, said = UUID(bytes=made.id), verify_money(door.books.engine)
    assert said[0].startswith(f"withdrawal_reservations {made_here}: ")
    assert said[1:] == [f"withdrawal {made_here} {complaint}"]
    with thief.begin() as connection:
        whole = "UPDATE withdrawal_reservations SET amount_units = 25000000, state = 2"
        connection.exec_driver_sql(whole)
    thief.dispose()


def test_a_refused_request_may_be_made_again(limited: tuple[FundsDoor, Limits]) -> None:
    door, limits = limited
    first = door.answer("RequestWithdrawal", **door.wanted(amount="0.4")).withdrawal
    wanted = door.wanted()
    assert door.refused("RequestWithdrawal", **wanted)[1] == "DAILY_WITHDRAWAL_LIMIT"
    door.answer("CancelWithdrawal", id=first.id, actor="alice")
    door.rounds()
    door.answer("RequestWithdrawal", **wanted)
    assert limits.counted() == 25_000_000
