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

ROOT = Path(__file__).resolve().parent.parent.parent


class RunProcess:
    """One run, its output so far, and what the last line says of its processes."""

    def __init__(self, run: Path, segments: Path, ports: tuple[int, int], *more: str) -> None:
        self.run = run
        self.orders_target, self.market_data_target = (f"127.0.0.1:{port}" for port in ports)
        self.lines: list[str] = []
        arguments = ["--run", str(run), "--port", str(ports[0])]
        arguments += ["--market-data-port", str(ports[1]), "--durability", "os"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.cli", "run", *arguments, *more],
            cwd=ROOT,
            env=os.environ | {"HOLDFAST_SEGMENTS": str(segments)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def line(self) -> str:
        """Return the next line; an output that ends is an error that shows it all."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the run ended:\n{''.join(self.lines)}\n{self.logs()}"
        self.lines.append(line)
        return line.rstrip()

    def logs(self) -> str:
        paths = sorted(self.run.glob("*/logs/*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2_000:]}" for path in paths)

    def until(self, words: str) -> str:
        """Return the first line from here on that holds the words."""
        while words not in (line := self.line()):
            pass
        return line

    def pid(self, name: str) -> int:
        """Return the process number in the next line that gives one."""
        while True:
            found = re.search(rf"\b{name} (\d+)", self.until(" | "))
            if found:
                return int(found[1])

    def sequence(self) -> int:
        """Return the sequence in the next line of an engine that is ready."""
        found = re.search(r"sequence ([\d,]+)", self.until("ready epoch"))
        assert found is not None
        return int(found[1].replace(",", ""))

    def stop(self) -> str:
        """Stop as Ctrl-C does; return the rest of the output."""
        self.process.send_signal(signal.SIGINT)
        return self.rest()

    def rest(self) -> str:
        """Return what is written until the end, and see to it that the end is a good one."""
        rest, _ = self.process.communicate()
        assert self.process.returncode == 0, rest + self.logs()
        return rest


@contextlib.contextmanager
def segment_folder() -> Iterator[Path]:
    """Give a folder for segments that nobody else uses."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def running(run: Path, segments: Path, *more: str) -> Iterator[RunProcess]:
    """Start `holdfast run`; whatever happens, it and its children are gone afterwards."""
    orders_port, market_data_port = free_ports(2)
    started = RunProcess(run, segments, (orders_port, market_data_port), *more)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            # Its children are told by the operating system.
            started.process.kill()
        started.process.wait()
        assert started.process.stdout is not None
        started.process.stdout.close()
