"""Arbitrary messages at every call: each gets an answer or a clear refusal, and nobody is harmed.

Messages are drawn from the descriptors, so a new call or field is tried without being named here;
bytes that are no message at all are sent, too. After each the server still serves somebody else.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from exchange.service import refusal_in
from exchange.v1 import (
    execution_feed_pb2,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
)
from tests.integration.exchange_processes import PAIR, pair_processes
from tests.property.drawing import effort

pytestmark = pytest.mark.integration

FILES = (order_entry_pb2, execution_feed_pb2, pair_admin_pb2)
METHODS = [
    method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
STREAMED = {"Session", "SubmitBatches"}
ENDLESS = {"StreamExecutions", "FollowExecutions"}
EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}
"""INTERNAL and UNKNOWN would be a crash inside, DEADLINE_EXCEEDED a call that was forgotten."""
DEADLINE_S = 60
SANE = order_entry_pb2.ListOpenOrdersRequest(pair=PAIR)

WORDS = ("", PAIR, "DOGE-EUR", "0", "1", "-1", "0.01", "60000.10", "1e5", "NaN", "9" * 400, "é\0")
EDGES = (0, 1, 2, 3, 5, 255, 256, 1 << 24, (1 << 31) - 1, (1 << 62), (1 << 63) - 1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pair_processes(tmp_path_factory.mktemp("run"), "os") as pair:
        pair.start()
        pair.await_health()
        yield pair.target
        assert pair.entry is not None
        assert pair.entry.poll() is None, pair.logs()
        pair.stop()
        assert "Traceback" not in pair.logs()


@pytest.fixture(scope="module")
def channel(target: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(target) as opened:
        yield opened


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    edges = [sign * edge for edge in EDGES for sign in (1, -1) if low <= sign * edge <= high]
    return st.sampled_from(edges) | st.integers(low, high)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return what a field of this type may hold."""
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(WORDS) | st.text(max_size=20).filter(encodable)
    if kind == FieldDescriptor.TYPE_BYTES:
        whole = st.integers(1, 4).flatmap(lambda n: st.binary(min_size=32 * n, max_size=32 * n))
        return whole | st.binary(max_size=200)
    if kind == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM):
        return integers(-(1 << 31), (1 << 31) - 1)
    if kind == FieldDescriptor.TYPE_UINT32:
        return integers(0, (1 << 32) - 1)
    assert kind == FieldDescriptor.TYPE_INT64, f"{field.full_name} has a type not drawn here"
    return integers(-(1 << 63), (1 << 63) - 1)


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Any:
    """Draw a message, usually for the right pair and version, so that it gets further in."""
    message: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if not draw(st.integers(0, 4)):
            continue
        if field.containing_oneof and message.WhichOneof(field.containing_oneof.name):
            continue
        if field.name == "pair" and draw(st.integers(0, 4)):
            message.pair = PAIR
        elif field.name == "record_version" and draw(st.integers(0, 4)):
            message.record_version = 1
        elif field.message_type is not None:
            inner = draw(messages(field.message_type))
            getattr(message, field.name).CopyFrom(inner)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values(field), max_size=4)))
        else:
            setattr(message, field.name, draw(values(field)))
    return message


accounts = st.sampled_from(["1", "2", "0", "-1", "65535", "9999999999", "x", ""]) | st.none()


def call(
    channel: Any, method: MethodDescriptor, requests: list[bytes], account: str | None
) -> None:
    """Send serialised messages to a method; check that it ends as calls may end."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    options: dict[str, Any] = {
        "metadata": () if account is None else (("holdfast-account", account),),
        "timeout": DEADLINE_S,
    }
    answer_class = message_factory.GetMessageClass(method.output_type)
    read: dict[str, Any] = {"response_deserializer": answer_class.FromString}
    try:
        if method.name in STREAMED:
            for answer in channel.stream_stream(path, **read)(iter(requests), **options):
                assert isinstance(answer, answer_class)
        elif method.name in ENDLESS:
            answers = channel.unary_stream(path, **read)(requests[0], **options)
            next(answers)
            answers.cancel()
        else:
            channel.unary_unary(path, **read)(requests[0], **options)
    except grpc.RpcError as error:
        status: Any = error
        assert status.code() in EXPECTED, status
        info = refusal_in(error)
        assert info is not None, status
        assert info.reason
        assert status.details()


def send(channel: Any, method: MethodDescriptor, content: bytes) -> None:
    """Send bytes to a method as they are and read all it says."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    options = {"metadata": (("holdfast-account", "1"),), "timeout": DEADLINE_S}
    if method.name in STREAMED:
        list(channel.stream_stream(path)(iter([content]), **options))
    elif method.name in ENDLESS:
        list(channel.unary_stream(path)(content, **options))
    else:
        channel.unary_unary(path)(content, **options)


def others_are_served(channel: grpc.Channel) -> None:
    stub = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
    stub.ListOpenOrders(SANE, metadata=(("holdfast-account", "7"),), timeout=DEADLINE_S)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@given(data=st.data())
@effort(40)
def test_every_message_gets_an_answer_or_a_refusal(
    channel: grpc.Channel, method: MethodDescriptor, data: st.DataObject
) -> None:
    drawn = st.lists(messages(method.input_type), min_size=1, max_size=4)
    requests = [message.SerializeToString() for message in data.draw(drawn)]
    call(channel, method, requests, data.draw(accounts))
    others_are_served(channel)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@given(content=st.binary(max_size=100))
@effort(20)
def test_bytes_that_are_no_message_harm_nobody(
    channel: grpc.Channel, method: MethodDescriptor, content: bytes
) -> None:
    request_class = message_factory.GetMessageClass(method.input_type)
    try:
        request_class.FromString(content)
    except DecodeError:
        with pytest.raises(grpc.RpcError) as caught:
            send(channel, method, content)
        info = refusal_in(caught.value)
        assert info is not None
        assert info.reason == "MESSAGE_MALFORMED"
    others_are_served(channel)


def test_a_message_beyond_the_limit_is_refused_and_the_connection_lives(
    channel: grpc.Channel,
) -> None:
    stub = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
    huge = order_entry_pb2.GetOrderRequest(pair="x" * (2 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetOrder(huge, metadata=(("holdfast-account", "1"),), timeout=DEADLINE_S)
    status: Any = caught.value
    assert status.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    others_are_served(channel)
