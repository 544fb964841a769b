"""The engine while a gateway serves a hundred subscribers of its book and another reader spins."""

import asyncio
import ctypes
import multiprocessing
import threading
import time
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final

import uvloop

from bench.flows import generated
from bench.harness import Rounds, Row, cpu_seconds, medians, rate
from bench.market_data.gateway import LiveVenue, Server, opened
from bench.reads import DONE, PARKED, READING, read_all
from exchange.records import Rows

STREAMS: Final = 100
BATCH: Final = 1_024


class Audience:
    """A hundred streams in a thread of this process; how much they were told is counted."""

    def __init__(self, server: Server, pair: str) -> None:
        self.told = 0
        self._ready = threading.Event()
        self._ended = asyncio.Event()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(server, pair), daemon=True)
        self._thread.start()
        self._ready.wait()

    def _run(self, server: Server, pair: str) -> None:
        self._loop.run_until_complete(self._follow(server, pair))
        self._loop.close()

    async def _follow(self, server: Server, pair: str) -> None:
        async with server.channel() as channel:
            calls = [await opened(channel, pair) for _ in range(STREAMS)]
            readers = [asyncio.create_task(self._read(call)) for call in calls]
            self._ready.set()
            await self._ended.wait()
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _read(self, call: Any) -> None:
        while True:
            await call.read()
            self.told += 1

    def close(self) -> None:
        """End all streams."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()


def run_subscribers(rounds: Rounds) -> list[Row]:
    """Measure the engine alone and with everybody at its book, in turns."""
    turns = max(7, rounds.count)
    size = rounds.size(150_000, 60_000)
    flow = generated("normal", 2 * (turns + 1) * size)
    slices = iter(range(2 * (turns + 1)))
    context = multiprocessing.get_context("spawn")
    phase: Synchronized[int] = context.Value(ctypes.c_int64, PARKED, lock=False)  # type: ignore[assignment]
    counts = context.Array(ctypes.c_int64, 8, lock=False)
    with LiveVenue() as venue:
        child = context.Process(target=read_all, args=(venue.instrument, phase, counts))
        child.start()
        while not counts[3]:
            time.sleep(0.01)

        def run_next() -> float:
            start = next(slices) * size
            commands: Rows = flow.commands[start : start + size]
            return len(commands) / cpu_seconds(partial(venue.run, commands, BATCH))

        told = [0]

        def watched() -> float:
            with venue.gateway() as server:
                audience = Audience(server, venue.instrument.pair)
                phase.value = READING
                time.sleep(0.05)
                figure = run_next()
                phase.value = PARKED
                audience.close()
                told[0] += audience.told
            return figure

        found = medians(Rounds(turns, rounds.quick), {"watched": watched, "alone": run_next})
        phase.value = DONE
        child.join()
    return [
        Row(
            f"kernel, {STREAMS} gRPC subscribers and a spinning reader",
            rate(found["watched"]),
            f"alone {rate(found['alone'])}",
            found["watched"] / found["alone"],
            "0.95",
            f"{counts[0]:,} stable reads, {counts[4]} wrong; {told[0]:,} messages told; CPU time of"
            " the engine's thread",
        )
    ]
