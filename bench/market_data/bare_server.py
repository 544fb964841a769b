"""The least a gRPC server can do for its streams: the same bytes to all of them, at each beat.

Same library, loop and options as the gateway; no book, no subscription.
``python -m bench.market_data.bare_server BEAT_US HEX`` prints where it listens. With HEX empty each
message is the moment it was written at (eight bytes, nanoseconds of the monotonic clock).
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from grpc import aio

from bench.market_data.gateway import STREAM
from exchange.service import ServerOptions


async def _serve(beat_s: float, content: bytes) -> None:
    beat = asyncio.Event()

    async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        while True:
            await beat.wait()
            yield content or time.monotonic_ns().to_bytes(8, "little")

    server = aio.server(options=ServerOptions().channel_arguments())
    service, method = STREAM[1:].split("/")
    handler: Any = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"bare server on 127.0.0.1:{port}", flush=True)
    while True:
        await asyncio.sleep(beat_s)
        beat.set()
        beat.clear()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]) / 1e6, bytes.fromhex(sys.argv[2])))
