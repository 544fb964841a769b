"""Settings of an engine process: command line first, environment second."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from engine.durability.journal import Durability
from exchange.config import RunFolder, load_instrument, segment_folder
from exchange.instrument import Instrument


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What one engine process is told."""

    instrument: Instrument
    folder: RunFolder
    durability: Durability
    segments: str
    """Folder of the public segments."""
    vault_segments: str
    """Folder of the vault; in a pod a volume that nobody else mounts."""
    group: str | None
    """Group that may read the book segment, None for the process's own."""
    inbox_count: int
    """Order-entry processes to expect, rings 0 to this less one."""
    snapshot_commands: int
    """A snapshot is taken after so many commands, and at an orderly stop."""
    spins: int
    """Looks at the inboxes before the engine falls asleep; more is faster and hotter."""

    def validate(self) -> "EngineConfig":
        """Return self, or raise ValueError naming field, value and limit."""
        if not 1 <= self.inbox_count <= 64:
            raise ValueError(f"inbox_count is {self.inbox_count}; it must be from 1 to 64")
        if self.snapshot_commands < 1:
            raise ValueError(f"snapshot_commands is {self.snapshot_commands}; at least 1")
        if self.spins < 0:
            raise ValueError(f"spins is {self.spins}; at least 0")
        return self


def read_config(arguments: list[str] | None = None) -> EngineConfig:
    """Return the validated settings; a wrong one ends the process with a sentence."""
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="python -m engine", description="The matching engine of one trading pair."
    )
    parser.add_argument("--pair", default=environment.get("HOLDFAST_PAIR", "BTC-USDT"))
    parser.add_argument("--run", type=Path, default=Path(environment.get("HOLDFAST_RUN", "run")))
    parser.add_argument("--instruments", type=Path, default=None, help="a TOML file of instruments")
    parser.add_argument(
        "--durability",
        type=Durability,
        choices=list(Durability),
        default=Durability(environment.get("HOLDFAST_DURABILITY", "fsync")),
    )
    parser.add_argument("--inboxes", type=int, default=int(environment.get("HOLDFAST_INBOXES", 4)))
    parser.add_argument("--snapshot-commands", type=int, default=2_000_000)
    parser.add_argument("--spins", type=int, default=int(environment.get("HOLDFAST_SPINS", 1_000)))
    parser.add_argument("--group", default=environment.get("HOLDFAST_GROUP"))
    given = parser.parse_args(arguments)
    try:
        return EngineConfig(
            instrument=load_instrument(given.pair, given.instruments),
            folder=RunFolder(given.run, given.pair),
            durability=given.durability,
            segments=segment_folder(),
            vault_segments=environment.get("HOLDFAST_VAULT", segment_folder()),
            group=given.group,
            inbox_count=given.inboxes,
            snapshot_commands=given.snapshot_commands,
            spins=given.spins,
        ).validate()
    except (ValueError, OSError) as error:
        parser.error(str(error))
