"""Two pairs whose segments a test writes itself, and a gateway over them that shows the page.

No engine runs: what a pair does is what the test says, at the moment it says it.
"""

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from exchange.book_layout import ENGINE_STATE, EVENT_LEVEL, TOUCH_DAY_OPEN
from exchange.config import load_instrument
from tests.integration.exchange_processes import free_port
from tests.integration.market_data_processes import Processes, processes_in_memory
from tests.unit.market_data_writer import Writer

BTC: Final = "BTC-USDT"
ETH: Final = "ETH-USDT"
BEAT_S: Final = 0.1
MIDDLE_TICKS: Final = {BTC: 640_001, ETH: 34_201}
LEVELS: Final = 60

INSTRUMENTS: Final = "".join(
    f"""
["{pair}"]
base_asset = "{pair[:3]}"
quote_asset = "USDT"
tick_quote_units = 10000000
base_units_per_lot = 1000
price_capacity_ticks = 1048576
quantity_limit_lots = 5000000000
order_capacity = 1024
client_id_window = 2048
event_capacity = 65536
"""
    for pair in (BTC, ETH)
)
"""Ticks of 0.1 USDT, lots of 0.00001."""


class WrittenPair:
    """A pair's segment, written by hand; it beats until it is told to be silent."""

    def __init__(self, pair: str, segments: Path, instruments: Path) -> None:
        self.pair = pair
        self.segments = segments
        self.instrument = load_instrument(pair, instruments)
        self.middle = MIDDLE_TICKS[pair]
        self.beating = True
        self._changing = threading.Lock()
        self.writer = self._written()

    def _written(self) -> Writer:
        writer = Writer(self.segments, self.instrument)
        writer.time_ns = time.time_ns()
        writer.arrays["touch"][TOUCH_DAY_OPEN] = self.middle - 20
        writer.status(1)
        levels = []
        for step in range(1, LEVELS + 1):
            lots = 20_000 + 7_919 * step * step % 90_000
            levels += [
                (EVENT_LEVEL, 1, self.middle - step, lots, 1, 0),
                (EVENT_LEVEL, 2, self.middle + step, lots, 1, 0),
            ]
        writer.batch(levels)
        writer.depth()
        return writer

    def beat(self) -> None:
        """Say that the engine lives, unless it is to be silent."""
        with self._changing:
            if self.beating:
                self.writer.heartbeat(time.monotonic_ns())

    def state(self, engine_state: int) -> None:
        """Say what the engine is doing."""
        self.writer.arrays["scalars"][ENGINE_STATE] = engine_state

    def trade(self, *prices: int, lots: int = 1_000) -> None:
        """Trade once at each price, in ticks from the middle; the second, fourth … is a sale."""
        for number, price in enumerate(prices):
            self.writer.time_ns = time.time_ns()
            self.writer.trade(1 + number % 2, self.middle + price, lots)

    def begin_anew(self) -> None:
        """Take another segment, with a history of its own."""
        with self._changing:
            self.writer.close()
            self.writer = self._written()


class WrittenMarket:
    """Both pairs and their gateway."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        folder = processes.folder
        instruments = folder / "instruments.toml"
        instruments.write_text(INSTRUMENTS)
        self.btc, self.eth = (
            WrittenPair(pair, processes.segments, instruments) for pair in (BTC, ETH)
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        run = ("--run", str(folder / "run"), "--instruments", str(instruments))
        pairs = ("--pair", BTC, "--pair", ETH)
        # The page has to do with what strangers are given.
        tier = ("--anonymous-tier", "anonymous")
        ports = ("--port", "0", "--http-port", str(port))
        self._gateway = ("-m", "mdgateway", *pairs, *run, *tier, *ports)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self.btc.beat()
            self.eth.beat()

    def start_gateway(self) -> None:
        """Start the gateway; it listens when this returns."""
        self.processes.start("gateway", *self._gateway)

    def kill_gateway(self) -> None:
        """End the gateway at once."""
        self.processes.kill("gateway")

    def api(self, path: str) -> Any:
        """Return what the gateway answers at a path."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def close(self) -> None:
        """End the pairs."""
        self._ended.set()
        self._thread.join()
        self.btc.writer.close()
        self.eth.writer.close()


@contextlib.contextmanager
def written_market() -> Iterator[WrittenMarket]:
    """Give a market whose gateway is started; all is gone at the end."""
    with processes_in_memory() as processes:
        market = WrittenMarket(processes)
        try:
            market.start_gateway()
            yield market
        finally:
            market.close()
