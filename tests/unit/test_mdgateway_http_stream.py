"""WebSocket at the door: what is told, to whom, and in which order."""

import asyncio
import contextlib
import json
import random
import struct
import zlib
from pathlib import Path

import pytest

from mdgateway.book.reader import FeedState
from tests.unit.market_data_door import (
    GOOD,
    HANDSHAKE,
    PAIR,
    PATIENCE_S,
    Book,
    Door,
    Json,
    depth,
    follow,
    run,
)


def random_steps(door: Door, chance: random.Random, count: int) -> None:
    for _ in range(count):
        for _ in range(chance.randrange(4)):
            side, away = chance.randrange(1, 3), chance.randrange(40)
            price = 100 - away if side == 1 else 110 + away
            door.writer.level(side, price, chance.choice((0, chance.randrange(1, 9))))
        door.step()


def test_everybody_rebuilds_the_same_book_whenever_he_came(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")

    async def test(door: Door) -> None:
        chance, followers = random.Random(seed), []
        for levels in (20, 20, 5, 1_000, 20):
            followers.append(await depth(door, levels))
            random_steps(door, chance, 20)
        door.writer.level(1, 100, 1_000)
        door.step()
        publication = door.market.publications[PAIR]
        assert publication.book is not None
        for (socket, book), levels in zip(followers, (20, 20, 5, 1_000, 20), strict=True):
            await follow(socket, book, publication.sequence)
            bids, asks = publication.book.top(levels)
            expected = {(1, p): (q, n) for p, q, n in bids.tolist()}
            expected |= {(2, p): (q, n) for p, q, n in asks.tolist()}
            assert book.flat() == expected
            assert book.snapshots == 1
            assert book.updates > 0

    run(tmp_path, test)


@pytest.mark.parametrize("compress", [0, 15])
def test_compressed_and_plain_frames_say_the_same(tmp_path: Path, compress: int) -> None:
    async def test(door: Door) -> None:
        for tick in range(60):
            door.writer.level(1, 20 + tick, tick + 1)
        door.step()
        socket = await door.connect(compress=compress)
        assert socket.inner.compress == compress
        book = Book()
        await socket.ask(op="subscribe", channel="depth", pairs=[PAIR], levels=100, interval_ms=0)
        book.take(await socket.until(lambda one: one["type"] == "snapshot"))
        for start in range(20):
            for tick in range(40):
                door.writer.level(1, 20 + tick, start + tick + 2)
            door.step()
        await follow(socket, book, door.market.publications[PAIR].sequence)
        assert book.updates > 1

    run(tmp_path, test)


@pytest.mark.parametrize("window", [9, 12])
def test_a_client_with_a_small_window_can_read_every_frame(tmp_path: Path, window: int) -> None:
    offer = f"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits={window}\r\n"
    shake = HANDSHAKE[:-2] + offer.encode() + b"\r\n"

    async def test(door: Door) -> None:
        for tick in range(1, 100):
            door.writer.level(1, tick, 5_000 - tick * 37, tick)
        door.step()
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(shake)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert f"server_max_window_bits={window}".encode() in head
        text = json.dumps(GOOD | {"levels": 100}).encode()
        writer.write(struct.pack("!BB", 0x81, 0x80 | len(text)) + b"\0\0\0\0" + text)
        inflater, book, compressed = zlib.decompressobj(wbits=-window), Book(), 0
        while not book.snapshots:
            first, length = await asyncio.wait_for(reader.readexactly(2), PATIENCE_S)
            if length == 126:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
            payload = await reader.readexactly(length)
            if first & 0x40:
                compressed += 1
                payload = inflater.decompress(payload + b"\0\0\xff\xff")
            message = json.loads(payload)
            if message["type"] == "snapshot":
                book.take(message)
        assert compressed == 1
        writer.close()

    run(tmp_path, test)


def test_only_snapshots_are_whole_each_time(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket, book = await depth(door, only_snapshots=True)
        for price in 101, 102, 103:
            door.writer.level(1, price, 1)
            door.step()
        await follow(socket, book, door.market.publications[PAIR].sequence)
        assert (book.snapshots, book.updates) == (4, 0)

    run(tmp_path, test)


def test_every_trade_is_told_once_from_any_number(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for number in range(1, 1_201):
            door.writer.trade(1 + number % 2, 100, number)
            if number % 400 == 0:
                door.step()
        numbers: dict[int, list[int]] = {}
        sockets = {}
        for start in (1, 700, 1_201, 1_205):
            sockets[start] = socket = await door.connect()
            answer = await socket.ask(
                op="subscribe", channel="trades", pairs=[PAIR], from_trade_number=start
            )
            assert answer["from_trade_number"] == start
            numbers[start] = []
        for number in range(1_201, 1_211):
            door.writer.trade(1, 100, number)
            door.step()
        for start, socket in sockets.items():
            while not numbers[start] or numbers[start][-1] < 1_210:
                message = await socket.until(lambda one: one["type"] == "trades")
                numbers[start] += [one["trade_number"] for one in message["trades"]]
            assert numbers[start] == list(range(start, 1_211))

    run(tmp_path, test)


def test_trades_that_are_gone_are_said_to_be_missed(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for number in range(200):
            door.writer.trade(1, 100, number + 1)
            door.step()
        socket = await door.connect()
        await socket.ask(op="subscribe", channel="trades", pairs=[PAIR], from_trade_number=1)
        notice = await socket.until(lambda one: one["type"] == "notice")
        assert notice["notice"] == "missed"
        assert notice["channel"] == "trades"
        assert notice["missed_count"] == 200 - 64
        trades = await socket.until(lambda one: one["type"] == "trades")
        assert trades["trades"][0]["trade_number"] == 200 - 64 + 1

    run(tmp_path, test, gateway={"trade_capacity": 64})


def test_a_trade_far_ahead_ends_the_subscription_only(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket = await door.connect()
        await socket.ask(op="subscribe", channel="trades", pairs=[PAIR], from_trade_number=1 << 40)
        ended = await socket.until(lambda one: one["type"] == "ended")
        assert ended["reason"] == "TRADE_NUMBER_OUT_OF_RANGE"
        assert (await socket.ask(op="ping", id=1))["type"] == "pong"
        again = await socket.ask(op="subscribe", channel="trades", pairs=[PAIR])
        assert again["type"] == "subscribed"

    run(tmp_path, test)


def test_ticker_and_status_tell_what_is_and_what_changed(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket = await door.connect()
        await socket.ask(op="subscribe", channel="ticker", pairs=[PAIR], interval_ms=0)
        await socket.ask(op="subscribe", channel="status", pairs=[PAIR])
        ticker = await socket.until(lambda one: one["type"] == "ticker")
        assert ticker["best_bid"] == {"price": "1.00", "quantity": "0.00005"}
        assert ticker["last_trade"] is None
        door.writer.trade(2, 100, 3)
        door.writer.status(3)
        door.step()
        notice = await socket.until(lambda one: one["type"] == "notice")
        assert (notice["notice"], notice["status"]) == ("pair_status", "halted")
        status = await socket.until(
            lambda one: one["type"] == "status" and one["status"] == "halted"
        )
        assert status["engine_state"] == "ready"
        # The status is content of a higher rank: it comes before the ticker of the same moment.
        ticker = await socket.until(lambda one: one["type"] == "ticker")
        assert ticker["last_trade"]["side"] == "sell"

    run(tmp_path, test)


def test_a_heartbeat_each_second_counts_up(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket = await door.connect()
        await socket.ask(op="subscribe", channel="heartbeat", pairs=[PAIR])
        await socket.ask(op="subscribe", channel="depth", pairs=[PAIR])
        beats: list[Json] = []
        while len(beats) < 3:
            door.step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    message = await socket.next()
                    if message["type"] == "heartbeat":
                        beats.append(message)
        assert [one["number"] for one in beats] == [2, 3, 4]
        assert beats[0]["sequence"] == door.market.publications[PAIR].sequence

    run(tmp_path, test, gateway={"heartbeat_ms": 20})


def test_an_engine_that_dies_and_comes_back_is_told_before_its_book(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket, book = await depth(door)
        door.writer.restart()
        door.step()
        door.step()
        kinds = []
        while "snapshot" not in kinds:
            message = await socket.next()
            kinds.append(message.get("notice", message["type"]))
            if message["type"] == "snapshot":
                book.take(message)
        assert kinds == ["engine_restarted", "snapshot"]
        assert book.epoch == 2

    run(tmp_path, test)


def test_a_newcomer_hears_first_that_there_is_no_engine(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        door.writer.owned.close()
        publication = door.market.publications[PAIR]
        while publication.state is FeedState.LIVE:
            door.market.step()
        socket = await door.connect()
        await socket.ask(op="subscribe", channel="depth", pairs=[PAIR])
        notice = await socket.next()
        assert notice["notice"] == "engine_down"
        assert (await socket.next())["type"] == "snapshot"
        door.writer.restart()

    run(tmp_path, test)


def test_unsubscribing_ends_content_and_the_last_one_gives_all_back(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket, _ = await depth(door)
        await socket.ask(op="subscribe", channel="trades", pairs=[PAIR])
        assert door.market.open_count == 2
        answer = await socket.ask(op="unsubscribe", id="x", channel="depth", pairs=[PAIR])
        assert answer == {
            "type": "unsubscribed",
            "id": "x",
            "channel": "depth",
            "pairs": [PAIR],
        }
        socket.told.clear()
        door.writer.level(1, 101, 1)
        door.step()
        await socket.ask(op="unsubscribe", channel="trades", pairs=[PAIR])
        assert not [one for one in socket.told if one.get("channel") == "depth"]
        refused = await socket.ask(op="unsubscribe", channel="trades", pairs=[PAIR])
        assert refused["reason"] == "NOT_SUBSCRIBED"
        assert door.market.open_count == 0
        assert not door.server.hub._feeds
        assert not door.server.hub._groups

    run(tmp_path, test)


def test_subscribing_again_replaces_and_begins_with_a_snapshot(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket, _ = await depth(door, 20)
        for levels in (20, 5):
            answer = await socket.ask(
                op="subscribe", channel="depth", pairs=[PAIR], levels=levels, interval_ms=0
            )
            assert answer["levels"] == levels
            snapshot = await socket.until(lambda one: one["type"] == "snapshot")
            assert snapshot["levels"] == levels
        assert door.market.open_count == 1
        door.writer.level(1, 101, 1)
        door.step()
        update = await socket.until(lambda one: one["type"] == "update")
        socket.told.clear()
        await socket.ask(op="ping")
        assert not socket.told, "the same change was told twice"
        assert update["sequence"] == door.market.publications[PAIR].sequence

    run(tmp_path, test)


def test_a_goodbye_says_where_to_go_on(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket, _ = await depth(door)
        await socket.ask(op="subscribe", channel="trades", pairs=[PAIR])
        door.writer.trade(1, 100, 1)
        door.step()
        await door.market.goodbye()
        assert await socket.end() == (1001, "DRAINING")
        goodbye = socket.told[-1]
        assert goodbye == {"type": "goodbye", "reason": "DRAINING", "resume_from": {PAIR: 2}}
        assert door.market.open_count == 0

    run(tmp_path, test)
