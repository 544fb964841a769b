"""Where a pair's files lie and how its instrument is read.

The only readers of the environment are here and in each service's ``config``.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from exchange.instrument import Instrument, InvalidInstrument


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one pair under the run folder; every path a process of the pair uses."""

    root: Path
    pair: str

    @property
    def folder(self) -> Path:
        """Return the pair's own folder."""
        return self.root / self.pair.lower()

    @property
    def journal(self) -> Path:
        """Return the folder of the command journal and the snapshots."""
        return self.folder / "journal"

    @property
    def executions(self) -> Path:
        """Return the folder of the execution log."""
        return self.folder / "executions"

    @property
    def bells(self) -> Path:
        """Return the folder of the doorbells; HOLDFAST_BELLS moves it into a shared volume."""
        shared = os.environ.get("HOLDFAST_BELLS")
        return Path(shared) / self.pair.lower() if shared else self.folder / "bells"

    def engine_bell(self) -> Path:
        """Return the bell the engine listens to."""
        return self.bells / "engine.bell"

    def entry_bell(self, ring: int) -> Path:
        """Return the bell the order-entry process of this ring listens to."""
        return self.bells / f"entry-{ring}.bell"


def segment_folder() -> str:
    """Return the folder of the shared memory segments; HOLDFAST_SEGMENTS overrides it."""
    return os.environ.get("HOLDFAST_SEGMENTS", "/dev/shm")


def identity_folder() -> Path | None:
    """Return the folder of this process's certificate and key, which HOLDFAST_IDENTITY names."""
    folder = os.environ.get("HOLDFAST_IDENTITY")
    return Path(folder) if folder else None


def followed_pairs(
    given: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[tuple[str, str], ...]:
    """Return each pair with the address of its order entry, from texts PAIR=HOST:PORT.

    If none is given they are taken from HOLDFAST_FOLLOW, where white space lies between them.
    """
    source = os.environ if environment is None else environment
    texts = given or source.get("HOLDFAST_FOLLOW", "").split()
    return tuple((pair, target) for pair, _, target in (text.partition("=") for text in texts))


def load_instrument(pair: str, path: Path | None = None) -> Instrument:
    """Return the validated instrument of a pair from a TOML file.

    The file has one table per pair (``["BTC-USDT"]``) with the fields of ``Instrument``; without a
    path the file beside this module is read. Raises InvalidInstrument naming what is wrong.
    """
    source = path or Path(__file__).with_name("instruments.toml")
    tables = tomllib.loads(source.read_text(encoding="utf-8"))
    if pair not in tables:
        raise InvalidInstrument(f"pair is {pair!r}; {source} knows {', '.join(sorted(tables))}")
    known = {field.name for field in fields(Instrument)}
    unknown = sorted(set(tables[pair]) - known)
    if unknown:
        raise InvalidInstrument(f"{source}: {pair} has the unknown field {unknown[0]!r}")
    return Instrument(pair=pair, **tables[pair]).validate()
