"""/v1/stream: the life of one WebSocket, from its handshake to its named end.

Requests are judged and done here; content comes from the fan-out, written past the library. While
a client does not read, nothing more is read from it either, so that its own requests cannot make
answers pile up. What strangers do wrong ends their connection with a code and harms nobody else.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from aiohttp import WSMsgType, web
from aiohttp.web_request import BaseRequest

from exchange.refusal import Code, Refusal, Refused
from mdgateway.feed.candles import Interval
from mdgateway.feed.records import FULL
from mdgateway.http.config import HttpConfig
from mdgateway.http.connection import Connection
from mdgateway.http.json_format import dumps, refusal_fields
from mdgateway.http.stream.fanout import Hub, Member
from mdgateway.http.stream.frames import close_frame
from mdgateway.http.stream.requests import (
    FULL_TEXT,
    HELD_FIELDS,
    Authenticate,
    BadRequest,
    Id,
    Ping,
    Request,
    Subscribe,
    Unsubscribe,
    parse,
)
from mdgateway.keys.admission import Admission, Bucket, Visitor

CONNECTIONS: Final = "connections"
CLOSING_S: Final = 5
"""How long a client has to take its close frame before the connection is cut."""
REFUSED_IN_A_ROW: Final = 100
"""So many messages beyond the rate, one after the other, end a connection."""

SUBSCRIBE_TIMEOUT: Final = 4001
SLOW_CONSUMER: Final = 4002
TOO_MANY_MESSAGES: Final = 4003
KEY_ENDED: Final = 4004
UNSUPPORTED: Final = 1003
BROKEN: Final = {1002: "PROTOCOL_ERROR", 1007: "TEXT_INVALID", 1009: "MESSAGE_TOO_BIG"}
"""What the library itself finds wrong with frames; it names only the code."""
LINGER_S: Final = 1
"""How long what still comes is thrown away after frames that cannot be read any further."""
_NO_HANDSHAKE: Final = Refusal(
    Code.INVALID_ARGUMENT,
    "HANDSHAKE_INVALID",
    "this path speaks WebSocket, version 13",
    "upgrade",
)


class _Socket(web.WebSocketResponse):
    """A WebSocket whose ends all have a name, also those that the library decides on."""

    def __init__(self, config: HttpConfig, broken: Callable[[int], Awaitable[None]]) -> None:
        super().__init__(
            max_msg_size=config.message_limit_bytes,
            heartbeat=config.ping_interval_s,
            autoclose=False,
        )
        self._broken = broken

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """Close the WebSocket."""
        if code not in BROKEN:
            return await super().close(code=code, message=message, drain=drain)
        await self._broken(code)
        return True


class Session:
    """One WebSocket."""

    def __init__(
        self, hub: Hub, admission: Admission, config: HttpConfig, request: BaseRequest
    ) -> None:
        self._hub = hub
        self._admission = admission
        self._config = config
        self._request = request
        self._socket = _Socket(config, self._broken)
        self._member: Member
        self._bucket: Bucket
        self._refused_in_a_row = 0
        self._cut: asyncio.TimerHandle | None = None
        """Cuts the connection when its client does not answer the close; None: it is open."""

    async def run(self, visitor: Visitor) -> web.StreamResponse:
        """Serve until one of both sides ends it; raises Refused before the handshake."""
        # The limit before the handshake: a browser does not tell a page how that was refused, so
        # the page asks by a plain request.
        self._admission.enter(visitor, CONNECTIONS)
        try:
            if not self._socket.can_prepare(self._request).ok:
                raise Refused(_NO_HANDSHAKE)
            await self._socket.prepare(self._request)
        except BaseException:
            self._admission.leave(visitor, CONNECTIONS)
            raise
        protocol = cast(Connection, self._request.protocol)
        transport = self._request.transport
        if transport is None:
            self._admission.leave(visitor, CONNECTIONS)
            return self._socket
        self._bucket = Bucket(visitor.tier.messages_per_second)
        window = int(self._socket.compress)
        now_ns = time.monotonic_ns()
        self._member = Member(transport, self._socket, window, visitor, self.end, now_ns)
        protocol.member = self._member
        self._hub.enter(self._member)
        try:
            await self._converse()
        finally:
            self._hub.leave(self._member)
            self._admission.leave(self._member.visitor, CONNECTIONS)
            if self._cut is not None:
                self._cut.cancel()
                transport.close()
        return self._socket

    def end(self, code: int, reason: str) -> None:
        """Close the connection with a named code; does not wait.

        What was written before is still sent. The client has a while to take it and to answer;
        what it says in that time is read and thrown away, because closing a connection with
        something unread in it would take back what is still on the way.
        """
        if self._cut is not None or self._socket.closed:
            return
        member = self._member
        member.write(close_frame(code, reason))
        member.ending = True
        member.changed.set()
        self._cut = asyncio.get_running_loop().call_later(CLOSING_S, self._abort)

    async def _broken(self, code: int) -> None:
        """Close a connection whose frames cannot be read any further."""
        self.end(code, BROKEN[code])
        # Whoever sends a giant is still sending: with something unread in it the connection's end
        # would take the close frame back.
        await asyncio.sleep(LINGER_S)

    def _abort(self) -> None:
        transport = self._request.transport
        if transport is not None:
            transport.abort()

    async def _converse(self) -> None:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.CLOSE and self._cut is None:
                await self._socket.close(code=_answer_to_close(message.data))
            if message.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
                return
            if self._cut is not None:
                continue
            if message.type is WSMsgType.BINARY:
                self.end(UNSUPPORTED, "BINARY_UNSUPPORTED")
                continue
            self._take(message.data)
            while self._member.is_full and self._cut is None:
                await self._member.changed.wait()

    def _take(self, text: str) -> None:
        if not self._bucket.take(time.monotonic_ns()):
            self._refused_in_a_row += 1
            if self._refused_in_a_row >= REFUSED_IN_A_ROW:
                self.end(TOO_MANY_MESSAGES, "TOO_MANY_MESSAGES")
                return
            tier = self._member.visitor.tier
            limit = str(tier.messages_per_second)
            text_ = f"more messages a second than the tier {tier.name} may send"
            refusal = Refusal(
                Code.RESOURCE_EXHAUSTED, "RATE_LIMIT", text_, "messages_per_second", "", limit
            )
            self._refuse(None, refusal)
            return
        self._refused_in_a_row = 0
        request_id: Id = None
        try:
            pairs = self._hub.market.publications
            request = parse(text, pairs, self._member.visitor.tier)
            request_id = request.id
            self._do(request)
        except BadRequest as refused:
            self._refuse(refused.request_id, refused.refusal)
        except Refused as refused:
            self._refuse(request_id, refused.refusal)

    def _do(self, request: Request) -> None:
        match request:
            case Subscribe():
                self._hub.subscribe(self._member, request, _subscribed(request))
            case Unsubscribe():
                self._hub.unsubscribe(self._member, request, _unsubscribed(request))
            case Ping():
                self._answer("pong", request.id, {"time_ns": str(time.time_ns())})
            case Authenticate():
                self._authenticate(request)

    def _authenticate(self, request: Authenticate) -> None:
        before = self._member.visitor
        peer = self._request.remote or ""
        visitor = self._admission.visitor(peer, request.key, time.time_ns())
        self._admission.enter(visitor, CONNECTIONS)
        self._admission.leave(before, CONNECTIONS)
        self._member.visitor = visitor
        self._bucket = Bucket(visitor.tier.messages_per_second)
        assert visitor.key is not None
        expires_ns = visitor.key.expires_ns
        self._answer(
            "authenticated",
            request.id,
            {
                "tier": visitor.tier.name,
                "expires_ns": None if expires_ns is None else str(expires_ns),
            },
        )

    def _answer(self, kind: str, request_id: Id, fields: Mapping[str, Any]) -> None:
        self._member.tell(_answer(kind, request_id, fields))

    def _refuse(self, request_id: Id, refusal: Refusal) -> None:
        self._answer("refused", request_id, refusal_fields(refusal))


def _answer_to_close(code: int) -> int:
    # A close without a code is told to us as zero, which must not be sent.
    return code or 1000


def _answer(kind: str, request_id: Id, fields: Mapping[str, Any]) -> bytes:
    known = {} if request_id is None else {"id": request_id}
    return dumps({"type": kind, **known, **fields})


def _subscribed(request: Subscribe) -> bytes:
    spec = request.spec
    fields: dict[str, Any] = {"channel": spec.channel, "pairs": list(request.pairs)}
    if spec.channel == "depth":
        fields["levels"] = FULL_TEXT if spec.detail == FULL else spec.detail
        fields["only_snapshots"] = spec.only_snapshots
    if spec.channel == "candles":
        fields["interval"] = Interval(spec.detail).text
    if spec.channel in {"depth", "ticker", "candles"}:
        fields["interval_ms"] = spec.interval_ms
    if isinstance(request.place, int):
        fields["from_trade_number"] = request.place
    elif request.place is not None and spec.channel == "trades":
        number, held_time_ns = request.place
        fields |= {"from_trade_number": number, "held_time_ns": str(held_time_ns)}
    elif request.place is not None:
        fields["held_epoch"], fields[HELD_FIELDS[spec.channel]] = request.place
    return _answer("subscribed", request.id, fields)


def _unsubscribed(request: Unsubscribe) -> bytes:
    fields: dict[str, Any] = {"channel": request.channel, "pairs": list(request.pairs)}
    if request.channel == "candles":
        fields["interval"] = Interval(request.detail).text
    return _answer("unsubscribed", request.id, fields)
