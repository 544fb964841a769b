"""`holdfast run` and `holdfast replay` as a newcomer meets them, and what kill -9 does to them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.run_process import ROOT, running, segment_folder

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def segments() -> Iterator[Path]:
    with segment_folder() as folder:
        yield folder


def holdfast(segments: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast.cli", *arguments],
        cwd=ROOT,
        env=os.environ | {"HOLDFAST_SEGMENTS": str(segments)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_trades_stops_by_itself_and_the_next_one_goes_on(
    tmp_path: Path, segments: Path
) -> None:
    with running(tmp_path / "run", segments, "--seconds", "5", "--flow-rate", "400") as run:
        assert "is open, new; 20 transfers funded its accounts" in run.until("is open")
        assert f"grpcurl -plaintext {run.orders_target} list" in run.until("grpcurl")
        pids = [run.pid(name) for name in ("engine", "entry-0", "entry-1", "mdgateway", "flow")]
        rest = run.rest()
        first = max(int(n.replace(",", "")) for n in re.findall(r"sequence ([\d,]+)", rest))
        assert first > 20, "nothing was traded"
        assert rest.index("stopping flow") < rest.index("stopping engine")
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert list(segments.iterdir()) == []
    with running(tmp_path / "run", segments, "--no-flow") as run:
        found = re.search(r"as it was after ([\d,]+) executions; its", run.until("is open"))
        assert found is not None
        assert int(found[1].replace(",", "")) >= first
        run.until("ready epoch")
        assert "stopping engine" in run.stop()


def test_kill_9_of_any_process_heals_and_the_flow_goes_on(tmp_path: Path, segments: Path) -> None:
    with running(tmp_path / "run", segments, "--flow-rate", "300") as run:
        for name in ("engine", "entry-0", "entry-1", "mdgateway", "flow"):
            pid = run.pid(name)
            os.kill(pid, signal.SIGKILL)
            while run.pid(name) == pid:
                pass
            before = run.sequence()
            while run.sequence() < before + 200:
                pass
            # The gateway's stream is alive again, too: the line has best prices.
            assert "(1 restarts)" in run.until("bid ")
        run.stop()


def test_kill_9_of_everything_at_once_leaves_nothing_that_stops_the_next_run(
    tmp_path: Path, segments: Path
) -> None:
    with running(tmp_path / "run", segments, "--flow-rate", "300") as run:
        before = run.sequence()
        while run.sequence() < before + 200:
            pass
        names = ("engine", "entry-0", "entry-1", "mdgateway", "flow")
        pids = [run.process.pid, *(run.pid(name) for name in names)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        run.process.wait()
    assert list(segments.iterdir()), "nothing was left behind: this test tests nothing"
    with running(tmp_path / "run", segments, "--no-flow") as run:
        assert "holdfast-btc-usdt-vault" in run.until("removed segments of dead owners")
        run.until("as it was after")
        run.stop()


def test_a_second_run_is_refused_with_a_sentence(tmp_path: Path, segments: Path) -> None:
    with running(tmp_path / "run", segments, "--no-flow") as run:
        run.until("is open")
        run_folder = ("run", "--run", str(tmp_path / "run"), "--port", "1")
        second = holdfast(segments, *run_folder, "--market-data-port", "2")
        assert second.returncode == 1
        assert f"is in use by process {run.process.pid}" in second.stderr
        port = run.orders_target.rpartition(":")[2]
        third = holdfast(segments, "run", "--run", str(tmp_path / "other"), "--port", port)
        assert third.returncode == 1
        assert f"port {port} of 127.0.0.1 is in use; choose another one" in third.stderr
        run.stop()


def test_orders_by_hand(tmp_path: Path, segments: Path) -> None:
    with running(tmp_path / "run", segments, "--no-flow", "--entries", "1") as run:
        run.until("is open")
        where = ("--target", run.orders_target, "--market-data", run.market_data_target)
        entered = holdfast(segments, "submit", "buy", "0.5", "--price", "60000", *where)
        assert entered.returncode == 0, entered.stderr
        assert "accepted" in entered.stdout
        assert "buy 0.50000 of 0.50000 at 60000.00" in holdfast(segments, "orders", *where).stdout
        assert "60000.00" in holdfast(segments, "depth", *where).stdout
        refused = holdfast(segments, "submit", "sell", "40000", "--price", "60000", *where)
        assert refused.returncode == 1
        assert "INSUFFICIENT_FUNDS" in refused.stdout
        wrong = holdfast(segments, "submit", "buy", "0.5", "--price", "60000.001", *where)
        assert wrong.returncode == 1
        assert wrong.stderr.startswith("holdfast: PRICE")
        assert "1 orders cancelled" in holdfast(segments, "cancel", "--all", *where).stdout
        run.stop()


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("lobster-aapl50/message_50_first672.csv.xz", ["lobster"], "56 of 56 fills"),
        ("bitstamp-l3-2026/orders.csv.xz", ["bitstamp"], "284 of 284 fills"),
        (
            "flash1-normal/normal_first500k.orders.csv.xz",
            ["flash1", "--limit", "10000"],
            "2 of 2 report hashes",
        ),
        (
            "lobster-aapl50/message_50_first672.csv.xz",
            ["lobster", "--speed", "100"],
            "56 of 56 fills",
        ),
    ],
)
def test_a_replay_through_order_entry_gives_what_was_recorded(
    recorded_data: Callable[[str], Path],
    segments: Path,
    name: str,
    arguments: list[str],
    expected: str,
) -> None:
    replayed = holdfast(segments, "replay", str(recorded_data(name)), "--format", *arguments)
    assert replayed.returncode == 0, replayed.stderr
    assert f"{expected} as recorded" in replayed.stdout
    assert list(segments.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "lobster"], "line 1 is 'N,1,B,10,5,0'"),
        (["--format", "flash1", "--speed", "1"], "the format flash1 has no times"),
        (["--format", "flash1", "--limit", "0"], "--limit is 0; it must be at least 1"),
        (["--format", "flash1", "--batch", "8193"], "--batch is 8193; it must be from 1 to 8192"),
    ],
)
def test_a_replay_that_cannot_be_is_refused_with_a_sentence(
    tmp_path: Path, segments: Path, arguments: list[str], sentence: str
) -> None:
    path = tmp_path / "flow.csv"
    path.write_text("N,1,B,10,5,0\nC,1\n")
    replayed = holdfast(segments, "replay", str(path), *arguments)
    assert replayed.returncode == 1
    assert sentence in replayed.stderr
