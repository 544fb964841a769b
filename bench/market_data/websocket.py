"""One book to a thousand WebSocket clients against bare servers; what a client costs in memory."""

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from bench.harness import Rounds, Row, rate
from bench.market_data.gateway import LiveVenue, Server

CLIENTS: Final = 1_000
CLIENTS_QUICK: Final = 200
FEW: Final = 10
BEAT_S: Final = 0.01
BARE: Final = "bench.market_data.bare_websocket"


class Crowd:
    """Clients in a process of their own."""

    def __init__(self, port: int, count: int, messages: list[str], *, deflate: bool) -> None:
        self.count = count
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bench.market_data.crowd",
                str(port),
                str(count),
                str(int(deflate)),
                *messages,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def order(self, line: str) -> None:
        """Tell the crowd what to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hush(self) -> None:
        """Let all of them read nothing more."""
        self.order("hush")
        assert self._line() == "hushed"

    def counted(self) -> tuple[float, float]:
        """Return messages and bytes of all clients since "count"."""
        self.order("stop")
        found = json.loads(self._line())
        assert found["first_frames"], "nothing came"
        size = found["first_bytes"] / found["first_frames"]
        return found["bytes"] / size, found["bytes"]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the crowd is gone"
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


def _http_gateway(venue: LiveVenue) -> tuple[Server, int]:
    """Start a gateway that asks nobody for a key; return it and its HTTP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    return venue.gateway("--anonymous-tier", "professional", "--http-port", str(port)), port


def _subscriptions(pair: str, *channels: str) -> list[str]:
    more = {"depth": {"levels": 50, "interval_ms": 0}, "ticker": {"interval_ms": 0}}
    return [
        json.dumps({"op": "subscribe", "channel": one, "pairs": [pair], **more.get(one, {})})
        for one in channels
    ]


def _measured(
    server: Server, crowd: Crowd, seconds: float, publish: Callable[[], None]
) -> tuple[float, float]:
    """Return messages for each second of server CPU, and bytes of a message."""
    for _ in range(20):
        publish()
        time.sleep(BEAT_S)
    before = server.cpu_seconds()
    crowd.order("count")
    for _ in range(int(seconds / BEAT_S)):
        publish()
        time.sleep(BEAT_S)
    messages, size = crowd.counted()
    return messages / (server.cpu_seconds() - before), size / messages


def _of_gateway(
    venue: LiveVenue,
    server: Server,
    port: int,
    count: int,
    messages: list[str],
    seconds: float,
    *,
    deflate: bool = False,
) -> tuple[float, float]:
    with Crowd(port, count, messages, deflate=deflate) as crowd:
        return _measured(server, crowd, seconds, lambda: venue.publish(venue.orders(3)))


def _of_bare(how: str, count: int, content: str, seconds: float) -> tuple[float, float]:
    arguments = (str(int(BEAT_S * 1e6)), str(count), how, content)
    with (
        Server("-m", BARE, *arguments) as server,
        Crowd(server.port, count, [], deflate=False) as crowd,
    ):
        return _measured(server, crowd, seconds, lambda: None)


def _update(venue: LiveVenue, port: int) -> bytes:
    """Return an update as the gateway tells it."""

    async def one() -> bytes:
        url = f"http://127.0.0.1:{port}/v1/stream"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as given:
            await given.send_str(_subscriptions(venue.instrument.pair, "depth")[0])
            async for message in given:
                if '"type":"snapshot"' in message.data:
                    venue.publish(venue.orders(3))
                if '"type":"update"' in message.data:
                    return bytes(message.data, "utf-8")
        raise AssertionError("the gateway ended the connection")

    return asyncio.run(one())


def _resident(server: Server, port: int, count: int, messages: list[str], use: Any) -> float:
    with Crowd(port, count, messages, deflate=False) as crowd:
        use(crowd)
        return float(server.resident_bytes())


def _memory(
    venue: LiveVenue, count: int, channels: tuple[str, ...], use: Callable[[Crowd], None]
) -> float:
    """Return the bytes the server holds for each client more."""
    server, port = _http_gateway(venue)
    with server:
        messages = _subscriptions(venue.instrument.pair, *channels)
        # What the first clients of a process cost once is not theirs.
        _resident(server, port, FEW, messages, use)
        few = _resident(server, port, FEW, messages, use)
        many = _resident(server, port, count, messages, use)
    return (many - few) / (count - FEW)


def _memories(rounds: Rounds) -> list[Row]:
    ticks, count = rounds.size(300, 100), rounds.size(CLIENTS, CLIENTS_QUICK)
    with LiveVenue() as venue:
        venue.publish(venue.orders(200))

        def flow(_crowd: Crowd) -> None:
            for _ in range(ticks):
                venue.publish(venue.orders(3))
                time.sleep(BEAT_S)

        def hushed_flow(crowd: Crowd) -> None:
            crowd.hush()
            flow(crowd)

        idle = _memory(venue, count, ("heartbeat",), lambda _: time.sleep(1))
        busy = _memory(venue, count, ("depth", "ticker", "trades"), flow)
        deaf = _memory(venue, count, ("depth", "ticker", "trades"), hushed_flow)
    rows = []
    for what, found, note in (
        ("that only hear heartbeats", idle, ""),
        ("with depth of 50, ticker and trades at 100 ticks a second", busy, ""),
        ("with the same that read nothing", deaf, f"after {ticks} ticks"),
    ):
        subject = f"memory of a WebSocket client, {count:,} {what}"
        rows.append(Row(subject, f"{found / 1_024:,.1f} KiB", note=note))
    return rows


def run_websocket(rounds: Rounds) -> list[Row]:
    """Measure messages for each second of server CPU, and memory."""
    seconds, count = rounds.size(3, 1), rounds.size(CLIENTS, CLIENTS_QUICK)
    found: dict[str, list[tuple[float, float]]] = {}
    with LiveVenue() as venue:
        venue.publish(venue.orders(200))
        pair = venue.instrument.pair
        server, port = _http_gateway(venue)
        content = _update(venue, port).hex()
        depth = _subscriptions(pair, "depth")
        with server:
            contestants: dict[str, Callable[[], tuple[float, float]]] = {
                "depth": lambda: _of_gateway(venue, server, port, count, depth, seconds),
                "deflated": lambda: _of_gateway(
                    venue, server, port, count, depth, seconds, deflate=True
                ),
                "two": lambda: _of_gateway(
                    venue, server, port, count, _subscriptions(pair, "depth", "ticker"), seconds
                ),
                "library": lambda: _of_bare("library", count, content, seconds),
                "written": lambda: _of_bare("written", count, content, seconds),
            }
            for turn in range(rounds.count + 1):
                for name, contestant in contestants.items():
                    figures = contestant()
                    if turn:
                        found.setdefault(name, []).append(figures)
    middle = {name: statistics.median(one[0] for one in runs) for name, runs in found.items()}
    size = {name: statistics.median(one[1] for one in runs) for name, runs in found.items()}
    subject = f"depth to {count:,} WebSocket clients, messages a second of server CPU"
    return [
        Row(
            subject,
            rate(middle["depth"]),
            f"bare server, the library's own send, {rate(middle['library'])}",
            middle["depth"] / middle["library"],
            note=f"100 ticks a second, each one message of {size['depth']:,.0f} bytes",
        ),
        Row(
            subject,
            rate(middle["depth"]),
            f"bare server, one frame written to all, {rate(middle['written'])}",
            middle["depth"] / middle["written"],
            note="the difference is the gateway: reading, diffing, encoding, choosing",
        ),
        Row(
            "the same with permessage-deflate, compressed once for all",
            rate(middle["deflated"]),
            f"without {rate(middle['depth'])}",
            middle["deflated"] / middle["depth"],
            note=f"{size['deflated']:,.0f} bytes instead of {size['depth']:,.0f}",
        ),
        Row(
            "depth and ticker in one write",
            rate(middle["two"]),
            f"depth alone {rate(middle['depth'])}",
            middle["two"] / middle["depth"],
            note=f"messages of {size['two']:,.0f} bytes",
        ),
        *_memories(rounds),
    ]
