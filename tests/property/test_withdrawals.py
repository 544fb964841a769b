"""Deposits and withdrawals against an unruly chain and a custodian whose answers get lost.

Random orders of everything people, chain and service do, with a process that dies before or after
any call to the custodian. After every step nothing that was refunded is paid, and nobody got more
than was taken from an owner; when the chain has calmed down, every coin is where the books say.
"""

import random
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.refusal import Refused
from ledgerd.audit import trial_balance, verify
from ledgerd.chart import OwnerKind, Purpose
from ledgerd.custody.adapter import CustodyUnavailable
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.proof import unexplained_payouts, verify_money
from ledgerd.custody.simulated_chain import CALM, Weather
from ledgerd.custody.withdrawal_rules import HELD, WithdrawalState
from tests.custody import HOUR_NS, NEEDED, NO_LIMITS, Desk, desk_over, fresh_desk

OWNERS = 3
STORM = Weather(35, 6, 40, 15, 30, 40, 40, 6)
ALL_CALLS: tuple[str, ...] = (
    "broadcast",
    "payout",
    "incoming",
    "notices",
    "carries",
    "address_fault",
)
PAID = (WithdrawalState.CONFIRMED, WithdrawalState.RETURNED)

Step = tuple[int, int, int]


class Died(BaseException):
    """The process is gone: everything that it had not committed with it."""


class Unsteady:
    """A custodian between us and which the process dies, or the line breaks, at chosen calls."""

    def __init__(self, desk: Desk) -> None:
        self.custody = desk.custody
        self.targets: tuple[str, ...] = ALL_CALLS
        self.calls_left = 0
        self.too_late = False
        self.error: type[BaseException] = Died

    def __getattr__(self, name: str) -> object:
        method = getattr(self.custody, name)

        def called(*arguments: object) -> object:
            if name not in self.targets:
                return method(*arguments)
            self.calls_left -= 1
            if self.calls_left == 0 and not self.too_late:
                raise self.error("before the call")
            result = method(*arguments)
            if self.calls_left == 0:
                raise self.error("after the call")
            return result

        return called


class Money:
    """The desk, and what was done at it."""

    actions = 14
    """How many things can happen."""

    def __init__(self, desk: Desk) -> None:
        self.calm = desk
        self.unsteady = Unsteady(desk)
        self.desk = desk_over(desk.books, self.unsteady)  # type: ignore[arg-type]
        self.asked: list[UUID] = []
        self.payments: list[str] = []
        self.addresses = {}
        for owner in range(1, OWNERS + 1):
            self.addresses[owner] = desk.deposits.address(OwnerKind.USER, owner, "BTC")
            desk.listed(owner, f"outside{owner}")
        self.desk.custody.mine(12)

    def step(self, step: Step) -> None:
        action, owner, amount = step
        if action <= 1:
            self.payments.append(
                self.calm.custody.receive(("BTC", self.addresses[owner], amount * 3))
            )
        elif action <= 4:
            self.calm.custody.mine(amount % 3 + 1)
        elif action <= 6:
            wanted = self.calm.asked(owner, amount, address=f"outside{owner}")
            self.asked.append(wanted.id)
            self.desk.withdrawals.request(wanted, NO_LIMITS)
        elif action == 7:
            telling = amount % 5 > 0
            self.unsteady.targets = ("broadcast",) if telling else ALL_CALLS
            self.unsteady.calls_left = 1 if telling else amount % 7 + 1
            self.unsteady.too_late = amount % 3 > 0
            self.unsteady.error = CustodyUnavailable if amount % 2 else Died
        elif action == 8:
            self.calm.books.clock.now_ns += HOUR_NS // 2
            self.desk.withdrawals.expire()
        elif action == 9 and self.asked:
            self.decide(self.asked[amount % len(self.asked)], amount)
        elif action == 10:
            self.desk.deposits.follow()
        elif action == 11 and self.payments:
            self.desk.deposits.look(self.payments[amount % len(self.payments)], 0)
        elif action == 12:
            self.desk.deposits.sweep()
        else:
            self.desk.withdrawals.advance()

    def decide(self, subject: UUID, amount: int) -> None:
        withdrawals = self.desk.withdrawals
        if amount % 4 == 0:
            withdrawals.cancel(subject, "user")
        elif amount % 4 == 1:
            withdrawals.reject(subject, "bob", "unusual")
        else:
            withdrawals.approve(subject, "bob")

    def unpaid_twice(self) -> None:
        desk = self.calm
        assert unexplained_payouts(desk.books.engine, desk.custody) == []
        for owner in range(1, OWNERS + 1):
            taken = sum(
                one.asked.amount_units
                for one in desk.withdrawals.of_owner(owner)
                if one.state in {*PAID, WithdrawalState.SENDING, WithdrawalState.SENT}
            )
            assert desk.custody.paid_units("BTC", f"outside{owner}") <= taken

    def settle(self) -> None:
        """Let the chain calm down and the service catch up."""
        desk = self.calm
        desk.custody._chain.weather = CALM
        while desk.custody._chain.waiting:
            desk.custody.mine()
        desk.custody.mine(NEEDED)
        while desk.deposits.follow():
            pass
        for payment in self.payments:
            desk.deposits.look(payment, 0)
        for _ in range(10):
            desk.withdrawals.advance()
            desk.custody.mine(NEEDED)

    def moved_by_others(self, owner: int) -> dict[str, int]:
        """Return what came into an owner's accounts beside deposits and withdrawals: nothing."""
        return {"funding": 0, "suspense": 0}

    def every_coin_is_where_the_books_say(self) -> None:
        desk = self.calm
        reversed_units = 0
        for owner in range(1, OWNERS + 1):
            expected = self.moved_by_others(owner)
            for deposit in desk.deposits.of_owner(owner, 1_000):
                assert deposit.state not in {DepositState.SEEN, DepositState.UNCLAIMED}
                if deposit.state == DepositState.CREDITED:
                    expected["funding"] += deposit.amount_units
                if deposit.state == DepositState.REVERSED:
                    reversed_units += deposit.amount_units
                    expected["funding"] += deposit.shortfall_units
                    expected["suspense"] += deposit.withheld_units
            paid = 0
            for one in desk.withdrawals.of_owner(owner, 1_000):
                held = one.state in HELD
                expected["funding"] -= one.asked.amount_units * (held or one.state in PAID)
                expected["suspense"] += one.asked.amount_units * held
                paid += one.asked.amount_units * (one.state == WithdrawalState.CONFIRMED)
            assert desk.funding(owner) == expected["funding"]
            assert desk.suspense(owner) == expected["suspense"]
            assert desk.custody.paid_units("BTC", f"outside{owner}") == paid
        holdings = desk.custody.holdings_units("BTC")
        assert -desk.of_exchange(Purpose.CUSTODY) == holdings + reversed_units


M = TypeVar("M", bound=Money)


def stormy(money: M, seed: int, count: int, check: Callable[[M], None]) -> M:
    """Do `count` random things at a desk whose chain and custodian are unruly."""
    chance = random.Random(seed)
    desk = money.calm
    for _ in range(count):
        action = chance.randrange(money.actions)
        try:
            money.step((action, chance.randint(1, OWNERS), chance.randint(1, 2_000)))
        except (Refused, Died, CustodyUnavailable):
            # Refused for its reason; or dead, and the next step is the next process.
            money.unsteady.calls_left = 0
            money.desk = desk_over(desk.books, money.unsteady)  # type: ignore[arg-type]
        check(money)
    return money


@settings(max_examples=12)
@given(seed=st.integers(0, 1 << 32), count=st.integers(20, 160))
def test_nothing_is_paid_twice_and_every_coin_is_accounted_for(seed: int, count: int) -> None:
    with fresh_desk(seed, STORM) as desk:
        money = stormy(Money(desk), seed, count, Money.unpaid_twice)
        money.settle()
        money.unpaid_twice()
        money.every_coin_is_where_the_books_say()
        assert verify(desk.books.engine).complaints == []
        assert verify_money(desk.books.engine) == []
        assert sum(line.amount for line in trial_balance(desk.books.engine)) == 0


def test_the_storm_reaches_every_end() -> None:
    """Show that the random orders can meet what they are meant to survive."""
    states: set[str] = set()
    for seed in range(3):
        with fresh_desk(seed, STORM) as desk:
            stormy(Money(desk), seed, 160, lambda _: None)
            for owner in range(1, OWNERS + 1):
                states |= {one.state.name for one in desk.deposits.of_owner(owner, 1_000)}
                states |= {one.state.name for one in desk.withdrawals.of_owner(owner, 1_000)}
    assert {"CREDITED", "VOIDED", "REVERSED", "CONFIRMED", "FAILED"} <= states
