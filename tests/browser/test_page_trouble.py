"""The page while pairs fall silent, halt and begin anew, and while the gateway is away or full.

The pairs are written by the test, so that it knows the moment of each of these.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, WebSocketRoute

from exchange.book_layout import STATE_CLOSING, STATE_READY
from tests.browser.conftest import PATIENCE_MS
from tests.browser.written_market import BTC, ETH, WrittenMarket, WrittenPair, written_market

pytestmark = pytest.mark.integration

OPEN, CANCEL_ONLY, HALTED = 1, 2, 3
CONNECTION_LIMIT = 20
"""Of callers without a key."""
OPEN_SOCKETS = """async ([url, count]) => {
    const one = () => new Promise((done) => {
        const socket = new WebSocket(url);
        socket.onopen = () => socket.send(
            '{"op": "subscribe", "channel": "heartbeat", "pairs": ["BTC-USDT"]}');
        socket.onmessage = done;
    });
    await Promise.all(Array.from({ length: count }, one));
}"""


@pytest.fixture(scope="module")
def market() -> Iterator[WrittenMarket]:
    with written_market() as market:
        yield market


@pytest.fixture
def blank(browser: Browser) -> Iterator[Page]:
    """Give a page that is nowhere yet and must not fail."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page.set_default_timeout(PATIENCE_MS)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    page.close()
    assert failures == []


@pytest.fixture
def page(blank: Page, market: WrittenMarket) -> Page:
    blank.goto(market.url)
    until_live(blank)
    return blank


def until_live(page: Page) -> None:
    page.wait_for_selector('#connection[data-state="live"]')
    page.wait_for_selector('#status:not([data-kind="unknown"])')


def until_read(page: Page, pair: WrittenPair) -> None:
    """Wait until the page shows everything that was written of a pair."""
    page.wait_for_function(
        "sequence => document.querySelector('#strip').dataset.sequence == sequence",
        arg=pair.writer.sequence,
    )


def until_traded(page: Page, numbers: list[int]) -> None:
    """Wait until exactly these trades are on the tape, the newest first."""
    page.wait_for_function(
        "numbers => [...document.querySelectorAll('#trades tr')]"
        ".map(row => row.dataset.tradeNumber).join() === numbers",
        arg=",".join(map(str, numbers)),
    )


def text(page: Page, field: str) -> str:
    found: str = page.inner_text(f'[data-field="{field}"]')
    return found.replace("\u202f", "")


def test_the_silence_of_one_pair_is_not_that_of_another(page: Page, market: WrittenMarket) -> None:
    market.btc.beating = False
    page.wait_for_selector('#connection[data-state="engine"]')
    assert page.inner_text("#news") == f"{BTC}: the engine is silent; data stand still"
    market.btc.writer.status(OPEN)
    until_read(page, market.btc)
    assert page.get_attribute("#connection", "data-state") == "engine", "a notice is no life"
    page.select_option("#pair", ETH)
    until_live(page)
    market.eth.trade(1)
    until_read(page, market.eth)
    assert page.get_attribute("#market", "data-stale") == "false"
    assert page.inner_text("#news") == ""
    page.select_option("#pair", BTC)
    page.wait_for_selector('#connection[data-state="engine"]')
    assert page.get_attribute("#market", "data-stale") == "true"
    market.btc.beating = True
    until_live(page)
    assert page.inner_text("#news") == ""


def test_a_pair_chosen_while_the_gateway_is_away_comes_with_it(
    page: Page, market: WrittenMarket
) -> None:
    page.wait_for_function("() => document.querySelector('#bids td').textContent !== ''")
    market.kill_gateway()
    page.wait_for_selector('#connection[data-state="lost"]')
    assert "No connection to the gateway" in page.inner_text("#news")
    page.select_option("#pair", ETH)
    page.wait_for_function(
        "() => [...document.querySelectorAll('#bids td, #asks td, #trades td')]"
        ".every(cell => cell.textContent === '')"
    )
    assert (text(page, "last"), text(page, "middle-last"), text(page, "spread")) == ("–", "–", "–")
    market.start_gateway()
    until_live(page)
    market.eth.trade(2)
    until_read(page, market.eth)
    trades = market.api(f"v1/trades/{ETH}?limit=60")["trades"]
    until_traded(page, [trade["trade_number"] for trade in trades])
    market.eth.trade(3)
    until_traded(page, [market.eth.writer.trade_count, *(one["trade_number"] for one in trades)])


def test_what_a_pair_accepts_is_shown(page: Page, market: WrittenMarket) -> None:
    def until_shown(word: str, sentence: str) -> None:
        page.wait_for_selector(f'#status:text-is("{word}")')
        assert page.inner_text("#news") == sentence

    until_shown("Open", "")
    market.btc.writer.status(HALTED)
    until_shown("Halted", f"{BTC} is halted: it takes neither orders nor cancels")
    market.btc.writer.status(CANCEL_ONLY)
    until_shown("Cancel only", f"{BTC} takes cancels only, no new orders")
    market.btc.state(STATE_CLOSING)
    until_shown("Closing", f"{BTC} is closing: it takes cancels only")
    market.btc.writer.status(HALTED)
    until_shown("Halted", f"{BTC} is halted: it takes neither orders nor cancels")
    page.select_option("#pair", ETH)
    until_shown("Open", "")
    page.select_option("#pair", BTC)
    until_shown("Halted", f"{BTC} is halted: it takes neither orders nor cancels")
    market.btc.state(STATE_READY)
    market.btc.writer.status(OPEN)
    until_shown("Open", "")
    assert page.get_attribute("#market", "data-stale") == "false"


def test_the_tape_begins_anew_with_another_history(page: Page, market: WrittenMarket) -> None:
    page.select_option("#pair", ETH)
    market.eth.trade(*range(5))
    until_read(page, market.eth)
    market.eth.begin_anew()
    market.eth.trade(7)
    until_traded(page, [1])
    market.eth.trade(6)
    until_traded(page, [2, 1])


def test_a_page_that_comes_back_goes_on_after_its_trades_or_begins_anew(
    blank: Page, market: WrittenMarket
) -> None:
    asked: list[Any] = []

    def sent(frame: str | bytes) -> None:
        request = json.loads(frame)
        if request.get("op") == "subscribe" and request["channel"] == "trades":
            asked.append((request["from_trade_number"], request.get("held_time_ns")))

    blank.on("websocket", lambda socket: socket.on("framesent", sent))
    market.eth.begin_anew()
    market.eth.trade(1, 2, 3)
    blank.goto(f"{market.url}#{ETH}")
    until_traded(blank, [3, 2, 1])
    held_ns = str(market.eth.writer.time_ns)
    market.kill_gateway()
    blank.wait_for_selector('#connection[data-state="lost"]')
    market.eth.trade(4, 5)
    asked.clear()
    market.start_gateway()
    until_traded(blank, [5, 4, 3, 2, 1])
    assert asked == [(4, held_ns)]
    # Another history that is longer than what the page holds: only the time tells it.
    market.kill_gateway()
    blank.wait_for_selector('#connection[data-state="lost"]')
    market.eth.begin_anew()
    market.eth.trade(*range(7))
    prices = [market.eth.middle + price for price in range(7)]
    market.start_gateway()
    until_traded(blank, [7, 6, 5, 4, 3, 2, 1])
    shown = blank.locator('#trades [data-field="price"]').all_inner_texts()
    assert [round(10 * float(one.replace("\u202f", ""))) for one in shown] == prices[::-1]


def test_each_pong_is_measured_by_its_own_ping(blank: Page, market: WrittenMarket) -> None:
    held: list[str | bytes] = []

    def between(stream: WebSocketRoute) -> None:
        server = stream.connect_to_server()

        def told(message: str | bytes) -> None:
            if '"pong"' not in str(message):
                stream.send(message)
                return
            held.append(message)
            if len(held) == 2:
                for one in held:
                    stream.send(one)

        server.on_message(told)

    blank.route_web_socket("**/v1/stream", between)
    blank.add_init_script(
        """new MutationObserver(() => {
            const shown = document.querySelector('[data-field="latency"]')?.textContent;
            if (shown && shown !== window.latencies?.at(-1)) (window.latencies ??= []).push(shown);
        }).observe(document, { subtree: true, childList: true, characterData: true });"""
    )
    blank.goto(market.url)
    blank.wait_for_function("() => window.latencies?.length === 2")
    assert "0.0 ms" not in blank.evaluate("window.latencies")
    assert blank.locator('[role="status"] [data-field="latency"]').count() == 0


def test_pages_do_not_come_back_all_at_once(blank: Page, market: WrittenMarket) -> None:
    blank.add_init_script(
        """Math.random = () => 0.9;
        const later = window.setTimeout;
        window.pauses = [];
        window.setTimeout = (work, ms) => { window.pauses.push(ms); return later(work, ms); };"""
    )
    blank.goto(market.url)
    until_live(blank)
    market.kill_gateway()
    blank.wait_for_function("() => window.pauses.some(ms => Math.abs(ms - 250 * 1.4) < 1)")
    market.start_gateway()
    until_live(blank)


def test_a_refused_page_says_why(browser: Browser, blank: Page, market: WrittenMarket) -> None:
    crowd = browser.new_page()
    crowd.goto(f"{market.url}v1/status")
    url = market.url.replace("http", "ws") + "v1/stream"
    crowd.evaluate(OPEN_SOCKETS, [url, CONNECTION_LIMIT])

    def with_room(route: Route) -> None:
        body = '{"reason": "HANDSHAKE_INVALID", "message": "this path speaks WebSocket"}'
        route.fulfill(status=400, body=body)

    blank.route("**/v1/stream", with_room)
    blank.goto(market.url)
    blank.wait_for_selector('#connection[data-state="refused"]')
    assert "Refused: the gateway answers, but no live connection" in blank.inner_text("#news")
    blank.unroute("**/v1/stream")
    sentence = "address 127.0.0.1 has 20 open connections, as many as the tier anonymous may have"
    blank.wait_for_selector(f'#news:has-text("Refused: {sentence}.")')
    crowd.close()
    until_live(blank)
    assert blank.inner_text("#news") == ""
