"""The market data gateway as a process: before, beside and after an engine, and for bad company."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from exchange.config import load_instrument
from exchange.v1 import enums_pb2, market_data_pb2, market_data_pb2_grpc
from mdgateway.book.depth import Snapshot
from mdgateway.book.reader import BookReader
from tests.integration.market_data_processes import (
    PAIR,
    PATIENCE_S,
    DepthClient,
    Levels,
    Processes,
    Traders,
    beating_writer,
    channel_to,
    processes_in_memory,
    refusal,
    wait_serving,
)
from tests.unit.market_data_writer import Writer

pytestmark = pytest.mark.integration

DOWN = market_data_pb2.NOTICE_KIND_ENGINE_DOWN
RESTARTED = market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
Stub = market_data_pb2_grpc.MarketDataServiceStub


@pytest.fixture
def processes() -> Iterator[Processes]:
    with processes_in_memory() as processes:
        yield processes


@pytest.fixture
def writer(processes: Processes) -> Iterator[Writer]:
    with beating_writer(processes) as writer:
        yield writer


def flat(snapshot: Snapshot) -> Levels:
    """Return a copy of the segment's book as a client holds it."""
    return {
        (side, price): (lots, orders)
        for side, rows in enumerate((snapshot.bids, snapshot.asks), start=1)
        for price, lots, orders in rows.tolist()
    }


def reader_of(processes: Processes) -> BookReader:
    """Return an open reader of the engine's segment."""
    instrument = load_instrument(PAIR, processes.instruments)
    reader = BookReader(instrument, processes.segments, level_capacity=4_096)
    assert reader.open()
    return reader


def engines_book(processes: Processes) -> Snapshot:
    """Return the engine's book while it has nothing to do."""
    reader = reader_of(processes)
    copy = reader.book_copy()
    assert copy is not None
    reader.close()
    return copy


def test_the_gateway_lives_before_its_engine(processes: Processes) -> None:
    port = processes.start_gateway()
    with channel_to(port) as channel:
        wait_serving(channel, "alive")
        for name in "", "marketdata":
            wait_serving(channel, name, wanted=2)
        with pytest.raises(grpc.RpcError) as caught:
            Stub(channel).GetDepth(market_data_pb2.GetDepthRequest(pair=PAIR), timeout=PATIENCE_S)
        assert refusal(caught.value) == (
            grpc.StatusCode.UNAVAILABLE,
            "BOOK_UNAVAILABLE",
            "pair",
        )
        client = DepthClient(channel, 5)
        client.wait(lambda one: bool(one.notices))
        assert client.notices[0].kind == DOWN

        processes.start_engine()
        for name in "", "marketdata":
            wait_serving(channel, name)
        client.wait(lambda one: one.snapshot_count == 1)
        assert client.epoch >= 1
        instruments = Stub(channel).ListInstruments(market_data_pb2.ListInstrumentsRequest())
        assert [one.pair for one in instruments.instruments] == [PAIR]
        assert instruments.instruments[0].tick_size == "0.01"
        client.close()


def test_a_subscriber_holds_the_engines_book_under_load(processes: Processes) -> None:
    """Every book told is compared with the segment's own at the same sequence."""
    seed = random.SystemRandom().randrange(1 << 32)
    processes.start_engine()
    entry, gateway = processes.start_entry(), processes.start_gateway()
    traders = Traders(entry, seed)
    truth: dict[int, Levels] = {}
    ended = threading.Event()
    with channel_to(gateway) as channel:
        wait_serving(traders.channel, "orders")
        traders.allot()
        wait_serving(channel, "marketdata")
        reader = reader_of(processes)

        def watch() -> None:
            while not ended.is_set():
                if (copy := reader.book_copy()) is not None and copy.sequence not in truth:
                    truth[copy.sequence] = flat(copy)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        deep, shallow = DepthClient(channel, 1_000), DepthClient(channel, 5, 50)
        traders.trade(batch_count=200, orders_per_batch=100)
        ended.set()
        watcher.join()
        copy = reader.book_copy()
        assert copy is not None
        last = flat(copy)
        deep.wait(lambda one: one.levels == last)
        best = [
            sorted((key for key in last if key[0] == side), reverse=side == 1)[:5]
            for side in (1, 2)
        ]
        shallow.wait(lambda one: one.levels == {key: last[key] for key in best[0] + best[1]})
        # A machine that stands still for seconds makes the engine silent: told, and nothing lost.
        for one in deep, shallow:
            told = [notice.kind for notice in one.notices]
            pauses = told.count(DOWN)
            assert told == [DOWN, RESTARTED] * pauses
            assert one.snapshot_count == 1 + pauses
            one.close()
        reader.close()
    truth[copy.sequence] = last
    compared = [sequence for sequence in deep.books if sequence in truth]
    print(f"{len(deep.books)} books told, {len(truth)} copied, {len(compared)} compared")
    assert len(compared) > 1
    for sequence in compared:
        assert deep.books[sequence] == truth[sequence], f"sequence {sequence}"
    traders.channel.close()


def test_a_killed_engine_is_told_and_its_book_comes_back(processes: Processes) -> None:
    processes.start_engine()
    entry, gateway = processes.start_entry(), processes.start_gateway()
    traders = Traders(entry, seed=7)
    with channel_to(gateway) as channel:
        wait_serving(traders.channel, "orders")
        traders.allot()
        wait_serving(channel, "marketdata")
        client = DepthClient(channel, 1_000)
        traders.trade(batch_count=20, orders_per_batch=100)
        before = flat(engines_book(processes))
        assert before
        client.wait(lambda one: one.levels == before)
        epoch = client.epoch

        processes.kill("engine")
        client.wait(lambda one: len(one.notices) == 1)
        assert client.notices[0].kind == DOWN
        still = Stub(channel).GetDepth(
            market_data_pb2.GetDepthRequest(pair=PAIR, level_count=1_000)
        )
        assert len(still.depth.bids) + len(still.depth.asks) == len(before)

        processes.start_engine()
        client.wait(lambda one: one.snapshot_count == 2)
        assert [notice.kind for notice in client.notices][-1] == RESTARTED
        assert client.epoch > epoch
        assert client.levels == before
        traders.trade(batch_count=4, orders_per_batch=50)
        client.wait(lambda one: one.levels != before)
        client.close()
    traders.channel.close()


AS_NOBODY = """
import os, sys
from pathlib import Path
from typing import Any
import mdgateway.__main__ as gateway
from mdgateway.warm_up import warm_up
from exchange.book_layout import segment_name
from exchange.config import load_instrument
from exchange.ownership import Borrowed
from engine.vault_layout import vault_layout
import encodings.idna, grpc.aio, multiprocessing.resource_tracker
pair, instruments, segments = sys.argv[1:4]
instrument = load_instrument(pair, Path(instruments))
warm_up()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for attempt in (
    lambda: open(os.path.join(segments, segment_name(pair, "vault")), "rb"),
    lambda: Borrowed.open(
        segment_name(pair, "vault"), vault_layout(instrument), directory=segments
    ),
    lambda: os.open(os.path.join(segments, segment_name(pair, "book")), os.O_RDWR),
):
    try:
        attempt()
    except PermissionError as error:
        print("refused:", error, flush=True)
    else:
        print("opened", flush=True)
        sys.exit(3)
sys.exit(gateway.main(sys.argv[4:]))
"""


def test_as_another_user_it_reads_the_book_and_cannot_open_the_vault(
    processes: Processes,
) -> None:
    """As root the gateway really runs as user 65534; else the mode of the files must do."""
    processes.start_engine()
    entry = processes.start_entry()
    traders = Traders(entry, seed=11)
    wait_serving(traders.channel, "orders")
    traders.allot()
    traders.trade(batch_count=4, orders_per_batch=50)
    traders.channel.close()
    names = {path.name.rpartition("-")[2]: path for path in processes.segments.iterdir()}
    assert names["vault"].stat().st_mode & 0o777 == 0o600
    assert names["book"].stat().st_mode & 0o022 == 0
    if os.geteuid() != 0:
        return
    (processes.folder / "run").chmod(0o777)
    port = processes.start(
        "gateway",
        "-c",
        AS_NOBODY,
        PAIR,
        str(processes.instruments),
        str(processes.segments),
        *("--pair", PAIR, "--port", "0", "--instruments", str(processes.instruments)),
    )
    status = Path(f"/proc/{processes.running['gateway'].pid}/status").read_text()
    assert status.partition("Uid:")[2].split()[:4] == ["65534"] * 4
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        depth = Stub(channel).GetDepth(market_data_pb2.GetDepthRequest(pair=PAIR)).depth
        assert depth.bids
        assert depth.asks


def test_subscribers_that_never_read_cost_nothing_and_hold_nobody_up(
    processes: Processes, writer: Writer
) -> None:
    port = processes.start_gateway("--tick-ms", "5")
    request = market_data_pb2.StreamDepthRequest(pair=PAIR, level_count=500)
    round_count, level_count = 800, 500
    with channel_to(port) as channel, channel_to(port) as idle_channel:
        wait_serving(channel, "marketdata")
        reading = DepthClient(channel, level_count)

        def publish(first: int, rounds: int) -> None:
            for lots in range(first, first + rounds):
                writer.batch([(1, 1, 1_000 + tick, lots, 1, 0) for tick in range(level_count)])
                # The next round waits for the reader, so that every round is a message.
                reading.wait(lambda one: one.sequence == writer.sequence)

        publish(1, 20)
        idle = [Stub(idle_channel).StreamDepth(request) for _ in range(40)]
        for call in idle:
            next(call)  # It is subscribed, and reads no more.
        publish(100, 20)
        before_bytes = processes.resident_bytes("gateway")
        publish(200, round_count)
        grown_bytes = processes.resident_bytes("gateway") - before_bytes
        message_bytes = reading_message_bytes(level_count)
        queued_bytes = round_count * message_bytes
        print(f"grown by {grown_bytes}, a queue shared by all would hold {queued_bytes}")
        assert reading.levels[1, 1_000] == (200 + round_count - 1, 1)
        assert reading.snapshot_count == 1
        assert grown_bytes < queued_bytes // 2
        for call in idle:
            call.cancel()
        reading.close()


def reading_message_bytes(level_count: int) -> int:
    """Return about how large an update of so many levels is."""
    level = market_data_pb2.Level(
        price="10.00", price_ticks=1_000, quantity="0.00200", quantity_lots=200, order_count=1
    )
    update = market_data_pb2.DepthUpdate(bids=[level] * level_count)
    return update.ByteSize()


def test_trades_resume_and_a_stream_too_slow_ends_with_its_number(
    processes: Processes, writer: Writer
) -> None:
    port = processes.start_gateway()
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        for price in range(1, 301):
            writer.trade(1, price, 2)
        stub = Stub(channel)
        request = market_data_pb2.StreamTradesRequest(pair=PAIR, from_trade_number=101)
        seen: list[int] = []
        call = stub.StreamTrades(request, timeout=PATIENCE_S)
        for message in call:
            seen += [trade.trade_number for trade in message.trades.trades]
            if seen and seen[-1] == 300:
                call.cancel()
                break
        assert seen == list(range(101, 301))
        request.from_trade_number = 1_000_000
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.StreamTrades(request, timeout=PATIENCE_S))
        assert refusal(caught.value) == (
            grpc.StatusCode.OUT_OF_RANGE,
            "TRADE_NUMBER_OUT_OF_RANGE",
            "from_trade_number",
        )


def test_trades_are_listed_page_by_page(processes: Processes, writer: Writer) -> None:
    port = processes.start_gateway()
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        for price in range(1, 251):
            writer.trade(1, price, 2)
        stub = Stub(channel)
        follow = stub.StreamTrades(
            market_data_pb2.StreamTradesRequest(pair=PAIR, from_trade_number=250),
            timeout=PATIENCE_S,
        )
        while not next(follow).trades.trades:
            pass
        follow.cancel()
        seen: list[int] = []
        request = market_data_pb2.ListTradesRequest(pair=PAIR, from_trade_number=1, page_size=60)
        while page := stub.ListTrades(request).trades:
            seen += [trade.trade_number for trade in page]
            request.from_trade_number = page[-1].trade_number + 1
        assert seen == list(range(1, 251))
        newest = stub.ListTrades(market_data_pb2.ListTradesRequest(pair=PAIR, page_size=10))
        assert [trade.trade_number for trade in newest.trades] == list(range(241, 251))
        numbers = (newest.next_trade_number, newest.oldest_trade_number, newest.newest_trade_number)
        assert numbers == (251, 1, 250)


def test_the_status_says_how_the_engine_is(processes: Processes, writer: Writer) -> None:
    port = processes.start_gateway()
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        call = Stub(channel).StreamMarketStatus(
            market_data_pb2.StreamMarketStatusRequest(pair=PAIR), timeout=PATIENCE_S
        )
        states = (message.state for message in call if message.HasField("state"))
        assert next(states).engine_state == enums_pb2.ENGINE_STATE_READY
        writer.status(enums_pb2.PAIR_STATUS_HALTED)
        halted = next(states)
        assert (halted.status, halted.has_book) == (enums_pb2.PAIR_STATUS_HALTED, True)
        request = market_data_pb2.GetMarketStatusRequest(pair=PAIR)
        assert Stub(channel).GetMarketStatus(request).state.status == halted.status
        call.cancel()


def test_a_drain_says_goodbye(processes: Processes, writer: Writer) -> None:
    port = processes.start_gateway()
    with channel_to(port) as channel:
        wait_serving(channel, "marketdata")
        stub = Stub(channel)
        streams: list[Any] = [
            stub.StreamDepth(market_data_pb2.StreamDepthRequest(pair=PAIR)),
            stub.StreamTrades(market_data_pb2.StreamTradesRequest(pair=PAIR)),
            stub.StreamTicker(market_data_pb2.StreamTickerRequest(pair=PAIR)),
            stub.StreamMarketStatus(market_data_pb2.StreamMarketStatusRequest(pair=PAIR)),
            stub.StreamOrders(market_data_pb2.StreamOrdersRequest(pair=PAIR)),
        ]
        for stream in streams:
            next(stream)
        assert processes.kill("gateway", signal.SIGTERM) == 0
        for stream in streams:
            last = list(stream)[-1]
            assert last.goodbye.reason == "DRAINING"


def test_a_port_is_never_shared(processes: Processes) -> None:
    port = processes.start_gateway()
    with pytest.raises(AssertionError, match=rf"(?s)ended with 1: .*cannot listen on .*{port}"):
        processes.start("second", "-m", "mdgateway", "--pair", "BTC-USDT", "--port", port)


def test_an_unknown_pair_ends_the_start_with_a_sentence(processes: Processes) -> None:
    with pytest.raises(AssertionError, match=r"ended with 2: mdgateway: pair is 'NO-PAIR'"):
        processes.start("second", "-m", "mdgateway", "--pair", "NO-PAIR", "--port", "0")
