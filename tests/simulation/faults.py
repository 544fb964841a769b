"""What goes wrong between and inside the processes of the simulated mesh, decided by one seed.

A network drops, delays, duplicates and so reorders what is sent. A process dies at a point of what
it is doing: everything that was not durable by then is gone, everything durable is not.
"""

import heapq
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
MILLISECOND_NS = 1_000_000


class Died(Exception):
    """The process that was running is dead; whatever it was about to do is not done."""


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong; chances are in a thousand."""

    drop: int = 60
    duplicate: int = 60
    slow: int = 100
    """Messages that take many times as long as others, and so are overtaken."""
    crash: int = 12
    """At each point where a process may die."""
    stall: int = 200
    """Rounds in which a disk does not get ready."""


NO_FAULTS = Faults(0, 0, 0, 0, 0)


class Chance:
    """The only source of chance of a run: the same seed, the same run, on every machine."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = random.Random(seed)

    def of_thousand(self, chance: int) -> bool:
        """Say whether something happens that happens so many times in a thousand."""
        return chance > 0 and self._random.randrange(1_000) < chance

    def number(self, low: int, high: int) -> int:
        """Return a number from low to high, both included."""
        return self._random.randint(low, high)

    def among(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[self._random.randrange(len(items))]


class Network:
    """Carries messages by the manual clock. A message is what happens when it arrives."""

    def __init__(self, chance: Chance, faults: Faults) -> None:
        self.now_ns = 1_700_000_000_000_000_000
        self.faults = faults
        self._chance = chance
        self._order = 0
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []

    def send(self, arrive: Callable[[], None]) -> None:
        """Send a message: it arrives once, or, as chance has it, never, late or twice."""
        if self._chance.of_thousand(self.faults.drop):
            return
        for _ in range(1 + self._chance.of_thousand(self.faults.duplicate)):
            slow = self._chance.of_thousand(self.faults.slow)
            delay_ns = self._chance.number(1, 200 if slow else 4) * MILLISECOND_NS // 2
            self._order += 1
            heapq.heappush(self._waiting, (self.now_ns + delay_ns, self._order, arrive))

    def pass_time(self, ns: int) -> None:
        """Let time pass, and what is due by then arrive."""
        until_ns = self.now_ns + ns
        while self._waiting and self._waiting[0][0] <= until_ns:
            self.now_ns, _, arrive = heapq.heappop(self._waiting)
            arrive()
        self.now_ns = until_ns


def seeds(count: int, cost: int = 1) -> Iterator[int]:
    """Return the seeds to run: so many, or as HOLDFAST_SEEDS says, from HOLDFAST_SEED on.

    `cost`: for one run here there are so many of the cheapest kind, which HOLDFAST_SEEDS counts.
    """
    first = int(os.environ.get("HOLDFAST_SEED", "0"))
    told = os.environ.get("HOLDFAST_SEEDS")
    if told is not None:
        count = max(1, int(told) // cost)
    elif "HOLDFAST_SEED" in os.environ:
        count = 1
    return iter(range(first, first + count))
