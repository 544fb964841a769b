"""Real books for tests: one embedded PostgreSQL a session, a database of its own for every test.

The server's folder is not pytest's: it has to be open to the system user that PostgreSQL runs as
when the tests run as root.
"""

import atexit
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from sqlalchemy import URL, Engine

from exchange.config import load_instrument
from exchange.instrument import Instrument
from ledgerd.chart import AccountName, OwnerKind, Phase, Purpose, TransferKind
from ledgerd.database import (
    OWNER,
    RISK_DATABASE,
    RISK_OWNER,
    RISK_SERVICE,
    SERVICE,
    SUPERUSER,
    EmbeddedPostgres,
    connect,
    migrate,
)
from ledgerd.ledger import Ledger
from ledgerd.transfers import Leg, NewTransfer

TEMPLATE = "books_template"
PAIR = load_instrument("BTC-USDT")
OTHER = load_instrument("ETH-USDT")
START_NS = 1_767_225_600_000_000_000
"""2026-01-01."""

_names = itertools.count(1)


@functools.cache
def server() -> EmbeddedPostgres:
    """Return the session's server, started when first asked for and gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-books-"))
    folder.chmod(0o755)
    postgres = EmbeddedPostgres(folder / "postgres")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(postgres.stop)
    postgres.start()
    postgres.create(TEMPLATE)
    migrate(postgres.url(OWNER, TEMPLATE))
    return postgres


def make_risk(postgres: EmbeddedPostgres, database: str = RISK_DATABASE) -> None:
    """Make the risk service's database, with its roles."""
    postgres.create(database, owner=RISK_OWNER, service=RISK_SERVICE)


def risk_addresses(postgres: EmbeddedPostgres) -> tuple[str, ...]:
    """Return the arguments with which riskd finds its database."""
    found: tuple[str, ...] = ()
    for option, role in (("--database-url", RISK_SERVICE), ("--owner-url", RISK_OWNER)):
        found += (option, postgres.url(role, RISK_DATABASE).render_as_string(hide_password=False))
    return found


@dataclass
class Clock:
    """A clock that moves when told, and a nanosecond each time it is read."""

    now_ns: int = START_NS

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns


@dataclass
class TestBooks:
    """Books over a database of their own."""

    __test__ = False
    name: str
    engine: Engine
    ledger: Ledger
    clock: Clock
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def url(self, role: str = SERVICE) -> URL:
        return server().url(role, self.name)

    def as_role(self, role: str) -> Engine:
        return connect(self.url(role), 2)

    def new_id(self) -> UUID:
        return UUID(int=next(self.ids))

    def transfer(self, *legs: tuple[AccountName, int], **more: object) -> NewTransfer:
        at_once = more.get("phase", Phase.SINGLE) == Phase.SINGLE
        kind = TransferKind.CORRECTION if at_once else TransferKind.INTERNAL
        given = {"id": self.new_id(), "kind": kind} | more
        made = tuple(Leg(account, amount) for account, amount in legs)
        return NewTransfer(legs=made, **given)  # type: ignore[arg-type]

    def open(self, owners: int, *pairs: Instrument) -> None:
        """List pairs; open funding and trading accounts for owners 1 to `owners`."""
        for pair in pairs:
            self.ledger.list_pair(pair)
        assets = dict.fromkeys(a for pair in pairs for a in (pair.base_asset, pair.quote_asset))
        names = [custody(asset) for asset in assets]
        for owner in range(1, owners + 1):
            for asset in assets:
                names += [user(owner, asset), user(owner, asset, Purpose.FUNDING)]
        self.ledger.open_accounts(names)

    def deposit(self, owner: int, asset: str, amount: int) -> None:
        legs = (custody(asset), -amount), (user(owner, asset), amount)
        self.ledger.post([self.transfer(*legs)])

    def balance(self, name: AccountName) -> int:
        """Read a balance straight from the tables."""
        query = """
            SELECT amount FROM balances JOIN accounts ON id = account_id WHERE owner_kind = %s
                AND owner_id = %s AND purpose = %s AND pair = %s AND asset = %s
        """
        key = (int(name.owner_kind), name.owner_id, int(name.purpose), name.pair, name.asset)
        with self.engine.connect() as connection:
            row = connection.exec_driver_sql(query, key).fetchone()
        return 0 if row is None else int(row[0])


def user(owner: int, asset: str, purpose: Purpose = Purpose.TRADING, pair: str = "") -> AccountName:
    """Name an account of a user."""
    return AccountName(OwnerKind.USER, owner, purpose, asset, pair)


def custody(asset: str) -> AccountName:
    """Name the custody account of the exchange."""
    return AccountName(OwnerKind.EXCHANGE, 0, Purpose.CUSTODY, asset)


@contextmanager
def fresh_books(pool_size: int = 4, *, custodian: bool = False) -> Iterator[TestBooks]:
    """Give empty books; their database is gone afterwards."""
    postgres = server()
    name = f"books_{next(_names)}"
    postgres.create(name, TEMPLATE)
    clock = Clock()
    engine = connect(postgres.url(SERVICE, name), pool_size)
    try:
        yield TestBooks(name, engine, Ledger(engine, clock, custodian=custodian), clock)
    finally:
        engine.dispose()
        postgres.drop(name)


def superuser(books: TestBooks) -> Engine:
    """Return a pool with every right: what a thief with the server's password has."""
    return connect(books.url(SUPERUSER), 2)
