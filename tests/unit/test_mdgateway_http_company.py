"""WebSocket at the door in bad company: what is refused, what ends, that nobody else notices."""

import asyncio
import json
import struct
from pathlib import Path

import aiohttp
import pytest

from exchange.book_layout import EVENT_LEVEL
from mdgateway.keys.key_file import add_key, revoke_key
from tests.unit.market_data_door import (
    GOOD,
    HANDSHAKE,
    PAIR,
    PATIENCE_S,
    Door,
    Json,
    depth,
    follow,
    raw_socket,
    run,
    tier,
    turns,
)

DAY_NS = 86_400 * 1_000_000_000
NOW_NS = 1_700_000_000_000_000_000
BAD: list[tuple[Json, str, str]] = [
    ({}, "OP_UNKNOWN", "op"),
    ({"op": "dance"}, "OP_UNKNOWN", "op"),
    ({"op": ["subscribe"]}, "OP_UNKNOWN", "op"),
    (GOOD | {"channel": "gossip"}, "CHANNEL_UNKNOWN", "channel"),
    (GOOD | {"channel": None}, "CHANNEL_UNKNOWN", "channel"),
    (GOOD | {"pairs": ["BTC-EUR"]}, "PAIR_UNKNOWN", "pair"),
    (GOOD | {"pairs": [1]}, "PAIR_UNKNOWN", "pair"),
    (GOOD | {"pairs": []}, "PAIRS_INVALID", "pairs"),
    (GOOD | {"pairs": PAIR}, "PAIRS_INVALID", "pairs"),
    (GOOD | {"pairs": [PAIR] * 101}, "PAIRS_INVALID", "pairs"),
    (GOOD | {"pairs": [PAIR, PAIR]}, "PAIRS_INVALID", "pairs"),
    (GOOD | {"levels": 10**9}, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    (GOOD | {"levels": 7}, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    (GOOD | {"levels": -1}, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    (GOOD | {"levels": True}, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    (GOOD | {"levels": 20.0}, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    (GOOD | {"levels": [20]}, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    (GOOD | {"interval_ms": 1}, "INTERVAL_OUT_OF_RANGE", "interval_ms"),
    (GOOD | {"only_snapshots": 1}, "FIELD_INVALID", "only_snapshots"),
    (GOOD | {"level": 20}, "FIELD_UNKNOWN", "field"),
    (GOOD | {"id": {}}, "ID_INVALID", "id"),
    (GOOD | {"id": "x" * 65}, "ID_INVALID", "id"),
    (GOOD | {"channel": "candles"}, "CANDLES_UNAVAILABLE", "pair"),
    (GOOD | {"channel": "candles", "interval": "2m"}, "INTERVAL_OUT_OF_RANGE", "interval"),
    (
        GOOD | {"channel": "trades", "from_trade_number": 0},
        "TRADE_NUMBER_OUT_OF_RANGE",
        "from_trade_number",
    ),
    ({"op": "authenticate", "key": 5}, "KEY_INVALID", "key"),
    ({"op": "authenticate", "key": "hmd_" + "A" * 43}, "KEY_UNKNOWN", "key"),
    ({"op": "ping", "pairs": [PAIR]}, "FIELD_UNKNOWN", "field"),
]


def test_wrong_requests_are_refused_with_field_value_and_limit(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket, book = await depth(door)
        for number, (request, reason, field) in enumerate(BAD):
            answer = await socket.ask(**{"id": number, **request})
            assert answer["type"] == "refused", request
            assert (answer["reason"], answer["field"]) == (reason, field), answer
            assert set(answer) - {"id"} == {
                "type",
                "reason",
                "message",
                "field",
                "value",
                "limit",
            }
            assert answer.get("id") == (None if reason == "ID_INVALID" else number)
        for text in ("", "{", "[]", "null", '"x"', "NaN", '{"op": NaN}', "[" * 2_000, "\ud7ff"):
            await socket.inner.send_str(text)
            answer = await socket.until(lambda one: one["type"] == "refused")
            assert answer["reason"] == "MESSAGE_MALFORMED"
        # After all of that the subscription goes on as if nothing had been.
        door.writer.level(1, 101, 1)
        door.step()
        await follow(socket, book, door.market.publications[PAIR].sequence)

    run(tmp_path, test, tiers=tier("professional", messages_per_second=1_000))


def test_a_refusal_repeats_at_most_a_hundred_characters(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket = await door.connect()
        answer = await socket.ask(**(GOOD | {"pairs": ["\ud800" * 500]}))
        assert answer["reason"] == "PAIR_UNKNOWN"
        assert len(answer["value"]) == 101

    run(tmp_path, test)


def test_more_subscriptions_than_the_tier_allows_are_refused_as_a_whole(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket = await door.connect()
        for channel in "depth", "trades":
            answer = await socket.ask(op="subscribe", channel=channel, pairs=[PAIR])
            assert answer["type"] == "subscribed"
        answer = await socket.ask(op="subscribe", channel="ticker", pairs=[PAIR])
        assert answer["reason"] == "SUBSCRIPTION_LIMIT"
        assert (answer["value"], answer["limit"]) == ("3", "2")
        # Replacing one that is there is no further one.
        answer = await socket.ask(op="subscribe", channel="depth", pairs=[PAIR], levels=5)
        assert answer["type"] == "subscribed"

    run(tmp_path, test, tiers=tier("professional", subscription_limit=2))


def test_what_a_tier_does_not_include_is_refused(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket = await door.connect()
        answer = await socket.ask(**(GOOD | {"channel": "orders"}))
        assert answer["reason"] == "TIER_TOO_LOW"
        for field, value in (("levels", 1_000), ("levels", "full"), ("interval_ms", 50)):
            answer = await socket.ask(**(GOOD | {field: value}))
            assert answer["type"] == "refused"
            assert "tier anonymous" in answer["limit"], answer

    run(tmp_path, test, anonymous_tier="anonymous")


def test_binary_frames_end_the_connection(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket = await door.connect()
        await socket.inner.send_bytes(b"\x00\x01")
        assert await socket.end() == (1003, "BINARY_UNSUPPORTED")

    run(tmp_path, test)


ROOT = Path(__file__).resolve().parents[2]


async def shaken(door: Door, more: bytes) -> bytes:
    """Send a handshake and raw bytes after it; return all that comes until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(HANDSHAKE)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    assert head.startswith(b"HTTP/1.1 101")
    writer.write(more)
    rest = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return rest


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (struct.pack("!BBQ", 0x81, 0x80 | 127, 1 << 62) + b"mask" + b"x" * 5_000, 1009),
        (struct.pack("!BBH", 0x81, 0x80 | 126, 60_000) + b"mask" + b"x" * 60_000, 1009),
        (struct.pack("!BB", 0xB1, 0x80) + b"mask", 1002),
        (struct.pack("!BB", 0x83, 0x80) + b"mask", 1002),
        (struct.pack("!BB", 0x81, 0x82) + b"\0\0\0\0" + b"\xff\xfe", 1007),
        (struct.pack("!BB", 0x89, 0x80 | 126) + b"\xff\xff" + b"mask", 1002),
    ],
)
def test_giant_and_malformed_frames_end_with_a_code(
    tmp_path: Path, frame: bytes, code: int
) -> None:
    async def test(door: Door) -> None:
        other, book = await depth(door)
        rest = await shaken(door, frame)
        assert rest[0] == 0x88, rest
        assert struct.unpack("!H", rest[2:4]) == (code,)
        # Nothing but this frame, and its reason is the one the documentation lists.
        reason = rest[4:].decode("ascii")
        assert rest[1] == 2 + len(reason)
        assert f"| {code} | `{reason}` |" in (ROOT / "docs" / "market-data-http.md").read_text()
        door.writer.level(1, 101, 1)
        door.step()
        await follow(other, book, door.market.publications[PAIR].sequence)

    run(tmp_path, test)


def test_a_message_beyond_the_limit_is_too_big_compressed_or_not(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for compress in 0, 15:
            socket = await door.connect(compress=compress)
            await socket.inner.send_str("[" + " " * 100_000 + "]")
            assert await socket.end() == (1009, "MESSAGE_TOO_BIG")

    run(tmp_path, test)


def test_who_subscribes_to_nothing_is_closed(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        idle, (busy, _) = await door.connect(), await depth(door)
        assert await idle.end() == (4001, "SUBSCRIBE_TIMEOUT")
        assert (await busy.ask(op="ping", id=1))["id"] == 1
        assert len(door.server.hub.members) == 1

    run(tmp_path, test, subscribe_timeout_ms=200)


def test_too_many_messages_are_refused_and_then_end_the_connection(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket, (other, book) = await door.connect(), await depth(door)
        for _ in range(200):
            await socket.inner.send_str('{"op":"ping"}')
        assert await socket.end() == (4003, "TOO_MANY_MESSAGES")
        kinds = [one["type"] for one in socket.told]
        assert kinds.count("pong") >= 5
        assert {one["reason"] for one in socket.told if one["type"] == "refused"} == {"RATE_LIMIT"}
        door.writer.level(1, 101, 1)
        door.step()
        await follow(other, book, door.market.publications[PAIR].sequence)

    run(tmp_path, test, tiers=tier("professional", messages_per_second=1))


# Keys.


def test_keys_raise_the_tier_and_end_when_revoked_or_expired(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secret, key = add_key(keys, "professional", NOW_NS)
    short, _ = add_key(keys, "basic", NOW_NS, NOW_NS + DAY_NS)

    async def test(door: Door) -> None:
        socket = await door.connect()
        expired = await socket.ask(op="authenticate", key=short)
        assert expired["reason"] == "KEY_EXPIRED"
        assert short not in json.dumps(expired)
        good = await socket.ask(op="authenticate", id=7, key=secret)
        assert good == {
            "type": "authenticated",
            "id": 7,
            "tier": "professional",
            "expires_ns": None,
        }
        answer = await socket.ask(**(GOOD | {"levels": "full", "interval_ms": 0}))
        assert answer["levels"] == "full"
        other = await door.connect(headers={"X-Market-Data-Key": secret})
        await other.ask(**(GOOD | {"levels": 1_000}))
        plain, _ = await door.connect(), None
        await plain.ask(**GOOD)
        revoke_key(keys, key.id, NOW_NS)
        assert await socket.end() == (4004, "KEY_ENDED")
        assert await other.end() == (4004, "KEY_ENDED")
        assert (await plain.ask(op="ping"))["type"] == "pong"
        refused = await plain.ask(op="authenticate", key=secret)
        assert refused["reason"] == "KEY_UNKNOWN"

    run(tmp_path, test, keys=keys, anonymous_tier="anonymous")


@pytest.mark.parametrize("which", ["wrong", "expired"])
def test_a_wrong_or_expired_key_in_the_header_is_refused_before_the_handshake(
    tmp_path: Path, which: str
) -> None:
    keys = tmp_path / "keys.json"
    expired, _ = add_key(keys, "basic", NOW_NS, NOW_NS + 1)
    secret = expired if which == "expired" else "hmd_" + "A" * 43

    async def test(door: Door) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await door.connect(headers={"X-Market-Data-Key": secret})
        assert error.value.status == 401
        status, _, body = await door.get("/v1/status", {"X-Market-Data-Key": secret})
        assert status == 401
        assert (
            json.loads(body)["reason"] == {"wrong": "KEY_UNKNOWN", "expired": "KEY_EXPIRED"}[which]
        )

    run(tmp_path, test, keys=keys)


def test_connections_are_counted_by_key_and_by_address(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secret, _ = add_key(keys, "basic", NOW_NS)

    async def test(door: Door) -> None:
        mine = [await door.connect() for _ in range(2)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await door.connect()
        assert error.value.status == 429
        # A page is not told that by its browser, and asks without a handshake.
        status, headers, body = await door.get("/v1/stream")
        assert (status, headers["Retry-After"]) == (429, "10")
        assert json.loads(body)["message"] == (
            "address 127.0.0.1 has 2 open connections, as many as the tier anonymous may have"
        )
        # A key is another caller, and what moves to it makes room here.
        await mine[0].ask(op="authenticate", key=secret)
        for _ in range(3):
            assert (await door.get("/v1/stream"))[0] == 400, "who only asks takes no room"
        third = await door.connect()
        refused = await mine[1].ask(op="authenticate", key=secret)
        assert refused["reason"] == "CONNECTION_LIMIT"
        await mine[0].inner.close()
        await turns(lambda: len(door.server.hub.members) == 2)
        assert (await third.ask(op="authenticate", key=secret))["tier"] == "basic"
        for one in mine[1], third:
            await one.inner.close()

    limits = tier("anonymous", connection_limit=2)
    limits["basic"] = tier("basic", connection_limit=1)["basic"]
    run(tmp_path, test, tiers=limits, keys=keys, anonymous_tier="anonymous")


def test_handshakes_are_counted_like_requests(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        statuses = []
        for _ in range(20):
            try:
                await (await door.connect()).inner.close()
                statuses.append(101)
            except aiohttp.WSServerHandshakeError as error:
                statuses.append(error.status)
        assert statuses[:5] == [101] * 5
        assert statuses.count(429) > 0

    run(tmp_path, test, tiers=tier("professional", requests_per_second=1))


def test_connections_of_one_address_have_an_end_whatever_they_ask(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        held = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(3)]
        await turns(lambda: door.server.connections.count == 3)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "CONNECTION_LIMIT"
        writer.close()
        for _, one in held:
            one.close()
        await turns(lambda: door.server.connections.count == 0)
        assert (await door.get("/v1/status"))[0] == 200

    run(tmp_path, test, address_connection_limit=3)


# Slow clients.


def filled(door: Door) -> bool:
    return any(member.is_full for member in door.server.hub.members)


def busy_step(door: Door, round_: int) -> None:
    door.writer.batch((EVENT_LEVEL, 1, tick, round_ + tick, 1, 0) for tick in range(1, 61))
    door.writer.trade(1, 100, 1 + round_ % 9)
    door.step()


def test_who_does_not_read_is_told_nothing_more_and_catches_up_by_itself(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        slow, book = await depth(door, 100)
        await slow.ask(op="subscribe", channel="trades", pairs=[PAIR])
        quick, other = await depth(door, 100)
        transport = slow.inner.get_extra_info("socket")
        assert transport is not None
        slow.inner._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        round_ = 0
        while not filled(door):
            round_ += 1
            busy_step(door, round_)
            await follow(quick, other, door.market.publications[PAIR].sequence)
        hub = door.server.hub
        held = next(member for member in hub.members if member.is_full)
        for _ in range(50):
            round_ += 1
            before = held.transport.get_write_buffer_size()  # type: ignore[attr-defined]
            busy_step(door, round_)
            assert held.transport.get_write_buffer_size() <= before  # type: ignore[attr-defined]
            await follow(quick, other, door.market.publications[PAIR].sequence)
        slow.inner._response.connection.transport.resume_reading()  # type: ignore[union-attr]
        trades: list[int] = [
            one["trade_number"]
            for told in slow.told
            if told["type"] == "trades"
            for one in told["trades"]
        ]
        missed = []
        while book.snapshots < 2 or len(trades) < round_:
            message = await slow.next()
            if message["type"] == "notice":
                missed.append((message["notice"], message["channel"]))
            elif message["type"] == "trades":
                trades += [one["trade_number"] for one in message["trades"]]
            elif message.get("channel") == "depth":
                book.take(message)
        assert missed == [("missed", "depth")]
        assert trades == list(range(1, round_ + 1)), "no trade is lost for being slow"
        busy_step(door, round_ + 1)
        await follow(slow, book, door.market.publications[PAIR].sequence)
        await follow(quick, other, door.market.publications[PAIR].sequence)
        assert book.flat() == other.flat()
        assert other.snapshots == 1, "the quick one never noticed"

    run(
        tmp_path,
        test,
        buffer_bytes=16_384,
        buffer_low_bytes=4_096,
        slow_limit_ms=600_000,
    )


def test_a_client_that_never_reads_is_closed_by_name_and_harms_nobody(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        slow = raw_socket(door.port)
        slow.sendall(HANDSHAKE)
        loop = asyncio.get_running_loop()
        assert (await loop.run_in_executor(None, slow.recv, 4_096)).startswith(b"HTTP/1.1 101")
        text = json.dumps(GOOD | {"levels": 100, "interval_ms": 0}).encode()
        mask = b"\0\0\0\0"
        slow.sendall(struct.pack("!BB", 0x81, 0x80 | len(text)) + mask + text)
        quick, book = await depth(door, 100)
        round_ = 0
        while len(door.server.hub.members) > 1 or round_ < 10:
            round_ += 1
            busy_step(door, round_)
            await follow(quick, book, door.market.publications[PAIR].sequence)
        assert book.snapshots == 1
        await turns(lambda: door.server.connections.count == 1)
        slow.close()

    run(
        tmp_path,
        test,
        buffer_bytes=16_384,
        slow_limit_ms=300,
    )


def test_a_slow_client_that_reads_its_end_learns_the_reason(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        slow, _ = await depth(door, 100)
        slow.inner._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        round_ = 0
        while not filled(door):
            round_ += 1
            busy_step(door, round_)
            await asyncio.sleep(0)
        member = next(iter(door.server.hub.members))
        while not member.ending:
            round_ += 1
            busy_step(door, round_)
            await asyncio.sleep(0)
        slow.inner._response.connection.transport.resume_reading()  # type: ignore[union-attr]
        assert await slow.end() == (4002, "SLOW_CONSUMER")

    run(
        tmp_path,
        test,
        buffer_bytes=16_384,
        slow_limit_ms=300,
    )
