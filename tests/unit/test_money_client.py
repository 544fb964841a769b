"""The pure parts of the money client: amounts, words, sums, moments, and the Merkle proof.

What needs the services on the other side is in tests/integration/test_money_client.py.
"""

import dataclasses
import hashlib
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.v1 import funds_pb2, ledger_pb2, risk_pb2
from holdfast.errors import InvalidRequest
from holdfast.money import words
from holdfast.money.amounts import (
    amount_text,
    decimal_of,
    decimals_in,
    plain,
    shortest,
    units_of,
)
from holdfast.money.answers import Balance, Balances, PairSequence, TrialBalance, TrialLine
from holdfast.money.books import moment
from holdfast.money.liabilities import SUM_LIMIT, LiabilityProof, Step
from holdfast.money.risk import COUNTED, UNITS, asset_of
from ledgerd.chart import OwnerKind, Purpose
from ledgerd.reserves import merkle

# Amounts.


@pytest.mark.parametrize("amount", [0.1, 1.0, 1, True, None, b"1", float("nan")])
def test_an_amount_that_is_neither_text_nor_decimal_is_a_type_error(amount: Any) -> None:
    with pytest.raises(TypeError, match=r"amount is .* it must be decimal text or decimal.Decimal"):
        amount_text(amount)
    with pytest.raises(TypeError, match="value is"):
        units_of(amount, 8, "value")


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Decimal("1E+2"), "100"),
        (Decimal("1E-8"), "0.00000001"),
        (Decimal("0.10"), "0.10"),
        ("0.10", "0.10"),
    ],
)
def test_a_decimal_is_written_without_an_exponent(amount: Decimal | str, text: str) -> None:
    assert amount_text(amount) == text


@pytest.mark.parametrize("amount", [Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity")])
def test_what_is_no_number_is_no_amount(amount: Decimal) -> None:
    with pytest.raises(InvalidRequest, match="must be a finite number"):
        amount_text(amount)


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        ("", "AMOUNT_INVALID"),
        ("-1", "AMOUNT_INVALID"),
        (Decimal(-1), "AMOUNT_INVALID"),
        ("1e5", "AMOUNT_INVALID"),
        ("1,000", "AMOUNT_INVALID"),
        ("0.000000001", "AMOUNT_INVALID"),
        ("0", "AMOUNT_OUT_OF_RANGE"),
        ("0.000", "AMOUNT_OUT_OF_RANGE"),
        ("92233720368.54775808", "AMOUNT_OUT_OF_RANGE"),
    ],
)
def test_an_impossible_amount_is_refused_with_field_and_limit(amount: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        units_of(amount, 8)
    error = caught.value
    assert (error.reason, error.field, error.value) == (reason, "amount", amount_text(amount))
    assert error.limit
    assert str(error) == f"{reason}: amount is {error.value!r}; it must be {error.limit}"


@given(st.integers(0, 2**63 - 1), st.integers(0, 18))
def test_units_and_decimals_are_the_same_amount(units: int, decimals: int) -> None:
    amount = decimal_of(units, decimals)
    assert amount.scaleb(decimals) == units
    assert units_of(amount, decimals, least_units=0) == units
    assert decimals_in(plain(amount)) == decimals


def test_an_amount_can_be_written_without_needless_zeros() -> None:
    amounts = ("0.10000000", "100.00000000", "100", "0.00000000", "1.00000001")
    shown = [shortest(Decimal(amount)) for amount in amounts]
    assert shown == ["0.1", "100", "100", "0", "1.00000001"]


def test_zero_can_be_allowed() -> None:
    assert units_of("0.0", 8, least_units=0) == 0


# Words.


def test_every_number_of_the_contract_has_one_word() -> None:
    for vocabulary, enumeration in (
        (words.OWNER_KINDS, ledger_pb2.OwnerKind),
        (words.PURPOSES, ledger_pb2.AccountPurpose),
        (words.LIMIT_KINDS, risk_pb2.LimitKind),
        (words.WITHDRAWAL_STATES, funds_pb2.WithdrawalState),
    ):
        numbers = [vocabulary.number("field", word) for word in vocabulary.words]
        assert sorted(numbers) == sorted(number for number in enumeration.values() if number)
        assert [vocabulary.word(number) for number in numbers] == list(vocabulary.words)
    assert words.PURPOSES.number("purpose", "third-party") == Purpose.THIRD_PARTY
    assert words.OWNER_KINDS.number("owner_kind", "market-maker") == OwnerKind.MARKET_MAKER


def test_an_unknown_word_is_refused_with_all_that_are_known() -> None:
    with pytest.raises(InvalidRequest, match="purpose is 'pocket'; it must be funding or trading"):
        words.PURPOSES.number("purpose", "pocket")
    assert words.PURPOSES.word(99) == "99"


# Sums and moments.


def test_balances_are_gathered_by_asset_to_the_last_unit() -> None:
    lines = [
        Balance("BTC", "funding", "", Decimal("0.00000001"), 1),
        Balance("BTC", "trading", "", Decimal("92233720368.54775807"), 1),
        Balance("BTC", "allotted", "BTC-USDT", Decimal("1.00000000"), 1),
        Balance("BTC", "allotted", "BTC-EUR", Decimal("2.00000000"), 1),
        Balance("BTC", "suspense", "BTC-USDT", Decimal("3.00000000"), 1),
        Balance("BTC", "suspense", "", Decimal("4.00000000"), 1),
        Balance("BTC", "staking", "", Decimal("5.00000000"), 1),
        Balance("USDT", "funding", "", Decimal("7.00000000"), 1),
    ]
    bitcoin, tether = Balances(1, tuple(lines)).by_asset()
    assert (bitcoin.funding, bitcoin.in_flight) == (Decimal("0.00000001"), Decimal(7))
    assert bitcoin.engines == {"BTC-USDT": Decimal(1), "BTC-EUR": Decimal(2)}
    assert (bitcoin.in_engines, bitcoin.other) == (Decimal(3), {"staking": Decimal(5)})
    assert plain(bitcoin.total) == "92233720383.54775808"
    assert (plain(tether.trading), plain(tether.total)) == ("0.00000000", "7.00000000")
    assert Balances(1, ()).of("BTC").total == 0


def test_a_trial_balance_is_summed_by_whoever_reads_it() -> None:
    lines = [
        TrialLine("BTC", "funding", Decimal(3), 1),
        TrialLine("BTC", "custody", Decimal(-3), 1),
        TrialLine("ETH", "funding", Decimal(1), 1),
    ]
    assert TrialBalance(tuple(lines), True).sums() == {"BTC": Decimal(0), "ETH": Decimal(1)}


def test_a_moment_is_exact_to_the_microsecond_in_any_zone() -> None:
    summer = timezone(timedelta(hours=2))
    at = datetime(2026, 11, 23, 14, 0, 0, 123457, summer)
    assert moment(at).time_ns == 1_795_435_200_123_457_000
    assert moment(at.astimezone(UTC)) == moment(at)
    sequence = moment(PairSequence("BTC-USDT", 7)).pair_sequence
    assert (sequence.pair, sequence.sequence) == ("BTC-USDT", 7)
    with pytest.raises(InvalidRequest, match="must be a time with its time zone"):
        moment(at.replace(tzinfo=None))


def test_every_limit_is_a_count_with_a_unit_or_an_amount_of_an_asset() -> None:
    assert set(UNITS) == COUNTED
    assert set(words.LIMIT_KINDS.words) > COUNTED
    assert asset_of("pair", "BTC-USDT") == "USDT"
    assert asset_of("asset", "BTC") == "BTC"


# Proofs of what is owed: made by the ledger's program, checked by ours.

OWED = st.lists(st.integers(0, 2**50), min_size=1, max_size=40)


def proof_of(amounts: list[int], place: int) -> tuple[LiabilityProof, merkle.Node]:
    leaves = [
        merkle.Leaf(number, amount, number.to_bytes(merkle.NONCE_BYTES, "big"))
        for number, amount in enumerate(amounts)
    ]
    levels = merkle.tree(leaves)
    root = levels[-1][0]
    steps = [
        Step(step.sibling.hash, step.sibling.total, step.left)
        for step in merkle.proof(levels, place)
    ]
    leaf = leaves[place]
    given = (leaf.owner_id, leaf.amount, leaf.nonce, tuple(steps), root.hash, root.total)
    return LiabilityProof(1, *given), root


@given(OWED, st.data())
def test_an_honest_proof_leads_to_the_root(amounts: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(amounts) - 1))
    proof, root = proof_of(amounts, place)
    assert proof.complaint(root.hash, root.total) == ""


@given(st.lists(st.integers(1, 2**50), min_size=2, max_size=40), st.data())
def test_no_part_of_a_proof_can_be_changed(amounts: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(amounts) - 1))
    proof, root = proof_of(amounts, place)
    chosen = data.draw(st.integers(0, len(proof.steps) - 1))
    step = proof.steps[chosen]

    def with_step(changed: Step) -> LiabilityProof:
        steps = (*proof.steps[:chosen], changed, *proof.steps[chosen + 1 :])
        return dataclasses.replace(proof, steps=steps)

    for forged in (
        dataclasses.replace(proof, owner_id=proof.owner_id + 1),
        dataclasses.replace(proof, amount_units=proof.amount_units - 1),
        dataclasses.replace(proof, amount_units=-proof.amount_units),
        dataclasses.replace(proof, nonce=bytes(16)[:15]),
        dataclasses.replace(proof, nonce=bytes(15) + b"\xff"),
        dataclasses.replace(proof, steps=proof.steps[1:]),
        dataclasses.replace(proof, steps=(*proof.steps, proof.steps[0])),
        dataclasses.replace(proof, root=bytes(32)),
        dataclasses.replace(proof, total_units=proof.total_units - 1),
        with_step(dataclasses.replace(step, total_units=step.total_units - 1)),
        with_step(dataclasses.replace(step, total_units=-step.total_units)),
        with_step(dataclasses.replace(step, left=not step.left)),
        with_step(dataclasses.replace(step, hash=bytes(32))),
        with_step(dataclasses.replace(step, hash=step.hash[:31])),
    ):
        assert forged.complaint(root.hash, root.total)
    # The root is what was published, not what the proof brings along.
    assert proof.complaint(bytes(32), root.total)
    assert proof.complaint(root.hash, root.total + 1)
    # Whoever publishes a sum that the steps do not add up to is found out by every owner.
    flattering = dataclasses.replace(proof, total_units=root.total - 1)
    assert "add up to" in flattering.complaint(root.hash, root.total - 1)


def test_sums_beyond_all_bounds_hide_no_debt() -> None:
    step = Step(bytes(32), SUM_LIMIT - 1, left=False)
    proof = LiabilityProof(1, 1, 1, bytes(16), (step,), bytes(32), SUM_LIMIT)
    assert "it must be below" in proof.complaint(bytes(32), SUM_LIMIT)
    too_long = dataclasses.replace(proof, steps=(Step(bytes(32), 0, left=False),) * 65)
    assert "at most 64" in too_long.complaint(bytes(32), SUM_LIMIT)


@pytest.mark.parametrize(
    ("nonce_bytes", "hash_bytes", "complaint"),
    [
        (16, 32, ""),
        (15, 32, "no leaf"),
        (17, 32, "no leaf"),
        (16, 31, "no node"),
        (16, 33, "no node"),
    ],
)
def test_the_bytes_of_the_definition(nonce_bytes: int, hash_bytes: int, complaint: str) -> None:
    """As docs/money.md defines them, written out once by hand; other lengths are no tree."""
    nonce, other = bytes(range(nonce_bytes)), bytes(range(hash_bytes))
    leaf = hashlib.sha256(b"\0" + bytes(7) + b"\x05" + bytes(7) + b"\x09" + nonce).digest()
    root = hashlib.sha256(b"\1" + other + bytes(7) + b"\x02" + leaf + bytes(7) + b"\x09").digest()
    proof = LiabilityProof(1, 5, 9, nonce, (Step(other, 2, left=True),), root, 11)
    assert complaint in proof.complaint(root, 11)
    assert bool(complaint) == bool(proof.complaint(root, 11))
