"""The books as their writer sees them: what is posted, what is refused, and nothing twice."""

import threading
from datetime import date
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy.exc import IntegrityError

from exchange.enums import Asset, CommandKind, ExecutionKind, Reason, Side
from exchange.records import Rows
from exchange.refusal import Refused
from ledgerd import chart
from ledgerd.audit import trial_balance, verify
from ledgerd.books.commit import CursorMoved, Overdrawn
from ledgerd.books.settling import BooksDiffer
from ledgerd.chart import AccountName, OwnerKind, Phase, Purpose, TransferKind
from ledgerd.ledger import BooksUnbalanced
from ledgerd.postings import FeedContradiction
from ledgerd.transfers import NewTransfer
from tests.books import OTHER, PAIR, TestBooks, custody, fresh_books, superuser, user

DAY_NS = 86_400 * 10**9


def allotted(owner: int, asset: str) -> AccountName:
    return user(owner, asset, Purpose.ALLOTTED, PAIR.pair)


def flight(owner: int, asset: str) -> AccountName:
    return user(owner, asset, Purpose.SUSPENSE, PAIR.pair)


def execution(kind: ExecutionKind, account: int, sequence: int, **words: int) -> list[int]:
    row = [0] * 16
    row[0], row[1] = sequence, 1_000 + sequence
    row[2] = kind | words.pop("reason", 0) << 8 | words.pop("side", 0) << 16 | 1 << 24
    row[2] |= account << 32
    for name, value in words.items():
        row[int(name[1:])] = value
    return row


def moved(kind: ExecutionKind, owner: int, sequence: int, number: int, **words: int) -> list[int]:
    return execution(kind, owner, sequence, w4=number, **words)


def refused(owner: int, sequence: int, number: int, **words: int) -> list[int]:
    """Refuse to release money that is not free."""
    given = {"reason": int(Reason.INSUFFICIENT_FUNDS), "w9": int(CommandKind.RELEASE_FUNDS)}
    return moved(ExecutionKind.REJECTED, owner, sequence, number, **(given | words))


def trade(taker: int, maker: int, sequence: int, lots: int = 10, **words: int) -> list[int]:
    given = {"w5": 100, "w6": lots, "w9": 7, "w13": maker << 32, "w15": -2} | words
    return execution(ExecutionKind.TRADE, taker, sequence, **{"side": Side.BUY, **given})


def rows_of(*rows: list[int]) -> Rows:
    return np.array(rows, np.int64)


def funded(books: TestBooks) -> int:
    """Give two traders money in the engine; return the cursor."""
    books.open(2, PAIR)
    rows = []
    for owner in (1, 2):
        for asset, code in ((Asset.BASE, "BTC"), (Asset.QUOTE, "USDT")):
            books.deposit(owner, code, 10**9)
            number = books.ledger.allot(books.new_id(), PAIR.pair, owner, asset, 10**8).number
            words = {"w5": int(asset), "w6": 10**8, "w7": 10**8}
            rows.append(moved(ExecutionKind.ALLOTTED, owner, number, number, **words))
    return books.ledger.settle(PAIR, rows_of(*rows), 0)


def reason_of(caught: pytest.ExceptionInfo[Refused]) -> str:
    return caught.value.refusal.reason


def test_a_deposit_is_owed_and_kept() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 5)
        assert books.balance(user(1, "BTC")) == 5
        assert books.balance(custody("BTC")) == -5


def test_a_repeated_transfer_is_answered_and_done_once() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        transfer = books.transfer((custody("BTC"), -5), (user(1, "BTC"), 5))
        first, second = books.ledger.post([transfer])[0], books.ledger.post([transfer])[0]
        assert (first.repeated, second.repeated) == (False, True)
        assert first.transfer_id == second.transfer_id
        assert books.balance(user(1, "BTC")) == 5


def test_an_id_with_other_content_is_refused() -> None:
    with fresh_books() as books:
        books.open(2, PAIR)
        transfer = books.transfer((custody("BTC"), -5), (user(1, "BTC"), 5))
        books.ledger.post([transfer])
        other = books.transfer((custody("BTC"), -5), (user(2, "BTC"), 5), id=transfer.id)
        with pytest.raises(Refused) as caught:
            books.ledger.post([other])
        assert reason_of(caught) == "TRANSFER_ID_REUSED"


@pytest.mark.parametrize(
    ("legs", "more", "reason"),
    [
        (((user(1, "BTC"), 5),), {}, "LEGS_INVALID"),
        (((user(1, "BTC"), 0), (user(2, "BTC"), 0)), {}, "AMOUNT_OUT_OF_RANGE"),
        (((user(1, "BTC"), -5), (user(2, "BTC"), 4)), {}, "UNBALANCED"),
        (((user(1, "BTC"), -5), (user(2, "USDT"), 5)), {}, "UNBALANCED"),
        (((user(1, "BTC"), -(1 << 63)), (user(2, "BTC"), 1 << 63)), {}, "AMOUNT_OUT_OF_RANGE"),
        (((user(1, "BTC"), -5), (user(9, "BTC"), 5)), {}, "ACCOUNT_UNKNOWN"),
        (((user(1, "DOGE"), -5), (user(2, "DOGE"), 5)), {}, "ACCOUNT_UNKNOWN"),
        (((user(1, "BTC"), -5), (user(2, "BTC"), 5)), {}, "INSUFFICIENT_FUNDS"),
        (((user(1, "BTC"), -5), (allotted(2, "BTC"), 5)), {}, "ACCOUNT_OF_ENGINE"),
        (
            ((user(1, "BTC"), -5), (user(2, "BTC"), 5)),
            {"kind": TransferKind.TRADE},
            "KIND_INVALID",
        ),
        (
            ((user(1, "BTC"), 5), (user(2, "BTC"), -5)),
            {"phase": Phase.PENDING},
            "LEGS_INVALID",
        ),
        ((), {"phase": Phase.POSTED, "pending_id": UUID(int=99)}, "PENDING_UNKNOWN"),
        ((), {"phase": Phase.POSTED}, "PENDING_ID_INVALID"),
        (((user(1, "BTC"), -5), (user(2, "BTC"), 5)), {"note": "x" * 201}, "TEXT_TOO_LONG"),
        (((user(1, "BTC"), -5), (user(2, "BTC"), 5)), {"note": "\0"}, "TEXT_INVALID"),
    ],
)
def test_what_cannot_be_posted_is_refused_and_changes_nothing(
    legs: tuple[tuple[AccountName, int], ...], more: dict[str, object], reason: str
) -> None:
    with fresh_books() as books:
        books.open(2, PAIR)
        good = books.transfer((custody("BTC"), -1), (user(2, "BTC"), 1))
        with pytest.raises(Refused) as caught:
            books.ledger.post([good, books.transfer(*legs, **more)])
        assert reason_of(caught) == reason
        assert books.balance(user(2, "BTC")) == 0


def test_a_pending_transfer_waits_apart_and_is_resolved_once() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 10)
        target = user(1, "BTC", Purpose.FUNDING)
        pending = books.transfer((user(1, "BTC"), -8), (target, 8), phase=Phase.PENDING)
        books.ledger.post([pending])
        assert books.balance(user(1, "BTC", Purpose.SUSPENSE)) == 8
        part = {"phase": Phase.POSTED, "pending_id": pending.id}
        too_much = books.transfer(**part, amount=9)
        with pytest.raises(Refused) as caught:
            books.ledger.post([too_much])
        assert reason_of(caught) == "AMOUNT_OUT_OF_RANGE"
        books.ledger.post([books.transfer(**part, amount=3)])
        assert books.balance(target) == 3
        assert books.balance(user(1, "BTC")) == 7
        for phase in (Phase.POSTED, Phase.VOIDED):
            with pytest.raises(Refused) as caught:
                books.ledger.post([books.transfer(phase=phase, pending_id=pending.id)])
            assert reason_of(caught) == "PENDING_RESOLVED"


def test_an_expired_transfer_returns_by_itself() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 10)
        pending = books.transfer(
            (user(1, "BTC"), -8),
            (user(1, "BTC", Purpose.FUNDING), 8),
            phase=Phase.PENDING,
            expires_ns=books.clock.now_ns + 500,
        )
        books.ledger.post([pending])
        assert books.ledger.expire() == []
        books.clock.now_ns += 1_000
        with pytest.raises(Refused) as caught:
            books.ledger.post([books.transfer(phase=Phase.POSTED, pending_id=pending.id)])
        assert reason_of(caught) == "EXPIRED"
        assert len(books.ledger.expire()) == 1
        assert books.ledger.expire() == []
        assert books.balance(user(1, "BTC")) == 10


def test_an_owner_number_has_one_kind() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        maker = AccountName(OwnerKind.MARKET_MAKER, 1, Purpose.TRADING, "BTC")
        with pytest.raises(Refused) as caught:
            books.ledger.open_accounts([maker])
        assert reason_of(caught) == "OWNER_TAKEN"


def test_opening_and_listing_again_change_nothing() -> None:
    with fresh_books() as books:
        books.open(2, PAIR)
        ids = books.ledger.open_accounts([user(1, "BTC"), user(2, "BTC"), user(1, "BTC")])
        assert ids[0] == ids[2] != ids[1]
        assert books.ledger.list_pair(PAIR) == books.ledger.list_pair(PAIR) == 1
        with pytest.raises(Refused) as caught:
            books.ledger.list_asset("BTC", 9)
        assert reason_of(caught) == "ASSET_LISTED"


def test_money_in_flight_is_in_the_books_until_the_engine_says_so() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 100)
        number = books.ledger.allot(books.new_id(), PAIR.pair, 1, Asset.BASE, 60).number
        assert (books.balance(user(1, "BTC")), books.balance(flight(1, "BTC"))) == (40, 60)
        words = {"w5": int(Asset.BASE), "w6": 60, "w7": 45, "w8": 15}
        row = moved(ExecutionKind.ALLOTTED, 1, 1, number, **words)
        books.ledger.settle(PAIR, rows_of(row), 0)
        assert (books.balance(flight(1, "BTC")), books.balance(allotted(1, "BTC"))) == (0, 60)


def test_a_refused_allotment_returns() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 100)
        number = books.ledger.allot(books.new_id(), PAIR.pair, 1, Asset.BASE, 60).number
        row = moved(
            ExecutionKind.REJECTED,
            1,
            1,
            number,
            reason=Reason.BALANCE_OVERFLOW,
            w5=1,
            w6=60,
            w9=CommandKind.ALLOT_FUNDS,
        )
        books.ledger.settle(PAIR, rows_of(row), 0)
        assert books.balance(user(1, "BTC")) == 100


def test_a_refused_amendment_that_looks_like_a_release_resolves_nothing() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        number = books.ledger.recall(books.new_id(), PAIR.pair, 1, Asset.BASE, 60).number
        looks_alike = execution(
            ExecutionKind.REJECTED,
            1,
            10,
            reason=Reason.INSUFFICIENT_FUNDS,
            w4=number,
            w5=1,
            w6=60,
            w9=CommandKind.AMEND_ORDER,
        )
        books.ledger.settle(PAIR, rows_of(looks_alike), cursor)
        words = {"w5": 1, "w6": 60, "w7": 10**8 - 60}
        row = moved(ExecutionKind.RELEASED, 1, 11, number, **words)
        books.ledger.settle(PAIR, rows_of(row), cursor + 1)
        assert books.balance(allotted(1, "BTC")) == 10**8 - 60


def test_a_trade_moves_both_assets_and_the_fees() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        books.ledger.settle(PAIR, rows_of(trade(1, 2, 9, lots=10)), cursor)
        worth = 100 * 10 * PAIR.quote_units_per_tick_lot
        coins = 10 * PAIR.base_units_per_lot
        assert books.balance(allotted(1, "BTC")) == 10**8 + coins
        assert books.balance(allotted(2, "BTC")) == 10**8 - coins
        assert books.balance(allotted(1, "USDT")) == 10**8 - worth - 7
        assert books.balance(allotted(2, "USDT")) == 10**8 + worth + 2
        assert books.balance(chart.fees("USDT", PAIR.pair)) == 5


def test_a_feed_applied_twice_changes_nothing() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        rows = rows_of(trade(1, 2, 9), trade(2, 1, 10))
        books.ledger.settle(PAIR, rows, cursor)
        before = trial_balance(books.engine)
        for again in (rows, rows[:1], rows[1:]):
            with pytest.raises(CursorMoved) as caught:
                books.ledger.settle(PAIR, again, cursor)
            assert caught.value.found == cursor + 2
        assert trial_balance(books.engine) == before


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (trade(1, 7, 9), "the books allotted nothing|allotted nothing"),
        (trade(70_000, 1, 9), "allotted nothing"),
        (moved(ExecutionKind.ALLOTTED, 1, 9, 99, w5=1, w6=5, w7=5), "never gave"),
        (moved(ExecutionKind.ALLOTTED, 1, 9, 1, w5=1, w6=10**8, w7=5), "resolved already"),
        (moved(ExecutionKind.RELEASED, 1, 9, 5, w5=1, w6=61, w7=1), "the books gave"),
        (moved(ExecutionKind.RELEASED, 2, 9, 5, w5=1, w6=60, w7=1), "the books gave"),
        (moved(ExecutionKind.RELEASED, 1, 9, 5, w5=2, w6=60, w7=1), "the books gave"),
        (moved(ExecutionKind.ALLOTTED, 1, 9, 5, w5=1, w6=60, w7=1), "the books gave"),
        (refused(1, 9, 99, w5=1, w6=60), "never gave"),
        (refused(1, 9, 1, w5=1, w6=60), "resolved already"),
        (refused(2, 9, 5, w5=1, w6=60), "the books gave"),
        (refused(1, 9, 5, w5=2, w6=60), "the books gave"),
        (refused(1, 9, 5, w5=1, w6=61), "the books gave"),
        (refused(1, 9, 5, w5=1, w6=60, w9=CommandKind.ALLOT_FUNDS), "the books gave"),
        (trade(1, 2, 3), "go back behind"),
    ],
)
def test_an_engine_that_contradicts_the_books_is_named(row: list[int], sentence: str) -> None:
    with fresh_books() as books:
        cursor = funded(books)
        books.ledger.recall(books.new_id(), PAIR.pair, 1, Asset.BASE, 60)
        with pytest.raises(FeedContradiction, match=sentence):
            books.ledger.settle(PAIR, rows_of(trade(1, 2, 8), row), cursor)
        assert books.ledger.cursor(PAIR.pair) == cursor


def test_an_engine_that_holds_other_money_is_named() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        number = books.ledger.recall(books.new_id(), PAIR.pair, 1, Asset.BASE, 60).number
        row = moved(ExecutionKind.RELEASED, 1, 9, number, w5=1, w6=60, w7=10**8 - 61)
        with pytest.raises(BooksDiffer, match=f"holds {10**8 - 61} and the books {10**8 - 60}"):
            books.ledger.settle(PAIR, rows_of(row), cursor)
        assert books.ledger.cursor(PAIR.pair) == cursor


def test_an_overdraft_inside_a_batch_is_found_although_its_net_is_none() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        lots = 10**8 // PAIR.base_units_per_lot + 1
        out = trade(1, 2, 9, lots=lots, side=Side.SELL, w5=1, w9=0, w15=0)
        back = trade(1, 2, 10, lots=lots, side=Side.BUY, w5=1, w9=0, w15=0)
        with pytest.raises(Overdrawn):
            books.ledger.settle(PAIR, rows_of(out, back), cursor)
        assert books.ledger.cursor(PAIR.pair) == cursor


def test_the_last_guard_holds_when_all_others_are_gone() -> None:
    statement = "UPDATE balances SET amount = -1 WHERE minimum = 0"
    with fresh_books() as books:
        books.open(1, PAIR)
        with books.engine.connect() as connection, pytest.raises(IntegrityError) as caught:
            connection.exec_driver_sql(statement)
        assert "balances_bounds" in str(caught.value)


def test_two_writers_of_one_pair_post_each_execution_once() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        rows = rows_of(*(trade(1, 2, 9 + n, lots=1) for n in range(40)))
        outcomes: list[str] = []

        def settle() -> None:
            for place in range(0, 40, 4):
                try:
                    books.ledger.settle(PAIR, rows[place : place + 4], cursor + place)
                    outcomes.append("posted")
                except CursorMoved:
                    outcomes.append("moved")

        threads = [threading.Thread(target=settle) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count("posted") == 10
        assert books.balance(allotted(1, "BTC")) == 10**8 + 40 * PAIR.base_units_per_lot
        assert verify(books.engine).complaints == []


def test_pairs_settle_side_by_side_with_shared_owners() -> None:
    with fresh_books() as books:
        books.open(3, PAIR, OTHER)
        told: dict[str, list[list[int]]] = {PAIR.pair: [], OTHER.pair: []}
        for owner in (1, 2, 3):
            books.deposit(owner, "USDT", 10**9)
            for pair, rows in told.items():
                number = books.ledger.allot(books.new_id(), pair, owner, Asset.QUOTE, 10**6).number
                words = {"w5": 2, "w6": 10**6, "w7": 10**6}
                rows.append(moved(ExecutionKind.ALLOTTED, owner, number, number, **words))
        for spec in (PAIR, OTHER):
            books.ledger.settle(spec, rows_of(*told[spec.pair]), 0)
        order = {PAIR.pair: (1, 2, 3) * 5, OTHER.pair: (3, 2, 1) * 5}
        for pair, owners in order.items():
            left = dict.fromkeys((1, 2, 3), 10**6)
            for owner in owners:
                number = books.ledger.recall(books.new_id(), pair, owner, Asset.QUOTE, 10).number
                left[owner] -= 10
                words = {"w5": 2, "w6": 10, "w7": left[owner]}
                told[pair].append(moved(ExecutionKind.RELEASED, owner, number, number, **words))
        faults: list[BaseException] = []

        def settle(pair: str) -> None:
            try:
                settling = PAIR if pair == PAIR.pair else OTHER
                for place in range(3, len(told[pair]), 3):
                    books.ledger.settle(settling, rows_of(*told[pair][place : place + 3]), place)
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=settle, args=(pair,)) for pair in told]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        for owner in (1, 2, 3):
            assert books.balance(user(owner, "USDT")) == 10**9 - 2 * 10**6 + 100
        assert verify(books.engine).complaints == []


def test_an_instruction_cannot_be_resolved_by_hand() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 100)
        request = books.new_id()
        books.ledger.allot(request, PAIR.pair, 1, Asset.BASE, 60)
        void = NewTransfer(
            books.new_id(), TransferKind.INTERNAL, phase=Phase.VOIDED, pending_id=request
        )
        with pytest.raises(Refused) as caught:
            books.ledger.post([void])
        assert reason_of(caught) == "PENDING_UNKNOWN"


@pytest.mark.parametrize(
    ("owner", "amount", "reason"),
    [
        (1, 0, "AMOUNT_OUT_OF_RANGE"),
        (1, -1, "AMOUNT_OUT_OF_RANGE"),
        (1, 1 << 63, "AMOUNT_OUT_OF_RANGE"),
        (1, 101, "INSUFFICIENT_FUNDS"),
        (77, 1, "ACCOUNT_UNKNOWN"),
    ],
)
def test_an_impossible_allotment_is_refused_and_uses_no_number(
    owner: int, amount: int, reason: str
) -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 100)
        with pytest.raises(Refused) as caught:
            books.ledger.allot(books.new_id(), PAIR.pair, owner, Asset.BASE, amount)
        assert reason_of(caught) == reason
        assert books.ledger.allot(books.new_id(), PAIR.pair, 1, Asset.BASE, 1).number == 1


def test_a_day_is_closed_once_and_after_its_end() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 100)
        today = date(2026, 1, 1)
        with pytest.raises(Refused) as caught:
            books.ledger.close_day(today)
        assert reason_of(caught) == "DAY_NOT_OVER"
        books.clock.now_ns += DAY_NS
        books.deposit(1, "BTC", 11)
        closed = books.ledger.close_day(today)
        amounts = {line.purpose: line.amount for line in closed.sums if line.asset == "BTC"}
        assert amounts[Purpose.TRADING] == 100 == -amounts[Purpose.CUSTODY]
        books.deposit(1, "BTC", 11)
        assert books.ledger.close_day(today) == closed


def test_unsound_books_are_not_closed() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 100)
        thief = superuser(books)
        with thief.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE postings DISABLE TRIGGER ALL")
            connection.exec_driver_sql("UPDATE postings SET amount = 101 WHERE amount = 100")
        thief.dispose()
        books.clock.now_ns += DAY_NS
        with pytest.raises(BooksUnbalanced, match="BTC sums to 1"):
            books.ledger.close_day(date(2026, 1, 1))
