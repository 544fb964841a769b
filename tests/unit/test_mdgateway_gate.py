"""The gate before the gRPC calls of a gateway, over real sockets."""

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from exchange.service import refusal_in
from exchange.v1 import market_data_pb2 as of
from exchange.v1 import market_data_pb2_grpc
from holdfast.market.client import AsyncMarketData
from mdgateway.grpc_server import service_of
from mdgateway.http.config import add_arguments, http_config
from mdgateway.http.server import admission_of
from mdgateway.keys.admission import GRPC_METADATA_KEY, Admission
from mdgateway.keys.gate import GrpcGate
from mdgateway.keys.key_file import Keyring, add_key, revoke_key
from mdgateway.keys.tiers import TIERS
from tests.unit.market_data_door import PAIR, Door, open_door

Stub = market_data_pb2_grpc.MarketDataServiceStub
Test = Callable[[Door, Any, Admission], Awaitable[None]]
PATIENCE_S = 60


def run(folder: Path, test: Test, **changes: Any) -> None:
    """Run a test at a gated gRPC door; `changes` are those of the anonymous tier."""

    async def main() -> None:
        async with open_door(folder, gateway={"port": 0}) as door:
            tiers = dict(TIERS) | {"anonymous": replace(TIERS["anonymous"], **changes)}
            path = folder / "keys.json"
            admission = Admission(Keyring(path if path.exists() else None), tiers)
            service = service_of(door.market, GrpcGate(admission))
            port = await service.start()
            try:
                async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    await test(door, Stub(channel), admission)
            finally:
                await service.drain()

    asyncio.run(main())


async def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """Return status, reason and field of a call or stream that must be refused."""
    answer = call.read() if hasattr(call, "read") else call
    with pytest.raises(aio.AioRpcError) as caught:
        await answer
    refusal = refusal_in(caught.value)
    assert refusal is not None
    return caught.value.code(), refusal.reason, refusal.metadata["field"]


def depth(**more: Any) -> of.StreamDepthRequest:
    return of.StreamDepthRequest(pair=PAIR, **more)


def with_key(secret: str) -> dict[str, Any]:
    return {"metadata": ((GRPC_METADATA_KEY, secret),), "timeout": PATIENCE_S}


def test_without_a_key_the_anonymous_tier_applies(tmp_path: Path) -> None:
    async def test(door: Door, stub: Any, admission: Admission) -> None:
        first = await stub.StreamDepth(depth(), timeout=PATIENCE_S).read()
        assert first.WhichOneof("event") == "snapshot"
        low = grpc.StatusCode.PERMISSION_DENIED, "TIER_TOO_LOW"
        for request, field in (
            (depth(level_count=-1), "level_count"),
            (depth(level_count=1_000), "level_count"),
            (depth(interval_ms=10), "interval_ms"),
        ):
            assert await refused(stub.StreamDepth(request, timeout=PATIENCE_S)) == (*low, field)
        orders = stub.StreamOrders(of.StreamOrdersRequest(pair=PAIR), timeout=PATIENCE_S)
        assert await refused(orders) == (*low, "channel")
        whole = stub.GetDepth(of.GetDepthRequest(pair=PAIR, level_count=-1), timeout=PATIENCE_S)
        assert await refused(whole) == (*low, "level_count")

    run(tmp_path, test)


def test_streams_are_counted_and_given_back(tmp_path: Path) -> None:
    async def test(door: Door, stub: Any, admission: Admission) -> None:
        first = stub.StreamDepth(depth(), timeout=PATIENCE_S)
        await first.read()
        status, reason, _ = await refused(stub.StreamDepth(depth(), timeout=PATIENCE_S))
        assert (status, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CONNECTION_LIMIT")
        first.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                second = stub.StreamDepth(depth(), timeout=PATIENCE_S)
                with contextlib.suppress(aio.AioRpcError):
                    await second.read()
                    return

    run(tmp_path, test, connection_limit=1, requests_per_second=1_000)


def test_calls_are_counted(tmp_path: Path) -> None:
    async def test(door: Door, stub: Any, admission: Admission) -> None:
        request = of.GetTickerRequest(pair=PAIR)
        for _ in range(5):
            await stub.GetTicker(request, timeout=PATIENCE_S)
        status, reason, _ = await refused(stub.GetTicker(request, timeout=PATIENCE_S))
        assert (status, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT")

    run(tmp_path, test, requests_per_second=1)


def test_a_key_opens_what_its_tier_has_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, key = add_key(path, "professional", time.time_ns())
    spent, _ = add_key(path, "basic", 1, expires_ns=2)

    async def test(door: Door, stub: Any, admission: Admission) -> None:
        call = stub.StreamDepth(depth(level_count=-1), **with_key(secret))
        assert (await call.read()).WhichOneof("event") == "snapshot"
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        for wrong, reason in ((spent, "KEY_EXPIRED"), ("hmd_" + "x" * 43, "KEY_UNKNOWN")):
            found = await refused(stub.GetTicker(of.GetTickerRequest(pair=PAIR), **with_key(wrong)))
            assert found[:2] == (unauthenticated, reason)
        revoke_key(path, key.id, time.time_ns())
        assert admission.keyring.refresh()
        door.writer.level(1, 101, 9)
        door.step()
        assert (await refused(call))[:2] == (unauthenticated, "KEY_ENDED")

    run(tmp_path, test)


@pytest.mark.parametrize("has_keys", [False, True])
def test_every_door_gives_those_without_a_key_the_same(tmp_path: Path, has_keys: bool) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "basic", time.time_ns())
    parser = argparse.ArgumentParser()
    parser.set_defaults(host="127.0.0.1", port=0)
    add_arguments(parser, {})
    config = http_config(parser.parse_args(["--keys", str(path)] if has_keys else []))

    async def grpc_gives(stub: Any) -> list[bool]:
        calls = [
            stub.StreamDepth(depth(level_count=-1), timeout=PATIENCE_S),
            stub.StreamDepth(depth(level_count=500), timeout=PATIENCE_S),
            stub.StreamDepth(depth(interval_ms=50), timeout=PATIENCE_S),
            stub.StreamOrders(of.StreamOrdersRequest(pair=PAIR), timeout=PATIENCE_S),
        ]
        return [await _is_given(call) for call in calls]

    async def websocket_gives(door: Door) -> list[bool]:
        socket = await door.connect()
        asked: list[dict[str, Any]] = [
            {"channel": "depth", "levels": "full"},
            {"channel": "depth", "levels": 500},
            {"channel": "depth", "interval_ms": 50},
            {"channel": "orders"},
        ]
        answers = [await socket.ask(op="subscribe", pairs=[PAIR], **one) for one in asked]
        return [answer["type"] == "subscribed" for answer in answers]

    async def main() -> None:
        tier = config.anonymous_tier
        async with open_door(tmp_path, gateway={"port": 0}, anonymous_tier=tier) as door:
            service = service_of(door.market, GrpcGate(admission_of(config)))
            port = await service.start()
            try:
                async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    given = await grpc_gives(Stub(channel))
            finally:
                await service.drain()
            assert given == await websocket_gives(door) == [not has_keys] * 4
            status, _, _ = await door.get(f"/v1/depth/{PAIR}?levels=500")
            assert (status == 200) is not has_keys

    asyncio.run(main())


async def _is_given(call: Any) -> bool:
    with contextlib.suppress(aio.AioRpcError):
        await call.read()
        call.cancel()
        return True
    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    return False


def test_a_page_of_trades_of_another_history_is_refused(tmp_path: Path) -> None:
    async def test(door: Door, stub: Any, admission: Admission) -> None:
        for _ in range(5):
            door.writer.trade(1, 100, 1)
        door.step()

        def page(held_time_ns: int, first: int = 4) -> Any:
            request = of.ListTradesRequest(
                pair=PAIR, from_trade_number=first, held_time_ns=held_time_ns
            )
            return stub.ListTrades(request, timeout=PATIENCE_S)

        answer = await page(door.writer.time_ns)
        assert [trade.trade_number for trade in answer.trades] == [4, 5]
        for first in 4, 50:
            status, reason, field = await refused(page(1, first))
            assert (status, reason) == (grpc.StatusCode.OUT_OF_RANGE, "TRADES_RESTARTED")
            assert field == "from_trade_number"
        status, reason, _ = await refused(page(1, 1))
        assert (status, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TIME_OUT_OF_RANGE")

    run(tmp_path, test)


def test_the_client_goes_on_in_a_history_that_is_new(tmp_path: Path) -> None:
    @contextlib.asynccontextmanager
    async def gateway(name: str, trade_count: int, port: int) -> AsyncIterator[int]:
        folder = tmp_path / name
        folder.mkdir()
        async with open_door(folder, gateway={"port": port}) as door:
            door.writer.time_ns += port
            for _ in range(trade_count):
                door.writer.trade(1, 100, 1)
            door.step()
            service = service_of(door.market, GrpcGate(Admission(Keyring(None), TIERS)))
            try:
                yield await service.start()
            finally:
                await service.drain()

    async def main() -> None:
        async with gateway("old", 5, 0) as port:
            client = AsyncMarketData(f"127.0.0.1:{port}")
            trades = client.trades(PAIR, 1)
            assert [(await anext(trades)).trade_number for _ in range(5)] == [1, 2, 3, 4, 5]
        # The pair's data were made anew, and have fewer trades than the client has seen.
        async with gateway("new", 2, port), asyncio.timeout(PATIENCE_S), client:
            assert [(await anext(trades)).trade_number for _ in range(2)] == [1, 2]
            await trades.aclose()

    asyncio.run(main())
