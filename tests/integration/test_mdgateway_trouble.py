"""A gateway in trouble that is not its clients': it says so once, and what works goes on."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from tests.integration.market_data_processes import (
    PAIR,
    Processes,
    beating_writer,
    channel_to,
    processes_in_memory,
    wait_serving,
)
from tests.unit.market_data_writer import Writer

pytestmark = pytest.mark.integration

Stub = market_data_pb2_grpc.MarketDataServiceStub


@pytest.fixture
def processes() -> Iterator[Processes]:
    with processes_in_memory() as processes:
        yield processes


@pytest.fixture
def writer(processes: Processes) -> Iterator[Writer]:
    with beating_writer(processes) as writer:
        yield writer


def said(processes: Processes) -> str:
    """Return what the gateway wrote to its standard error."""
    return (processes.folder / "gateway.log").read_text()


def test_an_orderly_end_leaves_nothing_to_say(processes: Processes, writer: Writer) -> None:
    """Neither a stream that was open nor the candles' database complains."""
    port = processes.start_gateway("--http-port", "0")
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        writer.trade(1, 20_000, 1)
        request = market_data_pb2.StreamCandlesRequest(pair=PAIR)
        stream: Any = Stub(channel).StreamCandles(request)
        while not next(stream).HasField("candles"):
            pass
        assert processes.kill("gateway", signal.SIGTERM) == 0
        assert list(stream)[-1].goodbye.reason == "DRAINING"
    assert (processes.folder / "run" / "mdgateway" / "candles.duckdb").exists()
    assert said(processes) == ""
