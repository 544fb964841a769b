"""The least a gRPC server can do with an order: decode it, and answer with as many bytes.

Same messages, same options, same event loop as order entry; no ring, no engine, no journal.
``python -m bench.echo_server PORT HEX``, where HEX is the unary answer to give.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import uvloop
from grpc import aio

from exchange.service import ServerOptions
from exchange.v1 import order_entry_pb2

ACK_BYTES: Final = 48
RECORD_BYTES: Final = 32


class Echo:
    """Answers without looking; the calls it does not have are nobody's business here."""

    def __init__(self, answer: order_entry_pb2.SubmitOrderResponse) -> None:
        self.answer = answer

    async def SubmitOrder(self, request: Any, context: Any) -> order_entry_pb2.SubmitOrderResponse:
        """Give the one answer; gRPC has decoded the order and will encode this."""
        return self.answer

    async def SubmitBatches(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[order_entry_pb2.SubmitBatchesResponse]:
        """Answer each batch with as many bytes as its acknowledgements would have."""
        async for request in request_iterator:
            count = len(request.records) // RECORD_BYTES
            yield order_entry_pb2.SubmitBatchesResponse(
                batch_number=request.batch_number, record_version=1, acks=bytes(ACK_BYTES * count)
            )


async def _serve(port: int, answer: bytes) -> None:
    server = aio.server(options=ServerOptions(port=port).channel_arguments())
    echo = Echo(order_entry_pb2.SubmitOrderResponse.FromString(answer))
    handlers: dict[str, Any] = {
        "SubmitOrder": grpc.unary_unary_rpc_method_handler(
            echo.SubmitOrder,
            request_deserializer=order_entry_pb2.SubmitOrderRequest.FromString,
            response_serializer=order_entry_pb2.SubmitOrderResponse.SerializeToString,
        ),
        "SubmitBatches": grpc.stream_stream_rpc_method_handler(
            echo.SubmitBatches,
            request_deserializer=order_entry_pb2.SubmitBatchesRequest.FromString,
            response_serializer=order_entry_pb2.SubmitBatchesResponse.SerializeToString,
        ),
    }
    name = "exchange.v1.OrderEntryService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), bytes.fromhex(sys.argv[2])))
