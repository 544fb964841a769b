"""What order entry asks the risk service for, as far as it needs no process."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.entry.batches import expand_records, record_of
from engine.entry.config import EntryConfig, parse
from engine.entry.risk.breaker import PAUSE_NS, Breaker
from engine.entry.risk.message_rates import SECOND_NS, Bucket, share_of
from engine.entry.risk.needs import (
    Book,
    Need,
    Record,
    need_of,
    terms_of,
)
from engine.entry.risk.withdrawn import Pending, Withdrawals
from engine.order_entry import Command
from exchange import records as words
from exchange.config import RunFolder
from exchange.enums import Asset, CommandKind, ExecutionKind, OrderType, Reason, Side, TimeInForce
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.records import COMMAND_FLAG_LEAVES, Rows, command_price, command_verb
from tests.reference.drivers import Twin

ALICE, BOB = 1, 2
LIMIT, MARKET, BY_AMOUNT = OrderType.LIMIT, OrderType.MARKET, OrderType.MARKET_BY_AMOUNT
GTC, IOC = TimeInForce.GOOD_TILL_CANCELLED, TimeInForce.IMMEDIATE_OR_CANCEL

INSTRUMENTS = st.builds(
    Instrument,
    taker_fee_ppm=st.integers(0, 100_000),
    maker_fee_ppm=st.integers(0, 100_000),
    tick_quote_units=st.sampled_from([1_000_000, 7_000_000]),
    price_capacity_ticks=st.just(1 << 10),
    quantity_limit_lots=st.just(1 << 20),
    order_capacity=st.just(64),
    client_id_window=st.just(128),
    account_capacity=st.just(8),
)
PRICES, LOTS, SIDES = st.integers(1, 1_000), st.integers(1, 1 << 20), st.sampled_from([1, 2])


class Pair:
    """The plain twin of an engine, and who gives money."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument.validate()
        self.twin = Twin(self.instrument)
        self.transfer_number = self.client_order_id = 0

    def apply(self, command: Command) -> list[list[int]]:
        return self.twin.apply(list(command.words(0)))

    def allot(self, account: int, asset: Asset, units: int) -> None:
        if units:
            self.transfer_number += 1
            verb = command_verb(CommandKind.ALLOT_FUNDS, account)
            price = command_price(int(asset))
            (row,) = self.apply(Command(verb, self.transfer_number, price=price, quantity=units))
            assert row[words.E_VERB] & 0xFF == ExecutionKind.ALLOTTED

    def order(self, account: int, side: int, kind: int, price: int, quantity: int) -> Command:
        self.client_order_id += 1
        time_in_force = GTC if kind == LIMIT else IOC
        verb = command_verb(CommandKind.NEW_ORDER, account, side, kind, time_in_force)
        price_word = command_price(price if kind == LIMIT else 0, 2)
        return Command(verb, self.client_order_id, price=price_word, quantity=quantity)

    def pays(self, account: int, taker_ppm: int, maker_ppm: int) -> None:
        verb = command_verb(CommandKind.SET_FEES, account)
        (row,) = self.apply(Command(verb, first=taker_ppm, second=maker_ppm))
        assert row[words.E_VERB] & 0xFF == ExecutionKind.ACCOUNT_SET

    def need(self, command: Command) -> Need | None:
        """Enter an order, which must be refused, and return what it needs."""
        (refused,) = self.apply(command)
        assert outcome([refused]) in {SHORT, UNKNOWN}, outcome([refused])
        depth = self.twin.depth()
        bids, asks = (
            tuple((price, lots) for price, lots, _ in depth[side]) for side in (Side.BUY, Side.SELL)
        )
        terms = terms_of(record(command))
        return need_of(self.instrument, terms, refused, Book(bids, asks))


def record(command: Command) -> Record:
    first, second, third, fourth = record_of(command)[0].tolist()
    return first, second, third, fourth


def outcome(rows: list[list[int]]) -> tuple[int, int]:
    return rows[0][words.E_VERB] & 0xFF, (rows[0][words.E_VERB] >> 8) & 0xFF


SHORT = (int(ExecutionKind.REJECTED), int(Reason.INSUFFICIENT_FUNDS))
UNKNOWN = (int(ExecutionKind.REJECTED), int(Reason.ACCOUNT_UNKNOWN))
RATES = st.none() | st.tuples(st.integers(0, 100_000), st.integers(0, 100_000))
"""An account's own rates; None if it was given none."""


@given(INSTRUMENTS, RATES, SIDES, PRICES, LOTS)
def test_a_limit_order_needs_exactly_this_much(
    instrument: Instrument, rates: tuple[int, int] | None, side: int, price: int, lots: int
) -> None:
    pair = Pair(instrument)
    if rates:
        pair.pays(ALICE, *rates)
    order = pair.order(ALICE, side, LIMIT, price, lots)
    need = pair.need(order)
    assert need is not None
    assume(need.units > 1)
    pair.allot(ALICE, need.asset, need.units - 1)
    assert outcome(pair.apply(order)) == SHORT
    pair.allot(ALICE, need.asset, 1)
    assert outcome(pair.apply(order))[0] == ExecutionKind.ACCEPTED


@given(INSTRUMENTS, RATES, RATES, SIDES, PRICES, LOTS, PRICES, LOTS, st.booleans())
def test_an_amendment_needs_exactly_this_much(
    instrument: Instrument,
    rates: tuple[int, int] | None,
    later: tuple[int, int] | None,
    side: int,
    price: int,
    lots: int,
    ticks: int,
    left: int,
    leaves: bool,
) -> None:
    pair = Pair(instrument)
    if rates:
        pair.pays(ALICE, *rates)
    order = pair.order(ALICE, side, LIMIT, price, lots)
    before = pair.need(order)
    assert before is not None
    pair.allot(ALICE, before.asset, before.units)
    (accepted,) = pair.apply(order)
    if later:
        pair.pays(ALICE, *later)
    amend = Command(
        command_verb(CommandKind.AMEND_ORDER, ALICE),
        order_id=accepted[words.E_ORDER_ID],
        price=command_price(ticks, 0, COMMAND_FLAG_LEAVES if leaves else 0),
        quantity=left,
    )
    (refused,) = pair.apply(amend)
    if outcome([refused])[0] == ExecutionKind.AMENDED:
        return
    need = pair.need(amend)
    assert need is not None
    assert need.asset == before.asset
    pair.allot(ALICE, need.asset, need.units - 1)
    assert outcome(pair.apply(amend)) == SHORT
    pair.allot(ALICE, need.asset, 1)
    assert outcome(pair.apply(amend))[0] == ExecutionKind.AMENDED


@given(
    INSTRUMENTS,
    RATES,
    st.lists(st.tuples(PRICES, st.integers(1, 50)), min_size=1, max_size=5),
    LOTS,
)
def test_a_market_order_can_take_what_the_book_offers(
    instrument: Instrument,
    rates: tuple[int, int] | None,
    offers: list[tuple[int, int]],
    lots: int,
) -> None:
    pair = Pair(instrument)
    if rates:
        pair.pays(ALICE, *rates)
    pair.allot(BOB, Asset.BASE, 1 << 40)
    for price, offered in offers:
        pair.apply(pair.order(BOB, Side.SELL, LIMIT, price, offered))
    order = pair.order(ALICE, Side.BUY, MARKET, 0, lots)
    need = pair.need(order)
    assert need is not None
    pair.allot(ALICE, need.asset, need.units)
    rows = pair.apply(order)
    assert rows[-1][words.E_FILLED] == min(lots, sum(offered for _, offered in offers))
    assert (rows[-1][words.E_VERB] >> 8) & 0xFF != Reason.FUNDS_EXHAUSTED


@given(
    INSTRUMENTS,
    st.lists(st.tuples(PRICES, st.integers(1, 50)), min_size=1, max_size=5),
    st.integers(1, 1 << 30),
)
def test_a_sale_by_amount_can_earn_it(
    instrument: Instrument, wishes: list[tuple[int, int]], amount: int
) -> None:
    pair = Pair(instrument)
    pair.allot(BOB, Asset.QUOTE, 1 << 50)
    for price, wanted in wishes:
        pair.apply(pair.order(BOB, Side.BUY, LIMIT, price, wanted))
    order = pair.order(ALICE, Side.SELL, BY_AMOUNT, 0, amount)
    need = pair.need(order)
    assert need is not None
    assert need.asset == Asset.BASE
    pair.allot(ALICE, need.asset, need.units)
    rows = pair.apply(order)
    assert outcome(rows)[0] == ExecutionKind.ACCEPTED
    assert (rows[-1][words.E_VERB] >> 8) & 0xFF != Reason.FUNDS_EXHAUSTED


@pytest.mark.parametrize(
    ("side", "kind", "price", "quantity"),
    [
        (0, LIMIT, 5, 5),
        (3, LIMIT, 5, 5),
        (1, 0, 5, 5),
        (1, LIMIT, 0, 5),
        (1, LIMIT, 1 << 24, 5),
        (1, LIMIT, 5, 0),
        (1, LIMIT, 5, -5),
        (1, LIMIT, 5, (1 << 63) - 1),
        (2, MARKET, 0, (1 << 63) - 1),
        (1, BY_AMOUNT, 0, AMOUNT_LIMIT_UNITS + 1),
        (1, MARKET, 0, 5),
        (2, BY_AMOUNT, 0, 5),
    ],
)
def test_what_money_does_not_help_needs_none(
    side: int, kind: int, price: int, quantity: int
) -> None:
    pair = Pair(Instrument())
    assert pair.need(pair.order(ALICE, side, kind, price, quantity)) is None


def test_a_market_order_that_the_book_shows_nothing_for_needs_a_lot() -> None:
    pair = Pair(Instrument())
    pair.pays(ALICE, 0, 0)
    pair.allot(BOB, Asset.BASE, 1 << 40)
    pair.apply(pair.order(BOB, Side.SELL, LIMIT, 600, 5))
    order = pair.order(ALICE, Side.BUY, MARKET, 0, 3)
    (refused,) = pair.apply(order)
    worth = 600 * pair.instrument.quote_units_per_tick_lot
    assert need_of(pair.instrument, terms_of(record(order)), refused, Book()) == (2, worth)
    assert pair.need(order) == Need(Asset.QUOTE, 3 * worth)


words_of_commands = st.builds(
    Command,
    st.builds(
        command_verb,
        st.integers(1, 4),
        st.just(ALICE),
        st.integers(0, 15),
        st.integers(0, 15),
        st.integers(0, 15),
    ),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, (1 << 63) - 1),
    st.builds(command_price, st.integers(0, 1_000), st.integers(1, 5), st.integers(0, 3)),
    st.integers(0, (1 << 63) - 1),
)


@given(words_of_commands)
def test_a_command_as_a_record_is_written_the_same_again(command: Command) -> None:
    once, again = np.zeros((1, 8), np.int64), np.zeros((1, 8), np.int64)
    expand_records(record_of(command), ALICE, 0, 0, once)
    told = Command(*once[0, :5].tolist())
    expand_records(record_of(told), ALICE, 0, 0, again)
    assert once.tolist() == again.tolist()


# What was taken back.


def execution(kind: int, account: int = ALICE, **given_words: int) -> list[int]:
    row = [0] * words.EXECUTION_WORDS
    row[words.E_VERB] = kind | given_words.pop("side", 0) << 16 | account << 32
    for name, value in given_words.items():
        row[getattr(words, f"E_{name.upper()}")] = value
    return row


def rows_of(*rows: list[int]) -> Rows:
    return np.array(rows, np.int64)


REJECTED, ALL_CANCELLED = int(ExecutionKind.REJECTED), int(ExecutionKind.ALL_CANCELLED)
CANCEL, CANCEL_ALL = int(CommandKind.CANCEL_ORDER), int(CommandKind.CANCEL_ALL)


@pytest.mark.parametrize(
    ("row", "taken"),
    [
        (execution(ALL_CANCELLED), True),
        (execution(ALL_CANCELLED, side=1), True),
        (execution(ALL_CANCELLED, side=2), False),
        (execution(ALL_CANCELLED, account=BOB), False),
        (execution(REJECTED, command_kind=CANCEL_ALL), True),
        (execution(REJECTED, command_kind=CANCEL_ALL, side=3), False),
        (execution(REJECTED, command_kind=CANCEL, client_order_id=7), True),
        (execution(REJECTED, command_kind=CANCEL, client_order_id=8), False),
        (execution(REJECTED, command_kind=CANCEL, client_order_id=7, account=BOB), False),
        (execution(REJECTED, command_kind=1, client_order_id=7), False),
        (execution(int(ExecutionKind.CANCELLED), client_order_id=7), False),
    ],
)
def test_a_cancel_takes_back_what_it_would_have_hit(row: list[int], taken: bool) -> None:
    seen = Withdrawals(ALICE, 100)
    seen.follow(rows_of(execution(1), row))
    assert seen.number == 102
    assert seen.since(100, 7, Side.BUY) == taken
    # An order that was refused after the cancel is a new wish.
    assert not seen.since(101, 7, Side.BUY)


def test_a_cancel_on_its_way_takes_back_too() -> None:
    def pending(*commands: Command) -> Pending:
        return Pending(record_of(command) for command in commands)

    by_id = Command(command_verb(CANCEL, ALICE), client_order_id=7)
    other = Command(command_verb(CANCEL, ALICE), order_id=7)
    assert pending(by_id).takes(7, Side.BUY)
    assert not pending(by_id).takes(8, Side.BUY)
    assert not pending(other).takes(7, Side.BUY)
    assert not pending().takes(7, Side.BUY)
    assert pending(Command(command_verb(CANCEL_ALL, ALICE))).takes(7, Side.SELL)
    assert pending(Command(command_verb(CANCEL_ALL, ALICE, Side.BUY))).takes(7, Side.BUY)
    assert not pending(Command(command_verb(CANCEL_ALL, ALICE, Side.BUY))).takes(7, Side.SELL)
    new = Command(command_verb(1, ALICE, Side.BUY, 1, 1), client_order_id=7)
    assert not pending(new).takes(7, Side.BUY)


# Whom to ask, and how often.


def test_one_caller_a_second_finds_out_that_nobody_answers() -> None:
    breaker, now_ns = Breaker(), 10**18
    assert breaker.allows(now_ns)
    assert breaker.allows(now_ns)
    breaker.failed(now_ns)
    assert not breaker.allows(now_ns + PAUSE_NS - 1)
    assert breaker.allows(now_ns + PAUSE_NS)
    assert not breaker.allows(now_ns + PAUSE_NS)
    breaker.failed(now_ns + PAUSE_NS)
    assert not breaker.allows(now_ns + PAUSE_NS + 1)
    assert breaker.allows(now_ns + 2 * PAUSE_NS)
    breaker.succeeded()
    assert breaker.allows(now_ns + 2 * PAUSE_NS)
    assert breaker.allows(now_ns + 2 * PAUSE_NS)


@given(
    st.integers(0, 1_000),
    st.lists(st.tuples(st.integers(0, 2 * SECOND_NS), st.integers(1, 1_200)), max_size=30),
)
def test_no_stretch_of_time_sees_more_than_its_share(
    rate: int, asked: list[tuple[int, int]]
) -> None:
    bucket, now_ns = Bucket(), 5
    bucket.set_rate(rate, now_ns)
    passed: list[tuple[int, int]] = []
    for wait_ns, count in asked:
        now_ns += wait_ns
        again_ns = bucket.take(count, now_ns)
        if again_ns == 0:
            passed.append((now_ns, count))
        elif again_ns > 0:
            # It says exactly when: not a nanosecond before.
            assert bucket.take(count, now_ns + again_ns - 1) > 0
            now_ns += again_ns
            assert bucket.take(count, now_ns) == 0
            passed.append((now_ns, count))
        else:
            assert count > rate
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            span_ns = passed[last][0] - passed[first][0]
            total = sum(count for _, count in passed[first : last + 1])
            assert total <= rate + Fraction(rate * span_ns, SECOND_NS)


def test_a_limit_may_come_change_and_go() -> None:
    bucket = Bucket()
    assert bucket.take(10**9, 1) == 0
    bucket.set_rate(10, 1)
    assert bucket.take(10, 1) == 0
    assert bucket.take(1, 1) == SECOND_NS // 10
    bucket.set_rate(20, 1)
    assert bucket.take(1, 1) == SECOND_NS // 20
    bucket.set_rate(2, 1 + SECOND_NS)
    assert bucket.take(3, 1 + SECOND_NS) == -1
    assert bucket.take(2, 1 + SECOND_NS) == 0
    bucket.set_rate(None, 2 + SECOND_NS)
    assert bucket.take(10**9, 2 + SECOND_NS) == 0


@given(st.integers(0, 10**9), st.integers(1, 64))
def test_the_shares_of_all_processes_are_the_limit(rate: int, processes: int) -> None:
    shares = [share_of(rate, process, processes) for process in range(processes)]
    assert sum(shares) == rate
    assert max(shares) - min(shares) <= 1


# Settings.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"risk": "localhost"}, "risk is 'localhost'; it must be HOST:PORT"),
        ({"risk": ":50081"}, "HOST:PORT"),
        ({"risk": "127.0.0.1:0"}, "HOST:PORT"),
        ({"risk": "127.0.0.1:65536"}, "HOST:PORT"),
        ({"risk": "127.0.0.1:x"}, "HOST:PORT"),
        ({"processes": 0}, "processes is 0; it must be from 1 to 64"),
        ({"processes": 65}, "processes is 65"),
        ({"risk_patience_ms": 0}, "risk_patience_ms is 0; it must be from 1 to 4000"),
        ({"risk_patience_ms": 4_001}, "risk_patience_ms is 4001"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict[str, object], sentence: str) -> None:
    run = RunFolder(Path("run"), "BTC-USDT")
    config = EntryConfig(Instrument(), run, 0, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        config.validate()


def test_the_environment_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["--pair", "BTC-USDT", "--run", "run", "--ring", "1"]
    assert (parse(common).risk, parse(common).processes) == ("", 1)
    monkeypatch.setenv("HOLDFAST_RISK_ADDRESS", "127.0.0.1:50081")
    monkeypatch.setenv("HOLDFAST_ENTRY_PROCESSES", "4")
    assert (parse(common).risk, parse(common).processes) == ("127.0.0.1:50081", 4)
    given_here = [*common, "--risk", "127.0.0.1:7", "--risk-patience", "900"]
    config = parse(given_here)
    assert (config.risk, config.risk_patience_ms) == ("127.0.0.1:7", 900)
