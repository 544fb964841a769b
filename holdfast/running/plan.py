"""Which processes an exchange consists of, where they listen, and in which order they stop.

    postgres     ledgerd     riskd     engine and order entry of each pair     mdgateway     flow

Without a money plane there is one bare pair, as a replay of recorded flow needs it: then funds are
whatever its operator says they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

from exchange.config import RunFolder, load_instrument, segment_folder

PAIRS: Final = ("BTC-USDT", "ETH-USDT")
"""What runs unless somebody asks for other pairs: two that share an asset."""
ORDERS_PORT: Final = 8850
"""Order entry of the first pair; what else listens has a fixed distance to it."""
MARKET_DATA_OFFSET: Final = 1
HTTP_OFFSET: Final = 2
LEDGER_OFFSET: Final = 20
RISK_OFFSET: Final = 21
LEDGER_PORT: Final = ORDERS_PORT + LEDGER_OFFSET
RISK_PORT: Final = ORDERS_PORT + RISK_OFFSET
POSTGRES: Final = "postgres"
LEDGERD: Final = "ledgerd"
RISKD: Final = "riskd"
MDGATEWAY: Final = "mdgateway"
ENGINE: Final = "engine"


def usual_target(pair: str) -> str:
    """Return where order entry of a pair listens unless somebody chose otherwise."""
    place = PAIRS.index(pair) if pair in PAIRS else 0
    return f"127.0.0.1:{ORDERS_PORT + orders_offset(place)}"


CUSTODY: Final = (
    *("--custodian", "simulated", "--block-every", "200ms", "--confirmations", "3"),
    *("--address-wait", "10s"),
)
"""A chain for demonstrations: a block five times a second, and nobody waits a day."""
APPROVAL_ABOVE: Final = {"BTC": "0.1", "ETH": "2", "USDT": "10000"}
"""Withdrawals above need somebody else's approval; of other assets all do."""


def orders_offset(place: int) -> int:
    """Return the distance of a pair's port to the first one: 0, 10, and from then on past 20."""
    return 10 * place if place < 2 else 10 * (place + 1)


class Stage(IntEnum):
    """When a process is stopped: from the doors inwards, what others need last."""

    FLOW = 0
    RISK = 1
    DOORS = 2
    ENGINES = 3
    BOOKS = 4
    DATABASE = 5


PATIENCE_S: Final = {
    Stage.FLOW: 5,
    Stage.RISK: 10,
    # Order entry lets open calls go on for five seconds.
    Stage.DOORS: 15,
    # The engine drains its inboxes and writes a snapshot.
    Stage.ENGINES: 120,
    Stage.BOOKS: 30,
    Stage.DATABASE: 60,
}
"""How long a process may take to end."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a plan."""

    name: str
    arguments: tuple[str, ...]
    """Those of the Python interpreter."""
    stage: Stage
    pair: str = ""
    """The pair it serves; empty: the whole exchange."""


@dataclass(frozen=True, slots=True)
class PairPlan:
    """One pair and where its order entry listens."""

    pair: str
    orders_port: int
    entry_count: int = 2

    @property
    def target(self) -> str:
        """Return where order entry listens."""
        return f"127.0.0.1:{self.orders_port}"


@dataclass(frozen=True, slots=True)
class MoneyPlan:
    """Where the books and the risk service listen."""

    ledger_port: int = LEDGER_PORT
    risk_port: int = RISK_PORT

    @property
    def ledger(self) -> str:
        """Return where ledgerd listens."""
        return f"127.0.0.1:{self.ledger_port}"

    @property
    def risk(self) -> str:
        """Return where riskd listens."""
        return f"127.0.0.1:{self.risk_port}"


@dataclass(frozen=True)
class Plan:
    """All processes of an exchange on this machine."""

    run: Path
    pairs: tuple[PairPlan, ...]
    market_data_port: int = 0
    """0: no market data gateway."""
    money: MoneyPlan | None = None
    durability: str = "fsync"
    instruments: Path | None = None
    """An instrument file instead of the installed one."""
    segments: str = field(default_factory=segment_folder)
    """Folder of the shared memory segments."""
    http_port: int = 0
    """Of the gateway's page, REST and WebSocket; 0: none."""
    market_data_keys: Path | None = None
    """The gateway's key file; None: it has none, unless the environment names one."""

    def validate(self) -> Self:
        """Return self, or raise ValueError naming the first field that cannot work."""
        names = [one.pair for one in self.pairs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"pairs are {', '.join(names)}; there must be one or more, each once")
        for one in self.pairs:
            if not 1 <= one.entry_count <= 64:
                raise ValueError(f"entry_count is {one.entry_count}; it must be from 1 to 64")
        ports = self.ports()
        for name, port in ports.items():
            if not 1 <= port <= 65_535:
                raise ValueError(f"{name} is {port}; it must be from 1 to 65535")
            same = [other for other, taken in ports.items() if taken == port and other != name]
            if same:
                raise ValueError(f"{name} is {port}, as is {same[0]}")
        if self.durability not in ("fsync", "os"):
            raise ValueError(f"durability is {self.durability!r}; it must be fsync or os")
        keys = self.market_data_keys
        if keys is not None and not keys.is_file():
            raise ValueError(f"market_data_keys is {str(keys)!r}; it must be a key file")
        return self

    def ports(self) -> dict[str, int]:
        """Return every port that is listened on, by what it is for."""
        found = {f"the port of {one.pair}": one.orders_port for one in self.pairs}
        if self.market_data_port:
            found["market_data_port"] = self.market_data_port
        if self.http_port:
            found["http_port"] = self.http_port
        if self.money is not None:
            found |= {"ledger_port": self.money.ledger_port, "risk_port": self.money.risk_port}
        return found

    @property
    def market_data(self) -> str:
        """Return where the gateway listens."""
        return f"127.0.0.1:{self.market_data_port}"

    @property
    def page(self) -> str:
        """Return where a browser shows the market."""
        return f"http://127.0.0.1:{self.http_port}/"

    @property
    def addresses(self) -> Path:
        """Return the file in which the database's keeper says where its databases are."""
        return self.run / "postgres.json"

    def folder(self, pair: str) -> Path:
        """Return the folder of a pair; of the whole exchange for an empty name."""
        return RunFolder(self.run, pair).folder if pair else self.run

    def log(self, process: Process) -> Path:
        """Return the file that a process writes to."""
        return self.folder(process.pair) / "logs" / f"{process.name}.log"

    def first(self) -> list[Process]:
        """Return what can be started at once, in the order of starting."""
        found = []
        if self.money is not None:
            keeper = ("-m", "ledgerd.postgres", "--run", str(self.run))
            found.append(Process(POSTGRES, keeper, Stage.DATABASE))
        for one in self.pairs:
            found += self._of_pair(one)
        if self.market_data_port:
            given: tuple[str, ...] = ("-m", "mdgateway", "--run", str(self.run))
            for one in self.pairs:
                given += ("--pair", one.pair)
            given += ("--port", str(self.market_data_port), *self._instruments())
            given += ("--http-port", str(self.http_port or -1))
            if self.market_data_keys is not None:
                given += ("--keys", str(self.market_data_keys))
            found.append(Process(MDGATEWAY, given, Stage.DOORS))
        return found

    def second(self, addresses: Mapping[str, str]) -> list[Process]:
        """Return what needs the addresses of the databases: `ledger`, `risk`, and their owners."""
        assert self.money is not None, "a bare pair has no databases"
        common: tuple[str, ...] = ("--run", str(self.run), *self._instruments())
        for one in self.pairs:
            common += ("--follow", f"{one.pair}={one.target}")
        ledgerd = ("-m", "ledgerd", *common, "--port", str(self.money.ledger_port))
        ledgerd += ("--database-url", addresses["ledger"])
        ledgerd += ("--owner-url", addresses["ledger_owner"], "--risk", self.money.risk)
        ledgerd += (*CUSTODY, *self._approvals())
        riskd = ("-m", "riskd", *common, "--port", str(self.money.risk_port))
        riskd += ("--ledger", self.money.ledger, "--database-url", addresses["risk"])
        riskd += ("--owner-url", addresses["risk_owner"])
        return [Process(LEDGERD, ledgerd, Stage.BOOKS), Process(RISKD, riskd, Stage.RISK)]

    def _of_pair(self, one: PairPlan) -> list[Process]:
        common = ("--pair", one.pair, "--run", str(self.run), *self._instruments())
        engine = ("-m", "engine", *common, "--durability", self.durability)
        engine += ("--inboxes", str(one.entry_count))
        found = [Process(ENGINE, engine, Stage.ENGINES, one.pair)]
        for ring in range(one.entry_count):
            entry = ("-m", "engine.entry_server", *common, "--ring", str(ring))
            entry += ("--port", str(one.orders_port), "--processes", str(one.entry_count))
            if self.money is not None:
                entry += ("--risk", self.money.risk)
            found.append(Process(f"entry-{ring}", entry, Stage.DOORS, one.pair))
        return found

    def _approvals(self) -> tuple[str, ...]:
        """Return from which amounts on somebody else has to approve a withdrawal."""
        instruments = [load_instrument(one.pair, self.instruments) for one in self.pairs]
        assets = {name for one in instruments for name in (one.base_asset, one.quote_asset)}
        found: tuple[str, ...] = ()
        for asset in sorted(assets & APPROVAL_ABOVE.keys()):
            found += ("--approval-above", f"{asset}={APPROVAL_ABOVE[asset]}")
        return found

    def _instruments(self) -> tuple[str, ...]:
        return () if self.instruments is None else ("--instruments", str(self.instruments))
