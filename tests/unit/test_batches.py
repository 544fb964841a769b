"""The packed doors: the same rows as the readable door, every record its answer, nothing else."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.entry.batches import (
    FOLD_ACKED,
    FOLD_OPEN,
    FOLD_WORDS,
    NO_POSITION,
    copy_acks,
    expand_records,
    fold_acks,
    records_of,
    records_of_columns,
    records_of_message,
)
from engine.order_entry import (
    Command,
    amend_command,
    cancel_all_command,
    cancel_command,
    submit_command,
)
from exchange import records as words
from exchange.enums import CommandKind, ExecutionKind, Reason
from exchange.instrument import Instrument
from exchange.packed import ACK_DTYPE, ACK_WORDS, BATCH_LIMIT, RECORD_BYTES, RECORD_DTYPE
from exchange.records import COMMAND_WORDS, EXECUTION_WORDS, Rows, source
from exchange.refusal import Refusal
from exchange.units import lots_to_quantity, ticks_to_price, units_to_amount
from exchange.v1 import order_entry_pb2

INSTRUMENT = Instrument().validate()
RING = 3
ACCOUNT = 77
CAPACITY = 64

ids = st.integers(0, (1 << 63) - 1)
lots = st.integers(0, (1 << 62))
prices = st.integers(0, (1 << 32) - 1)


def record(**fields: int) -> np.ndarray:
    one = np.zeros(1, RECORD_DTYPE)
    for name, value in fields.items():
        one[name] = value
    return one


def rows_of(batch: np.ndarray, position: int = 5) -> Rows:
    """Return the command rows that a ring holds after a batch was written to it."""
    ring = np.full((CAPACITY, COMMAND_WORDS), -1, np.int64)
    packed = records_of(batch.tobytes())
    assert not isinstance(packed, Refusal)
    expand_records(packed, ACCOUNT, RING << words.SOURCE_SHIFT, position, ring)
    index = (position + np.arange(len(batch))) & (CAPACITY - 1)
    rows: Rows = ring[index]
    return rows


def same(batch: np.ndarray, command: Command | Refusal) -> None:
    assert isinstance(command, Command)
    assert rows_of(batch)[0].tolist() == list(command.words(source(RING, 5)))


@given(
    ids,
    lots,
    prices,
    *(st.integers(0, 15), st.integers(0, 15), st.integers(0, 255)),
    st.booleans(),
)
def test_a_limit_order_has_the_same_row_through_both_doors(
    client_order_id: int,
    quantity: int,
    price: int,
    side: int,
    time_in_force: int,
    prevention: int,
    post_only: bool,
) -> None:
    request = order_entry_pb2.SubmitOrderRequest(
        pair=INSTRUMENT.pair,
        client_order_id=client_order_id,
        side=side,  # type: ignore[arg-type]
        order_type=1,  # type: ignore[arg-type]
        time_in_force=time_in_force,  # type: ignore[arg-type]
        price=ticks_to_price(INSTRUMENT, price),
        quantity=lots_to_quantity(INSTRUMENT, quantity),
        self_trade_prevention=prevention,  # type: ignore[arg-type]
        post_only=post_only,
    )
    packed = record(
        client_order_id=client_order_id,
        quantity_lots=quantity,
        price_ticks=price,
        kind_side=CommandKind.NEW_ORDER | side << 4,
        order_type_time_in_force=1 | time_in_force << 4,
        self_trade_prevention=prevention,
        flags=int(post_only),
    )
    same(packed, submit_command(INSTRUMENT, ACCOUNT, request))


@given(ids, lots, st.sampled_from([2, 3]))
def test_market_orders_have_the_same_row_through_both_doors(
    client_order_id: int, size: int, order_type: int
) -> None:
    by_amount = order_type == 3
    text = units_to_amount(INSTRUMENT.quote_decimals, size)
    request = order_entry_pb2.SubmitOrderRequest(
        pair=INSTRUMENT.pair,
        client_order_id=client_order_id,
        side=2,  # type: ignore[arg-type]
        order_type=order_type,  # type: ignore[arg-type]
        time_in_force=2,  # type: ignore[arg-type]
        quantity="" if by_amount else lots_to_quantity(INSTRUMENT, size),
        amount=text if by_amount else "",
    )
    packed = record(
        client_order_id=client_order_id,
        quantity_lots=size,
        kind_side=CommandKind.NEW_ORDER | 2 << 4,
        order_type_time_in_force=order_type | 2 << 4,
    )
    same(packed, submit_command(INSTRUMENT, ACCOUNT, request))


@given(ids, ids, lots, st.integers(1, (1 << 32) - 1))
def test_changes_and_cancels_have_the_same_row_through_both_doors(
    order_id: int, client_order_id: int, quantity: int, price: int
) -> None:
    named: dict[str, Any] = {"order_id": order_id, "client_order_id": client_order_id}
    noise = {"order_type_time_in_force": 0x21, "self_trade_prevention": 3, "price_ticks": price}
    cancel = order_entry_pb2.CancelOrderRequest(**named)
    same(
        record(kind_side=CommandKind.CANCEL_ORDER | 1 << 4, **named, **noise),
        cancel_command(ACCOUNT, cancel),
    )
    amend = order_entry_pb2.AmendOrderRequest(
        price=ticks_to_price(INSTRUMENT, price),
        quantity=lots_to_quantity(INSTRUMENT, quantity),
        **named,
    )
    same(
        record(kind_side=CommandKind.AMEND_ORDER, quantity_lots=quantity, **named, **noise),
        amend_command(INSTRUMENT, ACCOUNT, amend),
    )
    for side in range(16):
        same(
            record(kind_side=CommandKind.CANCEL_ALL | side << 4, **named, **noise),
            cancel_all_command(ACCOUNT, side),
        )


def test_only_the_commands_of_traders_pass() -> None:
    for kind in range(16):
        row = rows_of(record(kind_side=kind, quantity_lots=10, price_ticks=1))[0]
        passes = kind in range(CommandKind.NEW_ORDER, CommandKind.CANCEL_ALL + 1)
        assert row[0] & 0xFF == (kind if passes else 0)
        assert row[0] >> 32 == ACCOUNT


def test_no_flag_of_a_client_reaches_the_engine_but_those_of_the_kind() -> None:
    allowed = {CommandKind.NEW_ORDER: 1, CommandKind.AMEND_ORDER: 2}
    for kind in CommandKind:
        row = rows_of(record(kind_side=kind, flags=255))[0]
        assert row[3] >> 40 == allowed.get(kind, 0)


@given(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES * 3))
def test_garbage_gives_rows_of_the_caller_and_nothing_else(content: bytes) -> None:
    content = content[: len(content) // RECORD_BYTES * RECORD_BYTES]
    rows = rows_of(np.frombuffer(content, RECORD_DTYPE))
    assert (rows[:, 0] >> 32 == ACCOUNT).all()
    assert (rows[:, 0] & 0xFF <= CommandKind.CANCEL_ALL).all()
    assert rows[:, 5].tolist() == [source(RING, 5 + i) for i in range(len(rows))]
    assert not rows[:, 6:].any()


def test_a_batch_wraps_around_the_end_of_the_ring() -> None:
    batch = np.concatenate([record(kind_side=2, order_id=i + 1) for i in range(10)])
    rows = rows_of(batch, CAPACITY - 4)
    assert rows[:, 2].tolist() == list(range(1, 11))


@pytest.mark.parametrize("length", [0, 1, 31, 33, 63, RECORD_BYTES * (BATCH_LIMIT + 1)])
def test_a_length_that_is_no_batch_is_refused_with_its_limit(length: int) -> None:
    refusal = records_of(bytes(length))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.field) == ("BATCH_LENGTH", "records")
    assert str(BATCH_LIMIT) in refusal.limit
    assert str(length) in refusal.value


def test_the_longest_batch_is_taken() -> None:
    taken = records_of(bytes(RECORD_BYTES * BATCH_LIMIT))
    assert not isinstance(taken, Refusal)
    assert len(taken) == BATCH_LIMIT


def columns(**fields: list[int]) -> order_entry_pb2.CommandColumns:
    return order_entry_pb2.CommandColumns(**fields)


@given(st.binary(min_size=RECORD_BYTES * 4, max_size=RECORD_BYTES * 4))
def test_columns_are_the_same_commands_as_records(content: bytes) -> None:
    batch = np.frombuffer(content, RECORD_DTYPE)
    given_columns = columns(
        kinds=(batch["kind_side"] & 0xF).tolist(),
        sides=(batch["kind_side"] >> 4).tolist(),
        order_types=(batch["order_type_time_in_force"] & 0xF).tolist(),
        times_in_force=(batch["order_type_time_in_force"] >> 4).tolist(),
        self_trade_preventions=batch["self_trade_prevention"].tolist(),
        flags=batch["flags"].tolist(),
        prices_ticks=batch["price_ticks"].tolist(),
        quantities_lots=batch["quantity_lots"].tolist(),
        client_order_ids=batch["client_order_id"].tolist(),
        order_ids=batch["order_id"].tolist(),
    )
    packed = records_of_columns(given_columns)
    assert not isinstance(packed, Refusal)
    ring = np.zeros((CAPACITY, COMMAND_WORDS), np.int64)
    expand_records(packed, ACCOUNT, RING << words.SOURCE_SHIFT, 5, ring)
    assert (ring[5:9] == rows_of(batch)).all()


def test_columns_of_unequal_length_are_refused_by_name() -> None:
    refusal = records_of_columns(columns(kinds=[1, 1, 1], sides=[1, 1, 1], prices_ticks=[5, 5]))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.field) == ("COLUMN_LENGTH", "prices_ticks")
    assert "2" in refusal.value
    assert "3" in refusal.limit


def test_a_column_value_that_does_not_fit_spoils_its_own_command_only() -> None:
    packed = records_of_columns(columns(kinds=[1, -7, 300], sides=[1, 1, -1], flags=[0, 0, -1]))
    assert not isinstance(packed, Refusal)
    ring = np.zeros((CAPACITY, COMMAND_WORDS), np.int64)
    expand_records(packed, ACCOUNT, 0, 0, ring)
    assert (ring[:3, 0] & 0xFFFF).tolist() == [1 | 1 << 8, 0, 0]


def test_a_message_without_content_or_of_another_version_is_refused() -> None:
    for message, field in (
        (order_entry_pb2.SubmitBatchesRequest(record_version=1), "content"),
        (order_entry_pb2.SubmitBatchesRequest(records=bytes(32)), "record_version"),
    ):
        refusal = records_of_message(message)
        assert isinstance(refusal, Refusal)
        assert refusal.field == field


# Acknowledgements.


def execution(position: int, kind: int, last: bool, **fields: int) -> list[int]:
    row = [0] * EXECUTION_WORDS
    reason = fields.pop("reason", 0)
    row[words.E_VERB] = kind | reason << 8 | 1 << 16 | int(last) << 24 | ACCOUNT << 32
    row[words.E_SOURCE] = source(fields.pop("ring", RING), position)
    for name, value in fields.items():
        row[getattr(words, f"E_{name.upper()}")] = value
    return row


def fold(rows: list[list[int]], cuts: list[int], acked: int = 0) -> tuple[np.ndarray, int]:
    """Fold rows in pieces; return the acknowledgements and how far they reach."""
    acks = np.full((16, ACK_WORDS), -1, np.int64)
    state = np.zeros(FOLD_WORDS, np.int64)
    state[FOLD_ACKED], state[FOLD_OPEN] = acked, NO_POSITION
    array = np.array(rows, np.int64).reshape(-1, EXECUTION_WORDS)
    edges = [0, *sorted(cuts), len(rows)]
    reached = acked
    for start, end in pairwise(edges):
        reached = fold_acks(array[start:end], 100 + start, RING, state, acks)
    out = np.zeros((reached - acked, ACK_WORDS), np.int64)
    copy_acks(acks, acked, out)
    return out.view(ACK_DTYPE).ravel(), reached


KINDS = ExecutionKind
STORY = [
    execution(0, KINDS.ACCEPTED, False, order_id=9, client_order_id=1, quantity=10, leaves=10),
    execution(0, KINDS.TRADE, False, order_id=9, client_order_id=1, leaves=6, filled=4),
    execution(0, KINDS.EXPIRED, False, order_id=5, reason=Reason.SELF_TRADE_PREVENTED, filled=99),
    execution(0, KINDS.EXPIRED, True, order_id=9, reason=Reason.IMMEDIATE_REMAINDER, filled=4),
    execution(7, KINDS.ACCEPTED, True, ring=4, order_id=1, client_order_id=1),
    execution(1, KINDS.REJECTED, True, reason=Reason.INSUFFICIENT_FUNDS, client_order_id=2),
    execution(2, KINDS.CANCELLED, False, reason=39, order_id=7, client_order_id=70),
    execution(2, KINDS.CANCELLED, False, reason=39, order_id=8, client_order_id=80),
    execution(2, KINDS.ALL_CANCELLED, True, quantity=2),
    execution(3, KINDS.REPLAYED, True, order_id=9, client_order_id=1, filled=4, leaves=6),
]


@given(st.lists(st.integers(0, len(STORY)), max_size=5))
def test_executions_fold_into_one_answer_each_however_they_are_cut(cuts: list[int]) -> None:
    acks, reached = fold(STORY, cuts)
    assert reached == 4
    kinds = [KINDS.ACCEPTED, KINDS.REJECTED, KINDS.ALL_CANCELLED, KINDS.REPLAYED]
    assert acks["kind"].tolist() == kinds
    assert acks["client_order_id"].tolist() == [1, 2, 0, 1]
    assert acks["order_id"].tolist() == [9, 0, 0, 9]
    assert acks["filled_lots"].tolist() == [4, 0, 0, 4]
    assert acks["leaves_lots"].tolist() == [0, 0, 2, 6]
    reasons = [Reason.IMMEDIATE_REMAINDER, Reason.INSUFFICIENT_FUNDS, 0, 0]
    assert acks["reason"].tolist() == reasons
    assert acks["trade_count"].tolist() == [1, 0, 0, 0]
    assert acks["execution_count"].tolist() == [4, 1, 3, 1]
    assert acks["last_number"].tolist() == [103, 105, 108, 109]


def test_an_unfinished_command_has_no_answer_yet() -> None:
    assert fold(STORY[:3], [])[1] == 0


def test_what_was_answered_in_an_earlier_life_is_passed_over() -> None:
    acks, reached = fold(STORY, [], acked=2)
    assert reached == 4
    assert acks["kind"].tolist() == [ExecutionKind.ALL_CANCELLED, ExecutionKind.REPLAYED]


def test_more_trades_than_the_field_holds_are_counted_to_its_end() -> None:
    trade = execution(0, ExecutionKind.TRADE, False, order_id=9, filled=1)
    rows = [STORY[0], *[trade] * 70_000, execution(0, ExecutionKind.TRADE, True, order_id=9)]
    acks, _ = fold(rows, [])
    assert acks["trade_count"][0] == 0xFFFF
    assert acks["execution_count"][0] == 70_002
    assert acks["kind"][0] == ExecutionKind.ACCEPTED
