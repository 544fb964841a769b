"""A world without delay for `riskd.allotments`: each step is answered at once and for good.

Real engines, a dictionary for trading balances. What waits for time waits for `pass_time`.
"""

from uuid import UUID

import numpy as np

from engine.state_machine import Engine
from exchange import records
from exchange.enums import (
    Asset,
    CommandKind,
    OrderType,
    Reason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
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
from riskd.limits import asset_name
from tests.simulation.processes import PAIRS

BTC, ETH = (item.pair for item in PAIRS)
FOREVER_NS = 1 << 60


class InstantWorld:
    """Ledger and engines that answer at once."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.now_ns = 1_000_000_000_000
        self.policy = policy or Policy(sticky_ns=0, headroom_percent=0)
        self.engines = {item.pair: Engine.in_memory(item) for item in PAIRS}
        self.instruments = {item.pair: item for item in PAIRS}
        self.trading: dict[tuple[int, str], int] = {}
        self.told: dict[str, list[Instruction]] = {item.pair: [] for item in PAIRS}
        self.requests: dict[UUID | None, int] = {}
        self.steps_taken: list[Step] = []
        self.next_id = 0
        self.machine = self.restarted()

    def restarted(self) -> Allotments:
        """Return a machine that knows nothing."""
        self.machine = Allotments(map(Holdings, PAIRS), self.policy, self._new_request)
        return self.machine

    def _new_request(self) -> UUID:
        self.next_id += 1
        return UUID(int=self.next_id)

    # What people do.

    def order(self, account: int, pair: str, side: Side, price: int, lots: int) -> int:
        """Enter an order that rests; return the reason it was refused for, or 0."""
        self.next_id += 1
        verb = (CommandKind.NEW_ORDER, account, side, OrderType.LIMIT)
        command = [0] * records.COMMAND_WORDS
        command[records.C_VERB] = records.command_verb(*verb, TimeInForce.GOOD_TILL_CANCELLED)
        command[records.C_CLIENT_ORDER_ID] = self.next_id
        command[records.C_PRICE] = records.command_price(price, SelfTradePrevention.NONE)
        command[records.C_QUANTITY] = lots
        return self.apply(pair, command)

    def cancel_all(self, account: int, pair: str) -> None:
        """Cancel all orders of an account."""
        command = [0] * records.COMMAND_WORDS
        command[records.C_VERB] = records.command_verb(CommandKind.CANCEL_ALL, account)
        self.apply(pair, command)

    def apply(self, pair: str, command: list[int]) -> int:
        """Apply a command and let the feed tell of it; return the first execution's reason."""
        first = self.engines[pair].execution_count
        rows: Rows = self.engines[pair].apply(np.array([command], np.int64), self.now_ns)
        self.machine.facts(pair, first, rows)
        return int(records.reason_of(rows)[0])

    def want(self, account: int, pair: str, asset: Asset | str, units: int) -> Want:
        """Want money, for ever, without doing anything about it yet."""
        return self.machine.want(account, pair, asset, units, self.now_ns, FOREVER_NS)

    def get(self, account: int, pair: str, asset: Asset | str, units: int) -> Want:
        """Want money and do what there is to do."""
        want = self.want(account, pair, asset, units)
        self.settle_down()
        return want

    # What services do.

    def pass_time(self, ns: int) -> None:
        """Let time pass, and do what there is to do then."""
        self.now_ns += ns
        self.settle_down()

    def settle_down(self) -> None:
        """Take steps until there are none."""
        for _ in range(1_000):
            steps = self.machine.steps(self.now_ns)
            if not steps:
                return
            for step in steps:
                self.take(step)
        raise AssertionError("there is always something to do")

    def take(self, step: Step) -> None:
        """Take one step."""
        self.steps_taken.append(step)
        if isinstance(step, ReadTrading):
            self.machine.trading_is(
                step, self.trading.get((step.key.account, step.key.asset_name), 0)
            )
        elif isinstance(step, Learn):
            self.learn(step)
        elif isinstance(step, Instruct):
            self.instruct(step)
        else:
            self.send(step)

    def learn(self, step: Learn) -> None:
        """Answer what was instructed."""
        found = [
            told._replace(resolved=told.number <= self.applied(step.pair))
            for told in self.told[step.pair]
            if told.number >= step.from_number
        ]
        if step.from_number == 0:
            found = [told for told in found if not told.resolved]
        self.machine.learned(step, found)

    def instruct(self, step: Instruct) -> None:
        """Record and number a move, or refuse it."""
        move = step.move
        number = self.requests.get(move.request) or self.record(move)
        if number:
            self.machine.numbered(step, number)
        else:
            self.machine.refused(step)

    def record(self, move: Move) -> int:
        """Take the money and give a number; 0 when it is not there."""
        key = (move.account, self.name(move.pair, move.asset))
        if move.allots:
            if self.trading.get(key, 0) < move.amount_units:
                return 0
            self.trading[key] -= move.amount_units
        number = len(self.told[move.pair]) + 1
        terms = (move.kind, move.account, move.asset, move.amount_units)
        self.told[move.pair].append(Instruction(number, *terms, resolved=False))
        if move.request is not None:
            self.requests[move.request] = number
        return number

    def send(self, step: Send) -> None:
        """Give the engine the command; settle what it says at once."""
        move, engine = step.move, self.engines[step.move.pair]
        command = [0] * records.COMMAND_WORDS
        command[records.C_VERB] = records.command_verb(move.kind, move.account)
        command[records.C_TRANSFER_NUMBER] = move.number
        command[records.C_PRICE] = records.command_price(move.asset)
        command[records.C_AMOUNT] = move.amount_units
        reason = self.apply(move.pair, command)
        if reason == Reason.TRANSFER_GAP:
            self.machine.gap(step)
            return
        if reason in {0, Reason.BALANCE_OVERFLOW} and move.allots == bool(reason):
            key = (move.account, self.name(move.pair, move.asset))
            self.trading[key] = self.trading.get(key, 0) + move.amount_units
        self.machine.settled(move.pair, engine.execution_count)

    def name(self, pair: str, asset: Asset) -> str:
        """Return an asset's name."""
        return asset_name(self.instruments[pair], asset)

    def applied(self, pair: str) -> int:
        """Return the last number the engine has done with."""
        return int(self.engines[pair].vault["scalars"][8])

    def in_engine(self, account: int, pair: str, asset: Asset) -> tuple[int, int]:
        """Return what is free and what is held in an engine."""
        row = self.engines[pair].vault["accounts"][account]
        column = 2 * (asset - 1)
        return int(row[column]), int(row[column + 1])

    def owned(self, account: int, name: str) -> int:
        """Return everything an account has of an asset, in trading and in engines."""
        units = self.trading.get((account, name), 0)
        for pair in self.instruments:
            for asset in (Asset.BASE, Asset.QUOTE):
                if self.name(pair, asset) == name:
                    units += sum(self.in_engine(account, pair, asset))
        return units


def world_with(units: int, **policy: int) -> InstantWorld:
    """Return a world in which account 1 has so much USDT in trading."""
    given = {"sticky_ns": 0, "headroom_percent": 0} | policy
    world = InstantWorld(Policy(**given))
    world.trading[1, "USDT"] = units
    return world


def allotted_row() -> Rows:
    """Return the execution of a first transfer: 100 USDT allotted to account 1."""
    world = world_with(100)
    move = Move(BTC, CommandKind.ALLOT_FUNDS, 1, Asset.QUOTE, 100, None)
    command = [0] * records.COMMAND_WORDS
    command[records.C_VERB] = records.command_verb(move.kind, move.account)
    command[records.C_TRANSFER_NUMBER] = 1
    command[records.C_PRICE] = records.command_price(move.asset)
    command[records.C_AMOUNT] = move.amount_units
    return world.engines[BTC].apply(np.array([command], np.int64), world.now_ns)
