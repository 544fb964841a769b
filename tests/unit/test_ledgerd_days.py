"""Closing days: what belongs to one, whose fees go where, when it is due, what a failure does."""

import asyncio
import logging
from datetime import date, timedelta

import pytest

from exchange.enums import Asset, ExecutionKind
from exchange.refusal import Refused
from exchange.v1 import ledger_pb2
from ledgerd import chart
from ledgerd.audit import verify
from ledgerd.chart import Purpose, TransferKind
from ledgerd.days import schedule
from ledgerd.days.close import DayClose, end_ns_of
from ledgerd.days.schedule import GRACE_NS, LATE_NS, DailyClose
from ledgerd.follower import Status
from ledgerd.ledger import Ledger
from tests.books import OTHER, PAIR, START_NS, TestBooks, fresh_books, superuser, user
from tests.unit.test_ledgerd_ledger import funded, moved, rows_of, trade
from tests.unit.test_ledgerd_server import door_to

FIRST = date(2026, 1, 1)
SECOND = date(2026, 1, 2)
END_NS = end_ns_of(FIRST)


def at(sequence: int, time_ns: int, pair_fee: int = 7) -> list[int]:
    """Trade at a moment of the engine's clock; the fees are `pair_fee` less a rebate of 2."""
    return trade(1, 2, sequence, w1=time_ns, w9=pair_fee)


def fees(books: TestBooks, pair: str = "") -> int:
    return books.balance(chart.fees("USDT", pair))


def sums(close: DayClose, asset: str) -> dict[Purpose, int]:
    return {line.purpose: line.amount for line in close.sums if line.asset == asset}


def test_a_day_counts_what_was_executed_in_it_even_if_it_was_settled_later() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        cursor = books.ledger.settle(PAIR, rows_of(at(9, START_NS + 1)), cursor)
        books.clock.now_ns = END_NS + GRACE_NS
        rows = rows_of(at(10, END_NS - 1), at(11, END_NS), at(12, END_NS + 1))
        books.ledger.settle(PAIR, rows, cursor)
        books.deposit(1, "USDT", 1_000)
        assert fees(books, PAIR.pair) == 20
        close = books.ledger.close_day(FIRST)
        assert sums(close, "USDT")[Purpose.FEES] == 10
        # Two traders with 10**9 each, of which 10 are fees; the deposit is of the next day.
        owed = sums(close, "USDT")
        assert owed[Purpose.TRADING] + owed[Purpose.ALLOTTED] == 2 * 10**9 - 10
        assert owed[Purpose.CUSTODY] == -2 * 10**9
        assert [(one.pair, one.amount) for one in close.sweeps] == [(PAIR.pair, 10)]
        assert (fees(books, PAIR.pair), fees(books)) == (10, 10)
        assert books.ledger.close_day(FIRST) == close
        assert (fees(books, PAIR.pair), fees(books)) == (10, 10)
        assert verify(books.engine).complaints == []


def test_the_fees_of_every_pair_are_swept_by_transfers_of_their_own() -> None:
    with fresh_books() as books:
        books.ledger.list_pair(OTHER)
        cursor = funded(books)
        books.ledger.settle(PAIR, rows_of(at(9, START_NS + 1)), cursor)
        rows: list[list[int]] = []
        for number, (owner, asset) in enumerate(((1, "ETH"), (1, "USDT"), (2, "ETH"), (2, "USDT"))):
            books.ledger.open_accounts([user(owner, asset)])
            books.deposit(owner, "USDT", 10**9)
            if asset == "ETH":
                continue
            told = books.ledger.allot(books.new_id(), OTHER.pair, owner, Asset.QUOTE, 10**8)
            assert told.number == len(rows) + 1, number
            words = {"w5": 2, "w6": 10**8, "w7": 10**8}
            rows.append(moved(ExecutionKind.ALLOTTED, owner, told.number, told.number, **words))
        # Whom the price does not matter: nothing is bought, and both pay.
        rows.append(at(9, START_NS + 1, pair_fee=3))
        rows[-1][6] = 0
        books.ledger.settle(OTHER, rows_of(*rows), 0)
        books.clock.now_ns = END_NS + GRACE_NS
        close = books.ledger.close_day(FIRST)
        assert [(one.pair, one.amount) for one in close.sweeps] == [(PAIR.pair, 5), (OTHER.pair, 1)]
        door = door_to(books, [])
        for sweep in close.sweeps:
            request = ledger_pb2.GetTransferRequest(transfer_id=sweep.transfer_id)
            told_of = door.answer("GetTransfer", request)
            assert told_of.kind == TransferKind.FEE_SWEEP
            assert {one.name.pair: one.amount_units for one in told_of.postings} == {
                sweep.pair: -sweep.amount,
                "": sweep.amount,
            }
        assert fees(books) == 6


def test_what_somebody_swept_before_is_not_swept_again() -> None:
    with fresh_books() as books:
        cursor = books.ledger.settle(PAIR, rows_of(at(9, START_NS + 1)), funded(books))
        books.clock.now_ns = END_NS + GRACE_NS
        books.ledger.open_accounts([chart.fees("USDT")])
        legs = (chart.fees("USDT", PAIR.pair), -4), (chart.fees("USDT"), 4)
        books.ledger.post([books.transfer(*legs, kind=TransferKind.FEE_SWEEP)])
        close = books.ledger.close_day(FIRST)
        assert [one.amount for one in close.sweeps] == [1]
        assert cursor == 5
        books.clock.now_ns = end_ns_of(SECOND)
        assert books.ledger.close_day(SECOND).sweeps == []


def test_days_are_closed_one_after_the_other() -> None:
    with fresh_books() as books:
        with pytest.raises(Refused, match="no day yet"):
            books.ledger.close_day(FIRST)
        books.open(1, PAIR)
        books.clock.now_ns = end_ns_of(SECOND)
        for day in (SECOND, FIRST - timedelta(days=1)):
            with pytest.raises(Refused, match="the next one"):
                books.ledger.close_day(day)
        books.ledger.close_day(FIRST)
        books.ledger.close_day(SECOND)


class Heard(logging.Handler):
    """Hears the schedule's log: an event once a sentence begins so."""

    def __init__(self, start: str) -> None:
        super().__init__(logging.INFO)
        self.event, self._start = asyncio.Event(), start
        schedule.log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self._start):
            self.event.set()


class Desk:
    """A schedule over books whose clock and settlement the test moves."""

    def __init__(self, books: TestBooks) -> None:
        self.passed_ns = 0
        self.daily = DailyClose(books.ledger, lambda: self.passed_ns, books.clock)


def test_a_day_is_closed_once_it_is_over_and_settlement_has_passed_it() -> None:
    with fresh_books() as books:
        desk = Desk(books)
        assert desk.daily.step() is None
        books.open(1, PAIR)
        desk.passed_ns = 1 << 62
        assert desk.daily.step() is None
        books.clock.now_ns, desk.passed_ns = END_NS + GRACE_NS, END_NS + GRACE_NS - 1
        assert desk.daily.step() is None
        desk.passed_ns += 1
        closed = desk.daily.step()
        assert closed is not None
        assert closed.day == FIRST
        assert desk.daily.step() is None


def test_a_ledgerd_that_was_away_closes_every_day_it_missed() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        desk = Desk(books)
        desk.passed_ns = books.clock.now_ns = END_NS + 3 * 86_400 * 10**9 + GRACE_NS
        closed = [desk.daily.step() for _ in range(5)]
        days = [one.day for one in closed if one is not None]
        assert days == [FIRST + timedelta(days=n) for n in range(4)]
        # Another process goes on where this one was.
        assert Ledger(books.engine, books.clock).next_day() == FIRST + timedelta(days=4)


def test_settlement_that_keeps_a_day_open_is_an_alarm_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        desk = Desk(books)
        books.clock.now_ns = END_NS + LATE_NS - 10
        assert desk.daily.step() is None
        assert "not closed" not in caplog.text
        books.clock.now_ns = END_NS + LATE_NS
        for _ in range(3):
            assert desk.daily.step() is None
        assert caplog.text.count("2026-01-01 is not closed") == 1


def test_a_close_that_fails_is_an_alarm_and_is_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "AGAIN_S", 0.0)
    monkeypatch.setattr(schedule, "LOOK_S", 0.0)
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 100)
        thief = superuser(books)

        def posted(amount: int, instead: int) -> None:
            with thief.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE postings DISABLE TRIGGER ALL")
                connection.exec_driver_sql(
                    "UPDATE postings SET amount = %s WHERE amount = %s", (amount, instead)
                )

        posted(101, 100)
        desk = Desk(books)
        desk.passed_ns = books.clock.now_ns = END_NS + GRACE_NS

        async def scene() -> None:
            failed, closed = Heard("the close of 2026-01-01 failed"), Heard("closed 2026-01-01")
            task = asyncio.create_task(desk.daily.run())
            async with asyncio.timeout(60):
                await failed.event.wait()
                assert "BTC sums to 1" in caplog.text
                assert books.ledger.next_day() == FIRST
                posted(100, 101)
                await closed.event.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for heard in (failed, closed):
                schedule.log.removeHandler(heard)

        with caplog.at_level(logging.INFO):
            asyncio.run(scene())
        thief.dispose()
        assert books.ledger.next_day() == SECOND


def test_the_door_closes_and_lists_days() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        books.ledger.settle(PAIR, rows_of(at(9, START_NS + 1)), cursor)
        status = Status(PAIR.pair)
        door = door_to(books, [status])
        request = ledger_pb2.CloseDayRequest(day="2026-01-01")
        assert door.reason("CloseDay", request)[0] == "DAY_NOT_OVER"
        books.clock.now_ns, status.passed_ns = END_NS + 1, END_NS - 1
        assert door.reason("CloseDay", request)[0] == "DAY_NOT_SETTLED"
        status.passed_ns = END_NS
        close = door.answer("CloseDay", request).close
        assert (close.day, close.sweeps[0].pair, close.sweeps[0].amount) == (
            "2026-01-01",
            PAIR.pair,
            "0.00000005",
        )
        assert {line.asset for line in close.lines} == {"BTC", "USDT"}
        # A closed day is answered as it was closed, whatever settlement does now.
        status.passed_ns = 0
        assert door.answer("CloseDay", request).close == close
        listed = door.answer("ListCloses", ledger_pb2.ListClosesRequest())
        assert list(listed.closes) == [close]
        later = ledger_pb2.ListClosesRequest(from_day="2026-01-02")
        assert not door.answer("ListCloses", later).closes
        for day in ("", "2026-1-1", "tomorrow", "20260101"):
            request = ledger_pb2.CloseDayRequest(day=day)
            assert door.reason("CloseDay", request)[0] == "DAY_INVALID"
        page = ledger_pb2.ListClosesRequest(page_size=101)
        assert door.reason("ListCloses", page)[0] == "PAGE_SIZE_OUT_OF_RANGE"
