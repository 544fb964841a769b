"""Kill -9 at every moment of a deposit and a withdrawal, over a real PostgreSQL."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ledgerd.audit import trial_balance, verify
from ledgerd.chart import OwnerKind, Purpose
from ledgerd.custody.addresses import Address
from ledgerd.custody.proof import unexplained_payouts, verify_money
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody
from tests.books import PAIR, fresh_books
from tests.custody import desk_over
from tests.integration import withdrawal_child as child

ROOT = Path(__file__).resolve().parent.parent.parent
TICKS_LIMIT = 90
"""More than one run has."""
FUNDED = 1_000_000


@pytest.mark.integration
@pytest.mark.slow
def test_killed_at_any_moment_everything_is_credited_and_paid_once() -> None:
    with TemporaryDirectory(prefix="holdfast-chain-") as folder, fresh_books() as books:
        path = Path(folder) / "chain.log"
        custody = SimulatedCustody(path, child.SEED, ["BTC"], CALM)
        books.ledger.list_pair(PAIR)
        desk = desk_over(books, custody, child.POLICY)
        desk.funded(child.OWNER, FUNDED)
        for number in range(1, TICKS_LIMIT + 1):
            address = child.address_of(number)
            owner = OwnerKind.USER, child.OWNER
            desk.addresses.add(Address(books.new_id(), *owner, "BTC", address, "alice"))
        arguments = [books.url().render_as_string(hide_password=False), str(path), str(TICKS_LIMIT)]
        command = [sys.executable, "-m", child.__name__, *arguments]
        outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr
        kills = int(outcome.stdout.split()[-1])
        assert 30 < kills < TICKS_LIMIT, "the last run has to reach its end without being killed"
        done = kills + 1
        for number in range(1, done + 1):
            assert custody.paid_units("BTC", child.address_of(number)) == child.AMOUNT
        expected = FUNDED + done * (child.DEPOSIT - child.AMOUNT)
        assert desk.funding(child.OWNER) == expected
        assert (desk.suspense(child.OWNER), desk.of_exchange(Purpose.SUSPENSE)) == (0, 0)
        assert desk.of_exchange(Purpose.CUSTODY) == -expected == -custody.holdings_units("BTC")
        assert verify(books.engine).complaints == []
        assert verify_money(books.engine) == []
        assert unexplained_payouts(books.engine, custody) == []
        assert sum(line.amount for line in trial_balance(books.engine)) == 0
