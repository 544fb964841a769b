"""Readable requests, readable reports and the index of orders: pure, tried without a process."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.entry.config import EntryConfig, parse
from engine.entry.order_index import OrderIndex, newest_index, write_snapshot
from engine.entry.reports import executions_of, report_of
from engine.order_entry import (
    ACCOUNT_LIMIT,
    Command,
    account_in,
    account_of_text,
    amend_command,
    disconnect_command,
    fees_command,
    kill_switch_command,
    limits_command,
    pair_status_command,
    price_band_command,
    submit_command,
    transfer_command,
)
from exchange import records as words
from exchange.config import RunFolder
from exchange.enums import CommandKind, ExecutionKind, Reason, Side
from exchange.instrument import Instrument
from exchange.records import EXECUTION_WORDS, Rows, command_price, command_verb
from exchange.refusal import Code, Refusal
from exchange.service import NotLoopback, require_loopback, status_of
from exchange.v1 import order_entry_pb2, pair_admin_pb2
from tests.property.drawing import Stream, effort, streams
from tests.property.streams import UNIVERSES, Author, SeededDice
from tests.reference.drivers import Twin

INSTRUMENT = Instrument().validate()
BUY, LIMIT, GTC = 1, 1, 1


def order(**changes: object) -> order_entry_pb2.SubmitOrderRequest:
    fields: dict[str, object] = {
        "pair": INSTRUMENT.pair,
        "client_order_id": 7,
        "side": BUY,
        "order_type": LIMIT,
        "time_in_force": GTC,
        "price": "64000.10",
        "quantity": "0.5",
    }
    return order_entry_pb2.SubmitOrderRequest(**(fields | changes))  # type: ignore[arg-type]


def test_decimal_text_becomes_ticks_and_lots() -> None:
    command = submit_command(INSTRUMENT, 3, order(post_only=True))
    assert command == Command(
        command_verb(CommandKind.NEW_ORDER, 3, Side.BUY, LIMIT, GTC),
        client_order_id=7,
        price=command_price(6_400_010, 2, words.COMMAND_FLAG_POST_ONLY),
        quantity=50_000,
    )


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"price": ""}, "FIELD_MISSING", "price"),
        ({"price": "-1"}, "PRICE_INVALID", "price"),
        ({"price": "1.001"}, "PRICE_INVALID", "price"),
        ({"price": "1e5"}, "PRICE_INVALID", "price"),
        ({"price": "NaN"}, "PRICE_INVALID", "price"),
        ({"price": "9" * 5_000}, "PRICE_INVALID", "price"),
        ({"price": "42949672.96"}, "PRICE_INVALID", "price"),
        ({"quantity": ""}, "FIELD_MISSING", "quantity"),
        ({"quantity": "0.000001"}, "QUANTITY_INVALID", "quantity"),
        ({"quantity": "9" * 30}, "QUANTITY_INVALID", "quantity"),
        ({"quantity": "٣"}, "QUANTITY_INVALID", "quantity"),
        ({"amount": "5"}, "FIELD_UNWANTED", "amount"),
        ({"order_type": 2}, "FIELD_UNWANTED", "price"),
        ({"order_type": 3, "price": ""}, "FIELD_UNWANTED", "quantity"),
        ({"order_type": 3, "price": "", "quantity": ""}, "FIELD_MISSING", "amount"),
        (
            {"order_type": 3, "price": "", "quantity": "", "amount": "0.123456789"},
            "AMOUNT_INVALID",
            "amount",
        ),
    ],
)
def test_what_is_wrong_in_itself_is_refused_by_field_value_and_limit(
    changes: dict[str, object], reason: str, field: str
) -> None:
    refusal = submit_command(INSTRUMENT, 1, order(**changes))
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.reason, refusal.field) == (Code.INVALID_ARGUMENT, reason, field)
    assert refusal.limit
    given_value = str(changes.get(field, ""))
    assert refusal.value == given_value or refusal.value.startswith(given_value[:50])
    assert len(refusal.value) <= 101
    info = status_of(refusal).details[0]
    assert "google.rpc.ErrorInfo" in info.type_url


def test_what_only_the_engine_can_judge_is_passed_on() -> None:
    odd = order(side=99, order_type=-1, time_in_force=16, self_trade_prevention=1000, price="0")
    command = submit_command(INSTRUMENT, 1, odd)
    assert isinstance(command, Command)
    assert command.verb == command_verb(CommandKind.NEW_ORDER, 1, 15, 15, 15)
    assert command.price == command_price(0, 255)


def test_a_price_of_zero_is_no_change_of_price() -> None:
    request = order_entry_pb2.AmendOrderRequest(order_id=5, price="0", quantity="1")
    refusal = amend_command(INSTRUMENT, 1, request)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "PRICE_OUT_OF_RANGE"
    request.price = ""
    command = amend_command(INSTRUMENT, 1, request)
    assert isinstance(command, Command)
    assert command.price == 0
    request.quantity = ""
    assert isinstance(amend_command(INSTRUMENT, 1, request), Refusal)


def test_settings_become_the_words_that_records_describe() -> None:
    fees = pair_admin_pb2.SetFeesRequest(account=4, taker_fee_ppm=900, maker_fee_ppm=-100)
    assert fees_command(fees).words(0)[6:] == (900, -100)
    limits = pair_admin_pb2.SetLimitsRequest(
        account=4, largest_order_lots=1, largest_notional_units=2, most_open_orders=3
    )
    assert limits_command(limits).words(0)[4:] == (1, 0, 2, 3)
    kill = pair_admin_pb2.SetKillSwitchRequest(account=4, killed=True)
    assert kill_switch_command(kill).words(0)[6] == 1
    status = pair_admin_pb2.SetPairStatusRequest(status=2)  # type: ignore[arg-type]
    assert pair_status_command(status).words(0)[6] == 2
    band = pair_admin_pb2.SetPriceBandRequest(low_price="1", high_price="2.5", width_ppm=9)
    command = price_band_command(INSTRUMENT, band)
    assert isinstance(command, Command)
    assert command.words(0)[4:] == (9, 0, 100, 250)
    band.high_price = "x"
    assert isinstance(price_band_command(INSTRUMENT, band), Refusal)
    assert disconnect_command(4).price == words.COMMAND_FLAG_DISCONNECTED << 40


def test_transfers_name_asset_amount_and_number() -> None:
    request = pair_admin_pb2.AllotFundsRequest(
        account=4,
        asset=1,  # type: ignore[arg-type]
        amount="0.00000001",
        transfer_number=12,
    )
    command = transfer_command(INSTRUMENT, CommandKind.ALLOT_FUNDS, request)
    assert isinstance(command, Command)
    assert command[:5] == (command_verb(CommandKind.ALLOT_FUNDS, 4), 12, 0, 1, 1)
    for field, value in (("amount", ""), ("amount", "-1"), ("asset", 3)):
        wrong = pair_admin_pb2.AllotFundsRequest()
        wrong.CopyFrom(request)
        setattr(wrong, field, value)
        refusal = transfer_command(INSTRUMENT, CommandKind.ALLOT_FUNDS, wrong)
        assert isinstance(refusal, Refusal)
        assert refusal.field == field


@pytest.mark.parametrize("text", ["", "0", "-1", "+1", "1.0", "1 ", "²", "9" * 40, b"\xff"])
def test_who_does_not_name_an_account_is_nobody(text: str | bytes) -> None:
    refusal = account_of_text("holdfast-account", text)
    assert isinstance(refusal, Refusal)
    assert refusal.code == Code.UNAUTHENTICATED
    assert str(ACCOUNT_LIMIT) in refusal.limit


def test_account_numbers_fit_their_word() -> None:
    assert account_of_text("holdfast-account", str(ACCOUNT_LIMIT)) == ACCOUNT_LIMIT
    assert command_verb(255, ACCOUNT_LIMIT, 255, 255, 255) < 1 << 63
    assert account_in("account", ACCOUNT_LIMIT) == ACCOUNT_LIMIT
    for wrong in (0, -1, ACCOUNT_LIMIT + 1, 1 << 62):
        assert isinstance(account_in("account", wrong), Refusal)


def test_a_server_that_believes_its_callers_listens_on_loopback_only(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        require_loopback(host)
    for host in ("0.0.0.0", "10.0.0.1", "example.org", ""):
        with pytest.raises(NotLoopback):
            require_loopback(host)
    with pytest.raises(ValueError, match="ring is 64"):
        EntryConfig(INSTRUMENT, RunFolder(tmp_path, "P"), ring=64).validate()


def test_a_wrong_command_line_ends_with_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    start = ["--pair", "BTC-USDT", "--run", str(tmp_path), "--ring", "0"]
    assert parse(start).run.pair == "BTC-USDT"
    for wrong in (["--host", "0.0.0.0"], ["--port", "70000"], ["--pair", "NO-SUCH"]):
        with pytest.raises(SystemExit):
            parse([*start, *wrong])
        assert wrong[1] in capsys.readouterr().err


# Reports.

TAKER, MAKER = 11, 22


def trade(maker_account: int = MAKER) -> Rows:
    row = np.zeros((1, EXECUTION_WORDS), np.int64)
    verb = ExecutionKind.TRADE | Side.BUY << 16 | 1 << 24 | TAKER << 32
    row[0] = [
        *(5, 1_000, verb, 901, 1, command_price(6_400_010) | 1 << 32 | 1 << 40 | 2 << 48),
        *(300, 200, 300, 77, 0, 902, 2, maker_account << 32, 50, -33),
    ]
    return row


def test_each_side_of_a_trade_sees_itself_and_nothing_of_the_other() -> None:
    (taken,), _ = executions_of(INSTRUMENT, trade(), 40, TAKER, 10)
    (made,), _ = executions_of(INSTRUMENT, trade(), 40, MAKER, 10)
    assert (taken.order_id, taken.client_order_id, taken.account) == (901, 1, TAKER)
    assert (made.order_id, made.client_order_id, made.account) == (902, 2, MAKER)
    assert (int(taken.side), int(made.side)) == (Side.BUY, Side.SELL)
    assert (taken.maker, made.maker) == (False, True)
    assert (taken.leaves_lots, made.leaves_lots) == (200, 50)
    assert (taken.fee_units, made.fee_units) == (77, -33)
    assert made.fee == "-0.00000033"
    assert made.filled_lots == 0
    for seen in (taken, made):
        assert (seen.number, seen.price, seen.quantity) == (40, "64000.10", "0.00300")
    assert executions_of(INSTRUMENT, trade(), 40, 33, 10) == ([], 1)


def test_a_trade_with_oneself_is_seen_from_both_sides() -> None:
    found, used = executions_of(INSTRUMENT, trade(TAKER), 40, TAKER, 10)
    assert [(one.order_id, one.maker) for one in found] == [(901, False), (902, True)]
    assert used == 1


def test_a_full_page_of_executions_says_where_to_go_on() -> None:
    rows = np.concatenate([trade(), trade(33), trade(), trade()])
    found, used = executions_of(INSTRUMENT, rows, 40, MAKER, 2)
    assert [one.number for one in found] == [40, 42]
    assert used == 3
    rest, used = executions_of(INSTRUMENT, rows[used:], 40 + used, MAKER, 2)
    assert [one.number for one in rest] == [43]
    assert used == 1


@pytest.mark.parametrize("reason", [reason for reason in Reason if 0 < reason <= 33])
def test_every_rejection_has_a_sentence(reason: Reason) -> None:
    row = np.zeros((1, EXECUTION_WORDS), np.int64)
    row[0, words.E_VERB] = ExecutionKind.REJECTED | reason << 8 | 1 << 24 | TAKER << 32
    ack = [0, 0, 0, 0, 9, ExecutionKind.REJECTED | reason << 8 | 1 << 32]
    report = report_of(INSTRUMENT, ack, row, TAKER, 10)
    assert int(report.reason) == reason
    assert report.message
    assert "{" not in report.message
    assert (report.first_number, report.last_number, report.truncated) == (9, 9, False)


def test_a_rejection_says_what_kind_of_command_was_refused() -> None:
    row = np.zeros((1, EXECUTION_WORDS), np.int64)
    row[0, words.E_VERB] = ExecutionKind.REJECTED | 1 << 24 | TAKER << 32
    row[0, words.E_COMMAND_KIND] = CommandKind.AMEND_ORDER
    ((rejected,), _) = executions_of(INSTRUMENT, row, 0, TAKER, 1)
    assert int(rejected.command_kind) == CommandKind.AMEND_ORDER
    assert rejected.fee_units == 0
    row[0, words.E_VERB] = ExecutionKind.ACCEPTED | 1 << 24 | TAKER << 32
    ((accepted,), _) = executions_of(INSTRUMENT, row, 0, TAKER, 1)
    assert int(accepted.command_kind) == CommandKind.UNSPECIFIED


# The index of orders.


def check_index(index: OrderIndex, twin: Twin, accounts: int) -> None:
    """Compare everything the index says of resting orders with the twin's book."""
    resting = {order.order_id: order for order in twin.engine.market.book.orders.values()}
    listed = []
    for account in range(1, accounts + 1):
        first = 1
        while first:
            page, first = index.page(account, first, 2)
            listed += page
    assert {order.order_id for order in listed} == set(resting)
    for found in listed:
        expected = resting[found.order_id]
        assert (found.account, found.side) == (expected.account, expected.side)
        assert (found.leaves, found.filled_lots) == (expected.leaves, expected.filled)
        assert found.price_word & 0xFFFFFFFF == expected.price
        assert found.end_kind == 0
        assert index.find(found.account, found.order_id, 0) == found
        assert index.find(found.account, 0, found.client_order_id) == found
        other = found.account % accounts + 1
        assert index.find(other, found.order_id, 0) is None


@given(streams(), st.data())
@effort(60)
def test_the_index_knows_what_rests_and_a_snapshot_keeps_it(
    tmp_path_factory: pytest.TempPathFactory, stream: Stream, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("index")
    instrument = stream.universe.instrument
    twin = Twin(instrument)
    index = OrderIndex(instrument.pair, instrument.order_capacity)
    ended: dict[int, int] = {}
    kept = data.draw(st.integers(0, len(stream.commands)))
    for number, (command, time_ns) in enumerate(stream):
        rows = twin.apply(command, time_ns)
        index.apply(np.array(rows, np.int64).reshape(-1, EXECUTION_WORDS))
        for row in rows:
            if row[words.E_VERB] & 0xFF == ExecutionKind.ACCEPTED:
                ended[row[words.E_ORDER_ID]] = row[words.E_VERB] >> 32
        if number == kept:
            write_snapshot(index.content(), folder / "orders-0.npz")
            again = newest_index(
                instrument.pair, instrument.order_capacity, folder, 0, index.number
            )
            assert again is not None
            assert again.number == index.number
            index = again
    check_index(index, twin, stream.universe.accounts)
    resting = {order.order_id for order in twin.engine.market.book.orders.values()}
    for order_id, account in ended.items():
        if order_id not in resting:
            found = index.find(account, order_id, 0)
            assert found is not None
            assert found.end_kind in (
                *(ExecutionKind.TRADE, ExecutionKind.CANCELLED, ExecutionKind.EXPIRED),
            )


def test_a_long_flow_leaves_the_index_and_the_book_equal() -> None:
    universe = UNIVERSES["wide"]
    twin = Twin(universe.instrument)
    author = Author(SeededDice(20_261_122), universe, twin)
    index = OrderIndex(universe.instrument.pair, universe.instrument.order_capacity)
    pending = author.opening()
    for _ in range(4_000):
        rows = twin.apply(pending.pop(0) if pending else author.command(), author.pass_time())
        author.watch(rows)
        index.apply(np.array(rows, np.int64).reshape(-1, EXECUTION_WORDS))
    assert twin.engine.market.book.orders
    check_index(index, twin, universe.accounts)


def test_a_snapshot_that_does_not_fit_is_not_used(tmp_path: Path) -> None:
    index = OrderIndex("A-B", 10)
    index.number = 50
    path = tmp_path / "orders-3.npz"
    write_snapshot(index.content(), path)
    fitting = newest_index("A-B", 10, tmp_path, 20, 60)
    assert fitting is not None
    assert fitting.number == 50
    assert newest_index("A-B", 10, tmp_path, 51, 60) is None, "the log begins behind it"
    assert newest_index("A-B", 10, tmp_path, 20, 49) is None, "the log does not reach it"
    assert newest_index("X-Y", 10, tmp_path, 20, 60) is None, "of another pair"
    assert newest_index("A-B", 11, tmp_path, 20, 60) is None, "of another capacity"
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert newest_index("A-B", 10, tmp_path, 20, 60) is None
    empty = newest_index("A-B", 10, tmp_path, 0, 60)
    assert empty is not None
    assert empty.number == 0


def test_the_page_names_every_reason_a_call_can_be_refused_with() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    sources = [
        *(root / "engine" / "entry").glob("*.py"),
        root / "engine" / "order_entry.py",
        root / "exchange" / "service.py",
    ]
    quoted = re.compile(r'"([A-Z]+(?:_[A-Z]+)+|INTERNAL)"')
    used = {name for path in sources for name in quoted.findall(path.read_text())}
    reasons = {name for name in used if not name.startswith("HOLDFAST_")} - {"DRAINING"}
    named = set(re.findall(r"`([A-Z_]+)`", (root / "docs" / "api.md").read_text()))
    assert "RING_FULL" in reasons
    assert reasons <= named
