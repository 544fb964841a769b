"""A pair that closes before it is stopped: nothing that may trade, and all else as before."""

import signal
from collections.abc import Iterator

import grpc
import pytest

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import pair_admin_pb2, pair_admin_pb2_grpc
from tests.integration.entry_clients import (
    ALICE,
    BOB,
    BUY,
    DEADLINE_S,
    SELL,
    Client,
    Running,
    message,
    records,
    refused,
    running,
)
from tests.integration.exchange_processes import PAIR

pytestmark = pytest.mark.integration


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("closing")) as given:
        yield given


def closed(given: Running) -> pair_admin_pb2.GetStatusResponse:
    """Close the pair; return its status once no order is on its way."""
    processes, channel = given
    assert processes.engine is not None
    processes.engine.send_signal(signal.SIGUSR1)
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
    request = pair_admin_pb2.GetStatusRequest(pair=PAIR)
    while True:
        status = admin.GetStatus(request, timeout=DEADLINE_S)
        if status.engine_state == enums.ENGINE_STATE_CLOSED:
            return status
        assert status.engine_state in (enums.ENGINE_STATE_READY, enums.ENGINE_STATE_CLOSING)


def test_a_closed_pair_takes_cancels_and_services_but_nothing_that_may_trade(
    pair: Running,
) -> None:
    channel = pair[1]
    alice, bob = Client(channel, ALICE), Client(channel, BOB)
    resting = alice.submit(side=SELL)
    status = closed(pair)
    committed = status.committed_number
    for attempt in (
        lambda: bob.submit(side=BUY),
        lambda: alice.amend(order_id=resting.order_id, price="60001", quantity="0.01"),
    ):
        code, info = refused(attempt)
        assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_NOT_READY")
    (batch,) = bob.batches(iter([message(records(2))]))
    assert (batch.acks, batch.refusal.reason) == (b"", "ENGINE_NOT_READY")
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
    digest = pair_admin_pb2.DigestAccountsRequest(pair=PAIR)
    assert admin.DigestAccounts(digest, timeout=DEADLINE_S).report.first_number == committed
    assert alice.cancel_all().kind == enums.EXECUTION_KIND_ALL_CANCELLED
    assert alice.open_orders() == []


def test_an_engine_that_starts_again_is_open(pair: Running) -> None:
    processes, channel = pair
    closed(pair)
    processes.kill(processes.engine)
    processes.start_engine("--inboxes", "2")
    processes.await_health()
    assert Client(channel, ALICE).submit().kind == enums.EXECUTION_KIND_ACCEPTED
