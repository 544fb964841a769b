"""The gateway as a user of its own beside a running pair: what it can open says nothing of anybody.

Looked at from outside: every file below the pair's folders that this user may open, every segment
it has mapped, every connection it holds.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from exchange.v1 import enums_pb2, order_entry_pb2, order_entry_pb2_grpc, pair_admin_pb2
from exchange.v1.pair_admin_pb2_grpc import PairAdminServiceStub
from tests.integration.market_data_processes import (
    INSTRUMENTS,
    PAIR,
    PATIENCE_S,
    ROOT,
    Processes,
    channel_to,
    wait_serving,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another user"),
]

STRANGER = 65_534
ACCOUNT = 0xA5B6
CLIENT_ORDER_ID = 0x1D2C3B4A59687766
# The interpreter may lie where only root can go: everything is loaded first, then root is given up.
_BECOME = f"os.setgroups([]); os.setgid({STRANGER}); os.setuid({STRANGER})"
_GATEWAY = f"""
import encodings.idna, os, sys
from mdgateway.__main__ import main
from mdgateway.warm_up import warm_up
warm_up()
{_BECOME}
sys.exit(main(sys.argv[1:]))
"""
_OPENED = f"""
import json, os, sys
{_BECOME}
found = []
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb"):
                found.append(path)
        except OSError:
            pass
print(json.dumps(found))
"""


class Watched:
    """A pair with one order of one account, and a gateway that runs as somebody else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = Processes(folder)
        content = INSTRUMENTS.replace("account_capacity = 16", "account_capacity = 65536")
        self.processes.instruments.write_text(content)
        self.entry_port = ""

    def start(self) -> None:
        self.processes.start_engine()
        self.entry_port = self.processes.start_entry()
        with channel_to(self.entry_port) as channel:
            wait_serving(channel, "orders")
            self.trade(channel)
        candles = self.folder / "candles"
        candles.mkdir()
        os.chown(candles, STRANGER, STRANGER)
        port = self.start_gateway(candles)
        with channel_to(port) as channel:
            wait_serving(channel, "marketdata")

    def start_gateway(self, candles: Path) -> str:
        arguments = ["--pair", PAIR, "--candles", str(candles), "--port", "0", "--http-port", "0"]
        self.gateway = subprocess.Popen(
            [
                *(sys.executable, "-c", _GATEWAY, *arguments),
                *("--instruments", str(self.processes.instruments)),
            ],
            cwd=ROOT,
            env=os.environ | {"HOLDFAST_SEGMENTS": str(self.processes.segments)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.running["gateway"] = self.gateway
        assert self.gateway.stdout is not None
        for line in self.gateway.stdout:
            if f"{PAIR} on 127.0.0.1:" in line:
                return line.rstrip().rpartition(":")[2]
        raise AssertionError("the gateway ended")

    def trade(self, channel: grpc.Channel) -> None:
        allot = pair_admin_pb2.AllotFundsRequest(
            pair=PAIR,
            account=ACCOUNT,
            asset=enums_pb2.ASSET_QUOTE,
            amount="1000000",
            transfer_number=1,
        )
        PairAdminServiceStub(channel).AllotFunds(allot, timeout=PATIENCE_S)
        order = order_entry_pb2.SubmitOrderRequest(
            pair=PAIR,
            client_order_id=CLIENT_ORDER_ID,
            side=enums_pb2.SIDE_BUY,
            order_type=enums_pb2.ORDER_TYPE_LIMIT,
            time_in_force=enums_pb2.TIME_IN_FORCE_GOOD_TILL_CANCELLED,
            price="1",
            quantity="1",
        )
        stub = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
        metadata = (("holdfast-account", str(ACCOUNT)),)
        report = stub.SubmitOrder(order, metadata=metadata, timeout=PATIENCE_S).report
        assert report.kind == enums_pb2.EXECUTION_KIND_ACCEPTED, report

    def opened(self) -> list[Path]:
        """Return the files of the folder that the gateway's user can open."""
        answer = subprocess.run(
            [sys.executable, "-c", _OPENED, str(self.folder)],
            capture_output=True,
            check=True,
            text=True,
        )
        return [Path(path) for path in json.loads(answer.stdout)]


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    folder.chmod(0o755)
    watched = Watched(folder)
    try:
        watched.start()
        yield watched
    finally:
        watched.processes.close()
        shutil.rmtree(folder)


def names_somebody(content: bytes) -> bool:
    """Whether bytes hold the account or the client's order id as an engine writes them."""
    words = np.frombuffer(content[: len(content) // 8 * 8], np.int64)
    account = (words == ACCOUNT) | (words >> 32 == ACCOUNT)
    return bool(account.any() or (words == CLIENT_ORDER_ID).any())


def test_the_check_finds_somebody_where_there_is(watched: Watched) -> None:
    found = [
        path
        for path in watched.folder.rglob("*")
        if stat.S_ISREG(path.stat().st_mode) and names_somebody(path.read_bytes())
    ]
    assert {"vault", "journal"} <= {part for path in found for part in path.name.split("-")} | {
        part for path in found for part in path.parts
    }


def test_no_file_it_can_open_names_anybody(watched: Watched) -> None:
    opened = watched.opened()
    assert any(path.name.endswith("book") for path in opened)
    assert [path for path in opened if names_somebody(path.read_bytes())] == []


def test_it_maps_the_book_only_and_only_to_read(watched: Watched) -> None:
    maps = Path(f"/proc/{watched.gateway.pid}/maps").read_text().splitlines()
    segments = [line.split() for line in maps if str(watched.processes.segments) in line]
    assert {Path(line[5]).name for line in segments} == {f"holdfast-{PAIR.lower()}-book"}
    assert {line[1] for line in segments} == {"r--s"}


def test_it_is_connected_to_nobody_who_trades(watched: Watched) -> None:
    table = Path(f"/proc/{watched.gateway.pid}/net/tcp").read_text().splitlines()[1:]
    inodes = {
        str(link.readlink()).partition("[")[2].rstrip("]")
        for link in Path(f"/proc/{watched.gateway.pid}/fd").iterdir()
        if str(link.readlink()).startswith("socket:")
    }
    own = [line.split() for line in table if line.split()[9] in inodes]
    assert own, "the gateway listens on something"
    remote_ports = {int(line[2].partition(":")[2], 16) for line in own}
    assert int(watched.entry_port) not in remote_ports


def test_nothing_in_its_memory_names_anybody(watched: Watched) -> None:
    process = watched.gateway.pid
    found = []
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            span, modes, *_ = line.split()
            start, end = (int(word, 16) for word in span.split("-"))
            if modes.startswith("rw"):
                memory.seek(start)
                content = memory.read(end - start)
                if CLIENT_ORDER_ID.to_bytes(8, "little") in content:
                    found.append(line)
    assert found == []
