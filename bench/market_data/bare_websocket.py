"""The least a WebSocket server of the same library can do: the same bytes to all, at each beat.

``python -m bench.market_data.bare_websocket BEAT_US COUNT HOW HEX`` prints where it listens and
begins when so many clients are there; it serves one crowd. HOW is "library" (each message is sent
with the library's own call) or "written" (one frame, made once, is written to each transport, as
the gateway does it).
"""

import asyncio
import sys

import uvloop
from aiohttp import web
from aiohttp.web_request import BaseRequest

from mdgateway.http.stream.frames import PLAIN, Framed


async def _serve(beat_s: float, count: int, how: str, content: bytes) -> None:
    sockets: list[tuple[web.WebSocketResponse, asyncio.Transport]] = []

    async def handle(request: BaseRequest) -> web.StreamResponse:
        one = web.WebSocketResponse(compress=False)
        await one.prepare(request)
        assert request.transport is not None
        sockets.append((one, request.transport))
        async for _ in one:
            pass
        return one

    server = web.Server(handle, access_log=None)
    listening = await asyncio.get_running_loop().create_server(
        server, "127.0.0.1", 0, backlog=1_024
    )
    print(f"bare server on 127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    text, frame = content.decode(), Framed(content).frame(PLAIN)
    while True:
        await asyncio.sleep(beat_s)
        if len(sockets) < count:
            continue
        if how == "written":
            for _, transport in sockets:
                transport.write(frame)
        else:
            for one, _ in sockets:
                await one.send_str(text)


if __name__ == "__main__":
    uvloop.run(
        _serve(int(sys.argv[1]) / 1e6, int(sys.argv[2]), sys.argv[3], bytes.fromhex(sys.argv[4]))
    )
