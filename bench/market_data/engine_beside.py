"""The engine while a gateway serves a hundred subscribers of its book and another reader spins.

The engine has a processor of its own, as it should in life, and everybody else shares the others:
what is measured is what readers of its memory cost it, not who else wants its processor.
"""

import ctypes
import multiprocessing
import os
import time
from multiprocessing.sharedctypes import Synchronized
from typing import Final

from bench.flows import generated
from bench.harness import Rounds, Row, medians, rate
from bench.market_data.audience import STREAMS
from bench.market_data.gateway import LiveVenue, Server, confine
from bench.reads import DONE, PARKED, READING, read_all
from exchange.records import Rows

BATCH: Final = 1_024
BEAT_NS: Final = 1_000_000
"""From batch to batch: about a million commands a second, and time for the others to read."""


def _paced_seconds(venue: LiveVenue, commands: Rows) -> float:
    """Apply commands, a batch each beat; return the CPU time that the batches took."""
    used_ns, due_ns = 0, time.monotonic_ns()
    for at in range(0, len(commands), BATCH):
        start_ns = time.thread_time_ns()
        venue.run(commands[at : at + BATCH], BATCH)
        used_ns += time.thread_time_ns() - start_ns
        due_ns += BEAT_NS
        while time.monotonic_ns() < due_ns:
            pass  # Asleep, the processor would go to somebody else, and its caches with it.
    return used_ns / 1e9


def run_subscribers(rounds: Rounds) -> list[Row]:
    """Measure the engine alone and with everybody at its book, in turns."""
    turns = max(7, rounds.count)
    batches = rounds.size(150, 60)
    flow = generated("normal", 2 * (turns + 1) * batches * BATCH)
    starts = iter(range(0, len(flow.commands), batches * BATCH))
    context = multiprocessing.get_context("spawn")
    phase: Synchronized[int] = context.Value(ctypes.c_int64, PARKED, lock=False)  # type: ignore[assignment]
    counts = context.Array(ctypes.c_int64, 8, lock=False)
    with LiveVenue() as venue, venue.gateway() as gateway:
        child = context.Process(target=read_all, args=(venue.instrument, phase, counts))
        child.start()
        while not counts[3]:
            time.sleep(0.01)
        watchers = ("-m", "bench.market_data.audience", str(gateway.port), venue.instrument.pair)
        with Server(*watchers) as audience:
            processors = sorted(os.sched_getaffinity(0))
            others = processors[1:] or processors
            gateway.confine(others)
            audience.confine(others)
            confine(child.pid or 0, others)
            # Zero is this thread alone: the heartbeat may run elsewhere.
            os.sched_setaffinity(0, processors[:1])

            def work() -> float:
                begin = next(starts)
                commands = flow.commands[begin : begin + batches * BATCH]
                return len(commands) / _paced_seconds(venue, commands)

            def watched() -> float:
                gateway.go_on()
                audience.go_on()
                phase.value = READING
                return work()

            def alone() -> float:
                phase.value = PARKED
                gateway.pause()
                audience.pause()
                time.sleep(0.01)
                return work()

            found = medians(Rounds(turns, rounds.quick), {"watched": watched, "alone": alone})
            used = gateway.cpu_seconds()
            os.sched_setaffinity(0, processors)
        phase.value = DONE
        child.join()
    return [
        Row(
            f"kernel, {STREAMS} gRPC subscribers and a spinning reader",
            rate(found["watched"]),
            f"alone {rate(found['alone'])}",
            found["watched"] / found["alone"],
            "0.95",
            f"{counts[0]:,} stable reads, {counts[4]} wrong; the gateway used {used:.1f} s;"
            " CPU time of the engine's thread, which has a processor of its own",
        )
    ]
