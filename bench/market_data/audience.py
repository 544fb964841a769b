"""A hundred subscribers of one pair's depth in a process of their own, which read what they get.

``python -m bench.market_data.audience PORT PAIR`` says when all have their snapshot.
"""

import asyncio
import sys
from typing import Any, Final

import uvloop
from grpc import aio

from bench.market_data.gateway import opened

STREAMS: Final = 100


async def _read(call: Any) -> None:
    while await call.read() is not aio.EOF:
        pass


async def _follow(port: int, pair: str) -> None:
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        calls = [await opened(channel, pair) for _ in range(STREAMS)]
        print(f"{STREAMS} subscribers on 127.0.0.1:{port}", flush=True)
        await asyncio.gather(*map(_read, calls))


if __name__ == "__main__":
    uvloop.run(_follow(int(sys.argv[1]), sys.argv[2]))
