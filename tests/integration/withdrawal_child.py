"""The other process of `test_withdrawals_kill`: it deposits, withdraws, and kills itself.

    python -m tests.integration.withdrawal_child DATABASE CHAIN COUNT

For each tick number from 1 on, up to COUNT or until one comes that no run reaches: a forked child
takes one deposit and one withdrawal through every step and kills itself with SIGKILL at that
tick; then another goes on with what it finds. A tick is every reading of the clock, which happens
within transactions, and the moments before and after every call to the custodian. The last line
says how many kills there were.
"""

import os
import signal
import sys
from pathlib import Path
from uuid import UUID

from ledgerd.chart import OwnerKind
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.deposits import Deposits
from ledgerd.custody.journal import MoneyBooks
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody
from ledgerd.custody.withdrawal_rules import Asked, Limits, Policy, WithdrawalState
from ledgerd.custody.withdrawals import Withdrawals
from ledgerd.database import connect

OWNER = 1
AMOUNT = 1_500
DEPOSIT = 700
POLICY = Policy(
    confirmations={"BTC": 2}, address_waiting_ns=0, approval_above_units={"BTC": (1_000,)}
)
ROUND_LIMIT = 40
SEED = 11
LATER_NS = 1_767_300_000_000_000_000
"""After everything that the test has prepared."""


class Ticks:
    """Counts, and kills the process at one of them."""

    def __init__(self, fatal: int) -> None:
        self.count = 0
        self._fatal = fatal

    def __call__(self) -> int:
        self.count += 1
        if self.count == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return LATER_NS + self.count


class Watched:
    """A custodian with a tick before and after every call."""

    def __init__(self, custody: SimulatedCustody, ticks: Ticks) -> None:
        self._custody, self._ticks = custody, ticks

    def __getattr__(self, name: str) -> object:
        method = getattr(self._custody, name)

        def called(*arguments: object) -> object:
            self._ticks()
            result = method(*arguments)
            self._ticks()
            return result

        return called


def address_of(number: int) -> str:
    """Name the address outside that one withdrawal goes to."""
    return f"outside{number}"


def asked(number: int) -> Asked:
    """Return the one withdrawal of a number."""
    made = UUID(int=1_000_000 + number)
    return Asked(made, OwnerKind.USER, OWNER, "BTC", AMOUNT, address_of(number), "alice")


def run(database: str, chain: Path, number: int, payment: str, fatal: int) -> None:
    """Take one deposit and one withdrawal to their ends, from wherever they stand."""
    ticks = Ticks(fatal)
    engine = connect(database, 2)
    custody = SimulatedCustody(chain, SEED, ["BTC"], CALM)
    watched = Watched(custody, ticks)
    books = MoneyBooks(engine, ticks)
    deposits = Deposits(books, watched, POLICY)  # type: ignore[arg-type]
    withdrawals = Withdrawals(books, watched, POLICY)  # type: ignore[arg-type]
    wanted = asked(number)
    withdrawals.request(wanted, Limits(None))
    withdrawals.approve(wanted.id, "bob")
    for _ in range(ROUND_LIMIT):
        deposit = deposits.look(payment, 0)
        withdrawals.step(wanted.id)
        found = withdrawals.get(wanted.id)
        credited = deposit is not None and deposit.state == DepositState.CREDITED
        if credited and found is not None and found.state == WithdrawalState.CONFIRMED:
            engine.dispose()
            return
        custody.mine()
    raise AssertionError(f"withdrawal {number} came to no end")


def forked(database: str, chain: Path, number: int, payment: str, fatal: int) -> bool:
    """Run in a process of its own; return False if it was killed, raise if it failed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(database, chain, number, payment, fatal)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL:
        return False
    assert ended == 0, f"withdrawal {number}, tick {fatal}: the process ended with {ended}"
    return True


def main(database: str, chain: Path, count: int) -> int:
    """Kill at each tick in turn; return how many kills there were."""
    for number in range(1, count + 1):
        custody = SimulatedCustody(chain, SEED, ["BTC"], CALM)
        address = custody.new_address("BTC", f"USER {OWNER}")
        payment = custody.receive(("BTC", address, DEPOSIT))
        if forked(database, chain, number, payment, number):
            return number - 1
        assert forked(database, chain, number, payment, 0)
    return count


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
