"""Whatever a WebSocket client sends: a request that fits its tier, or a refusal with a reason."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from mdgateway.feed.records import FULL
from mdgateway.http.json_format import dumps, refusal_fields
from mdgateway.http.stream.requests import (
    INTERVALS_MS,
    PAIRS_LIMIT,
    Authenticate,
    BadRequest,
    Ping,
    Subscribe,
    Unsubscribe,
    parse,
)
from mdgateway.keys.tiers import CHANNELS, TIERS, Tier

PAIRS = ("BTC-USDT", "ETH-USDT", "SOL-USDT")

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def nearly(good: "st.SearchStrategy[Any]") -> "st.SearchStrategy[Any]":
    return st.one_of(good, good, good, anything)


requests = st.fixed_dictionaries(
    {"op": nearly(st.sampled_from(("subscribe", "unsubscribe", "ping", "authenticate")))},
    optional={
        "id": nearly(st.integers(0, 99)),
        "channel": nearly(st.sampled_from(CHANNELS)),
        "pairs": nearly(st.lists(st.sampled_from(PAIRS), max_size=4)),
        "levels": nearly(st.sampled_from((5, 20, 1_000, "full"))),
        "interval_ms": nearly(st.sampled_from(INTERVALS_MS)),
        "interval": nearly(st.sampled_from(("1s", "1m", "1w"))),
        "only_snapshots": nearly(st.booleans()),
        "from_trade_number": nearly(st.integers(1, 1 << 40)),
        "key": nearly(st.just("hmd_x")),
        "more": anything,
    },
)
tiers = st.sampled_from(list(TIERS.values()))


def judge(text: str, tier: Tier) -> None:
    """Take a message as the door does and look at what comes of it."""
    try:
        request = parse(text, PAIRS, tier)
    except BadRequest as refused:
        fields = refusal_fields(refused.refusal)
        assert fields["reason"].isupper()
        assert fields["message"]
        assert len(fields["value"]) <= 101
        json.loads(dumps(fields | {"id": refused.request_id}))
        return
    match request:
        case Subscribe():
            spec = request.spec
            assert spec.channel in tier.channels
            assert 0 < len(request.pairs) <= PAIRS_LIMIT
            assert set(request.pairs) <= set(PAIRS)
            assert spec.detail <= tier.level_limit
            assert spec.detail != FULL or tier.full_depth
            if spec.channel in {"depth", "ticker", "candles"}:
                assert spec.interval_ms >= tier.shortest_interval_ms
        case Unsubscribe():
            assert request.channel in CHANNELS
        case Ping() | Authenticate():
            pass


@given(requests, tiers)
@example(
    {"op": "subscribe", "channel": "depth", "pairs": ["BTC-USDT"], "levels": True}, TIERS["basic"]
)
def test_requests_that_are_nearly_good(request: dict[str, Any], tier: Tier) -> None:
    judge(json.dumps(request), tier)


@given(st.text(max_size=300), tiers)
@example("1" * 4_096, TIERS["basic"])
@example("[" * 4_096, TIERS["basic"])
@example('{"op":"ping","id":1e999}', TIERS["basic"])
def test_text_of_any_kind(text: str, tier: Tier) -> None:
    judge(text, tier)


@given(requests, st.data())
def test_good_ones_are_not_refused(request: dict[str, Any], data: st.DataObject) -> None:
    """The fuzz reaches good requests: a parser that refused everything would not pass."""
    channel = data.draw(st.sampled_from(CHANNELS))
    pairs = data.draw(st.lists(st.sampled_from(PAIRS), min_size=1, unique=True))
    text = json.dumps({"op": "subscribe", "channel": channel, "pairs": pairs})
    parsed = parse(text, PAIRS, TIERS["professional"])
    assert isinstance(parsed, Subscribe)
    assert (parsed.spec.channel, list(parsed.pairs)) == (channel, pairs)
