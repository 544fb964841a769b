"""Blocking clients of order entry, and a funded pair to use them on."""

import contextlib
import itertools
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from exchange.packed import ACK_DTYPE, RECORD_DTYPE
from exchange.service import refusal_in
from exchange.v1 import enums_pb2 as enums
from exchange.v1 import (
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from tests.integration.exchange_processes import PAIR, PairProcesses, pair_processes

ALICE, BOB, CAROL = 1, 2, 3
BUY, SELL = enums.SIDE_BUY, enums.SIDE_SELL
LIMIT = enums.ORDER_TYPE_LIMIT
GTC = enums.TIME_IN_FORCE_GOOD_TILL_CANCELLED
IOC = enums.TIME_IN_FORCE_IMMEDIATE_OR_CANCEL
DEADLINE_S = 60
"""Bounds a hang; nothing is measured against it."""

Running = tuple[PairProcesses, grpc.Channel]

client_order_ids = itertools.count(1)


def identity(account: int) -> tuple[tuple[str, str], ...]:
    return (("holdfast-account", str(account)),)


class Client:
    """One account's blocking client."""

    def __init__(self, channel: grpc.Channel, account: int) -> None:
        self.account = account
        self.metadata = identity(account)
        self.stub = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
        self.calls: dict[str, Any] = {"metadata": self.metadata, "timeout": DEADLINE_S}

    def order(self, **changes: Any) -> order_entry_pb2.SubmitOrderRequest:
        fields: dict[str, Any] = {
            "pair": PAIR,
            "client_order_id": next(client_order_ids),
            "side": BUY,
            "order_type": LIMIT,
            "time_in_force": GTC,
            "price": "60000",
            "quantity": "0.01",
        }
        return order_entry_pb2.SubmitOrderRequest(**(fields | changes))

    def submit(self, **changes: Any) -> Any:
        return self.stub.SubmitOrder(self.order(**changes), **self.calls).report

    def cancel_all(self) -> Any:
        request = order_entry_pb2.CancelAllOrdersRequest(pair=PAIR)
        return self.stub.CancelAllOrders(request, **self.calls).report

    def amend(self, **fields: Any) -> Any:
        request = order_entry_pb2.AmendOrderRequest(pair=PAIR, **fields)
        return self.stub.AmendOrder(request, **self.calls).report

    def open_orders(self) -> list[Any]:
        request = order_entry_pb2.ListOpenOrdersRequest(pair=PAIR, page_size=2)
        found: list[Any] = []
        while True:
            page = self.stub.ListOpenOrders(request, **self.calls)
            found += page.orders
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def batches(self, requests: Any) -> Any:
        return self.stub.SubmitBatches(requests, metadata=self.metadata, timeout=DEADLINE_S)


def records(count: int, **fields: Any) -> np.ndarray:
    batch = np.zeros(count, RECORD_DTYPE)
    batch["client_order_id"] = [next(client_order_ids) for _ in range(count)]
    batch["kind_side"] = 1 | BUY << 4
    batch["order_type_time_in_force"] = LIMIT | GTC << 4
    batch["price_ticks"] = 6_000_000
    batch["quantity_lots"] = 1_000
    for name, value in fields.items():
        batch[name] = value
    return batch


def message(batch: np.ndarray, number: int = 1) -> order_entry_pb2.SubmitBatchesRequest:
    return order_entry_pb2.SubmitBatchesRequest(
        pair=PAIR, record_version=1, batch_number=number, records=batch.tobytes()
    )


def acks_of(answer: Any) -> np.ndarray:
    return np.frombuffer(answer.acks, ACK_DTYPE)


def fund(channel: grpc.Channel) -> None:
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
    number = 0
    for account in (ALICE, BOB, CAROL):
        for asset, amount in ((enums.ASSET_BASE, "1000"), (enums.ASSET_QUOTE, "900000000")):
            number += 1
            request = pair_admin_pb2.AllotFundsRequest(
                pair=PAIR, account=account, asset=asset, amount=amount, transfer_number=number
            )
            report = admin.AllotFunds(request, timeout=DEADLINE_S).report
            assert report.kind == enums.EXECUTION_KIND_ALLOTTED, report


def start_entry(pair: PairProcesses, name: str) -> "subprocess.Popen[bytes]":
    """Start an order-entry process for ring 1 on the pair's port."""
    port = str(pair.port)
    return pair._start(name, "engine.entry_server", "--ring", "1", "--port", port)


@contextlib.contextmanager
def running(run: Path) -> Iterator[Running]:
    """Give a funded pair that serves, with one order-entry process."""
    with pair_processes(run, "os") as pair:
        pair.start_engine("--inboxes", "2")
        pair.start_entry()
        pair.await_health()
        with grpc.insecure_channel(pair.target) as channel:
            fund(channel)
            yield pair, channel


def refused(call: Any) -> tuple[grpc.StatusCode, Any]:
    """Return status and ErrorInfo of a call that has to fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    info = refusal_in(caught.value)
    assert info is not None, caught.value
    assert info.domain == "holdfast"
    return caught.value.code(), info


class Session:
    """A session that sends one message at a time."""

    def __init__(self, client: Client) -> None:
        self.queue: list[Any] = []
        self.ready = threading.Semaphore(0)
        self.call = client.stub.Session(
            self._requests(), metadata=client.metadata, timeout=DEADLINE_S
        )

    def _requests(self) -> Iterator[Any]:
        while True:
            self.ready.acquire()
            if self.queue[0] is None:
                return
            yield self.queue.pop(0)

    def send(self, request_id: int, **command: Any) -> None:
        self.queue.append(order_entry_pb2.SessionRequest(request_id=request_id, **command))
        self.ready.release()

    def end(self) -> None:
        self.queue.append(None)
        self.ready.release()
