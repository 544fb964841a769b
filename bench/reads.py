"""Reading a book that another process owns: what a stable read costs, and what readers cost."""

import ctypes
import multiprocessing
import time
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final

import numpy as np

from bench.flows import generated
from bench.harness import Contestant, Rounds, Row, cpu_seconds, medians, rate, span
from bench.loops import copy_often, read_often
from bench.venue import Venue
from exchange.book_layout import DEPTH_BID_COUNT, DEPTH_HEAD, DEPTH_HEADER_WORDS, TOUCH_VERSION
from exchange.instrument import Instrument
from exchange.seqlock import read_stable, read_unchecked
from mdgateway.book.reader import BookReader
from mdgateway.book.stable import copy_depth

LEVELS: Final = 50
PARKED, READING, DONE = range(3)


def _often(work: Any, count: int) -> float:
    """Return the CPU seconds of one call, by the mean of many."""

    def loop() -> None:
        for _ in range(count):
            work()

    return cpu_seconds(loop) / count


def _book(rounds: Rounds) -> Venue:
    """Return a venue with a book of more than fifty levels a side, and its depth published."""
    venue = Venue()
    flow = generated("normal", rounds.size(100_000, 50_000))
    venue.run(flow.commands, 1_024)
    venue.engine.publish_idle()
    copies, head = venue.engine.book["depth"], int(venue.engine.book["scalars"][DEPTH_HEAD])
    assert copies[head % len(copies), DEPTH_BID_COUNT] >= LEVELS
    return venue


def run_reads(rounds: Rounds) -> list[Row]:
    """Measure stable reads against plain copies of the same bytes."""
    venue = _book(rounds)
    book, count = venue.engine.book, rounds.size(20_000, 5_000)
    scalars, touch, depth = book["scalars"], book["touch"], book["depth"]
    # The bytes of fifty levels a side, wherever they lie: what a plain copy would copy.
    levels = depth.ravel()[: DEPTH_HEADER_WORDS + 2 * LEVELS * 3]
    touch_out, levels_out = np.zeros_like(touch), np.zeros_like(levels)
    depth_out = np.zeros(depth.shape[1], np.int64)
    reader = BookReader(venue.instrument)
    assert reader.open(), "the book segment is missing"
    calls: dict[str, Any] = {
        "touch": lambda: read_stable(touch, TOUCH_VERSION, touch, touch_out, 1_000),
        "touch copy": lambda: read_unchecked(touch, touch_out),
        "touch numpy": lambda: np.copyto(touch_out, touch),
        "depth": lambda: copy_depth(scalars, depth, depth_out, 100),
        "depth copy": lambda: read_unchecked(levels, levels_out),
        "depth numpy": lambda: np.copyto(levels_out, levels),
        "reader touch": reader.touch,
        "reader depth": reader.depth_copy,
    }
    contestants: dict[str, Contestant] = {
        name: partial(_often, work, count) for name, work in calls.items()
    }
    times = 1_000_000
    contestants["touch compiled"] = lambda: (
        cpu_seconds(lambda: read_often(touch, TOUCH_VERSION, touch, touch_out, times)) / times
    )
    contestants["copy compiled"] = lambda: (
        cpu_seconds(lambda: copy_often(touch, touch_out, times)) / times
    )
    found = medians(rounds, contestants)
    reader.close()
    venue.close()

    def row(subject: str, name: str, against: str, must: str, note: str = "") -> Row:
        ratio = found[name] / found[against]
        return Row(
            subject, span(found[name]), f"{against} {span(found[against])}", ratio, must, note
        )

    called = "one compiled call from Python"
    return [
        row("best prices and day, stable", "touch", "touch copy", "2", called),
        row("best prices and day, stable", "touch", "touch numpy", "2", "against numpy's copy"),
        row(
            "50 levels a side and more, stable",
            "depth",
            "depth copy",
            "2",
            f"{called}; 64 levels against a plain copy of 50",
        ),
        row(
            "50 levels a side and more, stable", "depth", "depth numpy", "2", "against numpy's copy"
        ),
        row("best prices, from compiled code", "touch compiled", "copy compiled", ""),
        Row(
            "mdgateway's touch()",
            span(found["reader touch"]),
            note="with a tuple of sixteen integers",
        ),
        Row(
            "mdgateway's depth_copy()",
            span(found["reader depth"]),
            note="with two arrays of its own",
        ),
    ]


def read_all(
    instrument: Instrument,
    phase: "Synchronized[int]",
    counts: Any,
) -> None:
    """Spin over touch, depth and events while told to; count what was read, lost and wrong."""
    reader = BookReader(instrument)
    while not reader.open():
        time.sleep(0.001)
    cursor = reader.oldest_event()
    counts[3] = 1
    while phase.value != DONE:
        if phase.value == PARKED:
            time.sleep(0.001)
            cursor = reader.event_head()
            continue
        touch, depth = reader.touch(), reader.depth_copy()
        if cursor > reader.event_head():
            cursor = 0
        run = reader.events(cursor, 1 << 62)
        cursor = run.next_position
        counts[0] += (touch is not None) + (depth is not None)
        counts[1] += len(run.rows)
        counts[2] += run.lost
        if touch is not None and touch.bid_price_ticks >= touch.ask_price_ticks > 0:
            counts[4] += 1
        if depth is not None and len(depth.bids) > 1 and (np.diff(depth.bids[:, 0]) >= 0).any():
            counts[4] += 1
    reader.close()


def run_readers(rounds: Rounds) -> list[Row]:
    """Measure the engine with and without a process that does nothing but read its book."""
    flow = generated("normal", rounds.size(1_000_000, 200_000))
    context = multiprocessing.get_context("spawn")
    phase: Synchronized[int] = context.Value(ctypes.c_int64, PARKED, lock=False)  # type: ignore[assignment]
    counts = context.Array(ctypes.c_int64, 8, lock=False)
    with Venue() as venue:
        child = context.Process(target=read_all, args=(venue.instrument, phase, counts))
        child.start()
        while not counts[3]:
            time.sleep(0.01)

        def lived(state: int) -> float:
            # The reader rests while the book is swept out: that is no publication.
            venue.reset()
            phase.value = state
            time.sleep(0.01)
            seconds = cpu_seconds(lambda: venue.run(flow.commands, 1_024))
            phase.value = PARKED
            time.sleep(0.01)
            return len(flow.commands) / seconds

        found = medians(
            Rounds(max(7, rounds.count), rounds.quick),
            {"read": partial(lived, READING), "alone": partial(lived, PARKED)},
        )
        phase.value = DONE
        child.join()
    note = (
        f"{counts[0]:,} stable reads of touch and depth, {counts[1]:,} events, "
        f"{counts[2]:,} lapped, {counts[4]} wrong; CPU time of the engine's thread"
    )
    return [
        Row(
            "kernel, a reader spinning",
            rate(found["read"]),
            f"alone {rate(found['alone'])}",
            found["read"] / found["alone"],
            "0.95",
            note,
        )
    ]
