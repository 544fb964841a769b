"""The doors of traders: single orders, session, batches, private executions.

Every method reads its caller's account, lets `engine.order_entry` or `engine.entry.batches` form
commands, and waits for the follower. Streams answer in the order of their messages and stop
reading while `limit` answers are unread, so a client that never reads costs a bounded amount and
blocks nobody.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Generic, TypeVar

from engine.durability.execution_reader import ExecutionsPruned
from engine.entry.answers import Answer, Follower
from engine.entry.batches import records_of_message
from engine.entry.process import EntryProcess
from engine.entry.reports import executions_of, order_of
from engine.order_entry import (
    Command,
    account_of_text,
    amend_command,
    cancel_all_command,
    cancel_command,
    submit_command,
)
from exchange.packed import RECORD_VERSION
from exchange.records import Rows
from exchange.refusal import Code, Refusal, Refused
from exchange.service import Context
from exchange.v1 import execution_pb2, order_entry_pb2, order_entry_pb2_grpc, stream_pb2

ACCOUNT_KEY: Final = "holdfast-account"
SESSION_LIMIT: Final = 1_024
"""Unread answers of a session."""
BATCH_ANSWERS: Final = 32
"""Unread answers of a batch stream: at most 12 MiB of acknowledgements."""
PAGE_DEFAULT: Final = 100
PAGE_LIMIT: Final = 1_000
STREAM_ROWS: Final = 4_096
"""Most executions a private stream looks through before it lets others run."""
STREAM_EXECUTIONS: Final = 512
HEARTBEAT_S: Final = 1

Item = TypeVar("Item")


class Answers(Generic[Item]):
    """A bounded line of answers between the reader and the writer of one stream."""

    def __init__(self, limit: int) -> None:
        self._items: deque[Item] = deque()
        self._limit = limit
        self._changed = asyncio.Event()
        self._closed = False

    async def room(self) -> None:
        """Wait while the line is full: what keeps the reader from reading on."""
        while len(self._items) >= self._limit:
            await self._wait()

    def put(self, item: Item) -> None:
        """Add an answer, whatever room there is: its command is already entered."""
        self._items.append(item)
        self._changed.set()

    async def get(self) -> Item | None:
        """Return the next answer; None once the line is closed and empty."""
        while not self._items:
            if self._closed:
                return None
            await self._wait()
        item = self._items.popleft()
        self._changed.set()
        return item

    def close(self) -> None:
        """Nothing more will be put."""
        self._closed = True
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def refusal_message(refusal: Refusal) -> execution_pb2.Refusal:
    """Return a refusal as it answers one message of a stream."""
    return execution_pb2.Refusal(
        code=int(refusal.code),
        reason=refusal.reason,
        message=refusal.message,
        field=refusal.field,
        value=refusal.value,
        limit=refusal.limit,
    )


def account_of(context: Context) -> int:
    """Return the account the caller names in its metadata. Raises Refused."""
    given: Any = ""
    for key, value in context.invocation_metadata() or ():
        if key == ACCOUNT_KEY:
            given = value
    account = account_of_text(ACCOUNT_KEY, given)
    if isinstance(account, Refusal):
        raise Refused(account)
    return account


def accept(value: Item | Refusal) -> Item:
    """Return the value. Raises Refused if it is a refusal."""
    if isinstance(value, Refusal):
        raise Refused(value)
    return value


async def outcome(reader: "asyncio.Task[None]") -> None:
    """Wait for a stream's reader; raise what ended it, unless that was the drain."""
    await asyncio.wait((reader,))
    if not reader.cancelled() and (error := reader.exception()) is not None:
        raise error


SessionItem = tuple[int, "asyncio.Future[Answer] | Refusal | order_entry_pb2.SessionOptions"]
BatchItem = tuple[int, "asyncio.Future[Answer] | Refusal"]


class OrderEntryService(order_entry_pb2_grpc.OrderEntryServiceServicer):
    """The servicer of one process."""

    def __init__(self, process: EntryProcess) -> None:
        self._process = process
        self._instrument = process.instrument
        self._readers: set[asyncio.Task[None]] = set()

    def _check_pair(self, pair: str) -> None:
        refusal = self._process.pair_refusal(pair)
        if refusal is not None:
            raise Refused(refusal)

    async def _report(
        self, command: Command | Refusal, account: int
    ) -> execution_pb2.CommandReport:
        accepted = accept(command)
        refusal = self._process.rate_refusal(account, 1)
        if refusal is not None:
            raise Refused(refusal)
        return await self._process.report(accepted, account)

    # Single commands.

    async def SubmitOrder(
        self, request: order_entry_pb2.SubmitOrderRequest, context: Context
    ) -> order_entry_pb2.SubmitOrderResponse:
        """Enter one order."""
        account = account_of(context)
        self._check_pair(request.pair)
        command = submit_command(self._instrument, account, request)
        report = await self._report(command, account)
        return order_entry_pb2.SubmitOrderResponse(report=report)

    async def CancelOrder(
        self, request: order_entry_pb2.CancelOrderRequest, context: Context
    ) -> order_entry_pb2.CancelOrderResponse:
        """Cancel one order."""
        account = account_of(context)
        self._check_pair(request.pair)
        report = await self._report(cancel_command(account, request), account)
        return order_entry_pb2.CancelOrderResponse(report=report)

    async def AmendOrder(
        self, request: order_entry_pb2.AmendOrderRequest, context: Context
    ) -> order_entry_pb2.AmendOrderResponse:
        """Change one order."""
        account = account_of(context)
        self._check_pair(request.pair)
        command = amend_command(self._instrument, account, request)
        return order_entry_pb2.AmendOrderResponse(report=await self._report(command, account))

    async def CancelAllOrders(
        self, request: order_entry_pb2.CancelAllOrdersRequest, context: Context
    ) -> order_entry_pb2.CancelAllOrdersResponse:
        """Cancel all orders of the account."""
        account = account_of(context)
        self._check_pair(request.pair)
        report = await self._report(cancel_all_command(account, request.side), account)
        return order_entry_pb2.CancelAllOrdersResponse(report=report)

    # Looking.

    def _index_follower(self) -> Follower:
        if not self._process.index_complete:
            reason = "the log no longer reaches back to the first open order, and no snapshot does"
            raise Refused(Refusal(Code.UNAVAILABLE, "INDEX_INCOMPLETE", reason))
        follower = self._process.follower
        # Another process of the pair may have answered for an order this one has not looked at.
        follower.catch_up()
        return follower

    async def GetOrder(
        self, request: order_entry_pb2.GetOrderRequest, context: Context
    ) -> order_entry_pb2.GetOrderResponse:
        """Show one order."""
        account = account_of(context)
        self._check_pair(request.pair)
        index = self._index_follower().index
        found = index.find(account, request.order_id, request.client_order_id)
        if found is None:
            field = "order_id" if request.order_id else "client_order_id"
            value = str(request.order_id or request.client_order_id)
            sentence = f"account {account} has no order with {field} {value} open or lately ended"
            raise Refused(
                Refusal(
                    Code.NOT_FOUND,
                    "ORDER_UNKNOWN",
                    sentence,
                    field,
                    value,
                    "an order of the calling account, open or lately ended",
                )
            )
        return order_entry_pb2.GetOrderResponse(
            order=order_of(self._instrument, found), as_of_number=index.number
        )

    async def ListOpenOrders(
        self, request: order_entry_pb2.ListOpenOrdersRequest, context: Context
    ) -> order_entry_pb2.ListOpenOrdersResponse:
        """List the account's open orders."""
        account = account_of(context)
        self._check_pair(request.pair)
        index = self._index_follower().index
        if request.page_size < 0:
            raise Refused(
                Refusal.of_field("PAGE_SIZE", "page_size", request.page_size, "0 or more")
            )
        token = request.page_token
        first = int(token) if token.isascii() and token.isdigit() and len(token) <= 9 else 0
        if token and not first:
            limit = "empty, or a next_page_token"
            raise Refused(Refusal.of_field("PAGE_TOKEN", "page_token", token, limit))
        size = min(request.page_size or PAGE_DEFAULT, PAGE_LIMIT)
        orders, following = index.page(account, first, size)
        return order_entry_pb2.ListOpenOrdersResponse(
            orders=[order_of(self._instrument, order) for order in orders],
            next_page_token=str(following) if following else "",
            as_of_number=index.number,
        )

    # Streams.

    def _opened(self, reader: "asyncio.Task[None]") -> None:
        self._readers.add(reader)
        if self._process.draining:
            reader.cancel()

    def _ended(self, reader: "asyncio.Task[None]") -> None:
        reader.cancel()
        self._readers.discard(reader)

    async def say_goodbye(self) -> None:
        """Have all streams answer what they took, say goodbye and end."""
        self._process.drain()
        for reader in tuple(self._readers):
            reader.cancel()

    def _goodbye(self, resume_from: int = 0) -> stream_pb2.Goodbye:
        return stream_pb2.Goodbye(reason="DRAINING", resume_from=resume_from)

    async def Session(
        self, request_iterator: AsyncIterator[order_entry_pb2.SessionRequest], context: Context
    ) -> AsyncIterator[order_entry_pb2.SessionResponse]:
        """Take pipelined commands; answer them in order."""
        account = account_of(context)
        answers: Answers[SessionItem] = Answers(SESSION_LIMIT)
        options = order_entry_pb2.SessionOptions()

        async def read() -> None:
            try:
                async for message in request_iterator:
                    item = self._session_item(message, account, options)
                    answers.put((message.request_id, item))
                    await answers.room()
            finally:
                answers.close()

        reader = asyncio.create_task(read())
        self._opened(reader)
        try:
            while (item := await answers.get()) is not None:
                yield await self._session_answer(item, account)
            await outcome(reader)
            if self._process.draining:
                yield order_entry_pb2.SessionResponse(goodbye=self._goodbye())
        finally:
            self._ended(reader)
            if options.cancel_on_disconnect:
                self._process.cancel_on_disconnect(account)

    def _session_item(
        self,
        message: order_entry_pb2.SessionRequest,
        account: int,
        options: order_entry_pb2.SessionOptions,
    ) -> "asyncio.Future[Answer] | Refusal | order_entry_pb2.SessionOptions":
        """Enter one message of a session; return what becomes its answer."""
        form = message.WhichOneof("command")
        if form is None:
            return Refusal.of_field("FIELD_MISSING", "command", "", "one of the commands")
        request = getattr(message, form)
        refusal = self._process.pair_refusal(request.pair or options.pair)
        if refusal is not None:
            return refusal
        if form == "options":
            options.CopyFrom(request)
            return options
        enter: dict[str, Callable[[Any], Command | Refusal]] = {
            "submit": lambda request: submit_command(self._instrument, account, request),
            "cancel": lambda request: cancel_command(account, request),
            "amend": lambda request: amend_command(self._instrument, account, request),
            "cancel_all": lambda request: cancel_all_command(account, request.side),
        }
        command = enter[form](request)
        if isinstance(command, Refusal):
            return command
        return self._process.rate_refusal(account, 1) or self._process.enter(command)

    async def _session_answer(
        self, item: SessionItem, account: int
    ) -> order_entry_pb2.SessionResponse:
        request_id, pending = item
        answer = order_entry_pb2.SessionResponse(request_id=request_id)
        if isinstance(pending, Refusal):
            answer.refusal.CopyFrom(refusal_message(pending))
        elif isinstance(pending, order_entry_pb2.SessionOptions):
            answer.options.CopyFrom(pending)
        else:
            answer.report.CopyFrom(self._process.report_of(await pending, account))
        return answer

    async def SubmitBatches(
        self,
        request_iterator: AsyncIterator[order_entry_pb2.SubmitBatchesRequest],
        context: Context,
    ) -> AsyncIterator[order_entry_pb2.SubmitBatchesResponse]:
        """Take packed batches; answer each by packed acknowledgements."""
        account = account_of(context)
        answers: Answers[BatchItem] = Answers(BATCH_ANSWERS)

        async def read() -> None:
            pair = ""
            try:
                async for message in request_iterator:
                    pair = message.pair or pair
                    self._check_pair(pair)
                    records = accept(records_of_message(message))
                    pending: asyncio.Future[Answer] | Refusal | None
                    pending = self._process.rate_refusal(account, len(records))
                    if pending is None:
                        pending = await self._process.enter_records(records, account)
                    answers.put((message.batch_number, pending))
                    await answers.room()
            finally:
                answers.close()

        reader = asyncio.create_task(read())
        self._opened(reader)
        try:
            while (item := await answers.get()) is not None:
                batch_number, pending = item
                answer = order_entry_pb2.SubmitBatchesResponse(
                    batch_number=batch_number, record_version=RECORD_VERSION
                )
                if isinstance(pending, Refusal):
                    answer.refusal.CopyFrom(refusal_message(pending))
                else:
                    answer.acks = (await pending).acks.tobytes()
                yield answer
            # What came before a malformed message has its answer by now.
            await outcome(reader)
            if self._process.draining:
                yield order_entry_pb2.SubmitBatchesResponse(goodbye=self._goodbye())
        finally:
            self._ended(reader)

    async def StreamExecutions(
        self, request: order_entry_pb2.StreamExecutionsRequest, context: Context
    ) -> AsyncIterator[order_entry_pb2.StreamExecutionsResponse]:
        """Show the account its executions from a number on."""
        account = account_of(context)
        self._check_pair(request.pair)
        follower = self._process.follower
        number = follower.number if request.from_number == -1 else request.from_number
        check_number(follower, number)
        answer = order_entry_pb2.StreamExecutionsResponse
        while not self._process.draining:
            if not await follower.grown(number, HEARTBEAT_S):
                beat = stream_pb2.Heartbeat(time_ns=time.time_ns(), position=number)
                yield answer(next_number=number, heartbeat=beat)
                continue
            rows = read_from(follower, number, STREAM_ROWS)
            found, used = executions_of(self._instrument, rows, number, account, STREAM_EXECUTIONS)
            number += used
            if found:
                yield answer(executions=found, next_number=number)
            else:
                await asyncio.sleep(0)
        yield answer(next_number=number, goodbye=self._goodbye(number))


def check_number(follower: Follower, number: int) -> None:
    """Refuse a log number that is not, or no longer, or not yet there. Raises Refused."""
    first, committed = follower.reader.first(), follower.reader.committed()
    if not first <= number <= committed:
        raise Refused(_out_of_range(number, first, committed))


def read_from(follower: Follower, number: int, limit: int) -> Rows:
    """Return followed rows from `number` on. Raises Refused if they were pruned meanwhile."""
    try:
        return follower.reader.read(number, max(0, min(limit, follower.number - number)))
    except ExecutionsPruned as error:
        committed = follower.reader.committed()
        raise Refused(_out_of_range(number, error.first, committed)) from error


def _out_of_range(number: int, first: int, committed: int) -> Refusal:
    limit = f"from {first} to {committed}, what the log holds"
    return Refusal(
        Code.OUT_OF_RANGE,
        "NUMBER_OUT_OF_RANGE",
        f"from_number is {number}; it must be {limit}",
        "from_number",
        str(number),
        limit,
    )
