"""What must be true whatever comes: of the kernel after every command, and of what it publishes.

These tests know no rule of matching. They say what nobody may ever see: a unit that appears or
vanishes, a refused command that leaves a trace, a feed that leads to another book.
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine import vault_layout as vault
from exchange import book_layout, records
from exchange.enums import Asset, CommandKind, ExecutionKind, PairStatus, Reason, Side
from exchange.instrument import Instrument
from tests.property.drawing import Stream, effort, streams
from tests.reference.drivers import Kernel, Twin

USES_THE_NUMBER_UP = {Reason.BALANCE_OVERFLOW, Reason.INSUFFICIENT_FUNDS}
TRANSFERS = {CommandKind.ALLOT_FUNDS, CommandKind.RELEASE_FUNDS}
NO_CHANGE = {ExecutionKind.REJECTED, ExecutionKind.REPLAYED}


def kind_of(row: list[int]) -> int:
    """Return the kind of an execution."""
    return row[records.E_VERB] & 0xFF


@given(streams())
@effort(100)
def test_the_invariants_hold_after_every_command(stream: Stream) -> None:
    kernel, twin = Kernel(stream.universe.instrument), Twin(stream.universe.instrument)
    for command, time_ns in stream:
        kernel.apply(command, time_ns)
        kernel.check()
        twin.apply(command, time_ns)
        twin.check()


@given(streams())
@effort(150)
def test_what_is_refused_or_repeated_leaves_no_trace(stream: Stream) -> None:
    kernel = Kernel(stream.universe.instrument)
    for command, time_ns in stream:
        before, summary = kernel.state(), kernel.summary()
        rows = kernel.apply(command, time_ns)
        if kind_of(rows[0]) not in NO_CHANGE:
            continue
        assert len(rows) == 1
        assert kernel.state() == before, command
        after = kernel.summary()
        summary["sequence"] = after["sequence"]
        summary["execution_count"] = after["execution_count"]
        reason = rows[0][records.E_VERB] >> 8 & 0xFF
        if command[0] & 0xFF in TRANSFERS and reason in USES_THE_NUMBER_UP:
            summary["transfer_number"] = after["transfer_number"]
        assert after == summary, command


@given(streams())
@effort(100)
def test_executions_are_numbered_and_the_last_is_marked(stream: Stream) -> None:
    kernel = Kernel(stream.universe.instrument)
    for sequence, (command, time_ns) in enumerate(stream, start=1):
        rows = np.array(kernel.apply(command, time_ns), dtype=np.int64)
        assert set(rows[:, records.E_SEQUENCE].tolist()) == {sequence}
        assert set(rows[:, records.E_TIME_NS].tolist()) == {time_ns}
        assert set(rows[:, records.E_SOURCE].tolist()) == {command[records.C_SOURCE]}
        marks = records.flags_of(rows).tolist()
        assert marks == [0] * (len(rows) - 1) + [records.FLAG_LAST]


@given(streams())
@effort(100)
def test_two_engines_fed_alike_are_alike(stream: Stream) -> None:
    one, other = Kernel(stream.universe.instrument), Kernel(stream.universe.instrument)
    for command, time_ns in stream:
        assert one.apply(command, time_ns) == other.apply(command, time_ns)
        assert one.engine.state_hash() == other.engine.state_hash()


def balances_from(rows: list[list[int]], pair: Instrument) -> dict[tuple[int, int], int]:
    """Return what each account owns of each asset, from executions alone."""
    owned: dict[tuple[int, int], int] = {}

    def add(account: int, asset: int, units: int) -> None:
        owned[account, asset] = owned.get((account, asset), 0) + units

    for row in rows:
        account = row[records.E_VERB] >> 32
        if kind_of(row) == ExecutionKind.ALLOTTED:
            add(account, row[records.E_PRICE], row[records.E_AMOUNT])
        elif kind_of(row) == ExecutionKind.RELEASED:
            add(account, row[records.E_PRICE], -row[records.E_AMOUNT])
        elif kind_of(row) == ExecutionKind.TRADE:
            lots = row[records.E_QUANTITY]
            base = lots * pair.base_units_per_lot
            price = row[records.E_PRICE] & 0xFFFFFFFF
            quote = price * lots * pair.quote_units_per_tick_lot
            maker = row[records.E_MAKER_ACCOUNT] >> 32
            sign = 1 if row[records.E_VERB] >> 16 & 0xFF == Side.BUY else -1
            add(account, Asset.BASE, sign * base)
            add(maker, Asset.BASE, -sign * base)
            add(account, Asset.QUOTE, -sign * quote - row[records.E_FEE])
            add(maker, Asset.QUOTE, sign * quote - row[records.E_MAKER_FEE])
    return owned


@given(streams())
@effort(150)
def test_a_follower_of_the_executions_knows_every_balance(stream: Stream) -> None:
    pair = stream.universe.instrument
    kernel = Kernel(pair)
    rows: list[list[int]] = []
    for command, time_ns in stream:
        rows += kernel.apply(command, time_ns)
    owned = balances_from(rows, pair)
    for account in range(1, pair.account_capacity):
        base, held_base, quote, held_quote = kernel.funds(account)
        assert owned.get((account, Asset.BASE), 0) == base + held_base
        assert owned.get((account, Asset.QUOTE), 0) == quote + held_quote


@given(streams())
@effort(100)
def test_when_everybody_leaves_nothing_is_held_and_the_fees_remain(stream: Stream) -> None:
    pair = stream.universe.instrument
    kernel = Kernel(pair)
    for command, time_ns in stream:
        kernel.apply(command, time_ns)
    scalars = kernel.engine.vault["scalars"]

    def apply(kind: CommandKind, account: int, **words: int) -> list[list[int]]:
        command = [records.command_verb(kind, account), 0, 0, 0, 0, 0, 0, 0]
        for word, value in words.items():
            command[getattr(records, word)] = value
        return kernel.apply(command)

    apply(CommandKind.SET_PAIR_STATUS, 0, C_FIRST=PairStatus.OPEN)
    for account in range(1, pair.account_capacity):
        apply(CommandKind.CANCEL_ALL, account)
        base, held_base, quote, held_quote = kernel.funds(account)
        assert (held_base, held_quote) == (0, 0)
        for asset, units in ((Asset.BASE, base), (Asset.QUOTE, quote)):
            if units:
                number = int(scalars[vault.TRANSFER_NUMBER]) + 1
                rows = apply(
                    CommandKind.RELEASE_FUNDS,
                    account,
                    C_PRICE=asset,
                    C_AMOUNT=units,
                    C_TRANSFER_NUMBER=number,
                )
                assert kind_of(rows[0]) == ExecutionKind.RELEASED
                assert rows[0][records.E_FREE] == rows[0][records.E_HELD] == 0
    kernel.check()
    assert kernel.depth() == {Side.BUY: [], Side.SELL: []}
    assert scalars[vault.ALLOTTED_BASE] == 0
    assert scalars[vault.ALLOTTED_QUOTE] == scalars[vault.FEES_TAKEN] >= 0


@given(streams())
@effort(150)
def test_the_public_events_lead_to_the_book_and_to_the_trades(stream: Stream) -> None:
    pair = stream.universe.instrument
    kernel = Kernel(pair)
    book = kernel.engine.book
    levels: dict[int, dict[int, tuple[int, int]]] = {Side.BUY: {}, Side.SELL: {}}
    head = int(book["scalars"][book_layout.EVENT_HEAD])
    for command, time_ns in stream:
        rows = kernel.apply(command, time_ns)
        trades = []
        next_head = int(book["scalars"][book_layout.EVENT_HEAD])
        assert next_head - head <= pair.event_capacity
        for position in range(head, next_head):
            event = book["events"][position % pair.event_capacity].tolist()
            assert event[book_layout.EVENT_COMMIT] == position + 1
            kind, side = event[book_layout.EVENT_VERB] & 0xFF, event[book_layout.EVENT_VERB] >> 8
            price, lots = event[book_layout.EVENT_PRICE], event[book_layout.EVENT_LOTS]
            if kind == book_layout.EVENT_TRADE:
                trades.append((price, lots))
            elif kind == book_layout.EVENT_LEVEL:
                levels[side & 0xFF][price] = (lots, event[book_layout.EVENT_COUNT])
        head = next_head
        assert trades == [
            (row[records.E_PRICE] & 0xFFFFFFFF, row[records.E_QUANTITY])
            for row in rows
            if kind_of(row) == ExecutionKind.TRADE
        ]
        for side, depth in kernel.depth().items():
            rebuilt = [
                (price, lots, orders) for price, (lots, orders) in levels[side].items() if lots
            ]
            assert sorted(rebuilt) == sorted(depth)


@given(streams(), st.integers(0, 1 << 30))
@effort(50)
def test_an_order_sent_twice_trades_once(stream: Stream, pick: int) -> None:
    kernel = Kernel(stream.universe.instrument)
    accepted: list[list[int]] = []
    for command, time_ns in stream:
        rows = kernel.apply(command, time_ns)
        if kind_of(rows[0]) == ExecutionKind.ACCEPTED:
            accepted.append(command)
        if accepted:
            again = accepted[-1 - pick % min(len(accepted), 2)]
            before = kernel.state()
            answer = kernel.apply(again, time_ns)
            assert [kind_of(row) for row in answer] == [ExecutionKind.REPLAYED]
            assert kernel.state() == before
