"""The door of the risk service: requests become questions, decisions and answers.

What is wrong with a request in itself ends the call; why money was not given is part of the
answer, because the asker goes on with it. It believes its callers: it listens on the machine's own
address only.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from exchange.enums import Asset
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.refusal import Code, Refusal, Refused
from exchange.service import Context
from exchange.v1 import risk_pb2, risk_pb2_grpc
from riskd import views
from riskd.alarms import Alarm
from riskd.desk import Desk
from riskd.funds import exposure
from riskd.limits import (
    ACCOUNT_LIMIT,
    NAME_CHARACTERS,
    SENTENCES,
    SHAPES,
    STANDARD_TIER,
    AllotmentQuestion,
    Change,
    LimitKind,
    LimitPlace,
    LimitSubject,
    RiskReason,
    Rule,
    RuleKey,
    WithdrawalQuestion,
    asset_name,
    assets_of,
    judge_allotment,
    judge_withdrawal,
)
from riskd.links import Unanswered
from riskd.settings import MARKET_MAKER, TRADER, Scope, Settings
from riskd.storage.store import GONE, Store

SERVICE_NAME: Final = "exchange.v1.RiskService"
CHANGE_LIMIT: Final = 1_000
TEXT_CHARACTERS: Final = 200
PATIENCE_MS: Final = 500
PATIENCE_LIMIT_MS: Final = 4_000
"""Below the deadline of a call that brings none."""
PAGE_DEFAULT: Final = 100
PAGE_LIMIT: Final = 1_000
MILLION: Final = 1_000_000
_GONE: Final = Refusal(
    Code.UNAVAILABLE, "DATABASE_UNAVAILABLE", "the database of the risk service does not answer"
)
_KINDS_OF_PAIR: Final = (
    LimitKind.ORDER_LOTS,
    LimitKind.ORDER_NOTIONAL,
    LimitKind.OPEN_ORDERS,
    LimitKind.MESSAGE_RATE,
    LimitKind.PRICE_BAND_WIDTH,
)
_KINDS_OF_ASSET: Final = (
    LimitKind.POSITION,
    LimitKind.EXPOSURE,
    LimitKind.DAILY_WITHDRAWAL,
    LimitKind.TOTAL_EXPOSURE,
    LimitKind.TOTAL_WITHDRAWAL,
)
_ASSETS: Final = (Asset.BASE, Asset.QUOTE)


async def _stored(call: Any, *arguments: Any) -> Any:
    """Call the store in a thread. Raises Refused when the database is away."""
    try:
        return await asyncio.to_thread(call, *arguments)
    except GONE as error:
        raise Refused(_GONE) from error


def _demand(condition: bool, reason: str, field: str, value: object, limit: str) -> None:
    if not condition:
        raise Refused(Refusal.of_field(reason, field, value, limit))


def _check_who(request: Any) -> tuple[str, str]:
    actor, note = request.actor, request.note
    _demand(bool(actor), "FIELD_MISSING", "actor", actor, "who changes it")
    for field, value in (("actor", actor), ("note", note)):
        limit = f"at most {TEXT_CHARACTERS} characters, none of them zero"
        fits = len(value) <= TEXT_CHARACTERS and "\0" not in value
        _demand(fits, "TEXT_INVALID", field, value, limit)
    return actor, note


def _check_account(account: int, highest: int = ACCOUNT_LIMIT) -> int:
    fits = 1 <= account <= highest
    _demand(fits, "ACCOUNT_INVALID", "account", account, f"from 1 to {highest}")
    return account


def _patience_s(given_ms: int) -> float:
    limit = f"from 0 to {PATIENCE_LIMIT_MS}"
    fits = 0 <= given_ms <= PATIENCE_LIMIT_MS
    _demand(fits, "PATIENCE_OUT_OF_RANGE", "patience_ms", given_ms, limit)
    return (given_ms or PATIENCE_MS) / 1_000


def _key_of(message: risk_pb2.LimitKey) -> RuleKey:
    try:
        return RuleKey(
            LimitKind(message.kind),
            LimitSubject(message.subject),
            message.subject_name,
            LimitPlace(message.place),
            message.place_name,
        )
    except ValueError as error:
        limit = "numbers that the contract names"
        raise Refused(Refusal.of_field("ENUM_INVALID", "key", str(error), limit)) from error


def _reason(reason: RiskReason) -> Any:
    return int(reason)


class RiskServicer(risk_pb2_grpc.RiskServiceServicer):
    """The servicer of one process."""

    def __init__(self, desk: Desk, settings: Settings, store: Store) -> None:
        self._desk = desk
        self._settings = settings
        self._store = store
        self._instruments: Mapping[str, Instrument] = {
            pair: link.instrument for pair, link in desk.links.items()
        }
        self._assets = assets_of(self._instruments)
        self._highest = [item.account_capacity - 1 for item in self._instruments.values()]

    def _check_pair(self, pair: str) -> Instrument:
        limit = " or ".join(sorted(self._instruments))
        _demand(pair in self._instruments, "PAIR_UNKNOWN", "pair", pair, limit)
        return self._instruments[pair]

    # Limits.

    async def ChangeLimits(
        self, request: risk_pb2.ChangeLimitsRequest, context: Context
    ) -> risk_pb2.ChangeLimitsResponse:
        """Make a new version of the limits."""
        actor, note = _check_who(request)
        count = len(request.changes)
        limit = f"1 to {CHANGE_LIMIT} of them"
        _demand(0 < count <= CHANGE_LIMIT, "COUNT_OUT_OF_RANGE", "changes", count, limit)
        changes: dict[RuleKey, Change] = {}
        for message in request.changes:
            key = _key_of(message.key)
            _demand(key not in changes, "LIMIT_REPEATED", "changes", key, "each limit once")
            value = message.value if message.HasField("value") else None
            # A limit that is lifted has no value to be wrong.
            shape = SHAPES.get(key.kind)
            least = shape.least if shape else 0
            refusal = Rule(key, least if value is None else value).refusal(self._instruments)
            if refusal is not None:
                raise Refused(refusal)
            changes[key] = Change(key, value)
        try:
            version = await self._settings.change_limits(
                changes.values(), request.expected_version, actor, note
            )
        except GONE as error:
            raise Refused(_GONE) from error
        left = len(self._settings.unconfirmed())
        return risk_pb2.ChangeLimitsResponse(version=version, unconfirmed_count=left)

    async def ListLimits(
        self, request: risk_pb2.ListLimitsRequest, context: Context
    ) -> risk_pb2.ListLimitsResponse:
        """Show the limits of a version."""
        rules = self._settings.rules
        if request.version:
            rules = await _stored(self._store.limits_at, request.version)
        limits = [
            views.limit_message(Rule(key, value)) for key, value in sorted(rules.values.items())
        ]
        return risk_pb2.ListLimitsResponse(version=rules.version, limits=limits)

    async def GetEffectiveLimits(
        self, request: risk_pb2.GetEffectiveLimitsRequest, context: Context
    ) -> risk_pb2.GetEffectiveLimitsResponse:
        """Show what binds an account in a pair."""
        account, instrument = _check_account(request.account), self._check_pair(request.pair)
        rules, tier = self._settings.rules, self._settings.tier(account)
        quote = instrument.quote_asset
        found = [
            rules.strictest(kind, account, tier, instrument.pair, quote) for kind in _KINDS_OF_PAIR
        ]
        found += [
            rules.strictest(kind, account, tier, asset=asset_name(instrument, asset))
            for kind in _KINDS_OF_ASSET
            for asset in _ASSETS
        ]
        return risk_pb2.GetEffectiveLimitsResponse(
            version=rules.version,
            tier=tier,
            role=self._settings.role(account),  # type: ignore[arg-type]
            limits=[views.limit_message(rule) for rule in found if rule is not None],
            confirmed=self._settings.confirmed(account, instrument.pair),
        )

    async def SetAccountProfile(
        self, request: risk_pb2.SetAccountProfileRequest, context: Context
    ) -> risk_pb2.SetAccountProfileResponse:
        """Give an account a tier and a role."""
        actor, note = _check_who(request)
        account, tier = _check_account(request.account), request.tier or STANDARD_TIER
        limit = f"1 to {NAME_CHARACTERS} characters"
        _demand(len(tier) <= NAME_CHARACTERS, "TIER_INVALID", "tier", tier, limit)
        role = int(request.role) or TRADER
        _demand(role in {TRADER, MARKET_MAKER}, "ROLE_INVALID", "role", role, "a named role")
        try:
            change = await self._settings.set_profile(account, tier, role, actor, note)
        except GONE as error:
            raise Refused(_GONE) from error
        return risk_pb2.SetAccountProfileResponse(change=change)

    async def SetAllotmentTarget(
        self, request: risk_pb2.SetAllotmentTargetRequest, context: Context
    ) -> risk_pb2.SetAllotmentTargetResponse:
        """Promise a market maker money in a pair."""
        actor, note = _check_who(request)
        account, instrument = _check_account(request.account), self._check_pair(request.pair)
        asset, units = int(request.asset), request.amount_units
        _demand(asset in _ASSETS, "ASSET_INVALID", "asset", asset, "base or quote")
        limit = f"from 0 to {AMOUNT_LIMIT_UNITS}"
        fits = 0 <= units <= AMOUNT_LIMIT_UNITS
        _demand(fits, "AMOUNT_OUT_OF_RANGE", "amount_units", units, limit)
        role = self._settings.role(account)
        maker = role == MARKET_MAKER or units == 0
        _demand(maker, "ROLE_INVALID", "account", account, "of a market maker")
        _check_account(account, instrument.account_capacity - 1)
        given = (account, instrument.pair, Asset(asset), units)
        change = await _stored(self._store.set_target, *given, actor, note)
        if units:
            await self._settings.ensure(account, instrument.pair)
        self._desk.machine.set_target(*given)
        self._desk.wake()
        return risk_pb2.SetAllotmentTargetResponse(change=change)

    async def ListRiskChanges(
        self, request: risk_pb2.ListRiskChangesRequest, context: Context
    ) -> risk_pb2.ListRiskChangesResponse:
        """Show who changed what."""
        size = request.page_size or PAGE_DEFAULT
        limit = f"from 1 to {PAGE_LIMIT}"
        _demand(1 <= size <= PAGE_LIMIT, "PAGE_SIZE_OUT_OF_RANGE", "page_size", size, limit)
        rows = await _stored(self._store.changes, request.before, size)
        return risk_pb2.ListRiskChangesResponse(
            changes=[
                risk_pb2.RiskChange(
                    change=row.id,
                    time_ns=row.time_ns,
                    actor=row.actor,
                    note=row.note,
                    subject=row.subject,
                    content=row.content,
                )
                for row in rows
            ]
        )

    # Money.

    async def RequestAllotment(
        self, request: risk_pb2.RequestAllotmentRequest, context: Context
    ) -> risk_pb2.RequestAllotmentResponse:
        """Have money free in a pair."""
        patience_s = _patience_s(request.patience_ms)
        if request.pair in self._instruments:
            self._desk.heard[request.pair].request_count += 1
            # What the asker has seen is known here, too, before anything is decided.
            number = request.execution_number or -1
            await self._desk.caught_up(request.pair, number, patience_s / 2)
        try:
            question, most_units = await self._question(request)
            reason = judge_allotment(question)
            if reason == RiskReason.UNSPECIFIED:
                reason = await self._allotted(request, patience_s, most_units)
        except Unanswered as error:
            refusal = Refusal(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", str(error))
            raise Refused(refusal) from error
        cursor = 0
        if request.pair in self._instruments:
            cursor = self._desk.machine.holdings[request.pair].cursor
        return risk_pb2.RequestAllotmentResponse(
            reason=_reason(reason), message=SENTENCES.get(reason, ""), execution_number=cursor
        )

    async def _allotted(
        self, request: risk_pb2.RequestAllotmentRequest, patience_s: float, most_units: int
    ) -> RiskReason:
        if not await self._settings.ensure(request.account, request.pair):
            return RiskReason.TIMED_OUT
        return await self._desk.allotted(
            request.account,
            request.pair,
            Asset(int(request.asset)),
            request.amount_units,
            patience_s,
            most_units,
            request.execution_number or -1,
        )

    async def _question(
        self, request: risk_pb2.RequestAllotmentRequest
    ) -> tuple[AllotmentQuestion, int]:
        """Gather what decides; also return the most that may be handed over."""
        pair, account, asset = request.pair, request.account, int(request.asset)
        instrument = self._instruments.get(pair)
        known = instrument is not None and asset in _ASSETS
        if instrument is None or not known or not 1 <= account < instrument.account_capacity:
            fits = instrument is None or account < instrument.account_capacity
            given = account if fits else 0
            known_pair = instrument is not None
            return AllotmentQuestion(given, known_pair, asset, request.amount_units), 0
        rules, tier, machine = (
            self._settings.rules,
            self._settings.tier(account),
            self._desk.machine,
        )
        name = asset_name(instrument, Asset(asset))
        limit = rules.limit(LimitKind.EXPOSURE, account, tier, asset=name)
        total_limit = rules.limit(LimitKind.TOTAL_EXPOSURE, asset=name)
        there = exposure.exposure(machine, account, name)
        total = exposure.total_exposure(machine, name) if total_limit is not None else 0
        most_units = AMOUNT_LIMIT_UNITS
        for bound, used in ((limit, there), (total_limit, total)):
            if bound is not None:
                most_units = min(most_units, max(0, bound - used))
        # What is free in the pair is a part of what is asked for.
        number = request.execution_number or -1
        free = machine.holdings[pair].known_free(account, Asset(asset), number)
        base, alarms = instrument.base_asset, self._desk.alarms
        position_limit = rules.limit(LimitKind.POSITION, account, tier, asset=base)
        buys, position = asset == Asset.QUOTE, 0
        if buys and position_limit is not None:
            trading = await self._desk.ledger.trading(account, base)
            position = exposure.position(machine, account, base, trading)
        question = AllotmentQuestion(
            account,
            True,
            asset,
            request.amount_units,
            self._settings.kills_of(account, pair),
            alarms.has(pair, Alarm.FEED_STALE, Alarm.FEED_BROKEN),
            alarms.has(pair, Alarm.SETTLEMENT_LATE),
            buys,
            position,
            position_limit,
            there - free,
            limit,
            total - free,
            total_limit,
        )
        return question, most_units

    async def RecallFunds(
        self, request: risk_pb2.RecallFundsRequest, context: Context
    ) -> risk_pb2.RecallFundsResponse:
        """Bring free money back to trading."""
        account, units = _check_account(request.account), request.amount_units
        patience_s = _patience_s(request.patience_ms)
        limit = f"from 1 to {AMOUNT_LIMIT_UNITS}"
        fits = 1 <= units <= AMOUNT_LIMIT_UNITS
        _demand(fits, "AMOUNT_OUT_OF_RANGE", "amount_units", units, limit)
        names = " or ".join(sorted(self._assets))
        _demand(request.asset in self._assets, "ASSET_UNKNOWN", "asset", request.asset, names)
        if not request.pair:
            _check_account(account, min(self._highest))
            reason = await self._desk.back_in_trading(account, request.asset, units, patience_s)
            released = 0
        else:
            instrument = self._check_pair(request.pair)
            _check_account(account, instrument.account_capacity - 1)
            own = {asset_name(instrument, asset): asset for asset in _ASSETS}
            limit = " or ".join(own)
            _demand(request.asset in own, "ASSET_UNKNOWN", "asset", request.asset, limit)
            reason, released = await self._desk.recalled(
                account, request.pair, own[request.asset], units, patience_s
            )
        return risk_pb2.RecallFundsResponse(
            reason=_reason(reason), message=SENTENCES.get(reason, ""), released_units=released
        )

    async def ReserveWithdrawal(
        self, request: risk_pb2.ReserveWithdrawalRequest, context: Context
    ) -> risk_pb2.ReserveWithdrawalResponse:
        """Count a withdrawal against the daily limits."""
        _demand(len(request.id) == 16, "ID_INVALID", "id", request.id.hex(), "16 bytes")
        account, name = request.account, request.asset
        rules, tier = self._settings.rules, self._settings.tier(account)

        def judge(mine: int, total: int) -> RiskReason:
            question = WithdrawalQuestion(
                account,
                name in self._assets,
                request.amount_units,
                self._settings.kills_of(account),
                mine,
                rules.limit(LimitKind.DAILY_WITHDRAWAL, account, tier, asset=name),
                total,
                rules.limit(LimitKind.TOTAL_WITHDRAWAL, asset=name),
            )
            return judge_withdrawal(question)

        given = (UUID(bytes=request.id), account, name, request.amount_units)
        reason = await _stored(self._store.reserve_withdrawal, *given, judge)
        return risk_pb2.ReserveWithdrawalResponse(
            reason=_reason(reason), message=SENTENCES.get(reason, "")
        )

    async def ReleaseWithdrawal(
        self, request: risk_pb2.ReleaseWithdrawalRequest, context: Context
    ) -> risk_pb2.ReleaseWithdrawalResponse:
        """Count a withdrawal no longer."""
        _demand(len(request.id) == 16, "ID_INVALID", "id", request.id.hex(), "16 bytes")
        released = await _stored(self._store.release_withdrawal, UUID(bytes=request.id))
        return risk_pb2.ReleaseWithdrawalResponse(released=released)

    # Stop.

    async def KillSwitch(
        self, request: risk_pb2.KillSwitchRequest, context: Context
    ) -> risk_pb2.KillSwitchResponse:
        """Stop an account, a pair or everything, or let it trade again."""
        actor, note = _check_who(request)
        scope, name = int(request.scope), ""
        named = scope in {Scope.ACCOUNT, Scope.PAIR, Scope.EVERYTHING}
        _demand(named, "SCOPE_INVALID", "scope", scope, "account, pair or everything")
        if scope == Scope.ACCOUNT:
            # What was set can be lifted, whatever room pairs have by now.
            lifts = not request.killed and self._settings.kills_of(request.account).account
            highest = ACCOUNT_LIMIT if lifts else max(self._highest)
            name = str(_check_account(request.account, highest))
        elif scope == Scope.PAIR:
            name = self._check_pair(request.pair).pair
        try:
            change, said = await self._settings.kill(
                Scope(scope), name, request.killed, actor, note
            )
        except GONE as error:
            raise Refused(_GONE) from error
        return risk_pb2.KillSwitchResponse(
            change=change,
            confirmations=[
                risk_pb2.KillConfirmation(
                    pair=item.pair,
                    confirmed=item.confirmed,
                    sequence=item.sequence,
                    message=item.sentence,
                )
                for item in said
            ],
        )

    # Views.

    async def GetExposure(
        self, request: risk_pb2.GetExposureRequest, context: Context
    ) -> risk_pb2.GetExposureResponse:
        """Show where an account's money is and how much of its limits it uses."""
        account = _check_account(request.account)
        names = sorted(self._assets)
        try:
            trading = {name: await self._desk.ledger.trading(account, name) for name in names}
        except Unanswered as error:
            refusal = Refusal(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", str(error))
            raise Refused(refusal) from error
        withdrawn = {
            name: await _stored(self._store.withdrawn, name, account)
            for name in sorted(self._assets)
        }
        return views.exposure_message(self._desk, self._settings, account, trading, withdrawn)

    async def GetRiskStatus(
        self, request: risk_pb2.GetRiskStatusRequest, context: Context
    ) -> risk_pb2.GetRiskStatusResponse:
        """Show how everything stands."""
        return views.status_message(self._desk, self._settings)
