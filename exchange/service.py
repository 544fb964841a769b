"""Life of a gRPC process: options, health, reflection, refusals, deadlines, drain.

Every server of the house is started, watched and stopped by this module, so that all behave alike:

- one event loop (uvloop) per process, one server per loop;
- options are explicit. In particular a port is shared (SO_REUSEPORT) only when asked for: gRPC's
  own default would let two processes split a service silently;
- `Refused` becomes a status with google.rpc.ErrorInfo here and nowhere else; an unexpected
  exception becomes INTERNAL without its text and is logged;
- a call without a deadline gets one;
- a stream handler is an async generator and is always closed before its call ends, so that its
  `finally` runs when a client goes away;
- drain: health says NOT_SERVING, streams say goodbye, the server stops with a grace, the process
  exits. The process has its own signal handlers, because gRPC has none.

It knows nothing of orders or market data.
"""

import asyncio
import contextlib
import ipaddress
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

import grpc
import uvloop
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from exchange.identity import OURS, call_refusal, listen, own_identity
from exchange.refusal import DOMAIN, Code, Refusal, Refused

Context = aio.ServicerContext[Any, Any]
Handler = Any

DEFAULT_DEADLINE_S: Final = 5
"""Deadline of a unary call that brings none."""
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
STATUS_DETAILS: Final = "grpc-status-details-bin"
_STATUS_OF: Final = {code.value[0]: code for code in grpc.StatusCode}

log = logging.getLogger(__name__)


class NotLoopback(ValueError):
    """A server that cannot tell its callers apart was told to listen to the world."""


def require_loopback(host: str) -> None:
    """Refuse every address but the machine's own, unless callers have to show certificates.

    Raises NotLoopback with a sentence, and InvalidIdentity.
    """
    if own_identity() is not None:
        return
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise NotLoopback(
            f"host is {host!r}; it must be a loopback address such as 127.0.0.1, because callers"
            " are believed when they name their account; with HOLDFAST_IDENTITY they show"
            " certificates and any address will do"
        )


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server listens and what it takes."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port; the one chosen is what `GrpcService.start` returns."""
    everybody: bool = False
    """True: what is served is public, and no certificate is asked of anybody."""
    share_port: bool = False
    """True: several processes listen to one port and the kernel spreads connections over them."""
    receive_limit_bytes: int = 1 << 20
    send_limit_bytes: int = 16 << 20
    lookahead_bytes: int = 1 << 18
    """What gRPC reads ahead of the handler on each stream: bounds what a fast client can pile up
    in this process, because bandwidth probing, which would raise it, is off."""
    concurrent_call_limit: int = 4096
    stream_limit_per_connection: int = 1024
    grace_s: int = 5
    """How long open calls may go on after the goodbye."""

    def channel_arguments(self) -> list[tuple[str, int]]:
        """Return the options in gRPC's own words."""
        return [
            ("grpc.so_reuseport", int(self.share_port)),
            ("grpc.max_receive_message_length", self.receive_limit_bytes),
            ("grpc.max_send_message_length", self.send_limit_bytes),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.max_concurrent_streams", self.stream_limit_per_connection),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", self.lookahead_bytes),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ]


def status_of(refusal: Refusal) -> status_pb2.Status:
    """Return a refusal as google.rpc.Status with one ErrorInfo."""
    given = {"field": refusal.field, "value": refusal.value, "limit": refusal.limit}
    info = error_details_pb2.ErrorInfo(
        reason=refusal.reason,
        domain=DOMAIN,
        metadata={key: value for key, value in given.items() if value},
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(code=int(refusal.code), message=refusal.message, details=[detail])


def refusal_in(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """Return the ErrorInfo that a failed call carries, for clients; None if it has none."""
    for key, value in cast(Any, error).trailing_metadata() or ():
        if key == STATUS_DETAILS and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info
    return None


async def abort(context: Context, refusal: Refusal) -> NoReturn:
    """End a call with a refusal."""
    trailing = ((STATUS_DETAILS, status_of(refusal).SerializeToString()),)
    code = _STATUS_OF[int(refusal.code)]
    await context.abort(code, refusal.message, trailing_metadata=trailing)
    raise AssertionError("abort returned")


MALFORMED: Final = object()
"""What a message that cannot be read becomes; left to gRPC it would end as INTERNAL and leave a
stack trace in the log for every one that somebody sends."""
_MALFORMED: Final = Refusal(
    Code.INVALID_ARGUMENT, "MESSAGE_MALFORMED", "the bytes are no message of this call's type"
)
_UNEXPECTED: Final = Refusal(
    Code.INTERNAL, "INTERNAL", "the server failed to handle the call; its log says why"
)
_TOO_LATE: Final = Refusal(
    Code.DEADLINE_EXCEEDED,
    "DEADLINE_EXCEEDED",
    f"no answer within {DEFAULT_DEADLINE_S} s; the command may still be executed, retry with the"
    " same client order id",
)


@contextlib.asynccontextmanager
async def _translated(context: Context, method: str) -> AsyncIterator[None]:
    try:
        yield
    except Refused as refused:
        await abort(context, refused.refusal)
    except aio.AbortError:
        raise
    except aio.InternalError:
        # Writing to a client that left fails like this. There is nobody to tell.
        log.debug("%s: the client went away", method)
    except Exception:
        log.exception("%s failed", method)
        await abort(context, _UNEXPECTED)


def _read(deserialise: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialise is None:
        return None  # The handler takes the bytes as they are.

    def read(content: bytes) -> Any:
        try:
            return deserialise(content)
        except DecodeError:
            return MALFORMED

    return read


async def _well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is MALFORMED:
            raise Refused(_MALFORMED)
        yield request


def _unary(behaviour: Callable[[Any, Context], Awaitable[Any]], method: str) -> Any:
    async def call(request: Any, context: Context) -> Any:
        try:
            if request is MALFORMED:
                raise Refused(_MALFORMED)
            if context.time_remaining() is not None:
                return await behaviour(request, context)
            async with asyncio.timeout(DEFAULT_DEADLINE_S):
                return await behaviour(request, context)
        except Refused as refused:
            await abort(context, refused.refusal)
        except TimeoutError:
            await abort(context, _TOO_LATE)
        except aio.AbortError:
            raise
        except Exception:
            log.exception("%s failed", method)
            await abort(context, _UNEXPECTED)

    return call


def _stream(behaviour: Callable[[Any, Context], Any], method: str) -> Any:
    async def call(request: Any, context: Context) -> None:
        async with _translated(context, method):
            if request is MALFORMED:
                raise Refused(_MALFORMED)
            given = _well_formed(request) if hasattr(request, "__aiter__") else request
            async with contextlib.aclosing(behaviour(given, context)) as answers:
                async for answer in answers:
                    await context.write(answer)

    return call


class Doorkeeper(aio.ServerInterceptor):
    """Wraps every handler of ours: deadlines, refusals, unexpected errors, closing of streams.

    It counts the calls that are under way, so that a drain need not wait for calls that are not
    ours and never end, such as somebody's watch on the health.
    """

    def __init__(self, *, guarded: bool) -> None:
        """Make it; if `guarded`, callers need a role that may call what they call."""
        self._guarded = guarded
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no call of ours is under way."""
        await self._idle.wait()

    def _counted(self, call: Callable[[Any, Context], Awaitable[Any]], method: str) -> Any:
        async def counted(request: Any, context: Context) -> Any:
            refusal = call_refusal(method, context) if self._guarded else None
            if refusal is not None:
                await abort(context, refusal)
            self._open += 1
            self._idle.clear()
            try:
                return await call(request, context)
            finally:
                self._open -= 1
                if not self._open:
                    self._idle.set()

        return counted

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the wrapped handler of a method of ours, any other handler as it is."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(OURS):
            return handler
        coders = {
            "request_deserializer": _read(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            wrapped = self._counted(_unary(handler.unary_unary, method), method)
            return grpc.unary_unary_rpc_method_handler(wrapped, **coders)
        if handler.unary_stream:
            wrapped = self._counted(_stream(handler.unary_stream, method), method)
            return grpc.unary_stream_rpc_method_handler(wrapped, **coders)
        assert handler.stream_stream, f"{method} is of a kind that this house does not use"
        wrapped = self._counted(_stream(handler.stream_stream, method), method)
        return grpc.stream_stream_rpc_method_handler(wrapped, **coders)


class _GenericOnly:
    """What generated code adds its handlers to: a server without registered methods.

    The asyncio server waits for the next call of each registered method separately, and builds and
    takes down all those waits on every call: with the 24 methods of order entry that is a tenth
    of what a unary call costs. A generic handler is looked up by name once and waited for as one.
    """

    def __init__(self, server: aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Add handlers that are found by the name of the method called."""
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service_name: str, handlers: Any) -> None:
        """Do nothing: the same handlers come as generic ones."""


class GrpcService:
    """One server with health and reflection, from start to drain.

    `names` are the full names of the services added to `registry`; reflection lists them. Health
    knows "alive" (serving as soon as the process listens), the names in `health_names`, and "" for
    the whole; those are NOT_SERVING until `set_serving` says otherwise.
    """

    def __init__(
        self, options: ServerOptions, names: Iterable[str], health_names: Iterable[str]
    ) -> None:
        self.options = options
        self._identity = None if options.everybody else own_identity()
        self._doorkeeper = Doorkeeper(guarded=self._identity is not None)
        self.server = aio.server(
            interceptors=[self._doorkeeper],
            options=options.channel_arguments(),
            maximum_concurrent_rpcs=options.concurrent_call_limit,
        )
        self.registry: Any = _GenericOnly(self.server)
        """What the generated `add_…Servicer_to_server` functions are given as their server."""
        self.health = health.aio.HealthServicer()
        self.goodbyes: list[Callable[[], Awaitable[None]]] = []
        """Called in order when draining starts: each ends its streams with a goodbye."""
        self._health_names = ("", *health_names)
        self._stopping = asyncio.Event()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.registry)
        listed = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(listed, self.server)

    async def start(self) -> int:
        """Listen and say "alive"; return the port. Raises RuntimeError if the port is taken.

        From here on SIGTERM and SIGINT ask for the drain.
        """
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.request_stop)
        for name in self._health_names:
            await self._set(name, serving=False)
        port = listen(self.server, f"{self.options.host}:{self.options.port}", self._identity)
        await self.server.start()
        await self._set("alive", serving=True)
        return port

    async def set_serving(self, serving: bool) -> None:
        """Say on all names but "alive" whether the service can do its work."""
        for name in self._health_names:
            await self._set(name, serving=serving)

    async def _set(self, name: str, *, serving: bool) -> None:
        answer = health_pb2.HealthCheckResponse
        await self.health.set(name, answer.SERVING if serving else answer.NOT_SERVING)

    def request_stop(self) -> None:
        """Ask for the drain, as SIGTERM and SIGINT do."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once a stop was asked for."""
        return self._stopping.is_set()

    async def serve_until_stopped(self) -> None:
        """Wait for SIGTERM, SIGINT or `request_stop`, then drain."""
        await self._stopping.wait()
        await self.drain()

    async def drain(self) -> None:
        """Take no more, say goodbye, let open calls finish within the grace, stop."""
        self._stopping.set()
        await self.health.enter_graceful_shutdown()
        for goodbye in self.goodbyes:
            await goodbye()
        stopped = asyncio.create_task(self.server.stop(self.options.grace_s))
        idle = asyncio.create_task(self._doorkeeper.idle())
        await asyncio.wait((stopped, idle), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # What is still open now is not ours, or had its grace.
        await self.server.stop(None)
        await stopped


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run a server's main coroutine on its own uvloop; return its exit status."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_released(main))


async def _released(main: Coroutine[Any, Any, int]) -> int:
    """Run a server, and let go of it when it is over: another request to stop has no effect.

    gRPC and the signal module keep the closed loop until the process ends. Its handlers would keep
    the server, and the server libraries that complain when they find their objects at the end.
    """
    try:
        return await main
    finally:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, _stopped_already)


def _stopped_already() -> None:
    """Do nothing."""
