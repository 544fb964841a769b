"""The processes of the simulated mesh: what each keeps when it dies, and what it loses.

Engines are real (`Engine.in_memory`) over a journal that outlives them; the books are the plain
twin (`tests.reference.ledger`), whose every change is one transaction; the risk service is the real
`riskd.allotments`, which forgets everything when it dies except the holdings it dumped now and
then.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from engine import vault_layout as vault
from engine.state_machine import Engine
from exchange import records
from exchange.enums import (
    Asset,
    CommandKind,
    OrderType,
    Reason,
    SelfTradePrevention,
    TimeInForce,
)
from exchange.instrument import Instrument
from exchange.records import Rows
from riskd.allotments import Allotments
from riskd.funds.holdings import Holdings
from riskd.funds.moves import (
    Instruct,
    Instruction,
    Learn,
    Move,
    Policy,
    ReadTrading,
    Send,
    Step,
    Want,
)
from riskd.limits import RiskReason, asset_name
from tests.reference.ledger import Books, Short
from tests.simulation.faults import MILLISECOND_NS, Died

if TYPE_CHECKING:
    from tests.simulation.mesh import Mesh

ACCOUNTS = 4
SMALL: dict[str, Any] = {
    "quote_asset": "USDT",
    "base_decimals": 0,
    "quote_decimals": 0,
    "price_capacity_ticks": 64,
    "quantity_limit_lots": 40,
    "taker_fee_ppm": 2_000,
    "maker_fee_ppm": -1_000,
    "taker_fee_floor_ppm": 1_000,
    "order_capacity": 12,
    "account_capacity": ACCOUNTS + 1,
    "client_id_window": 32,
    "event_capacity": 64,
    "depth_level_count": 3,
    "depth_copy_count": 2,
}
PAIRS = (
    Instrument("BTC-USDT", "BTC", tick_quote_units=7, base_units_per_lot=3, **SMALL),
    Instrument("ETH-USDT", "ETH", tick_quote_units=1, base_units_per_lot=1, **SMALL),
)
ASSETS = ("BTC", "ETH", "USDT")
TIMEOUT_NS = 60 * MILLISECOND_NS
POLICY = Policy(
    sticky_ns=20 * MILLISECOND_NS,
    headroom_percent=50,
    window=4,
    resend_ns=300 * MILLISECOND_NS,
    ahead_ns=100 * MILLISECOND_NS,
    relearn_ns=500 * MILLISECOND_NS,
)
MONEY_COLUMNS = [vault.A_FREE_BASE, vault.A_HELD_BASE, vault.A_FREE_QUOTE, vault.A_HELD_QUOTE]

Reply = Callable[[list[int]], None]


def command_of(
    kind: CommandKind, account: int = 0, number: int = 0, asset: int = 0, units: int = 0
) -> list[int]:
    """Return a command that is no order; number, asset and units are those of moved funds."""
    command = [0] * records.COMMAND_WORDS
    command[records.C_VERB] = records.command_verb(kind, account)
    command[records.C_TRANSFER_NUMBER] = number
    command[records.C_PRICE] = records.command_price(asset)
    command[records.C_AMOUNT] = units
    return command


class Node:
    """Something that dies now and then and is started again by the mesh."""

    def __init__(self, mesh: "Mesh") -> None:
        self.mesh = mesh
        self.up = True

    def may_die(self) -> None:
        """Die here, if chance has it."""
        if self.mesh.chance.of_thousand(self.mesh.network.faults.crash):
            self.up = False
            self.mesh.deaths += 1
            raise Died

    def hear(self, act: Callable[[], None]) -> Callable[[], None]:
        """Return a message to this node: lost when it is down, cut short when it dies of it."""

        def arrive() -> None:
            if self.up:
                try:
                    act()
                except Died:
                    self.lose()

        return arrive

    def lose(self) -> None:
        """Lose what was not durable."""

    def start(self) -> None:
        """Start again from what was durable."""
        self.up = True


class EngineNode(Node):
    """One pair: real engine, journal, execution log."""

    def __init__(self, mesh: "Mesh", instrument: Instrument) -> None:
        super().__init__(mesh)
        self.instrument = instrument
        self.journal: list[tuple[list[int], int]] = []
        self.log: list[list[int]] = []
        self.log_rows: Rows = np.zeros((0, records.EXECUTION_WORDS), np.int64)
        self.waiting: list[tuple[list[int], Reply | None]] = []
        self.engine = Engine.in_memory(instrument)
        self.totals: dict[int, Rows] = {0: self.accounts()}
        """What accounts had (accounts, 2) and the fees taken, after each command, by log number."""
        self.next_order = 1

    def accounts(self) -> Rows:
        """Return total base and quote of each account; row 0, which none has: 0 and the fees."""
        money = self.engine.vault["accounts"][:, MONEY_COLUMNS]
        found: Rows = np.stack((money[:, 0] + money[:, 1], money[:, 2] + money[:, 3]), axis=1)
        found[0, 1] = self.engine.vault["scalars"][vault.FEES_TAKEN]
        return found

    def order(self, account: int, side: int, price: int, lots: int, tif: TimeInForce) -> list[int]:
        """Return a new order at a limit."""
        verb = (CommandKind.NEW_ORDER, account, side, OrderType.LIMIT, tif)
        command = [0] * records.COMMAND_WORDS
        command[records.C_VERB] = records.command_verb(*verb)
        command[records.C_CLIENT_ORDER_ID] = self.next_order
        command[records.C_PRICE] = records.command_price(price, SelfTradePrevention.CANCEL_OLDEST)
        command[records.C_QUANTITY] = lots
        self.next_order += 1
        return command

    def take(self, command: list[int], reply: Reply | None) -> None:
        """Take a command in: it is not durable yet."""
        self.waiting.append((command, reply))

    def sync(self) -> None:
        """Make what waits durable, apply it, say what came of it."""
        batch, self.waiting = self.waiting, []
        if not batch:
            return
        self.may_die()
        self.journal += [(command, self.mesh.network.now_ns) for command, _ in batch]
        self.may_die()
        replies = []
        for command, reply in batch:
            rows = self.applied(command, self.mesh.network.now_ns)
            if reply is not None:
                replies.append((reply, rows[-1]))
        self.engine.check()
        self.may_die()
        for reply, row in replies:
            self.mesh.network.send(partial(reply, row))

    def applied(self, command: list[int], time_ns: int) -> list[list[int]]:
        """Apply a command; return its executions, which are in the log by then."""
        rows = self.engine.apply(np.array([command], np.int64), time_ns)
        self.log += rows.tolist()
        self.totals[len(self.log)] = self.accounts()
        found: list[list[int]] = rows.tolist()
        return found

    def rows(self) -> Rows:
        """Return the log as an array."""
        if len(self.log_rows) != len(self.log):
            self.log_rows = np.array(self.log, np.int64).reshape(-1, records.EXECUTION_WORDS)
        return self.log_rows

    def lose(self) -> None:
        self.waiting = []

    def start(self) -> None:
        said, self.log = self.log, []
        self.engine = Engine.in_memory(self.instrument)
        for command, time_ns in self.journal:
            self.applied(command, time_ns)
        assert self.log[: len(said)] == said, "the engine remembers something else than it said"
        super().start()


class LedgerNode(Node):
    """The books. Every method that changes them is one transaction: done or not done."""

    def __init__(self, mesh: "Mesh") -> None:
        super().__init__(mesh)
        self.books = Books()
        self.requests: dict[UUID, int] = {}
        self.cursors = {item.pair: 0 for item in PAIRS}
        self.count = {item.pair: 0 for item in PAIRS}
        self.terms: dict[tuple[str, int], Move] = {}

    def instruct(
        self, move: Move, number: Callable[[int], None], refuse: Callable[[], None]
    ) -> None:
        """Record and number an instruction, once for each request."""
        assert move.request is not None
        known = self.requests.get(move.request)
        if known is None:
            known = self.count[move.pair] + 1
            name = asset_name(self.mesh.instrument(move.pair), move.asset)
            post = self.books.allot if move.allots else self.books.recall
            self.may_die()
            try:
                post(move.pair, known, move.account, name, move.amount_units)
            except Short:
                self.mesh.network.send(refuse)
                return
            self.requests[move.request] = known
            self.count[move.pair] = known
            self.terms[move.pair, known] = move
        self.may_die()
        answer = known
        self.mesh.network.send(lambda: number(answer))

    def settle(self, pair: str, first: int, rows: Rows) -> None:
        """Post what executions say, from the cursor on, and move the cursor, in one."""
        cursor = self.cursors[pair]
        if not first <= cursor < first + len(rows):
            return
        self.may_die()
        self.books.settle(self.mesh.instrument(pair), rows[cursor - first :])
        self.cursors[pair] = first + len(rows)
        self.may_die()

    def instructions(self, pair: str, first: int) -> list[Instruction]:
        """List what was instructed, from a number or from the first that is open."""
        found = [
            Instruction(
                number,
                self.terms[pair, number].kind,
                self.terms[pair, number].account,
                self.terms[pair, number].asset,
                self.terms[pair, number].amount_units,
                not self.books.told[pair, number].open,
            )
            for number in range(max(1, first), self.count[pair] + 1)
        ]
        if first == 0:
            found = list(itertools.dropwhile(lambda told: told.resolved, found))
        return found

    def trading(self, account: int, name: str) -> int:
        """Return a trading balance."""
        return self.books.balances[account, "trading", name, ""]


@dataclass
class Outstanding:
    """A step of the risk service on its way."""

    step: Step
    until_ns: int
    answered: bool = False


class RiskNode(Node):
    """The real state machine, and a wire for each of its steps."""

    def __init__(self, mesh: "Mesh") -> None:
        super().__init__(mesh)
        self.stored: dict[str, bytes] = {}
        self.machine = self._made()
        self.outstanding: list[Outstanding] = []
        self.retries: dict[Want, list[Callable[[], None]]] = {}

    def _made(self) -> Allotments:
        holdings = [
            Holdings.load(item, self.stored[item.pair])
            if item.pair in self.stored
            else Holdings(item)
            for item in PAIRS
        ]
        machine = Allotments(holdings, POLICY, self.mesh.new_request)
        machine.set_target(1, PAIRS[0].pair, Asset.QUOTE, 300)
        return machine

    def lose(self) -> None:
        self.outstanding = []
        self.retries = {}

    def start(self) -> None:
        self.machine = self._made()
        super().start()

    def store(self) -> None:
        """Make the holdings durable."""
        for pair, item in self.machine.holdings.items():
            self.stored[pair] = item.dump()

    def ask(
        self,
        account: int,
        pair: str,
        asset: Asset,
        units: int,
        after: int,
        again: Callable[[], None],
    ) -> None:
        """Hear of a shortage; once it is over, the order is entered again."""
        now_ns = self.mesh.network.now_ns
        until_ns = now_ns + self.mesh.chance.number(1, 400) * MILLISECOND_NS
        want = self.machine.want(account, pair, asset, units, now_ns, until_ns, after_number=after)
        self.mesh.wants.append(want)
        self.retries.setdefault(want, []).append(again)

    def work(self) -> None:
        """Take the machine's next steps."""
        now_ns = self.mesh.network.now_ns
        late = [item for item in self.outstanding if now_ns >= item.until_ns]
        self.outstanding = [item for item in self.outstanding if now_ns < item.until_ns]
        for item in late:
            if not item.answered:
                self.machine.failed(item.step)
        for step in self.machine.steps(now_ns):
            self.outstanding.append(Outstanding(step, now_ns + TIMEOUT_NS))
            self._take(self.outstanding[-1])
            self.may_die()
        for ended in self.machine.finished:
            if isinstance(ended, Want) and ended.reason == RiskReason.UNSPECIFIED:
                for again in self.retries.pop(ended, ()):
                    self.mesh.network.send(again)
        self.machine.finished.clear()

    def _take(self, item: Outstanding) -> None:
        machine, step, mesh = self.machine, item.step, self.mesh
        ledger, network = mesh.ledger, mesh.network

        def answer(act: Callable[..., None], *given: Any) -> Callable[[], None]:
            def heard() -> None:
                if self.machine is machine:
                    item.answered = True
                    act(step, *given)

            return self.hear(heard)

        if isinstance(step, ReadTrading):

            def read(step: ReadTrading = step) -> None:
                units = ledger.trading(*step.key)
                network.send(answer(machine.trading_is, units))

            network.send(ledger.hear(read))
        elif isinstance(step, Learn):

            def learn(step: Learn = step) -> None:
                found = ledger.instructions(step.pair, step.from_number)
                network.send(answer(machine.learned, found))

            network.send(ledger.hear(learn))
        elif isinstance(step, Instruct):
            move = step.move

            def numbered(number: int) -> None:
                answer(machine.numbered, number)()

            refused = answer(machine.refused)
            network.send(ledger.hear(lambda: ledger.instruct(move, numbered, refused)))
        else:
            self._send(step, answer)

    def _send(self, step: Send, answer: Callable[..., Callable[[], None]]) -> None:
        move, machine = step.move, self.machine
        engine = self.mesh.engines[move.pair]
        command = command_of(move.kind, move.account, move.number, move.asset, move.amount_units)

        def told(row: list[int]) -> None:
            if (row[records.E_VERB] >> 8) & 0xFF == Reason.TRANSFER_GAP:
                answer(machine.gap)()
            else:
                answer(lambda step: None)()

        self.mesh.network.send(engine.hear(lambda: engine.take(command, told)))
