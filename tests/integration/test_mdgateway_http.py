"""The HTTP door of a gateway over a real engine: the same numbers as gRPC, kills, bad company."""

import asyncio
import json
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from tests.integration.market_data_processes import (
    PAIR,
    PATIENCE_S,
    ROOT,
    Processes,
    Traders,
    channel_to,
    wait_serving,
)
from tests.unit.market_data_door import HANDSHAKE, Book, Json, Socket, raw_socket

pytestmark = pytest.mark.integration

SEED = 20_261_123


class Exchange:
    """An engine with money in it, order entry, and a gateway with both doors."""

    def __init__(self, folder: Path) -> None:
        self.processes = Processes(folder)
        self.folder = folder
        self.http_port = 0
        self.sequence = 0
        """Of the newest command that was acknowledged."""

    def start(self) -> None:
        """Start everything and give the traders money."""
        self.processes.start_engine()
        entry = self.processes.start_entry()
        with channel_to(entry) as channel:
            wait_serving(channel, "orders")
        self.traders = Traders(entry, SEED)
        self.traders.allot()
        self.sequence = 4
        self.start_gateway()

    def trade(self, batch_count: int) -> None:
        """Let the traders send batches of 200 orders and wait for their answers."""
        self.traders.trade(batch_count, 200)
        self.sequence += batch_count * 200

    def start_gateway(self) -> None:
        """Start a gateway whose strangers are all professionals."""
        at = ("--http-port", str(self.http_port), "--anonymous-tier", "professional")
        self.grpc_port = self.processes.start_gateway(*at)
        with channel_to(self.grpc_port) as channel:
            wait_serving(channel, "marketdata")
        self.http_port = int((self.folder / "run" / "mdgateway-http.port").read_text())


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    folder.chmod(0o755)
    exchange = Exchange(folder)
    try:
        exchange.start()
        yield exchange
        exchange.traders.channel.close()
    finally:
        exchange.processes.close()
        shutil.rmtree(folder)


def run(exchange: Exchange, test: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{exchange.http_port}") as session:
            await test(session)

    asyncio.run(main())


async def get(session: aiohttp.ClientSession, path: str) -> Json:
    async with session.get(path) as answer:
        assert answer.status == 200, await answer.text()
        content: Json = await answer.json()
        return content


async def settled(session: aiohttp.ClientSession, sequence: int) -> Json:
    """Ask for the pair's status until every acknowledged command is in it; return it."""
    while True:
        state: Json = (await get(session, "/v1/status"))["pairs"][0]
        if state["sequence"] >= sequence:
            return state


async def subscribed(session: aiohttp.ClientSession, channel: str, **fields: Any) -> Socket:
    socket = Socket(await session.ws_connect("/v1/stream", max_msg_size=0))
    answer = await socket.ask(op="subscribe", channel=channel, pairs=[PAIR], **fields)
    assert answer["type"] == "subscribed", answer
    return socket


async def follow(socket: Socket, book: Book, sequence: int) -> None:
    """Take depth until the gateway says in a heartbeat that it is at a sequence."""
    reached = 0
    while reached < sequence:
        message = await socket.next()
        if message["type"] == "heartbeat":
            reached = message["sequence"]
        elif message["type"] in {"snapshot", "update"}:
            book.take(message)


def test_rest_websocket_and_grpc_say_the_same_numbers(exchange: Exchange) -> None:
    exchange.trade(20)

    async def test(session: aiohttp.ClientSession) -> None:
        await settled(session, exchange.sequence)
        with channel_to(exchange.grpc_port) as channel:
            stub = market_data_pb2_grpc.MarketDataServiceStub(channel)
            request = market_data_pb2.GetDepthRequest(pair=PAIR, level_count=100)
            spoken = stub.GetDepth(request, timeout=PATIENCE_S).depth
            told = stub.GetTicker(market_data_pb2.GetTickerRequest(pair=PAIR)).ticker
        written = await get(session, f"/v1/depth/{PAIR}?levels=100")
        place = "epoch", "sequence", "checksum"
        assert [written[name] for name in place] == [getattr(spoken, name) for name in place]
        assert len(written["bids"]) == 100, "the test has something to compare"
        for side in "bids", "asks":
            assert written[side] == [
                [level.price, level.quantity, level.order_count] for level in getattr(spoken, side)
            ]
        ticker = await get(session, f"/v1/ticker/{PAIR}")
        for name in ("day_high", "day_low", "day_volume", "volume_24h", "turnover_24h", "vwap_24h"):
            assert ticker[name] == getattr(told, name), name
        assert ticker["trade_count"] == told.trade_count > 0
        assert ticker["last_trade"]["price"] == told.last_trade.price
        socket = await subscribed(session, "depth", levels=100)
        book = Book()
        book.take(await socket.until(lambda one: one["type"] == "snapshot"))
        assert (book.sequence, book.checksum()) == (spoken.sequence, spoken.checksum)
        minutes = (await get(session, f"/v1/candles/{PAIR}"))["candles"]
        assert sum(one["trade_count"] for one in minutes) == told.trade_count

    run(exchange, test)


def test_books_stay_true_under_load_and_over_a_killed_engine(exchange: Exchange) -> None:
    async def test(session: aiohttp.ClientSession) -> None:
        books = []
        for levels in 5, 20, 1_000:
            socket = await subscribed(session, "depth", levels=levels, interval_ms=0)
            books.append((levels, socket, Book()))
        trades = await subscribed(session, "trades", from_trade_number=1)
        for life in range(2):
            await asyncio.to_thread(exchange.trade, 30)
            state = await settled(session, exchange.sequence)
            for levels, socket, book in books:
                await follow(socket, book, state["sequence"])
                depth = await get(session, f"/v1/depth/{PAIR}?levels={levels}")
                assert depth["sequence"] >= state["sequence"]
                assert book.checksum() == depth["checksum"]
                for side in "bids", "asks":
                    expected = {(side, p): (q, n) for p, q, n in depth[side]}
                    held = {key: one for key, one in book.levels.items() if key[0] == side}
                    assert held == expected
            numbers: list[int] = []
            while not numbers or numbers[-1] < state["trade_number"]:
                message = await trades.until(lambda one: one["type"] == "trades")
                numbers += [one["trade_number"] for one in message["trades"]]
            assert numbers == list(range(numbers[0], state["trade_number"] + 1))
            if not life:
                exchange.processes.kill("engine")
                exchange.processes.start_engine()
                for _, socket, book in books:
                    kinds: list[str] = []
                    while "engine_restarted" not in kinds:
                        message = await socket.next()
                        kinds.append(str(message.get("notice", message["type"])))
                    book.take(await socket.until(lambda one: one["type"] == "snapshot"))
                    assert book.epoch == 2

    run(exchange, test)


def test_a_stopped_gateway_says_goodbye_and_the_next_one_goes_on(exchange: Exchange) -> None:
    exchange.trade(4)

    async def test(session: aiohttp.ClientSession) -> None:
        socket = await subscribed(session, "trades", from_trade_number=1)
        first = await socket.until(lambda one: one["type"] == "trades")
        assert first["trades"][0]["trade_number"] == 1
        stopped = asyncio.to_thread(exchange.processes.kill, "gateway", signal.SIGTERM)
        status, end = await asyncio.gather(stopped, socket.end())
        assert end == (1001, "DRAINING")
        goodbye = next(one for one in socket.told if one["type"] == "goodbye")
        assert status == 0
        assert goodbye["resume_from"][PAIR] > 1
        await asyncio.to_thread(exchange.start_gateway)
        again = await subscribed(session, "trades", from_trade_number=goodbye["resume_from"][PAIR])
        await asyncio.to_thread(exchange.trade, 4)
        more = await again.until(lambda one: one["type"] == "trades")
        assert more["trades"][0]["trade_number"] == goodbye["resume_from"][PAIR]

    run(exchange, test)


def test_clients_that_never_read_cost_little_and_disturb_nobody(exchange: Exchange) -> None:
    exchange.trade(4)
    text = json.dumps(
        {"op": "subscribe", "channel": "depth", "pairs": [PAIR], "levels": 1_000, "interval_ms": 0}
    ).encode()
    frame = struct.pack("!BB", 0x81, 0x80 | len(text)) + bytes(4) + text
    count = 100

    async def test(session: aiohttp.ClientSession) -> None:
        quick = await subscribed(session, "depth", levels=1_000, interval_ms=0)
        book = Book()
        book.take(await quick.until(lambda one: one["type"] == "snapshot"))
        before = exchange.processes.resident_bytes("gateway")
        deaf = [raw_socket(exchange.http_port) for _ in range(count)]
        for one in deaf:
            one.sendall(HANDSHAKE)
            assert one.recv(12) == b"HTTP/1.1 101"
            one.sendall(frame)
        await asyncio.to_thread(exchange.trade, 30)
        state = await settled(session, exchange.sequence)
        await follow(quick, book, state["sequence"])
        assert book.snapshots == 1
        grown = exchange.processes.resident_bytes("gateway") - before
        # 64 KiB and one message beyond may wait for each, and what a connection costs itself.
        assert grown < count * 400_000
        for one in deaf:
            one.close()

    run(exchange, test)


def test_a_taken_port_and_wrong_settings_are_said_at_the_start(exchange: Exchange) -> None:
    for more, sentence in (
        (["--http-port", str(exchange.http_port)], "cannot listen"),
        (["--keys", "/nowhere"], "keys is '/nowhere'; it must be a key file"),
        (["--http-port", "70000"], "http_port is 70000; it must be from -1 to 65535"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "mdgateway", "--pair", "BTC-USDT", "--port", "0", *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert ended.returncode in {1, 2}
        assert sentence in ended.stderr


def test_a_grpc_client_is_unharmed_by_what_happens_at_the_other_door(exchange: Exchange) -> None:
    with channel_to(exchange.grpc_port) as channel:
        stub = market_data_pb2_grpc.MarketDataServiceStub(channel)
        stream = stub.StreamDepth(market_data_pb2.StreamDepthRequest(pair=PAIR, level_count=5))
        for sent in (b"\0" * 10_000, HANDSHAKE + b"\xff" * 10_000, b"GET / HTTP/1.1\r\n" * 999):
            one = raw_socket(exchange.http_port)
            try:
                one.sendall(sent)
                while one.recv(4_096):
                    pass
            except ConnectionError:
                pass  # Reset, because there was something unread: an end as good as any.
            one.close()
        exchange.trade(4)
        for message in stream:
            if message.WhichOneof("event") == "update":
                break
        stream.cancel()
        assert isinstance(stream, grpc.Call)
