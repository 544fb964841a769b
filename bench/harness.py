"""How everything here is measured: rounds that take turns, medians, and one table.

Machines drift and neighbours come and go, so a figure is only worth something beside another one
from the same minutes. Every measurement is therefore a set of contestants that run in turns,
A B A B, at least five rounds; the table shows the ratio of their medians, and the absolute figures
beside it for orientation. Work of one thread is timed in CPU time of that thread, which waiting
for a processor does not count; work of several processes in wall time.

Nothing here asserts that anything is fast.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

Contestant = Callable[[], float]
"""Runs once and returns its figure: a rate or a time."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often everything is done, and how much of it."""

    count: int = 5
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """Return how much work a pass has."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what, its figure, against what, and how they compare."""

    subject: str
    measured: str
    against: str = ""
    ratio: float | None = None
    must: str = ""
    """What the ratio or figure has to reach, in words."""
    note: str = ""


def in_turns(rounds: Rounds, contestants: Mapping[str, Contestant]) -> dict[str, list[float]]:
    """Run all contestants once to warm up, then in turns; return each one's figures."""
    for contestant in contestants.values():
        contestant()
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds.count):
        names = list(contestants)
        # Nobody always runs behind the same neighbour.
        for name in names if turn % 2 == 0 else reversed(names):
            figures[name].append(contestants[name]())
    return figures


def medians(rounds: Rounds, contestants: Mapping[str, Contestant]) -> dict[str, float]:
    """Return the median figure of each contestant."""
    return {name: statistics.median(found) for name, found in in_turns(rounds, contestants).items()}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time this thread spends in ``work``."""
    start_ns = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - start_ns) / 1e9


def wall_seconds(work: Callable[[], object]) -> float:
    """Return the time that passes during ``work``."""
    start_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start_ns) / 1e9


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that so many per cent do not exceed."""
    ordered = sorted(values)
    index = min(len(ordered) - 1, int(len(ordered) * percent / 100))
    return ordered[index]


def rate(per_second: float) -> str:
    """Return a rate as people read it."""
    if per_second >= 1e6:
        return f"{per_second / 1e6:,.1f} M/s"
    if per_second >= 1e4:
        return f"{per_second / 1e3:,.0f} k/s"
    return f"{per_second:,.0f} /s"


def span(seconds: float) -> str:
    """Return a duration as people read it."""
    if seconds < 1e-6:
        return f"{seconds * 1e9:,.0f} ns"
    if seconds < 1e-3:
        return f"{seconds * 1e6:,.2f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:,.2f} ms"
    return f"{seconds:,.2f} s"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _cpu_ticks() -> dict[int, tuple[str, int]]:
    """Return name and CPU time, in clock ticks, of every process but this one."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # It has ended since.
        name = text[text.index("(") + 1 : text.rindex(")")]
        words = text[text.rindex(")") + 2 :].split()
        if int(path.parent.name) != os.getpid():
            found[int(path.parent.name)] = name, int(words[11]) + int(words[12])
    return found


class Neighbours:
    """Who else used the processors between construction and ``busy``."""

    def __init__(self) -> None:
        self._before = _cpu_ticks()
        self._start_ns = time.monotonic_ns()

    def busy(self, count: int = 5) -> list[str]:
        """Return the busiest other processes as name and share of one processor."""
        passed_s = (time.monotonic_ns() - self._start_ns) / 1e9
        hertz = os.sysconf("SC_CLK_TCK")
        used = []
        for pid, (name, ticks) in _cpu_ticks().items():
            before = self._before.get(pid, (name, 0))[1]
            used.append(((ticks - before) / hertz / passed_s, name))
        used.sort(reverse=True)
        return [f"{name} {share:.0%}" for share, name in used[:count] if share >= 0.01]


def machine() -> str:
    """Return what this is measured on."""
    return (
        f"{_processor()}, {os.cpu_count()} processors, Linux {platform.release()}; "
        f"Python {platform.python_version()}, numba {numba.__version__}, numpy {np.__version__}"
    )


def load() -> str:
    """Return the load averages."""
    return "load average " + ", ".join(f"{value:.2f}" for value in os.getloadavg())
