"""Order entry with either side killed, stopped, missing or drained, and both doors compared."""

import contextlib
import os
import signal
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.durability.execution_reader import ExecutionLogReader
from engine.durability.journal import Journal
from engine.entry.inbox import SINGLE_ROOM
from exchange.intake import INBOX_CAPACITY
from exchange.packed import BATCH_LIMIT
from exchange.records import C_SOURCE, E_SOURCE, SOURCE_SHIFT
from exchange.segment import hash_of
from exchange.v1 import enums_pb2 as enums
from exchange.v1 import (
    order_entry_pb2,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from tests.integration.entry_clients import (
    ALICE,
    DEADLINE_S,
    IOC,
    LIMIT,
    Client,
    Running,
    Session,
    acks_of,
    fund,
    message,
    records,
    refused,
    running,
    start_entry,
)
from tests.integration.exchange_processes import PAIR, pair_processes

pytestmark = pytest.mark.integration


# Both doors.


def test_both_doors_give_the_same_journal(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        batch = records(40)
        generator = np.random.Generator(np.random.PCG64(7))
        batch["price_ticks"] = generator.integers(5_990_000, 6_010_000, 40)
        batch["quantity_lots"] = generator.integers(100, 5_000, 40)
        batch["kind_side"] = 1 | generator.integers(1, 3, 40) << 4
        batch["order_type_time_in_force"] = LIMIT | generator.integers(1, 4, 40) << 4
        batch["self_trade_prevention"] = generator.integers(0, 6, 40)
        for one in batch:
            ticks, lots = int(one["price_ticks"]), int(one["quantity_lots"])
            alice.submit(
                client_order_id=int(one["client_order_id"]),
                price=f"{ticks // 100}.{ticks % 100:02}",
                quantity=f"0.{lots:05}",
                side=int(one["kind_side"]) >> 4,
                time_in_force=int(one["order_type_time_in_force"]) >> 4,
                self_trade_prevention=int(one["self_trade_prevention"]),
            )
        (answer,) = alice.batches(iter([message(batch)]))
        assert len(acks_of(answer)) == 40
        pair.stop()
        journal = Journal.open(pair.run / PAIR.lower() / "journal", identity=hash_of(PAIR))
        # A copy, because the rows are views of files that are about to be closed.
        rows = np.concatenate([frame.commands for frame in journal.replay(0)])
        journal.close()
    orders = rows[rows[:, 0] & 0xFF == 1]
    assert len(orders) == 80
    content = np.delete(orders, C_SOURCE, axis=1)
    np.testing.assert_array_equal(content[:40], content[40:])
    assert len(set(orders[:, C_SOURCE].tolist())) == 80


# Restarts and drain.


def test_calls_wait_for_an_engine_that_comes_back(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        before = alice.submit()
        pair.kill(pair.engine)
        waiting = [alice.stub.SubmitOrder.future(alice.order(), **alice.calls) for _ in range(20)]
        pair.start_engine("--inboxes", "2")
        reports = [call.result().report for call in waiting]
        assert {report.kind for report in reports} == {enums.EXECUTION_KIND_ACCEPTED}
        sequences = sorted(report.sequence for report in reports)
        assert sequences == list(range(before.sequence + 1, before.sequence + 21))
        pair.await_health()
        assert len(alice.open_orders()) == 21
        pair.stop()


def test_a_killed_entry_process_finds_its_ring_and_its_orders_again(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        ids = [alice.submit().order_id for _ in range(5)]
        pair.kill(pair.entry)
        pair.start_entry()
        pair.await_health()
        assert [order.order_id for order in alice.open_orders()] == ids
        assert alice.submit().kind == enums.EXECUTION_KIND_ACCEPTED
        assert pair.entry is not None
        pair.entry.terminate()
        assert pair.entry.wait(DEADLINE_S) == 0
        snapshots = pair.run / PAIR.lower() / "entry"
        assert [path.name for path in snapshots.iterdir()] == ["orders-0.npz"]
        pair.start_entry()
        pair.await_health()
        assert len(alice.open_orders()) == 6
        pair.stop()


def test_a_full_ring_is_refused_and_heals(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
        ioc = LIMIT | IOC << 4

        def await_pending(count: int) -> None:
            request = pair_admin_pb2.GetStatusRequest(pair=PAIR)
            while admin.GetStatus(request, timeout=DEADLINE_S).pending_count != count:
                pass

        assert pair.engine is not None
        os.kill(pair.engine.pid, signal.SIGSTOP)
        try:
            sizes = [*[BATCH_LIMIT] * 3, INBOX_CAPACITY - SINGLE_ROOM - 3 * BATCH_LIMIT]
            full = [message(records(size, order_type_time_in_force=ioc)) for size in sizes]
            large = alice.batches(iter(full))
            await_pending(INBOX_CAPACITY - SINGLE_ROOM)
            (late,) = alice.batches(iter([message(records(1), 9)]))
            assert (late.batch_number, late.acks) == (9, b"")
            assert late.refusal.reason == "RING_FULL"
            assert late.refusal.limit
            singles = [
                order_entry_pb2.SessionRequest(request_id=i, submit=alice.order(time_in_force=IOC))
                for i in range(SINGLE_ROOM)
            ]
            session = alice.stub.Session(iter(singles), metadata=alice.metadata, timeout=DEADLINE_S)
            await_pending(INBOX_CAPACITY)
            code, info = refused(alice.submit)
            assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RING_FULL")
            assert info.metadata["limit"]
        finally:
            os.kill(pair.engine.pid, signal.SIGCONT)
        assert [len(acks_of(answer)) for answer in large] == sizes
        assert [answer.request_id for answer in session] == list(range(SINGLE_ROOM))
        assert alice.submit().kind == enums.EXECUTION_KIND_ACCEPTED
        pair.stop()


def test_two_processes_share_a_port_and_a_ring_has_one_owner(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, _):
        second = start_entry(pair, "entry-1")
        rings: set[int] = set()
        try:
            request = pair_admin_pb2.GetStatusRequest(pair=PAIR)
            # A connection of its own each time, so that the kernel spreads them.
            options = [("grpc.use_local_subchannel_pool", 1)]
            while rings != {0, 1}:
                assert second.poll() is None, pair.logs()
                with grpc.insecure_channel(pair.target, options=options) as channel:
                    admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
                    with contextlib.suppress(grpc.RpcError):
                        rings.add(admin.GetStatus(request, timeout=DEADLINE_S).ring)
            third = start_entry(pair, "entry-2")
            assert third.wait(DEADLINE_S) == 1
            assert f"is owned by process {second.pid}" in (pair.run / "entry-2.log").read_text()
        finally:
            second.terminate()
            assert second.wait(DEADLINE_S) == 0
        pair.stop()


def test_a_drain_says_not_serving_then_goodbye_then_exits(tmp_path: Path) -> None:
    with running(tmp_path) as (pair, channel):
        alice = Client(channel, ALICE)
        session = Session(alice)
        session.send(1, submit=alice.order())
        assert next(session.call).report.kind == enums.EXECUTION_KIND_ACCEPTED
        stream = alice.stub.StreamExecutions(
            order_entry_pb2.StreamExecutionsRequest(pair=PAIR, from_number=0),
            metadata=alice.metadata,
            timeout=DEADLINE_S,
        )
        next(stream)
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="orders"), timeout=DEADLINE_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert pair.entry is not None
        pair.entry.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert [answer.goodbye.reason for answer in session.call] == ["DRAINING"]
        last = list(stream)[-1]
        assert last.goodbye.reason == "DRAINING"
        assert last.goodbye.resume_from == last.next_number > 0
        assert pair.entry.wait(DEADLINE_S) == 0
        pair.start_entry()
        pair.await_health()
        assert len(alice.open_orders()) == 1
        pair.stop()


def test_without_an_engine_the_process_lives_but_does_not_serve(tmp_path: Path) -> None:
    with pair_processes(tmp_path, "os") as pair:
        pair.start_entry()
        pair.await_health("alive")
        with grpc.insecure_channel(pair.target) as channel:
            check = health_pb2.HealthCheckRequest(service="orders")
            answer = health_pb2_grpc.HealthStub(channel).Check(check)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            code, info = refused(Client(channel, ALICE).submit)
            assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_NOT_READY")
            pair.start_engine()
            pair.await_health()
            fund(channel)
            assert Client(channel, ALICE).submit().kind == enums.EXECUTION_KIND_ACCEPTED
        pair.stop()


def test_sources_in_the_log_count_up_by_one(shared: Running) -> None:
    reader = ExecutionLogReader.open(shared[0].run / PAIR.lower() / "executions")
    rows = reader.read(0, reader.committed())
    assert (rows[:, E_SOURCE] >> SOURCE_SHIFT == 0).all()
    steps = np.diff(rows[:, E_SOURCE])
    assert set(steps.tolist()) <= {0, 1}
