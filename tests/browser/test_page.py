"""The page in a real Chromium: its numbers are the API's, it recovers, it fits a phone.

Screenshots are left in `.artefacts/`, which is not in the repository.
"""

import json
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import PATIENCE_MS
from tests.integration.exchange_processes import free_port
from tests.integration.market_data_processes import (
    PAIR,
    ROOT,
    Processes,
    Traders,
    channel_to,
    wait_serving,
)

pytestmark = pytest.mark.integration

ARTEFACTS = ROOT / ".artefacts"


class Exchange:
    """One pair with its gateway, and what the API says of it."""

    def __init__(self, folder: Path) -> None:
        self.processes = Processes(folder)
        self.http_port = free_port()
        self.url = f"http://127.0.0.1:{self.http_port}/"

    def start(self) -> None:
        self.processes.start_engine()
        entry_port = self.processes.start_entry()
        with channel_to(entry_port) as channel:
            wait_serving(channel, "orders")
        self.traders = Traders(entry_port, seed=7)
        self.start_gateway()
        self.traders.allot()
        self.traders.trade(2, 200)

    def start_gateway(self) -> None:
        port = self.processes.start_gateway("--http-port", str(self.http_port))
        with channel_to(port) as channel:
            wait_serving(channel, "marketdata")

    def api(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    folder.chmod(0o755)
    whole = Exchange(folder)
    try:
        whole.start()
        yield whole
        whole.traders.channel.close()
    finally:
        whole.processes.close()
        shutil.rmtree(folder)


@pytest.fixture
def page(browser: Browser, exchange: Exchange) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page.set_default_timeout(PATIENCE_MS)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(exchange.url)
    until_equal(page, exchange)
    yield page
    page.close()
    assert failures == []


def until_equal(page: Page, exchange: Exchange) -> None:
    """Wait until the page is live and has the book of the sequence that the API has."""
    page.wait_for_selector('#connection[data-state="live"]')
    ticker = exchange.api(f"v1/ticker/{PAIR}")
    sequence, last = ticker["sequence"], ticker["last_trade"]["trade_number"]
    page.wait_for_function(
        "([sequence, last]) => document.querySelector('#book').dataset.sequence == sequence"
        " && document.querySelector('#trades tr')?.dataset.tradeNumber == last"
        " && document.querySelector('#strip').dataset.sequence == sequence"
        " && document.querySelector('#chart').getAttribute('aria-label').includes('close')",
        arg=[sequence, last],
    )


def plain(text: str) -> str:
    return text.replace("\u202f", "")


def levels_shown(page: Page) -> int:
    """Return for how many levels a side there is room."""
    return page.locator("#bids tr").count()


def rows(page: Page, body: str) -> list[list[str]]:
    """Return price and quantity of the rows that are filled."""
    found = page.eval_on_selector_all(
        f"#{body} tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return [[plain(price), plain(quantity)] for price, quantity, _ in found if price]


def test_numbers_on_the_page_are_those_of_the_api(page: Page, exchange: Exchange) -> None:
    depth = exchange.api(f"v1/depth/{PAIR}?levels={levels_shown(page)}")
    assert str(depth["sequence"]) == page.get_attribute("#book", "data-sequence")
    assert rows(page, "bids") == [level[:2] for level in depth["bids"]]
    assert rows(page, "asks") == [level[:2] for level in reversed(depth["asks"])]
    ticker = exchange.api(f"v1/ticker/{PAIR}")
    for name, value in (
        ("last", ticker["last_trade"]["price"]),
        ("bid", ticker["best_bid"]["price"]),
        ("ask", ticker["best_ask"]["price"]),
        ("high", ticker["high_24h"]),
        ("low", ticker["low_24h"]),
    ):
        assert plain(page.inner_text(f'#strip [data-field="{name}"]')) == value, name
    trades = exchange.api(f"v1/trades/{PAIR}?limit=60")["trades"]
    tape = page.eval_on_selector_all(
        "#trades tr",
        "rows => rows.map(row => [row.dataset.tradeNumber, row.cells[1].textContent,"
        " row.cells[2].textContent, row.dataset.side])",
    )
    assert [[number, plain(price), plain(lots), side] for number, price, lots, side in tape] == [
        [str(one["trade_number"]), one["price"], one["quantity"], one["side"]] for one in trades
    ]
    candle = exchange.api(f"v1/candles/{PAIR}?interval=1m&limit=1")["candles"][-1]
    words = page.get_attribute("#chart", "aria-label") or ""
    for name in ("open", "high", "low", "close", "volume"):
        assert f"{name} {candle[name]}" in words


def test_a_live_market_moves_the_page(page: Page, exchange: Exchange) -> None:
    before = page.get_attribute("#book", "data-sequence")
    exchange.traders.trade(20, 50)
    until_equal(page, exchange)
    assert page.get_attribute("#book", "data-sequence") != before
    test_numbers_on_the_page_are_those_of_the_api(page, exchange)
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / "page-dark.png")


def expected(levels: list[Any], step: Decimal, rounding: str) -> list[list[str]]:
    """Return levels grouped to multiples of a step, by exact decimals."""
    groups: dict[Decimal, Decimal] = {}
    for price, quantity, _ in levels:
        group = (Decimal(price) / step).to_integral_value(rounding) * step
        groups[group] = groups.get(group, Decimal(0)) + Decimal(quantity)
    places = Decimal(levels[0][0])
    return [[str(price.quantize(places)), str(lots)] for price, lots in groups.items()]


def test_levels_are_grouped_to_no_better_price(page: Page, exchange: Exchange) -> None:
    best = exchange.api(f"v1/depth/{PAIR}?levels=100")
    count = levels_shown(page)
    page.select_option("#group", index=2)
    step = Decimal(page.inner_text("#group option:nth-child(3)"))
    page.wait_for_function(
        "count => [...document.querySelectorAll('#bids tr')]"
        ".filter(row => row.cells[0].textContent).length == count",
        arg=min(count, len(expected(best["bids"], step, ROUND_FLOOR))),
    )
    assert rows(page, "bids") == expected(best["bids"], step, ROUND_FLOOR)[:count]
    assert rows(page, "asks") == expected(best["asks"], step, ROUND_CEILING)[:count][::-1]


def test_keys_do_what_the_footer_says(page: Page) -> None:
    page.keyboard.press("3")
    page.wait_for_selector('#intervals button[aria-pressed="true"]:text-is("5m")')
    theme = page.get_attribute("html", "data-theme")
    page.keyboard.press("t")
    assert page.get_attribute("html", "data-theme") != theme
    page.keyboard.press("p")
    assert page.evaluate("document.activeElement.id") == "pair"
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / "page-light.png")


def test_a_phone_shows_it_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / "page-phone.png", full_page=True)


def test_it_recovers_from_a_dead_engine_and_a_dead_gateway(page: Page, exchange: Exchange) -> None:
    processes = exchange.processes
    processes.kill("engine")
    page.wait_for_selector('#connection[data-state="engine"]')
    assert page.get_attribute("#market", "data-stale") == "true"
    processes.start_engine()
    until_equal(page, exchange)
    processes.kill("gateway")
    page.wait_for_selector('#connection[data-state="lost"], #connection[data-state="connecting"]')
    exchange.start_gateway()
    exchange.traders.trade(2, 20)
    until_equal(page, exchange)
    test_numbers_on_the_page_are_those_of_the_api(page, exchange)
