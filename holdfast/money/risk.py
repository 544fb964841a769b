"""Calls to the risk service: limits, exposure, money back from engines, the kill switch."""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final

from exchange.enums import Asset
from exchange.v1 import risk_pb2
from holdfast.errors import CallFailed, InvalidRequest, OutcomeUnknown
from holdfast.money.amounts import Amount, decimal_of, invalid, plain, units_of
from holdfast.money.answers import (
    Alarm,
    EffectiveLimits,
    Exposure,
    KillConfirmation,
    Killed,
    Limit,
    LimitChange,
    Limits,
    LimitsChanged,
    LimitUse,
    PairExposure,
    PairRiskStatus,
    RiskChange,
    RiskEdit,
    RiskStatus,
)
from holdfast.money.calls import Calls
from holdfast.money.words import (
    ACCOUNT_ROLES,
    KILL_SCOPES,
    LIMIT_KINDS,
    LIMIT_PLACES,
    LIMIT_SUBJECTS,
    RISK_ALARMS,
)
from holdfast.retry import Attempts, Retry

RECALL_MS: Final = 2_000
"""One call waits so long for money to come back; `recall` asks again within its patience."""
_FAILED_PRECONDITION: Final = 9
_DEADLINE_EXCEEDED: Final = 4
_COUNT_DIGITS: Final = 18
COUNTED: Final = frozenset({"order-lots", "open-orders", "message-rate", "price-band-width"})
"""Limits that are counts; all others are amounts of an asset."""
UNITS: Final = {
    "order-lots": "lots",
    "open-orders": "orders",
    "message-rate": "commands a second",
    "price-band-width": "parts per million",
}


def asset_of(place: str, place_name: str) -> str:
    """Return the asset in which a limit of a place is counted: of a pair, its quote asset."""
    return place_name.rpartition("-")[2] if place == "pair" else place_name


def value_text(limit: Limit) -> str:
    """Return a limit's value with what it counts."""
    if limit.kind in COUNTED:
        return f"{limit.value} {UNITS[limit.kind]}"
    assert not isinstance(limit.value, int), f"{limit.kind} is an amount"
    return f"{plain(limit.value)} {asset_of(limit.place, limit.place_name)}"


class RiskCalls(Calls):
    """What can be asked of the risk service."""

    # Limits.

    async def limits(self, version: int = 0) -> Limits:
        """Return all limits, now (0) or of an earlier version."""
        request = risk_pb2.ListLimitsRequest(version=version)
        answer = await self._call(self._risk.ListLimits, request)
        return Limits(answer.version, await self._limits(answer.limits))

    async def effective_limits(self, pair: str) -> EffectiveLimits:
        """Return what binds the account in a pair."""
        request = risk_pb2.GetEffectiveLimitsRequest(account=self.account, pair=pair)
        answer = await self._call(self._risk.GetEffectiveLimits, request)
        role = ACCOUNT_ROLES.word(answer.role)
        limits = await self._limits(answer.limits)
        return EffectiveLimits(answer.version, answer.tier, role, limits, answer.confirmed)

    async def change_limits(
        self, changes: Iterable[LimitChange], note: str, *, expected_version: int = 0
    ) -> LimitsChanged:
        """Make all changes one new version, or none of them.

        With `expected_version` they are refused unless that is the version now.
        """
        request = risk_pb2.ChangeLimitsRequest(
            expected_version=expected_version, actor=self.actor, note=note
        )
        for change in changes:
            request.changes.append(await self._change(change))
        answer = await self._call(self._risk.ChangeLimits, request)
        return LimitsChanged(answer.version, answer.unconfirmed_count)

    async def _change(self, change: LimitChange) -> risk_pb2.LimitChange:
        key = risk_pb2.LimitKey(
            kind=LIMIT_KINDS.number("kind", change.kind),
            subject=LIMIT_SUBJECTS.number("subject", change.subject),
            subject_name=change.subject_name,
            place=LIMIT_PLACES.number("place", change.place),
            place_name=change.place_name,
        )
        message = risk_pb2.LimitChange(key=key)
        if change.value is not None:
            message.value = await self._limit_units(change)
        return message

    async def _limit_units(self, change: LimitChange) -> int:
        value = change.value
        if change.kind in COUNTED:
            text = str(value)
            whole = isinstance(value, int | str) and text.isascii() and text.isdigit()
            if not whole or len(text) > _COUNT_DIGITS:
                raise invalid("VALUE_INVALID", "value", value, f"a number of {UNITS[change.kind]}")
            return int(text)
        asset = asset_of(change.place, change.place_name)
        if not asset:
            limit = f"a pair or an asset, because {change.kind} is an amount"
            raise invalid("LIMIT_PLACE_INVALID", "place", change.place, limit)
        given: Any = value
        return units_of(given, await self.decimals(asset), "value", least_units=0)

    async def _limits(self, found: Iterable[risk_pb2.RiskLimit]) -> tuple[Limit, ...]:
        return tuple([await self._limit(item) for item in found])

    async def _limit(self, item: risk_pb2.RiskLimit) -> Limit:
        key = item.key
        kind, place = LIMIT_KINDS.word(key.kind), LIMIT_PLACES.word(key.place)
        value: Decimal | int = item.value
        if kind not in COUNTED:
            asset = asset_of(place, key.place_name)
            value = decimal_of(item.value, await self.decimals(asset))
        subject = LIMIT_SUBJECTS.word(key.subject)
        return Limit(kind, subject, key.subject_name, place, key.place_name, value)

    # Who changed what.

    async def risk_changes(
        self, *, before: int = 0, page_size: int = 100
    ) -> tuple[RiskChange, ...]:
        """Return changes of limits, profiles, targets and kill switches, newest first.

        Those with a number below `before`, the newest without it. At most 1,000 of them.
        """
        request = risk_pb2.ListRiskChangesRequest(before=before, page_size=page_size)
        answer = await self._call(self._risk.ListRiskChanges, request)
        return tuple(
            [
                RiskChange(
                    item.change,
                    item.time_ns,
                    item.actor,
                    item.note,
                    item.subject,
                    await self._edits(item.subject, item.content),
                    item.content,
                )
                for item in answer.changes
            ]
        )

    async def _edits(self, subject: str, content: str) -> tuple[RiskEdit, ...]:
        told = json.loads(content)
        if subject == "limits":
            return tuple([await self._limit_edit(*given) for given in told["changes"]])
        before, after = told["before"], told["after"]
        if subject == "target":
            base, _, quote = told["pair"].partition("-")
            asset = base if told["asset"] == Asset.BASE else quote
            what = f"target of account {told['account']} in {told['pair']}"
            edit = RiskEdit(what, await self._said(before, asset), await self._said(after, asset))
        elif subject == "profile":
            edit = RiskEdit(f"profile of account {told['account']}", _role(before), _role(after))
        else:
            what = f"kill of {KILL_SCOPES.word(told['scope'])} {told['name']}".rstrip()
            edit = RiskEdit(what, *("stopped" if killed else "open" for killed in (before, after)))
        return (edit,)

    async def _limit_edit(
        self,
        kind: Any,
        subject: Any,
        subject_name: str,
        place: Any,
        place_name: str,
        *values: int | None,
    ) -> RiskEdit:
        key = risk_pb2.LimitKey(
            kind=kind,
            subject=subject,
            subject_name=subject_name,
            place=place,
            place_name=place_name,
        )
        whom = f"{LIMIT_SUBJECTS.word(subject)} {subject_name}".rstrip()
        where = place_name or LIMIT_PLACES.word(place)
        said = [
            ""
            if value is None
            else value_text(await self._limit(risk_pb2.RiskLimit(key=key, value=value)))
            for value in values
        ]
        return RiskEdit(f"{LIMIT_KINDS.word(kind)} of {whom} in {where}", *said)

    async def _said(self, units: int, asset: str) -> str:
        return f"{plain(await self.decimal(asset, units))} {asset}" if units else ""

    # Money.

    async def recall(
        self, asset: str, amount: Amount, pair: str = "", *, patience_s: float | None = None
    ) -> Decimal:
        """Have free money brought back from engines to trading; return what a pair released.

        Without a pair: from wherever it is free and not promised, until trading has as much as
        asked for; then zero is returned. Raises OutcomeUnknown if it did not come in time,
        InvalidRequest with the risk service's reason if there is not so much.
        """
        decimals = await self.decimals(asset)
        units = units_of(amount, decimals)
        request = risk_pb2.RecallFundsRequest(
            account=self.account, pair=pair, asset=asset, amount_units=units, patience_ms=RECALL_MS
        )
        patience = Retry(patience_s=patience_s or self.retry.patience_s)
        attempts = Attempts(patience)
        while True:
            answer = await self._call(self._risk.RecallFunds, request, patience)
            if answer.reason == risk_pb2.RISK_REASON_UNSPECIFIED:
                return decimal_of(answer.released_units, decimals)
            refused = _refused(answer.reason, answer.message)
            if not isinstance(refused, OutcomeUnknown) or attempts.spent():
                raise refused
            await attempts.pause()

    async def exposure(self) -> Exposure:
        """Return where the account's money is and how much of its limits it uses."""
        request = risk_pb2.GetExposureRequest(account=self.account)
        answer = await self._call(self._risk.GetExposure, request)
        pairs = []
        for item in answer.pairs:
            decimals = await self.decimals(item.asset)
            pairs.append(
                PairExposure(
                    item.pair,
                    item.asset,
                    decimal_of(item.total_units, decimals),
                    decimal_of(item.free_units, decimals),
                    item.free_exact,
                    decimal_of(item.in_flight_units, decimals),
                    decimal_of(item.target_units, decimals),
                    item.sequence,
                )
            )
        uses = []
        for use in answer.uses:
            decimals = await self.decimals(use.limit.key.place_name)
            limit = await self._limit(use.limit)
            uses.append(LimitUse(limit, decimal_of(use.used_units, decimals), use.used_ppm))
        return Exposure(tuple(pairs), tuple(uses))

    # Operators.

    async def kill(
        self, scope: str, *, account: int = 0, pair: str = "", lift: bool = False, note: str = ""
    ) -> Killed:
        """Stop an `account`, a `pair` or `everything`, or let it trade again (`lift`)."""
        request = risk_pb2.KillSwitchRequest(
            scope=KILL_SCOPES.number("scope", scope),
            account=account,
            pair=pair,
            killed=not lift,
            actor=self.actor,
            note=note,
        )
        answer = await self._call(self._risk.KillSwitch, request)
        confirmations = [
            KillConfirmation(item.pair, item.confirmed, item.sequence, item.message)
            for item in answer.confirmations
        ]
        return Killed(answer.change, tuple(confirmations))

    async def risk_status(self) -> RiskStatus:
        """Return how far each pair is followed, and what is wrong."""
        answer = await self._call(self._risk.GetRiskStatus, risk_pb2.GetRiskStatusRequest())
        pairs = [
            PairRiskStatus(
                item.pair,
                item.cursor,
                item.committed_number,
                item.settled_number,
                item.transfer_number,
                item.open_move_count,
                item.killed,
                tuple(
                    Alarm(RISK_ALARMS.word(one.alarm), one.message, one.since_ns)
                    for one in item.alarms
                ),
            )
            for item in answer.pairs
        ]
        return RiskStatus(
            tuple(pairs),
            answer.limits_version,
            tuple(answer.killed_accounts),
            answer.everything_killed,
        )


def _role(profile: list[Any] | None) -> str:
    """Return a tier and a role as people say them."""
    return f"{profile[0]} {ACCOUNT_ROLES.word(profile[1])}" if profile else ""


def _refused(reason: Any, message: str) -> CallFailed:
    name = risk_pb2.RiskReason.Name(reason).removeprefix("RISK_REASON_")
    if reason == risk_pb2.RISK_REASON_TIMED_OUT:
        return OutcomeUnknown(_DEADLINE_EXCEEDED, message, name)
    return InvalidRequest(_FAILED_PRECONDITION, message, name)
