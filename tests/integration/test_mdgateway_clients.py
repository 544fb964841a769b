"""Clients in bad weather: cut lines, lost messages, dying engines and gateways, crowds."""

import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from exchange.service import refusal_in
from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from tests.integration.market_data_processes import (
    PAIR,
    PATIENCE_S,
    Levels,
    Processes,
    Traders,
    Watcher,
    channel_to,
    processes_in_memory,
    wait_serving,
)
from tests.integration.plain_client import Cable, PlainClient

pytestmark = pytest.mark.integration

Stub = market_data_pb2_grpc.MarketDataServiceStub


@pytest.fixture
def processes() -> Iterator[Processes]:
    with processes_in_memory() as processes:
        yield processes


def compare(client: PlainClient, truth: dict[tuple[int, int], Levels]) -> int:
    """Compare what a client held with what the segment had; return how often both were seen."""
    compared = 0
    for epoch, sequence, levels in client.books:
        if (epoch, sequence) in truth:
            assert levels == truth[epoch, sequence], f"epoch {epoch}, sequence {sequence}"
            compared += 1
    return compared


def test_a_plain_client_has_the_engines_book_through_cut_lines_and_lost_messages(
    processes: Processes,
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    processes.start_engine()
    entry, gateway = processes.start_entry(), processes.start_gateway("--tick-ms", "2")
    traders, cable = Traders(entry, seed), Cable(int(gateway))
    with channel_to(gateway) as channel:
        wait_serving(traders.channel, "orders")
        traders.allot()
        wait_serving(channel, "marketdata")
    watcher = Watcher(processes)
    client = PlainClient(cable.port, PAIR, -1, seed)
    for number in range(1, 21):
        traders.trade(batch_count=8, orders_per_batch=50)
        told = len(client.books)
        client.wait(lambda one, told=told: len(one.books) > told or one.levels, PATIENCE_S)
        if number % 4 == 0:
            cable.cut()
    last = watcher.close()
    client.wait(lambda one: one.levels == last, PATIENCE_S)
    compared = compare(client, watcher.books)
    print(
        f"{len(client.books)} books, {compared} compared, {client.stream_count} streams,"
        f" {client.snapshot_count} snapshots, {client.resume_count} resumed,"
        f" {client.drop_count} messages dropped"
    )
    assert client.stream_count > 4
    assert client.resume_count > 0
    assert compared > 0
    client.close()
    cable.close()
    traders.channel.close()


def test_a_plain_client_survives_engines_and_gateways(processes: Processes) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    processes.start_engine()
    entry, gateway = processes.start_entry(), processes.start_gateway("--eager")
    traders, cable = Traders(entry, seed), Cable(int(gateway))
    with channel_to(gateway) as channel:
        wait_serving(traders.channel, "orders")
        traders.allot()
        wait_serving(channel, "marketdata")
    client = PlainClient(cable.port, PAIR, -1, seed)
    for victim in "engine", "gateway", "engine":
        traders.trade(batch_count=6, orders_per_batch=50)
        epoch = client.epoch
        processes.kill(victim)
        if victim == "engine":
            processes.start_engine()
            client.wait(lambda one, epoch=epoch: one.epoch > epoch, PATIENCE_S)
        else:
            processes.start("gateway", *processes.gateway_arguments(gateway), "--eager")
    traders.trade(batch_count=6, orders_per_batch=50)
    watcher = Watcher(processes)
    last = watcher.close()
    client.wait(lambda one: one.levels == last, PATIENCE_S)
    assert last
    client.close()
    cable.close()
    traders.channel.close()


def first_answer(call: Any) -> str:
    """Return what the first message of a stream is, or why and by which limit there is none."""
    try:
        return str(next(call).WhichOneof("event"))
    except grpc.RpcError as error:
        info = refusal_in(error)
        return f"{info.reason} {info.metadata['limit']}" if info else str(error)


def test_a_crowd_is_refused_beyond_the_limit_and_harms_nobody(processes: Processes) -> None:
    processes.start_engine()
    gateway = processes.start_gateway("--subscriber-limit", "40")
    request = market_data_pb2.StreamDepthRequest(pair=PAIR)
    with channel_to(gateway) as channel, channel_to(gateway) as crowd_channel:
        wait_serving(channel, "marketdata")
        mine: Any = Stub(channel).StreamDepth(request)
        assert next(mine).HasField("snapshot")
        crowd = [Stub(crowd_channel).StreamDepth(request) for _ in range(1_000)]
        answers = [first_answer(call) for call in crowd]
        assert answers.count("snapshot") == 39
        assert answers.count("SUBSCRIBER_LIMIT 40") == 961
        assert next(mine).HasField("heartbeat"), "the one that was there is served on"
        for call in crowd:
            call.cancel()
        # Room is given back when the gateway notices; until then it says so.
        answer = ""
        while answer != "snapshot":
            again: Any = Stub(channel).StreamDepth(request)
            answer = first_answer(again)
            assert answer in {"snapshot", "SUBSCRIBER_LIMIT 40"}
        again.cancel()
        mine.cancel()
