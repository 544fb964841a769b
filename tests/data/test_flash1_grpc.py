"""The flash1 flow through real order entry: an engine process, an order-entry process, gRPC.

The commands go through the batch door, packed and pipelined; the executions come back from the
execution log as followers get it. The report text made of them has to have the same hashes as the
contest's, so nothing was lost, reordered or changed on the way.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange.enums import ExecutionKind
from exchange.instrument import AMOUNT_LIMIT_UNITS
from exchange.records import EXECUTION_WORDS, Rows, kind_of
from exchange.v1 import (
    enums_pb2,
    execution_feed_pb2,
    execution_feed_pb2_grpc,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from holdfast import packed
from holdfast.replay import flash1
from holdfast.replay.formats import instrument_table

FLOW = "flash1-normal/normal_first500k.orders.csv.xz"
MESSAGES = 500_000
BATCH = 4_096
BATCHES_UNDER_WAY = 6
"""Three quarters of an inbox ring: no batch of an only sender is refused, so order is kept."""
ACCOUNT = 1
METADATA = (("holdfast-account", str(ACCOUNT)),)
ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 300
"""A fresh checkout compiles its kernels first."""
STOP_SECONDS = 60

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@dataclass
class Pair:
    """A running pair and the way to it."""

    name: str
    channel: grpc.Channel
    processes: list["subprocess.Popen[str]"]


def start(arguments: list[str], environment: dict[str, str], log: Path) -> "subprocess.Popen[str]":
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


@pytest.fixture(scope="module")
def flow(recorded_data: Callable[[str], Path]) -> flash1.Flash1Recording:
    return flash1.read(recorded_data(FLOW), message_limit=MESSAGES)


@pytest.fixture
def pair(flow: flash1.Flash1Recording) -> Iterator[Pair]:
    name = flow.instrument.pair
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        root = Path(folder)
        instruments, segments = root / "instruments.toml", root / "segments"
        instruments.write_text(instrument_table(flow.instrument))
        segments.mkdir()
        environment = {**os.environ, "HOLDFAST_SEGMENTS": str(segments)}
        common = ["--pair", name, "--run", str(root / "run"), "--instruments", str(instruments)]
        processes = [
            start(["engine", *common, "--inboxes", "1"], environment, root / "engine.log"),
            start(["engine.entry_server", *common, "--ring", "0"], environment, root / "entry.log"),
        ]
        try:
            entry_output = processes[1].stdout
            assert entry_output is not None
            line = entry_output.readline()
            assert "listens on" in line, (root / "entry.log").read_text()
            with grpc.insecure_channel(line.split()[-1]) as channel:
                wait_until_serving(channel)
                yield Pair(name, channel, processes)
            for process in reversed(processes):
                process.terminate()
                assert process.wait(STOP_SECONDS) == 0, (root / "engine.log").read_text()
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def wait_until_serving(channel: grpc.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service="orders")
    stub = health_pb2_grpc.HealthStub(channel)
    for answer in stub.Watch(request, wait_for_ready=True, timeout=START_SECONDS):
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return


def allot(pair: Pair) -> None:
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(pair.channel)
    for number, asset in enumerate((enums_pb2.ASSET_BASE, enums_pb2.ASSET_QUOTE), start=1):
        answer = admin.AllotFunds(
            pair_admin_pb2.AllotFundsRequest(
                pair=pair.name,
                account=ACCOUNT,
                asset=asset,
                amount=str(AMOUNT_LIMIT_UNITS),
                transfer_number=number,
            )
        )
        assert answer.report.kind == enums_pb2.EXECUTION_KIND_ALLOTTED


def submit(pair: Pair, recording: flash1.Flash1Recording) -> packed.Acks:
    """Send all commands, a bounded number under way; return their acknowledgements in order."""
    under_way = threading.Semaphore(BATCHES_UNDER_WAY)
    ended = threading.Event()

    def requests() -> Iterator[order_entry_pb2.SubmitBatchesRequest]:
        for number, part in enumerate(recording.batches(BATCH), start=1):
            under_way.acquire()
            if ended.is_set():
                return
            yield order_entry_pb2.SubmitBatchesRequest(
                pair=pair.name,
                record_version=packed.RECORD_VERSION,
                batch_number=number,
                records=packed.check_records(packed.records_of_commands(recording.commands[part])),
            )

    parts = []
    stub = order_entry_pb2_grpc.OrderEntryServiceStub(pair.channel)
    try:
        answers = stub.SubmitBatches(requests(), metadata=METADATA)
        for number, answer in enumerate(answers, start=1):
            assert not answer.refusal.reason, answer.refusal
            assert answer.batch_number == number
            parts.append(packed.acks_of(answer.acks))
            under_way.release()
    finally:
        ended.set()
        under_way.release()
    return np.concatenate(parts)


def executions_until(pair: Pair, last_number: int) -> Rows:
    """Return the execution log from its beginning to this number."""
    stub = execution_feed_pb2_grpc.ExecutionFeedServiceStub(pair.channel)
    request = execution_feed_pb2.FollowExecutionsRequest(
        pair=pair.name, from_number=0, record_version=1
    )
    stream = stub.FollowExecutions(request)
    parts: list[Rows] = []
    number = 0
    for answer in stream:
        rows = np.frombuffer(answer.records, "<i8").reshape(-1, EXECUTION_WORDS)
        assert answer.first_number == number
        number += len(rows)
        parts.append(rows)
        if number > last_number:
            break
    stream.cancel()
    return np.concatenate(parts)[: last_number + 1]


def test_report_hashes_through_grpc(flow: flash1.Flash1Recording, pair: Pair) -> None:
    allot(pair)
    acks = submit(pair, flow)
    assert len(acks) == len(flow.commands) == MESSAGES
    executions = executions_until(pair, int(acks["last_number"][-1]))
    executions = executions[kind_of(executions) != ExecutionKind.ALLOTTED]
    lines, messages = flow.report_lines(executions)
    checked = {count for count in flow.checkpoints if count <= MESSAGES}
    assert max(checked) == MESSAGES
    for count in checked:
        assert flash1.hash_after(lines, messages, count) == flow.checkpoints[count]
    # The acknowledgements tell the same story as the log.
    assert int(acks["execution_count"].sum()) == len(executions)
    trades = int((kind_of(executions) == ExecutionKind.TRADE).sum())
    assert int(acks["trade_count"].sum()) == trades
    print(f"{len(acks):,} commands, {trades:,} trades through gRPC")
