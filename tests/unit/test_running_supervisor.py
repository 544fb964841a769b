"""The supervisor with real processes that do nothing but report to the test.

Each child connects to a socket of the test and says its process number and where its segments are;
the connection ends when the child does. So nothing here waits by the clock.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from exchange.ownership import Field, Layout, Owned
from holdfast.running import child as child_module
from holdfast.running.child import Child, ProcessState, last_words
from holdfast.running.plan import (
    MDGATEWAY,
    MoneyPlan,
    PairPlan,
    Plan,
    Process,
    Stage,
    orders_offset,
    usual_target,
)
from holdfast.running.supervisor import (
    HOPELESS_COUNT,
    PairRunning,
    PortTaken,
    RunFolderInUse,
    StartFailed,
    Supervisor,
    check_port_free,
    free_ports,
)

ROOT = Path(__file__).resolve().parent.parent.parent
LAYOUT = Layout("test", 1, [Field("words", "int64", (8,))])

REPORTS = """
import os, signal, socket, sys
{extra}
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
link.sendall(f"{{os.getpid()}} {{os.environ.get('HOLDFAST_SEGMENTS')}}\\n".encode())
{then}
"""
LIVES = REPORTS.format(extra="", then="link.recv(1)")
ANNOUNCES = """
import json
from pathlib import Path
addresses = {"ledger": "here", "ledger_owner": "mine", "risk": "there"}
unfinished = Path(sys.argv[2] + ".new")
unfinished.write_text(json.dumps(addresses))
unfinished.rename(sys.argv[2])
"""
STUBBORN = REPORTS.format(extra="signal.signal(15, signal.SIG_IGN)", then="link.recv(1)")
DIES = REPORTS.format(extra="", then="print('the disk is on fire'); sys.exit(3)")


class Reports:
    """Where children report: one connection for each life."""

    def __init__(self) -> None:
        self.arrivals: asyncio.Queue[tuple[int, str, asyncio.StreamReader]] = asyncio.Queue()
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        pid, segments = (await reader.readline()).decode().split()
        self.arrivals.put_nowait((int(pid), segments, reader))


@asynccontextmanager
async def reports() -> AsyncIterator[Reports]:
    found = Reports()
    server = await asyncio.start_server(found.take, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        for writer in found.writers:
            writer.close()
        server.close()
        await server.wait_closed()


@dataclass(frozen=True)
class QuickPlan(Plan):
    """An exchange whose processes only report."""

    reports_port: int = 0

    def first(self) -> list[Process]:
        report = str(self.reports_port)
        keeper = ("-c", LIVES.replace("link =", f"{ANNOUNCES}\nlink ="), report)
        found = [Process("postgres", (*keeper, str(self.addresses)), Stage.DATABASE)]
        arguments = ("-c", LIVES, report)
        for one in self.pairs:
            found.append(Process("engine", arguments, Stage.ENGINES, one.pair))
            found.append(Process("entry-0", arguments, Stage.DOORS, one.pair))
        return [*found, Process("mdgateway", arguments, Stage.DOORS)]

    def second(self, addresses: Mapping[str, str]) -> list[Process]:
        assert addresses == {"ledger": "here", "ledger_owner": "mine", "risk": "there"}
        arguments = ("-c", LIVES, str(self.reports_port))
        return [
            Process("ledgerd", arguments, Stage.BOOKS),
            Process("riskd", arguments, Stage.RISK),
        ]


@pytest.fixture
def segments() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def plan(tmp_path: Path, segments: Path) -> QuickPlan:
    first, second, market_data, ledger, risk, http = free_ports(6)
    return QuickPlan(
        tmp_path / "run",
        (PairPlan("BTC-USDT", first), PairPlan("ETH-USDT", second)),
        market_data,
        MoneyPlan(ledger, risk),
        segments=str(segments),
        http_port=http,
    )


def test_a_key_file_goes_to_the_gateway(tmp_path: Path, plan: QuickPlan) -> None:
    keys = tmp_path / "keys.json"
    with pytest.raises(ValueError, match=r"keys\.json'; it must be a key file"):
        replace(plan, market_data_keys=keys).validate()
    keys.write_text('{"keys": []}')
    for given, wanted in ((keys, ("--keys", str(keys))), (None, ())):
        started = Plan.first(replace(plan, market_data_keys=given).validate())
        [gateway] = [one for one in started if one.name == MDGATEWAY]
        at = gateway.arguments.index("--http-port") + 2
        assert gateway.arguments[at:] == wanted


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_child_comes_back_and_a_stopped_one_stays_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reports() as found:
            log = tmp_path / "logs" / "a.log"
            arguments = ("-c", LIVES, str(found.port))
            child = Child("a", arguments, log, {"HOLDFAST_SEGMENTS": "/somewhere"})
            await child.start()
            pid, segments, ends = await found.arrivals.get()
            assert (pid, segments) == (child.pid, "/somewhere")
            os.kill(pid, signal.SIGKILL)
            assert await ends.read() == b""
            again, _, ends = await found.arrivals.get()
            assert again == child.pid != pid
            assert child.restart_count == 1
            assert "a ended with SIGKILL" in log.read_text()
            await child.stop(10)
            assert await ends.read() == b""
            assert (child.state, child.pid) == (ProcessState.STOPPED, 0)
            assert not alive(again)

    asyncio.run(scenario())


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reports() as found:
            child = Child("a", ("-c", STUBBORN, str(found.port)), tmp_path / "a.log", {})
            await child.start()
            pid, _, _ = await found.arrivals.get()
            await child.stop(0.2)
            assert not alive(pid)
            assert "did not end within" in (tmp_path / "a.log").read_text()

    asyncio.run(scenario())


def test_who_dies_again_and_again_is_hopeless_and_its_last_words_are_told(
    plan: QuickPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "FIRST_PAUSE_S", 0.01)

    async def scenario() -> None:
        async with reports() as found, Supervisor(plan) as supervisor:
            doomed = ("-c", DIES, str(found.port))
            await supervisor.add(Process("doomed", doomed, Stage.FLOW, "BTC-USDT"))
            for _ in range(HOPELESS_COUNT):
                await found.arrivals.get()
                supervisor.check_hopeless()
            await found.arrivals.get()
            with pytest.raises(StartFailed, match="doomed of BTC-USDT does not start: the disk is"):
                supervisor.check_hopeless()

    asyncio.run(scenario())


def test_everything_stops_from_the_doors_inwards(plan: QuickPlan) -> None:
    async def scenario() -> None:
        async with reports() as found:
            told: list[str] = []
            async with Supervisor(replace(plan, reports_port=found.port)) as supervisor:
                await supervisor.start()
                await supervisor.add(Process("flow", ("-c", LIVES, str(found.port)), Stage.FLOW))
                lives = [await found.arrivals.get() for _ in range(9)]
                assert {segments for _, segments, _ in lives} == {plan.segments}
                await supervisor.stop(told.append)
            for pid, _, ends in lives:
                assert await ends.read() == b""
                assert not alive(pid)
            assert told[:2] == ["stopping flow", "stopping riskd"]
            doors = {"entry-0 of BTC-USDT", "entry-0 of ETH-USDT", "mdgateway"}
            assert set(told[2:5]) == {f"stopping {name}" for name in doors}
            assert set(told[5:7]) == {f"stopping engine of {one.pair}" for one in plan.pairs}
            assert told[7:] == ["stopping ledgerd", "stopping postgres"]

    asyncio.run(scenario())


SUPERVISES = """
import asyncio, sys
from pathlib import Path
from holdfast.running.child import Child

async def main():
    child = Child("a", ("-c", sys.argv[2], sys.argv[1]), Path(sys.argv[3]), {})
    await child.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_child_does_not_outlive_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reports() as found:
            arguments = (SUPERVISES, str(found.port), LIVES, str(tmp_path / "a.log"))
            parent = await asyncio.create_subprocess_exec(
                sys.executable, "-c", *arguments, cwd=ROOT
            )
            pid, _, ends = await found.arrivals.get()
            assert alive(pid)
            parent.kill()
            assert await ends.read() == b""
            await parent.wait()

    asyncio.run(scenario())


def test_one_supervisor_a_run_folder(plan: QuickPlan) -> None:
    async def scenario() -> None:
        async with Supervisor(plan):
            with pytest.raises(RunFolderInUse, match=f"in use by process {os.getpid()}"):
                async with Supervisor(plan):
                    pass
        async with Supervisor(plan):
            pass

    asyncio.run(scenario())


@pytest.mark.parametrize("which", range(6))
def test_a_port_that_is_taken_is_named_before_anything_starts(plan: QuickPlan, which: int) -> None:
    async def scenario(port: int) -> None:
        with pytest.raises(PortTaken, match=f"port {port} of 127.0.0.1 is in use"):
            async with Supervisor(plan):
                pass

    with socket.socket() as listener:
        port = list(plan.ports().values())[which]
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        asyncio.run(scenario(port))
    check_port_free(port)


CLAIMS_AND_DIES = """
import os, sys
from exchange.ownership import Field, Layout, Owned
Owned.claim(sys.argv[1], Layout("test", 1, [Field("words", "int64", (8,))]), directory=sys.argv[2])
os.kill(os.getpid(), 9)
"""


def test_segments_of_dead_owners_are_removed_and_no_others(plan: QuickPlan, segments: Path) -> None:
    for name in ("holdfast-eth-usdt-vault", "holdfast-sol-usdt-vault"):
        arguments = [sys.executable, "-c", CLAIMS_AND_DIES, name, str(segments)]
        assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    (segments / "holdfast-btc-usdt-notes").write_text("not a segment")

    async def scenario() -> None:
        async with Supervisor(plan) as supervisor:
            assert supervisor.cleaned == ["holdfast-eth-usdt-vault"]

    asyncio.run(scenario())
    left = {path.name for path in segments.iterdir()}
    assert left == {"holdfast-sol-usdt-vault", "holdfast-btc-usdt-notes"}


def test_a_pair_that_runs_elsewhere_is_not_started_again(plan: QuickPlan, segments: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(PairRunning, match="BTC-USDT is running already: holdfast-btc-usdt-b"):
            async with Supervisor(plan):
                pass

    with Owned.claim("holdfast-btc-usdt-book", LAYOUT, directory=segments):
        asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pairs": ()}, "pairs are ; there must be one or more, each once"),
        ({"pairs": (PairPlan("A", 1), PairPlan("A", 2))}, "pairs are A, A; there must be one"),
        ({"pairs": (PairPlan("A", 1, 0),)}, "entry_count is 0; it must be from 1 to 64"),
        ({"pairs": (PairPlan("A", 1, 65),)}, "entry_count is 65; it must be from 1 to 64"),
        ({"pairs": (PairPlan("A", 0),)}, "the port of A is 0; it must be from 1 to 65535"),
        ({"market_data_port": 70_000}, "market_data_port is 70000; it must be from 1 to 65535"),
        ({"money": MoneyPlan(7, 7)}, "ledger_port is 7, as is risk_port"),
        ({"durability": "maybe"}, "durability is 'maybe'; it must be fsync or os"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(
    plan: QuickPlan, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Supervisor(replace(plan, **change))


def test_a_plan_names_every_process_of_its_pairs(tmp_path: Path) -> None:
    pairs = (PairPlan("BTC-USDT", 8850), PairPlan("ETH-USDT", 8860, 1))
    plan = Plan(tmp_path, pairs, 8851, MoneyPlan(8870, 8871), "os")
    first = {(one.pair, one.name): one.arguments for one in plan.first()}
    assert list(first) == [
        ("", "postgres"),
        ("BTC-USDT", "engine"),
        ("BTC-USDT", "entry-0"),
        ("BTC-USDT", "entry-1"),
        ("ETH-USDT", "engine"),
        ("ETH-USDT", "entry-0"),
        ("", "mdgateway"),
    ]
    entry = " ".join(first["BTC-USDT", "entry-1"])
    assert entry.endswith("--ring 1 --port 8850 --processes 2 --risk 127.0.0.1:8871")
    engine = " ".join(first["BTC-USDT", "engine"])
    assert engine.endswith("--durability os --inboxes 2")
    assert {"BTC-USDT", "ETH-USDT"} < {*first["", "mdgateway"]}
    assert first["", "mdgateway"][-2:] == ("--http-port", "-1")
    addresses = {"ledger": "url-1", "ledger_owner": "url-2", "risk": "url-3", "risk_owner": "url-4"}
    ledgerd, riskd = (" ".join(one.arguments) for one in plan.second(addresses))
    follow = "--follow BTC-USDT=127.0.0.1:8850 --follow ETH-USDT=127.0.0.1:8860"
    assert f"{follow} --port 8870 --database-url url-1 --owner-url url-2" in ledgerd
    assert "--risk 127.0.0.1:8871 --custodian simulated" in ledgerd
    assert "--approval-above BTC=0.1" in ledgerd
    ledger = "--ledger 127.0.0.1:8870"
    assert f"{follow} --port 8871 {ledger} --database-url url-3 --owner-url url-4" in riskd
    bare = Plan(tmp_path, pairs[:1]).first()
    assert "--risk" not in bare[1].arguments
    assert [one.name for one in bare] == ["engine", "entry-0", "entry-1"]


def test_pairs_have_usual_places() -> None:
    assert usual_target("BTC-USDT") == "127.0.0.1:8850"
    assert usual_target("ETH-USDT") == "127.0.0.1:8860"
    offsets = [orders_offset(place) for place in range(4)]
    assert offsets == [0, 10, 30, 40], "20 and 21 are the ledger's and the risk service's"


def test_last_words_are_those_of_the_process(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert last_words(log) == ""
    log.write_text("first\n\nlast words\n\nsupervisor: a ended with exit code 1\n")
    assert last_words(log) == "last words"
    log.write_text("x" * 10_000 + "\nlast words\n")
    assert last_words(log) == "last words"
