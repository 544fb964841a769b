"""Gateways that follow gateways: the end of a chain tells what the engine published."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import aiohttp
import grpc
import pytest

from exchange.config import load_instrument
from exchange.v1 import enums_pb2, market_data_pb2, market_data_pb2_grpc
from mdgateway.keys.key_file import add_key
from tests.integration.market_data_processes import (
    PAIR,
    PATIENCE_S,
    DepthClient,
    Levels,
    Processes,
    Traders,
    Watcher,
    channel_to,
    processes_in_memory,
    wait_serving,
)
from tests.integration.order_client import OrderBooks, OrderClient, Queues, Truth, queues_of
from tests.unit.market_data_writer import Writer

pytestmark = pytest.mark.integration

DOWN = market_data_pb2.NOTICE_KIND_ENGINE_DOWN
RESTARTED = market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
Stub = market_data_pb2_grpc.MarketDataServiceStub


class Market:
    """A book that a test writes, with an engine's heartbeat, and every state it was in."""

    def __init__(self, processes: Processes, seed: int) -> None:
        self.writer = Writer(processes.segments, load_instrument(PAIR, processes.instruments))
        self.chance = random.Random(seed)
        self.levels: Levels = {}
        self.books: dict[int, Levels] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(0.2):
            self.writer.heartbeat(time.monotonic_ns())

    def move(self, commands: int) -> None:
        """Publish commands of one to five levels, and now and then a trade."""
        for _ in range(commands):
            rows = []
            for _ in range(self.chance.randrange(1, 6)):
                side, lots = self.chance.choice((1, 2)), self.chance.choice((0, 1, 2, 3))
                price = 20_000 + (2 * side - 3) * self.chance.randrange(1, 900)
                orders = self.chance.randrange(1, 4) if lots else 0
                rows.append((1, side, price, lots, orders, 0))
                self.levels.pop((side, price), None)
                if lots:
                    self.levels[side, price] = (lots, orders)
            self.writer.batch(rows)
            self.books[self.writer.sequence] = dict(self.levels)
            if self.chance.random() < 0.2:
                self.writer.trade(1, 20_000, 1)
                self.books[self.writer.sequence] = dict(self.levels)

    def close(self) -> None:
        """End the heartbeat and remove the segment."""
        self._ended.set()
        self._thread.join()
        self.writer.close()


@pytest.fixture
def processes() -> Iterator[Processes]:
    with processes_in_memory() as processes:
        yield processes


@pytest.fixture
def market(processes: Processes) -> Iterator[Market]:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    market = Market(processes, seed)
    yield market
    market.close()


def compare(client: DepthClient, market: Market) -> int:
    """Compare every book a client was told with the one at that sequence; return how many."""
    for sequence, levels in client.books.items():
        assert levels == market.books[sequence], f"sequence {sequence}"
    return len(client.books)


def trade_numbers(channel: grpc.Channel, upto: int) -> list[int]:
    """Return the numbers of the trades from the first to `upto`."""
    request = market_data_pb2.StreamTradesRequest(pair=PAIR, from_trade_number=1)
    seen: list[int] = []
    call = Stub(channel).StreamTrades(request, timeout=PATIENCE_S)
    for message in call:
        seen += [trade.trade_number for trade in message.trades.trades]
        if seen and seen[-1] >= upto:
            call.cancel()
            break
    return seen


def test_two_hops_tell_the_engines_book_and_every_trade(
    processes: Processes, market: Market
) -> None:
    market.move(50)
    first = processes.start_gateway("--tick-ms", "2")
    second = processes.start_relay("second", first)
    third = processes.start_relay("third", second)
    with channel_to(third) as channel:
        wait_serving(channel, "marketdata")
        client = DepthClient(channel, 1_000)
        for _ in range(100):
            market.move(20)
            client.wait(lambda one: one.sequence > market.writer.sequence - 100)
        client.wait(lambda one: one.levels == market.levels)
        assert compare(client, market) > 20
        assert (client.snapshot_count, client.notices) == (1, [])
        count = market.writer.trade_count
        assert trade_numbers(channel, count) == list(range(1, count + 1))
        ticker = Stub(channel).GetTicker(market_data_pb2.GetTickerRequest(pair=PAIR)).ticker
        with channel_to(first) as source:
            wanted = Stub(source).GetTicker(market_data_pb2.GetTickerRequest(pair=PAIR)).ticker
        assert ticker == wanted
        client.close()


def test_an_upstream_that_is_killed_and_comes_back(processes: Processes, market: Market) -> None:
    """None of them waits for its tick."""
    market.move(50)
    first = processes.start_gateway("--eager")
    second = processes.start_relay("second", first, "--eager")
    third = processes.start_relay("third", second, "--eager")
    with channel_to(third) as channel:
        wait_serving(channel, "marketdata")
        client = DepthClient(channel, 1_000)
        client.wait(lambda one: one.levels == market.levels)
        processes.kill("gateway")
        client.wait(lambda one: [notice.kind for notice in one.notices] == [DOWN])
        held = dict(client.levels)
        market.move(200)
        depth = (
            Stub(channel).GetDepth(market_data_pb2.GetDepthRequest(pair=PAIR, level_count=-1)).depth
        )
        assert len(depth.bids) + len(depth.asks) == len(held), "the last book stays served"

        processes.start("gateway", *processes.gateway_arguments(first), "--eager")
        client.wait(lambda one: one.levels == market.levels)
        assert [notice.kind for notice in client.notices] == [DOWN, RESTARTED]
        market.move(200)
        client.wait(lambda one: one.levels == market.levels)
        compare(client, market)
        count = market.writer.trade_count
        assert trade_numbers(channel, count) == list(range(1, count + 1))
        client.close()


def test_a_relay_lives_before_its_upstream(processes: Processes, market: Market) -> None:
    market.move(10)
    first = processes.start_gateway()
    processes.kill("gateway")
    second = processes.start_relay("second", first)
    with channel_to(second) as channel:
        wait_serving(channel, "alive")
        wait_serving(channel, "marketdata", wanted=2)
        client = DepthClient(channel, 5)
        client.wait(lambda one: [notice.kind for notice in one.notices] == [DOWN])
        processes.start("gateway", *processes.gateway_arguments(first))
        wait_serving(channel, "marketdata")
        client.wait(lambda one: one.snapshot_count == 1)
        client.close()


def test_gateways_that_were_there_before_the_engine_live_with_it(processes: Processes) -> None:
    first = processes.start_gateway()
    second = processes.start_relay("second", first)
    third = processes.start_relay("third", second)
    with channel_to(first) as source, channel_to(third) as channel:
        client = DepthClient(channel, 5)
        client.wait(lambda one: [notice.kind for notice in one.notices] == [DOWN])
        wait_serving(source, "alive")
        # Seconds later each has long opened its streams of the one before it.
        client.wait(lambda one: one.message_count > 4)
        processes.start_engine()
        wait_serving(channel, "marketdata")
        client.wait(lambda one: one.snapshot_count == 1)
        states = Stub(channel).StreamMarketStatus(
            market_data_pb2.StreamMarketStatusRequest(pair=PAIR), timeout=PATIENCE_S
        )
        ready = enums_pb2.ENGINE_STATE_READY
        assert any(message.state.engine_state == ready for message in states)
        states.cancel()
        client.close()


def open_orders(port: str) -> tuple[grpc.Channel, OrderClient]:
    """Follow the orders at a gateway that has a book."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    wait_serving(channel, "marketdata")
    return channel, OrderClient(channel)


def test_orders_behind_relays_are_the_engines_through_kills(processes: Processes) -> None:
    """Queues of every order, and levels at each sequence that the segment was seen at."""
    seed = random.SystemRandom().randrange(1 << 32)
    processes.start_engine()
    entry, first = processes.start_entry(), processes.start_gateway()
    traders = Traders(entry, seed)
    wait_serving(traders.channel, "orders")
    traders.allot()
    second = processes.start_relay("second", first)
    third = processes.start_relay("third", second)
    channel, client = open_orders(third)
    client.wait(lambda one: one.told.is_whole)
    truth, watcher = Truth(processes), Watcher(processes)

    def trade(batches: int) -> Queues:
        traders.trade(batches, 100)
        return truth.read()

    def arrived(one: OrderClient) -> bool:
        return queues_of(one.told.follower) == queues

    queues = trade(40)
    client.wait(arrived)
    # The first gateway dies and misses trading; nobody behind it misses an event.
    processes.kill("gateway")
    queues = trade(40)
    client.wait(lambda one: one.notices == [DOWN])
    processes.start("gateway", *processes.gateway_arguments(first))
    client.wait(arrived)
    assert client.notices == [DOWN, RESTARTED]
    assert client.told.snapshot_count == 1
    assert client.told.events == truth.events
    # The relay between dies: what it knew of the past dies with it.
    processes.kill("second")
    queues = trade(10)
    processes.start_relay("second", first, "--port", second)
    client.wait(lambda one: one.told.snapshot_count == 2 and one.told.is_whole)
    queues = trade(10)
    client.wait(lambda one: one.told.levels == truth.follower.levels)
    assert client.notices == [DOWN, RESTARTED] * 2

    # The ring runs over while the first gateway is away: older orders are unknown from then on.
    processes.kill("gateway")
    position = client.told.position
    while len([place for place in truth.events if place >= position]) < 1 << 16:
        trade(100)
    processes.start("gateway", *processes.gateway_arguments(first))
    client.wait(lambda one: one.told.snapshot_count == 3 and one.told.is_whole)
    trade(10)
    client.wait(lambda one: one.told.levels == truth.follower.levels)
    known = queues_of(client.told.follower)
    assert all(truth.read()[key][-len(queue) :] == queue for key, queue in known.items())

    assert watcher.close() == client.told.levels
    both = client.told.books.keys() & watcher.books.keys()
    print(f"{len(client.told.books)} moments told, {len(both)} of them compared")
    assert len(both) > 1
    for moment in both:
        assert client.told.books[moment] == watcher.books[moment], moment
    client.close()
    channel.close()
    truth.close()
    traders.channel.close()


def take_json(told: OrderBooks, message: dict[str, Any]) -> None:
    """Take one message of the orders channel; the pair's ticks and lots are its last decimals."""
    side_of = {"buy": 1, "sell": 2}

    def units(text: str) -> int:
        return int(text.replace(".", ""))

    if message["type"] == "snapshot":
        told.begin(message["part"])
        for side, price, quantity, count in message["unknown"]:
            told.rest(0, (side_of[side], units(price)), units(quantity), count)
        for number, side, price, quantity in message["orders"]:
            told.rest(int(number), (side_of[side], units(price)), units(quantity))
        told.epoch, told.position = message["epoch"], message["position"]
        told.is_whole = message["is_last"]
        return
    told.follow(message["previous_position"], message["position"])
    for event in message["events"]:
        told.take(
            event["position"],
            ("", "add", "reduce", "delete", "execute").index(event["action"]),
            int(event["order_number"]),
            (side_of[event["side"]], units(event["price"])),
            units(event["quantity"]),
            is_gone=event["is_gone"],
        )


async def follow_cut(told: OrderBooks, port: str, until: Callable[[], bool]) -> None:
    """Follow the orders over WebSocket from what was told before; then cut the line, unread."""
    request: dict[str, Any] = {"op": "subscribe", "channel": "orders", "pairs": [PAIR]}
    if told.is_whole:
        request |= {"held_epoch": told.epoch, "held_position": told.position}
    url = f"http://127.0.0.1:{port}/v1/stream"
    async with (
        asyncio.timeout(PATIENCE_S),
        aiohttp.ClientSession() as session,
        session.ws_connect(url, max_msg_size=0) as socket,
    ):
        await socket.send_json(request)
        while not until():
            message = await socket.receive_json()
            if message.get("channel") == "orders" and message["type"] in {"snapshot", "events"}:
                take_json(told, message)
        transport = socket.get_extra_info("socket")
        transport.shutdown(2)


def has_more(told: OrderBooks, count: int) -> bool:
    """Say whether more than so many events were told."""
    return len(told.events) > count


def test_a_websocket_client_that_is_cut_and_hops_sees_every_order_once(
    processes: Processes,
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    everybody = ("--anonymous-tier", "professional")
    processes.start_engine()
    entry, first = processes.start_entry(), processes.start_gateway(*everybody)
    traders = Traders(entry, seed)
    wait_serving(traders.channel, "orders")
    traders.allot()
    folder = processes.folder / "relay"
    second = processes.start_relay("second", first, "--run", str(folder), *everybody)
    for port in first, second:
        with channel_to(port) as channel:
            wait_serving(channel, "marketdata")
    doors = [
        (run / "mdgateway-http.port").read_text().strip()
        for run in (processes.folder / "run", folder)
    ]
    told, truth = OrderBooks(), Truth(processes)

    async def main() -> None:
        await follow_cut(told, doors[0], lambda: told.is_whole)
        for turn in range(1, 7):
            trading = asyncio.to_thread(traders.trade, 10, 50)
            trade = asyncio.create_task(trading)
            # Whatever was on its way when the line was cut is told by the other gateway.
            await follow_cut(told, doors[turn % 2], partial(has_more, told, len(told.events) + 200))
            await trade
        queues = truth.read()
        await follow_cut(told, doors[1], lambda: queues_of(told.follower) == queues)

    asyncio.run(main())
    assert told.events == truth.events
    assert told.snapshot_count == 1
    assert told.levels == truth.follower.levels
    truth.close()
    traders.channel.close()


def test_a_relay_shows_its_key_and_takes_a_better_one(processes: Processes, market: Market) -> None:
    market.move(10)
    keys, shown = processes.folder / "keys.json", processes.folder / "shown"
    shown.write_text(add_key(keys, "basic", time.time_ns())[0])
    first = processes.start_gateway("--keys", str(keys))
    second = processes.start_relay("second", first, "--upstream-key", str(shown))
    with channel_to(first) as channel:
        wait_serving(channel, "marketdata")
    with channel_to(second) as channel:
        client = DepthClient(channel, 1_000)
        client.wait(lambda one: [notice.kind for notice in one.notices] == [DOWN])
        shown.write_text(add_key(keys, "professional", time.time_ns())[0] + "\n")
        client.wait(lambda one: one.levels == market.levels)
        wait_serving(channel, "marketdata")
        orders = OrderClient(channel)
        orders.wait(lambda one: one.told.levels == market.levels)
        orders.close()
        client.close()
