"""What a person sees of one pair: book, trades, rates, latencies.

`PairScreen` is pure: it is told facts and asked for a picture, either as rich renderables for a
terminal or as parts of a plain line for a log. It asks nobody and starts nothing.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from exchange.enums import Side
from exchange.v1 import enums_pb2, market_data_pb2, pair_admin_pb2
from holdfast.book import Book, Level

LEVELS_SHOWN: Final = 8
"""Of each side, where the terminal is high enough."""
LEVELS_ASKED: Final = 10
"""The least that the gateway offers and that is enough."""
TRADES_SHOWN: Final = 2 * LEVELS_SHOWN + 1
PAIR_LINES: Final = 6
"""Lines of a pair's picture besides the levels."""
RATE_WINDOW_NS: Final = 3_000_000_000
_DAY_NS: Final = 86_400_000_000_000


class Rate:
    """How fast a counter grows, over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def see(self, now_ns: int, count: int) -> None:
        """Take what the counter says now; a counter that falls starts anew."""
        if self._seen and count < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now_ns, count))
        while len(self._seen) > 2 and now_ns - self._seen[0][0] > RATE_WINDOW_NS:
            self._seen.popleft()

    def per_second(self) -> int:
        """Return the growth per second; 0 as long as it is not known."""
        if len(self._seen) < 2:
            return 0
        (first_ns, first), (last_ns, last) = self._seen[0], self._seen[-1]
        return (last - first) * 1_000_000_000 // max(1, last_ns - first_ns)


@dataclass
class PairScreen:
    """Everything that is shown of a pair, as far as it is known."""

    pair: str
    book: Book | None = None
    ticker: market_data_pb2.Ticker | None = None
    status: pair_admin_pb2.GetStatusResponse | None = None
    flow: dict[str, Any] = field(default_factory=dict)
    trades: deque[market_data_pb2.Trade] = field(default_factory=lambda: deque(maxlen=TRADES_SHOWN))
    commands: Rate = field(default_factory=Rate)
    executions: Rate = field(default_factory=Rate)
    traded: Rate = field(default_factory=Rate)

    def see_status(self, now_ns: int, status: pair_admin_pb2.GetStatusResponse) -> None:
        """Take what the engine says about itself."""
        self.status = status
        self.commands.see(now_ns, status.sequence)
        self.executions.see(now_ns, status.committed_number)

    def see_ticker(self, now_ns: int, ticker: market_data_pb2.Ticker) -> None:
        """Take best prices and figures of the day."""
        self.ticker = ticker
        self.traded.see(now_ns, ticker.trade_count)

    def line(self) -> list[str]:
        """Return the state as parts of a plain line."""
        parts = [self.pair, self._engine()]
        best = self._best()
        if best:
            parts.append(f"bid {best[0]} ask {best[1]}")
        if self.ticker is not None and self.ticker.HasField("last_trade"):
            parts.append(f"last {self.ticker.last_trade.price}")
        parts.append(
            f"{self.commands.per_second():,} commands/s {self.traded.per_second():,} trades/s"
        )
        if self.flow.get("single_us"):
            parts.append(f"order {_latency(self.flow['single_us'])}")
        if self.flow.get("batch_us"):
            parts.append(f"batch {_latency(self.flow['batch_us'])}")
        return parts

    def _best(self) -> tuple[str, str] | None:
        if self.book is None:
            return None
        bids, asks = self.book.bids(1), self.book.asks(1)
        return bids[0].price if bids else "none", asks[0].price if asks else "none"

    def _engine(self) -> str:
        if self.status is None:
            return "engine not reached"
        name = enums_pb2.EngineState.Name(self.status.engine_state)
        return (
            f"{name.removeprefix('ENGINE_STATE_').lower()} epoch {self.status.engine_epoch}"
            f" sequence {self.status.sequence:,}"
        )

    def picture(self, levels: int) -> RenderableType:
        """Return the pair with so many levels of each side: PAIR_LINES + 2 · levels lines."""
        return Group(self._headline(), self._figures(), self._panels(levels))

    def market_picture(self, levels: int) -> RenderableType:
        """Return what the market data alone say, in as many lines."""
        return Group(*self._market_lines(), self._panels(levels))

    def _panels(self, levels: int) -> RenderableType:
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=11)
        grid.add_column(ratio=9)
        grid.add_row(self._book_panel(levels), self._trades_panel(2 * levels + 1))
        return grid

    def _market_lines(self) -> tuple[Text, Text]:
        first = Text(f"{self.pair}  ", style="bold", no_wrap=True, overflow="ellipsis")
        second = Text(no_wrap=True, overflow="ellipsis", style="dim")
        if self.ticker is not None:
            word, style = _condition(self.ticker)
            first.append(f"{word}  ", style=style)
            first.append(f"last {self.ticker.last_trade.price or 'none'}")
            first.append(f"   day {self.ticker.day_low} to {self.ticker.day_high}", style="dim")
            second.append(f"24 h volume {self.ticker.volume_24h}, {self.ticker.turnover_24h} quote")
        if self.book is not None:
            second.append(f"   sequence {self.book.sequence:,} of epoch {self.book.epoch}")
        return first, second

    def _headline(self) -> RenderableType:
        text = Text(f"{self.pair}  ", style="bold", no_wrap=True, overflow="ellipsis")
        ready = enums_pb2.ENGINE_STATE_READY
        good = self.status is not None and self.status.engine_state == ready
        text.append(self._engine(), style="green" if good else "red")
        if self.ticker is not None and self.ticker.HasField("last_trade"):
            text.append(f"   last {self.ticker.last_trade.price}", style="bold")
            text.append(f"   day {self.ticker.day_low} to {self.ticker.day_high}", style="dim")
        return text

    def _book_panel(self, count: int) -> RenderableType:
        table = Table.grid(expand=True, padding=(0, 1))
        for ratio in (3, 3, 2):
            table.add_column(justify="right", ratio=ratio)
        table.add_row("price", "quantity", "orders", style="dim")
        asks = self.book.asks(count) if self.book else []
        bids = self.book.bids(count) if self.book else []
        for level in [None] * (count - len(asks)) + asks[::-1]:
            table.add_row(*_level(level), style="red")
        table.add_row("spread", _spread(bids, asks), "", style="dim")
        for level in bids + [None] * (count - len(bids)):
            table.add_row(*_level(level), style="green")
        live = self.book is not None and self.book.live
        return Panel(table, title="book" if live else "book (stands still)", padding=(0, 1))

    def _trades_panel(self, count: int) -> RenderableType:
        table = Table.grid(expand=True, padding=(0, 1))
        for _ in range(3):
            table.add_column(justify="right")
        table.add_row("price", "quantity", "UTC", style="dim")
        shown = list(self.trades)[: -count - 1 : -1]
        for trade in shown:
            style = "green" if int(trade.taker_side) == Side.BUY else "red"
            price = Text(trade.price, style=style)
            table.add_row(price, trade.quantity, _clock(trade.time_ns))
        for _ in range(count - len(shown)):
            table.add_row("", "", "")
        return Panel(table, title="trades", padding=(0, 1))

    def _figures(self) -> RenderableType:
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{self.commands.per_second():,}", style="bold")
        text.append(" commands/s  ")
        text.append(f"{self.traded.per_second():,}", style="bold")
        text.append(" trades/s  p50 / p99 order ")
        text.append(_latency(self.flow.get("single_us")), style="bold")
        text.append(" batch ")
        text.append(_latency(self.flow.get("batch_us")), style="bold")
        counts = [
            f"{self.flow[name]:,} {name}"
            for name in ("rejected", "replayed", "failed")
            if self.flow.get(name)
        ]
        if counts:
            text.append(f"  ({', '.join(counts)})", style="yellow")
        return text


def _condition(ticker: market_data_pb2.Ticker) -> tuple[str, str]:
    """Return in a word what the pair accepts, and its style; what keeps out more goes first."""
    status, state = ticker.status, ticker.engine_state
    if state == enums_pb2.ENGINE_STATE_UNSPECIFIED:
        return "no engine", "bold red"
    if status == enums_pb2.PAIR_STATUS_HALTED:
        return "halted", "bold red"
    if state != enums_pb2.ENGINE_STATE_READY:
        name = enums_pb2.EngineState.Name(state).removeprefix("ENGINE_STATE_")
        return name.lower().replace("_", " "), "bold yellow"
    if status == enums_pb2.PAIR_STATUS_CANCEL_ONLY:
        return "cancel only", "bold yellow"
    return "open", "green"


def _level(level: Level | None) -> tuple[str, str, str]:
    if level is None:
        return "", "", ""
    return level.price, level.quantity, f"{level.order_count:,}"


def _spread(bids: list[Level], asks: list[Level]) -> str:
    if not bids or not asks:
        return ""
    return f"{asks[0].price_ticks - bids[0].price_ticks:,} ticks"


def _latency(median_and_tail: list[int] | None) -> str:
    if not median_and_tail:
        return "–"
    median, tail = median_and_tail
    return f"{median / 1_000:.1f} / {tail / 1_000:.1f} ms"


def _clock(time_ns: int) -> str:
    second = time_ns % _DAY_NS // 1_000_000_000
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
