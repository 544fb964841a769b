"""REST and the page at the door: what is answered, what is refused, and what costs nothing."""

import asyncio
import contextlib
import gzip
import http.client
import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from exchange.book_layout import EVENT_LEVEL
from mdgateway.feed.candles import Candle, CandlePage, Interval
from mdgateway.keys.key_file import add_key
from tests.unit.market_data_door import PAIR, PATIENCE_S, Door, Json, raw_socket, run, tier, turns

ROOT = Path(__file__).resolve().parents[2]


def test_depth_is_the_book_as_deep_as_asked(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for price in range(50, 100):
            door.writer.level(1, price, price)
        door.step()
        publication = door.market.publications[PAIR]
        for levels in 1, 7, 20, 1_000:
            depth = await door.get_json(f"/v1/depth/{PAIR}?levels={levels}")
            expected = publication.snapshot(levels)
            assert depth["sequence"] == expected.sequence
            assert depth["checksum"] == expected.checksum
            assert [
                (int(price.replace(".", "")), int(quantity.replace(".", "")), orders)
                for price, quantity, orders in depth["bids"]
            ] == [tuple(row) for row in expected.bids.tolist()]
        assert len((await door.get_json(f"/v1/depth/{PAIR}"))["bids"]) == 20

    run(tmp_path, test)


def test_trades_are_paged_backwards_without_a_hole(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        assert (await door.get_json(f"/v1/trades/{PAIR}"))["trades"] == []
        for number in range(1, 251):
            door.writer.trade(1, 100, number)
            if number % 50 == 0:
                door.step()
        numbers: list[int] = []
        path, before = f"/v1/trades/{PAIR}?limit=60", ""
        while True:
            page = await door.get_json(path + before)
            numbers += [one["trade_number"] for one in page["trades"]]
            if page["next_before"] is None:
                break
            before = f"&before={page['next_before']}"
        assert numbers == list(range(250, 0, -1))
        assert (await door.get_json(path + "&before=1"))["trades"] == []

    run(tmp_path, test)


def test_candles_are_what_their_source_says_and_are_paged(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        second_ns = 1_000_000_000
        for minute in range(10):
            door.writer.time_ns = 1_700_000_000 * second_ns + minute * 60 * second_ns
            for _ in range(3):
                door.writer.trade(1, 100 + minute, 2)
            door.step()
        source = door.market.publications[PAIR].candles
        assert source is not None
        page: CandlePage = await source.page(Interval.MINUTE, 0, 1 << 62, 1_000)
        assert len(page.candles) == 10
        found: list[Json] = []
        path, to = f"/v1/candles/{PAIR}?limit=4", ""
        while True:
            answer = await door.get_json(path + to)
            found = answer["candles"] + found
            if answer["next_to"] is None:
                break
            to = f"&to={answer['next_to']}"
        assert [flat(one) for one in found] == [flat_candle(one) for one in page.candles]
        start = found[3]["start_s"]
        part = await door.get_json(f"/v1/candles/{PAIR}?from={start}&to={found[6]['start_s']}")
        assert part["candles"] == found[3:6]

    run(tmp_path, test, candles=True)


def flat(candle: Json) -> tuple[int, ...]:
    prices = (int(candle[name].replace(".", "")) for name in ("open", "high", "low", "close"))
    return candle["start_s"], *prices, int(candle["volume"].replace(".", "")), candle["trade_count"]


def flat_candle(one: Candle) -> tuple[int, ...]:
    prices = one.open_ticks, one.high_ticks, one.low_ticks, one.close_ticks
    return one.start_ns // 1_000_000_000, *prices, one.lots, one.trade_count


@pytest.mark.parametrize(
    "path",
    ["depth/{}", "trades/{}", "ticker/{}", "ticker", "status", "instruments", "openapi.json"],
)
def test_what_a_client_holds_is_not_sent_again_until_it_changed(tmp_path: Path, path: str) -> None:
    async def test(door: Door) -> None:
        url = "/v1/" + path.format(PAIR)
        status, headers, body = await door.get(url)
        tag = headers["ETag"]
        assert (status, bool(body)) == (200, True)
        assert headers["Cache-Control"] == "public, max-age=0, must-revalidate"
        for held in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
            status, headers, body = await door.get(url, {"If-None-Match": held})
            assert (status, body, headers["ETag"]) == (304, b"", tag)
        assert (await door.get(url, {"If-None-Match": '"x"'}))[0] == 200
        door.writer.trade(1, 100, 1)
        door.writer.status(2)
        door.step()
        status, headers, _ = await door.get(url, {"If-None-Match": tag})
        assert status == (304 if path == "openapi.json" else 200)
        assert (headers["ETag"] == tag) == (path == "openapi.json")

    run(tmp_path, test)


def test_the_tag_of_depth_begins_with_epoch_and_sequence(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        depth = await door.get_json(f"/v1/depth/{PAIR}")
        _, headers, _ = await door.get(f"/v1/depth/{PAIR}")
        place = f"{depth['epoch']}-{depth['sequence']}"
        assert headers["ETag"].startswith(f'W/"{place}-')

    run(tmp_path, test)


def test_head_is_an_answer_without_its_body_and_packed_is_the_same(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for price in range(1, 100):
            door.writer.level(1, price, price)
        door.step()
        url = f"/v1/depth/{PAIR}?levels=100"
        plain = {"Accept-Encoding": "identity"}
        _, headers, body = await door.get(url, plain)
        status, head, nothing = await door.get(url, plain, "HEAD")
        assert (status, nothing) == (200, b"")
        assert head["ETag"] == headers["ETag"]
        assert int(head["Content-Length"]) == len(body)
        # By hand, because a client library unpacks without being asked.
        asked = asyncio.to_thread(ask_raw, door.port, "GET", url, Accept_Encoding="gzip")
        _, headers, packed = await asked
        assert headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed) == body

    run(tmp_path, test)


def ask_raw(
    port: int, method: str, path: str, **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    """Send a path as it stands and return what comes as it is: other clients tidy both up."""
    given = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    with contextlib.closing(given) as connection:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        with connection.getresponse() as answer:
            return answer.status, dict(answer.headers.items()), answer.read()


REFUSED = [
    ("GET", "/v1/depth/BTC-EUR", 404, "PAIR_UNKNOWN", "pair"),
    ("GET", "/v1/depth/..%2f..%2fetc", 404, "PAIR_UNKNOWN", "pair"),
    ("GET", f"/v1/depth/{PAIR}?levels=1001", 400, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    ("GET", f"/v1/depth/{PAIR}?levels=0", 400, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    ("GET", f"/v1/depth/{PAIR}?levels=-5", 400, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    ("GET", f"/v1/depth/{PAIR}?levels=2_0", 400, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    ("GET", f"/v1/depth/{PAIR}?levels=%D9%A5", 400, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    ("GET", f"/v1/depth/{PAIR}?levels={'9' * 500}", 400, "LEVEL_COUNT_OUT_OF_RANGE", "levels"),
    ("GET", f"/v1/depth/{PAIR}?level=5", 400, "PARAMETER_UNKNOWN", "parameter"),
    ("GET", f"/v1/depth/{PAIR}?levels=5&levels=6", 400, "PARAMETER_REPEATED", "parameter"),
    ("GET", f"/v1/trades/{PAIR}?limit=1001", 400, "LIMIT_OUT_OF_RANGE", "limit"),
    ("GET", f"/v1/trades/{PAIR}?before=0", 400, "TRADE_NUMBER_OUT_OF_RANGE", "before"),
    ("GET", f"/v1/candles/{PAIR}?interval=2m", 400, "INTERVAL_OUT_OF_RANGE", "interval"),
    ("GET", f"/v1/candles/{PAIR}?from=x", 400, "TIME_OUT_OF_RANGE", "from"),
    ("GET", f"/v1/candles/{PAIR}", 503, "CANDLES_UNAVAILABLE", "pair"),
    ("GET", "/v1/status?x=1", 400, "PARAMETER_UNKNOWN", "parameter"),
    ("GET", "/v1/", 404, "PATH_UNKNOWN", "path"),
    ("GET", "/v1/nothing", 404, "PATH_UNKNOWN", "path"),
    ("GET", "/v1/stream", 400, "HANDSHAKE_INVALID", "upgrade"),
    ("GET", "/nothing.html", 404, "PATH_UNKNOWN", "path"),
    ("GET", "/../../pyproject.toml", 404, "PATH_UNKNOWN", "path"),
    ("GET", "/..%2f..%2fpyproject.toml", 404, "PATH_UNKNOWN", "path"),
    ("GET", "/allowed_styles.txt", 404, "PATH_UNKNOWN", "path"),
    ("POST", "/v1/status", 405, "METHOD_NOT_ALLOWED", "method"),
    ("DELETE", "/", 405, "METHOD_NOT_ALLOWED", "method"),
]


def test_refusals_say_field_value_and_limit(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for method, path, status, reason, field in REFUSED:
            got, headers, content = await asyncio.to_thread(ask_raw, door.port, method, path)
            body = json.loads(content)
            assert (got, body["reason"], body["field"]) == (status, reason, field), path
            assert set(body) == {"reason", "message", "field", "value", "limit"}
            assert len(body["value"]) <= 101
            assert headers["Content-Type"] == "application/json"
            assert headers["Cache-Control"] == "no-store"
            assert "aiohttp" not in str(headers)

    run(tmp_path, test)


def test_there_is_no_book_before_an_engine(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        door.market.publications[PAIR].book = None
        for path in "depth", "ticker", "trades":
            status, _, body = await door.get(f"/v1/{path}/{PAIR}")
            assert (status, json.loads(body)["reason"]) == (503, "BOOK_UNAVAILABLE")
        assert (await door.get_json("/v1/ticker")) == {"tickers": []}
        assert (await door.get_json("/v1/status"))["pairs"][0]["ready"] is False

    run(tmp_path, test)


def test_who_asks_too_often_is_told_to_wait_and_others_are_not(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        statuses = [(await door.get("/v1/status"))[0] for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        status, headers, body = await door.get("/v1/status")
        assert (status, json.loads(body)["reason"]) == (429, "RATE_LIMIT")
        assert headers["Retry-After"] == "1"

    run(tmp_path, test, tiers=tier("professional", requests_per_second=1))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/status", {"X-Market-Data-Key": "hmd_guessed"}, 401),
        ("GET", "/v1/stream", {}, 400),
        ("GET", "/v1/stream", {"X-Market-Data-Key": "hmd_guessed"}, 401),
        ("POST", "/v1/status", {}, 405),
        ("OPTIONS", "/v1/status", {}, 204),
        ("GET", "/nothing", {}, 404),
    ],
)
def test_what_is_refused_counts_like_everything_else(
    tmp_path: Path, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    async def test(door: Door) -> None:
        answers = [await door.get(path, headers, method) for _ in range(20)]
        statuses = [answer[0] for answer in answers]
        assert statuses[:5] == [status] * 5
        assert set(statuses[5:]) <= {status, 429}
        assert statuses.count(429) > 0
        assert (await door.get("/v1/status"))[0] == 429

    add_key(tmp_path / "keys.json", "basic", 0)
    rare = tier("professional", requests_per_second=1)
    run(tmp_path, test, tiers=rare, keys=tmp_path / "keys.json")


def test_a_tier_bounds_depth(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        status, _, body = await door.get(f"/v1/depth/{PAIR}?levels=101")
        assert (status, json.loads(body)["limit"]) == (400, "from 1 to 100")

    run(tmp_path, test, anonymous_tier="anonymous")


def test_any_origin_may_read_and_show_its_key(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        status, headers, body = await door.get(f"/v1/depth/{PAIR}", method="OPTIONS")
        assert (status, body) == (204, b"")
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert "X-Market-Data-Key" in headers["Access-Control-Allow-Headers"]
        _, headers, _ = await door.get(f"/v1/depth/{PAIR}")
        assert headers["Access-Control-Allow-Origin"] == "*"

    run(tmp_path, test)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX-",
    ],
)
def test_a_request_that_never_ends_is_cut_off(tmp_path: Path, sent: bytes) -> None:
    async def test(door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        writer.close()
        assert (await door.get("/v1/status"))[0] == 200

    run(tmp_path, test, header_timeout_s=1)


def test_dripping_headers_do_not_buy_time(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"GET /v1/status HTTP/1.1\r\n")
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(b"X-A: b\r\n")
            await asyncio.wait([ended], timeout=0.1)
        content = ended.result() if ended.exception() is None else b""
        # It ends by the time that passed, or because there are more headers than anybody needs.
        assert content == b"" or content.startswith(b"HTTP/1.1 400 ")
        writer.close()

    run(tmp_path, test, header_timeout_s=1)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
    ],
)
def test_giant_and_malformed_requests_are_refused_and_not_logged(
    tmp_path: Path, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer
        writer.close()
        assert (await door.get("/v1/status"))[0] == 200

    run(tmp_path, test)
    assert not caplog.records


def test_a_body_is_answered_and_ends_the_connection(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        head = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        writer.write(head + b"x" * 10_000)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close" in answer
        # A reset is an end, too: there was something unread on the way.
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()

    run(tmp_path, test)


def test_an_answer_that_nobody_takes_ends_with_its_connection(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for start in range(1, 1_000, 100):
            tens = range(start, start + 100)
            door.writer.batch((EVENT_LEVEL, 1, price, price, 1, 0) for price in tens)
            door.step()
        given = raw_socket(door.port)
        request = f"GET /v1/depth/{PAIR}?levels=1000 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        await asyncio.to_thread(given.sendall, request * 30)
        await turns(lambda: door.server.connections.count == 1)
        await turns(lambda: door.server.connections.count == 0)
        given.close()
        assert (await door.get("/v1/status"))[0] == 200

    run(tmp_path, test, slow_limit_ms=300, buffer_bytes=16_384, socket_buffer_bytes=8_192)


# The page.


def test_the_page_is_served_with_a_policy_that_lets_only_itself_run(tmp_path: Path) -> None:
    web = tmp_path / "web"
    (web / "part").mkdir(parents=True)
    (web / "index.html").write_text(
        "<script>go()</script><script src='a.js'></script><style>p{}</style><p>it</p>"
    )
    (web / "part" / "a.js").write_text("export const a = 1;\n" * 200)
    (web / ".hidden.js").write_text("secret")
    (web / "key.pem").write_text("secret")
    (web / "link.js").symlink_to(ROOT / "pyproject.toml")

    async def test(door: Door) -> None:
        status, headers, body = await door.get("/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        policy = headers["Content-Security-Policy"]
        # The SHA-256 of "go()" and of "p{}".
        assert "script-src 'self' 'sha256-" in policy
        assert policy.count("sha256-") == 2
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert (await door.get("/index.html"))[2] == body
        status, headers, body = await door.get("/part/a.js")
        assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
        assert body == (web / "part" / "a.js").read_bytes()
        again = await door.get("/part/a.js", {"If-None-Match": headers["ETag"]})
        assert (again[0], again[2]) == (304, b"")
        for path in "/.hidden.js", "/key.pem", "/part", "/part/", "/nix.js", "/link.js":
            assert (await door.get(path))[0] == 404, path

    run(tmp_path, test, web=web)


def test_the_installed_page_is_complete(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        status, headers, _ = await door.get("/")
        assert status == 200
        assert "sha256-" in headers["Content-Security-Policy"]

    run(tmp_path, test)


def seeded() -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def test_any_path_and_parameter_gets_an_answer(tmp_path: Path) -> None:
    chance = seeded()
    pieces = ["v1", "depth", PAIR, "..", "%00", "%2e%2e", "é", "ticker", "?", "&", "=", "levels"]
    pieces += ["9" * 30, "-1", "\\", ";", "#", "stream", " ", "%", "limit", "before", "interval"]

    async def test(door: Door) -> None:
        for _ in range(300):
            parts = [chance.choice(pieces) for _ in range(chance.randrange(1, 7))]
            path = "/" + "".join(part + chance.choice(("", "/")) for part in parts)
            path = path.replace(" ", "%20").encode("utf-8").decode("latin-1")
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            writer.write(request.encode("latin-1"))
            answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
            status = int(answer.split(b" ", 2)[1])
            assert status in {200, 400, 404, 503}, (path, answer)
            writer.close()

    run(tmp_path, test, tiers=tier("professional", requests_per_second=10_000))
