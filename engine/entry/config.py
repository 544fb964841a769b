"""What one order-entry process is told at its start."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from exchange.config import RunFolder, load_instrument
from exchange.instrument import Instrument
from exchange.records import RING_CAPACITY
from exchange.service import require_loopback


@dataclass(frozen=True, slots=True)
class EntryConfig:
    """The settings of one order-entry process."""

    instrument: Instrument
    run: RunFolder
    ring: int
    """Number of the inbox ring that this process owns: one process each."""
    host: str = "127.0.0.1"
    """Loopback only, as long as callers are believed when they name their account."""
    port: int = 0
    """Shared by all order-entry processes of the pair; 0: any free one, then not shared."""
    grace_s: int = 5
    """How long open calls may go on after a goodbye."""
    state_folder: Path | None = None
    """Where this process keeps what it may lose; none: in the pair's run folder."""
    risk: str = ""
    """HOST:PORT of the risk service, asked for money and message rates; none: nobody is asked."""
    risk_patience_ms: int = 500
    """How long the risk service may take to have money here; an order waits four times that."""
    processes: int = 1
    """Order-entry processes of the pair, with rings from 0 on: they share each message rate."""
    snapshot_executions: int = 2_000_000
    """A snapshot of the order index is written after so many executions: what a restart has to
    read again at most, a fraction of a second."""

    def validate(self) -> Self:
        """Return self, or raise ValueError naming the first field that is wrong."""
        limits = {
            "ring": (self.ring, 0, RING_CAPACITY - 1),
            "port": (self.port, 0, 65_535),
            "grace_s": (self.grace_s, 0, 300),
            "risk_patience_ms": (self.risk_patience_ms, 1, 4_000),
            "processes": (self.processes, 1, RING_CAPACITY),
            "snapshot_executions": (self.snapshot_executions, 1, 1 << 40),
        }
        for field, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise ValueError(f"{field} is {value}; it must be from {low} to {high}")
        risk_host, _, risk_port = self.risk.rpartition(":")
        fits = risk_port.isascii() and risk_port.isdigit() and 0 < int(risk_port[:6]) <= 65_535
        if self.risk and not (risk_host and fits):
            raise ValueError(f"risk is {self.risk!r}; it must be HOST:PORT")
        require_loopback(self.host)
        return self

    @property
    def index_folder(self) -> Path:
        """Return the folder of the order index snapshots of all processes of the pair."""
        return self.state_folder or self.run.folder / "entry"

    @property
    def index_snapshot(self) -> Path:
        """Return this process's snapshot of the order index."""
        return self.index_folder / f"orders-{self.ring}.npz"


def parse(arguments: Sequence[str] | None = None) -> EntryConfig:
    """Return the configuration given on the command line; ends the process if it is wrong."""
    environment = os.environ
    pair, folder = environment.get("HOLDFAST_PAIR"), environment.get("HOLDFAST_RUN")
    host, _, port = environment.get("HOLDFAST_ENTRY_ADDRESS", "127.0.0.1:0").rpartition(":")
    ring, state = environment.get("HOLDFAST_RING"), environment.get("HOLDFAST_ENTRY_STATE")
    risk = environment.get("HOLDFAST_RISK_ADDRESS", "")
    processes = environment.get("HOLDFAST_ENTRY_PROCESSES", "1")
    parser = argparse.ArgumentParser(
        prog="python -m engine.entry_server", description="Serve order entry of one pair."
    )
    parser.add_argument("--pair", default=pair, required=not pair, help="such as BTC-USDT")
    parser.add_argument("--run", default=folder, required=not folder, type=Path)
    parser.add_argument(
        "--ring", default=ring, required=not ring, type=int, help="the inbox ring to own, from 0"
    )
    parser.add_argument("--host", default=host, help="a loopback address")
    parser.add_argument("--port", default=port, type=int, help="0: any free port, printed at start")
    parser.add_argument("--instruments", type=Path, help="instruments file instead of the built-in")
    parser.add_argument(
        "--risk", default=risk, help="HOST:PORT of the risk service; none: nobody is asked"
    )
    parser.add_argument("--risk-patience", default=500, type=int, help="milliseconds for money")
    parser.add_argument(
        "--processes", default=processes, type=int, help="order-entry processes of the pair"
    )
    parser.add_argument("--grace", default=5, type=int, help="seconds open calls may go on at exit")
    given = parser.parse_args(arguments)
    try:
        return EntryConfig(
            instrument=load_instrument(given.pair, given.instruments),
            run=RunFolder(given.run, given.pair),
            state_folder=Path(state) if state else None,
            ring=given.ring,
            host=given.host,
            port=given.port,
            grace_s=given.grace,
            risk=given.risk,
            risk_patience_ms=given.risk_patience,
            processes=given.processes,
        ).validate()
    except (ValueError, OSError) as error:
        parser.error(str(error))
