"""The words of commands and executions: every field in its bits, none in another's."""

from collections.abc import Callable

import numpy as np
import pytest

from exchange import records
from exchange.enums import ExecutionKind, OrderType, Reason, SelfTradePrevention, Side, TimeInForce


def row(**words: int) -> records.Rows:
    """Return an execution with some words set."""
    execution = np.zeros(records.EXECUTION_WORDS, dtype=np.int64)
    for name, value in words.items():
        execution[getattr(records, name)] = value
    return execution


def test_sizes_are_cache_lines() -> None:
    assert records.COMMAND_BYTES == 64
    assert records.EXECUTION_BYTES == 128


def test_the_verb_of_a_command() -> None:
    assert records.command_verb(1, 5, 2, 3, 4) == 0x0000_0005_0403_0201
    assert records.command_verb(0xFF, 0, 0, 0, 0) == 0xFF
    assert records.command_verb(0, 0, 0xFF, 0, 0) == 0xFF00
    assert records.command_verb(0, 0, 0, 0xFF, 0) == 0xFF_0000
    assert records.command_verb(0, 0, 0, 0, 0xFF) == 0xFF00_0000
    assert records.command_verb(0, (1 << 24) - 1) == 0x00FF_FFFF_0000_0000


def test_the_price_word_of_a_command() -> None:
    assert records.command_price(0x1234_5678, 5, 7) == 0x0000_0705_1234_5678
    assert records.command_price((1 << 32) - 1) == 0xFFFF_FFFF


def test_the_source_of_a_command() -> None:
    word = records.source(records.RING_CAPACITY - 1, records.SOURCE_POSITION_MASK)
    assert word == 0x3FFF_FFFF_FFFF_FFFF
    assert word >> records.SOURCE_SHIFT == records.RING_CAPACITY - 1
    assert word & records.SOURCE_POSITION_MASK == records.SOURCE_POSITION_MASK


def test_the_largest_words_fit_a_signed_word() -> None:
    widest = [
        records.command_verb(0xFF, (1 << 31) - 1, 0xFF, 0xFF, 0xFF),
        records.command_price((1 << 32) - 1, 0xFF, 0xFF),
        records.source(records.RING_CAPACITY - 1, records.SOURCE_POSITION_MASK),
        ((1 << (63 - records.ORDER_SLOT_BITS)) - 1) << records.ORDER_SLOT_BITS,
    ]
    assert np.array(widest, dtype=np.int64).tolist() == widest


VERB = 0x0012_3456_0402_1103
FIELDS: list[tuple[Callable[[records.Rows], records.Rows], str, int, int]] = [
    (records.kind_of, "E_VERB", VERB, 0x03),
    (records.reason_of, "E_VERB", VERB, 0x11),
    (records.side_of, "E_VERB", VERB, 0x02),
    (records.flags_of, "E_VERB", VERB, 0x04),
    (records.account_of, "E_VERB", VERB, 0x123456),
    (records.maker_account_of, "E_MAKER_ACCOUNT", 0x0000_0777_0000_0000, 0x777),
    (records.price_of, "E_PRICE", 0x0105_0201_FEDC_BA98, 0xFEDC_BA98),
]


@pytest.mark.parametrize(("read", "word", "value", "field"), FIELDS)
def test_a_field_is_read_from_its_bits(
    read: Callable[[records.Rows], records.Rows], word: str, value: int, field: int
) -> None:
    assert int(read(row(**{word: value}))) == field


@pytest.mark.parametrize(("read", "word", "value", "field"), FIELDS)
def test_a_field_is_read_from_many_rows_at_once(
    read: Callable[[records.Rows], records.Rows], word: str, value: int, field: int
) -> None:
    rows = np.stack([row(), row(**{word: value})])
    assert read(rows).tolist() == [0, field]


@pytest.mark.parametrize(("read", "word", "value", "field"), FIELDS)
def test_full_neighbours_do_not_shine_through(
    read: Callable[[records.Rows], records.Rows], word: str, value: int, field: int
) -> None:
    # Every bit set: as a signed word this is -1, and an account of it is negative.
    everything = int(read(row(**{word: -1})))
    assert everything in {0xFF, 0xFFFF_FFFF, -1}


def test_words_of_different_meaning_do_not_collide() -> None:
    shared = {
        "E_ORDER_ID": {"E_DIGEST"},
        "E_CLIENT_ORDER_ID": {"E_TRANSFER_NUMBER", "E_ACCOUNT_COUNT"},
        "E_QUANTITY": {"E_AMOUNT", "E_BASE_TOTAL"},
        "E_LEAVES": {"E_FREE", "E_QUOTE_TOTAL"},
        "E_FILLED": {"E_HELD"},
        "E_FEE": {"E_FIRST_NUMBER", "E_COMMAND_KIND", "E_FEES_TAKEN"},
        "E_MAKER_ACCOUNT": {"E_NEEDED_ASSET"},
        "E_MAKER_LEAVES": {"E_NEEDED"},
        "E_MAKER_FEE": {"E_HOLD_RATE"},
        "C_CLIENT_ORDER_ID": {"C_TRANSFER_NUMBER"},
        "C_QUANTITY": {"C_AMOUNT"},
    }
    aliases = set().union(*shared.values())
    for prefix, count in (("E_", records.EXECUTION_WORDS), ("C_", records.COMMAND_WORDS)):
        words = [
            value
            for name, value in vars(records).items()
            if name.startswith(prefix) and name not in aliases
        ]
        assert sorted(words) == list(range(count))
    for name, others in shared.items():
        assert {getattr(records, other) for other in others} == {getattr(records, name)}


def test_flags_are_single_bits() -> None:
    flags = [
        records.COMMAND_FLAG_POST_ONLY,
        records.COMMAND_FLAG_LEAVES,
        records.COMMAND_FLAG_DISCONNECTED,
    ]
    assert flags == [1, 2, 4]


@pytest.mark.parametrize(
    "kind", [ExecutionKind, Reason, Side, OrderType, TimeInForce, SelfTradePrevention]
)
def test_every_enumeration_fits_its_byte(kind: type[ExecutionKind]) -> None:
    assert 0 <= min(kind) <= max(kind) <= 0xFF
