"""What the risk service shows of itself, as messages. Reads, and changes nothing."""

from collections.abc import Mapping
from typing import Final

from exchange.enums import Asset
from exchange.v1 import risk_pb2
from riskd.desk import Desk
from riskd.funds import exposure
from riskd.funds.holdings import Certainty
from riskd.limits import LimitKind, Rule, asset_name
from riskd.settings import Scope, Settings

MILLION: Final = 1_000_000


def limit_message(rule: Rule) -> risk_pb2.RiskLimit:
    """Return a limit as it is shown."""
    key = risk_pb2.LimitKey(
        kind=int(rule.key.kind),  # type: ignore[arg-type]
        subject=int(rule.key.subject),  # type: ignore[arg-type]
        subject_name=rule.key.subject_name,
        place=int(rule.key.place),  # type: ignore[arg-type]
        place_name=rule.key.place_name,
    )
    return risk_pb2.RiskLimit(key=key, value=rule.value)


def exposure_message(
    desk: Desk,
    settings: Settings,
    account: int,
    trading: Mapping[str, int],
    withdrawn: Mapping[str, int],
) -> risk_pb2.GetExposureResponse:
    """Return where an account's money is; trading and withdrawn units are by asset."""
    answer = risk_pb2.GetExposureResponse()
    for pair, item in sorted(desk.machine.holdings.items()):
        if account >= item.instrument.account_capacity:
            continue
        for asset in (Asset.BASE, Asset.QUOTE):
            place = (account, asset - 1)
            shown = risk_pb2.PairExposure(
                pair=pair,
                asset=asset_name(item.instrument, asset),
                total_units=int(item.total[place]),
                free_units=int(item.free[place]),
                free_exact=int(item.certainty[place]) == Certainty.EXACT,
                in_flight_units=exposure.in_flight(desk.machine, account, pair, asset),
                target_units=desk.machine.targets.get((account, pair, asset), 0),
                sequence=item.sequence,
            )
            if shown.total_units or shown.in_flight_units or shown.target_units:
                answer.pairs.append(shown)
    for name in sorted(trading):
        used = {
            LimitKind.POSITION: exposure.position(desk.machine, account, name, trading[name]),
            LimitKind.EXPOSURE: exposure.exposure(desk.machine, account, name),
            LimitKind.DAILY_WITHDRAWAL: withdrawn[name],
        }
        for kind, units in used.items():
            rule = settings.rules.strictest(kind, account, settings.tier(account), asset=name)
            if rule is not None:
                # Nothing of nothing is nothing; anything of nothing is too much.
                share = units * MILLION // rule.value if rule.value else (units and MILLION + 1)
                use = risk_pb2.LimitUse(limit=limit_message(rule), used_units=units, used_ppm=share)
                answer.uses.append(use)
    return answer


def status_message(desk: Desk, settings: Settings) -> risk_pb2.GetRiskStatusResponse:
    """Return how every pair stands, what is wrong, and what is stopped."""
    pairs = []
    for pair, item in sorted(desk.machine.holdings.items()):
        heard, numbers = desk.heard[pair], desk.machine.numbers[pair]
        alarms = [
            risk_pb2.RaisedAlarm(
                alarm=int(raised.alarm),  # type: ignore[arg-type]
                message=raised.sentence,
                since_ns=raised.since_ns,
            )
            for raised in desk.alarms.of(pair)
        ]
        pairs.append(
            risk_pb2.PairRiskStatus(
                pair=pair,
                cursor=item.cursor,
                committed_number=heard.committed_number,
                settled_number=heard.settled_number,
                transfer_number=item.transfer_number,
                open_move_count=len(numbers.moves),
                killed=settings.halted(pair),
                alarms=alarms,
                allotment_request_count=heard.request_count,
            )
        )
    killed = [
        int(name)
        for (scope, name), state in settings.kills.items()
        if scope == Scope.ACCOUNT and state.killed
    ]
    return risk_pb2.GetRiskStatusResponse(
        pairs=pairs,
        limits_version=settings.rules.version,
        killed_accounts=sorted(killed),
        everything_killed=settings.kills_of(0).everything,
    )
