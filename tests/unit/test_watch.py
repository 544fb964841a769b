"""The market in a terminal: what the gateway alone says, in the lines there are."""

import io

import pytest
from rich.console import Console

from exchange.v1 import enums_pb2, market_data_pb2
from holdfast.book import Book
from holdfast.market.levels import checksum
from holdfast.running.pair_view import PAIR_LINES, PairScreen


def shown(screen: PairScreen, levels: int, width: int = 90) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(screen.market_picture(levels))
    return captured.get().splitlines()


@pytest.mark.parametrize("levels", [1, 8, 24])
def test_the_picture_fills_the_lines_it_was_given(levels: int) -> None:
    lines = shown(PairScreen("BTC-USDT"), levels)
    assert len(lines) == PAIR_LINES + 2 * levels
    assert max(map(len, lines)) <= 90


def test_the_figures_are_the_tickers() -> None:
    ticker = market_data_pb2.Ticker(
        last_trade=market_data_pb2.Trade(price="64000.10"),
        day_low="62900.00",
        day_high="64100.00",
        volume_24h="12.50000",
        turnover_24h="798000.00",
        status=enums_pb2.PAIR_STATUS_OPEN,
        engine_state=enums_pb2.ENGINE_STATE_READY,
    )
    first, second, *_ = shown(PairScreen("BTC-USDT", ticker=ticker), 3)
    assert first.strip() == "BTC-USDT  open  last 64000.10   day 62900.00 to 64100.00"
    assert second.strip() == "24 h volume 12.50000, 798000.00 quote"


@pytest.mark.parametrize(
    ("status", "engine_state", "words"),
    [
        ("OPEN", "READY", "open"),
        ("CANCEL_ONLY", "READY", "cancel only"),
        ("HALTED", "READY", "halted"),
        ("HALTED", "CLOSING", "halted"),
        ("OPEN", "CLOSING", "closing"),
        ("CANCEL_ONLY", "JOURNAL_BLOCKED", "journal blocked"),
        ("HALTED", "UNSPECIFIED", "no engine"),
    ],
)
def test_the_first_line_says_what_the_pair_accepts(
    status: str, engine_state: str, words: str
) -> None:
    ticker = market_data_pb2.Ticker(
        status=enums_pb2.PairStatus.Value(f"PAIR_STATUS_{status}"),
        engine_state=enums_pb2.EngineState.Value(f"ENGINE_STATE_{engine_state}"),
    )
    first, *_ = shown(PairScreen("BTC-USDT", ticker=ticker), 3)
    assert first.startswith(f"BTC-USDT  {words}  last none")


def test_a_book_that_is_begun_while_the_engine_is_down_is_shown_as_standing_still() -> None:
    depth = market_data_pb2.Depth(epoch=1, sequence=10, checksum=checksum([], []))
    notices = [
        market_data_pb2.NOTICE_KIND_ENGINE_DOWN,
        market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED,
    ]
    book = Book()
    titles = []
    for kind in notices:
        notice = market_data_pb2.Notice(kind=kind, epoch=1)
        book.apply(market_data_pb2.StreamDepthResponse(notice=notice))
        book.apply(market_data_pb2.StreamDepthResponse(snapshot=depth))
        lines = shown(PairScreen("BTC-USDT", book=book), 3)
        titles.append(any("book (stands still)" in line for line in lines))
    assert titles == [True, False]
