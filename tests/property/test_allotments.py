"""Whatever is wanted, traded, recalled and forgotten, in whatever order: what must always hold.

A world without delay but with restarts and lost answers; the mesh in `tests/simulation` has the
delays. The machine is compared with what the ledger and the engines really have.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from exchange.enums import Asset, Side
from exchange.records import Rows
from riskd.funds.moves import Instruct, Policy, Send, Step, Want
from riskd.limits import RiskReason
from tests.simulation.instant import BTC, ETH, InstantWorld
from tests.simulation.processes import ASSETS, PAIRS

ACCOUNTS = (1, 2)
START = {"USDT": 1_000, "BTC": 60, "ETH": 60}


class Money(InstantWorld):
    """A world that keeps its feeds, so that a machine can be started anew."""

    def __init__(self, policy: Policy) -> None:
        self.feeds: dict[str, list[tuple[int, Rows]]] = {BTC: [], ETH: []}
        super().__init__(policy)
        for account in ACCOUNTS:
            for name, units in START.items():
                self.trading[account, name] = units
        self.wants: list[Want] = []

    def apply(self, pair: str, command: list[int]) -> int:
        first = self.engines[pair].execution_count
        reason = super().apply(pair, command)
        # The engine's output is a view of its last call; the feed keeps what it said.
        rows = self.engines[pair].executions.copy()
        self.feeds[pair].append((first, rows))
        return reason

    def restart(self) -> None:
        """Forget everything and read the feeds again."""
        self.restarted()
        for pair, chunks in self.feeds.items():
            for first, rows in chunks:
                self.machine.facts(pair, first, rows)

    def lose(self, step: Step, after: bool) -> None:
        """Lose a question on its way there, or its answer on the way back."""
        if after and isinstance(step, Instruct):
            if step.move.request not in self.requests:
                self.record(step.move)
        elif after and isinstance(step, Send):
            self.take(step)
        self.machine.failed(step)

    def owned_by_all(self, name: str) -> int:
        """Return what there is of an asset, fees and what is in flight included."""
        units = sum(self.owned(account, name) for account in ACCOUNTS)
        for instrument in PAIRS:
            applied = self.applied(instrument.pair)
            for told in self.told[instrument.pair][applied:]:
                allots = told.kind == 5
                if allots and self.name(instrument.pair, told.asset) == name:
                    units += told.amount_units
            if instrument.quote_asset == name:
                units += int(self.engines[instrument.pair].vault["scalars"][26])
        return units

    def check(self) -> None:
        """Assert what must hold after everything."""
        for engine in self.engines.values():
            engine.check()
        assert all(units >= 0 for units in self.trading.values())
        for name, units in START.items():
            assert self.owned_by_all(name) == units * len(ACCOUNTS), name
        for pair, item in self.machine.holdings.items():
            for account in ACCOUNTS:
                for asset in (Asset.BASE, Asset.QUOTE):
                    free, held = self.in_engine(account, pair, asset)
                    assert item.total[account, asset - 1] == free + held
                    assert item.free[account, asset - 1] >= free or held


POLICIES = st.builds(
    Policy,
    sticky_ns=st.sampled_from([0, 50]),
    headroom_percent=st.sampled_from([0, 100]),
    window=st.integers(1, 4),
    resend_ns=st.just(100),
    ahead_ns=st.just(100),
    relearn_ns=st.just(200),
)
ACCOUNT = st.sampled_from(ACCOUNTS)
PAIR = st.sampled_from([BTC, ETH])
SIDE = st.sampled_from([Asset.BASE, Asset.QUOTE])
UNITS = st.integers(1, 700)

Act = tuple[Callable[..., None], tuple[object, ...]]


def wants(world: Money, account: int, pair: str, asset: Asset, units: int) -> None:
    until_ns = world.now_ns + 300
    world.wants.append(world.machine.want(account, pair, asset, units, world.now_ns, until_ns))


def wants_back(world: Money, account: int, name: str, units: int) -> None:
    until_ns = world.now_ns + 300
    world.wants.append(world.machine.want(account, "", name, units, world.now_ns, until_ns))


def orders(world: Money, account: int, pair: str, side: Side, price: int, lots: int) -> None:
    world.order(account, pair, side, price, lots)


def cancels(world: Money, account: int, pair: str) -> None:
    world.cancel_all(account, pair)


def recalls(world: Money, account: int, pair: str, asset: Asset, units: int) -> None:
    world.machine.recall(account, pair, asset, units)


def promises(world: Money, account: int, pair: str, asset: Asset, units: int) -> None:
    world.machine.set_target(account, pair, asset, units)


def works(world: Money, lost: list[int]) -> None:
    for place, step in enumerate(world.machine.steps(world.now_ns)):
        if place < len(lost) and lost[place]:
            world.lose(step, after=lost[place] == 2)
        else:
            world.take(step)


def waits(world: Money, ns: int) -> None:
    world.now_ns += ns


def restarts(world: Money) -> None:
    world.restart()
    world.wants.clear()


def act(kind: Callable[..., None], *given_values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(kind), st.tuples(*given_values))


ACTS = st.one_of(
    act(wants, ACCOUNT, PAIR, SIDE, UNITS),
    act(orders, ACCOUNT, PAIR, st.sampled_from([1, 2]), st.integers(1, 5), st.integers(1, 9)),
    act(works, st.lists(st.sampled_from([0, 0, 1, 2]), max_size=6)),
    act(wants_back, ACCOUNT, st.sampled_from(ASSETS), UNITS),
    act(cancels, ACCOUNT, PAIR),
    act(recalls, ACCOUNT, PAIR, SIDE, UNITS),
    act(promises, ACCOUNT, PAIR, SIDE, st.integers(0, 500)),
    act(waits, st.integers(1, 120)),
    act(restarts),
)


@given(POLICIES, st.lists(ACTS, max_size=60))
def test_money_is_moved_and_never_made_or_lost(policy: Policy, acts: list[Act]) -> None:
    world = Money(policy)
    for kind, given_values in acts:
        kind(world, *given_values)
        world.check()
    world.machine.targets.clear()
    for _ in range(8):
        world.pass_time(100)
        world.check()
    # Everything came to an end, and nothing is on its way.
    assert all(want.done for want in world.wants)
    for pair, numbers in world.machine.numbers.items():
        assert numbers.applied == world.applied(pair) == len(world.told[pair])
        assert numbers.moves == {}
    assert all(not purse.moves for purse in world.machine.purses.values())


@given(st.lists(st.tuples(PAIR, UNITS), min_size=1, max_size=12))
def test_a_want_is_refused_only_when_the_money_is_not_there(asked: list[tuple[str, int]]) -> None:
    world = Money(Policy(sticky_ns=0, headroom_percent=0))
    for pair, units in asked:
        # Nothing is held by orders and nobody else wants: all 1,000 can be anywhere.
        want = world.get(1, pair, Asset.QUOTE, units * 2)
        assert want.done
        there = world.in_engine(1, pair, Asset.QUOTE)[0]
        if want.reason == RiskReason.UNSPECIFIED:
            assert there >= units * 2
        else:
            assert want.reason == RiskReason.INSUFFICIENT_FUNDS
            assert units * 2 > 1_000
        world.check()


@given(st.integers(2, 20), st.integers(1, 100))
def test_over_time_nobody_is_served_more_often(rounds: int, units: int) -> None:
    world = Money(Policy(sticky_ns=0, headroom_percent=0))
    world.trading[1, "USDT"], world.trading[2, "USDT"] = units, 2_000 - units
    served = {BTC: 0, ETH: 0}
    for _ in range(rounds):
        wants_now = {pair: world.want(1, pair, Asset.QUOTE, units) for pair in (BTC, ETH)}
        world.settle_down()
        for pair, want in wants_now.items():
            served[pair] += want.reason == RiskReason.UNSPECIFIED
        world.get(1, "", "USDT", units)
    assert sum(served.values()) == rounds
    assert abs(served[BTC] - served[ETH]) <= 1
