"""Following a pair's execution log from another process: every execution once, in order.

`ExecutionFeed.chunks` yields what the log holds from a number on and goes on where it stopped when
the connection or the server goes away. What it yields is consecutive; a server that leaves out or
repeats a number is `FeedBroken`, never skipped over. Where the log no longer reaches back, or has
never reached, the follower must decide: `FeedOutOfRange`.

It keeps no cursor: the follower commits its own together with what it did, and `confirm` tells
the pair that older records may go.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc
import numpy as np
import numpy.typing as npt
from grpc import aio

from exchange.identity import open_channel
from exchange.records import EXECUTION_BYTES, EXECUTION_WORDS
from exchange.v1 import execution_feed_pb2, execution_feed_pb2_grpc

Rows = npt.NDArray[np.int64]
Answer = execution_feed_pb2.FollowExecutionsResponse

RECORD_VERSION: Final = 1
FIRST_PAUSE_S: Final = 0.05
LAST_PAUSE_S: Final = 1.0
"""A lost connection is tried again after the first pause, then after twice as long, up to this."""
SILENCE_LIMIT_S: Final = 5
"""The server says something every second; so long a silence is a dead connection."""
CALL_LIMIT_S: Final = 5
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


class FeedBroken(Exception):
    """The server breaks its own contract: numbers missing or repeated, torn records."""


class FeedOutOfRange(Exception):
    """The log does not hold the number asked for: pruned already, or not written yet."""

    def __init__(self, pair: str, number: int, sentence: str) -> None:
        super().__init__(f"the execution log of {pair} cannot go on at {number}: {sentence}")
        self.number = number


class FeedRefused(Exception):
    """The server will never serve this follower: wrong pair or record format."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive executions, or a sign of life without any."""

    first_number: int
    rows: Rows
    """(k, 16), read-only."""
    committed_number: int
    """How far the log reached when this was sent (exclusive)."""

    @property
    def next_number(self) -> int:
        """Return the number after the last one of the chunk."""
        return self.first_number + len(self.rows)


class ExecutionFeed:
    """The execution log of one pair at one address. Use as an async context manager."""

    def __init__(self, target: str, pair: str) -> None:
        self.pair = pair
        self.target = target
        self.connected = False
        """True while the server is heard."""
        self._channel = open_channel(
            target,
            options=(
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 1_000),
                ("grpc.max_receive_message_length", 16 << 20),
                ("grpc.enable_http_proxy", 0),
            ),
        )
        self._stub = execution_feed_pb2_grpc.ExecutionFeedServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def chunks(self, from_number: int) -> AsyncGenerator[Chunk, None]:
        """Yield the log from a number on, for ever, over lost connections and restarts.

        Raises FeedOutOfRange, FeedRefused, FeedBroken.
        """
        number, pause_s = from_number, FIRST_PAUSE_S
        while True:
            request = execution_feed_pb2.FollowExecutionsRequest(
                pair=self.pair, from_number=number, record_version=RECORD_VERSION
            )
            call = self._stub.FollowExecutions(request)
            try:
                while True:
                    async with asyncio.timeout(SILENCE_LIMIT_S):
                        answer = await call.read()
                    # At the end of the stream `read` gives a sentinel instead of a message.
                    if not isinstance(answer, Answer) or answer.HasField("goodbye"):
                        break
                    chunk = _chunk(answer, number)
                    number, pause_s, self.connected = chunk.next_number, FIRST_PAUSE_S, True
                    yield chunk
            except grpc.RpcError as error:
                self._raise_lasting(error, number)
            except TimeoutError:
                pass
            finally:
                self.connected = False
                call.cancel()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def _raise_lasting(self, error: grpc.RpcError, number: int) -> None:
        assert isinstance(error, aio.AioRpcError)
        if error.code() == grpc.StatusCode.OUT_OF_RANGE:
            raise FeedOutOfRange(self.pair, number, error.details() or "") from error
        if error.code() not in _PASSING:
            raise FeedRefused(f"{self.target} refuses {self.pair}: {error.details()}") from error

    async def confirm(self, consumer: str, number: int) -> int:
        """Say that a consumer needs nothing below a number; return what is on record.

        That is never less than was confirmed before: a consumer behind it has lost what it did.
        Raises grpc.RpcError.
        """
        request = execution_feed_pb2.ConfirmExecutionsRequest(
            pair=self.pair, consumer=consumer, number=number
        )
        answer = await self._stub.ConfirmExecutions(request, timeout=CALL_LIMIT_S)
        return int(answer.number)


def _chunk(answer: Answer, number: int) -> Chunk:
    if answer.first_number != number:
        raise FeedBroken(f"execution {number} was due and {answer.first_number} came")
    if len(answer.records) % EXECUTION_BYTES:
        raise FeedBroken(f"{len(answer.records)} bytes are no whole records")
    rows = np.frombuffer(answer.records, "<i8").astype(np.int64, copy=False)
    return Chunk(number, rows.reshape(-1, EXECUTION_WORDS), answer.committed_number)
