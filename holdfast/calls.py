"""Calls and streams that heal: again while nobody answers, within one patience."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc

from holdfast.errors import CallFailed, TryAgain, Unavailable, of_rpc_error
from holdfast.retry import Attempts, Retry

CHANNEL_OPTIONS: Final = (
    # Each client has connections of its own: the kernel spreads them over the server's processes.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
)


class Closing:
    """A client that is closed at the end of `async with`."""

    async def close(self) -> None:
        """End all calls and connections."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


Message = TypeVar("Message")
Metadata = tuple[tuple[str, str], ...]


async def made(
    method: Callable[..., Awaitable[Message]], request: Any, retry: Retry, metadata: Metadata = ()
) -> Message:
    """Make a call, again while the trouble may pass. Raises CallFailed."""
    attempts = Attempts(retry)
    while True:
        try:
            return await method(request, metadata=metadata, timeout=attempts.attempt_s())
        except grpc.RpcError as error:
            failed = of_rpc_error(error)
        if not isinstance(failed, TryAgain) or attempts.spent():
            raise failed
        await attempts.pause()


async def until_lost(
    stream: Any, attempts: Attempts, silence_s: float | None = None
) -> AsyncIterator[Any]:
    """Yield a stream's messages until it says goodbye or the connection is lost, then pause.

    A stream that beats is lost as well when it says nothing for `silence_s`. Raises CallFailed if
    trying again is of no use, or was for too long.
    """
    failed: CallFailed
    try:
        async for message in _heard(stream, silence_s):
            attempts.begin()
            if message.HasField("goodbye"):
                break
            yield message
        failed = Unavailable(14, "the server ended the stream", "STREAM_LOST")
    except TimeoutError:
        failed = Unavailable(14, f"nothing was heard for {silence_s} s", "STREAM_SILENT")
    except grpc.RpcError as error:
        failed = of_rpc_error(error)
    finally:
        stream.cancel()
    if not isinstance(failed, TryAgain) or attempts.spent():
        raise failed
    await attempts.pause()


async def _heard(stream: Any, silence_s: float | None) -> AsyncIterator[Any]:
    """Yield a stream's messages; raises TimeoutError after so long a silence."""
    messages = aiter(stream)
    while True:
        async with asyncio.timeout(silence_s):
            message = await anext(messages, None)
        if message is None:
            return
        yield message
