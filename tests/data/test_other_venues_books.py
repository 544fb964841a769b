"""The client's sorted levels against recordings of other venues: every best price, every checksum.

Each venue has rules of its own for what follows what and what a checksum is made of; those are
here. What is proved is the part that a book of any venue is made of (``holdfast.market.levels``).
"""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdfast.market.levels import ASKS, BIDS, Levels
from holdfast.replay.formats import read_lines, scaled

KRAKEN = "l2-checksum/KRAKEN.ws.50.0.xz"
OKX = "l2-checksum/OKX.ws.1.0.xz"
BINANCE = "binance-spot-btcusdt/spot_btcusdt_20240808.xz"
DECIMALS = 12
KRAKEN_DEPTH = 1_000

Book = Levels[tuple[str, str]]
"""Price and quantity as the venue writes them."""


def put(book: Book, side: int, levels: list[Any]) -> None:
    for price, quantity, *_ in levels:
        number = scaled(price, DECIMALS)
        if scaled(quantity, DECIMALS) == 0:
            book.remove(side, number)
        else:
            book.set(side, number, (price, quantity))


def messages(path: Path) -> Iterator[Any]:
    """Yield what was received, in order."""
    for line in read_lines(path):
        head, _, content = line.partition(" ")
        # Lines about the connection itself begin with its address.
        if content and not head.startswith("wss:"):
            yield json.loads(content)


# Kraken.


def kraken_checksum(book: Book) -> int:
    def digits(text: str) -> str:
        return text.replace(".", "").lstrip("0")

    levels = [*book.best(ASKS, 10), *book.best(BIDS, 10)]
    return zlib.crc32("".join(digits(p) + digits(q) for p, q in levels).encode())


def test_every_checksum_of_kraken(recorded_data: Callable[[str], Path]) -> None:
    books: dict[int, Book] = {}
    checked = 0
    for message in messages(recorded_data(KRAKEN)):
        if not isinstance(message, list) or message[-2] != f"book-{KRAKEN_DEPTH}":
            continue
        book = books.setdefault(message[0], Levels())
        for part in message[1:-2]:
            for name, side in (("as", ASKS), ("bs", BIDS), ("a", ASKS), ("b", BIDS)):
                put(book, side, part.get(name, []))
        for side in (BIDS, ASKS):
            book.cut(side, KRAKEN_DEPTH)
        if "c" in message[-3]:
            checked += 1
            assert kraken_checksum(book) == int(message[-3]["c"]), checked
    print(f"{checked} of {checked} checksums")
    assert checked == 4_269


# OKX.


def okx_checksum(book: Book) -> int:
    bids, asks = book.best(BIDS, 25), book.best(ASKS, 25)
    parts: list[str] = []
    for index in range(25):
        for side in (bids, asks):
            if index < len(side):
                parts.extend(side[index])
    checksum = zlib.crc32(":".join(parts).encode())
    return checksum - (1 << 32) if checksum >= 1 << 31 else checksum


def test_every_checksum_of_okx(recorded_data: Callable[[str], Path]) -> None:
    books: dict[str, Book] = {}
    checked = 0
    for message in messages(recorded_data(OKX)):
        if message.get("arg", {}).get("channel") != "books" or "data" not in message:
            continue
        book = books.setdefault(message["arg"]["instId"], Levels())
        if message["action"] == "snapshot":
            book.clear()
        for part in message["data"]:
            put(book, BIDS, part["bids"])
            put(book, ASKS, part["asks"])
            checked += 1
            assert okx_checksum(book) == part["checksum"], checked
    print(f"{checked} of {checked} checksums")
    assert checked == 290


# Binance.


class BinanceBook:
    """The venue's own procedure: a snapshot, then the differences that follow it."""

    def __init__(self) -> None:
        self.levels: Book = Levels()
        self.last_id = 0
        self.early: list[Any] = []

    def start(self, snapshot: Any) -> None:
        put(self.levels, BIDS, snapshot["bids"])
        put(self.levels, ASKS, snapshot["asks"])
        self.last_id = snapshot["lastUpdateId"]

    def apply(self, difference: Any) -> bool:
        """Apply a difference; false if it is older than the book."""
        if difference["u"] <= self.last_id:
            return False
        assert difference["U"] <= self.last_id + 1, "a difference is missing"
        put(self.levels, BIDS, difference["b"])
        put(self.levels, ASKS, difference["a"])
        self.last_id = difference["u"]
        return True


def test_every_best_price_of_binance(recorded_data: Callable[[str], Path]) -> None:
    recorded = list(messages(recorded_data(BINANCE)))
    book = BinanceBook()
    book.start(next(one for one in recorded if "lastUpdateId" in one))
    data = [one["data"] for one in recorded if "data" in one]
    tickers = iter([one for one in data if "B" in one])
    upcoming, touch, checked = next(tickers, None), None, 0
    for difference in (one for one in data if one.get("e") == "depthUpdate"):
        while upcoming is not None and upcoming["u"] <= difference["u"]:
            touch, upcoming = upcoming, next(tickers, None)
        if book.apply(difference) and touch is not None:
            checked += 1
            best = (*book.levels.best(BIDS, 1)[0], *book.levels.best(ASKS, 1)[0])
            assert best == (touch["b"], touch["B"], touch["a"], touch["A"]), checked
    print(f"{checked} of {checked} best prices")
    # Every difference after the first best price, whether or not that changed in between.
    assert checked == 3_449
