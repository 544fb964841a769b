"""Two pairs that share an asset, the books and the risk service, people, and what must hold.

One thread and a manual clock: a run is decided by its seed. `check` compares books and engines
after every round; `run` ends with the faults over and everything at rest.
"""

import itertools
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import numpy as np

from engine import vault_layout as vault
from exchange import records
from exchange.enums import (
    Asset,
    CommandKind,
    ExecutionKind,
    Reason,
    Side,
    TimeInForce,
)
from exchange.instrument import Instrument
from exchange.records import Rows
from riskd.funds.moves import Want
from riskd.limits import asset_name
from tests.reference.ledger import Key, Short
from tests.simulation.faults import MILLISECOND_NS, NO_FAULTS, Chance, Faults, Network
from tests.simulation.processes import (
    ACCOUNTS,
    ASSETS,
    PAIRS,
    EngineNode,
    LedgerNode,
    RiskNode,
    command_of,
)


@dataclass
class Mesh:
    """Everything of one run."""

    seed: int
    faults: Faults = field(default_factory=Faults)
    ledger_kind: type[LedgerNode] = LedgerNode
    risk_kind: type[RiskNode] = RiskNode
    engine_kind: type[EngineNode] = EngineNode
    deaths: int = 0

    def __post_init__(self) -> None:
        self.chance = Chance(self.seed)
        self.network = Network(self.chance, self.faults)
        self.wants: list[Want] = []
        self.requests = itertools.count(1)
        self.ledger = self.ledger_kind(self)
        self.engines = {item.pair: self.engine_kind(self, item) for item in PAIRS}
        self.risk = self.risk_kind(self)
        self.outside: dict[str, int] = dict.fromkeys(ASSETS, 0)
        for account in range(1, ACCOUNTS + 1):
            for name in ASSETS:
                self.pay_in(account, name, 2_000 if name == "USDT" else 60)

    @staticmethod
    def instrument(pair: str) -> Instrument:
        """Return a pair's specification."""
        return next(item for item in PAIRS if item.pair == pair)

    def new_request(self) -> UUID:
        """Return an id never used before, in this or an earlier life of the risk service."""
        return UUID(int=next(self.requests))

    # What people do.

    def pay_in(self, account: int, name: str, units: int) -> None:
        """Deposit from outside to funding, and move it to trading."""
        funding, trading = (account, "funding", name, ""), (account, "trading", name, "")
        self.outside[name] -= units
        self.ledger.books.move(((0, "custody", name, ""), -units), (funding, units))
        self.ledger.books.move((funding, -units), (trading, units))

    def pay_out(self, account: int, name: str, units: int) -> None:
        """Move to funding and withdraw, if there is so much."""
        funding, trading = (account, "funding", name, ""), (account, "trading", name, "")
        try:
            self.ledger.books.move((trading, -units), (funding, units))
        except Short:
            return
        if self.chance.of_thousand(700):
            self.ledger.books.move((funding, -units), ((0, "custody", name, ""), units))
            self.outside[name] += units

    def trade(self) -> None:
        """Let somebody enter an order; on a shortage, ask for what it needs."""
        chance = self.chance
        engine = self.engines[chance.among(PAIRS).pair]
        instrument, account = engine.instrument, chance.number(1, ACCOUNTS)
        side, price, lots = chance.number(1, 2), chance.number(28, 34), chance.number(1, 12)
        tif = chance.among([TimeInForce.GOOD_TILL_CANCELLED, TimeInForce.IMMEDIATE_OR_CANCEL])
        command = engine.order(account, side, price, lots, tif)
        asset, units = Asset.BASE, lots * instrument.base_units_per_lot
        if side == Side.BUY:
            asset, units = Asset.QUOTE, price * lots * instrument.quote_units_per_tick_lot
            units += lots + units * instrument.taker_fee_ppm // 1_000_000

        def told(row: list[int]) -> None:
            reason = (row[records.E_VERB] >> 8) & 0xFF
            if reason in {Reason.INSUFFICIENT_FUNDS, Reason.ACCOUNT_UNKNOWN}:
                known, pair = len(engine.log) - 1, instrument.pair
                asked = (account, pair, asset, units, known, enter)
                self.network.send(self.risk.hear(lambda: self.risk.ask(*asked)))

        enter = engine.hear(lambda: engine.take(command, told))
        self.network.send(enter)

    def cancel(self) -> None:
        """Let somebody cancel all orders of a pair."""
        engine = self.engines[self.chance.among(PAIRS).pair]
        account = self.chance.number(1, ACCOUNTS)
        command = command_of(CommandKind.CANCEL_ALL, account)
        self.network.send(engine.hear(lambda: engine.take(command, None)))

    # Rounds.

    def round(self, people: bool = True) -> None:
        """Let something happen, time pass, everybody work; then check everything."""
        for _ in range(self.chance.number(1, 4) if people else 0):
            self._somebody_acts()
        self.network.pass_time(self.chance.number(1, 6) * MILLISECOND_NS)
        for node in (*self.engines.values(), self.ledger, self.risk):
            if not node.up and not self.chance.of_thousand(500 if people else 0):
                node.start()
        for engine in self.engines.values():
            if not self.chance.of_thousand(self.network.faults.stall):
                engine.hear(engine.sync)()
        self._pull()
        self.risk.hear(self.risk.work)()
        if self.chance.of_thousand(100):
            self.risk.hear(self.risk.store)()
        self.check()

    def _somebody_acts(self) -> None:
        chance = self.chance
        what = chance.number(1, 100)
        account, name = chance.number(1, ACCOUNTS), chance.among(ASSETS)
        if what <= 70:
            self.trade()
        elif what <= 78:
            self.cancel()
        elif what <= 82:
            self.pay_in(account, name, chance.number(1, 200))
        elif what <= 90:
            self.pay_out(account, name, chance.number(1, 300))
        elif what <= 94 and self.risk.up:
            now_ns, machine = self.network.now_ns, self.risk.machine
            until_ns = now_ns + 200 * MILLISECOND_NS
            self.wants.append(machine.want(account, "", name, 300, now_ns, until_ns))
        elif what <= 97 and self.risk.up:
            pair, asset = chance.among(PAIRS).pair, chance.among((Asset.BASE, Asset.QUOTE))
            self.risk.machine.recall(account, pair, asset, chance.number(1, 200))

    def _pull(self) -> None:
        """Let the books and the risk service read the feeds from where they are."""
        for pair, engine in self.engines.items():
            if not engine.up:
                continue
            if self.ledger.up and not self.chance.of_thousand(self.network.faults.stall):
                first = max(0, self.ledger.cursors[pair] - self.chance.number(0, 3))
                rows = engine.rows()[first : first + self.chance.number(1, 40)]
                self.network.send(self.ledger.hear(partial(self.ledger.settle, pair, first, rows)))
            if self.risk.up:
                cursor = self.risk.machine.holdings[pair].cursor
                first = max(0, cursor - self.chance.number(0, 3))
                rows = engine.rows()[first : first + self.chance.number(1, 40)]
                self.network.send(self.risk.hear(partial(self._risk_hears, pair, first, rows)))
        for pair, cursor in self.ledger.cursors.items():
            self.network.send(self.risk.hear(partial(self._risk_knows, pair, cursor)))

    def _risk_knows(self, pair: str, cursor: int) -> None:
        self.risk.machine.settled(pair, cursor)

    def _risk_hears(self, pair: str, first: int, rows: Rows) -> None:
        # A chunk for an earlier life of the service may lie beyond what this one has read.
        if first <= self.risk.machine.holdings[pair].cursor:
            self.risk.machine.facts(pair, first, rows)

    # What must hold.

    def check(self) -> None:
        """Assert that every unit of every asset is in exactly one place."""
        books = self.ledger.books
        books.check()
        for name in ASSETS:
            assert books.balances[0, "custody", name, ""] == self.outside[name]
        for pair, engine in self.engines.items():
            if engine.up:
                self._check_pair(pair, engine)

    def _check_pair(self, pair: str, engine: EngineNode) -> None:
        books, cursor = self.ledger.books, self.ledger.cursors[pair]
        instrument = engine.instrument
        if cursor in engine.totals:
            told = self._allotted(pair)
            assert (told == engine.totals[cursor]).all(), f"{pair}: ledger and engine differ"
        applied = int(engine.engine.vault["scalars"][vault.TRANSFER_NUMBER])
        for asset in (Asset.BASE, Asset.QUOTE):
            name, column = asset_name(instrument, asset), asset - 1
            ours = sum(
                units
                for (_, purpose, code, where), units in books.balances.items()
                if code == name and where == pair and purpose in {"allotted", "suspense", "fees"}
            )
            there = int(engine.accounts()[:, column].sum())
            coming = sum(
                self.ledger.terms[pair, number].amount_units
                for number in range(applied + 1, self.ledger.count[pair] + 1)
                if self.ledger.terms[pair, number].allots
                if self.ledger.terms[pair, number].asset == asset
            )
            released = sum(
                row[records.E_AMOUNT]
                for row in engine.log[cursor:]
                if row[records.E_VERB] & 0xFF == ExecutionKind.RELEASED
                if row[records.E_PRICE] & 0xFFFFFFFF == asset
            )
            assert ours == there + coming + released, f"{pair}: {name} is lost or made"
        assert applied <= self.ledger.count[pair], f"{pair}: a number nobody gave"

    def _allotted(self, pair: str) -> Rows:
        """Return the books' accounts of a pair in the shape of the engine's."""
        instrument, books = self.instrument(pair), self.ledger.books
        found: Rows = np.zeros((ACCOUNTS + 1, 2), np.int64)
        for account in range(1, ACCOUNTS + 1):
            for asset in (Asset.BASE, Asset.QUOTE):
                key: Key = (account, "allotted", asset_name(instrument, asset), pair)
                found[account, asset - 1] = books.balances[key]
        found[0, 1] = books.balances[0, "fees", instrument.quote_asset, pair]
        return found

    # From the first round to rest.

    def run(self, rounds: int) -> None:
        """Run so many rounds with faults, then without until nothing moves any more."""
        for _ in range(rounds):
            self.round()
        self.network.faults = NO_FAULTS
        self.risk.machine.targets.clear()
        for _ in range(2_000):
            self.round(people=False)
            if self.at_rest():
                return
        raise AssertionError(f"seed {self.seed}: money is still on its way: {self.restless()}")

    def restless(self) -> dict[str, object]:
        """Return what is not at rest."""
        machine = self.risk.machine
        suspense = sum(
            units for key, units in self.ledger.books.balances.items() if key[1] == "suspense"
        )
        return {
            "in flight": suspense,
            "open moves": sum(len(purse.moves) for purse in machine.purses.values()),
            "open wants": sum(len(purse.wants) for purse in machine.purses.values()),
            "returning": sum(len(purse.returning) for purse in machine.purses.values()),
            "unresolved": sum(told.open for told in self.ledger.books.told.values()),
            "unsettled": sum(
                len(engine.log) - self.ledger.cursors[pair] for pair, engine in self.engines.items()
            ),
            "unheard": sum(
                len(engine.log) - machine.holdings[pair].cursor
                for pair, engine in self.engines.items()
            ),
            "waiting": sum(len(engine.waiting) for engine in self.engines.values()),
        }

    def at_rest(self) -> bool:
        """Say whether nothing moves any more; if so, check what must hold only then."""
        if any(self.restless().values()):
            return False
        for pair, engine in self.engines.items():
            item = self.risk.machine.holdings[pair]
            totals = engine.accounts()
            totals[0] = 0
            assert (item.total == totals).all(), f"{pair}: the risk service believes otherwise"
            applied = int(engine.engine.vault["scalars"][vault.TRANSFER_NUMBER])
            assert applied == self.ledger.count[pair] == item.transfer_number
        return True
