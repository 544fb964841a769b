"""The HTTP door of a gateway process: listens, answers, and ends what lingers.

It shares the event loop and the market with the gRPC door and knows nothing of it. Everything a
stranger can send is bounded before it is read: lines and headers by the parser, bodies not at all
(nothing here takes one), WebSocket messages by size and rate, connections by address and key.
"""

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from exchange.refusal import Code, Refusal, Refused
from mdgateway.feed.market import Market
from mdgateway.http.config import HttpConfig
from mdgateway.http.connection import Connections, connection_factory
from mdgateway.http.json_format import dumps, refusal_fields
from mdgateway.http.pages import File, Pages
from mdgateway.http.rest import Rest
from mdgateway.http.stream.fanout import Hub, Member
from mdgateway.http.stream.session import KEY_ENDED, SLOW_CONSUMER, SUBSCRIBE_TIMEOUT, Session
from mdgateway.keys.admission import Admission, Visitor
from mdgateway.keys.forwarding import FORWARDED_HEADER, caller_of
from mdgateway.keys.key_file import Keyring
from mdgateway.keys.tiers import TIERS

API: Final = "/v1/"
STREAM: Final = "/v1/stream"
KEY_HEADER: Final = "X-Market-Data-Key"
LOOK_EVERY_S: Final = 0.25
"""How often connections are looked at for what is due, and the key file for changes."""
BACKLOG: Final = 1_024
MS_NS: Final = 1_000_000

_STATUSES: Final = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
}
_NOT_FOUND: Final = frozenset({"PAIR_UNKNOWN", "PATH_UNKNOWN"})
_RETRY_AFTER_S: Final = {"CONNECTION_LIMIT": 10}
"""What others have open does not end as soon as a second does, which is the pause otherwise."""
_UNEXPECTED: Final = Refusal(
    Code.INTERNAL, "INTERNAL", "the server failed to answer; its log says why"
)
_HEADERS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "ETag, Retry-After",
    "X-Content-Type-Options": "nosniff",
}
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD",
    "Access-Control-Allow-Headers": f"{KEY_HEADER}, If-None-Match",
    "Access-Control-Max-Age": "86400",
}

log = logging.getLogger(__name__)


class HttpServer:
    """REST, WebSocket and the page of one process."""

    def __init__(self, market: Market, config: HttpConfig, admission: Admission) -> None:
        self.config = config
        self.hub = Hub(market)
        self.connections = Connections(config)
        self._admission = admission
        self._rest = Rest(market)
        self._pages = Pages(config.web or Path(__file__).resolve().parent.parent / "web")
        self._server: Server
        self._listening: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; return the port. Raises OSError if it is taken."""
        self._server = Server(self._handle, handler_cancellation=True)
        factory = connection_factory(self._server, self.connections, self.hub)
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            factory, self.config.host, self.config.port, backlog=BACKLOG
        )
        self._looking = asyncio.create_task(self._look())
        return int(self._listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Take no more, cut what is still open."""
        if self._listening is None or self._looking is None:
            return
        self._listening.close()
        self._looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._looking
        await self._server.shutdown(1)

    # Requests.

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        try:
            answer = await self._answer(request)
        except Refused as refused:
            answer = _refused(refused.refusal)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            answer = _refused(_UNEXPECTED)
        # What this is made of is nobody's business.
        answer.headers["Server"] = "holdfast"
        if request.body_exists and not answer.prepared:
            # No path takes a body; who sends one is answered and its connection ends.
            answer.force_close()
        return answer

    async def _answer(self, request: BaseRequest) -> web.StreamResponse:
        # Before anything is judged, so that nothing that is refused comes for nothing.
        visitor = self._admit(request)
        path = request.path
        if request.method == "OPTIONS" and path.startswith(API):
            return web.Response(status=204, headers=_HEADERS | _PREFLIGHT)
        if request.method not in {"GET", "HEAD"}:
            refusal = Refusal.of_field(
                "METHOD_NOT_ALLOWED", "method", request.method, "GET or HEAD"
            )
            return _refused(refusal, 405, {"Allow": "GET, HEAD"})
        if path == STREAM:
            session = Session(self.hub, self._admission, self.config, request)
            return await session.run(visitor)
        if path.startswith(API):
            return await self._api(request, path.removeprefix(API), visitor)
        file = self._pages.find(path)
        if file is None:
            limit = "a file of the page, or a path under /v1/"
            raise Refused(Refusal.of_field("PATH_UNKNOWN", "path", path, limit))
        return _file(request, file)

    def _admit(self, request: BaseRequest) -> Visitor:
        secret = request.headers.get(KEY_HEADER)
        forwarded = request.headers.getall(FORWARDED_HEADER, [])
        address = caller_of(request.remote or "", forwarded, self._admission.trusted_proxies)
        return self._admission.admit(address, secret, time.monotonic_ns(), time.time_ns())

    async def _api(self, request: BaseRequest, path: str, visitor: Visitor) -> web.StreamResponse:
        query = request.query
        for name in query:
            if len(query.getall(name)) > 1:
                limit = "given once"
                raise Refused(Refusal.of_field("PARAMETER_REPEATED", "parameter", name, limit))
        page = self._rest.page(path, query, visitor.tier)
        tag = f'W/"{page.tag}"'
        headers = {
            **_HEADERS,
            "ETag": tag,
            "Cache-Control": "public, max-age=0, must-revalidate",
            "Vary": "Accept-Encoding",
        }
        if _holds(request, tag):
            return web.Response(status=304, headers=headers)
        answer = await self._rest.answer(path, query, page)
        body = answer.body
        packed = answer.packed() if _takes_gzip(request) else None
        if packed is not None:
            body, headers["Content-Encoding"] = packed, "gzip"
        return web.Response(body=body, headers=headers, content_type="application/json")

    # What is due.

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            keyring, trouble = self._admission.keyring, self._admission.keyring.trouble
            keyring.refresh()
            if keyring.trouble and keyring.trouble != trouble:
                log.error("the keys known before hold on: %s", keyring.trouble)
            now_ns, time_ns = time.monotonic_ns(), time.time_ns()
            for member in list(self.hub.members):
                self._look_at(member, now_ns, time_ns)

    def _look_at(self, member: Member, now_ns: int, time_ns: int) -> None:
        config = self.config
        full_since_ns = member.full_since_ns
        if full_since_ns and now_ns - full_since_ns > config.slow_limit_ms * MS_NS:
            self.hub.say_goodbye(member, "SLOW_CONSUMER")
            member.end(SLOW_CONSUMER, "SLOW_CONSUMER")
        elif not member.subscribed and (
            now_ns - member.opened_ns > config.subscribe_timeout_ms * MS_NS
        ):
            member.end(SUBSCRIBE_TIMEOUT, "SUBSCRIBE_TIMEOUT")
        elif member.visitor.key is not None and self._admission.keyring.ended(
            member.visitor.key, time_ns
        ):
            self.hub.say_goodbye(member, "KEY_ENDED")
            member.end(KEY_ENDED, "KEY_ENDED")


def admission_of(config: HttpConfig) -> Admission:
    """Return who may come in by the settings; raises InvalidKeyFile, OSError."""
    tier, trusted = config.anonymous_tier, config.trusted_proxies
    return Admission(Keyring(config.keys), TIERS, tier, trusted)


def http_server(
    market: Market, config: HttpConfig, admission: Admission | None = None
) -> HttpServer:
    """Return the door, with the keys of its settings unless it is to count with others."""
    return HttpServer(market, config, admission or admission_of(config))


def _refused(
    refusal: Refusal, status: int = 0, headers: dict[str, str] | None = None
) -> web.Response:
    if not status:
        status = 404 if refusal.reason in _NOT_FOUND else _STATUSES[refusal.code]
    more = dict(headers or {})
    if status == 429:
        more["Retry-After"] = str(_RETRY_AFTER_S.get(refusal.reason, 1))
    return web.Response(
        status=status,
        body=dumps(refusal_fields(refusal)),
        headers=_HEADERS | {"Cache-Control": "no-store"} | more,
        content_type="application/json",
    )


def _holds(request: BaseRequest, tag: str) -> bool:
    """Say whether the client names the answer as one it holds; weak and strong are compared alike.

    The header is taken apart by hand because the tags are ours and contain no commas.
    """
    given = request.headers.get("If-None-Match", "")
    plain = tag.removeprefix("W/")
    return any(one.strip().removeprefix("W/") in {plain, "*"} for one in given.split(","))


def _file(request: BaseRequest, file: File) -> web.Response:
    if _holds(request, file.tag):
        return web.Response(status=304, headers=file.headers)
    if file.packed is not None and _takes_gzip(request):
        return web.Response(body=file.packed, headers=file.headers | {"Content-Encoding": "gzip"})
    return web.Response(body=file.content, headers=file.headers)


def _takes_gzip(request: BaseRequest) -> bool:
    return "gzip" in request.headers.get("Accept-Encoding", "").lower()
