"""What an account may do at most: limits, how several of them merge, and the ladders that judge.

Pure: no clock, no input or output. Values are integers; money is smallest units of an asset.

A rule binds a subject (everyone, a tier, one account) in a place (everywhere, one pair, one asset).
All rules that fit apply together and the smallest value wins, so a rule can only ever tighten: who
is to have more is moved to a more generous tier. No rule means no limit; a value of zero allows
nothing, and is refused where the engine would read zero as "no limit".

Three parties check. What is measured inside one pair is checked by its engine, in the order of
docs/trading-rules.md, after being pushed as a journaled command. What spans pairs is checked here
when money is asked for. The message rate is order entry's, before anything becomes a command.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from exchange.enums import Asset
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.refusal import Code, Refusal

ACCOUNT_LIMIT: Final = (1 << 31) - 1
"""Largest account number that a command can carry."""
NAME_CHARACTERS: Final = 32
"""Longest name of a tier, a pair or an asset."""
DAY_NS: Final = 24 * 3600 * 1_000_000_000
"""Daily limits look back so far from now: no midnight after which twice as much is possible."""
STANDARD_TIER: Final = "standard"
"""The tier of an account that was given none."""


class LimitKind(IntEnum):
    """What is limited. Numbers are those of the wire and of the stored rows: append only."""

    UNSPECIFIED = 0
    ORDER_LOTS = 1
    """Largest quantity of one order, in lots."""
    ORDER_NOTIONAL = 2
    """Largest worth of one order, in quote units."""
    OPEN_ORDERS = 3
    """Most resting orders in each pair."""
    MESSAGE_RATE = 4
    """Most commands in one second."""
    PRICE_BAND_WIDTH = 5
    """Width of the price band around the last trade, parts per million."""
    POSITION = 6
    """Most units of an asset to own before no more money for buying it is handed to an engine."""
    EXPOSURE = 7
    """Most units of an asset in the hands of all engines together."""
    DAILY_WITHDRAWAL = 8
    """Most units of an asset withdrawn in any 24 hours."""
    TOTAL_EXPOSURE = 9
    """EXPOSURE of all accounts together."""
    TOTAL_WITHDRAWAL = 10
    """DAILY_WITHDRAWAL of all accounts together."""


class LimitSubject(IntEnum):
    """Whom a rule binds."""

    UNSPECIFIED = 0
    EVERYONE = 1
    """Each account by itself; the TOTAL kinds: all together."""
    TIER = 2
    ACCOUNT = 3


class LimitPlace(IntEnum):
    """Where a rule binds."""

    UNSPECIFIED = 0
    EVERYWHERE = 1
    PAIR = 2
    ASSET = 3
    """ORDER_NOTIONAL: every pair quoted in the asset."""


class Checker(IntEnum):
    """Who holds a limit against what is asked."""

    ENGINE = 1
    """Pushed as SET_LIMITS or SET_PRICE_BAND."""
    ORDER_ENTRY = 2
    RISK = 3


class RiskReason(IntEnum):
    """Why this service refused money. The order of the checks is that of `judge_*`."""

    UNSPECIFIED = 0
    ACCOUNT_INVALID = 1
    PAIR_UNKNOWN = 2
    ASSET_UNKNOWN = 3
    AMOUNT_OUT_OF_RANGE = 4
    EVERYTHING_KILLED = 5
    PAIR_KILLED = 6
    ACCOUNT_KILLED = 7
    FEED_STALE = 8
    SETTLEMENT_LATE = 9
    POSITION_LIMIT = 10
    EXPOSURE_LIMIT = 11
    TOTAL_EXPOSURE_LIMIT = 12
    INSUFFICIENT_FUNDS = 13
    DAILY_WITHDRAWAL_LIMIT = 14
    TOTAL_WITHDRAWAL_LIMIT = 15
    BALANCE_OVERFLOW = 16
    """The engine would hold more units of the asset than it can count."""
    TIMED_OUT = 17
    """Not within the time the asker gave; what is under way goes on."""
    WITHDRAWAL_REUSED = 18
    """The id was given before with another account, asset or amount."""


class Shape(NamedTuple):
    """What rules of a kind may look like."""

    checker: Checker
    subjects: tuple[LimitSubject, ...]
    places: tuple[LimitPlace, ...]
    least: int
    most: int


_ALL: Final = (LimitSubject.EVERYONE, LimitSubject.TIER, LimitSubject.ACCOUNT)
_TOGETHER: Final = (LimitSubject.EVERYONE,)
_EVERYWHERE, _PAIR, _ASSET = LimitPlace.EVERYWHERE, LimitPlace.PAIR, LimitPlace.ASSET
_MONEY: Final = AMOUNT_LIMIT_UNITS

SHAPES: Final[Mapping[LimitKind, Shape]] = {
    LimitKind.ORDER_LOTS: Shape(Checker.ENGINE, _ALL, (_PAIR,), 1, 1 << 40),
    LimitKind.ORDER_NOTIONAL: Shape(Checker.ENGINE, _ALL, (_PAIR, _ASSET), 1, _MONEY),
    LimitKind.OPEN_ORDERS: Shape(Checker.ENGINE, _ALL, (_EVERYWHERE, _PAIR), 1, 1 << 24),
    LimitKind.MESSAGE_RATE: Shape(
        Checker.ORDER_ENTRY, _ALL, (_EVERYWHERE, _PAIR), 0, 1_000_000_000
    ),
    LimitKind.PRICE_BAND_WIDTH: Shape(
        Checker.ENGINE, _TOGETHER, (_EVERYWHERE, _PAIR), 1, 1_000_000
    ),
    LimitKind.POSITION: Shape(Checker.RISK, _ALL, (_ASSET,), 0, _MONEY),
    LimitKind.EXPOSURE: Shape(Checker.RISK, _ALL, (_ASSET,), 0, _MONEY),
    LimitKind.DAILY_WITHDRAWAL: Shape(Checker.RISK, _ALL, (_ASSET,), 0, _MONEY),
    LimitKind.TOTAL_EXPOSURE: Shape(Checker.RISK, _TOGETHER, (_ASSET,), 0, _MONEY),
    LimitKind.TOTAL_WITHDRAWAL: Shape(Checker.RISK, _TOGETHER, (_ASSET,), 0, _MONEY),
}


class RuleKey(NamedTuple):
    """What a rule is about; a book of rules has one value for each."""

    kind: LimitKind
    subject: LimitSubject
    subject_name: str
    """The tier, or the account number in decimal; empty for everyone."""
    place: LimitPlace
    place_name: str
    """The pair or the asset; empty for everywhere."""


class Rule(NamedTuple):
    """One limit."""

    key: RuleKey
    value: int

    def refusal(self, pairs: Mapping[str, Instrument]) -> Refusal | None:
        """Return what is wrong with the rule in itself; None if nothing is."""
        key = self.key
        shape = SHAPES.get(key.kind)
        if shape is None:
            return _of("LIMIT_KIND_INVALID", "kind", int(key.kind), "one of the named kinds")
        if key.subject not in shape.subjects:
            allowed = " or ".join(item.name for item in shape.subjects)
            return _of("LIMIT_SUBJECT_INVALID", "subject", int(key.subject), allowed)
        if key.place not in shape.places:
            allowed = " or ".join(item.name for item in shape.places)
            return _of("LIMIT_PLACE_INVALID", "place", int(key.place), allowed)
        refusal = _subject_refusal(key) or _place_refusal(key, pairs)
        if refusal is None and not shape.least <= self.value <= shape.most:
            limit = f"from {shape.least} to {shape.most} for {key.kind.name}"
            return _of("LIMIT_OUT_OF_RANGE", "value", self.value, limit)
        return refusal


def _of(reason: str, name: str, value: object, limit: str) -> Refusal:
    return Refusal.of_field(reason, name, value, limit)


def _subject_refusal(key: RuleKey) -> Refusal | None:
    name = key.subject_name
    if key.subject == LimitSubject.EVERYONE and name:
        return _of("LIMIT_SUBJECT_INVALID", "subject_name", name, "empty for EVERYONE")
    if key.subject == LimitSubject.TIER and not 0 < len(name) <= NAME_CHARACTERS:
        limit = f"a tier of 1 to {NAME_CHARACTERS} characters"
        return _of("LIMIT_SUBJECT_INVALID", "subject_name", name, limit)
    if key.subject == LimitSubject.ACCOUNT and account_of_name(name) == 0:
        limit = f"an account number from 1 to {ACCOUNT_LIMIT}"
        return _of("LIMIT_SUBJECT_INVALID", "subject_name", name, limit)
    return None


def _place_refusal(key: RuleKey, pairs: Mapping[str, Instrument]) -> Refusal | None:
    name = key.place_name
    if key.place == LimitPlace.EVERYWHERE and name:
        return _of("LIMIT_PLACE_INVALID", "place_name", name, "empty for EVERYWHERE")
    if key.place == LimitPlace.PAIR and name not in pairs:
        return _of("PAIR_UNKNOWN", "place_name", name, " or ".join(sorted(pairs)))
    assets = assets_of(pairs)
    if key.place == LimitPlace.ASSET and name not in assets:
        return _of("ASSET_UNKNOWN", "place_name", name, " or ".join(sorted(assets)))
    return None


def account_of_name(name: str) -> int:
    """Return the account number of a rule's subject; 0 unless it is the one text for it."""
    if not (name.isascii() and name.isdigit() and len(name) <= 10) or name[0] == "0":
        return 0
    number = int(name)
    return number if number <= ACCOUNT_LIMIT else 0


def assets_of(pairs: Mapping[str, Instrument]) -> set[str]:
    """Return the assets that the pairs trade."""
    return {name for pair in pairs.values() for name in (pair.base_asset, pair.quote_asset)}


def asset_name(instrument: Instrument, asset: Asset) -> str:
    """Return the name of one of a pair's assets."""
    return instrument.base_asset if asset == Asset.BASE else instrument.quote_asset


class EngineLimits(NamedTuple):
    """What SET_LIMITS tells an engine of one account; zero lifts a limit."""

    largest_order_lots: int
    largest_notional_units: int
    most_open_orders: int


class Change(NamedTuple):
    """One step from a version of the rules to the next; a value of None removes the rule."""

    key: RuleKey
    value: int | None


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All limits of one version. Never changed: `changed` returns the next version."""

    version: int = 0
    values: Mapping[RuleKey, int] = field(default_factory=dict)

    def changed(self, changes: Iterable[Change]) -> "RuleBook":
        """Return the book after some changes, one version later."""
        values = dict(self.values)
        for change in changes:
            if change.value is None:
                values.pop(change.key, None)
            else:
                values[change.key] = change.value
        return RuleBook(self.version + 1, values)

    def strictest(
        self,
        kind: LimitKind,
        account: int = 0,
        tier: str = "",
        pair: str = "",
        asset: str = "",
    ) -> Rule | None:
        """Return the rule that binds, the smallest of those that fit; None when none does.

        Of equal ones it is the most particular: the account's before the tier's before everyone's.
        """
        subjects = [(LimitSubject.ACCOUNT, str(account))] if account else []
        subjects += [(LimitSubject.TIER, tier)] if tier else []
        subjects.append((LimitSubject.EVERYONE, ""))
        places = [(LimitPlace.PAIR, pair)] if pair else []
        places += [(LimitPlace.ASSET, asset)] if asset else []
        places.append((LimitPlace.EVERYWHERE, ""))
        found: Rule | None = None
        for subject, subject_name in subjects:
            for place, place_name in places:
                key = RuleKey(kind, subject, subject_name, place, place_name)
                value = self.values.get(key)
                if value is not None and (found is None or value < found.value):
                    found = Rule(key, value)
        return found

    def limit(
        self, kind: LimitKind, account: int = 0, tier: str = "", pair: str = "", asset: str = ""
    ) -> int | None:
        """Return the value that binds; None for no limit."""
        rule = self.strictest(kind, account, tier, pair, asset)
        return None if rule is None else rule.value

    def engine_limits(self, account: int, tier: str, instrument: Instrument) -> EngineLimits:
        """Return what the engine of a pair has to know of an account."""
        pair, quote = instrument.pair, instrument.quote_asset
        return EngineLimits(
            self.limit(LimitKind.ORDER_LOTS, account, tier, pair) or 0,
            self.limit(LimitKind.ORDER_NOTIONAL, account, tier, pair, quote) or 0,
            self.limit(LimitKind.OPEN_ORDERS, account, tier, pair) or 0,
        )

    def band_width_ppm(self, instrument: Instrument) -> int:
        """Return the width of a pair's price band: the instrument's own or a narrower one."""
        given = self.limit(LimitKind.PRICE_BAND_WIDTH, pair=instrument.pair)
        widths = [width for width in (given, instrument.price_band_ppm) if width]
        return min(widths, default=0)


def band_around(instrument: Instrument, last_price_ticks: int, width_ppm: int) -> tuple[int, int]:
    """Return lowest and highest price around a last trade, as the kernel itself would move them."""
    highest = instrument.price_capacity_ticks - 1
    if width_ppm == 0 or last_price_ticks == 0:
        return 1, highest
    reach = last_price_ticks * width_ppm // 1_000_000
    return max(1, last_price_ticks - reach), min(highest, last_price_ticks + reach)


@dataclass(frozen=True, slots=True)
class Kills:
    """What must not trade, as far as it concerns one request."""

    everything: bool = False
    pair: bool = False
    account: bool = False


@dataclass(frozen=True, slots=True)
class AllotmentQuestion:
    """Everything that decides whether an engine may be handed more of an account's money."""

    account: int
    pair_known: bool
    asset: int
    amount_units: int
    kills: Kills = Kills()
    feed_stale: bool = False
    settlement_late: bool = False
    buys: bool = False
    """True for the quote asset: what is handed over can buy the base asset."""
    position_units: int = 0
    """Units of the base asset that the account owns, in trading and in all engines."""
    position_limit: int | None = None
    exposure_units: int = 0
    """Units of the asked asset in all engines and on their way there."""
    exposure_limit: int | None = None
    total_exposure_units: int = 0
    total_exposure_limit: int | None = None


def judge_allotment(question: AllotmentQuestion) -> RiskReason:
    """Return the first reason to refuse, in this order; UNSPECIFIED when there is none.

    What is wrong in itself, then what is switched off, then what cannot be known well enough, then
    limits from the narrow to the wide. Whether the money exists is the ledger's to say, later.
    """
    asked = question
    if not 1 <= asked.account <= ACCOUNT_LIMIT:
        return RiskReason.ACCOUNT_INVALID
    if not asked.pair_known:
        return RiskReason.PAIR_UNKNOWN
    if asked.asset not in {Asset.BASE, Asset.QUOTE}:
        return RiskReason.ASSET_UNKNOWN
    if not 1 <= asked.amount_units <= AMOUNT_LIMIT_UNITS:
        return RiskReason.AMOUNT_OUT_OF_RANGE
    if asked.kills.everything:
        return RiskReason.EVERYTHING_KILLED
    if asked.kills.pair:
        return RiskReason.PAIR_KILLED
    if asked.kills.account:
        return RiskReason.ACCOUNT_KILLED
    if asked.feed_stale:
        return RiskReason.FEED_STALE
    if asked.settlement_late:
        return RiskReason.SETTLEMENT_LATE
    position = asked.position_limit
    if asked.buys and position is not None and asked.position_units >= position:
        return RiskReason.POSITION_LIMIT
    if _above(asked.exposure_units + asked.amount_units, asked.exposure_limit):
        return RiskReason.EXPOSURE_LIMIT
    if _above(asked.total_exposure_units + asked.amount_units, asked.total_exposure_limit):
        return RiskReason.TOTAL_EXPOSURE_LIMIT
    return RiskReason.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class WithdrawalQuestion:
    """Everything that decides whether an account may withdraw."""

    account: int
    asset_known: bool
    amount_units: int
    kills: Kills = Kills()
    withdrawn_units: int = 0
    """Withdrawn or being withdrawn in the 24 hours before now."""
    withdrawal_limit: int | None = None
    total_withdrawn_units: int = 0
    total_withdrawal_limit: int | None = None


def judge_withdrawal(question: WithdrawalQuestion) -> RiskReason:
    """Return the first reason to refuse, in this order; UNSPECIFIED when there is none."""
    asked = question
    if not 1 <= asked.account <= ACCOUNT_LIMIT:
        return RiskReason.ACCOUNT_INVALID
    if not asked.asset_known:
        return RiskReason.ASSET_UNKNOWN
    if not 1 <= asked.amount_units <= AMOUNT_LIMIT_UNITS:
        return RiskReason.AMOUNT_OUT_OF_RANGE
    if asked.kills.everything:
        return RiskReason.EVERYTHING_KILLED
    if asked.kills.account:
        return RiskReason.ACCOUNT_KILLED
    if _above(asked.withdrawn_units + asked.amount_units, asked.withdrawal_limit):
        return RiskReason.DAILY_WITHDRAWAL_LIMIT
    if _above(asked.total_withdrawn_units + asked.amount_units, asked.total_withdrawal_limit):
        return RiskReason.TOTAL_WITHDRAWAL_LIMIT
    return RiskReason.UNSPECIFIED


def _above(units: int, limit: int | None) -> bool:
    return limit is not None and units > limit


SENTENCES: Final[Mapping[RiskReason, str]] = {
    RiskReason.ACCOUNT_INVALID: f"the account must be a number from 1 to {ACCOUNT_LIMIT}",
    RiskReason.PAIR_UNKNOWN: "this service knows no such pair",
    RiskReason.ASSET_UNKNOWN: "this service knows no such asset",
    RiskReason.AMOUNT_OUT_OF_RANGE: f"the amount must be from 1 to {AMOUNT_LIMIT_UNITS} units",
    RiskReason.EVERYTHING_KILLED: "the kill switch of everything is set",
    RiskReason.PAIR_KILLED: "the kill switch of the pair is set",
    RiskReason.ACCOUNT_KILLED: "the kill switch of the account is set",
    RiskReason.FEED_STALE: "nothing was heard of the pair for too long",
    RiskReason.SETTLEMENT_LATE: "the ledger is too far behind the pair",
    RiskReason.POSITION_LIMIT: "the account owns as much of the base asset as it may",
    RiskReason.EXPOSURE_LIMIT: "the engines would hold more of the account's money than they may",
    RiskReason.TOTAL_EXPOSURE_LIMIT: "the engines would hold more of the asset than they may",
    RiskReason.INSUFFICIENT_FUNDS: "the account has not so much in trading, nor free in any pair",
    RiskReason.DAILY_WITHDRAWAL_LIMIT: "the account would withdraw more in 24 hours than it may",
    RiskReason.TOTAL_WITHDRAWAL_LIMIT: "more would be withdrawn in 24 hours than may be",
    RiskReason.BALANCE_OVERFLOW: "the pair would hold more units than it can count",
    RiskReason.TIMED_OUT: "the money did not arrive in the time given; what is under way goes on",
    RiskReason.WITHDRAWAL_REUSED: "the id was given before for another withdrawal",
}
_INVALID: Final = (
    RiskReason.ACCOUNT_INVALID,
    RiskReason.PAIR_UNKNOWN,
    RiskReason.ASSET_UNKNOWN,
    RiskReason.AMOUNT_OUT_OF_RANGE,
    RiskReason.WITHDRAWAL_REUSED,
)
_NOT_NOW: Final = (RiskReason.FEED_STALE, RiskReason.SETTLEMENT_LATE, RiskReason.TIMED_OUT)


def refusal_of(reason: RiskReason) -> Refusal:
    """Return a reason as the end of a call."""
    code = Code.FAILED_PRECONDITION
    if reason in _INVALID:
        code = Code.INVALID_ARGUMENT
    elif reason in _NOT_NOW:
        code = Code.UNAVAILABLE
    return Refusal(code, reason.name, SENTENCES[reason])
