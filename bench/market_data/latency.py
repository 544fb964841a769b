"""From a changed book to a subscriber's stream, against the write of one gRPC stream message."""

import asyncio
import statistics
import time
from typing import Any, Final

import uvloop

from bench.harness import Rounds, Row, percentile, span
from bench.market_data.gateway import STREAM, LiveVenue, Server, opened
from exchange.v1 import market_data_pb2

PAUSE_S: Final = 0.002
BEAT_US: Final = 2_000
BARE: Final = "bench.market_data.bare_server"


async def delays(venue: LiveVenue, server: Server, count: int) -> list[float]:
    """Publish one command at a time; return the seconds until the subscriber has read it."""
    taken = []
    async with server.channel() as channel:
        call = await opened(channel, venue.instrument.pair)
        for order in venue.orders(count):
            start_ns = time.monotonic_ns()
            venue.publish(order[None])
            while True:
                content = await call.read()
                took_ns = time.monotonic_ns() - start_ns
                message = market_data_pb2.StreamDepthResponse.FromString(content)
                # What was on its way when the stream opened is not the answer.
                if message.update.sequence >= venue.engine.sequence:
                    break
            taken.append(took_ns / 1e9)
            # Not in step with the gateway's tick.
            await asyncio.sleep(PAUSE_S + (time.monotonic_ns() % 5_000_000) / 1e9)
        call.cancel()
    return taken


async def _of_bare(server: Server, count: int) -> list[float]:
    """Return the seconds from just before a write until the subscriber has read it."""
    taken = []
    async with server.channel() as channel:
        call: Any = channel.unary_stream(STREAM)(b"", wait_for_ready=True)
        for _ in range(count):
            content = await call.read()
            taken.append((time.monotonic_ns() - int.from_bytes(content, "little")) / 1e9)
        call.cancel()
    return taken


def run_latency(rounds: Rounds) -> list[Row]:
    """Measure the tiers of the gateway and the bare write in turns."""
    count = rounds.size(400, 100)
    with (
        LiveVenue() as venue,
        Server("-m", BARE, str(BEAT_US), "") as bare,
    ):
        venue.publish(venue.orders(200))
        tiers = {
            "at once (--eager)": venue.gateway("--eager"),
            "1 ms tick": venue.gateway("--tick-ms", "1"),
            "10 ms tick": venue.gateway(),
        }
        for server in (*tiers.values(), bare):
            server.pause()
        found: dict[str, list[list[float]]] = {name: [] for name in (*tiers, "bare")}
        for turn in range(rounds.count + 1):
            for name, server in tiers.items():
                server.go_on()
                found[name].append(uvloop.run(delays(venue, server, count)))
                server.pause()
            bare.go_on()
            found["bare"].append(uvloop.run(_of_bare(bare, count)))
            bare.pause()
            if turn == 0:  # The first round warms up.
                for figures in found.values():
                    figures.clear()
        for server in tiers.values():
            server.close()
    return [
        _row(found, name, percent, "5" if name.startswith("at once") and percent == 50 else "")
        for name in tiers
        for percent in (50, 99)
    ]


def _row(found: dict[str, list[list[float]]], name: str, percent: int, must: str) -> Row:
    mine, theirs = (
        statistics.median(percentile(taken, percent) for taken in found[one])
        for one in (name, "bare")
    )
    subject = f"book to subscriber, {name}, p{percent}"
    return Row(subject, span(mine), f"one bare stream write {span(theirs)}", mine / theirs, must)
