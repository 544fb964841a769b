"""Compile every kernel of a pair's processes: `python -m engine.warm_up`, a line per kernel.

A whole pair is built in miniature, engine and order entry in one process, and one command goes
through each door: so each kernel is compiled for exactly the arrays it will be given, and lands in
the cache that the real processes load from. When everything is cached it takes seconds.

Invariants: the miniature has a name of its own and a folder of its own, and leaves neither behind;
what a killed one left is cleaned by the next.
"""

import asyncio
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from grpc import aio
from numba.core import event

from engine.config import EngineConfig
from engine.durability.journal import Durability
from engine.entry.config import EntryConfig
from engine.entry_server import assemble
from engine.process import EngineProcess
from engine.state_machine import Engine
from exchange.config import RunFolder, segment_folder
from exchange.enums import Asset, OrderType, Side, TimeInForce
from exchange.identity import open_channel
from exchange.instrument import Instrument
from exchange.ownership import remove_stale
from exchange.packed import RECORD_VERSION
from exchange.records import COMMAND_WORDS
from exchange.v1 import (
    execution_feed_pb2,
    execution_feed_pb2_grpc,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)

PATIENCE_S: Final = 600
"""A call may wait for the compiler, on a machine that is busy with something else."""
_PREFIX: Final = "warm-up-"
_ACCOUNT: Final = (("holdfast-account", "1"),)


class _Progress(event.Listener):
    """Tells the beginning and the end of each outermost compilation."""

    def __init__(self) -> None:
        self._depth: dict[int, int] = {}
        self._started_ns: dict[int, int] = {}
        self.count = 0

    def on_start(self, event: Any) -> None:
        thread = threading.get_ident()
        depth = self._depth.get(thread, 0)
        self._depth[thread] = depth + 1
        if depth == 0:
            self._started_ns[thread] = time.monotonic_ns()
            _say(f"compiling {_name(event)}")

    def on_end(self, event: Any) -> None:
        thread = threading.get_ident()
        self._depth[thread] -= 1
        if self._depth[thread] == 0:
            spent_ms = (time.monotonic_ns() - self._started_ns[thread]) // 1_000_000
            self.count += 1
            _say(f"compiled {_name(event)} in {spent_ms // 1000}.{spent_ms % 1000:03d} s")


def _name(event: Any) -> str:
    return str(event.data["dispatcher"].py_func.__name__)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _instrument(pair: str) -> Instrument:
    return Instrument(
        pair=pair,
        price_capacity_ticks=64,
        quantity_limit_lots=1_000_000,
        order_capacity=64,
        account_capacity=8,
        client_id_window=128,
        event_capacity=64,
        depth_level_count=4,
        depth_copy_count=2,
    ).validate()


def _core(instrument: Instrument) -> None:
    """Compile what decides, first: it takes longest and everything else waits for it."""
    engine = Engine.in_memory(instrument)
    engine.apply(np.zeros((1, COMMAND_WORDS), np.int64), 1)
    engine.publish_idle()
    engine.publish_again()


@contextmanager
def _running(config: EngineConfig) -> Iterator[None]:
    process = EngineProcess(config)
    loop = threading.Thread(target=process.run, name="engine")
    loop.start()
    try:
        yield
    finally:
        process.stop()
        loop.join()


async def _doors(config: EntryConfig) -> None:
    """Send something through every door of order entry."""
    service, process = assemble(config)
    port = await service.start()
    rhythm = asyncio.create_task(process.run(service.set_serving))
    async with open_channel(f"127.0.0.1:{port}") as channel:
        await _until_serving(process)
        await _fund(channel, config.instrument.pair)
        await _trade(channel, config.instrument.pair)
        await _look(channel, config.instrument.pair)
    await service.drain()
    rhythm.cancel()
    await process.close()


async def _until_serving(process: Any) -> None:
    # It says so to health checks only.
    while not process.serving:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def _fund(channel: aio.Channel, pair: str) -> None:
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
    for number, asset in enumerate((Asset.BASE, Asset.QUOTE), start=1):
        await admin.AllotFunds(
            pair_admin_pb2.AllotFundsRequest(
                pair=pair,
                account=1,
                asset=int(asset),  # type: ignore[arg-type]
                amount="1000",
                transfer_number=number,
            ),
            timeout=PATIENCE_S,
        )
    await admin.GetStatus(pair_admin_pb2.GetStatusRequest(pair=pair), timeout=PATIENCE_S)


def _order(pair: str, client_order_id: int, side: Side) -> order_entry_pb2.SubmitOrderRequest:
    return order_entry_pb2.SubmitOrderRequest(
        pair=pair,
        client_order_id=client_order_id,
        side=int(side),  # type: ignore[arg-type]
        order_type=int(OrderType.LIMIT),  # type: ignore[arg-type]
        time_in_force=int(TimeInForce.GOOD_TILL_CANCELLED),  # type: ignore[arg-type]
        price="0.1",
        quantity="0.01",
    )


async def _trade(channel: aio.Channel, pair: str) -> None:
    orders = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
    given: Any = {"metadata": _ACCOUNT, "timeout": PATIENCE_S}
    for client_order_id, side in enumerate((Side.BUY, Side.BUY), start=1):
        await orders.SubmitOrder(_order(pair, client_order_id, side), **given)
    for client_order_id in (1, 99):
        request = order_entry_pb2.GetOrderRequest(pair=pair, client_order_id=client_order_id)
        try:
            await orders.GetOrder(request, **given)
        except grpc.RpcError as error:
            # Nobody has order 99: looking for it goes through the ended orders, too.
            assert error.code() == grpc.StatusCode.NOT_FOUND, error  # noqa: PT017
    await orders.ListOpenOrders(order_entry_pb2.ListOpenOrdersRequest(pair=pair), **given)
    columns = order_entry_pb2.CommandColumns(kinds=[4], sides=[1])

    async def batches() -> Any:
        yield order_entry_pb2.SubmitBatchesRequest(
            pair=pair, record_version=RECORD_VERSION, batch_number=1, columns=columns
        )
        yield order_entry_pb2.SubmitBatchesRequest(
            record_version=RECORD_VERSION, batch_number=2, records=bytes(32)
        )

    async for _ in orders.SubmitBatches(batches(), **given):
        pass


async def _look(channel: aio.Channel, pair: str) -> None:
    orders = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
    feed = execution_feed_pb2_grpc.ExecutionFeedServiceStub(channel)
    private = orders.StreamExecutions(
        order_entry_pb2.StreamExecutionsRequest(pair=pair), metadata=_ACCOUNT, timeout=PATIENCE_S
    )
    everything = feed.FollowExecutions(
        execution_feed_pb2.FollowExecutionsRequest(pair=pair, record_version=1), timeout=PATIENCE_S
    )
    for stream in (private, everything):
        await stream.read()
        stream.cancel()


def _forget(pair: str) -> None:
    for path in Path(segment_folder()).glob(f"holdfast-{pair.lower()}-*"):
        path.unlink(missing_ok=True)


def warm_up() -> int:
    """Compile or load everything; return how many kernels had to be compiled."""
    remove_stale(f"holdfast-{_PREFIX}", segment_folder())
    pair = f"{_PREFIX}{os.getpid()}"
    instrument = _instrument(pair)
    progress = _Progress()
    with (
        event.install_listener("numba:compile", progress),
        tempfile.TemporaryDirectory(prefix="holdfast-warm-up-") as folder,
    ):
        _core(instrument)
        run = RunFolder(Path(folder), pair)
        config = EngineConfig(
            instrument=instrument,
            folder=run,
            durability=Durability.OS,
            segments=segment_folder(),
            vault_segments=segment_folder(),
            group=None,
            inbox_count=1,
            snapshot_commands=1_000_000,
            spins=10,
        )
        try:
            with _running(config):
                asyncio.run(_doors(EntryConfig(instrument=instrument, run=run, ring=0)))
        finally:
            _forget(pair)
    return progress.count


def main() -> int:
    """Warm up and say how long it took."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    started_ns = time.monotonic_ns()
    count = warm_up()
    spent_s = (time.monotonic_ns() - started_ns) // 1_000_000_000
    _say(f"{count} kernels compiled in {spent_s} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
