"""The whole money machine: nothing lost, nothing made, nothing paid twice, after every step.

Deposits and withdrawals on an unruly chain, the real books on PostgreSQL, money to and from the
real engines of two pairs that share an asset, orders, and processes that die at any step.

`HOLDFAST_SEEDS=10000` runs a thirtieth of so many seeds; `HOLDFAST_SEED=17` runs that one again.
The second half makes deliberate mistakes: each must be found, or the first half proves nothing.
"""

from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from engine import vault_layout as vault
from exchange import records
from exchange.enums import Asset, ExecutionKind
from exchange.instrument import Instrument
from exchange.records import Rows
from ledgerd.books.commit import Overdrawn
from ledgerd.custody.adapter import Payout, PayoutStatus
from ledgerd.ledger import Ledger
from ledgerd.postings import FeedContradiction
from tests.custody import fresh_desk
from tests.property.test_withdrawals import Unsteady
from tests.property.whole_checks import check, check_rest
from tests.property.whole_money import OWNERS, POLICY, STORM, Whole
from tests.reference.ledger import Short
from tests.simulation.faults import seeds
from tests.simulation.processes import PAIRS, EngineNode
from tests.simulation.test_money_machine import CountsNothing, TalksBeforeItWrites

DEFAULT_SEEDS = 4
SEED_COST = 30
"""A run takes as long as so many of the simulated mesh, about."""
MISTAKE_SEEDS = 4
"""No more than are known to find nothing where there is no mistake."""
STEP_COUNT = 150


def run(seed: int, **kinds: Any) -> Counter[str]:
    """Run one seed; return what happened in it. A failure names it."""
    with fresh_desk(seed, STORM, PAIRS, POLICY) as desk:
        whole = Whole(desk, seed, **kinds)
        try:
            for _ in range(STEP_COUNT):
                whole.step()
                check(whole)
            whole.come_to_rest()
            check_rest(whole)
        except Exception as error:
            sentence = f"HOLDFAST_SEED={seed} runs it again"
            error.add_note(f"seed {seed}, step {len(whole.steps)}, {whole.steps[-1:]}: {sentence}")
            raise
        return happened(whole)


def happened(whole: Whole) -> Counter[str]:
    found = Counter({"DEATHS": whole.deaths})
    for node in whole.engines.values():
        found.update(ExecutionKind(row[records.E_VERB] & 0xFF).name for row in node.log)
    for owner in OWNERS:
        found.update(one.state.name for one in whole.calm.deposits.of_owner(owner, 1_000))
        found.update(one.state.name for one in whole.calm.withdrawals.of_owner(owner, 1_000))
    return found


def test_no_seed_loses_or_makes_a_unit() -> None:
    found: Counter[str] = Counter()
    for seed in seeds(DEFAULT_SEEDS, SEED_COST):
        found += run(seed)
    # A machine in which nothing happened would prove nothing.
    assert {"ALLOTTED", "RELEASED", "TRADE", "DIGEST", "CREDITED", "CONFIRMED"} <= set(found)
    assert found["DEATHS"] > 0


# Deliberate mistakes.


class ForgetsItsCursor(Ledger):
    """Settles whatever it is told, as often as it is told."""

    def settle(self, instrument: Instrument, rows: Rows, cursor_from: int) -> int:
        return super().settle(instrument, rows, self.cursor(instrument.pair))


class KeepsWhatItReleased(EngineNode):
    """Says that money is released and goes on counting it."""

    def applied(self, command: list[int], time_ns: int) -> list[list[int]]:
        rows = super().applied(command, time_ns)
        for row in rows:
            if row[records.E_VERB] & 0xFF == ExecutionKind.RELEASED:
                account, base = row[records.E_VERB] >> 32, row[records.E_PRICE] == Asset.BASE
                free = vault.A_FREE_BASE if base else vault.A_FREE_QUOTE
                # Its own check of itself is deceived, too.
                total = vault.ALLOTTED_BASE if base else vault.ALLOTTED_QUOTE
                self.engine.vault["accounts"][account, free] += row[records.E_AMOUNT]
                self.engine.vault["scalars"][total] += row[records.E_AMOUNT]
        self.totals[len(self.log)] = self.accounts()
        return rows


class PaysAgain(Unsteady):
    """Pays whenever it is told to, however often it was told before."""

    def broadcast(self, payout: Payout) -> PayoutStatus:
        self.custody.broadcast(replace(payout, id=uuid4()))
        return self.custody.broadcast(payout)


MISTAKES: dict[str, dict[str, Any]] = {
    "settlement forgets its cursor": {"ledger_kind": ForgetsItsCursor},
    "the engine keeps what it released": {"engine_kind": KeepsWhatItReleased},
    "the engine talks before it writes": {"engine_kind": TalksBeforeItWrites},
    "the engine counts nothing": {"engine_kind": CountsNothing},
    "the custodian pays again": {"custodian_kind": PaysAgain},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_found(mistake: str) -> None:
    for seed in range(MISTAKE_SEEDS):
        try:
            run(seed, **MISTAKES[mistake])
        except (AssertionError, FeedContradiction, KeyError, Overdrawn, Short):
            return
    pytest.fail(f"{mistake}, and {MISTAKE_SEEDS} seeds noticed nothing")
