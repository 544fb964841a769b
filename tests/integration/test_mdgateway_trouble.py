"""A gateway in trouble that is not its clients': it says so once, and what works goes on."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from mdgateway.history.store import CandleStore
from tests.integration.market_data_processes import (
    PAIR,
    PATIENCE_S,
    DepthClient,
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


def test_an_engine_that_stands_still_is_told_and_goes_on(processes: Processes) -> None:
    processes.start_engine()
    port = processes.start_gateway()
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        client = DepthClient(channel, 5)
        client.wait(lambda one: one.snapshot_count == 1)
        processes.running["engine"].send_signal(signal.SIGSTOP)
        client.wait(lambda one: len(one.notices) == 1)
        assert client.notices[0].kind == market_data_pb2.NOTICE_KIND_ENGINE_DOWN
        request = market_data_pb2.GetDepthRequest(pair=PAIR)
        depth = Stub(channel).GetDepth(request, timeout=PATIENCE_S).depth
        assert depth.epoch == client.epoch, "the last book stays served"
        processes.running["engine"].send_signal(signal.SIGCONT)
        client.wait(lambda one: len(one.notices) == 2 and one.snapshot_count == 2)
        assert client.notices[1].kind == market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
        assert client.notices[1].message == "the engine is back; nothing is lost"
        assert client.notices[1].epoch == client.notices[0].epoch, "it is the same engine"
        client.close()


@pytest.mark.parametrize("reason", ["not a valid DuckDB database", "lock"])
def test_candles_that_cannot_be_opened_cost_their_history_only(
    processes: Processes, writer: Writer, reason: str
) -> None:
    """The file is garbage, or another process has it."""
    folder = processes.folder / "candles"
    other = CandleStore(folder)
    path = folder / "candles.duckdb"
    if reason != "lock":
        other.close()
        path.write_bytes(b"no database, but as long as one" * 1_000)
    before = path.stat()
    port = processes.start_gateway("--candles", str(folder))
    assert f"the candles in {folder} cannot be opened: " in said(processes)
    assert reason in said(processes)
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        writer.trade(1, 20_000, 1)
        request = market_data_pb2.StreamCandlesRequest(pair=PAIR)
        stream: Any = Stub(channel).StreamCandles(request)
        while not (message := next(stream)).candles.candles:
            pass
        assert message.candles.candles[-1].trade_count == 1
        assert processes.kill("gateway", signal.SIGTERM) == 0
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "Traceback" not in said(processes)
    other.close()
