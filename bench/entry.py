"""End to end over gRPC: an order in, its answer out, against a server that only echoes."""

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import uvloop
from grpc import aio

from bench.durability import disk_folder
from bench.harness import Rounds, Row, percentile, rate, span
from bench.pair import Line, Pair
from bench.venue import funding
from engine.durability.journal import zeroed_file
from exchange.enums import CommandKind, ExecutionKind, OrderType, Side, TimeInForce
from exchange.v1 import enums_pb2, order_entry_pb2, order_entry_pb2_grpc

ACCOUNT: Final = (("holdfast-account", "1"),)
RECORD: Final = np.dtype(
    [
        ("client_order_id", "<i8"),
        ("order_id", "<i8"),
        ("quantity", "<i8"),
        ("price", "<u4"),
        ("kind_side", "u1"),
        ("type_force", "u1"),
        ("prevention", "u1"),
        ("flags", "u1"),
    ]
)
BATCH: Final = 1_000
_ACK_BYTES: Final = 48
_ACK_KIND: Final = 40
WINDOW: Final = 8
"""Batches on their way at once."""
LOOPBACK: Final = "127.0.0.1"

assert RECORD.itemsize == 32


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Door:
    """A client of one server, and the ids it gives."""

    def __init__(self, port: int, pair: str) -> None:
        self.address = f"{LOOPBACK}:{port}"
        self.pair = pair
        self.next_id = 1

    def channel(self) -> aio.Channel:
        """Return a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return aio.insecure_channel(self.address, options=options)

    def order(self) -> order_entry_pb2.SubmitOrderRequest:
        """Return an order that rests."""
        self.next_id += 1
        return order_entry_pb2.SubmitOrderRequest(
            pair=self.pair,
            client_order_id=self.next_id,
            side=enums_pb2.SIDE_BUY,
            order_type=enums_pb2.ORDER_TYPE_LIMIT,
            time_in_force=enums_pb2.TIME_IN_FORCE_GOOD_TILL_CANCELLED,
            price=str(1_000 + self.next_id % 500),
            quantity="10",
        )

    def batch(self, number: int) -> order_entry_pb2.SubmitBatchesRequest:
        """Return five hundred orders that rest, and the cancels of the five hundred before."""
        rows = np.zeros(BATCH, RECORD)
        half = BATCH // 2
        ids = self.next_id + np.arange(half)
        self.next_id += half
        rows["client_order_id"][:half] = ids
        rows["quantity"][:half] = 10
        rows["price"][:half] = 1_000 + ids % 64
        rows["kind_side"][:half] = int(CommandKind.NEW_ORDER) | int(Side.BUY) << 4
        force = int(TimeInForce.GOOD_TILL_CANCELLED)
        rows["type_force"][:half] = int(OrderType.LIMIT) | force << 4
        rows["client_order_id"][half:] = ids - half
        rows["kind_side"][half:] = int(CommandKind.CANCEL_ORDER)
        return order_entry_pb2.SubmitBatchesRequest(
            pair=self.pair, record_version=1, batch_number=number, records=rows.tobytes()
        )


async def _one_by_one(door: Door, count: int) -> list[float]:
    """Send orders one after the other; return the seconds of each."""
    taken = []
    async with door.channel() as channel:
        stub: Any = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
        await stub.SubmitOrder(door.order(), metadata=ACCOUNT)
        for _ in range(count):
            order = door.order()
            start_ns = time.perf_counter_ns()
            await stub.SubmitOrder(order, metadata=ACCOUNT)
            taken.append((time.perf_counter_ns() - start_ns) / 1e9)
    return taken


async def _in_batches(door: Door, count: int, checked: bool) -> float:
    """Send so many batches on one stream, some at a time; return orders acknowledged a second."""
    requests = [door.batch(number) for number in range(1, count + 1)]
    room = asyncio.Semaphore(WINDOW)

    async def sending() -> AsyncIterator[order_entry_pb2.SubmitBatchesRequest]:
        for request in requests:
            await room.acquire()
            yield request

    async with door.channel() as channel:
        await channel.channel_ready()
        stub: Any = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
        start_ns = time.perf_counter_ns()
        answered = 0
        async for answer in stub.SubmitBatches(sending(), metadata=ACCOUNT):
            assert len(answer.acks) == BATCH * _ACK_BYTES, (
                f"batch {answer.batch_number}: {answer.refusal}"
            )
            answered += 1
            if checked and answered == count:
                kinds = np.frombuffer(answer.acks, np.uint8)[_ACK_KIND::_ACK_BYTES]
                assert (kinds != ExecutionKind.REJECTED).all(), "commands of the flow were rejected"
            room.release()
        seconds = (time.perf_counter_ns() - start_ns) / 1e9
    assert answered == count, f"{answered} of {count} batches answered"
    return count * BATCH / seconds


async def _until_open(door: Door, pair: Pair) -> bytes:
    """Wait until order entry takes orders; return what an answer looks like."""
    async with door.channel() as channel:
        stub: Any = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
        deadline_ns = time.monotonic_ns() + 120_000_000_000
        while True:
            try:
                answer = await stub.SubmitOrder(door.order(), metadata=ACCOUNT, wait_for_ready=True)
                return bytes(answer.SerializeToString())
            except grpc.RpcError:
                if time.monotonic_ns() > deadline_ns:
                    raise RuntimeError(f"order entry did not open:\n{pair.log()}") from None
                await asyncio.sleep(0.1)


def _open_pair(pair: Pair, processes: int) -> tuple[Door, list[subprocess.Popen[bytes]], bytes]:
    """Fund a pair and open its doors; return a client, the entry processes and an answer."""
    line = Line(pair, pair.last_ring)
    line.carry(funding())
    line.close()
    port = _free_port()
    entries = [
        pair.start("engine.entry_server", "--ring", str(ring), "--port", str(port))
        for ring in range(processes)
    ]
    door = Door(port, pair.instrument.pair)
    answer = b""
    # Whoever is not ready yet gets no connection, so every process has to be seen in the log.
    while pair.log().count("listens on") < processes:
        time.sleep(0.05)
        assert all(entry.poll() is None for entry in entries), pair.log()
    answer = uvloop.run(_until_open(door, pair))
    return door, entries, answer


@contextlib.contextmanager
def _echo(answer: bytes, pair: str) -> Iterator[Door]:
    door = Door(_free_port(), pair)
    command = [sys.executable, "-m", "bench.echo_server", door.address.split(":")[1], answer.hex()]
    process = subprocess.Popen(command)
    try:
        yield door
    finally:
        process.terminate()
        process.wait()


async def _until_ready(door: Door) -> None:
    async with door.channel() as channel:
        await channel.channel_ready()


def _sync_seconds(fd: int, block: bytes) -> float:
    start_ns = time.perf_counter_ns()
    os.pwrite(fd, block, 0)
    os.fdatasync(fd)
    return (time.perf_counter_ns() - start_ns) / 1e9


def _syncs(folder: Path, count: int) -> list[float]:
    fd = zeroed_file(folder / "bare", 1 << 20)
    taken = [_sync_seconds(fd, os.urandom(4096)) for _ in range(count)]
    os.close(fd)
    return taken


Figures = dict[str, list[list[float]]]


def _latency_row(found: Figures, subject: str, base: tuple[str, ...], must: str, at: int) -> Row:
    def middle(name: str) -> float:
        return statistics.median(percentile(taken, at) for taken in found[name])

    reference = sum(middle(name) for name in base)
    measured = middle(subject)
    against = " + ".join(f"{name} {span(middle(name))}" for name in base)
    return Row(f"one order, {subject}, p{at}", span(measured), against, measured / reference, must)


def run_entry(rounds: Rounds) -> list[Row]:
    """Measure single orders and batches through the whole product."""
    calls, batches = rounds.size(400, 150), rounds.size(300, 60)
    with (
        Pair("os", inboxes=2) as loose,
        Pair("fsync", inboxes=2) as safe,
        disk_folder() as folder,
        contextlib.ExitStack() as stack,
    ):
        loose_door, _, answer = _open_pair(loose, 1)
        safe_door, _, _ = _open_pair(safe, 1)
        echo_door = stack.enter_context(_echo(answer, loose.instrument.pair))
        uvloop.run(_until_ready(echo_door))
        doors = {"echo": echo_door, "os": loose_door, "fsync": safe_door}
        singles: Figures = {name: [] for name in (*doors, "fdatasync")}
        rates: dict[str, list[float]] = {name: [] for name in doors}
        for turn in range(rounds.count + 1):
            for name, door in doors.items():
                singles[name].append(uvloop.run(_one_by_one(door, calls)))
                rates[name].append(uvloop.run(_in_batches(door, batches, name != "echo")))
            singles["fdatasync"].append(_syncs(folder, 50))
            if turn == 0:  # The first round warms up.
                for figures in (*singles.values(), *rates.values()):
                    figures.clear()  # type: ignore[attr-defined]
    middle = {name: statistics.median(figures) for name, figures in rates.items()}
    rows = [
        _latency_row(singles, "os", ("echo",), "1.5", 50),
        _latency_row(singles, "os", ("echo",), "1.5", 99),
        _latency_row(singles, "fsync", ("echo", "fdatasync"), "1.5", 50),
        _latency_row(singles, "fsync", ("echo", "fdatasync"), "1.5", 99),
    ]
    for name, must in (("fsync", "0.15"), ("os", "")):
        rows.append(
            Row(
                f"batches of {BATCH:,} on one stream, {name}",
                rate(middle[name]),
                f"bare echo {rate(middle['echo'])}",
                middle[name] / middle["echo"],
                must,
                f"{WINDOW} batches on their way; half adds, half cancels; wall time",
            )
        )
    return rows


def _cpu_seconds_of(processes: list[subprocess.Popen[bytes]]) -> float:
    hertz, total = os.sysconf("SC_CLK_TCK"), 0
    for process in processes:
        text = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
        words = text[text.rindex(")") + 2 :].split()
        total += int(words[11]) + int(words[12])
    return total / hertz


async def _side_by_side(door: Door, channels: int, calls: int) -> None:
    """Send orders over many connections at once, one after the other on each."""

    async def one() -> None:
        async with door.channel() as channel:
            stub: Any = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
            for _ in range(calls):
                await stub.SubmitOrder(door.order(), metadata=ACCOUNT)

    await asyncio.gather(*(one() for _ in range(channels)))


def run_processes(rounds: Rounds) -> list[Row]:
    """Measure what a call costs its servers when there are more of them."""
    channels, calls = 16, rounds.size(125, 40)
    with contextlib.ExitStack() as stack:
        opened = {}
        for count in (1, 2, 4):
            pair = stack.enter_context(Pair("os", inboxes=count + 1))
            door, entries, _ = _open_pair(pair, count)
            opened[count] = door, entries
        found: dict[int, list[float]] = {count: [] for count in opened}
        rates: dict[int, list[float]] = {count: [] for count in opened}
        for turn in range(rounds.count + 1):
            for count, (door, entries) in opened.items():
                before, start_ns = _cpu_seconds_of(entries), time.perf_counter_ns()
                uvloop.run(_side_by_side(door, channels, calls))
                seconds = (time.perf_counter_ns() - start_ns) / 1e9
                if turn:
                    found[count].append((_cpu_seconds_of(entries) - before) / (channels * calls))
                    rates[count].append(channels * calls / seconds)
    middle = {count: statistics.median(figures) for count, figures in found.items()}
    return [
        Row(
            f"server CPU a call, {count} processes",
            span(middle[count]),
            f"one process {span(middle[1])}",
            middle[count] / middle[1],
            "1.2" if count > 1 else "",
            f"{channels} connections at once, {rate(statistics.median(rates[count]))} answered",
        )
        for count in opened
    ]
