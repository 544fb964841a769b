"""A full disk under a running pair: a clear refusal, nothing lost, and on it goes by itself.

The whole pair runs on a real memory file system of its own that really is full, in a process with
its own mounts (root, or a user namespace where those are allowed).
"""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from exchange.v1 import enums_pb2, order_entry_pb2, order_entry_pb2_grpc
from tests.integration.exchange_processes import PAIR, ROOT, PairProcesses, pair_processes

DISK_BYTES = 240 << 20
BATCH = 8_192
CALLER = (("holdfast-account", "1"),)


def fill(disk: Path) -> Path:
    """Take all the space there is, to the last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size_bytes in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size_bytes))
    return filler


def batch(first_id: int) -> order_entry_pb2.SubmitBatchesRequest:
    """Return orders of an account that is not known: each is one command and one answer."""
    words = np.zeros((BATCH, 4), np.int64)
    words[:, 0] = np.arange(first_id, first_id + BATCH)
    words[:, 2] = 1
    words[:, 3] = 6_400_000 | (1 | 1 << 4) << 32 | (1 | 1 << 4) << 40
    return order_entry_pb2.SubmitBatchesRequest(
        pair=PAIR, record_version=1, batch_number=first_id, records=words.tobytes()
    )


async def submit_one(target: str) -> order_entry_pb2.SubmitOrderResponse:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
        request = order_entry_pb2.SubmitOrderRequest(
            pair=PAIR,
            client_order_id=1,
            side=enums_pb2.SIDE_BUY,
            order_type=enums_pb2.ORDER_TYPE_LIMIT,
            time_in_force=enums_pb2.TIME_IN_FORCE_GOOD_TILL_CANCELLED,
            price="64000",
            quantity="1",
        )
        answer: order_entry_pb2.SubmitOrderResponse = await stub.SubmitOrder(
            request, metadata=CALLER, timeout=60
        )
        return answer


async def await_health(target: str, wanted: int) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service="orders")
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=120):
            if answer.status == wanted:
                return


async def read(call: Any) -> order_entry_pb2.SubmitBatchesResponse:
    answer = await call.read()
    assert isinstance(answer, order_entry_pb2.SubmitBatchesResponse), "the stream ended"
    return answer


async def send_until_blocked(target: str, disk: Path) -> tuple[int, int]:
    """Fill the disk, send until the engine blocks, make room; return batches sent and answered."""
    filler = fill(disk)
    blocked = asyncio.create_task(await_health(target, health_pb2.HealthCheckResponse.NOT_SERVING))
    async with grpc.aio.insecure_channel(target) as channel:
        call = order_entry_pb2_grpc.OrderEntryServiceStub(channel).SubmitBatches(metadata=CALLER)
        sent = answered = 0
        while True:
            await call.write(batch(1 + sent * BATCH))
            sent += 1
            answer = asyncio.create_task(read(call))
            await asyncio.wait({answer, blocked}, return_when=asyncio.FIRST_COMPLETED)
            if blocked.done():
                break
            assert len((await answer).acks) == BATCH * 48
            answered += 1
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await submit_one(target)
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
        details = rpc_status.from_call(refusal.value).details[0]
        info = error_details_pb2.ErrorInfo()
        details.Unpack(info)
        assert info.reason == "JOURNAL_BLOCKED"
        filler.unlink()
        await await_health(target, health_pb2.HealthCheckResponse.SERVING)
        last = await answer
        # What was already taken is answered now; what was refused says so.
        assert len(last.acks) == BATCH * 48 or last.refusal.reason == "JOURNAL_BLOCKED"
        answered += bool(last.acks)
    await submit_one(target)
    return sent, answered


def scenario(disk: Path) -> None:
    run = disk / "run"
    run.mkdir()
    with pair_processes(run) as processes:
        processes.start()
        processes.await_health()
        sent, answered = asyncio.run(send_until_blocked(processes.target, disk))
        assert answered in (sent, sent - 1)
        expected = answered * BATCH + 1
        _restart_and_count(processes, expected)


def _restart_and_count(processes: PairProcesses, expected: int) -> None:
    """Kill the engine: its journal must hold exactly what was answered."""
    processes.kill(processes.engine)
    processes.start_engine()
    # The answer shows that the new engine has recovered and taken the command.
    asyncio.run(submit_one(processes.target))
    processes.stop()
    assert f"at sequence {expected}," in processes.logs(), (expected, processes.logs())


@pytest.mark.integration
def test_a_full_disk_blocks_and_resumes(tmp_path: Path) -> None:
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--map-root-user", "--mount"]
    command = ["unshare", *namespaces, sys.executable, "-m", __name__, str(tmp_path)]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


if __name__ == "__main__":
    mounted = sys.argv[1]
    options = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", mounted], check=True)
    scenario(Path(mounted))
