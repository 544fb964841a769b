"""One TCP connection: aiohttp's request handler that also listens to its transport.

aiohttp parses HTTP and WebSocket; this adds what it leaves to others: how many connections an
address may have, small buffers, a word to the fan-out when a client reads too slowly and when it
has caught up, and an end for a client that never takes its answer.
"""

import asyncio
import logging
import socket
from collections import Counter
from typing import Any, Final, cast

from aiohttp import web_protocol
from aiohttp.web_server import Server

from exchange.refusal import Code, Refusal
from mdgateway.http.config import HttpConfig
from mdgateway.http.json_format import dumps, refusal_fields
from mdgateway.http.stream.fanout import Hub, Member
from mdgateway.keys.admission import network_of
from mdgateway.keys.forwarding import is_trusted

HEADER_LINE_BYTES: Final = 4_096
HEADER_COUNT: Final = 64

# What strangers send wrong is answered, not logged: a log that anybody can fill hides the rest.
_SILENT: Final = logging.getLogger("mdgateway.http.parser")
_SILENT.disabled = True


class Connections:
    """How many connections are open, in all and by address."""

    def __init__(self, config: HttpConfig) -> None:
        self.config = config
        self.count = 0
        self._by_address: Counter[str] = Counter()

    def enter(self, peer: str) -> Refusal | None:
        """Count one more, or return why not."""
        config, address = self.config, network_of(peer)
        if self.count >= config.connection_limit:
            return _full("this server", config.connection_limit)
        # Behind a proxy are many; its connections are bounded like those of all.
        alone = not is_trusted(peer, config.trusted_proxies)
        if alone and self._by_address[address] >= config.address_connection_limit:
            return _full(address, config.address_connection_limit)
        self.count += 1
        self._by_address[address] += 1
        return None

    def leave(self, peer: str) -> None:
        """Count one less."""
        address = network_of(peer)
        self.count -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


def _full(who: str, limit: int) -> Refusal:
    return Refusal(
        Code.RESOURCE_EXHAUSTED,
        "CONNECTION_LIMIT",
        f"{who} has {limit} open connections, as many as there may be",
        "connections",
        str(limit),
        str(limit),
    )


class Connection(web_protocol.RequestHandler):
    """A connection that tells the fan-out how its client keeps up."""

    __slots__ = ("_address", "_connections", "_hub", "_stuck", "member")

    def __init__(self, server: Server, connections: Connections, hub: Hub) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=connections.config.header_timeout_s,
            access_log=None,  # type: ignore[arg-type]
            logger=_SILENT,
            max_line_size=HEADER_LINE_BYTES,
            max_field_size=HEADER_LINE_BYTES,
            max_headers=HEADER_COUNT,
            lingering_time=0,
        )
        self._connections = connections
        self._hub = hub
        self._address: str | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self.member: Member | None = None
        """Who this is to the fan-out once it is a WebSocket."""

    def connection_made(self, given_transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it with a sentence."""
        # uvloop's transports are of no class of asyncio's.
        transport = cast(asyncio.Transport, given_transport)
        config = self._connections.config
        given: socket.socket | None = transport.get_extra_info("socket")
        if given is not None:
            given.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.socket_buffer_bytes)
        transport.set_write_buffer_limits(config.buffer_bytes, config.buffer_low_bytes)
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else "unknown"
        refusal = self._connections.enter(address)
        if refusal is None:
            self._address = address
            return
        body = dumps(refusal_fields(refusal))
        head = (
            "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 10\r\nConnection: close\r\n\r\n"
        )
        transport.write(head.encode() + body)
        self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        if self._stuck is not None:
            self._stuck.cancel()
        if self._address is not None:
            self._connections.leave(self._address)
            self._address = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Hear that the transport is full."""
        super().pause_writing()
        if self.member is not None:
            self._hub.filled(self.member)
        else:
            limit_s = self._connections.config.slow_limit_ms / 1_000
            self._stuck = self._loop.call_later(limit_s, self._give_up)

    def resume_writing(self) -> None:
        """Hear that the transport is nearly empty."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        if self.member is not None:
            self._hub.emptied(self.member)

    def _give_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def connection_factory(server: Server, connections: Connections, hub: Hub) -> Any:
    """Return what makes the protocol of each new connection."""

    def make() -> Connection:
        return Connection(server, connections, hub)

    return make
