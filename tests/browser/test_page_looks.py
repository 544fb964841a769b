"""What the page shows and where: the ladder's middle, the depth read-out, the clock, all sizes."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import PATIENCE_MS
from tests.browser.written_market import BTC, WrittenMarket, written_market

pytestmark = pytest.mark.integration

ZONE = "Asia/Kolkata"
SIZES = [
    (320, 568),
    (390, 844),
    (820, 1180),
    (1100, 700),
    (1280, 720),
    (1366, 768),
    (1440, 900),
    (1920, 1080),
]
CUT = """() => [...document.querySelectorAll('.rows td, #strip dd, #connection, #status')]
    .filter(one => one.offsetParent && one.scrollWidth > one.clientWidth + 1)
    .map(one => one.textContent)"""
"""Texts that do not fit where they stand."""
LADDER = """() => {
    const edge = document.querySelector('#ladder-room').getBoundingClientRect().bottom;
    const rows = [...document.querySelectorAll('#bids tr')];
    return [rows.length, edge - rows.at(-1).getBoundingClientRect().bottom];
}"""


@pytest.fixture(scope="module")
def market() -> Iterator[WrittenMarket]:
    with written_market() as market:
        market.btc.trade(*range(-20, 20), 3, 2, lots=123_456_789)
        yield market


@pytest.fixture
def page(browser: Browser, market: WrittenMarket) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, timezone_id=ZONE)
    page.set_default_timeout(PATIENCE_MS)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(market.url)
    page.wait_for_function(
        "() => document.querySelector('#bids td').textContent"
        " && document.querySelector('#trades td')"
        " && document.querySelector('#strip').dataset.sequence > 0"
    )
    yield page
    page.close()
    assert failures == []


def text(page: Page, selector: str) -> str:
    found: str = page.inner_text(selector)
    return found.replace("\u202f", "")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_size_shows_all_of_it(
    page: Page, market: WrittenMarket, size: tuple[int, int]
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    market.btc.beating = False
    page.wait_for_selector('#connection[data-state="engine"]')
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate("document.querySelector('header').offsetHeight") <= 125
        assert page.evaluate(CUT) == []
        page.wait_for_function(f"() => ({LADDER})()[1] >= -1")
        count, rest_px = page.evaluate(LADDER)
        assert count >= 8
        assert rest_px < 25, "room for more rows is left"
        market.btc.beating = True
        page.wait_for_selector('#connection[data-state="live"]')


def test_the_ladders_middle_says_last_price_its_direction_and_the_spread(
    page: Page, market: WrittenMarket
) -> None:
    middle = "[data-field='middle-last']"
    market.btc.trade(5, 4)
    page.wait_for_selector(f"{middle}[data-direction='down']")
    assert text(page, middle) == market.api(f"v1/ticker/{BTC}")["last_trade"]["price"]
    assert "▼" in page.evaluate(
        f"getComputedStyle(document.querySelector(\"{middle}\"), '::before').content"
    )
    market.btc.trade(4, 6)
    page.wait_for_selector(f"{middle}[data-direction='up']")
    market.btc.trade(6)
    assert text(page, "[data-field='spread']") == "0.2"
    assert text(page, "[data-field='spread-size']") == "2 ticks · 0.03 bp"


def test_the_depth_under_the_pointer_is_the_books(page: Page, market: WrittenMarket) -> None:
    box = page.locator("#depth-chart").bounding_box()
    assert box is not None
    depth = market.api(f"v1/depth/{BTC}?levels=100")
    for share, side in ((0.2, "bids"), (0.9, "asks")):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 20)
        page.wait_for_selector(f'#depth-readout[data-side="{side[:-1]}"]')
        read = re.match(r"([\d.]+)\s+[+−][\d.]+ bp\s*([\d.]+) BTC", text(page, "#depth-readout"))
        assert read is not None
        price, total = map(Decimal, read.groups())
        between = (
            Decimal(quantity)
            for level, quantity, _ in depth[side]
            if (Decimal(level) >= price if side == "bids" else Decimal(level) <= price)
        )
        assert total == sum(between) > 0
    page.mouse.move(0, 0)
    page.wait_for_selector("#depth-readout", state="hidden")


def test_tape_and_axis_have_one_clock_and_name_it(page: Page, market: WrittenMarket) -> None:
    assert (
        text(page, '[data-field="zone"]') == text(page, '[data-field="chart-zone"]') == "GMT+5:30"
    )
    newest = market.api(f"v1/trades/{BTC}?limit=1")["trades"][0]
    moment = datetime.fromtimestamp(int(newest["time_ns"]) // 10**9, ZoneInfo(ZONE))
    assert text(page, "#trades td") == moment.strftime("%H:%M:%S")
    noon = int(datetime(2026, 6, 30, 12, 0, 7, tzinfo=UTC).timestamp())
    shown = page.evaluate(
        """async (noon) => {
            const { ChartClock } = await import("./chart_clock.js");
            const clock = new ChartClock();
            const points = Array.from({ length: 48 }, (_, half) => {
                const time = clock.convertHorzItemToInternal(noon - 7 + 1800 * half);
                return { time, timeWeight: 0 };
            });
            clock.fillWeightsForPoints(points, 0);
            const heaviest = Math.max(...points.slice(1).map(one => one.timeWeight));
            const at = points.findIndex((one, index) => index && one.timeWeight === heaviest);
            const midnight = clock.key(points[at].time);
            const found = [clock.moment(noon), clock.mark(noon, 3), clock.mark(midnight, 2),
                clock.mark(midnight, 3)];
            clock.wholeDays = true;
            return [...found, clock.moment(noon - 43207)];
        }""",
        noon,
    )
    assert shown == [
        "Tue 30 Jun, 17:30:07 GMT+5:30",
        "17:30",
        "1 Jul",
        "00:00",
        "Tue, 30 Jun 2026 UTC",
    ]
    page.keyboard.press("7")
    page.wait_for_selector('[data-field="chart-zone"]:text-is("UTC days")')
