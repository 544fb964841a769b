"""A writer, a market and the HTTP door in one event loop, stepped by hand, with real sockets."""

import asyncio
import contextlib
import json
import os
import socket
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from mdgateway.config import GatewayConfig
from mdgateway.feed.market import Market
from mdgateway.feed.publisher import Publisher
from mdgateway.history.source import CandleKeeper
from mdgateway.history.store import CandleStore
from mdgateway.http.config import HttpConfig
from mdgateway.http.server import HttpServer
from mdgateway.keys.admission import Admission
from mdgateway.keys.key_file import Keyring
from mdgateway.keys.tiers import TIERS, Tier
from tests.unit.market_data_writer import INSTRUMENT, Writer

PAIR: Final = INSTRUMENT.pair
PATIENCE_S: Final = 60
"""How long a test waits for something that must come; reaching it is a failure."""

GOOD: Final = {"op": "subscribe", "channel": "depth", "pairs": [PAIR]}
HANDSHAKE: Final = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

Json = dict[str, Any]


class Door:
    """What a test holds: the writer on one side, the door's address on the other."""

    def __init__(self, writer: Writer, market: Market, server: HttpServer, port: int) -> None:
        self.writer = writer
        self.market = market
        self.server = server
        self.port = port
        self.session: aiohttp.ClientSession

    def step(self, count: int = 1) -> None:
        """Let the gateway look at the segment and tell what is new."""
        for _ in range(count):
            self.writer.heartbeat(time.monotonic_ns())
            self.market.step()

    async def connect(self, **options: Any) -> "Socket":
        """Open a WebSocket."""
        url = f"http://127.0.0.1:{self.port}/v1/stream"
        options = {"max_msg_size": 0, "autoping": True} | options
        return Socket(await self.session.ws_connect(url, **options))

    async def get(
        self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of an answer."""
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()

    async def get_json(self, path: str, headers: Mapping[str, str] | None = None) -> Json:
        """Return the object of a good answer."""
        status, _, body = await self.get(path, headers)
        assert status == 200, body
        content: Json = json.loads(body)
        return content


class Socket:
    """A WebSocket client that waits for what it wants and keeps the rest."""

    def __init__(self, inner: aiohttp.ClientWebSocketResponse) -> None:
        self.inner = inner
        self.told: list[Json] = []

    async def ask(self, **request: Any) -> Json:
        """Send a request and return its answer; what comes before is kept in `told`."""
        await self.inner.send_str(json.dumps(request))
        kinds = {"subscribed", "unsubscribed", "refused", "pong", "authenticated"}
        return await self.until(lambda one: one["type"] in kinds)

    async def next(self) -> Json:
        """Return the next message; an end is a failure."""
        message = await asyncio.wait_for(self.inner.receive(), PATIENCE_S)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        content: Json = json.loads(message.data)
        return content

    async def until(self, wanted: Callable[[Json], bool]) -> Json:
        """Return the first message, kept or new, that is wanted; others are kept in `told`."""
        for index, message in enumerate(self.told):
            if wanted(message):
                return self.told.pop(index)
        while not wanted(message := await self.next()):
            self.told.append(message)
        return message

    async def end(self) -> tuple[int | None, str]:
        """Return code and reason of the server's close; other messages are kept in `told`."""
        while True:
            message = await asyncio.wait_for(self.inner.receive(), PATIENCE_S)
            if message.type is not aiohttp.WSMsgType.TEXT:
                return self.inner.close_code, str(message.extra or "")
            self.told.append(json.loads(message.data))


class Book:
    """A depth subscriber that believes nothing: chain, order and checksum of every message."""

    def __init__(self) -> None:
        self.levels: dict[tuple[str, str], tuple[str, int]] = {}
        self.epoch = self.sequence = self.snapshots = self.updates = 0

    def take(self, message: Json) -> None:
        if message["type"] == "snapshot":
            self.snapshots += 1
            self.levels.clear()
            self.epoch = message["epoch"]
        else:
            assert message["type"] == "update", message
            self.updates += 1
            assert message["epoch"] == self.epoch
            assert message["previous_sequence"] == self.sequence, (self.sequence, message)
        self.sequence = message["sequence"]
        for side in "bids", "asks":
            for price, quantity, orders in message[side]:
                if orders:
                    self.levels[side, price] = quantity, orders
                else:
                    self.levels.pop((side, price), None)
        assert message["checksum"] == self.checksum()

    def checksum(self) -> int:
        # The test's instrument has a tick and a lot of one in the last decimal.
        sides = []
        for side in "bids", "asks":
            known = {
                int(p.replace(".", "")): q for (of, p), (q, _) in self.levels.items() if of == side
            }
            best = sorted(known, reverse=side == "bids")[:10]
            sides.append(",".join(f"{p}:{int(known[p].replace('.', ''))}" for p in best))
        return zlib.crc32("|".join(sides).encode())

    def flat(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Return (side, ticks) to (lots, orders)."""
        return {
            (1 if side == "bids" else 2, int(price.replace(".", ""))): (
                int(quantity.replace(".", "")),
                orders,
            )
            for (side, price), (quantity, orders) in self.levels.items()
        }


@contextlib.asynccontextmanager
async def open_door(
    folder: Path,
    *,
    tiers: Mapping[str, Tier] = TIERS,
    gateway: Mapping[str, Any] | None = None,
    candles: bool = False,
    **settings: Any,
) -> AsyncIterator[Door]:
    """Open a door over a book with one level a side, already told once."""
    writer = Writer(folder)
    writer.status(1)
    writer.level(1, 100, 5)
    writer.level(2, 110, 7)
    config = GatewayConfig(pairs=(PAIR,), segments=str(folder), **(gateway or {}))
    market = Market([Publisher(INSTRUMENT, config)], config)
    store = CandleStore(folder / "candles") if candles else None
    if store is not None:
        market.publications[PAIR].keep_candles(CandleKeeper(store).source_of(PAIR))
    given: dict[str, Any] = {"port": 0, "anonymous_tier": "professional"} | settings
    http = HttpConfig(**given).validate()
    admission = Admission(Keyring(http.keys), tiers, http.anonymous_tier, http.trusted_proxies)
    server = HttpServer(market, http, admission)
    door = Door(writer, market, server, await server.start())
    door.step()
    try:
        connector = aiohttp.TCPConnector(
            limit=0, force_close=True, socket_factory=_with_small_buffer
        )
        async with aiohttp.ClientSession(connector=connector, auto_decompress=True) as session:
            door.session = session
            yield door
    finally:
        await server.stop()
        for publication in market.publications.values():
            publication.close()
        writer.close()
        if store is not None:
            store.close()


async def turns(until: Callable[[], bool]) -> None:
    """Let everything else have its turn until something holds; not holding is a failure."""
    async with asyncio.timeout(PATIENCE_S):
        while not until():
            await asyncio.to_thread(os.sched_yield)


def run(folder: Path, test: Callable[[Door], Awaitable[None]], **settings: Any) -> None:
    """Run a test at a door."""

    async def main() -> None:
        async with open_door(folder, **settings) as door:
            await test(door)

    asyncio.run(main())


def tier(name: str, **changes: Any) -> dict[str, Tier]:
    """Return the tiers with one of them changed."""
    return dict(TIERS) | {name: replace(TIERS[name], **changes)}


def _with_small_buffer(address: aiohttp.AddrInfoType) -> socket.socket:
    # So that a client that does not read fills up after kilobytes, not after megabytes.
    given = socket.socket(address[0], address[1], address[2])
    given.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    return given


def raw_socket(port: int, receive_bytes: int = 4_096) -> socket.socket:
    """Return a connected socket with a small receive buffer."""
    given = socket.socket()
    given.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    given.settimeout(PATIENCE_S)
    given.connect(("127.0.0.1", port))
    return given


async def depth(door: Door, levels: int = 20, **fields: Any) -> tuple[Socket, Book]:
    """Subscribe to depth and take the first snapshot."""
    socket, book = await door.connect(), Book()
    answer = await socket.ask(
        op="subscribe", channel="depth", pairs=[PAIR], levels=levels, interval_ms=0, **fields
    )
    assert answer["type"] == "subscribed", answer
    book.take(await socket.until(lambda one: one["type"] == "snapshot"))
    return socket, book


async def follow(socket: Socket, book: Book, sequence: int) -> None:
    """Take depth until the book is at a sequence."""
    while book.sequence < sequence:
        message = await socket.next()
        if message.get("channel") == "depth" and message["type"] != "notice":
            book.take(message)
        else:
            socket.told.append(message)
