"""The books against the engine's digest of all accounts, at exactly the execution that says it."""

from collections.abc import Mapping

import numpy as np
import pytest

from exchange.account_digest import digest_of
from exchange.enums import Asset, ExecutionKind
from ledgerd import chart
from ledgerd.audit import verify
from ledgerd.books.settling import BooksDiffer, digest_in
from ledgerd.chart import TransferKind
from ledgerd.ledger import Ledger
from tests.books import PAIR, fresh_books, superuser
from tests.unit.test_ledgerd_ledger import execution, funded, rows_of, trade


def digest(
    owns: Mapping[tuple[int, int], int], fees: int, sequence: int, **words: int
) -> list[int]:
    """Say what an engine holds of (owner, asset) in all; further words are lies."""
    owners = sorted({owner for owner, _ in owns})
    base, quote = (
        np.array([owns.get((owner, asset), 0) for owner in owners], np.int64)
        for asset in (Asset.BASE, Asset.QUOTE)
    )
    said = digest_of(np.array(owners, np.int64), base, quote, fees)
    given = {
        "w3": said.digest,
        "w4": said.account_count,
        "w6": said.base_units,
        "w7": said.quote_units,
        "w9": said.fee_units,
    }
    return execution(ExecutionKind.DIGEST, 0, sequence, **(given | words))


def owned(trades: int = 0) -> dict[tuple[int, int], int]:
    """Return what the engine holds after `funded` and so many trades of ten lots."""
    coins = trades * 10 * PAIR.base_units_per_lot
    worth = trades * 100 * 10 * PAIR.quote_units_per_tick_lot
    return {
        (1, Asset.BASE): 10**8 + coins,
        (1, Asset.QUOTE): 10**8 - worth - 7 * trades,
        (2, Asset.BASE): 10**8 - coins,
        (2, Asset.QUOTE): 10**8 + worth + 2 * trades,
    }


def test_digests_are_compared_at_exactly_their_execution() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        rows = []
        for place in range(4):
            rows += [digest(owned(place), 5 * place, 9 + place), trade(1, 2, 9 + place)]
        cursor = books.ledger.settle(PAIR, rows_of(*rows), cursor)
        # A process that starts anew reads in full what this one kept in steps.
        anew = Ledger(books.engine, books.clock)
        for ledger in (books.ledger, anew):
            cursor = ledger.settle(PAIR, rows_of(digest(owned(4), 20, 20)), cursor)
        assert books.ledger.differences() == []
        # And so does an audit, from the postings alone.
        engines = verify(books.engine).engines
        assert engines == {PAIR.pair: (cursor, digest_in(rows_of(digest(owned(4), 20, 1))[0]))}


@pytest.mark.parametrize("word", ["w3", "w4", "w6", "w7", "w9"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_word_of_a_digest_that_differs_stops_the_batch(word: str, place: int) -> None:
    with fresh_books() as books:
        cursor = funded(books)
        rows = [digest(owned(n // 2), 5 * (n // 2), 9) for n in range(0, 6, 2)]
        lie = rows[place][int(word[1:])] + 1
        rows[place] = digest(owned(place), 5 * place, 9, **{word: lie})
        batch = rows_of(rows[0], trade(1, 2, 9), rows[1], trade(1, 2, 9), rows[2])
        with pytest.raises(BooksDiffer, match=f"at execution {cursor + 2 * place} of command 9"):
            books.ledger.settle(PAIR, batch, cursor)
        assert books.ledger.cursor(PAIR.pair) == cursor


def test_a_difference_is_said_with_both_digests_and_all_sums() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        wrong = owned() | {(1, int(Asset.BASE)): 10**8 - 3, (2, int(Asset.BASE)): 10**8 + 3}
        with pytest.raises(BooksDiffer) as caught:
            books.ledger.settle(PAIR, rows_of(digest(wrong, 0, 9)), cursor)
        said = [digest(one, 0, 9)[3] % (1 << 64) for one in (wrong, owned())]
        assert said[0] != said[1]
        for part in (*(f"{word:016x}" for word in said), f"{2 * 10**8} BTC", f"{2 * 10**8} USDT"):
            assert part in str(caught.value)


def test_fees_that_were_swept_away_still_count_as_taken() -> None:
    with fresh_books() as books:
        cursor = books.ledger.settle(PAIR, rows_of(trade(1, 2, 9)), funded(books))
        books.ledger.open_accounts([chart.fees("USDT")])
        legs = (chart.fees("USDT", PAIR.pair), -5), (chart.fees("USDT"), 5)
        books.ledger.post([books.transfer(*legs, kind=TransferKind.FEE_SWEEP)])
        anew = Ledger(books.engine, books.clock)
        cursor = anew.settle(PAIR, rows_of(digest(owned(1), 5, 10), trade(1, 2, 11)), cursor)
        assert books.balance(chart.fees("USDT", PAIR.pair)) == 5
        books.ledger.settle(PAIR, rows_of(digest(owned(2), 10, 12)), cursor)


def test_a_balance_that_somebody_changed_differs_from_the_engine() -> None:
    with fresh_books() as books:
        cursor = funded(books)
        thief = superuser(books)
        with thief.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE balances SET amount = amount + 1 FROM accounts"
                " WHERE id = account_id AND owner_id = 2 AND purpose = 3 AND asset = 'BTC'"
            )
        thief.dispose()
        # The process that kept its own sum still has the right one, and says so.
        assert f"{2 * 10**8 + 1} BTC" in books.ledger.differences()[0]
        with pytest.raises(BooksDiffer, match=f"{2 * 10**8 + 1} BTC"):
            Ledger(books.engine, books.clock).settle(PAIR, rows_of(digest(owned(), 0, 9)), cursor)
