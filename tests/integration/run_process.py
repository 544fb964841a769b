"""`holdfast run` as a process of its own, read line by line as somebody without a terminal does."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from holdfast.running.supervisor import free_ports
from ledgerd.database import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent.parent
BTC, ETH = "BTC-USDT", "ETH-USDT"
SHARED = "exchange"
"""What a line begins with that is about no pair."""


class RunProcess:
    """One run, its output so far, and what the last line says of its processes."""

    def __init__(self, run: Path, segments: Path, pairs: tuple[str, ...], *more: str) -> None:
        self.run = run
        ports = [str(port) for port in free_ports(4 + len(pairs))]
        market_data, ledger, risk, http = ports[:4]
        self.targets = {
            pair: f"127.0.0.1:{port}" for pair, port in zip(pairs, ports[4:], strict=True)
        }
        self.market_data_target = f"127.0.0.1:{market_data}"
        self.ledger_target = f"127.0.0.1:{ledger}"
        self.risk_target = f"127.0.0.1:{risk}"
        self.lines: list[str] = []
        arguments = ["--run", str(run), "--durability", "os"]
        for pair, port in zip(pairs, ports[4:], strict=True):
            arguments += ["--pair", f"{pair}={port}"]
        arguments += ["--market-data-port", market_data, "--ledger-port", ledger]
        arguments += ["--risk-port", risk, "--http-port", http]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.cli", "run", *arguments, *more],
            cwd=ROOT,
            env=os.environ | {"HOLDFAST_SEGMENTS": str(segments)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def orders_target(self) -> str:
        """Return where order entry of the first pair listens."""
        return next(iter(self.targets.values()))

    def line(self) -> str:
        """Return the next line; an output that ends is an error that shows it all."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the run ended:\n{''.join(self.lines)}\n{self.logs()}"
        self.lines.append(line)
        return line.rstrip()

    def logs(self) -> str:
        paths = sorted(self.run.glob("**/logs/*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2_000:]}" for path in paths)

    def until(self, words: str, of: str = "") -> str:
        """Return the first line from here on, about a pair or SHARED if asked, with the words."""
        while words not in (line := self.line()) or not line.startswith(of):
            pass
        return line

    def pid(self, name: str, of: str = BTC) -> int:
        """Return the process number in the next line that gives one."""
        while True:
            found = re.search(rf"\b{name} (\d+)", self.until(" | ", of))
            if found:
                return int(found[1])

    def sequence(self, of: str = BTC) -> int:
        """Return the sequence in the next line of an engine that is ready."""
        found = re.search(r"sequence ([\d,]+)", self.until("ready epoch", of))
        assert found is not None
        return int(found[1].replace(",", ""))

    def settled(self, of: str = BTC) -> int:
        """Return how far a pair is settled in the next line of running books that says so."""
        while True:
            found = re.search(
                rf"{of} [^|]*; settled to ([\d,]+)", self.until(" settled to ", SHARED)
            )
            if found:
                return int(found[1].replace(",", ""))

    def postmaster(self) -> int:
        """Return the process number of the database itself, or 0 while there is none."""
        try:
            said = (self.run / "postgres" / "data" / "postmaster.pid").read_text()
        except FileNotFoundError:
            return 0
        return int(said.split("\n", 1)[0] or 0)

    def stop(self, how: int = signal.SIGINT) -> str:
        """Stop as Ctrl-C does; return the rest of the output."""
        self.process.send_signal(how)
        return self.rest()

    def rest(self) -> str:
        """Return what is written until the end, and see to it that the end is a good one."""
        rest, _ = self.process.communicate()
        assert self.process.returncode == 0, rest + self.logs()
        return rest


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Give a folder for a run; PostgreSQL may run as another user, who has to reach it."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-run-"))
    folder.chmod(0o755)
    try:
        yield folder / "run"
    finally:
        # Left running only where a test killed everything and did not start it again.
        EmbeddedPostgres(folder / "run" / "postgres").stop("immediate")
        # A run that was killed may still be stopping what it started.
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def segment_folder() -> Iterator[Path]:
    """Give a folder for segments that nobody else uses."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def running(
    run: Path, segments: Path, *more: str, pairs: tuple[str, ...] = (BTC, ETH)
) -> Iterator[RunProcess]:
    """Start `holdfast run`; whatever happens, it and its children are gone afterwards."""
    started = RunProcess(run, segments, pairs, *more)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            # Its children are told by the operating system.
            started.process.kill()
        started.process.wait()
        assert started.process.stdout is not None
        started.process.stdout.close()
