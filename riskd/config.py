"""What a riskd process is told: arguments first, then the environment, then defaults."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exchange.config import followed_pairs
from exchange.service import require_loopback

DEFAULT_PORT: Final = 50_081
DEFAULT_LEDGER: Final = "127.0.0.1:50071"


class InvalidSetting(ValueError):
    """A setting that cannot work; the message names field, value and limit."""


@dataclass(frozen=True, slots=True)
class RiskConfig:
    """Settings of one process."""

    pairs: tuple[tuple[str, str], ...]
    """Pairs to look after, each with the address of its order entry."""
    database_url: str
    """A PostgreSQL database, as the role that this process works as."""
    migrate_only: bool = False
    """Bring the tables up to date and end."""
    owner_url: str = ""
    """The same database as the role that makes the schema `risk`; empty: as `database_url`."""
    ledger: str = DEFAULT_LEDGER
    """Address of the ledger service."""
    run: Path | None = None
    """Folder of `riskd.port`, where a supervisor finds it, and of `riskd.storage.head`."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    instruments: Path | None = None
    """Instrument file; None: the one that is installed with the program."""
    stale_s: int = 5
    """A feed that says nothing for so long is stale: it sends a heartbeat every second."""
    settlement_late_s: int = 30
    """The ledger is late when it has not settled what was committed so long ago."""
    sticky_ms: int = 1_000
    """Money that arrived in a pair stays at least so long."""
    headroom_percent: int = 100
    """So much beyond a shortage is handed over as well."""

    def validate(self) -> "RiskConfig":
        """Return self, or raise InvalidSetting naming the first setting that cannot work."""
        names = [pair for pair, _ in self.pairs]
        _demand(bool(names), "follow", "", "at least one PAIR=HOST:PORT")
        _demand(len(set(names)) == len(names), "follow", names, "each pair once")
        for pair, target in self.pairs:
            _demand(bool(pair and target), "follow", f"{pair}={target}", "PAIR=HOST:PORT")
        _demand(bool(self.database_url), "database_url", "", "the address of a PostgreSQL")
        _demand(bool(self.ledger), "ledger", "", "the address of a ledger service")
        limits = {
            "port": (self.port, 0, 65_535),
            "stale_s": (self.stale_s, 2, 3_600),
            "settlement_late_s": (self.settlement_late_s, 1, 86_400),
            "sticky_ms": (self.sticky_ms, 0, 3_600_000),
            "headroom_percent": (self.headroom_percent, 0, 10_000),
        }
        for name, (value, low, high) in limits.items():
            _demand(low <= value <= high, name, value, f"from {low} to {high}")
        require_loopback(self.host)
        return self


def parse(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> RiskConfig:
    """Return the configuration given on the command line. Raises InvalidSetting, NotLoopback.

    HOLDFAST_RISK_HOST, _PORT, _DATABASE_URL, _OWNER_URL and _LEDGER give the defaults,
    HOLDFAST_FOLLOW the pairs.
    """
    source = os.environ if environment is None else environment
    parser = argparse.ArgumentParser(
        prog="python -m riskd", description="Serve limits, allotments and the kill switch."
    )
    parser.add_argument(
        "--follow",
        action="append",
        default=[],
        metavar="PAIR=HOST:PORT",
        help="a pair to look after and its order entry; may be given several times",
    )
    parser.add_argument("--database-url", default=source.get("HOLDFAST_RISK_DATABASE_URL", ""))
    parser.add_argument(
        "--migrate", action="store_true", help="bring the tables up to date, and end"
    )
    parser.add_argument(
        "--owner-url",
        default=source.get("HOLDFAST_RISK_OWNER_URL", ""),
        help="the same database as the role that makes the tables",
    )
    parser.add_argument("--ledger", default=source.get("HOLDFAST_RISK_LEDGER", DEFAULT_LEDGER))
    parser.add_argument("--run", type=Path, help="folder of riskd.port and riskd.storage.head")
    parser.add_argument("--host", default=source.get("HOLDFAST_RISK_HOST", "127.0.0.1"))
    port = source.get("HOLDFAST_RISK_PORT", str(DEFAULT_PORT))
    parser.add_argument("--port", type=int, default=port, help="0: any free one")
    parser.add_argument("--instruments", type=Path, help="instrument file")
    parser.add_argument("--stale", type=int, default=5, help="seconds of silence that are an alarm")
    parser.add_argument("--settlement-late", type=int, default=30, help="seconds")
    parser.add_argument("--sticky", type=int, default=1_000, help="milliseconds money stays")
    parser.add_argument("--headroom", type=int, default=100, help="per cent beyond a shortage")
    given = parser.parse_args(arguments)
    return RiskConfig(
        pairs=followed_pairs(given.follow, source),
        database_url=given.database_url,
        owner_url=given.owner_url,
        migrate_only=given.migrate,
        ledger=given.ledger,
        run=given.run,
        host=given.host,
        port=given.port,
        instruments=given.instruments,
        stale_s=given.stale,
        settlement_late_s=given.settlement_late,
        sticky_ms=given.sticky,
        headroom_percent=given.headroom,
    ).validate()


def _demand(condition: bool, field: str, value: object, limit: str) -> None:
    if not condition:
        raise InvalidSetting(f"{field} is {value!r}; it must be {limit}")
