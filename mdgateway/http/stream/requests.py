"""What a WebSocket client may ask, judged before anything is done; pure.

A request is a JSON object with known fields only. What is wrong with it is raised as ``Refused``,
which names field, value and limit; a request is good as a whole or refused as a whole.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from exchange.refusal import Code, Refusal, Refused
from mdgateway.feed.candles import Interval
from mdgateway.feed.records import FULL, Place
from mdgateway.feed.requests import DEFAULT_LEVEL_COUNT, STREAM_LEVEL_COUNTS
from mdgateway.keys.tiers import CHANNELS, Tier

PAIRS_LIMIT: Final = 100
ID_CHARACTERS: Final = 64
KEY_CHARACTERS: Final = 200
INTERVALS_MS: Final = (0, 50, 100, 250, 500, 1_000)
"""A few, so that subscribers share what is encoded."""
DEFAULT_INTERVAL_MS: Final = 100
NUMBER_LIMIT: Final = 1 << 53
"""Whole numbers beyond are not exact in JavaScript."""
FULL_TEXT: Final = "full"

_CONFLATED: Final = frozenset({"depth", "ticker", "candles"})
_OWN_FIELDS: Final = {
    "depth": frozenset({"levels", "interval_ms", "only_snapshots", "held_epoch", "held_sequence"}),
    "ticker": frozenset({"interval_ms"}),
    "trades": frozenset({"from_trade_number", "held_time_ns"}),
    "candles": frozenset({"interval", "interval_ms"}),
    "status": frozenset[str](),
    "orders": frozenset({"held_epoch", "held_position"}),
    "heartbeat": frozenset[str](),
}
HELD_FIELDS: Final = {"depth": "held_sequence", "orders": "held_position"}
"""What a returning client names beside `held_epoch`, by channel."""
_FIELDS: Final = {
    "subscribe": frozenset({"op", "id", "channel", "pairs"}),
    "unsubscribe": frozenset({"op", "id", "channel", "pairs", "interval"}),
    "ping": frozenset({"op", "id"}),
    "authenticate": frozenset({"op", "id", "key"}),
}

Id = int | str | None


class Spec(NamedTuple):
    """What is subscribed to of each pair; equal ones are told the same bytes."""

    channel: str
    detail: int = 0
    """depth: levels a side or FULL; candles: the Interval; otherwise 0."""
    interval_ms: int = 0
    only_snapshots: bool = False


class Subscribe(NamedTuple):
    """Asks for a channel of some pairs."""

    id: Id
    spec: Spec
    pairs: tuple[str, ...]
    place: Place | None = None
    """Where to go on; None: from now."""


class Unsubscribe(NamedTuple):
    """Ends a channel of some pairs."""

    id: Id
    channel: str
    detail: int
    """candles: the Interval; otherwise 0."""
    pairs: tuple[str, ...]


class Ping(NamedTuple):
    """Asks for an answer."""

    id: Id


class Authenticate(NamedTuple):
    """Shows a key."""

    id: Id
    key: str


Request = Subscribe | Unsubscribe | Ping | Authenticate


class BadRequest(Refused):
    """A refusal of a request, with the request's id as far as it could be read."""

    def __init__(self, request_id: Id, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.request_id = request_id


def parse(text: str, pairs: Collection[str], tier: Tier) -> Request:
    """Return a client's message as a request; raises BadRequest."""
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        refusal = Refusal(
            Code.INVALID_ARGUMENT, "MESSAGE_MALFORMED", "the message is no JSON object"
        )
        raise BadRequest(None, refusal) from None
    request_id: Id = None
    try:
        if not isinstance(content, dict):
            raise _refused("MESSAGE_MALFORMED", "message", text, "a JSON object")
        request_id = _id(content)
        return _request(request_id, content, pairs, tier)
    except Refused as refused:
        raise BadRequest(request_id, refused.refusal) from None


def _request(
    request_id: Id, content: Mapping[str, Any], pairs: Collection[str], tier: Tier
) -> Request:
    op = content.get("op")
    if not isinstance(op, str) or op not in _FIELDS:
        raise _refused("OP_UNKNOWN", "op", op, f"one of {', '.join(_FIELDS)}")
    known = _FIELDS[op]
    if op == "ping":
        _only(content, known)
        return Ping(request_id)
    if op == "authenticate":
        _only(content, known)
        key = content.get("key")
        if not isinstance(key, str) or not 0 < len(key) <= KEY_CHARACTERS:
            limit = f"text of at most {KEY_CHARACTERS} characters"
            # The value is not repeated: a mistyped key is nearly a key.
            raise Refused(
                Refusal(
                    Code.INVALID_ARGUMENT, "KEY_INVALID", f"key must be {limit}", "key", "", limit
                )
            )
        return Authenticate(request_id, key)
    channel = _channel(content)
    if op == "unsubscribe":
        _only(content, known)
        detail = _interval(content) if channel == "candles" else 0
        return Unsubscribe(request_id, channel, detail, _pairs(content, pairs))
    _only(content, known | _OWN_FIELDS[channel])
    if channel not in tier.channels:
        raise _refused(
            "TIER_TOO_LOW",
            "channel",
            channel,
            f"one of {', '.join(tier.channels)} for the tier {tier.name}",
            Code.PERMISSION_DENIED,
        )
    asked = _pairs(content, pairs)
    place: Place | None = None
    if channel == "trades":
        place = _trades_place(content, asked)
    elif channel in HELD_FIELDS:
        place = _held(content, HELD_FIELDS[channel], asked)
    return Subscribe(request_id, _spec(channel, content, tier), asked, place)


def _spec(channel: str, content: Mapping[str, Any], tier: Tier) -> Spec:
    interval_ms = _interval_ms(content, tier) if channel in _CONFLATED else 0
    if channel == "depth":
        only_snapshots = content.get("only_snapshots", False)
        if not isinstance(only_snapshots, bool):
            raise _refused("FIELD_INVALID", "only_snapshots", only_snapshots, "true or false")
        return Spec(channel, _levels(content, tier), interval_ms, only_snapshots)
    detail = _interval(content) if channel == "candles" else 0
    return Spec(channel, detail, interval_ms)


def _id(content: Mapping[str, Any]) -> Id:
    given = content.get("id")
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) < NUMBER_LIMIT:
        return given
    if isinstance(given, str) and len(given) <= ID_CHARACTERS:
        return given
    limit = f"a whole number below 2^53 or text of at most {ID_CHARACTERS} characters"
    raise _refused("ID_INVALID", "id", given, limit)


def _only(content: Mapping[str, Any], known: frozenset[str]) -> None:
    for field in content:
        if field not in known:
            raise _refused("FIELD_UNKNOWN", "field", field, f"one of {', '.join(sorted(known))}")


def _channel(content: Mapping[str, Any]) -> str:
    channel = content.get("channel")
    if not isinstance(channel, str) or channel not in CHANNELS:
        raise _refused("CHANNEL_UNKNOWN", "channel", channel, f"one of {', '.join(CHANNELS)}")
    return channel


def _pairs(content: Mapping[str, Any], known: Collection[str]) -> tuple[str, ...]:
    given = content.get("pairs")
    limit = f"a list of 1 to {PAIRS_LIMIT} pairs, each once"
    if not isinstance(given, list) or not 0 < len(given) <= PAIRS_LIMIT:
        shown = f"{len(given)} pairs" if isinstance(given, list) else given
        raise _refused("PAIRS_INVALID", "pairs", shown, limit)
    for pair in given:
        if not isinstance(pair, str) or pair not in known:
            raise _refused("PAIR_UNKNOWN", "pair", pair, f"one of {', '.join(sorted(known))}")
    if len(set(given)) != len(given):
        raise _refused("PAIRS_INVALID", "pairs", ", ".join(given), limit)
    return tuple(given)


def _levels(content: Mapping[str, Any], tier: Tier) -> int:
    given = content.get("levels", DEFAULT_LEVEL_COUNT)
    offered = [count for count in STREAM_LEVEL_COUNTS if count <= tier.level_limit]
    if given == FULL_TEXT and tier.full_depth:
        return FULL
    if not _is_whole(given) or given not in offered:
        names = ", ".join(map(str, offered)) + (f', "{FULL_TEXT}"' if tier.full_depth else "")
        above = given == FULL_TEXT or given in STREAM_LEVEL_COUNTS
        limit = f"one of {names}" + (f" for the tier {tier.name}" if above else "")
        raise _refused("LEVEL_COUNT_OUT_OF_RANGE", "levels", given, limit)
    return int(given)


def _interval_ms(content: Mapping[str, Any], tier: Tier) -> int:
    given = content.get("interval_ms", max(DEFAULT_INTERVAL_MS, tier.shortest_interval_ms))
    offered = [one for one in INTERVALS_MS if one >= tier.shortest_interval_ms]
    if not _is_whole(given) or given not in offered:
        limit = f"one of {', '.join(map(str, offered))} for the tier {tier.name}"
        raise _refused("INTERVAL_OUT_OF_RANGE", "interval_ms", given, limit)
    return int(given)


def _interval(content: Mapping[str, Any]) -> int:
    return int(candle_interval(content.get("interval", Interval.MINUTE.text)))


def candle_interval(given: object) -> Interval:
    """Return the interval of candles of that name; raises Refused."""
    for interval in Interval:
        if interval.text == given:
            return interval
    names = ", ".join(interval.text for interval in Interval)
    raise _refused("INTERVAL_OUT_OF_RANGE", "interval", given, f"one of {names}")


def _from_trade_number(content: Mapping[str, Any]) -> int:
    if "from_trade_number" not in content:
        return 0
    given = content["from_trade_number"]
    if not _is_whole(given) or not 1 <= given < NUMBER_LIMIT:
        limit = "the number of a trade, from 1"
        raise _refused("TRADE_NUMBER_OUT_OF_RANGE", "from_trade_number", given, limit)
    return int(given)


def _trades_place(content: Mapping[str, Any], pairs: tuple[str, ...]) -> Place | None:
    """Return the first trade wanted, with the time of the one before it if that was given."""
    number = _from_trade_number(content)
    given = content.get("held_time_ns")
    if given is None:
        return number or None
    text = given if isinstance(given, str) else ""
    if number < 2 or not (text.isascii() and text.isdigit() and len(text) < 20):
        limit = "nanoseconds as text, of the trade before a from_trade_number above 1"
        raise _refused("FIELD_INVALID", "held_time_ns", given, limit)
    if len(pairs) != 1:
        limit = "one pair with held_time_ns: each pair has a place of its own"
        raise _refused("PAIRS_INVALID", "pairs", ", ".join(pairs), limit)
    return number, int(text)


def _held(content: Mapping[str, Any], field: str, pairs: tuple[str, ...]) -> tuple[int, int] | None:
    """Return what a returning client took last of its one pair: the epoch, and `field`."""
    names = ("held_epoch", field)
    if not any(name in content for name in names):
        return None
    for name in names:
        given: Any = content.get(name)
        least = 1 if name == "held_epoch" else 0
        if not _is_whole(given) or not least <= given < NUMBER_LIMIT:
            limit = f"a whole number from {least}, given together with {' and '.join(names)}"
            raise _refused("FIELD_INVALID", name, given, limit)
    if len(pairs) != 1:
        limit = f"one pair with {field}: each pair has a place of its own"
        raise _refused("PAIRS_INVALID", "pairs", ", ".join(pairs), limit)
    return int(content["held_epoch"]), int(content[field])


def _is_whole(given: object) -> bool:
    # JSON's true is no number, though Python's is.
    return isinstance(given, int) and not isinstance(given, bool)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _refused(
    reason: str, field: str, value: object, limit: str, code: Code = Code.INVALID_ARGUMENT
) -> Refused:
    shown = json.dumps(value) if isinstance(value, bool | None | list | dict) else value
    refusal = Refusal.of_field(reason, field, shown, limit)
    if code is not refusal.code:
        refusal = Refusal(code, *_words(refusal))
    return Refused(refusal)


def _words(refusal: Refusal) -> tuple[str, str, str, str, str]:
    return refusal.reason, refusal.message, refusal.field, refusal.value, refusal.limit
