"""Order flow to measure with: generated here, or the common workload and recordings if at hand.

The generators draw from splitmix64 with integers only, so a name, a seed and a length are the same
commands everywhere. They ask an engine what rests after every few hundred commands, because a
cancel has to name an order and an add has to know where the market is; within such a stretch an
order may have traded before its cancel arrives, as happens to people.

    deep      20,000 orders within 64 ticks of a price that hardly moves: long queues
    wide      2,000 orders by a power law up to 2,048 ticks away, and a price that drifts
    still     adds and cancels around a fixed price, nothing trades
    normal    adds, cancels, trades and amends around a price that walks
    swing25   the same while the price swings by 25 per cent each way
    swing40   the same by 40 per cent
    crash     the same while the price falls by 60 per cent within a tenth of the flow
"""

import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.venue import ACCOUNTS, INSTRUMENT, START_NS, Venue
from engine.state_machine import Engine
from engine.vault_layout import H_ACCOUNT as ACCOUNT_HALF
from engine.vault_layout import HIGH_WATER, O_CLIENT_ORDER_ID, O_LEAVES, O_ORDER_ID, O_TERMS
from exchange.enums import CommandKind, OrderType, SelfTradePrevention, Side, TimeInForce
from exchange.instrument import Instrument
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    COMMAND_FLAG_LEAVES,
    COMMAND_WORDS,
    Rows,
    command_price,
    command_verb,
)

STRETCH: Final = 256
"""Commands drawn between two looks at the book."""
BESIDE: Final = Path(__file__).resolve().parent.parent.parent / "shared"
"""Where recordings and the common workload lie when they are at hand."""

Integers = npt.NDArray[np.int64]


class Splitmix:
    """Sebastiano Vigna's splitmix64, many numbers at a time."""

    def __init__(self, seed: int) -> None:
        self._state = np.uint64(seed)

    def below(self, limit: int | Integers, count: int) -> Integers:
        """Return so many integers from 0 to limit less one."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = self._state + steps
        self._state = z[-1]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        scaled = (z >> np.uint64(32)) * np.asarray(limit, dtype=np.uint64)
        return (scaled >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a generated flow is like; percentages of the commands after the warm-up."""

    resting_count: int
    """Orders of the warm-up; cancels keep about so many resting."""
    start_ticks: int = 20_000
    """200.00 in hundredths, so that a swing goes through many levels, a few at a time."""
    take_percent: int = 8
    amend_percent: int = 2
    reach_ticks: int = 64
    power_law: bool = False
    walk_ticks: int = 0
    """Largest step of the price from one stretch to the next."""
    swing_percent: int = 0
    """The price goes down and up by so much, twice in the flow."""
    fall_percent: int = 0
    """The price falls by so much between 45 and 55 per cent of the flow."""


SHAPES: Final = {
    "deep": Shape(20_000, start_ticks=1_000_000, walk_ticks=1),
    "wide": Shape(4_000, start_ticks=1_000_000, reach_ticks=2_048, power_law=True, walk_ticks=48),
    "still": Shape(10_000, take_percent=0, reach_ticks=256),
    "normal": Shape(10_000, reach_ticks=256, walk_ticks=8),
    "swing25": Shape(10_000, reach_ticks=256, walk_ticks=8, swing_percent=25),
    "swing40": Shape(10_000, reach_ticks=256, walk_ticks=8, swing_percent=40),
    "crash": Shape(10_000, reach_ticks=256, walk_ticks=8, fall_percent=60),
}
FIVE: Final = ("still", "normal", "swing25", "swing40", "crash")


@dataclass(frozen=True, slots=True)
class Flow:
    """Commands for a funded pair, and where they come from."""

    name: str
    origin: str
    commands: Rows
    instrument: Instrument = INSTRUMENT


class _Drawing:
    """One flow while it is drawn."""

    def __init__(self, shape: Shape, seed: int, engine: Engine, count: int) -> None:
        self.shape = shape
        self.engine = engine
        self.random = Splitmix(seed)
        self.count = count
        self.drawn = 0
        self.next_id = 1
        self.walked = 0

    def price(self) -> int:
        """Return the middle of the market at this point of the flow."""
        shape, done = self.shape, self.drawn * 100_000 // self.count
        furthest = shape.start_ticks // 20
        if shape.walk_ticks:
            step = int(self.random.below(2 * shape.walk_ticks + 1, 1)[0]) - shape.walk_ticks
            self.walked = max(-furthest, min(furthest, self.walked + step))
        moved = 0
        if shape.swing_percent:
            # A triangle wave: 0, down, 0, up, 0 within each half of the flow.
            phase = done * 2 % 100_000
            height = phase
            if phase > 25_000:
                height = 50_000 - phase if phase <= 75_000 else phase - 100_000
            moved = -shape.start_ticks * shape.swing_percent * height // 2_500_000
        if shape.fall_percent:
            fallen = max(0, min(10_000, done - 45_000))
            moved = -shape.start_ticks * shape.fall_percent * fallen // 1_000_000
        return shape.start_ticks + moved + self.walked

    def distances(self, count: int) -> Integers:
        """Return how far from the middle so many adds stand."""
        reach = self.shape.reach_ticks
        if not self.shape.power_law:
            return 1 + self.random.below(reach, count)
        # reach ** u for a uniform u, in sixteenths of an octave: many near, few far.
        octaves = self.random.below(reach.bit_length(), count)
        return 1 + self.random.below(1 << octaves, count)

    def stretch(self) -> Rows:
        """Return the next few commands."""
        size = min(STRETCH, self.count - self.drawn)
        live = _resting(self.engine)
        adds = np.ones(size, bool)
        victims = np.zeros(size, np.int64)
        takes = amends = np.zeros(size, bool)
        if self.drawn >= self.shape.resting_count and len(live):
            draw = self.random.below(100, size)
            takes = draw < self.shape.take_percent
            amends = ~takes & (draw < self.shape.take_percent + self.shape.amend_percent)
            # Half adds and half cancels when the book is as full as it should be.
            target = self.shape.resting_count
            bound = 55 + max(-15, min(15, (target - len(live)) * 100 // target))
            cancels = draw >= bound
            victims = self.random.below(len(live), size)
            first = np.zeros(size, bool)
            first[np.unique(victims, return_index=True)[1]] = True
            cancels &= first
            amends &= first
            adds = ~(takes | amends | cancels)
        rows = self._orders(size, takes)
        changes = ~(adds | takes)
        if changes.any():
            self._change(rows, changes, amends, live[victims[changes]])
        self.drawn += size
        return rows

    def _orders(self, size: int, takes: npt.NDArray[np.bool_]) -> Rows:
        """Return new orders: adds beside the price, takers beyond it."""
        rows = np.zeros((size, COMMAND_WORDS), np.int64)
        middle, distance = self.price(), self.distances(size)
        side = self.random.below(2, size)
        takers = self.random.below(100, size)
        ioc = takes & (takers % 2 == 0)
        sweeps = takers >= 99
        towards = np.where(side == 0, -1, 1) * np.where(takes, -1, 1)
        reach = np.where(sweeps, 96, 24)
        verb = command_verb(CommandKind.NEW_ORDER, 0, 0, OrderType.LIMIT)
        force = np.where(ioc, int(TimeInForce.IMMEDIATE_OR_CANCEL), 1)
        account = 1 + self.random.below(ACCOUNTS, size)
        rows[:, C_VERB] = verb | (side + 1) << 8 | force << 24 | account << 32
        rows[:, C_CLIENT_ORDER_ID] = np.arange(self.next_id, self.next_id + size)
        price = middle + towards * np.where(takes, reach, distance)
        rows[:, C_PRICE] = price | command_price(0, SelfTradePrevention.CANCEL_NEWEST)
        largest = np.where(takes & sweeps, 5_000, np.where(takes, 75, 100))
        rows[:, C_QUANTITY] = 1 + self.random.below(largest, size)
        self.next_id += size
        return rows

    def _change(
        self, rows: Rows, changes: npt.NDArray[np.bool_], amends: npt.NDArray[np.bool_], live: Rows
    ) -> None:
        """Turn some of the new orders into cancels and amends of resting ones."""
        account = live.view(np.int32)[:, ACCOUNT_HALF].astype(np.int64)
        amended = amends[changes]
        kind = np.where(amended, int(CommandKind.AMEND_ORDER), int(CommandKind.CANCEL_ORDER))
        side = (live[:, O_TERMS] & 0xFF) - 1
        away = np.where(side == 0, -1, 1) * self.distances(len(live))
        price = self.price() + away | command_price(0, 0, COMMAND_FLAG_LEAVES)
        rows[changes, C_VERB] = kind | account << 32
        rows[changes, C_CLIENT_ORDER_ID] = live[:, O_CLIENT_ORDER_ID]
        rows[changes, C_PRICE] = np.where(amended, price, 0)
        rows[changes, C_QUANTITY] = np.where(amended, live[:, O_LEAVES], 0)


def _resting(engine: Engine) -> Rows:
    orders = engine.vault["orders"][: int(engine.vault["scalars"][HIGH_WATER]) + 1]
    return np.asarray(orders[orders[:, O_ORDER_ID] != 0])


@cache
def generated(name: str, count: int, seed: int = 23) -> Flow:
    """Return a flow of this shape and length."""
    with Venue() as venue:
        drawing = _Drawing(SHAPES[name], seed, venue.engine, count)
        parts = []
        while drawing.drawn < count:
            parts.append(drawing.stretch())
            venue.engine.apply(parts[-1], START_NS)
        venue.engine.check()
    return Flow(name, f"generated, seed {seed}", np.concatenate(parts))


@cache
def common(profile: str, count: int) -> Flow:
    """Return the common workload's deep or wide flow, or the generated one like it."""
    path = BESIDE / "design" / "anchors" / "workload.py"
    if not path.is_file():
        return generated(profile, count)
    spec = importlib.util.spec_from_file_location("workload", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    records, _ = module.generate(profile, n=count)
    return Flow(profile, "common workload", _common_rows(records))


def _common_rows(records: npt.NDArray[np.void]) -> Rows:
    """Return records of the common workload as commands."""
    gtc, ioc, cancel, amend = range(4)
    limit = int(OrderType.LIMIT) << 16
    new = int(CommandKind.NEW_ORDER) | limit
    words = {
        gtc: new | int(TimeInForce.GOOD_TILL_CANCELLED) << 24,
        ioc: new | int(TimeInForce.IMMEDIATE_OR_CANCEL) << 24,
        cancel: int(CommandKind.CANCEL_ORDER),
        amend: int(CommandKind.AMEND_ORDER),
    }
    op = records["op"]
    side = np.where(op <= ioc, records["side"].astype(np.int64) + int(Side.BUY), 0) << 8
    verb = np.array([words[code] for code in range(4)], np.int64)[op]
    prevention = command_price(0, SelfTradePrevention.CANCEL_NEWEST)
    shape = np.where(op == amend, command_price(0, 0, COMMAND_FLAG_LEAVES), prevention)
    rows = np.zeros((len(records), COMMAND_WORDS), np.int64)
    rows[:, C_VERB] = verb | side | records["account"].astype(np.int64) << 32
    rows[:, C_CLIENT_ORDER_ID] = records["order"]
    rows[:, C_PRICE] = records["price"] | shape
    rows[:, C_QUANTITY] = records["qty"]
    return rows


def recorded_normal(count: int) -> Flow | None:
    """Return the first messages of the recorded flash1-normal flow, or None where it is absent."""
    path = BESIDE / "data" / "flash1-normal" / "normal_first500k.orders.csv.xz"
    if not path.is_file():
        return None
    from holdfast.replay import flash1

    recording = flash1.read(path, count)
    return Flow("flash1-normal", "recorded", recording.commands, recording.instrument)
