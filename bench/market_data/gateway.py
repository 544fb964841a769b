"""Processes that a measurement of market data starts: a gateway over a book, a bare server."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from grpc import aio

from bench.venue import START_NS, Venue
from exchange.book_layout import ENGINE_STATE, STATE_READY
from exchange.enums import CommandKind, OrderType, SelfTradePrevention, Side, TimeInForce
from exchange.records import Rows, command_price, command_verb
from exchange.v1 import market_data_pb2

STREAM: Final = "/exchange.v1.MarketDataService/StreamDepth"
MIDDLE: Final = 1_000_000


def confine(process_id: int, processors: Iterable[int]) -> None:
    """Let all threads of a process run on these processors only."""
    for task in Path(f"/proc/{process_id}/task").iterdir():
        os.sched_setaffinity(int(task.name), processors)


class Server:
    """A server process that says on its first line where it listens."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = 0
        for line in self._process.stdout:
            if " on 127.0.0.1:" in line:
                self.port = int(line.rpartition(":")[2])
                break
        assert self.port, self._process.communicate()[1]

    def channel(self) -> Any:
        """Return a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        return aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        words = text[text.rindex(")") + 2 :].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Return the memory of its own that it holds."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("RssAnon:")[2].split()[0]) * 1_024

    def confine(self, processors: Iterable[int]) -> None:
        """Let it run on these processors only."""
        confine(self._process.pid, processors)

    def pause(self) -> None:
        """Let it stand still, so that it takes nothing from others."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LiveVenue(Venue):
    """A venue that says it lives, as the engine's process does, so that gateways follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="holdfast-bench-")
        values = {
            field.name: getattr(self.instrument, field.name)
            for field in fields(self.instrument)
            if field.name != "pair"
        }
        lines = [f'["{self.instrument.pair}"]']
        lines += [f"{name} = {value!r}".replace("'", '"') for name, value in values.items()]
        self.instruments = Path(self.folder.name) / "instruments.toml"
        self.instruments.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.book["scalars"][ENGINE_STATE] = STATE_READY
        self._client_order_id = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(0.1):
            self.book.heartbeat(time.monotonic_ns())

    def gateway(self, *arguments: str) -> Server:
        """Start a gateway that follows this venue."""
        pair = ("--pair", self.instrument.pair, "--instruments", str(self.instruments))
        return Server("-m", "mdgateway", *pair, "--port", "0", *arguments)

    def orders(self, count: int) -> Rows:
        """Return orders that rest, each at another one of fifty prices below the middle."""
        first, self._client_order_id = self._client_order_id + 1, self._client_order_id + count
        force, limit = TimeInForce.GOOD_TILL_CANCELLED, OrderType.LIMIT
        verb = command_verb(CommandKind.NEW_ORDER, 1, Side.BUY, limit, force)
        rows = np.zeros((count, 8), np.int64)
        for index, number in enumerate(range(first, first + count)):
            price = command_price(MIDDLE - number % 50, SelfTradePrevention.NONE)
            rows[index] = (verb, number, 0, price, 1, 0, 0, 0)
        return rows

    def publish(self, commands: Rows) -> None:
        """Apply commands as one batch."""
        executions = self.engine.apply(commands, START_NS)
        assert len(executions) == len(commands), "a command did not do just one thing"

    def close(self) -> None:
        """End the heartbeat, then give everything back."""
        self._ended.set()
        self._thread.join()
        self.folder.cleanup()
        super().close()


async def opened(channel: Any, pair: str, level_count: int = 50) -> Any:
    """Open a depth stream of raw bytes and read its snapshot."""
    request = market_data_pb2.StreamDepthRequest(pair=pair, level_count=level_count)
    call = channel.unary_stream(STREAM)(request.SerializeToString(), wait_for_ready=True)
    while True:
        message = market_data_pb2.StreamDepthResponse.FromString(await call.read())
        if message.HasField("snapshot"):
            return call
