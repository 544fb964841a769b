"""An owner whose second asset goes to a pair after settlement learnt the pair's accounts."""

from exchange.enums import Asset, ExecutionKind
from ledgerd.audit import verify
from tests.books import PAIR, fresh_books
from tests.unit.test_ledgerd_ledger import allotted, flight, moved, rows_of


def test_a_later_allotment_of_the_other_asset_is_settled() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        for name in ("BTC", "USDT"):
            books.deposit(1, name, 100)
        for place, (asset, name) in enumerate(((Asset.QUOTE, "USDT"), (Asset.BASE, "BTC"))):
            number = books.ledger.allot(books.new_id(), PAIR.pair, 1, asset, 60).number
            words = {"w5": int(asset), "w6": 60, "w7": 60}
            row = moved(ExecutionKind.ALLOTTED, 1, 1 + place, number, **words)
            assert books.ledger.settle(PAIR, rows_of(row), place) == place + 1
            assert books.balance(flight(1, name)) == 0
            assert books.balance(allotted(1, name)) == 60
        assert verify(books.engine).sound
