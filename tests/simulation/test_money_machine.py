"""The money machine under every fault there is: nothing lost, nothing made, everything arrives.

`HOLDFAST_SEEDS=10000` runs so many seeds; `HOLDFAST_SEED=17` runs that one again. The second half
makes deliberate mistakes: each must be found, or the first half proves nothing.
"""

from uuid import UUID

import pytest

from exchange import records
from exchange.enums import ExecutionKind, Reason
from exchange.records import Rows
from riskd.allotments import Allotments
from riskd.funds.moves import Learn, Move
from tests.reference.ledger import Short
from tests.simulation.faults import NO_FAULTS, Faults, seeds
from tests.simulation.mesh import Mesh
from tests.simulation.processes import EngineNode, LedgerNode, Reply, RiskNode

DEFAULT_SEEDS = 100
MISTAKE_SEEDS = 40
ROUNDS = 80


def run(mesh: Mesh) -> Mesh:
    """Run one seed; a failure names it."""
    try:
        mesh.run(ROUNDS)
    except Exception as error:
        error.add_note(f"seed {mesh.seed}: HOLDFAST_SEED={mesh.seed} runs it again")
        raise
    return mesh


def test_no_seed_loses_or_makes_a_unit() -> None:
    for seed in seeds(DEFAULT_SEEDS):
        run(Mesh(seed))


def test_the_runs_are_worth_something() -> None:
    """A mesh in which nothing happened would prove nothing either."""
    kinds: dict[int, int] = {}
    deaths = 0
    for seed in range(12):
        mesh = run(Mesh(seed))
        deaths += mesh.deaths
        for engine in mesh.engines.values():
            for row in engine.log:
                kind = row[records.E_VERB] & 0xFFFF
                kinds[kind] = kinds.get(kind, 0) + 1
    for said in (ExecutionKind.ALLOTTED, ExecutionKind.RELEASED, ExecutionKind.TRADE):
        assert kinds[int(said)] > 10
    for reason in (Reason.TRANSFER_GAP, Reason.TRANSFER_REPEATED, Reason.INSUFFICIENT_FUNDS):
        assert kinds[int(ExecutionKind.REJECTED) | reason << 8] > 5
    assert deaths > 5


def test_the_same_seed_is_the_same_run() -> None:
    first, second = run(Mesh(3)), run(Mesh(3))
    for pair, engine in first.engines.items():
        assert engine.log == second.engines[pair].log
    assert first.ledger.books.balances == second.ledger.books.balances


def test_without_faults_nobody_is_left_waiting() -> None:
    mesh = run(Mesh(1, NO_FAULTS))
    assert mesh.deaths == 0
    assert all(want.done for want in mesh.wants)


# Deliberate mistakes.


class PaysBackFirst(LedgerNode):
    """Returns recalled money to trading before the engine gave it back."""

    def instruct(self, move: Move, number: object, refuse: object) -> None:
        super().instruct(move, number, refuse)  # type: ignore[arg-type]
        known = self.requests.get(move.request or UUID(int=0))
        if known is None or move.allots or (move.pair, known) in self.paid:
            return
        self.paid.add((move.pair, known))
        name = self.books.told[move.pair, known].asset
        keeping = (move.account, "allotted", name, move.pair)
        trading = (move.account, "trading", name, "")
        self.books.move((keeping, -move.amount_units), (trading, move.amount_units))

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh)
        self.paid: set[tuple[str, int]] = set()


class ForgetsItsCursor(LedgerNode):
    """Posts whatever it is told, as often as it is told."""

    def settle(self, pair: str, first: int, rows: Rows) -> None:
        self.cursors[pair] = max(first, 0)
        super().settle(pair, first, rows)


class NumbersEachRequestAnew(LedgerNode):
    """Takes the money first and remembers the request later."""

    def instruct(self, move: Move, number: object, refuse: object) -> None:
        known = self.count[move.pair] + 1
        super().instruct(move, number, refuse)  # type: ignore[arg-type]
        if known == self.count[move.pair] and move.allots:
            name = self.books.told[move.pair, known].asset
            trading = (move.account, "trading", name, "")
            flight = (move.account, "suspense", name, move.pair)
            self.books.move((trading, -move.amount_units), (flight, move.amount_units))


class TalksBeforeItWrites(EngineNode):
    """Says what came of a command before the journal has it."""

    def sync(self) -> None:
        batch, self.waiting = self.waiting, []
        now_ns = self.mesh.network.now_ns
        for command, _ in batch:
            self.applied(command, now_ns)
            self.may_die()
        self.journal += [(command, now_ns) for command, _ in batch]


class CountsNothing(EngineNode):
    """Applies every move of funds as the next one, whatever number it carries."""

    def take(self, command: list[int], reply: Reply | None) -> None:
        if command[records.C_PRICE] in {1, 2} and command[records.C_VERB] & 0xFF in {5, 6}:
            command = list(command)
            waiting = sum(1 for item, _ in self.waiting if item[records.C_VERB] & 0xFF in {5, 6})
            number = int(self.engine.vault["scalars"][8]) + 1 + waiting
            command[records.C_TRANSFER_NUMBER] = number
        super().take(command, reply)


class SendsOnce(RiskNode):
    """Believes that what was sent has arrived."""

    def _made(self) -> Allotments:
        machine = super()._made()
        machine.policy = type(machine.policy)(resend_ns=1 << 60, relearn_ns=1 << 60)
        machine.failed = self.ignore  # type: ignore[method-assign]
        return machine

    def ignore(self, step: object) -> None:
        if isinstance(step, Learn):
            type(self.machine).failed(self.machine, step)


class NeverAsksWhatIsOpen(RiskNode):
    """Starts as if there had been nobody before."""

    def _made(self) -> Allotments:
        machine = super()._made()
        machine.policy = type(machine.policy)(relearn_ns=1 << 60)
        for numbers in machine.numbers.values():
            numbers.known, numbers.known_ns = True, 1 << 62
        return machine


MISTAKES = {
    "the ledger pays back first": {"ledger_kind": PaysBackFirst},
    "the ledger forgets its cursor": {"ledger_kind": ForgetsItsCursor},
    "the ledger takes money twice": {"ledger_kind": NumbersEachRequestAnew},
    "the engine talks before it writes": {"engine_kind": TalksBeforeItWrites},
    "the engine counts nothing": {"engine_kind": CountsNothing},
    "the risk service sends once": {"risk_kind": SendsOnce},
    "the risk service never asks": {"risk_kind": NeverAsksWhatIsOpen},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_found(mistake: str) -> None:
    for seed in range(MISTAKE_SEEDS):
        try:
            Mesh(seed, Faults(crash=20), **MISTAKES[mistake]).run(ROUNDS)  # type: ignore[arg-type]
        except (AssertionError, KeyError, Short):
            return
    pytest.fail(f"{mistake}, and {MISTAKE_SEEDS} seeds noticed nothing")
