"""A client that believes nothing: sockets are cut under it, and it goes on as documented.

It knows `docs/market-data.md` and the generated messages, nothing else of the gateway.
"""

import contextlib
import random
import socket
import threading
import zlib
from typing import Any

import grpc

from exchange.v1 import market_data_pb2, market_data_pb2_grpc

Levels = dict[tuple[int, int], tuple[int, int]]


class Cable:
    """A line between a client and a server that a test can cut; connections may come again."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                client.close()
                continue
            self._ends += [client, server]
            for source, target in ((client, server), (server, client)):
                thread = threading.Thread(target=_pump, args=(source, target), daemon=True)
                thread.start()
                self._threads.append(thread)

    def cut(self) -> None:
        """Break every connection, in the middle of whatever it carries."""
        ends, self._ends = self._ends, []
        for end in ends:
            _shut(end)

    def close(self) -> None:
        """End the line for good."""
        _shut(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # The other side was quicker.
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):  # Cut.
        while content := source.recv(65_536):
            target.sendall(content)
    _shut(source)
    _shut(target)


class PlainClient:
    """Follows one pair's depth through whatever happens, and keeps every book it had."""

    def __init__(self, port: int, pair: str, level_count: int, seed: int) -> None:
        self._request = market_data_pb2.StreamDepthRequest(pair=pair, level_count=level_count)
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.max_receive_message_length", 64 << 20),
        ]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._chance = random.Random(seed)
        self.levels: Levels = {}
        self.epoch = self.sequence = 0
        self.books: list[tuple[int, int, Levels]] = []
        """(epoch, sequence, levels) as of each message."""
        self.snapshot_count = self.resume_count = self.stream_count = self.drop_count = 0
        self.trouble: BaseException | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, condition: Any, patience_s: float) -> None:
        """Wait until the client's state fulfils a condition."""
        with self._changed:
            held = self._changed.wait_for(lambda: self.trouble or condition(self), patience_s)
        if self.trouble is not None:
            raise AssertionError("the stream is wrong") from self.trouble
        assert held, f"nothing after {patience_s} s: epoch {self.epoch}, sequence {self.sequence}"

    def close(self) -> None:
        """End the stream."""
        self._ended = True
        self._call.cancel()
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        stub = market_data_pb2_grpc.MarketDataServiceStub(self._channel)
        try:
            while not self._ended:
                self.stream_count += 1
                self._request.held_epoch = self.epoch
                self._request.held_sequence = self.sequence
                self._call = stub.StreamDepth(self._request, wait_for_ready=True)
                self._follow(self._call)
        except BaseException as error:
            with self._changed:
                self.trouble = error
                self._changed.notify_all()

    def _follow(self, call: Any) -> None:
        first = True
        try:
            for message in call:
                kind = message.WhichOneof("event")
                if kind not in {"snapshot", "update"}:
                    continue
                if kind == "update" and not first and self._chance.random() < 0.02:
                    # As if it had been lost on the way: the next one must not fit.
                    self.drop_count += 1
                    continue
                with self._changed:
                    fits = self._take(message, kind, first)
                    self._changed.notify_all()
                if not fits:
                    call.cancel()
                    return
                first = False
        except grpc.RpcError as error:
            wanted = {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
            if error.code() not in wanted:
                raise

    def _take(self, message: Any, kind: str, first: bool) -> bool:
        content = getattr(message, kind)
        if kind == "snapshot":
            self.snapshot_count += 1
            self.levels = {}
        elif (content.epoch, content.previous_sequence) != (self.epoch, self.sequence):
            return False
        else:
            self.resume_count += first
        for side, levels in enumerate((content.bids, content.asks), start=1):
            for level in levels:
                key = (side, level.price_ticks)
                self.levels.pop(key, None)
                if level.quantity_lots:
                    self.levels[key] = (level.quantity_lots, level.order_count)
        self.epoch, self.sequence = content.epoch, content.sequence
        assert content.checksum == self._checksum(), f"checksum at {self.sequence}"
        self.books.append((self.epoch, self.sequence, dict(self.levels)))
        return True

    def _checksum(self) -> int:
        sides = []
        for side in 1, 2:
            prices = sorted((price for of, price in self.levels if of == side), reverse=side == 1)
            sides.append(
                ",".join(f"{price}:{self.levels[side, price][0]}" for price in prices[:10])
            )
        return zlib.crc32("|".join(sides).encode())
