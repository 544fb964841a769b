"""Limits: what a rule may be, how rules merge, and that each ladder stops at its first reason."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.enums import Asset
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.refusal import Code
from riskd import limits
from riskd.limits import (
    AllotmentQuestion,
    Change,
    EngineLimits,
    Kills,
    LimitKind,
    LimitPlace,
    LimitSubject,
    RiskReason,
    Rule,
    RuleBook,
    RuleKey,
    WithdrawalQuestion,
    judge_allotment,
    judge_withdrawal,
)

PAIR = Instrument(price_band_ppm=200_000)
PAIRS = {PAIR.pair: PAIR}
EVERYONE = (LimitSubject.EVERYONE, "")
SEVEN = (LimitSubject.ACCOUNT, "7")
RETAIL = (LimitSubject.TIER, "retail")
EVERYWHERE = (LimitPlace.EVERYWHERE, "")
IN_PAIR = (LimitPlace.PAIR, "BTC-USDT")
IN_USDT = (LimitPlace.ASSET, "USDT")
IN_BTC = (LimitPlace.ASSET, "BTC")


def key(kind: LimitKind, subject: Any = EVERYONE, place: Any = EVERYWHERE) -> RuleKey:
    return RuleKey(kind, *subject, *place)


def book(*rules: tuple[RuleKey, int]) -> RuleBook:
    return RuleBook().changed([Change(name, value) for name, value in rules])


# What a rule may be.


@pytest.mark.parametrize("kind", limits.SHAPES)
def test_every_kind_takes_its_whole_range_and_nothing_beyond(kind: LimitKind) -> None:
    shape = limits.SHAPES[kind]
    place = {
        LimitPlace.EVERYWHERE: EVERYWHERE,
        LimitPlace.PAIR: IN_PAIR,
        LimitPlace.ASSET: IN_USDT,
    }[shape.places[0]]
    for value in (shape.least, shape.most):
        assert Rule(key(kind, EVERYONE, place), value).refusal(PAIRS) is None
    for value in (shape.least - 1, shape.most + 1):
        refusal = Rule(key(kind, EVERYONE, place), value).refusal(PAIRS)
        assert refusal is not None
        assert refusal.reason == "LIMIT_OUT_OF_RANGE"
        assert refusal.value == str(value)


def test_every_kind_has_a_shape() -> None:
    assert set(limits.SHAPES) == set(LimitKind) - {LimitKind.UNSPECIFIED}


def test_a_limit_that_the_engine_reads_as_none_cannot_be_set() -> None:
    engine = [k for k, shape in limits.SHAPES.items() if shape.checker == limits.Checker.ENGINE]
    assert engine
    assert all(limits.SHAPES[kind].least >= 1 for kind in engine)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (key(LimitKind.UNSPECIFIED), "LIMIT_KIND_INVALID"),
        (key(LimitKind.OPEN_ORDERS, (LimitSubject.UNSPECIFIED, "")), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.TOTAL_EXPOSURE, SEVEN, IN_USDT), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.PRICE_BAND_WIDTH, RETAIL, IN_PAIR), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.OPEN_ORDERS, (LimitSubject.EVERYONE, "7")), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.OPEN_ORDERS, (LimitSubject.TIER, "")), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.OPEN_ORDERS, (LimitSubject.TIER, "x" * 33)), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.OPEN_ORDERS, (LimitSubject.ACCOUNT, "")), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.OPEN_ORDERS, (LimitSubject.ACCOUNT, "007")), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.OPEN_ORDERS, (LimitSubject.ACCOUNT, "-1")), "LIMIT_SUBJECT_INVALID"),
        (key(LimitKind.OPEN_ORDERS, (LimitSubject.ACCOUNT, "٣")), "LIMIT_SUBJECT_INVALID"),
        (
            key(LimitKind.OPEN_ORDERS, (LimitSubject.ACCOUNT, str(1 << 31))),
            "LIMIT_SUBJECT_INVALID",
        ),
        (key(LimitKind.ORDER_LOTS, SEVEN, EVERYWHERE), "LIMIT_PLACE_INVALID"),
        (key(LimitKind.EXPOSURE, SEVEN, IN_PAIR), "LIMIT_PLACE_INVALID"),
        (key(LimitKind.OPEN_ORDERS, SEVEN, (LimitPlace.EVERYWHERE, "x")), "LIMIT_PLACE_INVALID"),
        (key(LimitKind.ORDER_LOTS, SEVEN, (LimitPlace.PAIR, "BTC-EUR")), "PAIR_UNKNOWN"),
        (key(LimitKind.EXPOSURE, SEVEN, (LimitPlace.ASSET, "EUR")), "ASSET_UNKNOWN"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(rule: RuleKey, reason: str) -> None:
    refusal = Rule(rule, 5).refusal(PAIRS)
    assert refusal is not None
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, reason)


# How rules merge.

_SUBJECTS = (EVERYONE, RETAIL, SEVEN, (LimitSubject.TIER, "vip"), (LimitSubject.ACCOUNT, "8"))
_PLACES = (EVERYWHERE, IN_PAIR, (LimitPlace.PAIR, "ETH-USDT"))


@given(
    st.dictionaries(st.sampled_from(list(itertools.product(_SUBJECTS, _PLACES))), st.integers(1, 9))
)
def test_the_strictest_of_all_that_fit_wins(given_rules: dict[Any, int]) -> None:
    rules = book(
        *[(key(LimitKind.OPEN_ORDERS, *where), value) for where, value in given_rules.items()]
    )
    fitting = [
        value
        for (subject, place), value in given_rules.items()
        if subject in {EVERYONE, RETAIL, SEVEN} and place in {EVERYWHERE, IN_PAIR}
    ]
    found = rules.limit(LimitKind.OPEN_ORDERS, 7, "retail", "BTC-USDT")
    assert found == min(fitting, default=None)


def test_of_equal_rules_the_most_particular_is_named() -> None:
    rules = book(
        (key(LimitKind.OPEN_ORDERS), 5),
        (key(LimitKind.OPEN_ORDERS, RETAIL), 5),
        (key(LimitKind.OPEN_ORDERS, SEVEN, IN_PAIR), 5),
    )
    found = rules.strictest(LimitKind.OPEN_ORDERS, 7, "retail", "BTC-USDT")
    assert found is not None
    assert found.key.subject == LimitSubject.ACCOUNT


def test_an_account_cannot_be_given_more_than_its_tier() -> None:
    rules = book((key(LimitKind.OPEN_ORDERS, RETAIL), 5), (key(LimitKind.OPEN_ORDERS, SEVEN), 50))
    assert rules.limit(LimitKind.OPEN_ORDERS, 7, "retail", "BTC-USDT") == 5
    assert rules.limit(LimitKind.OPEN_ORDERS, 7, "vip", "BTC-USDT") == 50


def test_a_limit_of_zero_is_not_the_absence_of_a_limit() -> None:
    rules = book((key(LimitKind.EXPOSURE, SEVEN, IN_USDT), 0))
    assert rules.limit(LimitKind.EXPOSURE, 7, asset="USDT") == 0
    assert rules.limit(LimitKind.EXPOSURE, 8, asset="USDT") is None


def test_a_book_is_never_changed_and_counts_its_versions() -> None:
    rule = key(LimitKind.OPEN_ORDERS)
    first = book((rule, 5))
    second = first.changed([Change(rule, None)])
    assert (first.version, second.version) == (1, 2)
    assert first.limit(LimitKind.OPEN_ORDERS) == 5
    assert second.limit(LimitKind.OPEN_ORDERS) is None
    assert second.changed([Change(rule, None)]).version == 3


def test_what_an_engine_is_told() -> None:
    rules = book(
        (key(LimitKind.ORDER_LOTS, SEVEN, IN_PAIR), 100),
        (key(LimitKind.ORDER_NOTIONAL, EVERYONE, IN_PAIR), 900),
        (key(LimitKind.ORDER_NOTIONAL, EVERYONE, IN_USDT), 800),
        (key(LimitKind.ORDER_NOTIONAL, EVERYONE, IN_BTC), 1),
        (key(LimitKind.OPEN_ORDERS, RETAIL), 20),
    )
    # BTC is not what the pair is quoted in, so its limit does not bind.
    assert rules.engine_limits(7, "retail", PAIR) == EngineLimits(100, 800, 20)
    assert rules.engine_limits(8, "", PAIR) == EngineLimits(0, 800, 0)


def test_the_band_is_the_instruments_or_narrower() -> None:
    width = key(LimitKind.PRICE_BAND_WIDTH)
    assert book().band_width_ppm(PAIR) == 200_000
    assert book((width, 100_000)).band_width_ppm(PAIR) == 100_000
    assert book((width, 300_000)).band_width_ppm(PAIR) == 200_000
    assert book((width, 300_000)).band_width_ppm(replace(PAIR, price_band_ppm=0)) == 300_000
    assert book().band_width_ppm(replace(PAIR, price_band_ppm=0)) == 0


def test_the_band_around_a_price_stays_inside_the_prices() -> None:
    highest = PAIR.price_capacity_ticks - 1
    assert limits.band_around(PAIR, 1_000, 100_000) == (900, 1_100)
    assert limits.band_around(PAIR, 1, 1_000_000) == (1, 2)
    assert limits.band_around(PAIR, highest, 500_000) == (highest - highest // 2, highest)
    assert limits.band_around(PAIR, 0, 100_000) == (1, highest)
    assert limits.band_around(PAIR, 1_000, 0) == (1, highest)


# The ladders. Everything is wrong at first; mending one thing after the other must show every
# reason, in the documented order.

ALLOTMENT_LADDER: list[tuple[RiskReason, dict[str, Any]]] = [
    (RiskReason.ACCOUNT_INVALID, {"account": 7}),
    (RiskReason.PAIR_UNKNOWN, {"pair_known": True}),
    (RiskReason.ASSET_UNKNOWN, {"asset": Asset.QUOTE}),
    (RiskReason.AMOUNT_OUT_OF_RANGE, {"amount_units": 10}),
    (RiskReason.EVERYTHING_KILLED, {"kills": Kills(pair=True, account=True)}),
    (RiskReason.PAIR_KILLED, {"kills": Kills(account=True)}),
    (RiskReason.ACCOUNT_KILLED, {"kills": Kills()}),
    (RiskReason.FEED_STALE, {"feed_stale": False}),
    (RiskReason.SETTLEMENT_LATE, {"settlement_late": False}),
    (RiskReason.POSITION_LIMIT, {"position_units": 4}),
    (RiskReason.EXPOSURE_LIMIT, {"exposure_limit": 100}),
    (RiskReason.TOTAL_EXPOSURE_LIMIT, {"total_exposure_limit": 1_000}),
]
WRONG_ALLOTMENT = AllotmentQuestion(
    account=0,
    pair_known=False,
    asset=0,
    amount_units=0,
    kills=Kills(everything=True, pair=True, account=True),
    feed_stale=True,
    settlement_late=True,
    buys=True,
    position_units=5,
    position_limit=5,
    exposure_units=90,
    exposure_limit=99,
    total_exposure_units=990,
    total_exposure_limit=999,
)


def test_an_allotment_is_judged_in_the_documented_order() -> None:
    question = WRONG_ALLOTMENT
    for reason, mended in ALLOTMENT_LADDER:
        assert judge_allotment(question) == reason
        question = replace(question, **mended)
    assert judge_allotment(question) == RiskReason.UNSPECIFIED


@pytest.mark.parametrize("reason", [reason for reason, _ in ALLOTMENT_LADDER])
def test_each_reason_alone_is_enough_to_refuse_an_allotment(reason: RiskReason) -> None:
    question = WRONG_ALLOTMENT
    for other, mended in ALLOTMENT_LADDER:
        if other != reason and "kills" not in mended:
            question = replace(question, **mended)
    alone = {
        RiskReason.EVERYTHING_KILLED: Kills(everything=True),
        RiskReason.PAIR_KILLED: Kills(pair=True),
        RiskReason.ACCOUNT_KILLED: Kills(account=True),
    }
    question = replace(question, kills=alone.get(reason, Kills()))
    assert judge_allotment(question) == reason


@pytest.mark.parametrize("account", [0, -1, 1 << 31])
def test_account_numbers_that_no_command_can_carry(account: int) -> None:
    assert judge_allotment(AllotmentQuestion(account, True, 1, 1)) == RiskReason.ACCOUNT_INVALID
    assert judge_withdrawal(WithdrawalQuestion(account, True, 1)) == RiskReason.ACCOUNT_INVALID


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_LIMIT_UNITS + 1])
def test_amounts_that_are_none(amount: int) -> None:
    reason = RiskReason.AMOUNT_OUT_OF_RANGE
    assert judge_allotment(AllotmentQuestion(7, True, 1, amount)) == reason
    assert judge_withdrawal(WithdrawalQuestion(7, True, amount)) == reason


def test_money_that_cannot_buy_more_is_not_held_back_by_the_position() -> None:
    question = AllotmentQuestion(7, True, Asset.BASE, 1, position_units=5, position_limit=5)
    assert judge_allotment(question) == RiskReason.UNSPECIFIED


def test_a_limit_may_be_reached_and_not_passed() -> None:
    question = AllotmentQuestion(7, True, 2, 10, exposure_units=90, exposure_limit=100)
    assert judge_allotment(question) == RiskReason.UNSPECIFIED
    assert judge_allotment(replace(question, amount_units=11)) == RiskReason.EXPOSURE_LIMIT


def test_a_withdrawal_is_judged_in_the_documented_order() -> None:
    question = WithdrawalQuestion(
        account=0,
        asset_known=False,
        amount_units=0,
        kills=Kills(everything=True, account=True),
        withdrawn_units=95,
        withdrawal_limit=100,
        total_withdrawn_units=995,
        total_withdrawal_limit=1_000,
    )
    ladder: list[tuple[RiskReason, dict[str, Any]]] = [
        (RiskReason.ACCOUNT_INVALID, {"account": 7}),
        (RiskReason.ASSET_UNKNOWN, {"asset_known": True}),
        (RiskReason.AMOUNT_OUT_OF_RANGE, {"amount_units": 10}),
        (RiskReason.EVERYTHING_KILLED, {"kills": Kills(account=True)}),
        (RiskReason.ACCOUNT_KILLED, {"kills": Kills()}),
        (RiskReason.DAILY_WITHDRAWAL_LIMIT, {"withdrawn_units": 90}),
        (RiskReason.TOTAL_WITHDRAWAL_LIMIT, {"total_withdrawn_units": 990}),
    ]
    for reason, mended in ladder:
        assert judge_withdrawal(question) == reason
        question = replace(question, **mended)
    assert judge_withdrawal(question) == RiskReason.UNSPECIFIED


def test_every_reason_has_a_sentence_and_a_code() -> None:
    assert set(limits.SENTENCES) == set(RiskReason) - {RiskReason.UNSPECIFIED}
    for reason in limits.SENTENCES:
        refusal = limits.refusal_of(reason)
        assert refusal.reason == reason.name
    assert limits.refusal_of(RiskReason.EXPOSURE_LIMIT).code == Code.FAILED_PRECONDITION
    assert limits.refusal_of(RiskReason.FEED_STALE).code == Code.UNAVAILABLE
    assert limits.refusal_of(RiskReason.PAIR_UNKNOWN).code == Code.INVALID_ARGUMENT
