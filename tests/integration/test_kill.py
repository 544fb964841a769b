"""Kill -9 at random moments under load: nothing acknowledged is lost, nothing is applied twice.

A client streams batches and retries whatever was not acknowledged, with the same client order
ids. Meanwhile the engine, and now and then order entry, is killed without warning and started
again. At the end the journal is replayed through the plain twin: the execution log must be the
twin's, row for row, and every acknowledgement the client saw must stand in it, once.

The seed is printed and taken back through HOLDFAST_SEED; HOLDFAST_KILLS sets the number.
"""

import asyncio
import contextlib
import os
import random
from collections import Counter
from pathlib import Path

import grpc
import numpy as np

from engine.durability.execution_reader import ExecutionLogReader
from engine.durability.journal import Durability, Journal
from engine.recovery import recover
from engine.state_machine import Engine
from exchange.config import RunFolder, load_instrument
from exchange.enums import ExecutionKind
from exchange.records import E_CLIENT_ORDER_ID, E_ORDER_ID, account_of, kind_of
from exchange.segment import hash_of
from exchange.v1 import (
    enums_pb2,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from tests.integration.exchange_processes import PAIR, PairProcesses, pair_processes
from tests.reference.drivers import Kernel, Twin
from tests.reference.engine import ReferenceEngine

KILLS = int(os.environ.get("HOLDFAST_KILLS", "25"))
BATCH = 20
ACCOUNTS = (1, 2, 3)
RECORD = np.dtype(
    [
        ("client_order_id", "<i8"),
        ("order_id", "<i8"),
        ("lots", "<i8"),
        ("price", "<u4"),
        ("kind", "u1"),
        ("shape", "u1"),
        ("prevention", "u1"),
        ("flags", "u1"),
    ]
)
ACK = np.dtype(
    [
        ("client_order_id", "<i8"),
        ("order_id", "<i8"),
        ("filled", "<i8"),
        ("leaves", "<i8"),
        ("number", "<i8"),
        ("kind", "u1"),
        ("reason", "u1"),
        ("trades", "<u2"),
        ("executions", "<u4"),
    ]
)
NEW, CANCEL = 1, 2
GTC, IOC = 1, 2


class Client:
    """One account's stream of batches; a batch is sent again until it is acknowledged."""

    def __init__(self, account: int, target: str, chance: random.Random) -> None:
        self.account = account
        self.target = target
        self.chance = chance
        self.next_id = 1
        self.live: list[int] = []
        self.acks: list[np.void] = []
        self.acked_batches = 0
        self.progress = asyncio.Condition()
        self.stopping = False

    def _batch(self) -> bytes:
        records = np.zeros(BATCH, RECORD)
        for record in records:
            record["client_order_id"] = self.next_id
            if self.live and self.chance.random() < 0.3:
                record["kind"] = CANCEL
                record["client_order_id"] = self.chance.choice(self.live)
                continue
            side = self.chance.choice((1, 2))
            record["kind"] = NEW | side << 4
            record["shape"] = 1 | self.chance.choice((GTC, GTC, IOC)) << 4
            record["price"] = 6_400_000 + self.chance.randrange(-50, 51)
            record["lots"] = self.chance.randrange(200, 2_000)
            self.live = [*self.live[-50:], self.next_id]
            self.next_id += 1
        return records.tobytes()

    async def _send(self, content: bytes, number: int) -> bytes:
        """Send one batch until it is acknowledged."""
        while True:
            request = order_entry_pb2.SubmitBatchesRequest(
                pair=PAIR, record_version=1, batch_number=number, records=content
            )
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with grpc.aio.insecure_channel(self.target) as channel:
                    stub = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
                    call = stub.SubmitBatches(
                        metadata=(("holdfast-account", str(self.account)),), wait_for_ready=True
                    )
                    while True:
                        await call.write(request)
                        answer = await call.read()
                        if not isinstance(answer, order_entry_pb2.SubmitBatchesResponse):
                            break
                        if answer.acks:
                            return answer.acks

    async def run(self) -> None:
        while not self.stopping:
            content = self._batch()
            acks = np.frombuffer(await self._send(content, self.acked_batches + 1), ACK)
            assert len(acks) == BATCH
            sent = np.frombuffer(content, RECORD)
            assert (acks["client_order_id"] == sent["client_order_id"]).all()
            self.acks += [
                ack for ack, record in zip(acks, sent, strict=True) if record["kind"] & 0xF == NEW
            ]
            async with self.progress:
                self.acked_batches += 1
                self.progress.notify_all()

    async def await_batches(self, count: int) -> None:
        """Return after so many further acknowledged batches."""
        goal = self.acked_batches + count
        async with self.progress:
            await self.progress.wait_for(lambda: self.acked_batches >= goal)


async def _fund(target: str) -> None:
    number = 0
    async with grpc.aio.insecure_channel(target) as channel:
        admin = pair_admin_pb2_grpc.PairAdminServiceStub(channel)
        for account in ACCOUNTS:
            for asset, amount in (
                (enums_pb2.ASSET_BASE, "1000"),
                (enums_pb2.ASSET_QUOTE, "90000000"),
            ):
                number += 1
                request = pair_admin_pb2.AllotFundsRequest(
                    pair=PAIR, account=account, asset=asset, amount=amount, transfer_number=number
                )
                answer = await admin.AllotFunds(request, timeout=60)
                assert answer.report.kind == enums_pb2.EXECUTION_KIND_ALLOTTED


async def _kill_and_restart(processes: PairProcesses, chance: random.Random) -> str:
    victim = "entry" if chance.random() < 0.15 else "engine"
    if victim == "engine":
        await asyncio.to_thread(processes.kill, processes.engine)
        processes.start_engine("--snapshot-commands", "3000")
    else:
        await asyncio.to_thread(processes.kill, processes.entry)
        processes.start_entry()
    return victim


async def _load_and_kill(processes: PairProcesses, chance: random.Random) -> list[Client]:
    await _fund(processes.target)
    clients = [Client(a, processes.target, random.Random(chance.random())) for a in ACCOUNTS]
    running = [asyncio.create_task(client.run()) for client in clients]
    try:
        for _ in range(KILLS):
            await chance.choice(clients).await_batches(1 + chance.randrange(10))
            await _kill_and_restart(processes, chance)
        await clients[0].await_batches(3)
        for client in clients:
            client.stopping = True
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
    return clients


def _compare_with_twin(run: Path) -> np.ndarray:
    """Replay the journal through the twin; return the log, which must be what the twin says."""
    folder = run / PAIR.lower()
    twin = ReferenceEngine(load_instrument(PAIR))
    expected: list[list[int]] = []
    journal = Journal.open(folder / "journal", identity=hash_of(PAIR))
    try:
        for frame in journal.replay(0):
            for offset, row in enumerate(frame.commands.tolist()):
                expected += twin.apply(row, frame.first_sequence + offset, frame.time_ns)
    finally:
        journal.close()
    twin.check()
    _compare_recovered_state(run, twin, journal.last_sequence)
    reader = ExecutionLogReader.open(folder / "executions")
    count = reader.committed()
    parts = []
    number = 0
    while number < count:
        parts.append(reader.read(number, count - number).copy())
        number += len(parts[-1])
    log = np.concatenate(parts)
    assert len(log) == len(expected)
    np.testing.assert_array_equal(log, np.array(expected, np.int64))
    return log


def _compare_recovered_state(run: Path, reference: ReferenceEngine, sequence: int) -> None:
    """Recover once more, from snapshot and journal: book and balances must be the twin's."""
    instrument = reference.instrument
    memory = Engine.in_memory(instrument)
    found = recover(RunFolder(run, PAIR), instrument, Durability.OS, memory.vault, memory.book)
    try:
        found.engine.check()
        kernel, twin = Kernel(instrument), Twin(instrument)
        kernel.engine = found.engine
        twin.engine, twin.sequence = reference, sequence
        assert kernel.summary() == twin.summary()
    finally:
        found.journal.close()
        found.log.close()


def _check_acknowledgements(clients: list[Client], log: np.ndarray) -> None:
    accepted = log[kind_of(log) == ExecutionKind.ACCEPTED]
    keys = list(
        zip(account_of(accepted).tolist(), accepted[:, E_CLIENT_ORDER_ID].tolist(), strict=True)
    )
    twice = [key for key, count in Counter(keys).items() if count > 1]
    assert not twice, f"applied twice: {twice[:5]}"
    order_ids = dict(zip(keys, accepted[:, E_ORDER_ID].tolist(), strict=True))
    for client in clients:
        for ack in client.acks:
            key = (client.account, int(ack["client_order_id"]))
            if ack["kind"] in (ExecutionKind.ACCEPTED, ExecutionKind.REPLAYED):
                assert order_ids.get(key) == ack["order_id"], f"acknowledged and lost: {key}"
            else:
                assert ack["kind"] == ExecutionKind.REJECTED


def test_nothing_acknowledged_is_lost_and_nothing_applied_twice(tmp_path: Path) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"HOLDFAST_SEED={seed}")
    chance = random.Random(seed)
    with pair_processes(tmp_path) as processes:
        processes.start()
        processes.await_health()
        clients = asyncio.run(_load_and_kill(processes, chance))
        processes.kill(processes.engine)
        processes.kill(processes.entry)
        log = _compare_with_twin(tmp_path)
        _check_acknowledgements(clients, log)
        print(f"{KILLS} kills, {sum(len(c.acks) for c in clients)} orders, {len(log)} executions")
