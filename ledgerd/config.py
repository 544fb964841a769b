"""What a ledgerd process is told: arguments first, then the environment, then defaults."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ledgerd.funds.settings import FundsSettings

DEFAULT_PORT: Final = 50_071
FUNDS_ROUNDS: Final = 4
"""Rounds of deposits and withdrawals that read the books at the same time."""


class InvalidSetting(ValueError):
    """A setting that cannot work; the message names field, value and limit."""


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """Settings of one process; every number bounds memory or work."""

    run: Path
    """The run folder: the embedded database and the kept heads lie in it."""
    pairs: tuple[tuple[str, str], ...]
    """Pairs to settle, each with the address of its order entry."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    database_url: str = ""
    """A server as the service's role; empty: an embedded one in the run folder."""
    owner_url: str = ""
    """The same server as the owner of its tables, for migrations; empty: they are not run."""
    instruments: Path | None = None
    """Instrument file; None: the one that is installed with the program."""
    threads: int = 8
    """Calls served at a time; each may hold one connection."""
    funds: FundsSettings = field(default_factory=FundsSettings)
    """The way in and out of money."""

    def validate(self) -> "LedgerConfig":
        """Return self, or raise InvalidSetting naming the first setting that cannot work."""
        names = [pair for pair, _ in self.pairs]
        _demand(len(set(names)) == len(names), "pairs", names, "each pair once")
        for pair, target in self.pairs:
            _demand(bool(pair and target), "follow", f"{pair}={target}", "PAIR=HOST:PORT")
        _demand(0 <= self.port <= 65_535, "port", self.port, "from 0 to 65535")
        _demand(1 <= self.threads <= 64, "threads", self.threads, "from 1 to 64")
        alone = bool(self.owner_url) and not self.database_url
        _demand(not alone, "owner_url", self.owner_url, "given together with database_url")
        return self

    @property
    def pool_size(self) -> int:
        """Return how many connections may be open: callers, one a pair, the watch, and rounds."""
        return self.threads + len(self.pairs) + 2 + FUNDS_ROUNDS

    @property
    def postgres(self) -> Path:
        """Return the folder of the embedded database."""
        return self.run / "postgres"

    @property
    def heads(self) -> Path:
        """Return the file of the kept heads."""
        return self.run / "ledger.heads"


def settings_from(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the defaults that the environment gives.

    HOLDFAST_LEDGER_HOST, _PORT, _DATABASE_URL and _OWNER_URL. Raises InvalidSetting for an address
    that is given and empty: books on a server must never silently become embedded ones.
    """
    source = os.environ if environment is None else environment
    for name in ("HOLDFAST_LEDGER_DATABASE_URL", "HOLDFAST_LEDGER_OWNER_URL"):
        limit = "the address of a PostgreSQL, or not be set at all"
        _demand(source.get(name) != "", name, "", limit)
    return {
        "host": source.get("HOLDFAST_LEDGER_HOST", "127.0.0.1"),
        "port": source.get("HOLDFAST_LEDGER_PORT", str(DEFAULT_PORT)),
        "database_url": source.get("HOLDFAST_LEDGER_DATABASE_URL", ""),
        "owner_url": source.get("HOLDFAST_LEDGER_OWNER_URL", ""),
    }


def _demand(condition: bool, field: str, value: object, limit: str) -> None:
    if not condition:
        raise InvalidSetting(f"{field} is {value!r}; it must be {limit}")
