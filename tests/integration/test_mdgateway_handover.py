"""A pair's segments change hands in the middle of trading, and no client of a gateway is misled.

Each owner is a process with the real kernel that hands book and vault to the next by `move`. The
owners write down the book after each of their batches, so every book that any client was told is
compared with what its owner had at that sequence.
"""

import asyncio
import contextlib
import itertools
import json
import random
import signal
import socket as sockets
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

import aiohttp
import grpc
import pytest

from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from tests.integration.market_data_processes import (
    PAIR,
    PATIENCE_S,
    ROOT,
    DepthClient,
    Levels,
    Processes,
    channel_to,
    processes_in_memory,
    wait_serving,
)
from tests.integration.plain_client import Cable, PlainClient
from tests.unit.market_data_door import Book

pytestmark = pytest.mark.integration

HANDOVERS: Final = 3
BOOKS: Final = 60
"""Books that every client is told by each owner, at least."""
Stub = market_data_pb2_grpc.MarketDataServiceStub


class OwnerProcess:
    """An owner and its two ends of the chain."""

    def __init__(self, processes: Processes, number: int, source: Any, target: Any) -> None:
        self.number = number
        self.record = processes.folder / f"owner-{number}.jsonl"
        ends = [end for end in (source, target) if end is not None]
        descriptors = [str(end.fileno()) if end is not None else "-1" for end in (source, target)]
        where = [str(processes.segments), str(processes.instruments), str(self.record)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.moving_owner", *where, *descriptors],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[end.fileno() for end in ends],
        )
        processes.running[f"owner-{number}"] = self.process

    def hear(self, word: str) -> list[str]:
        """Return what comes after the word that has to be said next."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline().split()
        assert said[:1] == [word], said
        return said[1:]

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def books(self) -> dict[tuple[int, int], Levels]:
        """Return the owner's books by epoch and sequence."""
        found: dict[tuple[int, int], Levels] = {}
        for line in self.record.read_text().splitlines():
            epoch, sequence, _, rows = json.loads(line)
            found[epoch, sequence] = {
                (side, price): (lots, orders) for side, price, lots, orders in rows
            }
        return found

    def trade_count(self) -> int:
        """Return how many trades there were when the owner wrote last."""
        return int(json.loads(self.record.read_text().splitlines()[-1])[2])


@pytest.fixture
def processes() -> Iterator[Processes]:
    with processes_in_memory() as processes:
        yield processes


@contextlib.contextmanager
def chain_of_owners(processes: Processes, handover_count: int) -> Iterator[list[OwnerProcess]]:
    """Start a chain of owners; the first one owns, the others are ready to receive."""
    links = [sockets.socketpair() for _ in range(handover_count)]
    sources = [None, *(link[1] for link in links)]
    targets = [*(link[0] for link in links), None]
    owners = [
        OwnerProcess(processes, number, source, target)
        for number, (source, target) in enumerate(zip(sources, targets, strict=True))
    ]
    for end in itertools.chain(*links):
        end.close()
    for owner in owners[1:]:
        owner.hear("ready")
    try:
        yield owners
    finally:
        for owner in owners:
            owner.process.kill()
            owner.process.wait()
            assert owner.process.stdin is not None
            owner.process.stdin.close()


class WebSocketClient:
    """Follows every level of the pair over WebSocket; when its line is cut it starts anew."""

    def __init__(self, port: int) -> None:
        self.books: list[tuple[int, int, Levels]] = []
        self.notices: list[str] = []
        self.connection_count = 0
        self.trouble: BaseException | None = None
        self._url = f"http://127.0.0.1:{port}/v1/stream"
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, condition: Any) -> None:
        """Wait until the client's state fulfils a condition."""
        with self._changed:
            held = self._changed.wait_for(lambda: self.trouble or condition(self), PATIENCE_S)
        if self.trouble is not None:
            raise AssertionError("the stream is wrong") from self.trouble
        assert held, self.books[-1:]

    def close(self) -> None:
        self._ended = True
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._follow())
        except BaseException as error:
            with self._changed:
                self.trouble = error
                self._changed.notify_all()

    async def _follow(self) -> None:
        async with aiohttp.ClientSession() as session:
            while not self._ended:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                    async with session.ws_connect(self._url, max_msg_size=0) as socket:
                        self.connection_count += 1
                        await self._take_all(socket)

    async def _take_all(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        book, wanted = Book(), {"op": "subscribe", "channel": "depth", "pairs": [PAIR]}
        await socket.send_str(json.dumps(wanted | {"levels": "full", "interval_ms": 0}))
        async for message in socket:
            assert message.type is aiohttp.WSMsgType.TEXT, message
            content = json.loads(message.data)
            with self._changed:
                if content["type"] in {"snapshot", "update"}:
                    book.take(content)
                    self.books.append((book.epoch, book.sequence, book.flat()))
                elif content["type"] == "notice":
                    self.notices.append(content["notice"])
                else:
                    assert content["type"] in {"subscribed", "heartbeat"}, content
                self._changed.notify_all()
            if self._ended:
                return


class TradeReader:
    """Follows the trades and insists that none is missing or told twice."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.newest = 0
        self.trouble: BaseException | None = None
        request = market_data_pb2.StreamTradesRequest(pair=PAIR, from_trade_number=1)
        self._call: Any = Stub(channel).StreamTrades(request)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for message in self._call:
                for trade in message.trades.trades:
                    assert trade.trade_number == self.newest + 1
                    self.newest = trade.trade_number
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                self.trouble = error
        except AssertionError as error:
            self.trouble = error

    def close(self) -> int:
        """End, and return the number of the last trade."""
        self._call.cancel()
        self._thread.join()
        assert self.trouble is None, self.trouble
        return self.newest


def compare(
    told: list[tuple[int, int, Levels]], truth: dict[tuple[int, int], Levels]
) -> dict[int, int]:
    """Compare every book that was told with its owner's; return how many of each epoch."""
    counts: dict[int, int] = {}
    place = (0, 0)
    for epoch, sequence, levels in told:
        assert (epoch, sequence) >= place, "time does not run backwards"
        place = epoch, sequence
        assert levels == truth[place], f"epoch {epoch}, sequence {sequence}"
        counts[epoch] = counts.get(epoch, 0) + 1
    return counts


def truth_of(owners: list[OwnerProcess]) -> dict[tuple[int, int], Levels]:
    """Return what all owners had, by epoch and sequence."""
    return {place: levels for owner in owners for place, levels in owner.books().items()}


def hand_over(giver: OwnerProcess, taker: OwnerProcess) -> None:
    """Move the segments; what is received is what was given, and the giver has nothing left."""
    giver.say("move")
    assert giver.hear("refused") == giver.hear("refused") == []
    epoch, sequence, state = giver.hear("gave")
    taker.say("take")
    assert taker.hear("owns") == [str(int(epoch) + 1), sequence, state]


def test_clients_hold_the_owners_book_whoever_that_is(processes: Processes) -> None:
    with chain_of_owners(processes, HANDOVERS) as owners:
        follow_through_handovers(processes, owners)
        # Who gave the segments away and writes all the same dies of it.
        owners[0].say("trade")
        assert owners[0].process.wait() == -signal.SIGSEGV


def follow_through_handovers(processes: Processes, owners: list[OwnerProcess]) -> None:
    """Let the owners trade and hand over, and compare what three clients were told of it."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    assert owners[0].hear("owns")[0] == "1"
    at = ("--tick-ms", "2", "--http-port", "0", "--anonymous-tier", "professional")
    port = processes.start_gateway(*at)
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        http_port = (processes.folder / "run" / "mdgateway-http.port").read_text()
        cables = Cable(int(port)), Cable(int(http_port))
        steady, trades = DepthClient(channel, -1), TradeReader(channel)
        plain, web = PlainClient(cables[0].port, PAIR, -1, seed), WebSocketClient(cables[1].port)

        def wait_for_books(epoch: int, count: int) -> None:
            def enough(client: PlainClient | WebSocketClient) -> bool:
                return sum(book[0] == epoch for book in client.books) >= count

            plain.wait(enough, PATIENCE_S)
            web.wait(enough)
            steady.wait(lambda one: one.epoch == epoch)

        for epoch, (giver, taker) in enumerate(itertools.pairwise(owners), start=1):
            wait_for_books(epoch, BOOKS)
            hand_over(giver, taker)
            if epoch % 2:
                for cable in cables:
                    cable.cut()
        wait_for_books(len(owners), BOOKS)
        plain.wait(lambda one: one.drop_count > 0, PATIENCE_S)
        owners[-1].say("rest")
        _, sequence, _ = owners[-1].hear("rests")
        truth = truth_of(owners)
        last = truth[len(owners), int(sequence)]
        steady.wait(lambda one: one.levels == last)
        plain.wait(lambda one: one.levels == last, PATIENCE_S)
        web.wait(lambda one: one.books[-1][2] == last)
        for client in plain, web, steady:
            client.close()
        told = [(one.books, one) for one in (plain, web)]
        for books, client in told:
            counts = compare(books, truth)
            print(f"{type(client).__name__}: books by epoch {counts}")
            assert list(counts) == list(range(1, len(owners) + 1))
        print(
            f"{plain.drop_count} messages dropped, {plain.stream_count} streams,"
            f" {plain.resume_count} resumed, {web.connection_count} WebSockets"
        )
        assert web.connection_count > 1
        # Whose line was never cut was told of each new owner once, and of no gap.
        assert steady.snapshot_count == len(owners)
        kinds = [notice.kind for notice in steady.notices]
        restarted = market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
        assert kinds.count(restarted) == HANDOVERS
        assert market_data_pb2.NOTICE_KIND_MISSED not in kinds
        assert trades.close() == owners[-1].trade_count() > 0
    for cable in cables:
        cable.close()


def test_segments_on_their_way_are_served_as_they_were_left(processes: Processes) -> None:
    with chain_of_owners(processes, 1) as (giver, taker):
        look_at_segments_on_their_way(processes, giver, taker)


def look_at_segments_on_their_way(
    processes: Processes, giver: OwnerProcess, taker: OwnerProcess
) -> None:
    """Look at what a gateway tells while the receiver takes its time."""
    giver.hear("owns")
    port = processes.start_gateway("--tick-ms", "2")
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        steady = DepthClient(channel, -1)
        steady.wait(lambda one: len(one.books) >= BOOKS)
        giver.say("move")
        giver.hear("refused")
        giver.hear("refused")
        epoch, sequence, state = giver.hear("gave")
        left = giver.books()[int(epoch), int(sequence)]
        steady.wait(lambda one: bool(one.notices))
        assert steady.notices[0].kind == market_data_pb2.NOTICE_KIND_ENGINE_DOWN
        steady.wait(lambda one: one.levels == left)
        answer = Stub(channel).GetDepth(
            market_data_pb2.GetDepthRequest(pair=PAIR, level_count=1_000), timeout=PATIENCE_S
        )
        assert (answer.depth.epoch, answer.depth.sequence) == (int(epoch), int(sequence))
        request = market_data_pb2.GetMarketStatusRequest(pair=PAIR)
        assert Stub(channel).GetMarketStatus(request).state.engine_state == 0
        taker.say("take")
        assert taker.hear("owns") == [str(int(epoch) + 1), sequence, state]
        steady.wait(lambda one: one.epoch == int(epoch) + 1)
        assert steady.notices[-1].kind == market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
        steady.close()
    truth = truth_of([giver, taker])
    for told, levels in steady.books.items():
        assert levels in [truth.get((owner, told)) for owner in (1, 2)], f"sequence {told}"
