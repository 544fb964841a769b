"""One book to many gRPC streams against a bare server that sends the same bytes; their memory."""

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop

from bench.harness import Rounds, Row, rate
from bench.market_data.gateway import STREAM, LiveVenue, Server, opened

STREAMS: Final = 100
CHANNELS: Final = 10
IDLE_STREAMS: Final = 1_000
BEAT_S: Final = 0.01


async def _drain(call: Any, counts: list[int]) -> None:
    while True:
        await call.read()
        counts[0] += 1


async def _delivered(
    server: Server, calls: list[Any], seconds: float, publish: Callable[[], None]
) -> float:
    """Let all streams be read for a while; return messages for each second of server CPU."""
    counts = [0]
    readers = [asyncio.create_task(_drain(call, counts)) for call in calls]
    await asyncio.sleep(0.2)
    counts[0], before = 0, server.cpu_seconds()
    for _ in range(int(seconds / BEAT_S)):
        publish()
        await asyncio.sleep(BEAT_S)
    used = server.cpu_seconds() - before
    delivered = counts[0]
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    for call in calls:
        call.cancel()
    return delivered / used


async def _with_streams(
    server: Server, count: int, open_one: Callable[[Any], Awaitable[Any]], use: Any
) -> float:
    channels = [server.channel() for _ in range(CHANNELS)]
    calls = [await open_one(channels[index % CHANNELS]) for index in range(count)]
    figure = float(await use(calls))
    for channel in channels:
        await channel.close()
    return figure


def streamed(venue: LiveVenue, server: Server, seconds: float) -> float:
    async def use(calls: list[Any]) -> float:
        return await _delivered(server, calls, seconds, lambda: venue.publish(venue.orders(3)))

    pair = venue.instrument.pair
    return uvloop.run(_with_streams(server, STREAMS, lambda channel: opened(channel, pair), use))


def _of_bare(server: Server, seconds: float) -> float:
    async def open_one(channel: Any) -> Any:
        return channel.unary_stream(STREAM)(b"", wait_for_ready=True)

    async def use(calls: list[Any]) -> float:
        return await _delivered(server, calls, seconds, lambda: None)

    return uvloop.run(_with_streams(server, STREAMS, open_one, use))


def _update(venue: LiveVenue, server: Server) -> bytes:
    """Return an update as the gateway tells it."""

    async def one() -> bytes:
        async with server.channel() as channel:
            call = await opened(channel, venue.instrument.pair)
            venue.publish(venue.orders(3))
            content: bytes = await call.read()
            call.cancel()
            return content

    return uvloop.run(one())


def _memory(venue: LiveVenue, server: Server, *, busy: bool) -> float:
    """Return the bytes the server holds for each subscriber more."""

    async def use(calls: list[Any]) -> float:
        if busy:
            await _delivered(server, calls, 2.0, lambda: venue.publish(venue.orders(3)))
        return float(server.resident_bytes())

    pair = venue.instrument.pair
    # What the first subscribers of a process cost once is not theirs.
    uvloop.run(_with_streams(server, CHANNELS, lambda channel: opened(channel, pair), use))
    few = uvloop.run(_with_streams(server, CHANNELS, lambda channel: opened(channel, pair), use))
    many = uvloop.run(
        _with_streams(server, IDLE_STREAMS, lambda channel: opened(channel, pair), use)
    )
    return (many - few) / (IDLE_STREAMS - CHANNELS)


def run_fanout(rounds: Rounds) -> list[Row]:
    """Measure messages for each second of server CPU, and memory."""
    seconds = rounds.size(3, 1)
    with LiveVenue() as venue, venue.gateway() as server:
        venue.publish(venue.orders(200))
        content = _update(venue, server)
        beat_us = str(int(BEAT_S * 1e6))
        with Server("-m", "bench.market_data.bare_server", beat_us, content.hex()) as bare:
            found: dict[str, list[float]] = {"gateway": [], "bare": []}
            for turn in range(rounds.count + 1):
                found["gateway"].append(streamed(venue, server, seconds))
                found["bare"].append(_of_bare(bare, seconds))
                if turn == 0:
                    for figures in found.values():
                        figures.clear()
        middle = {name: statistics.median(figures) for name, figures in found.items()}
    memories = {}
    for busy in False, True:
        with LiveVenue() as venue, venue.gateway() as server:
            venue.publish(venue.orders(200))
            memories[busy] = _memory(venue, server, busy=busy)
    return [
        Row(
            f"depth to {STREAMS} gRPC streams, messages a second of server CPU",
            rate(middle["gateway"]),
            f"bare server, the same {len(content)} bytes {rate(middle['bare'])}",
            middle["gateway"] / middle["bare"],
            "",
            "100 ticks a second, each with three changes",
        ),
        Row(
            f"memory of a subscriber, {IDLE_STREAMS:,} that read nothing",
            f"{memories[False] / 1_024:,.1f} KiB",
            note=f"depth of 50; {CHANNELS} connections",
        ),
        Row(
            f"memory of a subscriber, {IDLE_STREAMS:,} that read all",
            f"{memories[True] / 1_024:,.1f} KiB",
            note="100 ticks a second asked for; the process gives what it can",
        ),
    ]
