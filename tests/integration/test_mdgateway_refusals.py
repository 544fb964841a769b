"""What the market data gateway refuses at the door: every wrong request, and arbitrary bytes."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from tests.integration.market_data_processes import (
    PAIR,
    PATIENCE_S,
    Processes,
    channel_to,
    refusal,
    wait_serving,
)

pytestmark = pytest.mark.integration

Stub = market_data_pb2_grpc.MarketDataServiceStub


@pytest.mark.parametrize(
    ("method", "request_message", "reason", "field"),
    [
        ("GetTicker", market_data_pb2.GetTickerRequest(pair="NO-PAIR"), "PAIR_UNKNOWN", "pair"),
        ("GetDepth", market_data_pb2.GetDepthRequest(), "PAIR_UNKNOWN", "pair"),
        (
            "GetDepth",
            market_data_pb2.GetDepthRequest(pair=PAIR, level_count=1_001),
            "LEVEL_COUNT_OUT_OF_RANGE",
            "level_count",
        ),
        (
            "StreamDepth",
            market_data_pb2.StreamDepthRequest(pair=PAIR, level_count=-2),
            "LEVEL_COUNT_OUT_OF_RANGE",
            "level_count",
        ),
        (
            "StreamDepth",
            market_data_pb2.StreamDepthRequest(pair=PAIR, interval_ms=-5),
            "INTERVAL_OUT_OF_RANGE",
            "interval_ms",
        ),
        (
            "StreamTrades",
            market_data_pb2.StreamTradesRequest(pair=PAIR, from_trade_number=-1),
            "TRADE_NUMBER_OUT_OF_RANGE",
            "from_trade_number",
        ),
        (
            "StreamTicker",
            market_data_pb2.StreamTickerRequest(pair="X" * 1_000),
            "PAIR_UNKNOWN",
            "pair",
        ),
        (
            "StreamDepth",
            market_data_pb2.StreamDepthRequest(pair=PAIR, level_count=1 << 30),
            "LEVEL_COUNT_OUT_OF_RANGE",
            "level_count",
        ),
        (
            "GetMarketStatus",
            market_data_pb2.GetMarketStatusRequest(pair="NO-PAIR"),
            "PAIR_UNKNOWN",
            "pair",
        ),
        (
            "ListTrades",
            market_data_pb2.ListTradesRequest(pair=PAIR, page_size=1_001),
            "PAGE_SIZE_OUT_OF_RANGE",
            "page_size",
        ),
        (
            "ListTrades",
            market_data_pb2.ListTradesRequest(pair=PAIR, from_trade_number=-1),
            "TRADE_NUMBER_OUT_OF_RANGE",
            "from_trade_number",
        ),
        (
            "StreamOrders",
            market_data_pb2.StreamOrdersRequest(pair="NO-PAIR"),
            "PAIR_UNKNOWN",
            "pair",
        ),
    ],
)
def test_a_wrong_request_is_refused_by_field(
    shared_port: str, method: str, request_message: object, reason: str, field: str
) -> None:

    def call() -> None:
        answer = getattr(Stub(channel), method)(request_message, timeout=PATIENCE_S)
        if method.startswith("Stream"):
            list(answer)

    with channel_to(shared_port) as channel, pytest.raises(grpc.RpcError) as caught:
        call()
    assert refusal(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)


@pytest.fixture(scope="module")
def shared_port() -> Iterator[str]:
    """One gateway without an engine for all tests of what is refused at the door."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    processes = Processes(folder)
    yield processes.start_gateway()
    processes.close()
    shutil.rmtree(folder)


@settings(max_examples=200)
@given(
    method=st.sampled_from(
        [
            *("GetTicker", "GetDepth", "GetMarketStatus", "ListTrades", "GetCandles", "Nothing"),
            *("StreamDepth", "StreamTrades", "StreamTicker", "StreamMarketStatus"),
            *("StreamCandles", "StreamOrders"),
        ]
    ),
    content=st.binary(max_size=200),
)
def test_arbitrary_bytes_never_break_it(shared_port: str, method: str, content: bytes) -> None:
    with channel_to(shared_port) as channel:
        call: Any = channel.unary_stream(f"/exchange.v1.MarketDataService/{method}")
        answers = call(content, timeout=PATIENCE_S)
        status = grpc.StatusCode.OK
        try:
            next(answers)
        except grpc.RpcError as error:
            status = error.code()
        answers.cancel()
        assert status in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
        wait_serving(channel, "alive")


def test_bytes_that_are_no_http_do_not_break_it(shared_port: str) -> None:
    with socket.create_connection(("127.0.0.1", int(shared_port)), PATIENCE_S) as raw:
        raw.sendall(os.urandom(4_096))
        while raw.recv(4_096):
            pass
    with channel_to(shared_port) as channel:
        wait_serving(channel, "alive")
