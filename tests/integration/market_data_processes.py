"""What tests of the market data gateway start and talk to: real processes, real streams.

Every process is started here, belongs to one fixture and is killed by its number. Waiting is done
on streams (a process's first line, health's Watch, a subscription), never on a clock.
"""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange.config import load_instrument
from exchange.packed import RECORD_DTYPE
from exchange.service import refusal_in
from exchange.v1 import (
    enums_pb2,
    market_data_pb2,
    market_data_pb2_grpc,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from mdgateway.book.reader import BookReader
from tests.unit.market_data_writer import Writer

ROOT = Path(__file__).resolve().parents[2]
PAIR = "TEST-USDT"
PATIENCE_S = 180
"""How long a test waits for something that must come; reaching it is a failure."""

INSTRUMENTS = f"""
["{PAIR}"]
base_asset = "TEST"
quote_asset = "USDT"
price_capacity_ticks = 65536
quantity_limit_lots = 1000000
order_capacity = 65536
account_capacity = 16
client_id_window = 131072
event_capacity = 65536
"""

Message = market_data_pb2.StreamDepthResponse
Levels = dict[tuple[int, int], tuple[int, int]]


class Processes:
    """The processes of one exchange in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments = folder / "segments"
        self.segments.mkdir(mode=0o755)
        self.instruments = folder / "instruments.toml"
        self.instruments.write_text(INSTRUMENTS)
        self.instruments.chmod(0o644)
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *arguments: str) -> str:
        """Start a Python process and return the port it says it listens on."""
        process = self._spawn(name, arguments)
        assert process.stdout is not None
        for line in process.stdout:
            if " on 127.0.0.1:" in line:
                return line.rstrip().rpartition(":")[2]
        process.stdout.close()
        log = (self.folder / f"{name}.log").read_text()
        raise AssertionError(f"{name} ended with {process.wait()}: {log}")

    def start_engine(self) -> None:
        """Start an engine; whether it is ready is for its readers to find out."""
        self._spawn("engine", ["-m", "engine", *self._common()])

    def _spawn(self, name: str, arguments: Sequence[str]) -> "subprocess.Popen[str]":
        with (self.folder / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | {"HOLDFAST_SEGMENTS": str(self.segments)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self.running[name]

    def start_entry(self) -> str:
        """Start order entry; return its port."""
        return self.start("entry", "-m", "engine.entry_server", *self._common(), "--ring", "0")

    def start_gateway(self, *arguments: str) -> str:
        """Start a gateway; return its port."""
        return self.start("gateway", *self.gateway_arguments("0"), *arguments)

    def gateway_arguments(self, port: str) -> list[str]:
        """Return what starts a gateway over the engine's segments at a port."""
        return ["-m", "mdgateway", *self._common(), "--port", port]

    def start_relay(self, name: str, upstream: str, *arguments: str) -> str:
        """Start a gateway that follows another one; return its port."""
        source = ("--upstream", f"127.0.0.1:{upstream}", "--instruments", str(self.instruments))
        own = ("--port", "0", "--http-port", "0")
        return self.start(name, "-m", "mdgateway", "--pair", PAIR, *source, *own, *arguments)

    def _common(self) -> list[str]:
        run = str(self.folder / "run")
        return ["--pair", PAIR, "--run", run, "--instruments", str(self.instruments)]

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """End a process and return its exit status."""
        process = self.running.pop(name)
        process.send_signal(number)
        status = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return status

    def resident_bytes(self, name: str) -> int:
        """Return how much memory a process holds, shared segments left out."""
        status = Path(f"/proc/{self.running[name].pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1_024

    def close(self) -> None:
        """End everything."""
        for name in list(self.running):
            self.kill(name)


@contextlib.contextmanager
def processes_in_memory() -> Iterator[Processes]:
    """Give the processes of one exchange a folder in memory; all is gone at the end."""
    # Not below pytest's own folder, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    folder.chmod(0o755)
    processes = Processes(folder)
    try:
        yield processes
    finally:
        processes.close()
        shutil.rmtree(folder)


@contextlib.contextmanager
def beating_writer(processes: Processes) -> Iterator[Writer]:
    """Write a book in this process, with an engine's heartbeat beside it."""
    writer = Writer(processes.segments, load_instrument(PAIR, processes.instruments))
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            writer.heartbeat(time.monotonic_ns())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield writer
    finally:
        ended.set()
        thread.join()
        writer.close()


def wait_serving(channel: grpc.Channel, name: str, wanted: int = 1) -> None:
    """Wait until health says of `name` what is wanted (1: SERVING)."""
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S)
    for answer in watch:
        if answer.status == wanted:
            watch.cancel()
            return


class DepthClient:
    """Follows a depth stream in a thread and rebuilds the book, checking every link."""

    def __init__(self, channel: grpc.Channel, level_count: int, interval_ms: int = 0) -> None:
        request = market_data_pb2.StreamDepthRequest(
            pair=PAIR, level_count=level_count, interval_ms=interval_ms
        )
        self.levels: Levels = {}
        self.epoch = self.sequence = 0
        self.books: dict[int, Levels] = {}
        """The book as of each sequence that was told."""
        self.notices: list[market_data_pb2.Notice] = []
        self.message_count = self.snapshot_count = 0
        self.trouble: BaseException | None = None
        self._changed = threading.Condition()
        self._call = market_data_pb2_grpc.MarketDataServiceStub(channel).StreamDepth(request)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, condition: Callable[["DepthClient"], bool]) -> None:
        """Wait until the client's state fulfils a condition."""
        with self._changed:
            held = self._changed.wait_for(lambda: self.trouble or condition(self), PATIENCE_S)
        if self.trouble is not None:
            raise AssertionError("the stream is wrong") from self.trouble
        assert held, f"nothing after {PATIENCE_S} s: {self.notices}, sequence {self.sequence}"

    def close(self) -> None:
        """End the stream."""
        self._call.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            for message in self._call:
                with self._changed:
                    self._take(message)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                self._end(error)
        except BaseException as error:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self.trouble = error
            self._changed.notify_all()

    def _take(self, message: Message) -> None:
        self.message_count += 1
        kind = message.WhichOneof("event")
        if kind == "snapshot":
            self.snapshot_count += 1
            self.levels = {}
            self._put(message.snapshot)
            self.epoch, self.sequence = message.snapshot.epoch, message.snapshot.sequence
        elif kind == "update":
            assert message.update.epoch == self.epoch
            assert message.update.previous_sequence == self.sequence
            self._put(message.update)
            self.sequence = message.update.sequence
        elif kind == "notice":
            self.notices.append(message.notice)
        if kind in {"snapshot", "update"}:
            self.books[self.sequence] = dict(self.levels)

    def _put(self, content: market_data_pb2.Depth | market_data_pb2.DepthUpdate) -> None:
        for side, levels in enumerate((content.bids, content.asks), start=1):
            for level in levels:
                if level.quantity_lots:
                    value = (level.quantity_lots, level.order_count)
                    self.levels[side, level.price_ticks] = value
                else:
                    self.levels.pop((side, level.price_ticks), None)


class Watcher:
    """Copies the engine's book from its segment as often as it can, by epoch and sequence."""

    def __init__(self, processes: Processes) -> None:
        instrument = load_instrument(PAIR, processes.instruments)
        self.reader = BookReader(instrument, processes.segments, level_capacity=4_096)
        assert self.reader.open()
        self.books: dict[tuple[int, int], Levels] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            self.look()

    def look(self) -> None:
        """Copy once."""
        copy = self.reader.book_copy()
        if copy is not None:
            self.books[self.reader.epoch, copy.sequence] = {
                (side, price): (lots, orders)
                for side, rows in enumerate((copy.bids, copy.asks), start=1)
                for price, lots, orders in rows.tolist()
            }

    def close(self) -> Levels:
        """End, and return the book as it is now, when nobody trades."""
        self._ended.set()
        self._thread.join()
        self.look()
        last = self.books[max(self.books)]
        self.reader.close()
        return last


class Traders:
    """Two accounts with funds that send random limit orders in batches and wait for the answers."""

    def __init__(self, port: str, seed: int, order_count: int = 0) -> None:
        print(f"seed {seed}")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._chance = np.random.default_rng(seed)
        self._client_order_id = order_count

    def allot(self) -> None:
        """Give both accounts all they could spend."""
        admin = pair_admin_pb2_grpc.PairAdminServiceStub(self.channel)
        number = 0
        for account in 1, 2:
            for asset in enums_pb2.ASSET_BASE, enums_pb2.ASSET_QUOTE:
                number += 1
                request = pair_admin_pb2.AllotFundsRequest(
                    pair=PAIR,
                    account=account,
                    asset=asset,
                    amount="100000000",
                    transfer_number=number,
                )
                admin.AllotFunds(request, timeout=PATIENCE_S)

    def trade(self, batch_count: int, orders_per_batch: int) -> None:
        """Send batches of orders around one price, one account after the other."""
        entry = order_entry_pb2_grpc.OrderEntryServiceStub(self.channel)
        half = batch_count // 2
        for account in 1, 2:
            self._send(
                entry, account, half if account == 1 else batch_count - half, orders_per_batch
            )

    def _send(self, entry: Any, account: int, batch_count: int, orders: int) -> None:
        batches: queue.SimpleQueue[order_entry_pb2.SubmitBatchesRequest | None]
        batches = queue.SimpleQueue()
        answers = entry.SubmitBatches(
            iter(batches.get, None),
            metadata=(("holdfast-account", str(account)),),
            timeout=PATIENCE_S,
        )
        for number in range(batch_count):
            batches.put(
                order_entry_pb2.SubmitBatchesRequest(
                    pair=PAIR,
                    record_version=1,
                    batch_number=number + 1,
                    records=self._orders(orders),
                )
            )
            answer = next(answers)
            assert not answer.HasField("refusal"), answer
        batches.put(None)
        assert next(answers, None) is None

    def _orders(self, count: int) -> bytes:
        records = np.zeros(count, RECORD_DTYPE)
        first, self._client_order_id = self._client_order_id + 1, self._client_order_id + count
        sides = self._chance.integers(1, 3, count)
        records["client_order_id"] = np.arange(first, first + count)
        records["quantity_lots"] = self._chance.integers(1, 1_000, count)
        # Buyers a little below, sellers a little above; often enough they meet.
        away = self._chance.geometric(0.02, count) - 5
        records["price_ticks"] = np.clip(20_000 + away * (2 * sides - 3), 1, 65_535)
        records["kind_side"] = 1 | sides << 4
        records["order_type_time_in_force"] = 1 | 1 << 4
        records["self_trade_prevention"] = 1
        return records.tobytes()


@contextlib.contextmanager
def channel_to(port: str) -> Iterator[grpc.Channel]:
    """Open a channel of its own to a port."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield channel


def refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """Return status, reason and field of a refused call."""
    info = refusal_in(error)
    assert info is not None, error
    assert info.domain == "holdfast"
    return error.code(), info.reason, info.metadata["field"]
