"""The pipelined doors: a session of single commands, and batches as numpy arrays.

Both answer in the order in which they were asked. A session ends with its connection, because
what shall happen to its orders then was agreed at its start; every command without an answer
raises `Unavailable` and may be sent again, elsewhere, with the same client order id. A batch
stream heals: batches without an answer are sent again, in their order, before newer ones.

Not here: single calls, market data (see `holdfast.client`).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc

from exchange.enums import Side
from exchange.v1 import execution_pb2, order_entry_pb2
from holdfast import packed, requests
from holdfast.calls import Metadata
from holdfast.errors import CallFailed, TryAgain, Unavailable, of_refusal, of_rpc_error
from holdfast.retry import Attempts, Retry

_UNAVAILABLE: Final = 14


def _lost(message: str) -> Unavailable:
    return Unavailable(_UNAVAILABLE, message, "STREAM_LOST")


class AsyncSession:
    """One pipelined stream of commands. Use as an async context manager.

    Every method returns the report once the exchange has answered; several may wait at a time.
    """

    def __init__(
        self,
        stub: Any,
        pair: str,
        metadata: Metadata,
        ids: requests.ClientOrderIds,
        *,
        cancel_on_disconnect: bool,
    ) -> None:
        self._stub = stub
        self._pair = pair
        self._metadata = metadata
        self._ids = ids
        self._cancel_on_disconnect = cancel_on_disconnect
        self._outgoing: asyncio.Queue[order_entry_pb2.SessionRequest | None] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[order_entry_pb2.SessionResponse]] = {}
        self._last_request_id = 0
        self._reader: asyncio.Task[None] | None = None
        self._ended: CallFailed | None = None

    async def __aenter__(self) -> Self:
        call = self._stub.Session(self._requests(), metadata=self._metadata)
        self._reader = asyncio.create_task(self._read(call))
        options = order_entry_pb2.SessionOptions(
            pair=self._pair, cancel_on_disconnect=self._cancel_on_disconnect
        )
        try:
            await self._ask(options=options)
        except BaseException:
            self._reader.cancel()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send nothing more, wait for what is still to be answered, end the stream."""
        assert self._reader is not None
        self._outgoing.put_nowait(None)
        await asyncio.wait((self._reader,))

    @property
    def ended(self) -> CallFailed | None:
        """Why the session takes nothing more; None while it does."""
        return self._ended

    async def submit(
        self, side: Side, *, client_order_id: int = 0, **order: Any
    ) -> execution_pb2.CommandReport:
        """Enter an order; what it takes besides is that of `requests.submit_request`."""
        given = client_order_id or self._ids()
        return await self._report(submit=requests.submit_request("", given, side, **order))

    async def cancel(
        self, order_id: int = 0, client_order_id: int = 0
    ) -> execution_pb2.CommandReport:
        """Cancel an order."""
        return await self._report(cancel=requests.cancel_request("", order_id, client_order_id))

    async def amend(
        self, order_id: int = 0, client_order_id: int = 0, *, price: str = "", quantity: str = ""
    ) -> execution_pb2.CommandReport:
        """Change an order."""
        request = requests.amend_request(
            "", order_id, client_order_id, price=price, quantity=quantity
        )
        return await self._report(amend=request)

    async def cancel_all(self, side: Side = Side.UNSPECIFIED) -> execution_pb2.CommandReport:
        """Cancel all orders of a side, or of both."""
        return await self._report(cancel_all=requests.cancel_all_request("", side))

    async def _report(self, **command: Any) -> execution_pb2.CommandReport:
        return (await self._ask(**command)).report

    async def _ask(self, **command: Any) -> order_entry_pb2.SessionResponse:
        if self._ended is not None:
            raise self._ended
        self._last_request_id += 1
        request_id = self._last_request_id
        future = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        self._outgoing.put_nowait(order_entry_pb2.SessionRequest(request_id=request_id, **command))
        answer: order_entry_pb2.SessionResponse = await future
        if answer.WhichOneof("answer") == "refusal":
            raise of_refusal(answer.refusal)
        return answer

    async def _requests(self) -> AsyncIterator[order_entry_pb2.SessionRequest]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _read(self, call: Any) -> None:
        ended = _lost("the session has ended")
        try:
            async for answer in call:
                if answer.WhichOneof("answer") == "goodbye":
                    ended = _lost(f"the server said goodbye: {answer.goodbye.reason}")
                    self._ended = ended
                    self._outgoing.put_nowait(None)
                    continue
                future = self._waiting.pop(answer.request_id, None)
                if future is not None and not future.done():
                    future.set_result(answer)
        except grpc.RpcError as error:
            ended = of_rpc_error(error)  # type: ignore[assignment]
        finally:
            call.cancel()
            self._ended = ended
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ended)
            self._waiting.clear()


@dataclass(slots=True)
class _Batch:
    number: int
    content: bytes
    answer: "asyncio.Future[packed.Acks]"


class AsyncBatches:
    """One stream of packed batches. Use as an async context manager.

    A batch that had no answer when the connection broke is sent again, in its place. That is safe
    for new orders (their client order ids), cancels and amends to a whole quantity; an amend that
    says what to leave open could be applied twice.
    """

    def __init__(
        self, stub: Any, pair: str, metadata: Metadata, retry: Retry, *, window: int = 16
    ) -> None:
        if not 1 <= window <= 1_024:
            raise ValueError(f"window is {window}; it must be from 1 to 1024")
        self._stub = stub
        self._pair = pair
        self._metadata = metadata
        self._retry = retry
        self._room = asyncio.Semaphore(window)
        self._waiting: deque[_Batch] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._last_number = 0
        self._runner: asyncio.Task[None] | None = None
        self.reconnect_count = 0
        """How often the stream was opened again."""

    async def __aenter__(self) -> Self:
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for what is still to be answered, then end the stream."""
        assert self._runner is not None
        self._closing = True
        self._changed.set()
        if error is not None:
            self._runner.cancel()
        await asyncio.wait((self._runner,))

    async def submit(self, records: packed.Records) -> packed.Acks:
        """Send one batch, (n,) of RECORD_DTYPE; return its (n,) acknowledgements.

        Waits while as many batches as the window holds are unanswered. Raises CallFailed if the
        batch was refused as a whole, ValueError if the array is none of ours.
        """
        content = packed.check_records(records)
        await self._room.acquire()
        try:
            return await self._enter(content)
        finally:
            self._room.release()

    async def _enter(self, content: bytes) -> packed.Acks:
        assert self._runner is not None, "a batch stream is used inside `async with`"
        if self._closing or self._runner.done():
            raise _lost("the batch stream is closed")
        self._last_number += 1
        future: asyncio.Future[packed.Acks] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Batch(self._last_number, content, future))
        self._changed.set()
        return await future

    async def _run(self) -> None:
        attempts = Attempts(self._retry)
        try:
            while not self._closing or self._waiting:
                if not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                    attempts.begin()
                    continue
                failed = await self._serve(attempts)
                if failed is None:
                    continue
                if not isinstance(failed, TryAgain) or attempts.spent():
                    self._fail(failed)
                    attempts.begin()
                    continue
                await attempts.pause()
                self.reconnect_count += 1
        finally:
            self._fail(_lost("the batch stream is closed"))

    async def _serve(self, attempts: Attempts) -> CallFailed | None:
        """Work on one connection until it ends; return why it did, None for a good end."""
        call = self._stub.SubmitBatches(self._requests(), metadata=self._metadata)
        try:
            async for answer in call:
                if answer.HasField("goodbye"):
                    return _lost(f"the server said goodbye: {answer.goodbye.reason}")
                attempts.begin()
                self._answered(answer)
        except grpc.RpcError as error:
            return of_rpc_error(error)
        finally:
            call.cancel()
        return _lost("the server ended the stream") if self._waiting else None

    async def _requests(self) -> AsyncIterator[order_entry_pb2.SubmitBatchesRequest]:
        """Yield every unanswered batch once, oldest first, as they come."""
        sent = 0
        while True:
            fresh = [batch for batch in self._waiting if batch.number > sent]
            for batch in fresh:
                sent = batch.number
                yield order_entry_pb2.SubmitBatchesRequest(
                    pair=self._pair,
                    record_version=packed.RECORD_VERSION,
                    batch_number=batch.number,
                    records=batch.content,
                )
            if fresh:
                continue
            if self._closing:
                return
            self._changed.clear()
            await self._changed.wait()

    def _answered(self, answer: order_entry_pb2.SubmitBatchesResponse) -> None:
        batch = self._waiting.popleft()
        assert batch.number == answer.batch_number, (
            f"batch {answer.batch_number} was answered before batch {batch.number}"
        )
        if batch.answer.done():
            return  # Nobody waits any more.
        if answer.HasField("refusal"):
            batch.answer.set_exception(of_refusal(answer.refusal))
        else:
            batch.answer.set_result(packed.acks_of(answer.acks))

    def _fail(self, error: CallFailed) -> None:
        for batch in self._waiting:
            if not batch.answer.done():
                batch.answer.set_exception(error)
        self._waiting.clear()
