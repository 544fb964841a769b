"""The whole money machine in one thread: real books, real engines, a chain, and who uses them.

What is remembered beside it is the plain twin: moves inside as they were asked for, executions as
the engines said them, and of each deposit and withdrawal what its state means. The pipelines ask a
custodian whose answers get lost; each process dies at any of its steps, ledgerd before or after
any of its commits, an engine between taking a command in, writing it and saying what came of it.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import psycopg
from sqlalchemy import Engine, event

from engine import vault_layout as vault
from exchange.enums import Asset, CommandKind, TimeInForce
from exchange.refusal import Refused
from ledgerd.books.commit import CursorMoved
from ledgerd.books.queries import instructions, reading
from ledgerd.chart import OwnerKind, Purpose, TransferKind
from ledgerd.custody.adapter import CustodyUnavailable
from ledgerd.custody.deposit_rules import ABSENT, DepositState
from ledgerd.custody.simulated_chain import CALM, Weather
from ledgerd.custody.withdrawal_rules import HELD, Policy, WithdrawalState
from ledgerd.ledger import Ledger
from riskd.limits import asset_name
from tests.books import user
from tests.custody import HOUR_NS, NEEDED, NO_LIMITS, Desk, desk_over
from tests.property.test_withdrawals import ALL_CALLS, Died, Unsteady
from tests.reference import ledger as twin
from tests.simulation.faults import MILLISECOND_NS, Chance, Faults, Network
from tests.simulation.mesh import Mesh
from tests.simulation.processes import ACCOUNTS, ASSETS, PAIRS, EngineNode, command_of

T = TypeVar("T")
OWNERS: Final = range(1, ACCOUNTS + 1)
STORM: Final = Weather(20, 4, 30, 15, 30, 40, 40, 5)
ENGINES_DIE: Final = Faults(0, 0, 0, 40, 0)
POLICY: Final = Policy(
    address_waiting_ns=HOUR_NS,
    approval_expiry_ns=2 * HOUR_NS,
    confirmations=dict.fromkeys(ASSETS, NEEDED),
    approval_above_units={"BTC": (30,), "ETH": (30,), "USDT": (500, 1_500)},
)
START_UNITS: Final = {"BTC": 240, "ETH": 240, "USDT": 12_000}
LIVES: Final = (*[TimeInForce.GOOD_TILL_CANCELLED] * 4, TimeInForce.IMMEDIATE_OR_CANCEL)
EVERYTHING: Final = 1_000
"""More instructions or notices than there are."""
Moved = dict[twin.Key, int]


class Fate:
    """At which commit ledgerd dies, and whether that is done by then."""

    def __init__(self) -> None:
        self.commits_left = 0
        self.afterwards = False

    def meets(self, *, afterwards: bool) -> None:
        """Die if the moment has come."""
        self.commits_left -= not afterwards
        if self.commits_left == 0 and self.afterwards == afterwards:
            self.commits_left = -1
            raise Died


class MortalConnection(psycopg.Connection[Any]):
    """A connection in whose commits its process may die."""

    fate: Fate

    def commit(self) -> None:
        self.fate.meets(afterwards=False)
        super().commit()
        self.fate.meets(afterwards=True)


def make_mortal(engine: Engine, fate: Fate) -> None:
    """Let a pool give nothing but mortal connections."""
    engine.dispose()

    @event.listens_for(engine, "do_connect")
    def _connected(_dialect: Any, _record: Any, given: Any, named: Any) -> MortalConnection:
        made = MortalConnection.connect(*given, **named)
        made.fate = fate
        return made


class Whole:
    """All processes of one run, decided by its seed."""

    def __init__(
        self,
        desk: Desk,
        seed: int,
        ledger_kind: type[Ledger] = Ledger,
        engine_kind: type[EngineNode] = EngineNode,
        custodian_kind: type[Unsteady] = Unsteady,
    ) -> None:
        self.calm, self.books = desk, desk.books
        self.chance = Chance(seed)
        self.network = Network(self.chance, ENGINES_DIE)
        self.ledger_kind = ledger_kind
        self.fate = Fate()
        self.unsteady = custodian_kind(desk)
        self.deaths = 0
        self.steps: list[str] = []
        self.twin = twin.Books()
        self.outside: Moved = {}
        """What deposits and withdrawals have done to the twin so far."""
        self.numbers = dict.fromkeys((item.pair for item in PAIRS), 0)
        """How many instructions each pair's engine was given."""
        self.settled = dict(self.numbers)
        self.payments: list[str] = []
        self.asked = [desk.books.new_id()]
        """Withdrawals, and one that there is not."""
        self.books.open(ACCOUNTS, *PAIRS)
        make_mortal(self.books.engine, self.fate)
        self.restart()
        # An engine's node asks the mesh around it for chance, clock and faults, and we have them.
        self.engines = {item.pair: engine_kind(cast(Mesh, self), item) for item in PAIRS}
        self.addresses = {
            (owner, asset): desk.deposits.address(OwnerKind.USER, owner, asset)
            for owner in OWNERS
            for asset in ASSETS
        }
        self.open_for_business()

    def open_for_business(self) -> None:
        """Give everybody money in both engines, and a place outside to withdraw to."""
        self.deaths = 0
        self.calm.custody._chain.weather = CALM
        for (owner, asset), address in self.addresses.items():
            self.calm.listed(owner, f"outside{owner}", asset)
            self.payments.append(self.calm.custody.receive((asset, address, START_UNITS[asset])))
        self.calm.custody.mine(NEEDED)
        self.calm.deposits.follow()
        self.follow_custody()
        self.network.faults = Faults(0, 0, 0, 0, 0)
        for owner, asset in self.addresses:
            self.carried_over(owner, asset, "funding", "trading", START_UNITS[asset] * 3 // 4)
        for node in self.engines.values():
            for owner in OWNERS:
                for side in (Asset.BASE, Asset.QUOTE):
                    units = START_UNITS[asset_name(node.instrument, side)] // 4
                    self.instructed(node, owner, side, units, allot=True)
            self.deliver(node, 1)
            self.sync(node)
            self.settle(node, 0, EVERYTHING)
        self.network.faults = ENGINES_DIE
        self.calm.custody._chain.weather = STORM

    # Whoever dies, and whoever asks again.

    def restart(self) -> None:
        """Start ledgerd anew over the same books: nothing that it kept in memory is there."""
        self.deaths += 1
        self.fate.commits_left = self.unsteady.calls_left = 0
        books = self.books
        books.ledger = self.ledger_kind(books.engine, books.clock, custodian=True)
        for item in PAIRS:
            books.ledger.list_pair(item)
        self.desk = desk_over(books, self.unsteady, POLICY)  # type: ignore[arg-type]

    def insist(self, ask: Callable[[], T]) -> T | None:
        """Ask with the same id until there is an answer; None: it was refused."""
        while True:
            try:
                return ask()
            except Refused:
                return None
            except CustodyUnavailable:
                continue
            except Died:
                self.restart()

    def go_round(self, *work: Callable[[], object]) -> None:
        """Let ledgerd do some of its own work, as far as it gets."""
        try:
            for one in work:
                one()
        except CustodyUnavailable:
            return
        except Died:
            self.restart()

    def arm(self) -> None:
        """Decide at which commit or call ledgerd dies or the line breaks, some time from now."""
        chance = self.chance
        if chance.of_thousand(600):
            self.fate.commits_left = chance.number(1, 4)
            self.fate.afterwards = chance.of_thousand(500)
        else:
            self.unsteady.targets = chance.among((("broadcast",), ALL_CALLS))
            self.unsteady.calls_left = chance.number(1, 5)
            self.unsteady.too_late = chance.of_thousand(600)
            self.unsteady.error = chance.among((CustodyUnavailable, Died))

    # Money at the door.

    def pay_in(self) -> None:
        (_, asset), address = self.chance.among(list(self.addresses.items()))
        units = self.chance.number(1, START_UNITS[asset] // 2)
        self.payments.append(self.calm.custody.receive((asset, address, units)))

    def mine(self) -> None:
        self.calm.custody.mine(self.chance.number(1, 3))

    def look(self) -> None:
        self.go_round(self.desk.deposits.follow, self.desk.deposits.sweep)

    def request(self) -> None:
        owner, asset = self.chance.among(list(self.addresses))
        units = self.chance.number(1, START_UNITS[asset] // 3)
        more = {"asset": asset, "address": f"outside{owner}"}
        asked = self.calm.asked(owner, units, **more)
        if self.insist(lambda: self.desk.withdrawals.request(asked, NO_LIMITS)) is not None:
            self.asked.append(asked.id)

    def decide(self) -> None:
        made, what = self.chance.among(self.asked[-6:]), self.chance.number(1, 10)
        if what == 1:
            self.insist(lambda: self.desk.withdrawals.cancel(made, "user"))
        elif what == 2:
            self.insist(lambda: self.desk.withdrawals.reject(made, "bob", "unusual"))
        else:
            who = self.chance.among(("bob", "carol"))
            self.insist(lambda: self.desk.withdrawals.approve(made, who))

    def send(self) -> None:
        self.go_round(self.desk.withdrawals.advance)

    def wait(self) -> None:
        self.books.clock.now_ns += HOUR_NS // 2
        self.go_round(self.desk.withdrawals.expire)

    # Money inside.

    def twin_can(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except twin.Short:
            return False
        return True

    def carry_over(self) -> None:
        owner, asset = self.chance.among(list(self.addresses))
        source, target = self.chance.among((("funding", "trading"), ("trading", "funding")))
        units = self.chance.number(1, START_UNITS[asset] // 3)
        self.carried_over(owner, asset, source, target, units)

    def carried_over(self, owner: int, asset: str, source: str, target: str, units: int) -> None:
        """Move money between two accounts of an owner if it is there, once."""
        legs = [(user(owner, asset, Purpose[source.upper()]), -units)]
        legs += [(user(owner, asset, Purpose[target.upper()]), units)]
        transfer = self.books.transfer(*legs, kind=TransferKind.INTERNAL)
        done = self.insist(lambda: self.books.ledger.post([transfer]))
        moved = ((owner, source, asset, ""), -units), ((owner, target, asset, ""), units)
        assert self.twin_can(lambda: self.twin.move(*moved)) == (done is not None)

    def instruct(self) -> None:
        node, owner = self.engine(), self.chance.among(OWNERS)
        side, allot = self.chance.among((Asset.BASE, Asset.QUOTE)), self.chance.of_thousand(600)
        units = self.chance.number(1, START_UNITS[asset_name(node.instrument, side)] // 4)
        self.instructed(node, owner, side, units, allot=allot)

    def instructed(
        self, node: EngineNode, owner: int, side: Asset, units: int, *, allot: bool
    ) -> None:
        """Let the ledger number a move of funds if the money is there, once."""
        pair, name = node.instrument.pair, asset_name(node.instrument, side)
        request, number = self.books.new_id(), self.numbers[pair] + 1

        def ask() -> int:
            ledger = self.books.ledger
            act = ledger.allot if allot else ledger.recall
            return act(request, pair, owner, side, units).number

        done = self.insist(ask)
        act = self.twin.allot if allot else self.twin.recall
        possible = self.twin_can(lambda: act(pair, number, owner, name, units))
        assert done == (number if possible else None)
        self.numbers[pair] += possible

    # Engines.

    def engine(self) -> EngineNode:
        return self.chance.among(list(self.engines.values()))

    def order(self) -> None:
        chance, node = self.chance, self.engine()
        for _ in range(chance.number(1, 5)):
            words = chance.number(1, 2), chance.number(30, 33), chance.number(1, 6)
            tif = chance.among(LIVES)
            node.take(node.order(chance.among(OWNERS), *words, tif), None)
        self.sync(node)

    def cancel(self) -> None:
        node = self.engine()
        node.take(command_of(CommandKind.CANCEL_ALL, self.chance.among(OWNERS)), None)

    def tell(self) -> None:
        node = self.engine()
        applied = int(node.engine.vault["scalars"][vault.TRANSFER_NUMBER])
        self.deliver(node, max(1, applied + self.chance.number(-2, 2)))

    def deliver(self, node: EngineNode, first: int) -> None:
        """Send an engine what the ledger told it, from some number on: known, next or too far."""
        pair = node.instrument.pair
        with reading(self.books.engine) as session:
            for one, _ in instructions(session, pair, first, EVERYTHING):
                allots = one.kind == TransferKind.ALLOT
                kind = CommandKind.ALLOT_FUNDS if allots else CommandKind.RELEASE_FUNDS
                told = (one.owner_id, one.number, one.asset, one.amount)
                node.take(command_of(kind, *told), None)

    def digest(self) -> None:
        self.engine().take(command_of(CommandKind.DIGEST_ACCOUNTS), None)

    def sync(self, node: EngineNode) -> None:
        """Let an engine do what waits; if it dies of it, it starts again."""
        self.network.now_ns = self.books.clock.now_ns
        node.hear(node.sync)()
        if not node.up:
            node.start()

    def work(self) -> None:
        for node in self.engines.values():
            self.sync(node)

    def crash(self) -> None:
        node = self.engine()
        node.lose()
        node.start()

    # Settlement.

    def follow(self) -> None:
        """Deliver executions to the ledger: mostly the next ones, sometimes some once more."""
        node, chance = self.engine(), self.chance
        back = chance.number(1, 6) if chance.of_thousand(300) else 0
        first = max(0, self.settled[node.instrument.pair] - back)
        self.settle(node, first, chance.number(1, 30))

    def settle(self, node: EngineNode, first: int, count: int) -> None:
        """Let the ledger settle a batch; the twin does what the ledger's cursor says was done."""
        instrument, rows = node.instrument, node.rows()[first : first + count]
        if not len(rows):
            return
        try:
            self.books.ledger.settle(instrument, rows, first)
        except CursorMoved:
            # Some of it was settled before: the books stand elsewhere and took none of it.
            assert first != self.settled[instrument.pair]
        except Died:
            self.restart()
        before = self.settled[instrument.pair]
        now = self.insist(lambda: self.books.ledger.cursor(instrument.pair))
        assert now is not None
        self.twin.settle(instrument, node.rows()[before:now])
        self.settled[instrument.pair] = now

    # The twin of the custody pipelines: what a state means, whatever led to it.

    def follow_custody(self) -> None:
        """Do to the twin what changed of deposits and withdrawals since the last time."""
        now = self.moved_by_custody()
        moved = {key: now.get(key, 0) - self.outside.get(key, 0) for key in {**now, **self.outside}}
        self.twin.move(*moved.items())
        self.outside = now

    def moved_by_custody(self) -> Moved:
        found: Moved = {}

        def add(key: twin.Key, units: int) -> None:
            found[key] = found.get(key, 0) + units

        for owner in OWNERS:
            for deposit in self.calm.deposits.of_owner(owner, EVERYTHING):
                asset, units, state = deposit.asset, deposit.amount_units, deposit.state
                funding, aside = (owner, "funding", asset, ""), (owner, "suspense", asset, "")
                if state in ABSENT:
                    continue
                add((0, "custody", asset, ""), -units)
                if state == DepositState.REVERSED:
                    add(funding, deposit.shortfall_units)
                    add(aside, deposit.withheld_units)
                else:
                    credited = state == DepositState.CREDITED
                    add(funding if credited else (0, "suspense", asset, ""), units)
            for one in self.calm.withdrawals.of_owner(owner, EVERYTHING):
                asset, units = one.asked.asset, one.asked.amount_units
                targets: dict[WithdrawalState, twin.Key] = {
                    **dict.fromkeys(HELD, (owner, "suspense", asset, "")),
                    WithdrawalState.CONFIRMED: (0, "custody", asset, ""),
                    WithdrawalState.RETURNED: (0, "suspense", asset, ""),
                }
                if one.state in targets:
                    add((owner, "funding", asset, ""), -units)
                    add(targets[one.state], units)
        return found

    # From the first step to rest.

    def step(self) -> None:
        """Let something happen."""
        self.books.clock.now_ns += self.chance.number(1, 1_000) * MILLISECOND_NS
        self.steps.append(self.chance.among(STEPS))
        getattr(self, self.steps[-1])()
        self.follow_custody()

    def come_to_rest(self) -> None:
        """Let the chain calm down, everybody do what is left, and all money leave the engines."""
        self.fate.commits_left = self.unsteady.calls_left = -1
        self.network.faults = Faults(0, 0, 0, 0, 0)
        custody = self.calm.custody
        custody._chain.weather = CALM
        while custody._chain.waiting or custody._chain._coming:
            custody.mine()
        for _ in range(6):
            custody.mine(NEEDED)
            while self.desk.deposits.follow():
                pass
            self.desk.deposits.sweep()
            self.desk.withdrawals.advance()
        self.follow_custody()
        for node in self.engines.values():
            for owner in OWNERS:
                node.take(command_of(CommandKind.CANCEL_ALL, owner), None)
            self.finish(node)
            for owner in OWNERS:
                for side in (Asset.BASE, Asset.QUOTE):
                    units = int(node.accounts()[owner, side - 1])
                    if units:
                        self.instructed(node, owner, side, units, allot=False)
            self.finish(node)

    def finish(self, node: EngineNode) -> None:
        """Tell an engine everything, and settle all that it says, with a digest at the end."""
        self.deliver(node, 1)
        node.take(command_of(CommandKind.DIGEST_ACCOUNTS), None)
        self.sync(node)
        self.settle(node, self.settled[node.instrument.pair], len(node.log))


STEPS: Final = (
    *("pay_in", "mine", "mine", "look", "look", "request", "decide", "decide", "send", "send"),
    *("wait", "carry_over", "carry_over", "instruct", "instruct", "tell", "tell", "order", "order"),
    *(
        "order",
        "order",
        "order",
        "order",
        "cancel",
        "digest",
        "work",
        "work",
        "crash",
        "restart",
        "arm",
        "arm",
    ),
    *("follow", "follow", "follow", "follow"),
)
"""What can happen, as often as it does."""
