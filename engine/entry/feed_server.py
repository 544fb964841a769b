"""The door of followers: the execution log as it is, for the ledger and its like."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

from engine.durability.execution_reader import confirm, consumers
from engine.entry.order_server import HEARTBEAT_S, check_number, read_from
from engine.entry.process import EntryProcess
from exchange.refusal import Code, Refusal, Refused
from exchange.service import Context
from exchange.v1 import execution_feed_pb2, execution_feed_pb2_grpc, stream_pb2

RECORD_VERSION: Final = 1
CHUNK_ROWS: Final = 4_096
"""Most records of one message: half a MiB."""


class ExecutionFeedService(execution_feed_pb2_grpc.ExecutionFeedServiceServicer):
    """The servicer of one process. A stream's queue is the log itself."""

    def __init__(self, process: EntryProcess) -> None:
        self._process = process

    def _check_pair(self, pair: str) -> None:
        refusal = self._process.pair_refusal(pair)
        if refusal is not None:
            raise Refused(refusal)

    async def FollowExecutions(
        self, request: execution_feed_pb2.FollowExecutionsRequest, context: Context
    ) -> AsyncIterator[execution_feed_pb2.FollowExecutionsResponse]:
        """Hand out consecutive records from a number on."""
        self._check_pair(request.pair)
        if request.record_version != RECORD_VERSION:
            version, wanted = request.record_version, str(RECORD_VERSION)
            raise Refused(Refusal.of_field("RECORD_VERSION", "record_version", version, wanted))
        follower, number = self._process.follower, request.from_number
        check_number(follower, number)
        answer = execution_feed_pb2.FollowExecutionsResponse
        while not self._process.draining:
            if not await follower.grown(number, HEARTBEAT_S):
                beat = stream_pb2.Heartbeat(time_ns=time.time_ns(), position=number)
                yield answer(first_number=number, committed_number=number, heartbeat=beat)
                continue
            rows = read_from(follower, number, CHUNK_ROWS)
            if len(rows):
                yield answer(
                    first_number=number,
                    records=rows.tobytes(),
                    committed_number=follower.reader.committed(),
                )
                number += len(rows)
        goodbye = stream_pb2.Goodbye(reason="DRAINING", resume_from=number)
        yield answer(first_number=number, committed_number=number, goodbye=goodbye)

    async def ConfirmExecutions(
        self, request: execution_feed_pb2.ConfirmExecutionsRequest, context: Context
    ) -> execution_feed_pb2.ConfirmExecutionsResponse:
        """Record that a consumer needs nothing below a number any more."""
        self._check_pair(request.pair)
        consumer, number = request.consumer, request.number
        if not (0 < len(consumer) <= 32) or consumer == "order-entry":
            limit = "1 to 32 letters, digits and hyphens, and not order-entry"
            raise Refused(Refusal.of_field("CONSUMER_INVALID", "consumer", consumer, limit))
        committed = self._process.follower.reader.committed()
        if not 0 <= number <= committed:
            limit = f"from 0 to {committed}, what was committed"
            raise Refused(Refusal.of_field("NUMBER_OUT_OF_RANGE", "number", number, limit))
        folder = self._process.config.run.executions
        number = max(number, (await asyncio.to_thread(consumers, folder)).get(consumer, 0))
        try:
            await asyncio.to_thread(confirm, folder, consumer, number)
        except ValueError as error:
            limit = "1 to 32 lower-case letters, digits and hyphens"
            refusal = Refusal.of_field("CONSUMER_INVALID", "consumer", consumer, limit)
            raise Refused(refusal) from error
        except OSError as error:
            sentence = f"the cursor of {consumer} could not be written: {error.strerror}"
            refusal = Refusal(Code.UNAVAILABLE, "CURSOR_NOT_WRITTEN", sentence)
            raise Refused(refusal) from error
        return execution_feed_pb2.ConfirmExecutionsResponse(number=number)
