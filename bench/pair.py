"""A pair as it really runs: processes of their own, a journal on disk, segments in memory.

Everything lies in folders made for it, and goes with them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.loops import wait_until
from bench.venue import INSTRUMENT
from exchange import atomics
from exchange.book_layout import STATE_READY, segment_name
from exchange.config import RunFolder
from exchange.doorbell import Ringer
from exchange.instrument import Instrument
from exchange.intake import (
    CURSOR_STRIDE,
    INBOX_JOURNAL,
    INTAKE_ASLEEP,
    INTAKE_JOURNAL,
    INTAKE_SEQUENCE,
    INTAKE_STATE,
    inbox_layout,
    inbox_purpose,
    intake_layout,
)
from exchange.ownership import Borrowed, Owned, SegmentMissing
from exchange.records import Rows
from exchange.ring import TAIL, RingProducer

SPINS: Final = 1 << 32
READY_S: Final = 180
"""The kernel may have to be compiled first."""


class Pair:
    """An engine process and what stands in front of it."""

    def __init__(
        self,
        durability: str,
        instrument: Instrument = INSTRUMENT,
        spins: int = 1_000,
        inboxes: int = 1,
    ) -> None:
        """Make the folders and start the engine; entry processes are added by ``start``.

        The last of the ``inboxes`` is for a ``Line`` of this process.
        """
        self.instrument = instrument
        self.last_ring = inboxes - 1
        self.root = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
        self.segments = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir="/dev/shm"))
        self.run = RunFolder(self.root / "run", instrument.pair)
        self.environment = {**os.environ, "HOLDFAST_SEGMENTS": str(self.segments)}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._before = os.environ.get("HOLDFAST_SEGMENTS")
        # The writing end in this process looks where the engine's segments are.
        os.environ["HOLDFAST_SEGMENTS"] = str(self.segments)
        self.instruments = self.root / "instruments.toml"
        self.instruments.write_text(_toml(instrument), encoding="utf-8")
        self.engine = self.start(
            "engine", "--durability", durability, "--spins", str(spins), "--inboxes", str(inboxes)
        )

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one more process of the pair."""
        common = ("--pair", self.instrument.pair, "--run", str(self.run.root))
        command = [sys.executable, "-m", module, *common, *arguments]
        command += ["--instruments", str(self.instruments)]
        with (self.root / "log.txt").open("ab") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def intake(self) -> Borrowed:
        """Return the engine's side of the inboxes, once the engine is ready."""
        deadline_ns = time.monotonic_ns() + READY_S * 1_000_000_000
        name = segment_name(self.instrument.pair, "intake")
        while time.monotonic_ns() < deadline_ns and self.engine.poll() is None:
            try:
                intake = Borrowed.open(name, intake_layout(), directory=str(self.segments))
                if atomics.load(intake["control"], INTAKE_STATE) == STATE_READY:
                    return intake
                intake.close()
            except SegmentMissing:
                pass
            time.sleep(0.02)
        raise RuntimeError(f"the engine did not start:\n{self.log()}")

    def log(self) -> str:
        """Return what the processes have said."""
        return (self.root / "log.txt").read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """Stop the processes, the engine last, and remove the folders."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._before is None:
            os.environ.pop("HOLDFAST_SEGMENTS", None)
        else:
            os.environ["HOLDFAST_SEGMENTS"] = self._before
        for folder in (self.root, self.segments):
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Line:
    """The writing end of an inbox, bare: rows into the ring, a ring of the bell, no answers."""

    def __init__(self, pair: Pair, ring: int) -> None:
        """Make the inbox and wait until the engine has noticed it."""
        self._intake = pair.intake()
        self.control = self._intake["control"]
        name = segment_name(pair.instrument.pair, inbox_purpose(ring))
        self._owned = Owned.claim(name, inbox_layout(), directory=str(pair.segments))
        control, cursors = self._owned["control"], self._intake["cursors"]
        control[TAIL] = cursors[ring * CURSOR_STRIDE]
        atomics.store(control, INBOX_JOURNAL, int(self.control[INTAKE_JOURNAL]))
        self._producer = RingProducer(
            control, self._owned["records"], cursors, ring * CURSOR_STRIDE
        )
        self._ringer = Ringer(pair.run.engine_bell())

    def send(self, rows: Rows) -> None:
        """Write rows, all of them, and ring if the engine sleeps."""
        sent = 0
        while sent < len(rows):
            sent += self._producer.push(rows[sent:])
            self._ringer.ring_if_asleep(self.control, INTAKE_ASLEEP)

    def carry(self, rows: Rows) -> None:
        """Write rows and wait until the engine has applied them."""
        wanted = int(self.control[INTAKE_SEQUENCE]) + len(rows)
        self.send(rows)
        done = wait_until(self.control, INTAKE_SEQUENCE, wanted, SPINS)
        assert done, f"the engine stands at {self.control[INTAKE_SEQUENCE]}, not at {wanted}"

    def close(self) -> None:
        """Let go of ring and bell."""
        self._ringer.close()
        self._intake.close()
        self._owned.close(unlink=True)


def _toml(instrument: Instrument) -> str:
    lines = [f'["{instrument.pair}"]']
    for field in fields(instrument):
        value = getattr(instrument, field.name)
        if field.name != "pair":
            lines.append(
                f'{field.name} = "{value}"' if isinstance(value, str) else f"{field.name} = {value}"
            )
    return "\n".join(lines) + "\n"
