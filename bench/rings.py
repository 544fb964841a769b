"""One command at a time, from process to process and back, both ends spinning."""

import multiprocessing
import os
import platform
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.harness import Rounds, Row, percentile, span
from bench.loops import apply_each, count_cycles, echo, ping, send_each
from bench.pair import Line, Pair
from bench.venue import ACCOUNTS, START_NS, Venue, funding
from exchange.atomics import store
from exchange.enums import CommandKind, OrderType, SelfTradePrevention, Side, TimeInForce
from exchange.ownership import Borrowed, Field, Layout, Owned, SegmentMissing
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    COMMAND_WORDS,
    Rows,
    command_price,
    command_verb,
)
from exchange.ring import ring_layout, take_rows

CAPACITY: Final = 1 << 10


def _cursor_layout() -> Layout:
    return Layout("bench-cursors", 1, [Field("cursors", "int64", 8)])


def _echo_process(name: str, count: int) -> None:
    """Own the way back and the cursor of the way there; send everything back."""
    layout = ring_layout("bench-ring", CAPACITY, COMMAND_WORDS)
    there, back_cursor = (
        Borrowed.open(f"{name}-there", layout),
        Borrowed.open(f"{name}-back-cursor", _cursor_layout()),
    )
    cursor, back = (
        Owned.claim(f"{name}-there-cursor", _cursor_layout()),
        Owned.claim(f"{name}-back", layout),
    )
    echo(
        there["control"],
        there["records"],
        cursor["cursors"],
        back["control"],
        back["records"],
        back_cursor["cursors"],
        np.zeros((2, 8), np.int64),
        np.zeros((1, COMMAND_WORDS), np.int64),
        count,
    )
    for owned in (cursor, back):
        owned.close()
    for borrowed in (there, back_cursor):
        borrowed.close()


def _wait_for(name: str, layout: Layout) -> Borrowed:
    while True:
        try:
            return Borrowed.open(name, layout)
        except SegmentMissing:
            time.sleep(0.001)


def _ping_pong(counts: list[int]) -> list[npt.NDArray[np.int64]]:
    """Return the cycles of every round trip, in one array per pass."""
    layout, name = (
        ring_layout("bench-ring", CAPACITY, COMMAND_WORDS),
        f"holdfast-bench-{os.getpid()}",
    )
    there, back_cursor = (
        Owned.claim(f"{name}-there", layout),
        Owned.claim(f"{name}-back-cursor", _cursor_layout()),
    )
    child = multiprocessing.get_context("spawn").Process(
        target=_echo_process, args=(name, sum(counts))
    )
    child.start()
    cursor = _wait_for(f"{name}-there-cursor", _cursor_layout())
    back = _wait_for(f"{name}-back", layout)
    passes = []
    cache, row = np.zeros((2, 8), np.int64), np.ones((1, COMMAND_WORDS), np.int64)
    for count in counts:
        samples = np.zeros(count, np.int64)
        ping(
            there["control"],
            there["records"],
            cursor["cursors"],
            back["control"],
            back["records"],
            back_cursor["cursors"],
            cache,
            row,
            samples,
        )
        passes.append(samples)
    child.join()
    for borrowed in (cursor, back):
        borrowed.close()
    for owned in (there, back_cursor):
        owned.close(unlink=True)
    for suffix, left in (("there-cursor", _cursor_layout()), ("back", layout)):
        Owned.claim(f"{name}-{suffix}", left).close(unlink=True)
    return passes


def _kernel_process(name: str, count: int, compiled: bool) -> None:
    """Own a pair and apply what comes through a ring; the cursor says what was applied."""
    ring = ring_layout("bench-ring", CAPACITY, COMMAND_WORDS)
    there = Borrowed.open(f"{name}-there", ring)
    row, cache = np.zeros((1, COMMAND_WORDS), np.int64), np.zeros(8, np.int64)
    with Venue() as venue:
        engine, address = venue.engine, row.ctypes.data
        engine.apply_at(address, 0, START_NS)  # Compiled before anybody waits.
        cursor = Owned.claim(f"{name}-there-cursor", _cursor_layout())
        control, records, cursors = there["control"], there["records"], cursor["cursors"]
        if compiled:
            # The engine hides its addresses from everybody but the kernel.
            inside = engine._context_address, engine._output_address, engine._output_capacity
            apply_each(control, records, cursors, cache, row, address, *inside, START_NS, count)
        for position in range(0 if compiled else count):
            while take_rows(control, records, position, cache, row, 1) == 0:
                pass
            engine.apply_at(address, 1, START_NS)
            store(cursors, 0, position + 1)
        cursor.close()
    there.close()


def _through_kernel(pairs: int, passes: int, compiled: bool) -> list[npt.NDArray[np.int64]]:
    """Return the cycles of every command through ring and kernel, in one array per pass."""
    ring, name = ring_layout("bench-ring", CAPACITY, COMMAND_WORDS), f"holdfast-bench-{os.getpid()}"
    there = Owned.claim(f"{name}-there", ring)
    child = multiprocessing.get_context("spawn").Process(
        target=_kernel_process, args=(name, 2 * pairs * passes, compiled)
    )
    child.start()
    cursor = _wait_for(f"{name}-there-cursor", _cursor_layout())
    cache, found = np.zeros(8, np.int64), []
    for number in range(passes):
        rows, samples = _add_and_cancel(pairs), np.zeros(2 * pairs, np.int64)
        rows[:, C_CLIENT_ORDER_ID] += number * pairs
        send_each(there["control"], there["records"], cursor["cursors"], cache, rows, samples)
        found.append(samples)
    child.join()
    cursor.close()
    there.close(unlink=True)
    Owned.claim(f"{name}-there-cursor", _cursor_layout()).close(unlink=True)
    return found


def _cycle_seconds() -> float:
    start, start_ns = count_cycles(), time.perf_counter_ns()
    while time.perf_counter_ns() - start_ns < 50_000_000:
        pass
    passed_ns = time.perf_counter_ns() - start_ns
    return passed_ns / 1e9 / (count_cycles() - start)


def _add_and_cancel(pairs: int) -> Rows:
    """Return commands that come to nothing: an order, its cancel, the next order."""
    rows = np.zeros((2 * pairs, COMMAND_WORDS), np.int64)
    account = (1 + np.arange(pairs) % ACCOUNTS) << 32
    new = command_verb(
        CommandKind.NEW_ORDER, 0, Side.BUY, OrderType.LIMIT, TimeInForce.GOOD_TILL_CANCELLED
    )
    rows[0::2, C_VERB] = account | new
    rows[1::2, C_VERB] = account | command_verb(CommandKind.CANCEL_ORDER, 0)
    rows[:, C_CLIENT_ORDER_ID] = 1 + np.arange(2 * pairs) // 2
    rows[0::2, C_PRICE] = command_price(1_000, SelfTradePrevention.CANCEL_NEWEST)
    rows[0::2, C_QUANTITY] = 10
    return rows


def _through_engine(pairs: int, passes: int, durability: str) -> list[list[float]]:
    """Return the seconds of every command through a real engine process, one list per pass."""
    with Pair(durability, spins=1 << 24) as pair:
        line = Line(pair, 0)
        line.carry(funding())
        found = []
        for number in range(passes):
            rows = _add_and_cancel(pairs)
            rows[:, C_CLIENT_ORDER_ID] += number * pairs
            seconds = []
            for index in range(len(rows)):
                start_ns = time.perf_counter_ns()
                line.carry(rows[index : index + 1])
                seconds.append((time.perf_counter_ns() - start_ns) / 1e9)
            found.append(seconds)
        line.close()
    return found


def _row(subject: str, passes: list[list[float]], must: str, note: str) -> Row:
    middle = [float(np.median([percentile(one, at) for one in passes])) for at in (50, 99)]
    return Row(subject, f"p50 {span(middle[0])}, p99 {span(middle[1])}", must=must, note=note)


def run_rings(rounds: Rounds) -> list[Row]:
    """Measure the bare ring, and the ring with the product behind it."""
    rows = []
    if platform.machine() in {"x86_64", "AMD64"}:
        second = _cycle_seconds()
        samples = _ping_pong([rounds.size(200_000, 50_000)] * (rounds.count + 1))[1:]
        bare = [(sample * second).tolist() for sample in samples]
        rows.append(_row("ring to ring, both ends compiled", bare, "", "no kernel, no journal"))
        pairs = rounds.size(50_000, 10_000)
        for compiled, note in ((True, "a compiled loop"), (False, "a loop in Python")):
            samples = _through_kernel(pairs, rounds.count + 1, compiled)[1:]
            taken = [(sample * second).tolist() for sample in samples]
            must = "p50 1 µs" if compiled else ""
            rows.append(_row(f"ring, kernel, {note}", taken, must, "nothing durable"))
    for durability in ("os", "fsync"):
        pairs = rounds.size(4_000, 1_000) if durability == "os" else 150
        passes = _through_engine(pairs, rounds.count + 1, durability)[1:]
        note = f"engine process, spinning; its loop is Python; journal with {durability}"
        rows.append(_row("ring, journal, kernel, log, sequence seen", passes, "", note))
    return rows
