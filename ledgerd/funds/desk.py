"""Everything about money at the door of one exchange, put together: what doors and rounds use."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from sqlalchemy import Engine

from exchange.refusal import Refusal, Refused
from ledgerd.chart import OwnerKind
from ledgerd.custody.adapter import Custody, NoCustodian
from ledgerd.custody.addresses import Addresses
from ledgerd.custody.deposits import Deposits
from ledgerd.custody.journal import MoneyBooks
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody
from ledgerd.custody.withdrawals import Withdrawals
from ledgerd.funds import views
from ledgerd.funds.requests import Requests
from ledgerd.funds.risk_link import Limiter, RiskLink
from ledgerd.funds.settings import FundsSettings
from ledgerd.ledger import Ledger

CHAIN_SEED: Final = 1
"""The simulated chain's: with it the same commands give the same addresses and transactions."""
CHAIN_FILE: Final = "custodian/chain.log"
"""In the run folder. The custodian is another party: its memory is not in the books."""


class Desk:
    """The pipelines over one custodian, with the rules in force."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        clock: Callable[[], int],
        settings: FundsSettings,
        custody: Custody,
        limiter: Limiter | None = None,
    ) -> None:
        """Read the assets that the books list. Raises InvalidFunds, and what a database raises."""
        self.ledger = ledger
        self.engine = engine
        self.settings = settings
        self.custody = custody
        self.limiter = limiter
        self.books = MoneyBooks(engine, clock)
        self._decimals = self.books.read(views.decimals)
        self.policy = settings.policy(self._decimals)
        self.deposits = Deposits(self.books, custody, self.policy)
        self.withdrawals = Withdrawals(self.books, custody, self.policy)
        self.addresses = Addresses(self.books, custody, self.policy)
        self.requests = Requests(self.books, self.withdrawals, limiter)

    @property
    def simulated(self) -> SimulatedCustody | None:
        """Return the simulated custodian, if it is one."""
        return self.custody if isinstance(self.custody, SimulatedCustody) else None

    @property
    def assets(self) -> dict[str, int]:
        """Return the assets that the books listed, and how finely each divides."""
        return dict(self._decimals)

    def decimals(self, asset: str) -> int:
        """Return how finely an asset divides. Raises Refused for one that is not listed."""
        if asset not in self._decimals:
            self._decimals = self.books.read(views.decimals)
        if asset not in self._decimals:
            limit = f"one of {', '.join(self._decimals) or 'none yet'}"
            raise Refused(Refusal.of_field("ASSET_UNKNOWN", "asset", asset, limit))
        return self._decimals[asset]

    def owner_kind(self, owner_id: int) -> OwnerKind:
        """Return what the books know an owner number as; a user if they do not know it."""
        return self.books.read(lambda connection: views.owner_kind(connection, owner_id))


def open_custody(
    engine: Engine, clock: Callable[[], int], settings: FundsSettings, run: Path
) -> Custody | None:
    """Return the custodian of a run folder; None if it has none."""
    if settings.custodian != "simulated":
        return None
    path = run / CHAIN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    assets = list(MoneyBooks(engine, clock).read(views.decimals))
    return SimulatedCustody(path, CHAIN_SEED, assets, CALM)


def open_desk(
    ledger: Ledger, engine: Engine, clock: Callable[[], int], settings: FundsSettings, run: Path
) -> Desk:
    """Return the desk of a run folder, with the custodian and the limiter it is to use."""
    custody = open_custody(engine, clock, settings, run) or NoCustodian()
    limiter = RiskLink(settings.risk) if settings.risk else None
    return Desk(ledger, engine, clock, settings, custody, limiter)
