"""What the books and the risk service answer, as values with exact decimals.

Words such as purposes and states are those of `holdfast.money.words`; times are nanoseconds since
1970 UTC; amounts are `decimal.Decimal` with all decimals of the asset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

FUNDING, TRADING = "funding", "trading"
ALLOTTED, SUSPENSE = "allotted", "suspense"


class PairSequence(NamedTuple):
    """A command of a pair: a moment in that pair's books."""

    pair: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Balance:
    """One account of an owner."""

    asset: str
    purpose: str
    pair: str
    """Empty where the purpose has no pair."""
    amount: Decimal
    version: int
    """How many postings the account has had."""


@dataclass(frozen=True, slots=True)
class AssetBalances:
    """Where an owner's money of one asset is."""

    asset: str
    funding: Decimal
    trading: Decimal
    engines: Mapping[str, Decimal]
    """By pair; free or held by orders."""
    in_flight: Decimal
    """On its way to an engine, or set aside for a withdrawal or another pending transfer."""
    other: Mapping[str, Decimal]
    """By purpose: fees, custody, staking…"""

    @property
    def in_engines(self) -> Decimal:
        """Return what all engines hold together."""
        return sum(self.engines.values(), Decimal(0))

    @property
    def total(self) -> Decimal:
        """Return everything."""
        there = self.funding + self.trading + self.in_engines + self.in_flight
        return sum(self.other.values(), there)


@dataclass(frozen=True, slots=True)
class Balances:
    """All accounts of one owner, now or as of a moment."""

    owner_id: int
    lines: tuple[Balance, ...]

    def by_asset(self) -> tuple[AssetBalances, ...]:
        """Return the accounts gathered by asset, in alphabetical order."""
        return tuple(self.of(asset) for asset in sorted({line.asset for line in self.lines}))

    def of(self, asset: str) -> AssetBalances:
        """Return what there is of one asset; zeros if there is no account."""
        lines = [line for line in self.lines if line.asset == asset]
        # A zero with the asset's decimals, so that all amounts are shown alike.
        zero = lines[0].amount * 0 if lines else Decimal(0)
        sums = {FUNDING: zero, TRADING: zero, SUSPENSE: zero}
        engines: dict[str, Decimal] = {}
        for line in lines:
            if line.purpose == ALLOTTED:
                engines[line.pair] = line.amount
            else:
                sums[line.purpose] = sums.get(line.purpose, zero) + line.amount
        funding, trading, in_flight = (sums.pop(word) for word in (FUNDING, TRADING, SUSPENSE))
        return AssetBalances(asset, funding, trading, engines, in_flight, sums)


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One posting of an account."""

    version: int
    """The account's version after it: 1 for the first posting ever."""
    transfer_id: int
    kind: str
    phase: str
    time_ns: int
    amount: Decimal
    balance: Decimal
    """The balance afterwards."""


@dataclass(frozen=True, slots=True)
class StatementPage:
    """A part of a statement, newest first."""

    lines: tuple[StatementLine, ...]
    next_page_token: str
    """Empty: there is no older line."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A transfer between funding and trading."""

    id: UUID
    """The caller's."""
    transfer_id: int
    """The books'."""
    repeated: bool
    """True if the same id had moved it before."""
    recalled: bool
    """True if money had to come back from engines first."""


@dataclass(frozen=True, slots=True)
class TrialLine:
    """The sum of all postings of an asset and a purpose."""

    asset: str
    purpose: str
    amount: Decimal
    account_count: int


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """All sums; sound books sum to zero in every asset."""

    lines: tuple[TrialLine, ...]
    balanced: bool

    def sums(self) -> dict[str, Decimal]:
        """Return the sum of each asset, computed here from the lines."""
        found: dict[str, Decimal] = {}
        for line in self.lines:
            found[line.asset] = found.get(line.asset, Decimal(0)) + line.amount
        return found


@dataclass(frozen=True, slots=True)
class Settlement:
    """How far a pair's executions are in the books."""

    pair: str
    state: str
    sentence: str
    """Why it does not run; empty while it does."""
    cursor: int
    """The next execution to settle."""
    committed_number: int
    """How far the engine's log reaches."""
    posted_ns: int
    checked_sequence: int
    """The last command as of which books and engine were compared and found the same; 0: none
    since the ledger's process started."""
    checked_number: int
    """The execution of that command: the comparison covers everything before it."""
    checked_ns: int


@dataclass(frozen=True, slots=True)
class BooksReport:
    """What came out when the whole chain and all balances were computed again."""

    sound: bool
    complaints: tuple[str, ...]
    seal_count: int
    transfer_count: int
    posting_count: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The published root of what all traders are owed of an asset."""

    snapshot: int
    asset: str
    root: bytes
    total_units: int
    leaf_count: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit. `value` is an amount of the asset, or a count: see `LIMIT_KINDS`."""

    kind: str
    subject: str
    subject_name: str
    """The tier, or the account number; empty for everyone."""
    place: str
    place_name: str
    """The pair or the asset; empty for everywhere."""
    value: Decimal | int


@dataclass(frozen=True, slots=True)
class LimitChange:
    """A limit to set; without a value it is lifted. Money is decimal, everything else an int."""

    kind: str
    value: Decimal | str | int | None
    subject: str = "everyone"
    subject_name: str = ""
    place: str = "everywhere"
    place_name: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of a version."""

    version: int
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class LimitsChanged:
    """What became of a change."""

    version: int
    unconfirmed_count: int
    """Accounts and pairs whose engines still have to confirm; they are asked until they do."""


@dataclass(frozen=True, slots=True)
class EffectiveLimits:
    """What binds an account in a pair: of all limits that fit, the strictest of each kind."""

    version: int
    tier: str
    role: str
    limits: tuple[Limit, ...]
    confirmed: bool
    """True if the engine has confirmed those that it checks."""


@dataclass(frozen=True, slots=True)
class RiskEdit:
    """One thing that a change changed, in the words that people use."""

    what: str
    """Such as `exposure of account 7 in BTC`, `profile of account 7` or `kill of pair BTC-USDT`."""
    before: str
    """Such as `0.50000000 BTC`; empty where there was nothing."""
    after: str


@dataclass(frozen=True, slots=True)
class RiskChange:
    """Who changed what about risk, as it is kept for ever."""

    change: int
    time_ns: int
    actor: str
    note: str
    subject: str
    """`limits`, `profile`, `target` or `kill`."""
    edits: tuple[RiskEdit, ...]
    content: str
    """The same in the contract's numbers and smallest units: JSON, as it was written."""


@dataclass(frozen=True, slots=True)
class PairExposure:
    """An account's money of one asset in one pair."""

    pair: str
    asset: str
    total: Decimal
    free: Decimal
    free_exact: bool
    """False: it is free at most."""
    in_flight: Decimal
    target: Decimal
    sequence: int
    """The pair's command for which it is true."""


@dataclass(frozen=True, slots=True)
class LimitUse:
    """How much of a limit is used; above 1,000,000 ppm it is broken."""

    limit: Limit
    used: Decimal
    used_ppm: int


@dataclass(frozen=True, slots=True)
class Exposure:
    """Where an account's money is and how much of its limits it uses."""

    pairs: tuple[PairExposure, ...]
    uses: tuple[LimitUse, ...]


@dataclass(frozen=True, slots=True)
class KillConfirmation:
    """What one engine said to a kill switch."""

    pair: str
    confirmed: bool
    sequence: int
    """Nothing that was stopped trades after this command."""
    message: str
    """Why it is not confirmed; the engine is asked until it is."""


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of a kill switch."""

    change: int
    confirmations: tuple[KillConfirmation, ...]


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that is wrong with a pair."""

    alarm: str
    message: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class PairRiskStatus:
    """How the risk service sees a pair."""

    pair: str
    cursor: int
    committed_number: int
    settled_number: int
    transfer_number: int
    open_move_count: int
    killed: bool
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True, slots=True)
class RiskStatus:
    """How everything stands."""

    pairs: tuple[PairRiskStatus, ...]
    limits_version: int
    killed_accounts: tuple[int, ...]
    everything_killed: bool
