"""`holdfast run` and `holdfast replay` as a newcomer meets them, and what kill -9 does to them."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from exchange.enums import Side
from holdfast.blocking import Client
from holdfast.errors import CallFailed
from holdfast.retry import Retry
from holdfast.running.demonstration import MAKER, TRADERS, VISITOR
from ledgerd.chart import Purpose
from ledgerd.database import SERVICE, EmbeddedPostgres
from tests.integration.run_process import (
    BTC,
    ETH,
    ROOT,
    SHARED,
    RunProcess,
    run_folder,
    running,
    segment_folder,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]


ALLOTTED, FEES = int(Purpose.ALLOTTED), int(Purpose.FEES)


@pytest.fixture
def run() -> Iterator[Path]:
    with run_folder() as folder:
        yield folder


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


def test_two_pairs_trade_with_one_balance_and_the_next_run_goes_on_with_it(
    run: Path, segments: Path
) -> None:
    with running(run, segments, "--flow-rate", "200") as first:
        opened = first.until("open, new")
        assert "32 deposits funded its accounts" in opened
        assert f"grpcurl -plaintext {first.orders_target} list" in first.until("grpcurl")
        shared = [first.pid(name, SHARED) for name in ("postgres", "ledgerd", "riskd", "flow")]
        traded(first, BTC)
        traded(first, ETH)
        first.until("trial balance zero | no alarms", SHARED)
        stranger = Stranger(first.orders_target)
        stranger.start()
        rest = first.stop(signal.SIGTERM)
        stranger.join()
        assert stranger.filled_lots > 0
        order = ["flow", "riskd", "engine of ETH-USDT", "ledgerd", "postgres"]
        places = [rest.index(f"stopping {name}") for name in order]
        assert places == sorted(places)
        assert places[0] < rest.index("the books are settled") < places[1]
        assert not any(Path(f"/proc/{pid}").exists() for pid in shared)
        assert list(segments.iterdir()) == []
    before = balances(run)
    owners = {owner for owner, *_ in before}
    assert {MAKER, VISITOR, *TRADERS} <= owners
    # One balance of USDT went into both pairs and trades there.
    for pair in (BTC, ETH):
        assert any(before.get((owner, ALLOTTED, "USDT", pair)) for owner in TRADERS)
        assert before[0, FEES, "USDT", pair] > 0
    with running(run, segments, "--no-flow") as second:
        assert "its accounts have funds" in second.until("open, as it was after")
        verified = holdfast(segments, "verify", *verified_where(second))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        second.stop(signal.SIGTERM)
    assert balances(run) == before


class Stranger(threading.Thread):
    """Somebody who trades all the time and does not end because the exchange does."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.filled_lots = 0

    def run(self) -> None:
        impatient = Retry(patience_s=1.0, attempt_s=1.0)
        with Client(BTC, VISITOR, target=self.target, retry=impatient) as client:
            for side in itertools.cycle((Side.BUY, Side.SELL)):
                try:
                    report = client.submit(side, quantity="0.001")
                except CallFailed:
                    return
                self.filled_lots += report.filled_lots


def traded(run: RunProcess, pair: str) -> None:
    """Return once the books have settled trades of the pair: an engine earned fees there."""
    while not re.search(r"[1-9][\d,]* trades/s", run.until("ready epoch", pair)):
        pass
    number = run.sequence(pair)
    while run.settled(pair) < number:
        pass


def balances(run: Path) -> dict[tuple[int, int, str, str], int]:
    """Return what stands in the books of a stopped run, by owner, purpose, asset and pair."""
    postgres = EmbeddedPostgres(run / "postgres")
    postgres.start()
    url = postgres.url(SERVICE).set(drivername="postgresql")
    query = """
        SELECT owner_id, purpose, asset, pair, amount
        FROM accounts JOIN balances ON account_id = accounts.id
    """
    try:
        with psycopg.connect(url.render_as_string()) as connection:
            found = connection.execute(query).fetchall()
    finally:
        postgres.stop()
    return {(owner, purpose, asset, pair): units for owner, purpose, asset, pair, units in found}


def verified_where(run: RunProcess) -> list[str]:
    """Return the arguments with which `holdfast verify` finds a run."""
    found = ["--ledger", run.ledger_target, "--risk", run.risk_target]
    for pair, target in run.targets.items():
        found += ["--pair", f"{pair}={target}"]
    return found


def test_kill_9_of_any_process_heals_and_of_everything_at_once_too(
    run: Path, segments: Path
) -> None:
    with running(run, segments, "--flow-rate", "200") as first:
        rounds = (
            [("engine", BTC), ("mdgateway", SHARED), ("ledgerd", SHARED)],
            [("entry-0", ETH), ("riskd", SHARED), ("flow", SHARED)],
            [("entry-1", BTC), ("postgres", SHARED), ("postmaster", SHARED)],
        )
        for victims in rounds:
            pids = {victim: pid_of(first, *victim) for victim in victims}
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
            for victim, pid in pids.items():
                while pid_of(first, *victim) == pid:
                    pass
            goes_on(first)
        everything = [
            first.process.pid,
            *(pid_of(first, name, pair) for pair in (BTC, ETH) for name in ("engine", "entry-0")),
            *(pid_of(first, name, SHARED) for name in ("ledgerd", "riskd", "postgres")),
            first.postmaster(),
        ]
        for pid in everything:
            os.kill(pid, signal.SIGKILL)
        first.process.wait()
    assert list(segments.iterdir()), "nothing was left behind: this test tests nothing"
    with running(run, segments, "--flow-rate", "200") as second:
        removed = second.until("removed segments of dead owners")
        assert "holdfast-btc-usdt-vault" in removed
        assert "holdfast-eth-usdt-vault" in removed
        second.until("open, as it was after")
        goes_on(second)
        verified = holdfast(segments, "verify", *verified_where(second))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        second.stop()


def pid_of(run: RunProcess, name: str, of: str) -> int:
    return run.postmaster() if name == "postmaster" else run.pid(name, of)


def goes_on(run: RunProcess) -> None:
    """Return once both pairs take orders again, the gateway shows them, and the books follow."""
    for pair in (BTC, ETH):
        before = run.sequence(pair)
        while run.sequence(pair) < before + 100:
            pass
        run.until("bid ", pair)
        while run.settled(pair) < before + 100:
            pass
    run.until("no alarms", SHARED)


def test_orders_by_hand_a_second_run_that_is_refused_and_one_with_another_pair(
    run: Path, segments: Path
) -> None:
    with running(run, segments, "--no-flow", "--entries", "1", pairs=(BTC,)) as first:
        first.until("open, new")
        where = ("--target", first.orders_target, "--market-data", first.market_data_target)
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

        same_folder = holdfast(segments, "run", "--run", str(run), "--port", "1")
        assert same_folder.returncode == 1
        assert f"is in use by process {first.process.pid}" in same_folder.stderr
        port = first.orders_target.rpartition(":")[2]
        same_port = holdfast(segments, "run", "--run", f"{run}-other", "--port", port)
        assert same_port.returncode == 1
        assert f"port {port} of 127.0.0.1 is in use; choose another one" in same_port.stderr
        paid = holdfast(segments, "deposit", "BTC", "1", "--ledger", first.ledger_target)
        assert "credited to funding: 1.0" in paid.stdout, paid.stdout + paid.stderr
        first.stop()
    # Another pair later: who deposited by hand is given its share all the same, and nobody twice.
    with running(run, segments, "--no-flow", "--entries", "1") as second:
        assert "16 deposits funded its accounts" in second.until(": open, ")
        second.stop()


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
